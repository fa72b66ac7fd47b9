//! From a checked request to its engine and back: adds who asks, moves the bytes untouched, and holds the answer's head until the
//! commit it reports is as durable as was asked for.
//!
//! It never looks into a result, and reads of an answer only the headers of `engine::wire` and the JSON of errors.
//!
//! **Invariants:** no byte of an answer from this node's disk (a read, a `local` commit, an error about rows) leaves unless the node could
//! prove, after the engine had answered, that nobody else has the mart; no byte of an answer that reports a commit leaves under `durability=object` before that commit is in the object store.

mod held;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engine::wire::{Health, Point, Role, header};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Limited};
use replica::Position;
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use crate::engine_client::{ClientError, EngineBody, request};
use crate::error::{ApiError, Code, Outcome};
use crate::marts::OpenMart;
use crate::profiles::Profile;
use crate::supervisor::{DEAF, DEAF_MS, KILLED, MEMORY};
use crate::visit;
use crate::watcher::{Landed, Live};

pub use sessions::{Who, close_session, end_principal, open_session};

/// Answer header: the position of the request's commit, else the one it read at.
pub const POSITION: HeaderName = HeaderName::from_static("tarn-position");
/// Answer header: `object` if that position is in the object store, else `local`.
pub const DURABLE: HeaderName = HeaderName::from_static("tarn-durable");

/// An engine ends a query at its deadline and itself when the query does not listen; past this much more, the node ends the engine.
const LAST_RESORT: Duration = Duration::from_millis(DEAF_MS + 1_000);
/// An engine whose connection broke is given so long to be seen to have ended.
const REASON_WAIT: Duration = Duration::from_secs(1);
/// So long is waited for the next engine to tell what became of a write.
const SETTLE_WAIT: Duration = Duration::from_secs(5);
const MAX_ERROR_BYTES: usize = 1 << 20;
/// What is passed on of an engine's answer.
const PASSED: [HeaderName; 5] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    HeaderName::from_static(header::CHANGED_ROWS),
    HeaderName::from_static(header::QUERY_ID),
    HeaderName::from_static(header::REPLAYED),
];

/// When a commit is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When it is in the object store.
    #[default]
    Object,
    /// When it is on the node's disk.
    Local,
}

/// A checked request on its way to an engine; its body travels beside it.
#[derive(Clone)]
pub struct Ask {
    /// What of the engine is asked: `/query`, `/load`.
    pub path: &'static str,
    /// The query's id.
    pub id: Uuid,
    /// Who asks.
    pub principal: String,
    /// What that principal may do in this mart.
    pub role: Role,
    /// When to acknowledge.
    pub durability: Durability,
    /// How large its engine is to be meanwhile.
    pub profile: Profile,
    /// Its deadline, or the one of a body that names none.
    pub timeout: Duration,
    /// Passed on as they are: `Accept`, `Idempotency-Key`, what describes the body.
    pub headers: HeaderMap,
    /// True if nothing in the request can write.
    pub reads_only: bool,
}

impl Ask {
    fn request(&self, body: Body) -> Request<Body> {
        let mut request = request(Method::POST, self.path, Bytes::new());
        *request.body_mut() = body;
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        // Else HTTP/1.1 leaves trailers out.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers
            .insert(header::TIMEOUT_MS, HeaderValue::from(u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)));
        headers.insert(header::QUERY_ID, text(&self.id));
        identify(headers, &self.principal, self.role);
        request
    }

    /// What became of the writes of a request that never got its answer.
    fn outcome_of_silence(&self) -> Outcome {
        if self.reads_only { Outcome::None } else { Outcome::Unknown }
    }

    /// The engine went away with the request: what it ended of, if it can be told.
    async fn lost(&self, live: &Live, started: Instant) -> ApiError {
        // Whoever ran alone is likely to be the cause, and would be again.
        let alone = live.engine.ended_with(live.running.load(Ordering::Relaxed)) <= 1;
        let reason = tokio::time::timeout(REASON_WAIT, live.engine.exited()).await.ok().flatten();
        let (error, culprit) = match reason {
            Some(DEAF) if started.elapsed() >= self.timeout => (self.too_late(), true),
            Some(MEMORY) => {
                let what = "the mart's engine passed its memory limit while this request ran";
                let hint = "it restarts by itself; if this request was the cause, ask for less at once or for a larger profile";
                (ApiError::new(Code::Unavailable, what).hint(hint), alone)
            }
            _ => {
                let what = "the mart's engine ended while this request ran";
                let hint =
                    "it restarts by itself; if this request makes it end again, use less memory or simpler functions";
                // Whoever kills engines has his own reasons.
                (ApiError::new(Code::Unavailable, what).hint(hint), alone && reason != Some(KILLED))
            }
        };
        let error = error.outcome(self.outcome_of_silence());
        if culprit { error.culprit() } else { error }
    }

    fn too_late(&self) -> ApiError {
        ApiError::new(Code::Timeout, "the query passed its deadline and did not stop")
            .outcome(self.outcome_of_silence())
    }
}

