//! `/healthz` says that the process lives, `/readyz` that it takes requests. Open to everybody, and saying nothing else.

use std::sync::atomic::Ordering;

use axum::extract::State;

use super::Shared;
use crate::error::{ApiError, Code};

pub(super) async fn alive() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(app): State<Shared>) -> Result<&'static str, ApiError> {
    if app.ready.load(Ordering::Relaxed) {
        return Ok("ready\n");
    }
    Err(ApiError::new(Code::Unavailable, "the server is shutting down"))
}
