//! Transactions and what else outlives a call: each place (a cookie, a handshake, a connection) has at most one session of the engine,
//! made when a statement first needs one. Its transactions run there, so that temporary tables outlive them; a second transaction of
//! the same place gets a session of its own.
//!
//! It knows no SQL but BEGIN, COMMIT and ROLLBACK.
//!
//! # Cancellation
//! A session ends with its place: at `CloseSession`, when the connection closes, or by the engine when it is idle. What was open is
//! rolled back. One whose answers are still being sent lives until they are.

mod seats;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::response::Response;
use engine::sql::Kind;
use engine::wire::{NO_SESSION, QueryRequest, SessionRequest};
use http::{HeaderMap, Method};
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::paper::Matter;
use super::run::{Asked, begins, first_end, needs_session, open_after, told};
use crate::error::{ApiError, Code};

use seats::{Ended, Life, MOST, Seat, Transaction, key};
pub(super) use seats::{Sessions, Used};

/// A session that can't roll back within this time is closed.
const ROLLBACK: Duration = Duration::from_secs(5);

impl Flight {
    /// Begins a transaction. The engine hears of it with the first statement.
    pub(super) fn begin(self: &Arc<Self>, call: &Call) -> Result<Uuid, ApiError> {
        check_present(call)?;
        let id = Uuid::new_v4();
        let new = {
            let mut inner = self.sessions.inner();
            let key = key(call);
            if inner.transactions.values().filter(|transaction| transaction.key.0 == key.0).count() >= MOST {
                return Err(ApiError::new(Code::Limited, "too many transactions of this principal are open")
                    .hint("commit or roll some back"));
            }
            let (mut seat, new) = self.sessions.place(&mut inner, call)?;
            if seat.taken().is_some() || seat.life().in_script() {
                seat = self.sessions.seat(call);
            }
            *seat.taken() = Some(id);
            let transaction = Transaction { key, seat, begun: Mutex::default(), touched: AtomicBool::new(false) };
            inner.transactions.insert(id, Arc::new(transaction));
            new
        };
        if new {
            self.watch(call);
        }
        Ok(id)
    }

    /// Ends a transaction; what the answer tells of the commit.
    pub(super) async fn end(&self, call: &Call, id: Uuid, commit: bool) -> Result<HeaderMap, ApiError> {
        check_present(call)?;
        let transaction = {
            let mut inner = self.sessions.inner();
            let found =
                inner.transactions.get(&id).filter(|found| found.belongs_to(call)).ok_or_else(no_transaction)?;
            let found = found.clone();
            inner.transactions.remove(&id);
            self.statements.ended(id);
            found
        };
        let life = transaction.seat.life();
        let unended = Unended { flight: self, call, seat: &transaction.seat, life: life.id, frees: true };
        // A BEGIN that is under way is waited for.
        let begun = transaction.begun_in(life.id).get_or_try_init(|| async { Err(()) }).await.is_ok();
        let ended = match begun {
            false if transaction.touched.load(Ordering::Relaxed) && commit => Err(lost()),
            false => Ok(HeaderMap::new()),
            true => {
                let sql = if commit { "COMMIT" } else { "ROLLBACK" };
                let asked = Asked::query(Uuid::new_v4(), &in_session(sql, life.id), "application/json")?;
                let answer = self.run(call, asked).await;
                match answer {
                    Ok(answer) => Ok(told(answer.headers())),
                    // The session is gone, and what was open with it.
                    Err(error) if is_gone(&error) && !commit => Ok(HeaderMap::new()),
                    Err(error) if is_gone(&error) => Err(lost()),
                    // Whether it has ended is not known: it may not even have got there.
                    Err(error) => {
                        if self.is_over(call, life.id).await {
                            unended.over();
                        }
                        return Err(error);
                    }
                }
            }
        };
        unended.over();
        ended
    }