fn identify(headers: &mut HeaderMap, principal: &str, role: Role) {
    let role = match role {
        Role::Reader => "reader",
        Role::Writer => "writer",
        Role::Admin => "admin",
    };
    headers.insert(header::ROLE, HeaderValue::from_static(role));
    headers.insert(header::PRINCIPAL, text(&principal));
}

/// Sends a query to an engine and returns when its answer's head is there.
async fn send(live: &Live, ask: &Ask, body: Body, started: Instant) -> Result<http::Response<EngineBody>, ApiError> {
    let request = ask.request(body);
    let began = SystemTime::now();
    let sent = tokio::time::timeout(ask.timeout.saturating_add(LAST_RESORT), live.engine.client().send(request));
    let sent = visit::step("engine", sent).await;
    match sent {
        Ok(Ok(response)) => {
            engine_steps(began, response.headers());
            Ok(response)
        }
        Ok(Err(ClientError::Unsent)) => {
            Err(ApiError::new(Code::Unavailable, "the mart's engine is restarting").hint("try again in a moment"))
        }
        Ok(Err(ClientError::Lost)) => Err(ask.lost(live, started).await),
        Err(_) => {
            tracing::warn!(query = %ask.id, "ending an engine that is deaf to deadlines");
            live.engine.kill();
            Err(ask.too_late().culprit())
        }
    }
}

/// What the engine says of how long it took: its query waited for a place, and ran until its answer began.
fn engine_steps(began: SystemTime, headers: &HeaderMap) {
    let told = headers.get(header::TOOK).and_then(|value| value.to_str().ok()?.split_once(';'));
    let Some((Ok(waited), Ok(ran))) = told.map(|(waited, ran)| (waited.parse(), ran.parse())) else { return };
    let (waited, ran) = (Duration::from_micros(waited), Duration::from_micros(ran));
    visit::took("engine: wait", began, waited);
    visit::took("engine: run", began + waited, ran);
}

/// Runs a read on an engine of an earlier moment, whose position never moves and is durable.
pub async fn query_past(live: &Live, ask: &Ask, body: Body) -> Result<Response, ApiError> {
    let started = Instant::now();
    let (head, body) = send(live, ask, body, started).await?.into_parts();
    let moment = Moment::of(&head.headers, live.epoch);
    if !head.status.is_success() {
        let Ok(bytes) = Limited::new(body, MAX_ERROR_BYTES).collect().await.map(|whole| whole.to_bytes()) else {
            return Err(ask.lost(live, started).await);
        };
        return refusal(&bytes, ask, moment, Landed::Durable);
    }
    let mut answer = pass_on(&head);
    moment.describe(answer.headers_mut(), Landed::Durable);
    *answer.body_mut() = Body::new(body);
    Ok(answer)
}

