//! Sessions: opening and closing an engine's connection of one's own. What runs there are plain queries.
//!
//! The engine binds a session to its principal and ends it when it is idle; the node remembers none.

use std::time::Duration;

use bytes::Bytes;
use engine::wire::{Role, SessionRequest};
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use uuid::Uuid;

use super::{MAX_ERROR_BYTES, identify};
use crate::engine_client::{ClientError, request};
use crate::error::{ApiError, Code};
use crate::watcher::Live;

/// Closing waits for what runs there to be interrupted.
const DEADLINE: Duration = Duration::from_secs(30);

/// Who asks, and as what.
#[derive(Debug, Clone)]
pub struct Who {
    /// The principal's id.
    pub principal: String,
    /// What it may do in the mart.
    pub role: Role,
}

/// Opens a session with a new random id.
pub async fn open_session(live: &Live, who: &Who) -> Result<Uuid, ApiError> {
    let id = Uuid::new_v4();
    let body = serde_json::to_vec(&SessionRequest { id }).expect("an id serialises");
    tell(live, who, request(Method::POST, "/sessions", body.into())).await.map(|()| id)
}

/// Closes a session, and rolls back what is open there.
pub async fn close_session(live: &Live, who: &Who, id: Uuid) -> Result<(), ApiError> {
    tell(live, who, request(Method::DELETE, &format!("/sessions/{id}"), Bytes::new())).await
}

/// Closes all sessions of a principal that may not be here any more, and stops all its queries.
pub async fn end_principal(live: &Live, principal: &str) -> Result<(), ApiError> {
    let who = Who { principal: principal.to_owned(), role: Role::Reader };
    tell(live, &who, request(Method::DELETE, "/principal", Bytes::new())).await
}

async fn tell(live: &Live, who: &Who, mut request: Request<axum::body::Body>) -> Result<(), ApiError> {
    identify(request.headers_mut(), &who.principal, who.role);
    let told = tokio::time::timeout(DEADLINE, async {
        let response = live.engine.client().send(request).await?;
        let success = response.status().is_success();
        let body = Limited::new(response.into_body(), MAX_ERROR_BYTES).collect().await;
        body.map(|body| (success, body.to_bytes())).map_err(|_| ClientError::Lost)
    });
    match told.await {
        Ok(Ok((true, _))) => Ok(()),
        Ok(Ok((false, body))) => Err(serde_json::from_slice(&body)
            .unwrap_or_else(|cause| ApiError::internal("an engine's error can't be read", cause))),
        Ok(Err(ClientError::Unsent | ClientError::Lost)) => {
            Err(ApiError::new(Code::Unavailable, "the mart's engine is restarting").hint("try again in a moment"))
        }
        Err(_) => Err(ApiError::new(Code::Timeout, "the mart's engine does not answer").hint("try again in a moment")),
    }
}
