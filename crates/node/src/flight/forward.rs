//! Calls about a mart that another, living node serves: sent on as they come, answered as that node answers, streams and trailers
//! included.
//!
//! Nothing is looked into but metadata. A call is sent on once. What a client has open there ends with its connection here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use uuid::Uuid;

use super::Flight;
use super::call::{Call, SESSION};
use super::frames::framed;
use super::status::refusal;
use crate::cluster::{Elsewhere, Peer};
use crate::error::{ApiError, Code, Outcome};
use crate::tls::{Client, Spoken, connector};

/// Marks a call that a node has sent on.
const FORWARDED: HeaderName = HeaderName::from_static("tarn-forwarded");
/// What another node may send of one answer before it was taken here.
const WINDOW: u32 = 1 << 20;
const ACTION: &str = "/arrow.flight.protocol.FlightService/DoAction";

/// Connections to other nodes.
#[derive(Clone)]
pub(super) struct Forwarder {
    flight: Arc<Flight>,
    client: Client,
    /// Connections of clients whose end another node is told of.
    watched: Arc<Mutex<HashSet<(Uuid, Peer)>>>,
}

impl Forwarder {
    pub(super) fn new(flight: Arc<Flight>) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new())
            .http2_only(true)
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(16 * WINDOW)
            .build(connector(&flight.app.trust, Spoken::Http2));
        Self { flight, client, watched: Arc::default() }
    }

    async fn send(&self, mut request: Request, call: Call, place: &Elsewhere, to: Peer) -> Response {
        *request.uri_mut() = to.uri(request.uri().path_and_query().cloned());
        *request.version_mut() = Version::HTTP_2;
        // Over there the connection is ours, and of many clients.
        name_place(request.headers_mut(), &call);
        self.watch(request.headers(), &call, &to);
        match self.client.request(request).await {
            Ok(response) => response.map(Body::new),
            // Nothing was sent.
            Err(error) if error.is_connect() => refusal(place.refusal()),
            Err(error) => {
                tracing::warn!(%error, "a call that was sent on got no answer");
                refusal(
                    ApiError::new(Code::Unavailable, "the node that serves this mart went away with the call")
                        .hint("look whether the change is there before you send it again")
                        .outcome(Outcome::Unknown),
                )
            }
        }
    }

    /// Closes the client's session over there when its connection ends.
    fn watch(&self, headers: &HeaderMap, call: &Call, to: &Peer) {
        let Some(closed) = call.place.closed.clone() else { return };
        let key = (call.place.id, to.clone());
        if !self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return;
        }
        let mut request = Request::new(Body::from(framed(&arrow_flight::Action::new("CloseSession", Vec::new()))));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = to.uri(Some(PathAndQuery::from_static(ACTION)));
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers.clone();
        request.headers_mut().remove("grpc-timeout");
        let this = self.clone();
        tokio::spawn(async move {
            closed.cancelled().await;
            this.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            // If it does not arrive, the session ends when it is idle.
            let _ = this.client.request(request).await;
        });
    }
}

/// Sends a call on if another node serves its mart and says where it is reached; else it is answered here. Before anything of it is
/// read: what nobody may ask takes no memory.
pub(super) async fn to_its_node(State(forwarder): State<Forwarder>, request: Request, next: Next) -> Response {
    // It names itself in its message.
    if request.uri().path().ends_with("/Handshake") {
        return next.run(request).await;
    }
    let call = match Call::of(&forwarder.flight.app, request.headers(), request.extensions()) {
        Ok(call) => call,
        Err(error) => return refusal(error),
    };
    if !request.headers().contains_key(FORWARDED)
        && let Some((place, to)) = elsewhere(&forwarder.flight, &call).await
    {
        return forwarder.send(request, call, &place, to).await;
    }
    next.run(request).await
}

/// Where the mart is served.
async fn elsewhere(flight: &Flight, call: &Call) -> Option<(Elsewhere, Peer)> {
    let mart = flight.app.mart(&call.mart).await.ok()?;
    // It may be about to be opened here.
    let _ = mart.live().await;
    let place = mart.elsewhere()?;
    let to = place.advertise.clone()?;
    Some((place, to))
}

fn name_place(headers: &mut HeaderMap, call: &Call) {
    headers.remove(HOST);
    headers.insert(FORWARDED, HeaderValue::from_static("1"));
    if call.place.closed.is_some()
        && let Ok(place) = HeaderValue::from_str(&call.place.id.to_string())
    {
        headers.insert(SESSION, place);
    }
}
