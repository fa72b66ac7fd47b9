//! `POST …/query`: checks a request and hands it to the router.
//!
//! The body goes to the engine as it came; the deadline of a body without one goes along as a header.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use engine::sql::Kind;
use engine::wire::{FLIGHT, Role, header};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{App, Caller, Shared, mart_id, parse_object, read_body};
use crate::auth::Principal;
use crate::error::{ApiError, Code};
use crate::names::MartId;
use crate::router::{self, Ask, Durability};
use crate::vacuum::{is_vacuum, vacuumed};
use crate::visit;

/// The public body. What it borrows is only looked at here; the engine reads the bytes again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody<'a> {
    #[serde(borrow)]
    sql: Cow<'a, str>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    durability: Option<Durability>,
    /// An earlier moment: an RFC 3339 time, a snapshot's name or a position.
    #[serde(borrow, default)]
    at: Option<Cow<'a, str>>,
    #[serde(default)]
    max_rows: Option<u64>,
    /// Runs on this session's connection.
    #[serde(default)]
    session: Option<Uuid>,
}

/// A request for SQL that was found in order, on its way to its mart.
pub(super) struct Checked {
    pub mart: MartId,
    pub ask: Ask,
    /// As it came.
    pub body: Bytes,
    pub sql: String,
    pub at: Option<String>,
    pub session: Option<Uuid>,
    pub max_rows: Option<u64>,
}

pub(super) async fn run(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = query_id(&headers)?;
    let named = async {
        let mart = mart_id(&tenant, &mart)?;
        let checked = check(&app, &caller, mart, (id, &headers), body).await?;
        answer(&app, checked).await
    };
    named.await.map_err(|error: ApiError| error.request_id(id))
}

/// Checks what can be checked without an engine.
pub(super) async fn check(
    app: &App,
    caller: &Principal,
    mart: MartId,
    (id, headers): (Uuid, &HeaderMap),
    body: Body,
) -> Result<Checked, ApiError> {
    let role = caller.role_in(&mart)?;
    let body = read_body(body).await?;
    let parsed: QueryBody = parse_object(&body)?;
    visit::asks(&parsed.sql, parsed.params, parsed.at.as_deref());
    let profile = app.profile(caller, &mart, headers)?;
    let usual = profile.timeout.unwrap_or(app.config.query_timeout);
    let ask = Ask {
        path: "/query",
        id,
        principal: caller.id.clone(),
        role,
        durability: parsed.durability.unwrap_or_default(),
        timeout: parsed.timeout_ms.map_or(usual, Duration::from_millis),
        profile,
        headers: passed_on(headers)?,
        reads_only: (role == Role::Reader && parsed.at.is_none() && parsed.session.is_none())
            || only_reads(&parsed.sql),
    };
    if parsed.session.is_some() {
        if parsed.at.is_some() {
            return Err(ApiError::new(Code::Invalid, "a session is of now: `at` does not go with `session`"));
        }
        if headers.contains_key(header::IDEMPOTENCY_KEY) {
            return Err(ApiError::new(Code::Invalid, "`Idempotency-Key` does not go with `session`")
                .hint("a transaction that was not answered is looked for before it is sent again"));
        }
        if is_vacuum(ask.role, &parsed.sql) {
            return Err(ApiError::new(Code::Invalid, "VACUUM does not run in a session").hint("send it without"));
        }
    }
    if parsed.at.is_some() && !ask.reads_only {
        return Err(ApiError::new(Code::Invalid, "only reads can run at an earlier moment")
            .hint("branch the mart there, or restore it, to write"));
    }
    let QueryBody { session, max_rows, .. } = parsed;
    let (sql, at) = (parsed.sql.into_owned(), parsed.at.map(Cow::into_owned));
    Ok(Checked { mart, ask, sql, at, session, max_rows, body })
}

/// Has it answered by the mart's engine, or by one of an earlier moment.
pub(super) async fn answer(app: &App, checked: Checked) -> Result<Response, ApiError> {
    let Checked { mart: mart_id, ask, body, sql, at, session, .. } = checked;
    if let Some(at) = at {
        let live = app.followers.at(&mart_id, app.known(&mart_id).await?, &at).await?;
        let entry = app.admit(&ask, &mart_id, &live).await?;
        let response = router::query_past(&live, &ask, body.into()).await?;
        return Ok(response.map(|body| entry.until_sent(body)));
    }
    let mart = app.mart(&mart_id).await?;
    // A transaction that is under way is what a checkpoint waits for.
    if session.is_none() && mart.holds_writers() && !ask.reads_only {
        mart.writers_may_pass().await;
    }
    let (ask, body) = match is_vacuum(ask.role, &sql) {
        true => {
            let sql = vacuumed(mart.orders()).await?;
            (Ask { reads_only: true, ..ask }, serde_json::json!({ "sql": sql }).to_string().into())
        }
        false => (ask, body),
    };
    let live = visit::step("open", mart.live()).await?;
    let entry = app.admit(&ask, &mart_id, &live).await?;
    let response = router::query(&mart, live, &ask, body.into(), app.config.durable_wait).await?;
    Ok(response.map(|body| entry.until_sent(body)))
}

/// A body of `…/query` that the node makes for a caller.
#[derive(Serialize)]
pub(super) struct Made<'a> {
    pub sql: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Uuid>,
}

/// What is read whole of an answer.
const MOST_BYTES: usize = 64 << 20;

