//! Uploads that are refused before their end: what is still on its way is read for a while, so that the client gets to see the answer.
//!
//! Most clients send a whole body before they read; one that is cut off in between reports a broken pipe instead of the refusal.
//! **Invariant:** bounded in bytes and time, and nothing is asked for that the client has not begun to send.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header::EXPECT;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

/// So much is read on at most.
const MOST_BYTES: usize = 64 << 20;
/// For so long at most.
const LONGEST: Duration = Duration::from_secs(5);

/// Lends the request's body to its handler, and reads what that has left of it before the answer goes out.
pub(super) async fn the_rest(request: Request, next: Next) -> Response {
    // Who waits to be told to send, sends nothing until somebody reads.
    let waits = request.headers().contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    let lent = Lent(Arc::new(Mutex::new(Loan { body: Some(body), touched: false })));
    let response = next.run(Request::from_parts(parts, Body::new(lent.clone()))).await;
    if let Some(rest) = lent.take_back(waits) {
        // Whatever ends it, the answer goes out then.
        let _ = tokio::time::timeout(LONGEST, read(rest)).await;
    }
    response
}

async fn read(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes >= MOST_BYTES {
            return;
        }
    }
}

/// A body that can be taken back.
#[derive(Clone)]
struct Lent(Arc<Mutex<Loan>>);

struct Loan {
    body: Option<Body>,
    touched: bool,
}

impl Lent {
    /// What is left of it, if anything is and the client has begun to send it.
    fn take_back(&self, waits: bool) -> Option<Body> {
        let mut loan = self.lock();
        if waits && !loan.touched {
            return None;
        }
        loan.body.take().filter(|body| !body.is_end_stream())
    }

    fn lock(&self) -> MutexGuard<'_, Loan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut loan = self.lock();
        loan.touched = true;
        match &mut loan.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(Some(Err(axum::Error::new("the answer is there already")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent(text: &'static str) -> Lent {
        Lent(Arc::new(Mutex::new(Loan { body: Some(Body::from(text)), touched: false })))
    }

    #[tokio::test]
    async fn what_the_handler_left_is_taken_back_and_it_gets_no_more() {
        let lent = lent("abc");
        let rest = lent.take_back(false).expect("nothing was read");
        assert_eq!(rest.collect().await.expect("it is whole").to_bytes(), "abc");
        assert!(Body::new(lent).collect().await.is_err(), "half a body must not look whole");
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_body_that_was_read() {
        let lent = lent("abc");
        assert_eq!(Body::new(lent.clone()).collect().await.expect("it is whole").to_bytes(), "abc");
        assert!(lent.take_back(false).is_none());
    }

    #[test]
    fn who_waits_to_be_told_to_send_is_not_told() {
        assert!(lent("abc").take_back(true).is_none());
    }
}