    /// Rolls back what a session may have open. False if it may have it open still.
    async fn is_over(&self, call: &Call, session: Uuid) -> bool {
        // The call's own deadline may be what it failed of.
        let call = Call { timeout: ROLLBACK, idempotency_key: None, ..call.clone() };
        let asked = Asked::query(Uuid::new_v4(), &in_session("ROLLBACK", session), "application/json");
        let Ok(asked) = asked else { return false };
        match self.run(&call, asked).await {
            Ok(_) => true,
            // Nothing was open.
            Err(error) => error.code == Code::Sql || is_gone(&error),
        }
    }

    /// Where a statement runs: in its transaction, in its place's session if there is one or the statement needs one, else anywhere.
    pub(super) async fn session(
        self: &Arc<Self>,
        call: &Call,
        transaction: Option<Uuid>,
        needed: bool,
    ) -> Result<Option<Used>, ApiError> {
        if let Some(id) = transaction {
            let found = self.sessions.inner().transactions.get(&id).cloned();
            let found = found.filter(|found| found.belongs_to(call)).ok_or_else(no_transaction)?;
            return self.within(call, found).await.map(Some);
        }
        match call.at {
            Some(_) if needed => {
                return Err(ApiError::new(Code::Invalid, "an earlier moment has no sessions"));
            }
            Some(_) => return Ok(None),
            None => {}
        }
        if self.place_life(call).is_some_and(|life| life.lost.load(Ordering::Relaxed)) {
            return Err(lost());
        }
        let (seat, new) = {
            let mut inner = self.sessions.inner();
            match inner.places.get(&key(call)) {
                Some(seat) if needed || (seat.taken().is_none() && seat.life().made.initialized()) => {
                    (seat.clone(), false)
                }
                _ if needed => self.sessions.place(&mut inner, call)?,
                _ => return Ok(None),
            }
        };
        if new {
            self.watch(call);
        }
        seat.touch();
        let life = seat.life();
        self.make(&life).await?;
        Ok(Some(Used { life, transaction: None }))
    }

    fn place_life(&self, call: &Call) -> Option<Arc<Life>> {
        let seat = self.sessions.inner().places.get(&key(call)).cloned();
        seat.map(|seat| seat.life())
    }

