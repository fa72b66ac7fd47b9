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
use engine::wire::{Role, header};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Caller, Shared, mart_id, parse_object, read_body};
use crate::error::{ApiError, Code};
use crate::marts::OpenMart;
use crate::orders::{Order, Swap, give};
use crate::router::{self, Ask, Durability};

/// The public body. What it borrows is only looked at here; the engine reads the bytes again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody<'a> {
    #[serde(borrow)]
    sql: Cow<'a, str>,
    #[serde(borrow, default, rename = "params")]
    _params: Option<&'a RawValue>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    durability: Option<Durability>,
    /// An earlier moment: an RFC 3339 time, a snapshot's name or a position.
    #[serde(borrow, default)]
    at: Option<Cow<'a, str>>,
    #[serde(default, rename = "max_rows")]
    _max_rows: Option<u64>,
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
        let mart_id = mart_id(&tenant, &mart)?;
        let role = caller.role_in(&mart_id.tenant)?;
        let body = read_body(body).await?;
        let parsed: QueryBody = parse_object(&body)?;
        let timeout = parsed.timeout_ms.map_or(app.config.query_timeout, Duration::from_millis);
        let reads_only = (role == Role::Reader && parsed.at.is_none()) || only_reads(&parsed.sql);
        let durability = parsed.durability.unwrap_or_default();
        let at = parsed.at.map(Cow::into_owned);
        let parsed_sql = parsed.sql.into_owned();
        let ask = Ask {
            path: "/query",
            id,
            principal: caller.id.clone(),
            role,
            durability,
            timeout,
            headers: passed_on(&headers),
            reads_only,
        };
        if let Some(at) = at {
            if !ask.reads_only {
                return Err(ApiError::new(Code::Invalid, "only reads can run at an earlier moment")
                    .hint("branch the mart there, or restore it, to write"));
            }
            let live = app.followers.at(&mart_id, app.known(&mart_id).await?, &at).await?;
            let entry = app.running.add(ask.id, &ask.principal, live.clone())?;
            let response = router::query_past(&live, &ask, body.into()).await?;
            return Ok(response.map(|body| entry.until_sent(body)));
        }
        let mart = app.mart(&mart_id).await?;
        if mart.holds_writers() && !ask.reads_only {
            mart.writers_may_pass().await;
        }
        let (ask, body) = match is_vacuum(&ask, &parsed_sql) {
            true => (Ask { reads_only: true, ..ask }, vacuumed(&mart).await?),
            false => (ask, body),
        };
        let live = mart.live().await?;
        let entry = app.running.add(ask.id, &ask.principal, live.clone())?;
        let response = router::query(&mart, live, &ask, body.into(), app.config.durable_wait).await?;
        Ok(response.map(|body| entry.until_sent(body)))
    };
    named.await.map_err(|error: ApiError| error.request_id(id))
}

/// Whether an administrator asks for a vacuum in SQL: DuckDB's own gives no space back.
fn is_vacuum(ask: &Ask, sql: &str) -> bool {
    let alone = |statements: Vec<engine::sql::Statement<'_>>| matches!(statements.as_slice(), [one] if one.kind == Kind::Vacuum && one.first == "vacuum" && one.text.split_whitespace().count() == 1);
    ask.role == Role::Admin && engine::sql::split(sql).is_ok_and(alone)
}

/// Vacuums; the query that tells what came of it, in whatever form was asked for.
async fn vacuumed(mart: &OpenMart) -> Result<Bytes, ApiError> {
    let swapped = give(mart.orders(), |reply| Order::Swap(Swap::Vacuum { reply })).await?;
    let done = swapped.compacted.ok_or_else(|| ApiError::internal("a vacuum has figures", "none"))?;
    let sql = format!(
        "SELECT {}::UBIGINT AS bytes_before, {}::UBIGINT AS bytes_after, {}::UBIGINT AS tables, {}::UBIGINT AS rows",
        done.bytes_before, done.bytes_after, done.tables, done.rows
    );
    Ok(serde_json::json!({ "sql": sql }).to_string().into())
}

/// The id that the client chose, else a new one.
fn query_id(headers: &HeaderMap) -> Result<Uuid, ApiError> {
    let Some(value) = headers.get(header::QUERY_ID) else { return Ok(Uuid::new_v4()) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| ApiError::new(Code::Invalid, format!("the header `{}` wants a UUID", header::QUERY_ID)))
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let names = [ACCEPT, HeaderName::from_static(header::IDEMPOTENCY_KEY)];
    names.into_iter().filter_map(|name| Some((name.clone(), headers.get(&name)?.clone()))).collect()
}

/// Whether our own lexer proves that nothing in the script writes.
fn only_reads(sql: &str) -> bool {
    engine::sql::split(sql)
        .is_ok_and(|statements| statements.iter().all(|statement| matches!(statement.kind, Kind::Read)))
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
    fn only_proved_reads_count_as_reads() {
        assert!(only_reads("select 1; from range(3)"));
        assert!(!only_reads("select 1; insert into t values (1)"));
        assert!(!only_reads("select nextval('s')"));
        assert!(!only_reads("select 'unterminated"));
    }
}
