//! Requests for a mart that another, living node serves: sent on as they come, answered as that node answers.
//!
//! Nothing is buffered or looked into. A request is sent on once: the node that gets it answers itself, or says who serves the mart.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;

use super::{Shared, mart_id};
use crate::auth::{self, Principal};
use crate::cluster::{Elsewhere, Peer};
use crate::error::{ApiError, Code, Outcome};
use crate::tls::{Client, Spoken, connector};

/// Marks a request that a node has sent on.
pub(super) const FORWARDED: HeaderName = HeaderName::from_static("tarn-forwarded");
/// Of one connection, not of the request.
const PER_CONNECTION: [HeaderName; 4] = [CONNECTION, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive")];

/// Marks an answer as another node's: it is whole as it is.
#[derive(Clone)]
pub(super) struct Answered;

/// Connections to other nodes.
#[derive(Clone)]
pub(super) struct Forwarder {
    app: Shared,
    client: Client,
}

impl Forwarder {
    pub(super) fn new(app: Shared) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new()).build(connector(&app.trust, Spoken::Http1));
        Self { app, client }
    }

    /// The node's parts.
    pub(super) fn app(&self) -> &Shared {
        &self.app
    }

    /// Sends the request there.
    pub(super) async fn send(&self, mut request: Request, place: &Elsewhere, to: &Peer) -> Result<Response, ApiError> {
        *request.uri_mut() = to.uri(request.uri().path_and_query().cloned());
        *request.version_mut() = Version::HTTP_11;
        drop_per_connection(request.headers_mut());
        request.headers_mut().remove(HOST);
        request.headers_mut().insert(FORWARDED, HeaderValue::from_static("1"));
        match self.client.request(request).await {
            Ok(mut response) => {
                drop_per_connection(response.headers_mut());
                response.extensions_mut().insert(Answered);
                Ok(response.map(Body::new))
            }
            // Nothing was sent.
            Err(error) if error.is_connect() => Err(place.refusal()),
            Err(error) => {
                tracing::warn!(%error, "a request that was sent on got no answer");
                Err(ApiError::new(Code::Unavailable, "the node that serves this mart went away with the request")
                    .hint("look whether the change is there before you send it again")
                    .outcome(Outcome::Unknown))
            }
        }
    }
}

/// Sends a request on if another node serves its mart and says where it is reached; else the handler answers.
pub(super) async fn to_its_node(
    State(forwarder): State<Forwarder>,
    Path(names): Path<HashMap<String, String>>,
    request: Request,
    next: Next,
) -> Response {
    let asks = if request.headers().contains_key(FORWARDED) { None } else { auth::who(request.extensions()).ok() };
    match elsewhere(&forwarder.app, &names, asks).await {
        Some((place, to)) => match forwarder.send(request, &place, &to).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        },
        None => next.run(request).await,
    }
}

/// Where the mart is served, if it is asked about by somebody who may and whom no other node has sent on. What is wrong with the request is left to the handler to say.
async fn elsewhere(
    app: &Shared,
    names: &HashMap<String, String>,
    asks: Option<Arc<Principal>>,
) -> Option<(Elsewhere, Peer)> {
    let asks = asks?;
    let id = mart_id(names.get("tenant")?, names.get("mart")?).ok()?;
    asks.role_in(&id).ok()?;
    let mart = app.mart(&id).await.ok()?;
    // It may be about to be opened here.
    let _ = mart.live().await;
    let place = mart.elsewhere()?;
    let to = place.advertise.clone()?;
    Some((place, to))
}

fn drop_per_connection(headers: &mut HeaderMap) {
    for name in PER_CONNECTION {
        headers.remove(name);
    }
}