    /// What a script is where a transaction that SQL began was lost: nothing else runs before its client has ended it.
    pub(super) fn after_loss<'a>(&self, call: &Call, sql: &'a str) -> Result<Cow<'a, str>, ApiError> {
        let Some(life) = self.place_life(call).filter(|life| life.lost.load(Ordering::Relaxed) && call.at.is_none())
        else {
            return Ok(Cow::Borrowed(sql));
        };
        match first_end(sql) {
            // There is nothing to roll back, and that is no error.
            Some(Kind::TxRollback) => {
                life.lost.store(false, Ordering::Relaxed);
                Ok(Cow::Owned(format!("BEGIN; {sql}")))
            }
            Some(_) => {
                life.lost.store(false, Ordering::Relaxed);
                Err(lost())
            }
            None => Err(lost()),
        }
    }

    /// What the caller's session shows, for questions about the mart: with it its temporary tables and uncommitted ones.
    pub(super) fn session_if_any(&self, call: &Call) -> Option<Used> {
        let seat = self.sessions.inner().places.get(&key(call)).cloned()?;
        let life = seat.life();
        life.made.initialized().then_some(Used { life, transaction: None })
    }

    /// A transaction that the caller's place has open, for a statement whose own has ended.
    pub(super) fn current_transaction(&self, call: &Call) -> Option<Uuid> {
        let inner = self.sessions.inner();
        let taken = *inner.places.get(&key(call))?.taken();
        taken.filter(|id| inner.transactions.contains_key(id))
    }

    /// Whether a transaction is open.
    pub(super) fn is_open(&self, call: &Call, id: Uuid) -> bool {
        self.sessions.inner().transactions.get(&id).is_some_and(|found| found.belongs_to(call))
    }

    async fn within(&self, call: &Call, transaction: Arc<Transaction>) -> Result<Used, ApiError> {
        transaction.seat.touch();
        for again in [true, false] {
            let life = transaction.seat.life();
            if transaction.touched.load(Ordering::Relaxed) && !transaction.begun_in(life.id).initialized() {
                return Err(lost());
            }
            self.make(&life).await?;
            let used = Used { life, transaction: Some(transaction.clone()) };
            match transaction.begun_in(used.id()).get_or_try_init(|| self.begin_in(call, &transaction, used.id())).await
            {
                // Another's BEGIN may just have been given up, and its session with it.
                Ok(()) if transaction.seat.life().id != used.id() => {}
                Ok(()) => return Ok(used),
                // The session was idle for too long.
                Err(error) if is_gone(&error) && again => self.replace(call, &used).map(|_| ())?,
                Err(error) => return Err(error),
            }
        }
        Err(lost())
    }

    async fn begin_in(&self, call: &Call, transaction: &Transaction, session: Uuid) -> Result<(), ApiError> {
        if !self.sessions.inner().transactions.values().any(|open| std::ptr::eq(&**open, transaction)) {
            return Err(no_transaction());
        }
        let unended = Unended { flight: self, call, seat: &transaction.seat, life: session, frees: false };
        let asked = Asked::query(Uuid::new_v4(), &in_session("BEGIN", session), "application/json")?;
        let begun = self.run_json::<IgnoredAny>(call, asked).await.map(|_| ());
        let known = match &begun {
            Ok(()) => true,
            // Refused, and there may be another that is open there.
            Err(error) if error.code == Code::Sql || is_gone(error) => true,
            Err(_) => self.is_over(call, session).await,
        };
        if known {
            unended.over();
        }
        begun
    }

    async fn make(&self, life: &Life) -> Result<(), ApiError> {
        let request = SessionRequest { id: life.id };
        let make = || self.tell(&life.call, Method::POST, "/sessions", &request);
        life.made.get_or_try_init(make).await.map(|_| ())
    }

    /// Runs a request where it belongs; `runs` is its script, unless that is only described. A session that was lost with nothing in it is made anew.
    pub(super) async fn run_at(
        self: &Arc<Self>,
        call: &Call,
        transaction: Option<Uuid>,
        runs: Option<&str>,
        asked: impl Fn(Option<Uuid>) -> Result<Asked, ApiError>,
    ) -> Result<(Response, Option<Used>), ApiError> {
        let needed = runs.is_some_and(needs_session);
        for again in [true, false] {
            let used = self.session(call, transaction, needed).await?;
            let script = used.as_ref().zip(runs).filter(|(used, _)| used.transaction.is_none());
            let was = script.is_some_and(|(used, sql)| {
                // Unless it comes out otherwise.
                let open = &used.life.open;
                if begins(sql) { open.swap(true, Ordering::Relaxed) } else { open.load(Ordering::Relaxed) }
            });
            let answer = self.run(call, asked(used.as_ref().map(Used::id))?).await;
            if let Some((used, sql)) = script
                && !answer.as_ref().is_err_and(is_gone)
            {
                used.life.open.store(open_after(sql, was, answer.as_ref().err()), Ordering::Relaxed);
            } else if let Some((used, _)) = script {
                used.life.open.store(was, Ordering::Relaxed);
            }
            match (answer, &used) {
                (Err(error), Some(used)) if is_gone(&error) && again => {
                    if !self.replace(call, used)? {
                        return Err(error);
                    }
                }
                (answer, _) => {
                    if let Some(used) = &used {
                        used.touch();
                    }
                    return answer.map(|answer| (answer, used));
                }
            }
        }
        Err(lost())
    }

    /// A session was found gone: another takes its place. True if the statement may be tried again there, since nothing is lost.
    pub(super) fn replace(&self, call: &Call, used: &Used) -> Result<bool, ApiError> {
        used.life.closed.store(true, Ordering::Relaxed);
        let seat = match &used.transaction {
            Some(transaction) => Some(transaction.seat.clone()),
            None => self.sessions.inner().places.get(&key(call)).cloned(),
        };
        let Some(seat) = seat else { return Ok(false) };
        {
            let mut life = seat.life.lock().unwrap_or_else(PoisonError::into_inner);
            if life.id == used.life.id {
                *life = self.sessions.life(call);
                if used.transaction.is_none() {
                    life.lost.store(used.life.open.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
            if used.transaction.is_none() && life.lost.load(Ordering::Relaxed) {
                return Err(lost());
            }
        }
        match &used.transaction {
            Some(transaction) if transaction.touched.load(Ordering::Relaxed) => Err(lost()),
            _ => Ok(true),
        }
    }

    /// Rolls back and closes all that the caller's place has.
    pub(super) async fn close(&self, call: &Call) {
        for life in self.sessions.take(&key(call)) {
            self.close_life(&life).await;
        }
        self.held.drop_place(call);
    }

    async fn close_life(&self, life: &Life) {
        if life.made.initialized() && !life.closed.swap(true, Ordering::Relaxed) {
            self.close_session(&life.call, life.id).await;
        }
    }

    async fn close_session(&self, call: &Call, id: Uuid) {
        if let Err(error) = self.tell(call, Method::DELETE, &format!("/sessions/{id}"), &()).await
            && error.code != Code::NotFound
        {
            tracing::debug!(%error, "a session is left to expire");
        }
    }

    /// Ends a place with its connection.
    fn watch(self: &Arc<Self>, call: &Call) {
        let Some(closed) = call.place.closed.clone() else { return };
        if !self.sessions.inner().watched.insert(key(call)) {
            return;
        }
        let (flight, call): (Weak<Self>, _) = (Arc::downgrade(self), call.clone());
        tokio::spawn(async move {
            closed.cancelled().await;
            if let Some(flight) = flight.upgrade() {
                flight.sessions.inner().watched.remove(&key(&call));
                flight.close(&call).await;
            }
        });
    }

    /// Closes sessions that nobody uses any more; never returns.
    pub(super) async fn close_ended(&self) {
        let ended = self.sessions.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut ended) = ended else { return std::future::pending().await };
        while let Some(Ended { call, session }) = ended.recv().await {
            self.close_session(&call, session).await;
        }
    }
}

/// A transaction of which it is not known whether it is open: unless that comes out, its session may be in it still, so its seat gets
/// another.
struct Unended<'a> {
    flight: &'a Flight,
    call: &'a Call,
    seat: &'a Seat,
    life: Uuid,
    /// The seat is free afterwards.
    frees: bool,
}

