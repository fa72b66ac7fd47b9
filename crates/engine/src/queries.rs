//! The queries that run just now: found by id, cancelled for a reason, watched until they have really stopped.
//!
//! **Invariants:** the first reason stays; a query in its COMMIT is never interrupted; an interrupt is repeated until the query
//! ends, because DuckDB forgets one that comes between two statements. Not here: what the client reads (`failure`).

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use crate::duck::Interrupter;

/// How often a cancelled query is interrupted again.
const REPEAT: Duration = Duration::from_millis(20);
/// A query whose client is gone has so long to notice by itself, if it is to be dealt with gently.
const GENTLE: Duration = Duration::from_millis(100);

/// Why a query has to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its owner cancelled it.
    Cancelled,
    /// Its client went away.
    Gone,
    /// It ran past its time.
    Timeout,
    /// It kept a checkpoint waiting for too long.
    InTheWay,
    /// It writes, and the mart's files are to be exchanged.
    Exchange,
    /// Its client takes nothing, and others need its memory or its place.
    Stalled,
    /// The mart's temporary files are over their quota.
    Spilled,
    /// The engine ends.
    Shutdown,
}

/// One running query.
pub struct Query {
    /// Its id.
    pub id: Uuid,
    /// Who runs it.
    pub principal: String,
    started: Instant,
    deadline: Option<Instant>,
    state: Mutex<State>,
    /// Since when its client has taken nothing.
    stalled: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct State {
    reason: Option<(Reason, Instant)>,
    interrupter: Option<Interrupter>,
    shielded: bool,
    /// It holds a pass of the writers' gate.
    writing: bool,
    /// If its client goes away, it is not interrupted at once.
    gentle: bool,
}

impl Query {
    /// When its time is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Why it has to stop, if it has to.
    pub fn reason(&self) -> Option<Reason> {
        let mut state = lock(&self.state);
        // The watchdog may come a little late.
        if state.reason.is_none() && self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            state.reason = Some((Reason::Timeout, Instant::now()));
        }
        state.reason.map(|(reason, _)| reason)
    }

    /// Has it to stop?
    pub fn is_cancelled(&self) -> bool {
        self.reason().is_some()
    }

    /// From now on it runs on a connection.
    pub fn attach(&self, interrupter: Interrupter) {
        lock(&self.state).interrupter = Some(interrupter);
    }

    /// It no longer runs on a connection.
    pub fn detach(&self) {
        lock(&self.state).interrupter = None;
    }

    /// Its client takes nothing just now.
    pub fn stalls(&self) {
        lock(&self.stalled).get_or_insert_with(Instant::now);
    }

    /// Its client took something.
    pub fn flows(&self) {
        *lock(&self.stalled) = None;
    }

    /// Whether it should be left to notice by itself that its client is gone, for a while.
    pub fn be_gentle(&self, gentle: bool) {
        lock(&self.state).gentle = gentle;
    }

    /// It passed the writers' gate.
    pub fn writes(&self) {
        lock(&self.state).writing = true;
    }

    /// Its transaction is over.
    pub fn wrote(&self) {
        lock(&self.state).writing = false;
    }

    fn stalled_for(&self, now: Instant) -> Duration {
        lock(&self.stalled).map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Runs `commit` out of reach of interrupts, unless the query has to stop.
    pub fn shield<T>(&self, commit: impl FnOnce() -> T) -> Result<T, Reason> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        {
            let mut state = lock(&self.state);
            if let Some((reason, _)) = state.reason {
                return Err(reason);
            }
            state.shielded = true;
        }
        let done = commit();
        let mut state = lock(&self.state);
        // What is committed is no longer stopped as a write.
        (state.shielded, state.writing) = (false, false);
        Ok(done)
    }

    /// Stops it if its transaction can still be given up.
    fn stop_writing(&self, reason: Reason) {
        let mut state = lock(&self.state);
        if state.writing && !state.shielded {
            state.reason.get_or_insert((reason, Instant::now()));
            state.interrupt();
        }
    }

    fn stop(&self, reason: Reason) {
        let mut state = lock(&self.state);
        if state.reason.is_none() {
            state.reason = Some((reason, Instant::now()));
        }
        state.interrupt();
    }
}

impl State {
    fn interrupt(&self) {
        let left_alone = self.gentle
            && self.reason.is_some_and(|(reason, since)| reason == Reason::Gone && since.elapsed() < GENTLE);
        if let (Some(interrupter), false) = (&self.interrupter, self.shielded || left_alone) {
            interrupter.interrupt();
        }
    }
}

/// All running queries of an engine.
#[derive(Default)]
pub struct Queries {
    running: Mutex<Running>,
    changed: Condvar,
}

#[derive(Default)]
struct Running {
    queries: HashMap<Uuid, Arc<Query>>,
    closed: bool,
    /// When the watchdog looks again by itself.
    next_look: Option<Instant>,
}

/// A query's place among the running ones, until dropped.
pub struct Ticket {
    queries: Arc<Queries>,
    query: Arc<Query>,
}

