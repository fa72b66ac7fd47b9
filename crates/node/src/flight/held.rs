//! Answers that a node holds for the `DoGet` that follows: of statements that ran in `GetFlightInfo`. Small ones are kept and given any
//! number of times; of a larger one the beginning is kept, the rest waits in the engine, and it is given once.
//!
//! **Invariant:** nothing is run for a `DoGet` here, so nothing runs twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use uuid::Uuid;

use super::call::Call;
use super::frames::{schema_message, schema_of};
use super::get::{broken, failure};
use super::run::told;
use super::sessions::Used;
use crate::error::{ApiError, Code};

/// An answer is held so long.
const HELD_FOR: Duration = Duration::from_secs(300);
/// A longer one is not kept whole.
const KEPT_BYTES: usize = 1 << 20;
/// All that is kept on a node.
const ALL_BYTES: usize = 64 << 20;
/// Answers at once.
const MOST: usize = 4096;
/// Answers whose rest is still in an engine: each keeps one of its queries busy.
const MOST_OPEN: usize = 48;

/// The answers of a node.
#[derive(Default)]
pub(super) struct HeldAnswers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    answers: HashMap<Uuid, Answer>,
    /// Oldest first.
    order: VecDeque<Uuid>,
    bytes: usize,
}

struct Answer {
    principal: String,
    place: Uuid,
    since: Instant,
    told: HeaderMap,
    begin: Vec<Bytes>,
    bytes: usize,
    /// What is still to come, and the session it comes from.
    rest: Option<(Body, Option<Used>)>,
    taken: bool,
}

/// What `GetFlightInfo` says of an answer.
pub(super) struct Outline {
    /// Names the answer in its ticket.
    pub id: Uuid,
    /// The stream's own schema message.
    pub schema: Bytes,
}

impl HeldAnswers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an answer in.
    pub(super) async fn hold(
        &self,
        call: &Call,
        id: Uuid,
        answer: Response,
        used: Option<Used>,
    ) -> Result<Outline, ApiError> {
        let (head, mut body) = answer.into_parts();
        let (mut begin, mut bytes, mut schema) = (Vec::new(), 0, None);
        let mut first = BytesMut::new();
        let rest = loop {
            if bytes >= KEPT_BYTES && schema.is_some() {
                break Some((body, used));
            }
            match body.frame().await {
                None => break None,
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        bytes += data.len();
                        if schema.is_none() {
                            first.extend_from_slice(&data);
                            schema = schema_of(&first)?;
                        }
                        begin.push(data);
                    }
                    Err(frame) => match frame.trailers_ref().and_then(failure) {
                        Some(error) => return Err(error),
                        None => break None,
                    },
                },
            }
        };
        let schema = schema.unwrap_or_else(|| schema_message(&arrow_schema::Schema::empty()));
        let answer = Answer {
            principal: call.principal.id.clone(),
            place: call.place.id,
            since: Instant::now(),
            told: told(&head.headers),
            begin,
            bytes,
            rest,
            taken: false,
        };
        self.inner().insert(id, answer);
        Ok(Outline { id, schema })
    }

    /// The answer for a ticket: what its head told, and its body.
    pub(super) fn give(&self, call: &Call, id: Uuid) -> Result<(HeaderMap, Body), ApiError> {
        let mut inner = self.inner();
        let answer = inner.answers.get_mut(&id).filter(|answer| answer.principal == call.principal.id);
        let answer = answer.filter(|answer| answer.since.elapsed() < HELD_FOR).ok_or_else(|| {
            ApiError::new(Code::NotFound, "this answer is not held any more")
                .hint("what the statement did is done; answers wait for five minutes on the node that ran it")
        })?;
        if answer.taken {
            return Err(ApiError::new(Code::NotFound, "this answer was fetched already")
                .hint("an answer over 1 MB is given once"));
        }
        let told = answer.told.clone();
        let begin = match answer.rest.is_some() {
            true => std::mem::take(&mut answer.begin),
            false => answer.begin.clone(),
        };
        let begin = stream::iter(begin.into_iter().map(|data| Ok(Frame::data(data))));
        let Some((rest, used)) = answer.rest.take() else {
            return Ok((told, Body::new(StreamBody::new(begin.map(|frame: Result<_, axum::Error>| frame)))));
        };
        answer.taken = true;
        let freed = std::mem::take(&mut answer.bytes);
        inner.bytes -= freed;
        let rest = stream::unfold((rest, used), |(mut rest, used)| async move {
            let frame = rest.frame().await?;
            Some((frame, (rest, used)))
        });
        Ok((told, Body::new(StreamBody::new(begin.chain(rest)))))
    }

    /// Forgets an answer; the engine stops if it is still at it.
    pub(super) fn drop_one(&self, call: &Call, id: Uuid) {
        let mut inner = self.inner();
        if inner.answers.get(&id).is_some_and(|answer| answer.principal == call.principal.id) {
            inner.remove(id);
        }
    }

    /// Forgets what waits in a place's session.
    pub(super) fn drop_place(&self, call: &Call) {
        let mut inner = self.inner();
        let open = |answer: &Answer| answer.rest.is_some() && answer.place == call.place.id;
        let gone: Vec<_> = inner
            .answers
            .iter()
            .filter(|(_, answer)| open(answer) && answer.principal == call.principal.id)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            inner.remove(id);
        }
    }

    /// Forgets what waits for those; the engine stops where it is still at it.
    pub(super) fn forget(&self, gone: &HashSet<String>) {
        let mut inner = self.inner();
        let theirs = inner.answers.iter().filter(|(_, answer)| gone.contains(&answer.principal));
        for id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
            inner.remove(id);
        }
    }

    /// Forgets what has waited long enough.
    pub(super) fn expire(&self) {
        self.inner().shrink();
    }
}

impl Inner {
    fn insert(&mut self, id: Uuid, answer: Answer) {
        self.bytes += answer.bytes;
        self.answers.insert(id, answer);
        self.order.push_back(id);
        self.shrink();
    }

    fn remove(&mut self, id: Uuid) {
        if let Some(answer) = self.answers.remove(&id) {
            self.bytes -= answer.bytes;
        }
    }

    /// Oldest first, until what is left fits.
    fn shrink(&mut self) {
        let open = |inner: &Self| inner.answers.values().filter(|answer| answer.rest.is_some()).count();
        let mut over = open(self).saturating_sub(MOST_OPEN);
        while let Some(id) = self.order.front().copied() {
            let Some(oldest) = self.answers.get(&id) else {
                self.order.pop_front();
                continue;
            };
            let full = self.bytes > ALL_BYTES || self.answers.len() > MOST;
            if !(full || over > 0 || oldest.since.elapsed() > HELD_FOR) {
                break;
            }
            over -= usize::from(over > 0 && oldest.rest.is_some());
            self.order.pop_front();
            self.remove(id);
        }
    }
}
