//! Queries that run: `GET /v1/queries/{id}` tells how far one is, `DELETE` cancels it.
//!
//! A query counts as running until its answer is sent or given up. Only its owner and an administrator learn that it exists.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use engine::wire::header;
use http::{HeaderValue, Method};
use http_body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use serde_json::json;
use uuid::Uuid;

use super::{Caller, Shared, json};
use crate::auth::Principal;
use crate::engine_client;
use crate::error::{ApiError, Code};
use crate::watcher::Live;

/// Queries whose answer has not ended, by id.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashMap<Uuid, Owned>>>);

/// Who runs a query, and where.
type Owned = (String, Arc<Live>);

/// A query's entry among the running, until dropped.
pub(super) struct Entry(Running, Uuid);

impl Entry {
    /// The answer's body, which keeps the entry until its end.
    pub(super) fn until_sent(self, body: Body) -> Body {
        Body::new(Tracked { body, _entry: self })
    }
}

/// An answer whose query counts as running until it is sent or given up.
struct Tracked {
    body: Body,
    _entry: Entry,
}

impl Running {
    pub(super) fn add(&self, id: Uuid, principal: &str, live: Arc<Live>) -> Result<Entry, ApiError> {
        let mut running = self.lock();
        if running.contains_key(&id) {
            return Err(ApiError::new(Code::Conflict, "a query with this id is running"));
        }
        running.insert(id, (principal.to_owned(), live));
        Ok(Entry(self.clone(), id))
    }

    fn get(&self, id: Uuid) -> Option<Owned> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Owned>> {
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
    let (owner, live) = app.running.get(id).ok_or_else(unknown)?;
    if owner != caller.id && caller.require_node_admin().is_err() {
        return Err(unknown());
    }
    let mut request = engine_client::request(method, &format!("/queries/{id}"), Bytes::new());
    let owner = HeaderValue::from_str(&owner).map_err(|_| unknown())?;
    request.headers_mut().insert(header::PRINCIPAL, owner);
    live.engine.client().ask(request).await.map_err(|_| unknown())
}
