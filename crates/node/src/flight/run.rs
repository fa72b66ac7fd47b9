//! From a call to its engine: builds what `router` asks, and reads the small answers. Streams pass through untouched.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use engine::sql::{Kind, Statement};
use engine::wire::{FLIGHT, QueryRequest, header};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use crate::engine_client;
use crate::error::{ApiError, Code};
use crate::router::{self, Ask};
use crate::visit;

/// Answers that are read whole on the node: descriptions, lists of tables.
const MAX_SMALL_BYTES: usize = 64 << 20;
/// What a call's metadata tells of its answer.
const TOLD: [HeaderName; 4] = [
    HeaderName::from_static(header::QUERY_ID),
    router::POSITION,
    router::DURABLE,
    HeaderName::from_static(header::REPLAYED),
];

/// What is asked of an engine.
pub(super) struct Asked {
    /// The query's id.
    pub id: Uuid,
    /// `/query`, `/describe`, `/load`.
    pub path: &'static str,
    /// The form of the answer, and what describes the body.
    pub headers: HeaderMap,
    /// Nothing in it can write.
    pub reads_only: bool,
    /// It runs on a session's connection.
    pub in_session: bool,
    pub body: Body,
}

impl Asked {
    /// A query with its answer in the given form.
    pub(super) fn query(id: Uuid, request: &QueryRequest, accept: &'static str) -> Result<Self, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let (reads_only, in_session) = (only_reads(&request.sql), request.session.is_some());
        Ok(Self { id, path: "/query", headers, reads_only, in_session, body: json(request)? })
    }

    /// A query whose answer is a stream for the client.
    pub(super) fn stream(id: Uuid, request: &QueryRequest) -> Result<Self, ApiError> {
        Self::query(id, request, FLIGHT)
    }
}

impl Flight {
    /// Runs it for the caller. An answer that is an error comes back as one.
    pub(super) async fn run(&self, call: &Call, asked: Asked) -> Result<Response, ApiError> {
        let app = &self.app;
        let Asked { id, path, mut headers, reads_only, in_session, body } = asked;
        visit::runs(id);
        if let (Some(key), false) = (&call.idempotency_key, reads_only || in_session) {
            headers.insert(HeaderName::from_static(header::IDEMPOTENCY_KEY), key.clone());
        }
        let ask = Ask {
            path,
            id,
            principal: call.principal.id.clone(),
            role: call.role,
            durability: call.durability,
            timeout: call.timeout,
            profile: call.profile.clone(),
            headers,
            reads_only,
        };
        let response = if let Some(at) = &call.at {
            if !reads_only {
                return Err(ApiError::new(Code::Invalid, "only reads can run at an earlier moment")
                    .hint("branch the mart there, or restore it, to write"));
            }
            let live = app.followers.at(&call.mart, app.known(&call.mart).await?, at).await?;
            let entry = app.admit(&ask, &call.mart, &live).await?;
            router::query_past(&live, &ask, body).await?.map(|body| entry.until_sent(body))
        } else {
            let mart = app.mart(&call.mart).await?;
            // A transaction that is under way is what a checkpoint waits for.
            if mart.holds_writers() && !reads_only && !in_session {
                mart.writers_may_pass().await;
            }
            let live = mart.live().await?;
            let entry = app.admit(&ask, &call.mart, &live).await?;
            let wait = app.config.durable_wait;
            router::query(&mart, live, &ask, body, wait).await?.map(|body| entry.until_sent(body))
        };
        match response.extensions().get::<ApiError>() {
            Some(error) => Err(error.clone()),
            None => Ok(response),
        }
    }

    /// The same for an answer that is small and JSON.
    pub(super) async fn run_json<T: DeserializeOwned>(&self, call: &Call, asked: Asked) -> Result<T, ApiError> {
        small(self.run(call, asked).await?).await
    }

    /// Asks an engine for something that is no query: `POST /sessions`, `DELETE /sessions/{id}`.
    pub(super) async fn tell<B: Serialize>(
        &self,
        call: &Call,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<(), ApiError> {
        let gone = || ApiError::new(Code::Unavailable, "the mart's engine is restarting").hint("try again in a moment");
        let mart = self.app.mart(&call.mart).await?;
        let live = mart.live().await?;
        let bytes = serde_json::to_vec(body).map_err(|error| ApiError::internal("a request is JSON", error))?;
        let mut request = engine_client::request(method, path, bytes.into());
        let role = serde_json::to_value(call.role).ok();
        let role = role.as_ref().and_then(|role| role.as_str()).unwrap_or_default();
        for (name, value) in [(header::PRINCIPAL, call.principal.id.as_str()), (header::ROLE, role)] {
            let value = HeaderValue::from_str(value).map_err(|error| ApiError::internal("a name is ASCII", error))?;
            request.headers_mut().insert(name, value);
        }
        let response = live.engine.client().send(request).await.map_err(|_| gone())?;
        let succeeded = response.status().is_success();
        let bytes = axum::body::to_bytes(Body::new(response.into_body()), MAX_SMALL_BYTES).await.map_err(|_| gone())?;
        if succeeded {
            return Ok(());
        }
        Err(serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| ApiError::internal("an engine's error can't be read", error)))
    }
}

/// An answer that is small and JSON.
pub(super) async fn small<T: DeserializeOwned>(answer: Response) -> Result<T, ApiError> {
    let bytes = axum::body::to_bytes(answer.into_body(), MAX_SMALL_BYTES)
        .await
        .map_err(|_| ApiError::new(Code::Unavailable, "the mart's engine ended while this request ran"))?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::internal("an engine's answer is read", error))
}

