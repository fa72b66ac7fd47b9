//! `GET /commits`: the newest commit, then each one that follows, a JSON line each.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};

use crate::{commit::Commits, pipe::Broken, wire::CommitPoint};

use super::respond::Body;

type Next = Pin<Box<dyn Future<Output = (Result<CommitPoint, RecvError>, Receiver<CommitPoint>)> + Send>>;

/// After a piece, commits of so long share the next one: each piece wakes two processes, which then do not run statements.
const PACE: Duration = Duration::from_millis(2);

/// The lines as a body. It breaks when its reader falls too far behind.
pub struct Feed {
    first: Option<CommitPoint>,
    next: Next,
}

/// Answers with the feed.
pub fn follow(commits: &Commits) -> Response<Body> {
    let (first, receiver) = commits.follow();
    let feed = Feed { first: Some(first), next: Box::pin(receive(receiver, Instant::now())) };
    let mut response = Response::new(Body::Feed(feed));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

async fn receive(
    mut receiver: Receiver<CommitPoint>,
    not_before: Instant,
) -> (Result<CommitPoint, RecvError>, Receiver<CommitPoint>) {
    let received = receiver.recv().await;
    tokio::time::sleep_until(not_before).await;
    (received, receiver)
}

impl HttpBody for Feed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut lines = Vec::new();
        if let Some(first) = self.first.take() {
            line(&first, &mut lines);
            return Poll::Ready(Some(Ok(Frame::data(lines.into()))));
        }
        let (received, mut receiver) = ready!(self.next.as_mut().poll(context));
        let broken = match received {
            Ok(point) => {
                line(&point, &mut lines);
                // What is there already goes along.
                while let Ok(point) = receiver.try_recv() {
                    line(&point, &mut lines);
                }
                false
            }
            Err(_) => true,
        };
        self.next = Box::pin(receive(receiver, Instant::now() + PACE));
        Poll::Ready(Some(if broken { Err(Broken) } else { Ok(Frame::data(lines.into())) }))
    }
}

fn line(point: &CommitPoint, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, point).expect("a plain struct has a JSON form");
    out.push(b'\n');
}
