//! Requests with an idempotency key: run at most once, and answered the same ever after.
//!
//! # Consistency
//! The whole script is one transaction, and its answer is recorded in `_tarn.idempotency` by that same transaction: either both are
//! there or neither. Requests with the same key wait for each other. A failed request leaves no record and may be sent again.
//! Records are kept for 7 days.

use std::{
    collections::HashSet,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value as Json;

use crate::{
    buffer::Kept,
    duck::DuckError,
    failure::Failure,
    params::Params,
    sql::{Kind, Statement},
    wire::Code,
};

use super::script::{Outcome, Run, answering};

/// Largest answer that is recorded.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;
const MAX_KEY_BYTES: usize = 255;
const LOOK: Duration = Duration::from_millis(20);
/// Old records are looked for this often.
const SWEEP_SECONDS: i64 = 3600;

const TABLE: &str = "
    CREATE SCHEMA IF NOT EXISTS _tarn;
    CREATE TABLE IF NOT EXISTS _tarn.idempotency (
        principal VARCHAR NOT NULL, key VARCHAR NOT NULL, request VARCHAR NOT NULL, answer VARCHAR NOT NULL,
        made_at TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'), PRIMARY KEY (principal, key))";
const HAS_TABLE: &str = "SELECT 'yes' FROM duckdb_tables() WHERE database_name = 'mart' AND schema_name = '_tarn' AND table_name = 'idempotency'";
const FIND: &str = "SELECT (request = sha256($3))::VARCHAR || chr(10) || answer FROM _tarn.idempotency WHERE principal = $1 AND key = $2";
const RECORD: &str = "INSERT INTO _tarn.idempotency (principal, key, request, answer) VALUES ($1, $2, sha256($3), $4)";
const SWEEP: &str = "DELETE FROM _tarn.idempotency WHERE made_at < now() AT TIME ZONE 'UTC' - INTERVAL 7 DAYS";

/// Keys of requests that run now.
#[derive(Default)]
pub(super) struct Keys {
    held: Mutex<HashSet<(String, String)>>,
    freed: Condvar,
    swept: AtomicI64,
}

/// A key that nobody else runs under, until dropped.
pub(super) struct Held<'a>(&'a Keys, (String, String));

impl Keys {
    fn hold(&self, principal: &str, key: &str, cancelled: impl Fn() -> bool) -> Option<Held<'_>> {
        let name = (principal.to_owned(), key.to_owned());
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.contains(&name) {
            if cancelled() {
                return None;
            }
            held = self.freed.wait_timeout(held, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        held.insert(name.clone());
        Some(Held(self, name))
    }

    fn sweep_is_due(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        now - self.swept.load(Ordering::Relaxed) > SWEEP_SECONDS && self.swept.swap(now, Ordering::Relaxed) < now
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
        self.0.freed.notify_all();
    }
}

/// Runs `statements` under `key`, or repeats the answer.
pub(super) fn run(run: &mut Run<'_>, key: &str, statements: &[Statement<'_>]) -> Result<Outcome, Failure> {
    let statements = one_transaction(statements)?;
    let _held = hold(run, key)?;
    let request = fingerprint(run);
    run.begin()?;
    if let Some(outcome) = find(run, key, &request)? {
        return Ok(outcome);
    }
    let answer_at = answering(statements);
    let mut answer = None;
    for (index, statement) in statements.iter().enumerate() {
        let place = |failure: Failure| if statements.len() > 1 { failure.at(index) } else { failure };
        if let Some(reason) = run.query.reason() {
            return Err(place(reason.into()));
        }
        answer = run.statement(statement, answer_at == Some(index)).map_err(place)?.or(answer);
    }
    let Some(Kept::Memory(pieces)) = answer else {
        return Err(Failure::new(Code::Invalid, "the request has no result to keep under its idempotency key"));
    };
    let body = pieces.concat();
    record(run, key, &request, &body)?;
    run.commit()?;
    Ok(run.outcome(Kept::Memory(vec![body.into()])))
}

/// Waits until nobody else runs under `key`.
pub(super) fn hold<'a>(run: &Run<'a>, key: &str) -> Result<Held<'a>, Failure> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Failure::new(Code::Invalid, format!("an idempotency key has 1 to {MAX_KEY_BYTES} characters")));
    }
    let (engine, query) = (run.engine, run.query);
    engine.keys.hold(&query.principal, key, || query.is_cancelled()).ok_or_else(|| {
        query.reason().map_or_else(|| Failure::new(Code::Cancelled, "the query was cancelled"), Failure::from)
    })
}

