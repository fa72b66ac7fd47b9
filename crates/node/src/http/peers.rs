//! Queries that another node runs: asked about at any node, found by asking the others.
//!
//! A query's id does not say where it runs, so a node that does not know it asks each node that gives signs of life and says where it is
//! reached. (To one that does not say so, no request is ever sent on: its queries are those that it took itself.) **Invariant:** no node
//! says that a query does not exist while another one, which may have it, could not be asked.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use uuid::Uuid;

use super::forward::{FORWARDED, Forwarder};
use crate::auth;
use crate::error::{ApiError, Code};

/// Answers for a query that is known here, or nowhere else.
pub(super) async fn from_any_node(
    State(forwarder): State<Forwarder>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
    next: Next,
) -> Response {
    let app = forwarder.app();
    let id: Option<Uuid> = names.get("id").and_then(|id| id.parse().ok());
    let here = id.is_none_or(|id| app.jobs.knows(id) || app.running.knows(id));
    if here || request.headers().contains_key(FORWARDED) || auth::who(request.extensions()).is_err() {
        return next.run(request).await;
    }
    // None of these calls has a body.
    let (parts, body) = request.into_parts();
    match elsewhere(&forwarder, &parts).await {
        Ok(Some(response)) => response,
        Ok(None) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    }
}

/// The answer of the node that knows the query, if one does.
async fn elsewhere(forwarder: &Forwarder, parts: &Parts) -> Result<Option<Response>, ApiError> {
    let silent = || {
        ApiError::new(Code::Unavailable, "this node does not know the query, and another one can't be asked just now")
            .hint("try again, or ask the node that took it")
    };
    let others = forwarder.app().marts.ground().cluster.others().await.map_err(|error| {
        tracing::warn!(%error, "can't see which other nodes there are");
        silent()
    })?;
    let mut all_answered = true;
    for place in others {
        let Some(to) = &place.advertise else { continue };
        let mut copy = Request::new(Body::empty());
        *copy.method_mut() = parts.method.clone();
        *copy.uri_mut() = parts.uri.clone();
        *copy.headers_mut() = parts.headers.clone();
        match forwarder.send(copy, &place, to).await {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {}
            Ok(response) => return Ok(Some(response)),
            Err(_) => all_answered = false,
        }
    }
    if all_answered { Ok(None) } else { Err(silent()) }
}
