//! What there is of places: their sessions, and the transactions on them. Only state; what is asked of engines is `sessions`' part.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, mpsc};
use uuid::Uuid;

use crate::error::{ApiError, Code};
use crate::flight::call::Call;
use crate::names::MartId;

/// A place without a connection of its own is forgotten after so long; the engine has closed its session by then.
const IDLE: Duration = Duration::from_secs(20 * 60);
/// One with a transaction that SQL began is remembered for longer: else what follows would run outside of it.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(24 * 3600);
/// Places and transactions of one principal at once.
pub(super) const MOST: usize = 1024;
/// Sessions that wait to be closed; beyond it they end when they are idle.
const CLOSING: usize = 1024;

/// Whose place, in which mart.
pub(super) type Key = (String, MartId, Uuid);

/// All places of a node.
pub(in crate::flight) struct Sessions {
    pub(super) inner: Mutex<Inner>,
    pub(super) closing: mpsc::Sender<Ended>,
    pub(super) ended: Mutex<Option<mpsc::Receiver<Ended>>>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) places: HashMap<Key, Arc<Seat>>,
    pub(super) transactions: HashMap<Uuid, Arc<Transaction>>,
    /// Places that end with a connection.
    pub(super) watched: HashSet<Key>,
}

/// A session that nobody uses any more.
pub(super) struct Ended {
    pub(super) call: Call,
    pub(super) session: Uuid,
}

/// Where a place's statements run.
pub(in crate::flight) struct Seat {
    pub(super) life: Mutex<Arc<Life>>,
    /// The transaction that has it.
    pub(super) taken: Mutex<Option<Uuid>>,
    pub(super) used: Mutex<Instant>,
    /// Ends with its connection, not by being idle.
    pub(super) bound: bool,
}

/// One session of an engine; closed when dropped.
pub(in crate::flight) struct Life {
    pub(super) id: Uuid,
    pub(super) made: OnceCell<()>,
    pub(super) call: Call,
    pub(super) closing: mpsc::Sender<Ended>,
    pub(super) closed: AtomicBool,
    /// A script left a transaction open.
    pub(super) open: AtomicBool,
    /// One was open in the session before this one, and its client does not know yet that it is gone, or has not said so.
    pub(super) lost: AtomicBool,
}

/// A transaction that a client began.
pub(in crate::flight) struct Transaction {
    pub(super) key: Key,
    pub(super) seat: Arc<Seat>,
    /// The session in which it was begun; lost and found empty, it is begun anew.
    pub(super) begun: Mutex<Option<(Uuid, Arc<OnceCell<()>>)>>,
    pub(super) touched: AtomicBool,
}

/// Where a statement runs.
#[derive(Clone)]
pub(in crate::flight) struct Used {
    pub(super) life: Arc<Life>,
    pub(super) transaction: Option<Arc<Transaction>>,
}

impl Used {
    /// The session's id.
    pub(in crate::flight) fn id(&self) -> Uuid {
        self.life.id
    }

    /// Something ran there: it can't be begun anew unnoticed.
    pub(in crate::flight) fn touch(&self) {
        if let Some(transaction) = &self.transaction {
            transaction.touched.store(true, Ordering::Relaxed);
        }
    }
}

impl Life {
    /// Its client is in a transaction that SQL began, as far as it knows.
    pub(super) fn in_script(&self) -> bool {
        self.open.load(Ordering::Relaxed) || self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if self.made.initialized() && !self.closed.load(Ordering::Relaxed) {
            // If there are too many, the engine closes it when it has been idle.
            let _ = self.closing.try_send(Ended { call: self.call.clone(), session: self.id });
        }
    }
}

impl Sessions {
    pub(in crate::flight) fn new() -> Self {
        let (closing, ended) = mpsc::channel(CLOSING);
        Self { inner: Mutex::default(), closing, ended: Mutex::new(Some(ended)) }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn life(&self, call: &Call) -> Arc<Life> {
        Arc::new(Life {
            id: Uuid::new_v4(),
            made: OnceCell::new(),
            call: call.clone(),
            closing: self.closing.clone(),
            closed: AtomicBool::new(false),
            open: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    pub(super) fn seat(&self, call: &Call) -> Arc<Seat> {
        Arc::new(Seat {
            life: Mutex::new(self.life(call)),
            taken: Mutex::default(),
            used: Mutex::new(Instant::now()),
            bound: call.place.closed.is_some(),
        })
    }

    /// The place's seat, made if there is none; true if it is new.
    pub(super) fn place(&self, inner: &mut Inner, call: &Call) -> Result<(Arc<Seat>, bool), ApiError> {
        let key = key(call);
        if let Some(seat) = inner.places.get(&key) {
            seat.touch();
            return Ok((seat.clone(), false));
        }
        let own = inner.places.keys().filter(|(principal, ..)| *principal == key.0).count();
        if own >= MOST {
            return Err(ApiError::new(Code::Limited, "too many sessions of this principal are open")
                .hint("close some, or let their connections end"));
        }
        let seat = self.seat(call);
        inner.places.insert(key, seat.clone());
        Ok((seat, true))
    }

    /// Forgets places that nobody has used for long.
    pub(in crate::flight) fn expire(&self) {
        let mut inner = self.inner();
        inner.places.retain(|_, seat| {
            let limit = if seat.life().in_script() { IDLE_IN_TRANSACTION } else { IDLE };
            seat.bound || seat.idle_for() < limit
        });
        inner.transactions.retain(|_, transaction| transaction.seat.bound || transaction.seat.idle_for() < IDLE);
    }

    /// Takes everything away from those who may not be here any more. Their sessions are dropped outside of the lock, which closes them.
    pub(in crate::flight) fn forget(&self, gone: &HashSet<String>) {
        let mut inner = self.inner();
        let transactions: Vec<_> = inner.transactions.extract_if(|_, open| gone.contains(&open.key.0)).collect();
        let places: Vec<_> = inner.places.extract_if(|(principal, ..), _| gone.contains(principal)).collect();
        inner.watched.retain(|(principal, ..)| !gone.contains(principal));
        drop(inner);
        drop((transactions, places));
    }

    /// Takes everything away from a place.
    pub(super) fn take(&self, key: &Key) -> Vec<Arc<Life>> {
        let mut inner = self.inner();
        let gone: Vec<_> = inner.transactions.extract_if(|_, transaction| transaction.key == *key).collect();
        let mut lives: Vec<_> = gone.iter().map(|(_, transaction)| transaction.seat.life()).collect();
        lives.extend(inner.places.remove(key).map(|seat| seat.life()));
        lives
    }
}

impl Seat {
    pub(super) fn life(&self) -> Arc<Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn taken(&self) -> MutexGuard<'_, Option<Uuid>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle_for(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Transaction {
    pub(super) fn belongs_to(&self, call: &Call) -> bool {
        self.key.0 == call.principal.id && self.key.1 == call.mart
    }

    /// Whether it was begun in that session.
    pub(super) fn begun_in(&self, life: Uuid) -> Arc<OnceCell<()>> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        match &*begun {
            Some((id, cell)) if *id == life => cell.clone(),
            _ => {
                let cell = Arc::new(OnceCell::new());
                *begun = Some((life, cell.clone()));
                cell
            }
        }
    }
}

pub(super) fn key(call: &Call) -> Key {
    (call.principal.id.clone(), call.mart.clone(), call.place.id)
}