impl Unended<'_> {
    /// Its session is not in it.
    fn over(self) {
        if self.frees {
            *self.seat.taken() = None;
        }
        std::mem::forget(self);
    }
}

impl Drop for Unended<'_> {
    fn drop(&mut self) {
        let mut life = self.seat.life.lock().unwrap_or_else(PoisonError::into_inner);
        if life.id == self.life {
            *life = self.flight.sessions.life(self.call);
        }
        drop(life);
        if self.frees {
            *self.seat.taken() = None;
        }
    }
}

/// The transaction that a client's id names.
pub(super) fn transaction_of(matter: Matter) -> Result<Uuid, ApiError> {
    match matter {
        Matter::Transaction(id) => Ok(id),
        _ => Err(super::paper::garbled()),
    }
}

/// A statement on a session.
pub(super) fn in_session(sql: &str, session: Uuid) -> QueryRequest {
    QueryRequest { sql: sql.to_owned(), session: Some(session), ..Default::default() }
}

/// Whether an engine has closed the session.
pub(super) fn is_gone(error: &ApiError) -> bool {
    error.code == Code::NotFound && *error.message == *NO_SESSION
}

/// Transactions are of the present. A call that says otherwise is refused before it touches one.
pub(super) fn check_present(call: &Call) -> Result<(), ApiError> {
    match call.at {
        Some(_) => Err(ApiError::new(Code::Invalid, "an earlier moment has no transactions")),
        None => Ok(()),
    }
}

pub(super) fn no_transaction() -> ApiError {
    ApiError::new(Code::NotFound, "no such transaction")
        .hint("it has ended, or was rolled back when its session was idle or its connection closed")
}

fn lost() -> ApiError {
    let mut error = ApiError::new(Code::Conflict, "the transaction was rolled back, since its session has ended")
        .hint("begin it again: it was idle for too long, or the mart's engine restarted");
    error.retryable = true;
    error
}
