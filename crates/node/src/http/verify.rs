//! `POST …/verify`: reads a mart's replica back, and puts back what is damaged. Does not open the mart.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;

use super::{Caller, Shared, json, mart_id, read_json};
use crate::error::ApiError;
use crate::verify::Task;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    repair: bool,
    all: bool,
    trial: bool,
}

pub(super) async fn verify(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id)?;
    let Wanted { repair, all, trial } = read_json(body).await?;
    let verified = app.verifier.verify(&id, app.known(&id).await?, Task { all, repair, trial }).await?;
    Ok(json(serde_json::to_value(verified).map_err(|error| ApiError::internal("a report is JSON", error))?))
}
