//! What may be asked of an open mart besides queries: naming moments, sweeping, going back, replacing its files.
//!
//! An order is carried out by the mart's own task, so it has its place among commits. It does not say who may give it.

use std::sync::Arc;

use replica::names::{Names, Past};
use replica::retention::Ledger;
use replica::ship::{Prepared, Swept, Terms};
use replica::{Error, Position};
use tokio::sync::{mpsc, oneshot};

use crate::error::{ApiError, Code, Outcome};
use crate::pins::Pins;

/// Orders that wait at most; more wait at their senders.
const WAITING: usize = 16;

/// Where the answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// Changes names, knowing what is durable now.
pub type Change = Box<dyn FnOnce(&mut Names, Option<Past>) -> Result<(), ApiError> + Send>;

/// One order.
pub enum Order {
    /// Change what is named. All commits so far are durable first.
    Names(Change, Reply<Arc<Names>>),
    /// Let go what retention allows.
    Sweep(Ledger, Terms, Pins, Reply<Swept>),
    /// Put other files in the mart's place.
    Swap(Swap),
}

/// Other files for a mart. Its writers are drained first.
pub enum Swap {
    /// Those of an earlier moment.
    Back {
        /// They, fetched.
        prepared: Box<Prepared>,
        /// Where the mart must still be.
        expected: Option<Position>,
        /// Who waits.
        reply: Reply<Swapped>,
    },
    /// The same rows in a compact file.
    Vacuum {
        /// Who waits.
        reply: Reply<Swapped>,
    },
}

/// What a swap did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swapped {
    /// Where the mart was.
    pub before: Position,
    /// Where it is.
    pub after: Position,
    /// Bytes of the file before and after, and what was verified, for a vacuum.
    pub compacted: Option<engine::compact::Compacted>,
}

impl Swap {
    /// Who waits for it.
    pub fn into_reply(self) -> Reply<Swapped> {
        match self {
            Self::Back { reply, .. } | Self::Vacuum { reply } => reply,
        }
    }
}

/// The two ends of a mart's orders.
pub fn channel() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(WAITING)
}

/// Gives an order and waits for what became of it.
pub async fn give<T>(orders: &mpsc::Sender<Order>, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, ApiError> {
    let (reply, answer) = oneshot::channel();
    let closed = || ApiError::new(Code::Unavailable, "the mart is closing").hint("try again in a moment");
    orders.send(order(reply)).await.map_err(|_| closed())?;
    answer
        .await
        .map_err(|_| closed().outcome(Outcome::Unknown).hint("look whether it has happened before you ask again"))?
}

/// What an error of the replica means to whoever gave an order.
pub fn refused(error: &Error) -> ApiError {
    match error {
        Error::NotFound(_) => ApiError::new(Code::NotFound, "the mart has no such moment, or not any more")
            .hint("`…/history` lists those it has"),
        Error::Unavailable { .. } => ApiError::new(Code::Unavailable, "the object store is not available")
            .hint("try again; `tarn doctor` checks the store"),
        Error::Fenced { .. } => {
            ApiError::new(Code::Fenced, "another node has taken over this mart").hint("send the request there")
        }
        Error::Dropped => ApiError::new(Code::NotFound, "the mart was dropped"),
        Error::Corrupt { .. } => {
            tracing::error!(%error, "a replica does not pass its checks");
            ApiError::new(Code::Corrupt, "the mart's replica does not pass its checks")
                .hint("the server's log names the object; `tarn verify` looks at all of them")
        }
        Error::Diverged(_) | Error::Misuse(_) | Error::Io { .. } => ApiError::internal("an order failed", error),
    }
}
