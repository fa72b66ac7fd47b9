//! Queries without a client that waits (`POST …/queries`): which there are, whose they are, what became of them, and for how long
//! that is kept.
//!
//! It runs nothing itself: whoever submits a job brings its work. **Invariants:** bounded in number per principal and in the bytes of
//! kept answers; jobs of one mart leave half of its engine's places to queries that somebody waits for; a job's task is ended before
//! [`Jobs::shutdown`] returns.

mod kept;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth::Principal;
use crate::clock;
use crate::error::{ApiError, Code};
use crate::names::MartId;

pub use kept::{Answer, Budget, Rows};

/// Jobs of one principal that are remembered at once.
pub const MOST_PER_PRINCIPAL: usize = 100;
/// Jobs of a node.
const MOST: usize = 10_000;
/// How often it is looked which may be forgotten.
const LOOK: Duration = Duration::from_secs(1);

/// All jobs of a node.
pub struct Jobs {
    known: Mutex<HashMap<Uuid, Arc<Job>>>,
    /// Who may run, by mart.
    places: Mutex<HashMap<MartId, Arc<Semaphore>>>,
    places_of_a_mart: usize,
    keep: Duration,
    budget: Budget,
    tasks: TaskTracker,
    /// Cuts off what does not end.
    cut: CancellationToken,
}

/// One of them.
pub struct Job {
    /// Its id, which is also that of its query.
    pub id: Uuid,
    /// Whose it is.
    pub owner: String,
    /// Where it runs.
    pub mart: MartId,
    /// When it came.
    pub submitted_us: i64,
    state: watch::Sender<State>,
    cancel: CancellationToken,
    used: Mutex<Instant>,
}

/// How far a job is.
#[derive(Clone)]
pub enum State {
    /// It waits for a place.
    Queued,
    /// It has one, since then.
    Running(i64),
    /// It is over.
    Ended(Arc<Ended>),
}

/// What became of a job.
pub struct Ended {
    /// When it began, if it did.
    pub started_us: Option<i64>,
    /// When it ended.
    pub finished_us: i64,
    /// What it leaves.
    pub end: End,
}

/// What a job leaves.
pub enum End {
    /// A read's rows, in the engine.
    Rows(Rows),
    /// The answer of anything else.
    Answer(Answer),
    /// Why there is nothing.
    Failed(ApiError),
    /// It was stopped. What it had done before that is said here.
    Cancelled(ApiError),
}

