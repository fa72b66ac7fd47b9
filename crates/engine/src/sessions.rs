//! Clients' sessions: a connection of one's own, with its temporary objects and its transaction, from request to request.
//!
//! The requests of a session take turns. A session that nobody uses ends; a transaction that nobody goes on with is rolled back, and
//! its session is told so by its next request. **Invariants:** only the principal that made a session finds it; while a request has its
//! turn, nobody else touches the connection.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::{
    failure::Failure,
    hidden::HiddenWrites,
    queries::{Query, Reason},
    session::{Session, Transaction},
    wire::{Code, NO_SESSION},
};

/// How often a request that waits for its turn looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);
/// A transaction that is idle for so long is rolled back if a checkpoint or an exchange of files waits for it.
const IN_THE_WAY: Duration = Duration::from_secs(10);
/// Sessions of one mart at most.
const MOST: usize = 1_000;
/// Of these, one principal's.
const MOST_OF_ONE: usize = 250;
/// Requests that may wait for their turn in one session: each has one of the engine's places meanwhile.
const MOST_WAITING: usize = 4;

/// All sessions of a mart.
pub struct Sessions {
    places: Mutex<HashMap<Uuid, Arc<Place>>>,
    idle: Duration,
    idle_in_transaction: Duration,
}

struct Place {
    principal: String,
    slot: Mutex<Slot>,
    freed: Condvar,
    /// Requests that wait for their turn.
    waiting: AtomicUsize,
}

struct Slot {
    /// Away while a request has its turn.
    session: Option<Session>,
    /// Since when nobody has it.
    since: Instant,
    closed: bool,
    /// What runs in it.
    query: Option<Uuid>,
}

/// A request's turn, until dropped.
pub struct Turn<'a> {
    place: Arc<Place>,
    session: Session,
    others: Others,
    hidden: &'a HiddenWrites,
}

/// The session's other requests.
pub struct Others(Arc<Place>);

