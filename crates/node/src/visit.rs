//! One request while it is in the node: who it is of, what it is about, and the knife that ends it when its sender may not be here
//! any more.
//!
//! Handlers find theirs without being handed it ([`note`]), since what they note concerns the audit log and not them.
//!
//! **Invariant:** a visit that was cut sends nothing more, and what it has sent never looks whole. What runs for it stops then, not
//! when its client reads on.

mod answer;
pub mod guests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use engine::sql::Kind;
use futures::task::AtomicWaker;
use opentelemetry::trace::SpanContext;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use answer::{Answer, Ended, status};
pub use guests::{Guest, Guests};

use crate::auth::Principal;
use crate::control::State;
use crate::error::{ApiError, Code};
use crate::names::{MartId, Tenant};

tokio::task_local! {
    static HERE: Arc<Visit>;
}

/// One request.
pub struct Visit {
    /// What it is called in answers, logs and traces; the client may choose it.
    id: Uuid,
    /// What all nodes agreed on when it came.
    state: Arc<State>,
    /// How much of its SQL is kept for the audit log.
    keeps: Keeps,
    noted: Mutex<Noted>,
    /// What its work was made of, in the order in which that ended.
    steps: Mutex<Vec<Step>>,
    cut: OnceLock<Cut>,
    cancelled: CancellationToken,
    /// Its answer's body once there is one; taken away when it is cut.
    body: Mutex<Option<Body>>,
    waker: AtomicWaker,
}

/// A part of a visit's work.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: &'static str,
    pub began: SystemTime,
    pub took: Duration,
}

/// Why a visit was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Its token was revoked or has ended.
    Over,
    /// Its mart was dropped.
    Dropped,
}

/// What of SQL is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Only which kind it is.
    Kind,
    /// Its hash.
    Hash,
    /// Its beginning.
    Text,
}

/// What is known of a visit by now.
#[derive(Debug, Clone, Default)]
pub struct Noted {
    /// The span of its sender's of which it is part.
    pub parent: Option<SpanContext>,
    /// Where it comes from.
    pub peer: Option<SocketAddr>,
    /// Whose it is.
    pub principal: Option<Arc<Principal>>,
    /// Why it is nobody's.
    pub refused: Option<&'static str>,
    /// That is not to be written down; another visit's line stands for it.
    pub untold: bool,
    /// How many refusals this one stands for.
    pub repeated: Option<u32>,
    /// When whoever was refused may try again, in seconds.
    pub retry_after: Option<u64>,
    /// What it is about.
    pub mart: Option<MartId>,
    /// The same, where it is about no mart.
    pub tenant: Option<Tenant>,
    /// The query that it runs.
    pub query: Option<Uuid>,
    /// The kind of its statements: read, write, ddl or other.
    pub kind: Option<&'static str>,
    /// What is kept of its SQL.
    pub sql: Option<String>,
    /// What it asks for, to the letter.
    pub asked: Option<Arc<Asked>>,
    /// What else it makes or ends: a token's id.
    pub object: Option<String>,
}

/// SQL with what its plan depends on.
#[derive(Debug)]
pub struct Asked {
    pub sql: String,
    pub params: Option<Box<RawValue>>,
    /// The earlier moment.
    pub at: Option<String>,
}

impl Cut {
    /// What the client is told. Something of it may have been done.
    pub fn error(self) -> ApiError {
        match self {
            Self::Over => {
                ApiError::new(Code::Unauthenticated, "the token was revoked or has ended while this request ran")
            }
            Self::Dropped => ApiError::new(Code::NotFound, "the mart was dropped while this request ran"),
        }
    }
}

/// The longest SQL text in the audit log, in bytes.
pub const MOST_SQL_BYTES: usize = 4096;
/// Longer parameters are not kept.
const MOST_PARAM_BYTES: usize = 64 << 10;

