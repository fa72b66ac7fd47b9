//! `DoGet`: a route of its own, so that the engine's frames reach the client without being taken apart.
//!
//! **Invariant:** a stream that did not end well at the engine never ends with `grpc-status` 0.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_flight::Ticket;
use arrow_flight::sql::{Any, ProstMessageExt, TicketStatementQuery};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use engine::wire::{QueryRequest, header};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use prost::Message;
use tokio_util::sync::WaitForCancellationFutureOwned;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::cancel::Watched;
use super::frames::only_message;
use super::paper::{Matter, Read, garbled};
use super::run::{Asked, told};
use super::status::{refusal, trailers};
use crate::error::{ApiError, Code};
use crate::router;
use crate::visit;

/// A ticket with the longest SQL and parameters that it carries.
const MAX_TICKET_BYTES: usize = 1 << 20;
/// Answer metadata that may come only at the end of a stream.
const AT_THE_END: [HeaderName; 2] = [router::POSITION, router::DURABLE];

/// The route.
pub(super) async fn do_get(State(flight): State<Arc<Flight>>, request: Request) -> Response {
    answer(&flight, request).await.unwrap_or_else(refusal)
}

async fn answer(flight: &Arc<Flight>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let call = Call::of(&flight.app, &head.headers, &head.extensions)?;
    let body = axum::body::to_bytes(body, MAX_TICKET_BYTES)
        .await
        .map_err(|_| ApiError::new(Code::Invalid, "the ticket is too long or was not sent whole"))?;
    let ticket: Ticket = only_message(&body)?;
    let (call, matter) = flight.seal().await?.read(call, &handle_of(&ticket)?)?;
    let id = match &matter {
        Matter::Read(read) => read.id,
        Matter::Held(id) => *id,
        _ => Uuid::new_v4(),
    };
    let watched = flight.cancels.watch(&call.principal.id, id)?;
    let (told, body) = match matter {
        Matter::Read(read) => {
            let response = tokio::select! {
                response = read_now(flight, call, watched.query(), read) => response?,
                () = watched.cancelled() => return Err(super::cancel::cancelled()),
            };
            (told(response.headers()), response.into_body())
        }
        Matter::Held(id) => flight.held.give(&call, id)?,
        Matter::Meta(command) => (HeaderMap::new(), super::metadata::answer(flight, &call, &command.0).await?.into()),
        Matter::Prepared(_) | Matter::Transaction(_) => return Err(garbled()),
    };
    let mut response = Response::new(Body::new(Answer::new(body, watched)));
    *response.headers_mut() = told;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

async fn read_now(flight: &Arc<Flight>, call: Call, id: Uuid, read: Read) -> Result<Response, ApiError> {
    let call = Call { at: read.at, ..call };
    visit::asks(&read.sql, None, call.at.as_deref());
    let request = QueryRequest { sql: read.sql, params_arrow: read.params_arrow, ..Default::default() };
    flight.run(&call, Asked::stream(id, &request)?).await
}

/// A ticket as clients carry it.
pub(super) fn ticket_of(handle: Bytes) -> Ticket {
    Ticket { ticket: TicketStatementQuery { statement_handle: handle }.as_any().encode_to_vec().into() }
}

/// What of a ticket is ours.
pub(super) fn handle_of(ticket: &Ticket) -> Result<Bytes, ApiError> {
    let any = Any::decode(&*ticket.ticket).map_err(|_| garbled())?;
    let query: Option<TicketStatementQuery> = any.unpack().map_err(|_| garbled())?;
    query.map(|query| query.statement_handle).ok_or_else(garbled)
}

/// What an engine's trailers say went wrong.
pub(crate) fn failure(trailers: &HeaderMap) -> Option<ApiError> {
    let text = trailers.get(header::ERROR)?.as_bytes();
    let text = percent_decoded(text);
    Some(
        serde_json::from_slice(&text)
            .unwrap_or_else(|error| ApiError::internal("an engine's error can't be read", error)),
    )
}

/// Why an engine's body broke.
pub(crate) fn broken(error: axum::Error) -> ApiError {
    let error = error.into_inner();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(this) = cause {
        if let Some(known) = this.downcast_ref::<ApiError>() {
            return known.clone();
        }
        cause = this.source();
    }
    tracing::debug!(%error, "an engine's answer broke");
    ApiError::new(Code::Unavailable, "the answer broke off: the mart's engine ended, or could not go on")
        .hint("what came is not whole; send the query again")
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let hex = text.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| byte == b'%') {
            Some(value) => {
                bytes.push(value);
                at += 3;
            }
            None => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    bytes
}

/// A body for a gRPC client: the engine's data as it is, then how it ended.
struct Answer {
    body: Option<Body>,
    watched: Watched,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl Answer {
    fn new(body: Body, watched: Watched) -> Self {
        let cancelled = Box::pin(watched.token().cancelled_owned());
        Self { body: Some(body), watched, cancelled, ended: false }
    }

    fn end(&mut self, trailers: HeaderMap) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.body = None;
        self.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.watched.token().is_cancelled() || self.cancelled.as_mut().poll(context).is_ready() {
            return self.end(trailers(super::cancel::cancelled()));
        }
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = match Pin::new(body).poll_frame(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        let told = match frame {
            None => HeaderMap::new(),
            Some(Err(error)) => return self.end(trailers(broken(error))),
            Some(Ok(frame)) => match frame.into_trailers() {
                Err(data) => return Poll::Ready(Some(Ok(data))),
                Ok(told) => told,
            },
        };
        if let Some(error) = failure(&told) {
            return self.end(trailers(error));
        }
        let known = AT_THE_END.into_iter().filter_map(|name| Some((name.clone(), told.get(&name)?.clone())));
        let mut end: HeaderMap = known.collect();
        end.insert("grpc-status", HeaderValue::from_static("0"));
        self.end(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_that_encodes_nothing_is_itself() {
        assert_eq!(percent_decoded(b"a%20b%zz%2"), b"a b%zz%2");
        assert_eq!(percent_decoded("%C3%A9".as_bytes()), "é".as_bytes());
    }

    #[test]
    fn an_engines_error_in_the_trailers_is_never_an_end() {
        let mut told = HeaderMap::new();
        assert!(failure(&told).is_none());
        told.insert(header::ERROR, HeaderValue::from_static("nonsense"));
        assert_eq!(failure(&told).map(|error| error.code), Some(Code::Internal));
    }
}
