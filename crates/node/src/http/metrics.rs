//! `GET /metrics`: for the node's administrator; without a token only on a listener of its own.

use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use tokio_util::sync::CancellationToken;

use super::{App, Caller, Shared};
use crate::error::{ApiError, Code};
use crate::metrics;

pub(super) async fn show(State(app): State<Shared>, Caller(caller): Caller) -> Result<Response, ApiError> {
    caller.require_node_admin()?;
    Ok(page(&app))
}

/// The page alone, for whoever can connect.
pub fn open_routes(app: Shared) -> Router {
    Router::new()
        .route("/metrics", get(|State(app): State<Shared>| async move { page(&app) }))
        .fallback(|| async { ApiError::new(Code::NotFound, "only `/metrics` is here") })
        .with_state(app)
}

fn page(app: &App) -> Response {
    let fetched = app.followers.fetched_bytes();
    let text = app.metrics.page(&app.marts.ground().gateway.traffic(), fetched, Instant::now());
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

impl App {
    /// Looks at the progress of open marts until cancelled.
    pub async fn watch_progress(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(metrics::LOOK_EVERY)).await.is_some() {
            let open: Vec<_> = self
                .marts
                .open_ids()
                .into_iter()
                .filter_map(|id| {
                    let progress = self.marts.get(&id)?.watcher().progress();
                    Some((id, progress.newest, progress.durable))
                })
                .collect();
            self.metrics.see_progress(&open, Instant::now());
            if !self.ready.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}