/// What an answer's headers tell, as gRPC metadata.
pub(super) fn told(headers: &HeaderMap) -> HeaderMap {
    TOLD.into_iter().filter_map(|name| Some((name.clone(), headers.get(&name)?.clone()))).collect()
}

/// An answer with that metadata.
pub(super) fn with_metadata<T>(message: T, headers: HeaderMap) -> tonic::Response<T> {
    tonic::Response::from_parts(MetadataMap::from_headers(headers), message, Default::default())
}

/// How many rows the last statement changed, if it is one that changes rows.
pub(super) fn changed_rows(sql: &str, headers: &HeaderMap) -> Option<i64> {
    let statements = engine::sql::split(sql).ok()?;
    statements.last().filter(|last| last.kind == Kind::Write)?;
    headers.get(header::CHANGED_ROWS)?.to_str().ok()?.parse().ok()
}

fn json(value: &impl Serialize) -> Result<Body, ApiError> {
    let bytes = serde_json::to_vec(value).map_err(|error| ApiError::internal("a request is JSON", error))?;
    Ok(Body::from(Bytes::from(bytes)))
}

/// Whether our own lexer proves that nothing in the script writes.
pub(super) fn only_reads(sql: &str) -> bool {
    engine::sql::split(sql).is_ok_and(|statements| statements.iter().all(|statement| statement.kind.is_read()))
}

/// Whether it is one statement that is proved to read.
pub(super) fn is_one_read(sql: &str) -> bool {
    engine::sql::split(sql).is_ok_and(|statements| matches!(statements.as_slice(), [one] if one.kind.is_read()))
}

/// Whether the script leaves something behind that lives on a connection: an open transaction, a setting, a temporary table.
pub(super) fn needs_session(sql: &str) -> bool {
    let Ok(statements) = engine::sql::split(sql) else { return false };
    let mut open = false;
    for statement in &statements {
        match statement.kind {
            Kind::TxBegin => open = true,
            // The end of one that an earlier call began.
            Kind::TxCommit | Kind::TxRollback if !open => return true,
            Kind::TxCommit | Kind::TxRollback => open = false,
            Kind::Session => return true,
            Kind::Ddl if makes_temporary(statement) => return true,
            _ => {}
        }
    }
    open
}

/// Whether the script begins a transaction anywhere.
pub(super) fn begins(sql: &str) -> bool {
    engine::sql::split(sql).is_ok_and(|statements| statements.iter().any(|statement| statement.kind == Kind::TxBegin))
}

/// How the script ends a transaction that is open before it, if it does so first of all.
pub(super) fn first_end(sql: &str) -> Option<Kind> {
    let first = engine::sql::split(sql).ok()?.into_iter().next()?.kind;
    matches!(first, Kind::TxCommit | Kind::TxRollback).then_some(first)
}

/// Whether a transaction is open after the script, which may have failed, if one `was` before.
pub(super) fn open_after(sql: &str, was: bool, failed: Option<&ApiError>) -> bool {
    let Ok(statements) = engine::sql::split(sql) else { return was };
    let ran = match failed {
        None => statements.len(),
        Some(error) => error.statement_index.map_or(0, |index| index as usize).min(statements.len()),
    };
    let open = statements[..ran].iter().fold(was, |open, statement| match statement.kind {
        Kind::TxBegin => true,
        Kind::TxCommit | Kind::TxRollback => false,
        _ => open,
    });
    // An engine's own refusal of a COMMIT ends the transaction.
    let refused = failed.is_some_and(|error| matches!(error.code, Code::Sql | Code::Conflict));
    open && !(refused && statements.get(ran).is_some_and(|statement| statement.kind == Kind::TxCommit))
}

/// `CREATE [OR REPLACE] TEMP …`, or `CREATE … temp.name`.
fn makes_temporary(statement: &Statement<'_>) -> bool {
    let words = statement.text.split(|c: char| c.is_whitespace() || c == '(').filter(|word| !word.is_empty());
    let mut words = words.take(10).map(str::to_ascii_lowercase);
    words.next().is_some_and(|first| first == "create")
        && words.any(|word| word == "temp" || word == "temporary" || word.starts_with("temp."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlives_its_statement_needs_a_session() {
        for sql in [
            "begin",
            "BEGIN; insert into t values (1)",
            "commit",
            "set schema = 's'",
            "use s",
            "create temp table t(i int)",
            "create or replace temporary view v as select 1",
            "create table temp.t(i int)",
        ] {
            assert!(needs_session(sql), "{sql}");
        }
        let failed = |code, at| ApiError { statement_index: at, ..ApiError::new(code, "x") };
        assert!(open_after("begin; select 1", false, None));
        assert!(!open_after("begin; select 1; rollback", true, None));
        assert!(open_after("begin; selec 1", false, Some(&failed(Code::Sql, Some(1)))));
        assert!(!open_after("begin", false, Some(&failed(Code::Limited, None))));
        assert!(open_after("commit", true, Some(&failed(Code::Timeout, None))));
        assert!(!open_after("commit", true, Some(&failed(Code::Sql, None))));
        for sql in ["select 1", "begin; insert into t values (1); commit", "create table temperature(i int)", "'"] {
            assert!(!needs_session(sql), "{sql}");
        }
    }
}
