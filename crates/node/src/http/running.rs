//! `GET /v1/queries/{id}` tells how far a query is, `DELETE` cancels it.

use axum::extract::{Path, State};
use axum::response::Response;
use http::Method;
use serde_json::json;

use super::{Caller, Shared, json};
use crate::error::ApiError;
use crate::running::unknown;

pub(super) async fn progress(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let answer: engine::wire::Progress = app.running.ask(&caller, parsed(&id)?, Method::GET).await?;
    Ok(json(json!({"id": id, "state": "running", "progress": answer.progress})))
}

pub(super) async fn cancel(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let _: serde::de::IgnoredAny = app.running.ask(&caller, parsed(&id)?, Method::DELETE).await?;
    Ok(json(json!({"id": id, "cancelled": true})))
}

fn parsed(id: &str) -> Result<uuid::Uuid, ApiError> {
    id.parse().map_err(|_| unknown())
}