impl Jobs {
    /// None yet. Results are kept for `keep`; an engine runs `max_queries` at once.
    pub fn new(keep: Duration, max_queries: usize) -> Self {
        Self {
            known: Mutex::default(),
            places: Mutex::default(),
            places_of_a_mart: (max_queries / 2).max(1),
            keep,
            budget: Budget::default(),
            tasks: TaskTracker::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Takes a job in and runs `work` once there is a place for it. `work` ends soon after the job is cancelled.
    pub fn submit<W>(
        &self,
        id: Uuid,
        owner: &str,
        mart: MartId,
        work: impl FnOnce(Arc<Job>) -> W + Send + 'static,
    ) -> Result<Arc<Job>, ApiError>
    where
        W: Future<Output = End> + Send + 'static,
    {
        let job = Arc::new(Job {
            id,
            owner: owner.to_owned(),
            mart,
            submitted_us: clock::now_us(),
            state: watch::channel(State::Queued).0,
            cancel: CancellationToken::new(),
            used: Mutex::new(Instant::now()),
        });
        self.add(&job)?;
        let places = self.places_of(&job.mart);
        let (running, cut) = (job.clone(), self.cut.clone());
        self.tasks.spawn(async move {
            let run = async {
                let place = tokio::select! {
                    place = places.acquire() => place,
                    () = running.cancel.cancelled() => return running.end(None, End::Cancelled(cancelled())),
                };
                let started_us = clock::now_us();
                running.state.send_replace(State::Running(started_us));
                let end = work(running.clone()).await;
                drop(place);
                running.end(Some(started_us), end);
            };
            if cut.run_until_cancelled(run).await.is_none() {
                running.end(None, End::Failed(ApiError::new(Code::Unavailable, "the server was stopped")));
            }
        });
        Ok(job)
    }

    /// A job, for its owner, if that may still enter its mart, and for the node's administrator.
    pub fn get(&self, id: Uuid, caller: &Principal) -> Option<Arc<Job>> {
        let job = self.lock().get(&id).cloned()?;
        let own = job.owner == caller.id && caller.role_in(&job.mart).is_ok();
        (own || caller.require_node_admin().is_ok()).then_some(job)
    }

    /// Cancels what runs for principals that may not be here any more, and forgets what they have left.
    pub fn end_of(&self, gone: &HashSet<String>) {
        let theirs: Vec<_> = self.lock().values().filter(|job| gone.contains(&job.owner)).cloned().collect();
        for job in theirs {
            job.cancel.cancel();
            if job.is_over() {
                self.forget(&job);
            }
        }
    }

    /// Is there a job of that id, whoever's it is?
    pub fn knows(&self, id: Uuid) -> bool {
        self.lock().contains_key(&id)
    }

    /// What kept answers may take.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Forgets a job that is over, and frees what it has left.
    pub fn forget(&self, job: &Job) {
        let Some(gone) = self.lock().remove(&job.id) else { return };
        self.free(&gone);
    }

    /// Forgets what nobody has asked for in a while, until cancelled.
    pub async fn tend(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            self.forget_old(Instant::now());
        }
    }

    fn forget_old(&self, now: Instant) {
        let old: Vec<_> = self.lock().extract_if(|_, job| job.is_over() && job.idle(now) > self.keep).collect();
        for (_, job) in old {
            self.free(&job);
        }
        self.places().retain(|_, places| Arc::strong_count(places) > 1);
    }

    /// Takes no more, cancels what runs, cuts off what has not ended after `grace`, and returns when all is over.
    pub async fn shutdown(&self, grace: Duration) {
        self.tasks.close();
        for job in self.lock().values() {
            job.cancel.cancel();
        }
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }

    fn add(&self, job: &Arc<Job>) -> Result<(), ApiError> {
        let mut known = self.lock();
        if self.tasks.is_closed() {
            return Err(ApiError::new(Code::Unavailable, "the server is shutting down").hint("try again in a moment"));
        }
        if known.contains_key(&job.id) {
            return Err(ApiError::new(Code::Conflict, "a query with this id is known already"));
        }
        let own = known.values().filter(|other| other.owner == job.owner).count();
        if own >= MOST_PER_PRINCIPAL || known.len() >= MOST {
            return Err(ApiError::new(Code::Limited, "too many queries and their results are kept at once")
                .hint("free results that were read with `DELETE /v1/queries/{id}`"));
        }
        known.insert(job.id, job.clone());
        Ok(())
    }

    fn free(&self, job: &Job) {
        if let State::Ended(ended) = job.state()
            && let End::Rows(rows) = &ended.end
        {
            self.tasks.spawn(rows.close());
        }
    }

    fn places_of(&self, mart: &MartId) -> Arc<Semaphore> {
        self.places().entry(mart.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.places_of_a_mart))).clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Job>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, HashMap<MartId, Arc<Semaphore>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    /// How far it is.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Asks it to stop, and waits so long until it has.
    pub async fn cancel(&self, wait: Duration) {
        self.cancel.cancel();
        // Late, it says that it still runs.
        let _ =
            tokio::time::timeout(wait, self.state.subscribe().wait_for(|state| matches!(state, State::Ended(_)))).await;
    }

    /// Ready once it was asked to stop.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Was it asked to stop?
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Somebody asks for its result: it is kept for longer.
    pub fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    fn end(&self, started_us: Option<i64>, end: End) {
        self.touch();
        let ended = Ended { started_us, finished_us: clock::now_us(), end };
        self.state.send_replace(State::Ended(Arc::new(ended)));
    }
}