impl Others {
    /// Does one wait for its turn?
    pub fn wait(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Sessions {
    /// None yet. They end when nobody used them for `idle`; transactions are rolled back after `idle_in_transaction`.
    pub fn new(idle: Duration, idle_in_transaction: Duration) -> Self {
        Self { places: Mutex::default(), idle, idle_in_transaction }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.places).len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes one.
    pub fn open(&self, id: Uuid, principal: &str) -> Result<(), Failure> {
        let mut places = lock(&self.places);
        if places.contains_key(&id) {
            return Err(Failure::new(Code::Conflict, "a session with this id exists"));
        }
        let own = places.values().filter(|place| place.principal == principal).count();
        if places.len() >= MOST || own >= MOST_OF_ONE {
            let failure =
                Failure::new(Code::Limited, format!("{own} sessions of yours are open, and {} in all", places.len()));
            return Err(failure.hint("close those that are done").transient());
        }
        let slot = Slot { session: Some(Session::default()), since: Instant::now(), closed: false, query: None };
        let place = Place {
            principal: principal.to_owned(),
            slot: Mutex::new(slot),
            freed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        };
        places.insert(id, Arc::new(place));
        Ok(())
    }

    /// Ends one: what runs in it has to be cancelled by the caller, its transaction is rolled back when that has stopped. Gives the
    /// query that runs; `None` if there is no such session.
    pub fn close(&self, id: Uuid, principal: &str, hidden: &HiddenWrites) -> Option<Option<Uuid>> {
        let place = {
            let mut places = lock(&self.places);
            places.get(&id).filter(|place| place.principal == principal)?;
            places.remove(&id)?
        };
        let (session, query) = {
            let mut slot = lock(&place.slot);
            slot.closed = true;
            (slot.session.take(), slot.query)
        };
        place.freed.notify_all();
        if let Some(mut session) = session {
            session.end(hidden);
        }
        Some(query)
    }

    /// A principal's sessions.
    pub fn of(&self, principal: &str) -> Vec<Uuid> {
        let places = lock(&self.places);
        places.iter().filter(|(_, place)| place.principal == principal).map(|(id, _)| *id).collect()
    }

    /// Waits for the turn of `query`.
    pub fn take<'a>(&self, id: Uuid, query: &Query, hidden: &'a HiddenWrites) -> Result<Turn<'a>, Failure> {
        let found = lock(&self.places).get(&id).filter(|place| place.principal == query.principal).cloned();
        let place = found.ok_or_else(gone)?;
        let _waits = Waits::new(&place);
        if place.waiting.load(Ordering::Relaxed) > MOST_WAITING {
            let failure =
                Failure::new(Code::Limited, format!("{MOST_WAITING} requests wait for their turn in this session"));
            return Err(failure.hint("send the next one when one is answered, or open another session").transient());
        }
        let mut slot = lock(&place.slot);
        loop {
            if slot.closed {
                return Err(gone());
            }
            if let Some(session) = slot.session.take() {
                slot.query = Some(query.id);
                drop(slot);
                return Ok(Turn { others: Others(place.clone()), place: place.clone(), session, hidden });
            }
            if query.is_cancelled() {
                return Err(query.reason().unwrap_or(Reason::Cancelled).into());
            }
            slot = place.freed.wait_timeout(slot, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends sessions that nobody uses, and rolls back transactions that nobody goes on with, sooner if somebody is `waiting` for
    /// them.
    pub fn tend(&self, hidden: &HiddenWrites, waiting: bool) {
        let limit = if waiting { self.idle_in_transaction.min(IN_THE_WAY) } else { self.idle_in_transaction };
        self.roll_back_idle(hidden, limit);
        let now = Instant::now();
        let ended: Vec<Arc<Place>> = {
            let mut places = lock(&self.places);
            let old = |place: &Arc<Place>| {
                let slot = lock(&place.slot);
                slot.closed || slot.session.is_some() && now.duration_since(slot.since) > self.idle
            };
            let ids: Vec<Uuid> = places.iter().filter(|(_, place)| old(place)).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| places.remove(id)).collect()
        };
        for place in ended {
            let mut slot = lock(&place.slot);
            // A request may have found it just before.
            slot.closed = true;
            if let Some(mut session) = slot.session.take() {
                session.end(hidden);
            }
        }
    }

    /// Rolls back the transactions that have been idle for `least`.
    pub fn roll_back_idle(&self, hidden: &HiddenWrites, least: Duration) {
        let places: Vec<Arc<Place>> = lock(&self.places).values().cloned().collect();
        for place in places {
            let mut slot = lock(&place.slot);
            if slot.since.elapsed() < least {
                continue;
            }
            let Some(kept) = slot.session.as_mut().and_then(Session::kept) else { continue };
            if kept.in_transaction() {
                // A connection that can't is closed with its session, which rolls back too.
                let done = kept.rollback();
                kept.close(hidden);
                kept.transaction = Transaction::Lost;
                slot.closed |= done.is_err();
            }
        }
    }
}

impl Turn<'_> {
    /// The session, and who else waits for it.
    pub fn parts(&mut self) -> (&mut Session, &Others) {
        (&mut self.session, &self.others)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut session = std::mem::take(&mut self.session);
        let spoiled = session.kept().is_some_and(|kept| kept.used_up || kept.settle().is_err());
        let mut slot = lock(&self.place.slot);
        slot.query = None;
        slot.since = Instant::now();
        slot.closed |= spoiled;
        if slot.closed {
            session.end(self.hidden);
        } else {
            slot.session = Some(session);
        }
        drop(slot);
        self.place.freed.notify_all();
    }
}

struct Waits<'a>(&'a Place);

impl<'a> Waits<'a> {
    fn new(place: &'a Place) -> Self {
        place.waiting.fetch_add(1, Ordering::Relaxed);
        Self(place)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// There is no such session for that principal.
pub fn gone() -> Failure {
    Failure::new(Code::NotFound, NO_SESSION).hint("it may have ended: sessions end when nobody uses them")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