impl Visit {
    /// A visit that begins.
    pub fn new(id: Option<Uuid>, state: Arc<State>, keeps: Keeps) -> Self {
        Self {
            id: id.unwrap_or_else(Uuid::new_v4),
            steps: Mutex::default(),
            state,
            keeps,
            noted: Mutex::default(),
            cut: OnceLock::new(),
            cancelled: CancellationToken::new(),
            body: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// Runs a handler as part of it.
    pub async fn scope<F: Future>(self: &Arc<Self>, handler: F) -> F::Output {
        HERE.scope(self.clone(), handler).await
    }

    /// What it is called.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// What its work was made of so far.
    pub fn steps(&self) -> Vec<Step> {
        lock(&self.steps).clone()
    }

    /// What all nodes agreed on when it came.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Changes what is known of it.
    pub fn note(&self, note: impl FnOnce(&mut Noted)) {
        note(&mut lock(&self.noted));
    }

    /// What is known of it.
    pub fn noted(&self) -> Noted {
        lock(&self.noted).clone()
    }

    /// Ends it.
    pub fn cut(&self, why: Cut) {
        if self.cut.set(why).is_err() {
            return;
        }
        self.cancelled.cancel();
        // Dropped, it tells the engine to stop, whether the client reads on or not.
        let body = self.body().take();
        drop(body);
        self.waker.wake();
    }

    /// Resolves when it is cut.
    pub async fn is_cut(&self) -> Cut {
        self.cancelled.cancelled().await;
        self.why_cut().unwrap_or(Cut::Over)
    }

    /// Why it was cut, if it was.
    pub fn why_cut(&self) -> Option<Cut> {
        self.cut.get().copied()
    }

    /// Which life of its mart there was when it came.
    fn life(&self) -> Option<(MartId, Uuid)> {
        let id = lock(&self.noted).mart.clone()?;
        let life = self.state.mart(&id)?.incarnation;
        Some((id, life))
    }

    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        lock(&self.body)
    }
}

/// The visit of which the caller is a part.
pub fn here() -> Option<Arc<Visit>> {
    HERE.try_with(Arc::clone).ok()
}

/// Notes something about the visit of which the caller is a part, if it is part of one.
pub fn note(note: impl FnOnce(&mut Noted)) {
    let _ = HERE.try_with(|visit| visit.note(note));
}

/// Does a part of the visit's work, and notes how long it took.
pub async fn step<F: Future>(name: &'static str, work: F) -> F::Output {
    let began = SystemTime::now();
    let done = work.await;
    took(name, began, began.elapsed().unwrap_or_default());
    done
}

/// Notes a part of the visit's work that somebody else did.
pub fn took(name: &'static str, began: SystemTime, took: Duration) {
    let _ = HERE.try_with(|visit| lock(&visit.steps).push(Step { name, began, took }));
}

/// What the visit is called of which the caller is a part.
pub fn id() -> Uuid {
    HERE.try_with(|visit| visit.id).unwrap_or_else(|_| Uuid::new_v4())
}

/// Notes which mart it is about.
pub fn about(id: &MartId) {
    note(|noted| noted.mart = Some(id.clone()));
}

/// Notes the query that it runs.
pub fn runs(id: Uuid) {
    note(|noted| noted.query = Some(id));
}

/// Notes its SQL, as far as that is kept.
pub fn says(sql: &str) {
    asks(sql, None, None);
}

/// The same, with the parameters and the earlier moment that go with it.
pub fn asks(sql: &str, params: Option<&RawValue>, at: Option<&str>) {
    let _ = HERE.try_with(|visit| {
        let kept = match visit.keeps {
            Keeps::Kind => None,
            Keeps::Hash => Some(blake3::hash(sql.as_bytes()).to_hex().to_string()),
            Keeps::Text => Some(shown(sql)),
        };
        let kind = kind(sql);
        let params = params.filter(|params| params.get().len() <= MOST_PARAM_BYTES).map(ToOwned::to_owned);
        let asked = Arc::new(Asked { sql: sql.to_owned(), params, at: at.map(str::to_owned) });
        visit.note(|noted| (noted.kind, noted.sql, noted.asked) = (Some(kind), kept, Some(asked)));
    });
}

/// SQL as it may be shown: its beginning, without secrets of ours.
pub fn shown(sql: &str) -> String {
    redacted(beginning(sql))
}

/// What a script does at most.
fn kind(sql: &str) -> &'static str {
    let Ok(statements) = engine::sql::split(sql) else { return "other" };
    let word = |kind: &Kind| match kind {
        Kind::Write => "write",
        Kind::Ddl => "ddl",
        kind if kind.is_read() => "read",
        _ => "other",
    };
    let all: Vec<_> = statements.iter().map(|statement| word(&statement.kind)).collect();
    ["write", "ddl", "other", "read"].into_iter().find(|word| all.contains(word)).unwrap_or("other")
}

fn beginning(sql: &str) -> &str {
    let mut end = sql.len().min(MOST_SQL_BYTES);
    while !sql.is_char_boundary(end) {
        end -= 1;
    }
    &sql[..end]
}

/// The text without what looks like a token of ours or a JWT.
fn redacted(text: &str) -> String {
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '~');
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = ["tarn_", "eyJ"].into_iter().filter_map(|mark| rest.find(mark)).min() {
        told.push_str(&rest[..at]);
        let end = rest[at..].find(|c| !of_token(c)).map_or(rest.len(), |length| at + length);
        // A table may be called so; nothing that short is a secret.
        told.push_str(if end - at < 24 { &rest[at..end] } else { "[redacted]" });
        rest = &rest[end..];
    }
    told.push_str(rest);
    told
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_token_is_not_kept() {
        let token = "tarn_0123456789abcdef0123456789abcdef_s3cret-S3CRET_s3cret";
        assert_eq!(redacted(&format!("select '{token}', 1")), "select '[redacted]', 1");
        assert_eq!(redacted("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.x;"), "[redacted];");
        assert_eq!(redacted("from tarn_small, ä"), "from tarn_small, ä");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = format!("a{}", "ä".repeat(MOST_SQL_BYTES));
        assert_eq!(beginning(&text).len(), MOST_SQL_BYTES - 1);
    }

    #[test]
    fn a_script_is_of_the_kind_that_changes_most() {
        for (sql, word) in [
            ("select 1", "read"),
            ("select 1; insert into t values (1)", "write"),
            ("create table t(i int)", "ddl"),
            ("'", "other"),
            ("begin", "other"),
        ] {
            assert_eq!(kind(sql), word, "{sql}");
        }
    }
}
