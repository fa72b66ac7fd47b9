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
use crate::watcher::Phase;

pub(super) async fn show(State(app): State<Shared>, Caller(caller): Caller) -> Result<Response, ApiError> {
    caller.require_node_admin()?;
    Ok(page(&app).await)
}

/// The page alone, for whoever can connect.
pub fn open_routes(app: Shared) -> Router {
    Router::new()
        .route("/metrics", get(|State(app): State<Shared>| async move { page(&app).await }))
        .fallback(|| async { ApiError::new(Code::NotFound, "only `/metrics` is here") })
        .with_state(app)
}

async fn page(app: &App) -> Response {
    let fetched = app.followers.fetched_bytes();
    let mut text = app.metrics.page(&app.marts.ground().gateway.traffic(), fetched, Instant::now());
    text.push_str(&metrics::admission(&app.admission.counts()));
    let (state_dir, places, objects) = (app.config.state_dir.clone(), app.places(), app.metrics.objects());
    match tokio::task::spawn_blocking(move || metrics::usage(&state_dir, &places, &objects)).await {
        Ok(usage) => text.push_str(&usage),
        Err(error) => tracing::warn!(%error, "what marts take of the disk could not be read"),
    }
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

impl App {
    /// Marts whose engines run here.
    fn places(&self) -> Vec<metrics::Place> {
        let place = |id| match &*self.marts.get(&id)?.watcher().phase() {
            Phase::Ready(live) => Some(metrics::Place { dir: live.dir.clone(), pid: live.engine.pid(), id }),
            _ => None,
        };
        self.marts.open_ids().into_iter().filter_map(place).collect()
    }

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