/// Records the answer in the open transaction, after [`find`] found none in it.
pub(super) fn record(run: &mut Run<'_>, key: &str, request: &str, body: &[u8]) -> Result<(), Failure> {
    let record = format!("{}\n{}", run.request.format.content_type(), STANDARD.encode(body));
    let recorded = own(run, RECORD, &[&run.query.principal, key, request, &record]);
    recorded.map_err(|error| run.duck(&error))?;
    if run.engine.keys.sweep_is_due() {
        own(run, SWEEP, &[]).map_err(|error| run.duck(&error))?;
    }
    Ok(())
}

/// Is there an answer under `key`, of whatever request?
pub(super) fn is_recorded(run: &Run<'_>, key: &str) -> Result<bool, Failure> {
    let duck = |error: DuckError| run.duck(&error);
    Ok(!own(run, HAS_TABLE, &[]).map_err(duck)?.is_empty()
        && !own(run, FIND, &[&run.query.principal, key, ""]).map_err(duck)?.is_empty())
}

/// A statement of the engine's own inside the transaction.
fn own(run: &Run<'_>, sql: &str, params: &[&str]) -> Result<Vec<String>, DuckError> {
    run.kept.connection.column_with(sql, params)
}

/// The recorded answer of `request`, if there is one; makes the table for it.
pub(super) fn find(run: &mut Run<'_>, key: &str, request: &str) -> Result<Option<Outcome>, Failure> {
    let duck = |error: DuckError| run.duck(&error);
    if own(run, HAS_TABLE, &[]).map_err(duck)?.is_empty() {
        run.kept.connection.execute(TABLE).map_err(|error| run.duck(&error))?;
        return Ok(None);
    }
    let Some(found) = own(run, FIND, &[&run.query.principal, key, request]).map_err(duck)?.pop() else {
        return Ok(None);
    };
    let mut parts = found.splitn(3, '\n');
    let (same, content_type, body) = (parts.next(), parts.next(), parts.next());
    if same != Some("true") {
        let failure = Failure::new(Code::Conflict, "the idempotency key was used for another request");
        return Err(failure.hint("use a new key for a new request"));
    }
    let body = body.and_then(|body| STANDARD.decode(body).ok());
    let (Some(content_type), Some(body)) = (content_type, body) else {
        return Err(Failure::new(Code::Internal, "the recorded answer can't be read"));
    };
    // Newer than the first answer's position, so what waits for it waits long enough.
    run.progress.commit = Some(run.engine.mart.commits.latest().0.point());
    Ok(Some(Outcome {
        kept: Kept::Memory(vec![Bytes::from(body)]),
        content_type: content_type.to_owned(),
        replayed: true,
    }))
}

/// The statements without a BEGIN and COMMIT around all of them; other transaction control would make several transactions.
fn one_transaction<'s, 't>(statements: &'s [Statement<'t>]) -> Result<&'s [Statement<'t>], Failure> {
    let inner = match statements {
        [first, inner @ .., last] if first.kind == Kind::TxBegin && last.kind == Kind::TxCommit => inner,
        all => all,
    };
    if inner.iter().any(|statement| matches!(statement.kind, Kind::TxBegin | Kind::TxCommit | Kind::TxRollback)) {
        let failure = Failure::new(Code::Invalid, "under an idempotency key a script is one transaction");
        return Err(failure.hint("leave out BEGIN, COMMIT and ROLLBACK, or put them around the whole script"));
    }
    Ok(inner)
}

/// What makes two requests the same.
fn fingerprint(run: &Run<'_>) -> String {
    let request = run.request;
    let params = match &request.params {
        Params::None => Json::Null,
        Params::Positional(values) => Json::from(values.clone()),
        Params::Named(values) => Json::from(values.clone()),
    };
    Json::from(vec![request.format.content_type().into(), request.max_rows.into(), params, request.sql.as_str().into()])
        .to_string()
}
