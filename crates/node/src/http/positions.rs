//! `GET …/positions/{position}?wait_ms=`: whether a commit is in the object store, now or within a while.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use replica::Position;
use serde::Deserialize;
use serde_json::json;

use super::{Caller, Shared, json, mart_id};
use crate::error::{ApiError, Code};
use crate::watcher::Landed;

/// Longer waits are asked for again.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    #[serde(default)]
    wait_ms: u64,
}

pub(super) async fn show(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart, position)): Path<(String, String, String)>,
    wait: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.role_in(&id)?;
    let position: Position = position
        .parse()
        .map_err(|error: replica::position::BadPosition| ApiError::new(Code::Invalid, error.to_string()))?;
    let Query(wait) = wait.map_err(|error| ApiError::new(Code::Invalid, error.body_text()))?;
    let mart = app.mart(&id).await?;
    // The mart must be open for its progress to mean something.
    mart.live().await?;
    let landed = mart.landed(position, Duration::from_millis(wait.wait_ms).min(MAX_WAIT)).await;
    if landed != Landed::Durable {
        mart.still_ours().await?;
    }
    if landed == Landed::Lost {
        return Err(ApiError::new(Code::NotFound, "the position does not belong to the mart's present history")
            .hint("the mart was restored or reopened since; look whether the change is there"));
    }
    let durable = mart.watcher().progress().durable;
    Ok(json(json!({"position": position, "durable": landed == Landed::Durable, "durable_position": durable})))
}
