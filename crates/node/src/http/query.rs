//! `POST …/query`: checks a request and hands it to the router; while one runs, `/v1/queries/{id}` tells how far
//! it is (GET) and cancels it (DELETE).
//!
//! The body goes to the engine as it came; the deadline of a body without one goes along as a header.

use std::borrow::Cow;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use engine::sql::Kind;
use engine::wire::{Role, header};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::{Frame, SizeHint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Caller, Shared, json, mart_id, parse_object, read_body};
use crate::auth::Principal;
use crate::engine_client;
use crate::error::{ApiError, Code};
use crate::marts::OpenMart;
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
        let reads_only = role == Role::Reader || only_reads(&parsed.sql);
        let durability = parsed.durability.unwrap_or_default();
        let ask = Ask {
            id,
            principal: caller.id.clone(),
            role,
            durability,
            body,
            timeout,
            headers: passed_on(&headers),
            reads_only,
        };
        let mart = app.mart(&mart_id).await?;
        if mart.holds_writers() && !ask.reads_only {
            mart.writers_may_pass().await;
        }
        let entry = app.running.add(&ask, mart.clone())?;
        let response = router::query(&mart, &ask, app.config.durable_wait).await?;
        Ok(response.map(|body| Body::new(Tracked { body, _entry: entry })))
    };
    named.await.map_err(|error: ApiError| error.request_id(id))
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

/// Queries whose answer has not ended, by id.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashMap<Uuid, (String, Arc<OpenMart>)>>>);

/// A query's entry among the running, until dropped.
struct Entry(Running, Uuid);

/// An answer whose query counts as running until it is sent or given up.
struct Tracked {
    body: Body,
    _entry: Entry,
}

impl Running {
    fn add(&self, ask: &Ask, mart: Arc<OpenMart>) -> Result<Entry, ApiError> {
        let mut running = self.lock();
        if running.contains_key(&ask.id) {
            return Err(ApiError::new(Code::Conflict, "a query with this id is running"));
        }
        running.insert(ask.id, (ask.principal.clone(), mart));
        Ok(Entry(self.clone(), ask.id))
    }

    fn get(&self, id: Uuid) -> Option<(String, Arc<OpenMart>)> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, (String, Arc<OpenMart>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

pub(super) async fn progress(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let answer: engine::wire::Progress = ask_engine(&app, &caller, &id, Method::GET).await?;
    Ok(json(json!({"id": id, "state": "running", "progress": answer.progress})))
}

pub(super) async fn cancel(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let _: serde::de::IgnoredAny = ask_engine(&app, &caller, &id, Method::DELETE).await?;
    Ok(json(json!({"id": id, "cancelled": true})))
}

/// Asks the engine that runs a query about it. Only its owner and an administrator learn that it exists.
async fn ask_engine<T: DeserializeOwned>(
    app: &Shared,
    caller: &Principal,
    id: &str,
    method: Method,
) -> Result<T, ApiError> {
    let unknown = || ApiError::new(Code::NotFound, "no such query").hint("it may have ended already");
    let id: Uuid = id.parse().map_err(|_| unknown())?;
    let (owner, mart) = app.running.get(id).ok_or_else(unknown)?;
    if owner != caller.id && caller.require_node_admin().is_err() {
        return Err(unknown());
    }
    let live = mart.live().await?;
    let mut request = engine_client::request(method, &format!("/queries/{id}"), Bytes::new());
    let owner = HeaderValue::from_str(&owner).map_err(|_| unknown())?;
    request.headers_mut().insert(header::PRINCIPAL, owner);
    live.engine.client().ask(request).await.map_err(|_| unknown())
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
