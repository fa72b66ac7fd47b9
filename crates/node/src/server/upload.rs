//! Bodies of requests that end only if the client has ended them.
//!
//! hyper takes some resets of an HTTP/2 stream for the end of its body. **Invariant:** a body that was cut gives an error, and one that
//! nothing below it takes for an end.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::Version;
use http_body::{Frame, SizeHint};

/// The client reset the stream, or its connection broke.
#[derive(Debug, thiserror::Error)]
#[error("the client broke it off")]
struct Cut;

/// The request with a body that does not end when it is cut.
pub(super) async fn whole(request: Request) -> Request {
    match request.version() {
        Version::HTTP_2 => request.map(|body| Body::new(Whole { body, cut: false })),
        // Lengths and chunks tell there.
        _ => request,
    }
}

struct Whole {
    body: Body,
    cut: bool,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.cut {
            return Poll::Ready(None);
        }
        match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
            // The client's END_STREAM has come.
            None if self.body.is_end_stream() => return Poll::Ready(None),
            None => {}
            // tonic would take a source that says "cancelled" for an end.
            Some(Err(error)) => tracing::debug!(%error, "an upload broke"),
        }
        self.cut = true;
        Poll::Ready(Some(Err(axum::Error::new(Cut))))
    }

    fn is_end_stream(&self) -> bool {
        !self.cut && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