/// Runs what the node made as its caller would; the head of the answer and its rows.
pub(super) async fn rows(
    app: &App,
    caller: &Principal,
    mart: MartId,
    (id, headers): (Uuid, &HeaderMap),
    made: &Made<'_>,
) -> Result<(http::response::Parts, Vec<Vec<Value>>), ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        rows: Vec<Vec<Value>>,
    }
    let broken = |error: serde_json::Error| ApiError::internal("a body between node and engine is not JSON", error);
    let mut headers = headers.clone();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let body = serde_json::to_vec(made).map_err(broken)?;
    let checked = check(app, caller, mart, (id, &headers), body.into()).await?;
    let (head, body) = answer(app, checked).await?.into_parts();
    let body = axum::body::to_bytes(body, MOST_BYTES).await;
    let body = body.map_err(|_| ApiError::new(Code::Unavailable, "the answer broke off on its way"))?;
    if !head.status.is_success() {
        return Err(serde_json::from_slice(&body).map_err(broken)?);
    }
    let Answer { rows } = serde_json::from_slice(&body).map_err(broken)?;
    Ok((head, rows))
}

/// The id that the client chose, else a new one.
pub(super) fn query_id(headers: &HeaderMap) -> Result<Uuid, ApiError> {
    let id =
        match headers.get(header::QUERY_ID) {
            None => visit::id(),
            Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
                ApiError::new(Code::Invalid, format!("the header `{}` wants a UUID", header::QUERY_ID))
            })?,
        };
    visit::runs(id);
    Ok(id)
}

fn passed_on(headers: &HeaderMap) -> Result<HeaderMap, ApiError> {
    let key = HeaderName::from_static(header::IDEMPOTENCY_KEY);
    let key = headers.get(&key).map(|value| (key, value.clone()));
    Ok(accept(headers)?.into_iter().chain(key).collect())
}

/// The format that is asked for, if one is. What engine and node say to each other is no format of results.
pub(super) fn accept(headers: &HeaderMap) -> Result<Option<(HeaderName, HeaderValue)>, ApiError> {
    let Some(value) = headers.get(ACCEPT) else { return Ok(None) };
    if value.as_bytes().to_ascii_lowercase().windows(FLIGHT.len()).any(|part| part == FLIGHT.as_bytes()) {
        return Err(ApiError::new(Code::Invalid, "no format that `Accept` names can be given").hint(
            "application/json, application/x-ndjson, text/csv, application/vnd.apache.arrow.stream or application/vnd.apache.parquet",
        ));
    }
    Ok(Some((ACCEPT, value.clone())))
}

/// What a read is asked for whose rows stay in a session.
#[derive(Serialize)]
struct KeepBody<'a> {
    sql: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    session: Uuid,
    keep: bool,
}

/// The engine's body of a request whose rows are to be kept in a session; parameters as they came.
pub(super) fn keep_body(checked: &Checked, session: Uuid) -> Result<Bytes, ApiError> {
    let QueryBody { params, timeout_ms, .. } = parse_object(&checked.body)?;
    let body = KeepBody { sql: &checked.sql, params, timeout_ms, session, keep: true };
    serde_json::to_vec(&body).map(Into::into).map_err(|error| ApiError::internal("a body does not serialise", error))
}

/// What begins a statement that tells of the catalog, or stands in one. Kept rows are in the catalog themselves, and would be told of.
const CATALOG: [&str; 5] = ["information_schema", "duckdb_", "pg_", "sqlite_", "pragma_"];

/// Whether it is one statement that is proved to read, and to read data.
pub(super) fn is_lone_read(sql: &str) -> bool {
    let of_data = |statement: &engine::sql::Statement<'_>| {
        let text = statement.text.to_ascii_lowercase();
        statement.kind == Kind::Read
            && !["show", "describe", "desc", "summarize"].contains(&statement.first.as_str())
            && !CATALOG.iter().any(|word| text.contains(word))
    };
    engine::sql::split(sql).is_ok_and(|statements| matches!(statements.as_slice(), [one] if of_data(one)))
}

/// Whether our own lexer proves that nothing in the script writes.
fn only_reads(sql: &str) -> bool {
    engine::sql::split(sql).is_ok_and(|statements| statements.iter().all(|statement| statement.kind.is_read()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_the_same_as_nothing_and_an_array_is_no_object() {
        let body = br#"{"sql": "select 1", "params": null, "timeout_ms": null, "durability": null, "max_rows": null}"#;
        let parsed: QueryBody = parse_object(body).expect("an object");
        assert!(parsed.timeout_ms.is_none() && parsed.durability.is_none());
        let error = parse_object::<QueryBody>(br#" ["delete from t", null, 5000]"#).err().expect("refused");
        assert_eq!(error.code, Code::Invalid);
    }

    #[test]
    fn only_the_rows_of_a_lone_read_of_data_are_kept() {
        for sql in ["from t", "with a as (select 1) from a;", "pivot t on a using count(*)", "values (1) -- one"] {
            assert!(is_lone_read(sql), "{sql}");
        }
        for sql in
            ["from t; from u", "show tables", "from DuckDB_Tables()", "insert into t values (1)", "explain from t", ""]
        {
            assert!(!is_lone_read(sql), "{sql}");
        }
    }

    #[test]
    fn only_proved_reads_count_as_reads() {
        assert!(only_reads("select 1; from range(3)"));
        assert!(!only_reads("select 1; insert into t values (1)"));
        assert!(!only_reads("select nextval('s')"));
        assert!(!only_reads("select 'unterminated"));
    }
}