fn pass_on(head: &http::response::Parts) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = head.status;
    for name in PASSED {
        if let Some(value) = head.headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

/// Runs a request on its mart's engine. `wait` bounds how long the answer is held for durability.
pub async fn query(
    mart: &Arc<OpenMart>,
    live: Arc<Live>,
    ask: &Ask,
    body: Body,
    wait: Duration,
) -> Result<Response, ApiError> {
    if ask.reads_only || ask.durability == Durability::Local {
        mart.may_answer()?;
    }
    let started = Instant::now();
    let before = mart.watcher().progress().newest;
    let response = match send(&live, ask, body, started).await {
        Err(error) if error.outcome == Outcome::Unknown => return Err(settle(mart, &live, before, error).await),
        sent => sent?,
    };
    let (head, body) = response.into_parts();
    let moment = Moment::of(&head.headers, live.epoch);
    let landed = match (moment.commit, ask.durability) {
        (Some(position), Durability::Object) => visit::step("wait for the store", mart.landed(position, wait)).await,
        _ => mart.landed_now(moment.position),
    };
    if let (Some(position), Durability::Object, true) = (moment.commit, ask.durability, head.status.is_success()) {
        match landed {
            Landed::Durable => {}
            Landed::Late => {
                // It has waited long enough; and in the log of another node it will never be.
                return Err(mart
                    .is_ours_now()
                    .map_or_else(|error| moment.not_ours(error, ask), |()| not_yet_durable(position)));
            }
            Landed::Lost => return Err(lost_track(position)),
        }
    }
    // A commit that is in the object store is the mart's own, whoever writes it by now.
    if !(moment.commit.is_some() && landed == Landed::Durable) {
        mart.still_ours().await.map_err(|error| moment.not_ours(error, ask))?;
    }
    if !head.status.is_success() {
        let Ok(bytes) = Limited::new(body, MAX_ERROR_BYTES).collect().await.map(|whole| whole.to_bytes()) else {
            return Err(ask.lost(&live, started).await);
        };
        return refusal(&bytes, ask, moment, landed);
    }
    let mut answer = pass_on(&head);
    moment.describe(answer.headers_mut(), landed);
    if moment.commit.is_some() {
        answer.extensions_mut().insert(Committed);
    }
    let may_commit = |names: &HeaderValue| names.as_bytes().starts_with(header::COMMIT.as_bytes());
    if !head.headers.get(TRAILER).is_some_and(may_commit) {
        *answer.body_mut() = Body::new(body);
        return Ok(answer);
    }
    // Where it belongs is known at its end.
    for name in [POSITION, DURABLE] {
        answer.headers_mut().remove(&name);
        answer.headers_mut().append(TRAILER, HeaderValue::from_str(name.as_str()).expect("a header's name is ASCII"));
    }
    *answer.body_mut() = held::hold(body, mart.clone(), live, ask.durability, wait);
    Ok(answer)
}

/// What became of a write whose engine ended under it: nothing, if the log that the next engine opens ends where it ended before the
/// request. Anything else may be another's commit, or the request's own.
async fn settle(mart: &OpenMart, lost: &Arc<Live>, before: Option<Position>, error: ApiError) -> ApiError {
    let Some(before) = before else { return error };
    let reopened = async {
        let next = mart.watcher().next(lost).await?;
        let health = next.engine.client().get::<Health>("/health").await.ok()?;
        Some(Position { epoch: next.epoch, iteration: health.iteration, wal_bytes: health.wal_bytes })
    };
    match tokio::time::timeout(SETTLE_WAIT, reopened).await {
        Ok(Some(now)) if now == before => error.outcome(Outcome::None),
        _ => error,
    }
}

/// In an answer's extensions: the request committed something.
#[derive(Debug, Clone, Copy)]
pub struct Committed;

/// Where in the mart's history an answer belongs.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// The request's own commit.
    commit: Option<Position>,
    /// That, or what it read at.
    position: Option<Position>,
}

impl Moment {
    fn of(headers: &HeaderMap, epoch: u64) -> Self {
        let at = |name: &str| position(headers.get(name)?, epoch);
        let commit = at(header::COMMIT);
        Self { commit, position: commit.or_else(|| at(header::AT)) }
    }

    /// The answer is kept back since another node may have the mart. A commit that it would have told of may be there or not.
    fn not_ours(&self, error: ApiError, ask: &Ask) -> ApiError {
        match self.commit {
            Some(position) => error.outcome(Outcome::Unknown).position(position),
            None => error.outcome(ask.outcome_of_silence()),
        }
    }

    fn describe(&self, headers: &mut HeaderMap, landed: Landed) {
        if let Some(position) = self.position {
            headers.insert(POSITION, text(&position));
            headers
                .insert(DURABLE, HeaderValue::from_static(if landed == Landed::Durable { "object" } else { "local" }));
        }
    }
}

fn position(value: &HeaderValue, epoch: u64) -> Option<Position> {
    let Point { iteration, wal_bytes } = value.to_str().ok()?.parse().ok()?;
    Some(Position { epoch, iteration, wal_bytes })
}

/// The engine's error with what only the node knows.
fn refusal(body: &[u8], ask: &Ask, moment: Moment, landed: Landed) -> Result<Response, ApiError> {
    let mut error: ApiError = serde_json::from_slice(body)
        .map_err(|cause| ApiError::internal("an engine's error can't be read", cause).outcome(Outcome::Unknown))?;
    error.position = moment.commit.map(|position| position.to_string().into());
    error.request_id = ask.id.to_string().into();
    let mut response = error.into_response();
    if moment.commit.is_some() {
        moment.describe(response.headers_mut(), landed);
    }
    Ok(response)
}

fn not_yet_durable(position: Position) -> ApiError {
    ApiError::new(Code::NotYetDurable, "committed on the node, but not yet in the object store")
        .hint("do not send it again: ask `…/positions/{position}` whether it has arrived")
        .outcome(Outcome::Committed)
        .position(position)
}

fn lost_track(position: Position) -> ApiError {
    ApiError::new(Code::Unavailable, "the mart was reopened before this commit reached the object store")
        .hint("look whether the change is there before you send it again")
        .outcome(Outcome::Unknown)
        .position(position)
}

fn text(value: &impl ToString) -> HeaderValue {
    HeaderValue::from_str(&value.to_string()).expect("ids and positions are visible ASCII")
}

/// Kept alive by a body that streams: the engine must not be dropped before its answer ends.
pub type Held = Arc<Live>;