/// Why a query can't start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// The chosen id runs already.
    Taken,
    /// The engine ends.
    Closed,
}

impl Queries {
    /// Takes a place.
    pub fn start(
        self: &Arc<Self>,
        id: Uuid,
        principal: String,
        deadline: Option<Instant>,
    ) -> Result<Ticket, NotStarted> {
        let started = Instant::now();
        let (state, stalled) = (Mutex::default(), Mutex::default());
        let query = Arc::new(Query { id, principal, started, deadline, state, stalled });
        let mut running = lock(&self.running);
        if running.closed {
            return Err(NotStarted::Closed);
        }
        if running.queries.contains_key(&id) {
            return Err(NotStarted::Taken);
        }
        running.queries.insert(id, query.clone());
        // Most deadlines are later than the watchdog's next look.
        if deadline.is_some_and(|deadline| running.next_look.is_none_or(|look| deadline < look)) {
            self.changed.notify_all();
        }
        Ok(Ticket { queries: self.clone(), query })
    }

    /// How many run.
    pub fn len(&self) -> usize {
        lock(&self.running).queries.len()
    }

    /// Does none run?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stops a query of `principal`; false if there is none.
    pub fn cancel(&self, id: Uuid, principal: &str, reason: Reason) -> bool {
        let running = lock(&self.running);
        let Some(query) = running.queries.get(&id).filter(|query| query.principal == principal) else { return false };
        query.stop(reason);
        self.changed.notify_all();
        true
    }

    /// Stops all queries of `principal`.
    pub fn cancel_of(&self, principal: &str, reason: Reason) {
        let running = lock(&self.running);
        running.queries.values().filter(|query| query.principal == principal).for_each(|query| query.stop(reason));
        self.changed.notify_all();
    }

    /// How far a query of `principal` is, from 0 to 1 if DuckDB can tell; `None` if there is no such query.
    pub fn progress(&self, id: Uuid, principal: &str) -> Option<Option<f64>> {
        let running = lock(&self.running);
        let query = running.queries.get(&id).filter(|query| query.principal == principal)?;
        let state = lock(&query.state);
        Some(state.interrupter.as_ref().and_then(Interrupter::progress))
    }

    /// Stops all queries.
    pub fn cancel_all(&self, reason: Reason) {
        let running = lock(&self.running);
        running.queries.values().for_each(|query| query.stop(reason));
        self.changed.notify_all();
    }

    /// Stops the queries that are inside the writers' gate and not in their COMMIT.
    pub fn cancel_writers(&self, reason: Reason) {
        let running = lock(&self.running);
        running.queries.values().for_each(|query| query.stop_writing(reason));
        self.changed.notify_all();
    }

    /// Stops up to `most` queries whose clients have taken nothing for `least`, the longest first; gives how many.
    pub fn stop_stalled(&self, least: Duration, most: usize) -> usize {
        let now = Instant::now();
        let running = lock(&self.running);
        let mut stalled: Vec<_> = running
            .queries
            .values()
            .filter(|query| !query.is_cancelled())
            .map(|query| (query.stalled_for(now), query))
            .filter(|(time, _)| *time >= least)
            .collect();
        stalled.sort_unstable_by_key(|(time, _)| std::cmp::Reverse(*time));
        stalled.truncate(most);
        stalled.iter().for_each(|(_, query)| query.stop(Reason::Stalled));
        self.changed.notify_all();
        stalled.len()
    }

    /// Stops the query that has run longest and is not stopping yet; false if there is none.
    pub fn stop_longest(&self, reason: Reason) -> bool {
        let running = lock(&self.running);
        let left = running.queries.values().filter(|query| !query.is_cancelled());
        let longest = left.min_by_key(|query| query.started);
        longest.inspect(|query| query.stop(reason));
        self.changed.notify_all();
        longest.is_some()
    }

    /// Lets no new query start.
    pub fn close(&self) {
        lock(&self.running).closed = true;
    }

