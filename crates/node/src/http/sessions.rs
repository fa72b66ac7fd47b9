//! `POST …/sessions` opens a connection of one's own in the mart's engine, `DELETE …/sessions/{id}` closes it.
//!
//! What runs there comes as `POST …/query` with `session`. A session ends with its engine.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Caller, Shared, json, mart_id, parse_object, read_body};
use crate::error::{ApiError, Code};
use crate::router::{self, Who};

/// Nothing can be asked of a session yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSession {}

pub(super) async fn open(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    let who = Who { role: caller.role_in(&id)?, principal: caller.id };
    let body = read_body(body).await?;
    if !body.trim_ascii().is_empty() {
        let NewSession {} = parse_object(&body)?;
    }
    // Held to the end: a mart that somebody has is in use.
    let mart = app.mart(&id).await?;
    let live = mart.live().await?;
    let session = router::open_session(&live, &who).await?;
    let limits = &app.config.engine;
    Ok(json(json!({
        "session": session,
        "idle_ms": millis(limits.session_idle),
        "idle_in_transaction_ms": millis(limits.transaction_idle),
    })))
}

pub(super) async fn close(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart, session)): Path<(String, String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    let who = Who { role: caller.role_in(&id)?, principal: caller.id };
    let session: Uuid = session
        .parse()
        .map_err(|_| ApiError::new(Code::NotFound, "no such session").hint("it may have ended already"))?;
    // Held to the end: a mart that somebody has is in use.
    let mart = app.mart(&id).await?;
    let live = mart.live().await?;
    router::close_session(&live, &who, session).await?;
    Ok(json(json!({"session": session, "closed": true})))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
