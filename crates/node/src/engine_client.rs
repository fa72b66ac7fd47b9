//! HTTP/1.1 to one engine over its unix socket, with connections kept for reuse.
//!
//! A connection serves one request at a time; dropping an answer before its end closes its connection, which is how an engine learns
//! that nobody waits any more. Nothing is sent twice, except a request of which no byte had left.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body as Outgoing;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

type Sender = SendRequest<Outgoing>;

/// Connections that are kept; an engine runs fewer queries than that at once.
const MAX_IDLE: usize = 64;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing reached the engine.
    #[error("the engine can't be reached")]
    Unsent,
    /// The engine went away with the request; it may have run.
    #[error("the engine went away")]
    Lost,
}

/// Why a call of the node's own has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The engine said no.
    #[error("the engine answered {status}: {message}")]
    Refused {
        /// Its HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// The answer is not what was agreed on.
    #[error("the engine's answer can't be read")]
    Answer(#[from] serde_json::Error),
}

/// The way to one engine. Cheap to clone; ends with the engine's life.
#[derive(Clone)]
pub struct EngineClient {
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    idle: Mutex<Vec<Sender>>,
}

impl EngineClient {
    /// For the engine that listens there.
    pub fn new(socket: PathBuf) -> Self {
        Self { shared: Arc::new(Shared { socket, idle: Mutex::default() }) }
    }

    /// Sends a request and returns when its answer's head is there.
    pub async fn send(&self, mut request: Request<Outgoing>) -> Result<Response<EngineBody>, ClientError> {
        request.headers_mut().insert(HOST, http::HeaderValue::from_static("engine"));
        loop {
            let idle = self.shared.idle().pop();
            let (mut sender, kept) = match idle {
                Some(sender) => (sender, true),
                None => (self.connect().await.map_err(|_| ClientError::Unsent)?, false),
            };
            if sender.ready().await.is_err() {
                if kept {
                    continue;
                }
                return Err(ClientError::Unsent);
            }
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let shared = self.shared.clone();
                    return Ok(response.map(|body| EngineBody { body, sender: Some(sender), ended: false, shared }));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if kept => request = unsent,
                    Some(_) => return Err(ClientError::Unsent),
                    None => return Err(ClientError::Lost),
                },
            }
        }
    }

    /// `GET path`, JSON back.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// `POST path` with JSON, JSON back.
    pub async fn call<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CallError> {
        self.json(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, CallError> {
        self.ask(request(method, path, body)).await
    }

    /// Sends a request; JSON back.
    pub async fn ask<T: DeserializeOwned>(&self, request: Request<Outgoing>) -> Result<T, CallError> {
        let response = self.send(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|_| ClientError::Lost)?.to_bytes();
        if status.is_success() {
            // An answer without a body reads as null.
            return Ok(serde_json::from_slice(if bytes.is_empty() { b"null" } else { &bytes })?);
        }
        let message =
            serde_json::from_slice::<engine::wire::ErrorBody>(&bytes).map(|error| error.message).unwrap_or_default();
        Err(CallError::Refused { status: status.as_u16(), message })
    }

    async fn connect(&self) -> std::io::Result<Sender> {
        let stream = UnixStream::connect(&self.shared.socket).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(async move {
            // What breaks a connection is told to whoever waits for its answer.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request of the node's own.
pub fn request(method: Method, path: &str, body: Bytes) -> Request<Outgoing> {
    let mut request = Request::new(Outgoing::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("paths are made of literals and UUIDs");
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    request
}

/// An answer's body. Read to its end, it gives its connection back; dropped earlier, it closes it.
pub struct EngineBody {
    body: Incoming,
    sender: Option<Sender>,
    ended: bool,
    shared: Arc<Shared>,
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            self.ended = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for EngineBody {
    fn drop(&mut self) {
        if !(self.ended || self.body.is_end_stream()) {
            return;
        }
        if let Some(sender) = self.sender.take() {
            let mut idle = self.shared.idle();
            if idle.len() < MAX_IDLE {
                idle.push(sender);
            }
        }
    }
}
