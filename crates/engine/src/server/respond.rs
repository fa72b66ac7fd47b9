//! Responses: heads from answers and failures, bodies of any origin.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame, SizeHint};
use serde::Serialize;

use crate::{
    failure::Failure,
    pipe::{Broken, Pieces, PipeBody},
    queries::Canceller,
    wire::ErrorBody,
};

/// The body of a response.
pub enum Body {
    /// All there.
    Pieces(Pieces),
    /// Made while it is sent; dropping it before its end cancels the query.
    Pipe(PipeBody, #[expect(dead_code, reason = "only its drop counts")] Canceller),
    /// The feed of commits.
    Feed(super::commits::Feed),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Pieces(body) => Pin::new(body).poll_frame(context),
            Self::Pipe(body, _) => Pin::new(body).poll_frame(context),
            Self::Feed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Pieces(body) if body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Pieces(body) => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

/// 200 with JSON.
pub fn json(value: &impl Serialize) -> Response<Body> {
    with_json(StatusCode::OK, value)
}

/// A failure of which nothing is committed.
pub fn failed(failure: &Failure) -> Response<Body> {
    error(&failure.body(0, false))
}

/// A failure.
pub fn error(body: &ErrorBody) -> Response<Body> {
    with_json(StatusCode::from_u16(body.code.status()).expect("the contract's statuses are valid"), body)
}

fn with_json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("plain structs have a JSON form");
    let mut response = Response::new(Body::Pieces(Pieces::new(vec![bytes.into()])));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
