//! Arrow Flight SQL, on the port of everything else: checks, translates and hands on, as `http` does for its paths.
//!
//! It never decodes a result. What clients carry (tickets, handles) is signed; what the node remembers for them (prepared statements,
//! answers, sessions) is bounded, expires, and is bound to who asked.
//!
//! **Invariant:** a statement that may write runs once per call that runs it, never because a ticket is presented.

mod actions;
mod call;
mod cancel;
mod forward;
mod frames;
mod get;
mod held;
mod ingest;
mod metadata;
mod options;
mod paper;
mod prepared;
mod put;
mod run;
mod service;
mod sessions;
mod statements;
mod status;
pub mod untrusted;

pub(crate) use get::{broken, failure};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use http::HeaderValue;
use http::header::SET_COOKIE;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::connection::ConnectionId;
use crate::error::ApiError;

pub(crate) use status::{refusal, trailers};

/// A client's message at most: a batch of a bulk load, most likely. It is in memory as a whole.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Any other message at most: a command with its SQL.
const MAX_COMMAND_BYTES: usize = 4 << 20;
/// A handshake's message at most: a name and a token. Anybody can send one.
const MAX_HANDSHAKE_BYTES: usize = 20 << 10;
/// How often what is idle is forgotten.
const LOOK: Duration = Duration::from_secs(10);

/// What the node's Flight clients have here.
pub struct Flight {
    app: Arc<App>,
    sessions: sessions::Sessions,
    statements: prepared::Statements,
    held: held::HeldAnswers,
    cancels: cancel::Cancels,
}

impl Flight {
    /// Nobody has anything yet.
    pub fn new(app: Arc<App>) -> Arc<Self> {
        Arc::new(Self {
            app,
            sessions: sessions::Sessions::new(),
            statements: prepared::Statements::default(),
            held: held::HeldAnswers::default(),
            cancels: cancel::Cancels::default(),
        })
    }

    /// Forgets what is idle and closes what nobody uses any more, until cancelled.
    pub async fn tend(&self, stop: CancellationToken) {
        let forget = async {
            loop {
                tokio::time::sleep(LOOK).await;
                self.sessions.expire();
                self.statements.expire();
                self.held.expire();
                self.cancels.expire();
            }
        };
        tokio::select! {
            () = forget => {}
            () = self.close_ended() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Drops what principals have here that may not be here any more. Their sessions in engines are ended there.
    pub(crate) fn forget(&self, gone: &HashSet<String>) {
        self.sessions.forget(gone);
        self.statements.forget(gone);
        self.held.forget(gone);
    }

    async fn seal(&self) -> Result<paper::Seal, ApiError> {
        paper::Seal::of(&self.app).await
    }
}

/// The routes of the gRPC service.
pub fn routes(flight: Arc<Flight>) -> Router {
    let service = |max_bytes| {
        FlightServiceServer::new(service::Service(flight.clone()))
            .max_decoding_message_size(max_bytes)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    };
    Router::new()
        .route("/arrow.flight.protocol.FlightService/DoGet", post(get::do_get))
        .route_service("/arrow.flight.protocol.FlightService/DoPut", service(MAX_MESSAGE_BYTES))
        .route_service("/arrow.flight.protocol.FlightService/Handshake", service(MAX_HANDSHAKE_BYTES))
        .route_service("/arrow.flight.protocol.FlightService/{*call}", service(MAX_COMMAND_BYTES))
        .layer(from_fn_with_state(forward::Forwarder::new(flight.clone()), forward::to_its_node))
        .layer(from_fn(with_cookie))
        .with_state(flight)
}

/// Gives clients that keep cookies one that names their place, so that it outlives their connection.
async fn with_cookie(request: Request, next: Next) -> Response {
    let place = request.extensions().get::<ConnectionId>().map(|connection| connection.id);
    let has_one = call::cookie(request.headers()).is_some() || request.headers().contains_key(call::SESSION);
    let mut response = next.run(request).await;
    if let (Some(place), false) = (place, has_one)
        && let Ok(cookie) = HeaderValue::from_str(&format!("{}={place}; Path=/; HttpOnly", call::SESSION))
    {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}
