//! A visit's answer on its way out: passed on untouched, counted, and broken off when the visit is cut.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};

use super::{Cut, Guest, Visit};
use crate::error::Code;
use crate::flight;

type Piece = Option<Result<Frame<Bytes>, axum::Error>>;

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// All of it was sent.
    Whole,
    /// It broke off with this code.
    Broken(Code),
    /// A gRPC stream ended with an error: its code in the contract's words, if it has one.
    Status(Option<String>),
    /// The client went away.
    Left,
}

/// Is told once how an answer ended and how many bytes it had.
type Over = Box<dyn FnOnce(Ended, u64) + Send>;

/// The body of an answer.
pub struct Answer {
    visit: Arc<Visit>,
    grpc: bool,
    bytes: u64,
    ended: Option<Ended>,
    over: Option<Over>,
    /// Registered until the answer has ended.
    _guest: Option<Guest>,
}

impl Answer {
    /// A body that goes out for this visit, which is a guest until it has ended.
    pub fn new(body: Body, visit: Arc<Visit>, grpc: bool, guest: Option<Guest>, over: Over) -> Self {
        let ended = body.is_end_stream().then_some(Ended::Whole);
        *visit.body() = Some(body);
        if visit.why_cut().is_some() {
            // Cut in between: there was nothing to take away then.
            let late = visit.body().take();
            drop(late);
        }
        Self { visit, grpc, bytes: 0, ended, over: Some(over), _guest: guest }
    }

    fn broken(&mut self, why: Cut) -> Poll<Piece> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        let error = why.error();
        self.ended = Some(Ended::Broken(error.code));
        Poll::Ready(Some(match self.grpc {
            true => Ok(Frame::trailers(flight::trailers(error))),
            false => Err(axum::Error::new(error)),
        }))
    }

    fn look_at(&mut self, piece: &Piece) {
        match piece {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.ended = Some(status(trailers).map_or(Ended::Whole, Ended::Status));
                }
            }
            Some(Err(error)) => self.ended = Some(Ended::Broken(code_of(error))),
            None => {
                self.ended.get_or_insert(Ended::Whole);
            }
        }
    }
}

/// The word of a gRPC status that is no success.
pub fn status(headers: &HeaderMap) -> Option<Option<String>> {
    let failed = headers.get("grpc-status").is_some_and(|status| status != HeaderValue::from_static("0"));
    let word = || headers.get("tarn-code").and_then(|word| word.to_str().ok()).map(str::to_owned);
    failed.then(word)
}

fn code_of(error: &axum::Error) -> Code {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(known) = this.downcast_ref::<crate::error::ApiError>() {
            return known.code;
        }
        cause = this.source();
    }
    // The engine broke it off, and says why in its own log only.
    Code::Unavailable
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        let visit = self.visit.clone();
        visit.waker.register(context.waker());
        if let Some(why) = visit.why_cut() {
            return self.broken(why);
        }
        let polled = {
            let mut body = visit.body();
            body.as_mut()
                .map(|body| Pin::new(&mut *body).poll_frame(context).map(|piece| (piece, body.is_end_stream())))
        };
        match polled {
            None => self.broken(visit.why_cut().unwrap_or(Cut::Over)),
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready((piece, last))) => {
                self.look_at(&piece);
                if last {
                    // Nobody may ask for more.
                    self.ended.get_or_insert(Ended::Whole);
                }
                Poll::Ready(piece)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.visit.why_cut().is_none() && self.visit.body().as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.visit.body().as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let body = self.visit.body().take();
        drop(body);
        let left = || self.visit.why_cut().map_or(Ended::Left, |why| Ended::Broken(why.error().code));
        let ended = self.ended.take().unwrap_or_else(left);
        if let Some(over) = self.over.take() {
            over(ended, self.bytes);
        }
    }
}