    /// Waits until none runs; false at the deadline.
    pub fn wait_until_idle(&self, deadline: Instant) -> bool {
        let mut running = lock(&self.running);
        while !running.queries.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            running = self.changed.wait_timeout(running, left.min(REPEAT)).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Stops queries at their deadlines and repeats interrupts, for ever. A query that does not end within `deaf` of its first
    /// interrupt calls `on_deaf`.
    pub fn watch(&self, deaf: Duration, on_deaf: impl Fn()) {
        let mut running = lock(&self.running);
        loop {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            for query in running.queries.values() {
                if query.is_cancelled() {
                    let state = lock(&query.state);
                    state.interrupt();
                    let since = state.reason.map_or(now, |(_, since)| since);
                    if state.interrupter.is_some() && !state.shielded && now.duration_since(since) > deaf {
                        on_deaf();
                    }
                    next = Some(now + REPEAT);
                } else if let Some(deadline) = query.deadline {
                    next = Some(next.map_or(deadline, |next| next.min(deadline)));
                }
            }
            // One that ended may leave an early look behind; it finds nothing and goes on.
            running.next_look = next;
            running = match next {
                Some(next) => {
                    let wait = next.saturating_duration_since(now).max(Duration::from_millis(1));
                    self.changed.wait_timeout(running, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(running).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Ticket {
    /// The query.
    pub fn query(&self) -> &Arc<Query> {
        &self.query
    }

    /// Stops the query when it is dropped, because nobody waits for it any more.
    pub fn canceller(&self) -> Canceller {
        Canceller { queries: self.queries.clone(), query: self.query.clone() }
    }
}

/// Stands for the client: gone with it. Harmless after the query's end.
pub struct Canceller {
    queries: Arc<Queries>,
    query: Arc<Query>,
}

impl Drop for Canceller {
    fn drop(&mut self) {
        let running = lock(&self.queries.running);
        // Under the lock, or the watchdog could miss it between its look and its wait.
        if running.queries.get(&self.query.id).is_some_and(|query| Arc::ptr_eq(query, &self.query)) {
            self.query.stop(Reason::Gone);
            self.queries.changed.notify_all();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut running = lock(&self.queries.running);
        running.queries.remove(&self.query.id);
        if running.closed {
            self.queries.changed.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_finds_a_query() {
        let queries = Arc::new(Queries::default());
        let ticket = queries.start(Uuid::new_v4(), "ann".into(), None).expect("starts");
        assert!(!queries.cancel(ticket.query().id, "bob", Reason::Cancelled));
        assert!(queries.cancel(ticket.query().id, "ann", Reason::Cancelled));
        assert_eq!(ticket.query().reason(), Some(Reason::Cancelled));
        drop(ticket.canceller());
        assert_eq!(ticket.query().reason(), Some(Reason::Cancelled), "the first reason stays");
    }

    #[test]
    fn an_id_runs_once_at_a_time_and_none_after_closing() {
        let queries = Arc::new(Queries::default());
        let id = Uuid::new_v4();
        let ticket = queries.start(id, "ann".into(), None).expect("starts");
        assert_eq!(queries.start(id, "ann".into(), None).err(), Some(NotStarted::Taken));
        drop(ticket);
        assert!(queries.start(id, "ann".into(), None).is_ok());
        queries.close();
        assert_eq!(queries.start(id, "ann".into(), None).err(), Some(NotStarted::Closed));
    }

    #[test]
    fn the_longest_stalled_are_stopped_and_no_others() {
        let queries = Arc::new(Queries::default());
        let start = || queries.start(Uuid::new_v4(), "ann".into(), None).expect("starts");
        let (first, second, flowing) = (start(), start(), start());
        first.query().stalls();
        second.query().stalls();
        flowing.query().stalls();
        flowing.query().flows();
        assert_eq!(queries.stop_stalled(Duration::from_secs(3600), 9), 0);
        assert_eq!(queries.stop_stalled(Duration::from_nanos(1), 1), 1);
        assert_eq!(first.query().reason(), Some(Reason::Stalled));
        assert_eq!(queries.stop_stalled(Duration::from_nanos(1), 9), 1);
        assert_eq!((second.query().reason(), flowing.query().reason()), (Some(Reason::Stalled), None));
    }

    #[test]
    fn the_query_that_has_run_longest_is_stopped_first() {
        let queries = Arc::new(Queries::default());
        let start = || queries.start(Uuid::new_v4(), "ann".into(), None).expect("starts");
        let (first, second) = (start(), start());
        let reasons = || (first.query().reason(), second.query().reason());
        assert!(queries.stop_longest(Reason::Spilled));
        assert_eq!(reasons(), (Some(Reason::Spilled), None));
        assert!(queries.stop_longest(Reason::Spilled));
        assert_eq!(reasons(), (Some(Reason::Spilled), Some(Reason::Spilled)));
        assert!(!queries.stop_longest(Reason::Spilled));
    }

    #[test]
    fn only_a_write_that_is_not_in_its_commit_is_stopped_as_one() {
        let queries = Arc::new(Queries::default());
        let ticket = queries.start(Uuid::new_v4(), "ann".into(), None).expect("starts");
        queries.cancel_writers(Reason::Exchange);
        assert_eq!(ticket.query().reason(), None, "a reader");
        ticket.query().writes();
        let done = ticket.query().shield(|| queries.cancel_writers(Reason::Exchange));
        queries.cancel_writers(Reason::Exchange);
        assert_eq!((done, ticket.query().reason()), (Ok(()), None), "it was committing, and now it is committed");
        ticket.query().writes();
        queries.cancel_writers(Reason::Exchange);
        assert_eq!(ticket.query().reason(), Some(Reason::Exchange));
    }

    #[test]
    fn a_stopped_query_does_not_commit() {
        let queries = Arc::new(Queries::default());
        let ticket = queries.start(Uuid::new_v4(), "ann".into(), Some(Instant::now())).expect("starts");
        assert_eq!(ticket.query().shield(|| ()), Err(Reason::Timeout));
    }
}