/// What a cancelled query says, of which nothing has happened.
pub fn cancelled() -> ApiError {
    ApiError::new(Code::Cancelled, "the query was cancelled")
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::wire::Role;

    const KEEP: Duration = Duration::from_secs(900);
    const PATIENCE: Duration = Duration::from_secs(60);

    fn mart() -> MartId {
        MartId { tenant: "acme".parse().expect("legal"), mart: "sales".parse().expect("legal") }
    }

    fn principal(id: &str) -> Principal {
        Principal::of_tenant(id, mart().tenant, Role::Writer)
    }

    async fn wait(job: Arc<Job>) -> End {
        job.cancelled().await;
        End::Cancelled(cancelled())
    }

    fn failed() -> End {
        End::Failed(ApiError::new(Code::Sql, "x"))
    }

    async fn runs(job: &Job) {
        let mut states = job.state.subscribe();
        states.wait_for(|state| matches!(state, State::Running(_))).await.expect("the job holds it");
    }

    async fn over(job: &Job) -> Arc<Ended> {
        let mut states = job.state.subscribe();
        match &*states.wait_for(|state| matches!(state, State::Ended(_))).await.expect("the job holds it") {
            State::Ended(ended) => ended.clone(),
            _ => unreachable!("waited for"),
        }
    }

    #[tokio::test]
    async fn only_its_owner_and_the_node_s_admin_see_a_job() {
        let jobs = Jobs::new(KEEP, 64);
        let id = Uuid::new_v4();
        jobs.submit(id, "ann", mart(), |_| async { failed() }).expect("there is room");
        assert!(jobs.get(id, &principal("ann")).is_some() && jobs.get(id, &principal("bob")).is_none());
        assert!(jobs.get(id, &Principal::node_admin()).is_some());
    }

    #[tokio::test]
    async fn what_a_principal_runs_and_has_left_ends_with_it() {
        let jobs = Jobs::new(KEEP, 64);
        let done = jobs.submit(Uuid::new_v4(), "ann", mart(), |_| async { failed() }).expect("there is room");
        over(&done).await;
        let runs_on = jobs.submit(Uuid::new_v4(), "ann", mart(), wait).expect("there is room");
        let others = jobs.submit(Uuid::new_v4(), "bob", mart(), wait).expect("there is room");
        runs(&runs_on).await;
        jobs.end_of(&HashSet::from(["ann".to_owned()]));
        assert!(matches!(over(&runs_on).await.end, End::Cancelled(_)));
        assert!(!jobs.knows(done.id) && !others.is_cancelled());
    }

    #[tokio::test]
    async fn a_principal_has_so_many_jobs_and_an_id_is_there_once() {
        let jobs = Jobs::new(KEEP, 64);
        let ids: Vec<_> = (0..MOST_PER_PRINCIPAL).map(|_| Uuid::new_v4()).collect();
        let submit = |id, owner: &str| jobs.submit(id, owner, mart(), |_| async { failed() });
        for id in &ids {
            submit(*id, "ann").expect("there is room");
        }
        assert_eq!(submit(Uuid::new_v4(), "ann").err().map(|error| error.code), Some(Code::Limited));
        assert_eq!(submit(ids[0], "bob").err().map(|error| error.code), Some(Code::Conflict));
        submit(Uuid::new_v4(), "bob").expect("another's jobs do not count");
        jobs.forget(&jobs.get(ids[0], &principal("ann")).expect("it is known"));
        submit(Uuid::new_v4(), "ann").expect("there is room again");
    }

    #[tokio::test]
    async fn a_job_waits_for_a_place_and_can_be_cancelled_there() {
        let jobs = Jobs::new(KEEP, 2);
        let first = jobs.submit(Uuid::new_v4(), "ann", mart(), wait).expect("there is room");
        runs(&first).await;
        let second = jobs.submit(Uuid::new_v4(), "ann", mart(), wait).expect("there is room");
        assert!(matches!(second.state(), State::Queued));
        second.cancel(PATIENCE).await;
        assert_eq!(over(&second).await.started_us, None);
        first.cancel(PATIENCE).await;
        assert!(matches!(over(&first).await.end, End::Cancelled(_)));
    }

    #[tokio::test]
    async fn what_is_over_is_forgotten_after_a_while_and_what_runs_is_not() {
        let jobs = Jobs::new(KEEP, 64);
        let done = jobs.submit(Uuid::new_v4(), "ann", mart(), |_| async { failed() }).expect("there is room");
        let runs = jobs.submit(Uuid::new_v4(), "ann", mart(), wait).expect("there is room");
        over(&done).await;
        let now = Instant::now();
        jobs.forget_old(now + KEEP / 2);
        assert!(jobs.knows(done.id));
        jobs.forget_old(now + KEEP * 2);
        assert!(!jobs.knows(done.id) && jobs.knows(runs.id));
    }

    #[tokio::test]
    async fn a_shutdown_cancels_and_cuts_off_what_does_not_listen() {
        let jobs = Jobs::new(KEEP, 64);
        let listens = jobs.submit(Uuid::new_v4(), "ann", mart(), wait).expect("there is room");
        let deaf =
            jobs.submit(Uuid::new_v4(), "ann", mart(), |_| std::future::pending::<End>()).expect("there is room");
        for job in [&listens, &deaf] {
            runs(job).await;
        }
        jobs.shutdown(Duration::from_millis(50)).await;
        assert!(matches!(over(&listens).await.end, End::Cancelled(_)));
        assert!(matches!(over(&deaf).await.end, End::Failed(_)));
        let late = jobs.submit(Uuid::new_v4(), "ann", mart(), |_| async { failed() });
        assert_eq!(late.err().map(|error| error.code), Some(Code::Unavailable));
    }
}
