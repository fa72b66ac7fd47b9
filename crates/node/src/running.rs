//! Queries that run: which there are, whose they are, and how to ask their engines about them.
//!
//! A query counts as running until its answer is sent or given up. Only its owner and an administrator learn that it exists.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use engine::wire::{Progress, header};
use http::{HeaderValue, Method};
use http_body::{Frame, SizeHint};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::admission::Place;
use crate::auth::Principal;
use crate::engine_client;
use crate::error::{ApiError, Code};
use crate::names::{MartId, Tenant};
use crate::room::Asked;
use crate::watcher::Live;

/// Queries whose answer has not ended, by id.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashMap<Uuid, Owned>>>);

/// Who runs a query, and where.
#[derive(Clone)]
pub(crate) struct Owned {
    pub principal: String,
    pub mart: MartId,
    pub live: Arc<Live>,
    pub since: Instant,
}

/// A query's entry among the running, until dropped.
pub(crate) struct Entry(Running, Uuid, #[expect(dead_code, reason = "held until the answer has ended")] Holds);

/// What a running query holds: its places, and the size that its engine has for it.
type Holds = (Place, Asked);

impl Entry {
    /// The answer's body, which keeps the entry until its end.
    pub(crate) fn until_sent(self, body: Body) -> Body {
        Body::new(Tracked { body, _entry: self })
    }
}

/// An answer whose query counts as running until it is sent or given up.
struct Tracked {
    body: Body,
    _entry: Entry,
}

impl Running {
    pub(crate) fn add(&self, id: Uuid, owned: Owned, holds: Holds) -> Result<Entry, ApiError> {
        let mut running = self.lock();
        if running.contains_key(&id) {
            return Err(ApiError::new(Code::Conflict, "a query with this id is running"));
        }
        owned.live.running.fetch_add(1, Ordering::Relaxed);
        running.insert(id, owned);
        Ok(Entry(self.clone(), id, holds))
    }

    /// Asks the engine that runs a query about it. Only its owner, who may still enter its mart, and an administrator learn that it
    /// exists.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        caller: &Principal,
        id: Uuid,
        method: Method,
    ) -> Result<T, ApiError> {
        let owned = self.get(id).ok_or_else(unknown)?;
        let own = owned.principal == caller.id && caller.role_in(&owned.mart).is_ok();
        if !own && caller.require_node_admin().is_err() {
            return Err(unknown());
        }
        of_engine(id, owned, method).await
    }

    /// How far a query is that its engine has, if that can be told.
    pub(crate) async fn progress(&self, id: Uuid) -> Option<Option<f64>> {
        let told: Progress = of_engine(id, self.get(id)?, Method::GET).await.ok()?;
        Some(told.progress)
    }

    /// Has its engine stop a query; false if that does not know it, or not yet.
    pub(crate) async fn stop(&self, id: Uuid) -> bool {
        let Some(owned) = self.get(id) else { return false };
        of_engine::<serde::de::IgnoredAny>(id, owned, Method::DELETE).await.is_ok()
    }

    /// Is there one of that id, whoever's it is?
    pub(crate) fn knows(&self, id: Uuid) -> bool {
        self.lock().contains_key(&id)
    }

    /// Tenants that have a query which has run for longer.
    pub(crate) fn longer_than(&self, time: Duration, now: Instant) -> HashSet<Tenant> {
        let running = self.lock();
        let long = running.values().filter(|owned| now.saturating_duration_since(owned.since) > time);
        long.map(|owned| owned.mart.tenant.clone()).collect()
    }

    fn get(&self, id: Uuid) -> Option<Owned> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Owned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn of_engine<T: DeserializeOwned>(id: Uuid, owned: Owned, method: Method) -> Result<T, ApiError> {
    let mut request = engine_client::request(method, &format!("/queries/{id}"), Bytes::new());
    let owner = HeaderValue::from_str(&owned.principal).map_err(|_| unknown())?;
    request.headers_mut().insert(header::PRINCIPAL, owner);
    owned.live.engine.client().ask(request).await.map_err(|_| unknown())
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
        if let Some(owned) = self.0.lock().remove(&self.1) {
            owned.live.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Why nothing is told of a query.
pub(crate) fn unknown() -> ApiError {
    ApiError::new(Code::NotFound, "no such query").hint("it may have ended already")
}
