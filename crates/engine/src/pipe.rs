//! The way of a body from the thread that makes it to the socket: pieces of bytes, bounded by their sum.
//!
//! **Invariant:** a body ends whole only if the writer finished it; a writer that is dropped breaks the body, and HTTP the
//! connection, so that no client takes a part for the whole.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// Bytes that may wait for a slow client. The socket and hyper hold some more.
const LIMIT_BYTES: usize = 4 << 20;
/// How often a waiting writer looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

struct Shared {
    state: Mutex<State>,
    space: Condvar,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    gone: bool,
    waker: Option<Waker>,
}

enum End {
    Whole(Option<HeaderMap>),
    Broken,
}

/// The thread's end.
pub struct PipeWriter(Arc<Shared>);

/// The socket's end.
pub struct PipeBody(Arc<Shared>);

/// The client went away or the query has to stop.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

/// The body broke before its end.
#[derive(Debug, thiserror::Error)]
#[error("the result broke off")]
pub struct Broken;

/// A pair of ends.
pub fn pipe() -> (PipeWriter, PipeBody) {
    let shared = Arc::new(Shared { state: Mutex::default(), space: Condvar::new() });
    (PipeWriter(shared.clone()), PipeBody(shared))
}

impl PipeWriter {
    /// Hands over a piece; waits while too much is under way.
    pub fn send(&self, piece: Bytes, cancelled: impl Fn() -> bool) -> Result<(), Stopped> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut state = self.0.lock();
        while state.bytes > 0 && state.bytes + piece.len() > LIMIT_BYTES && !state.gone {
            if cancelled() {
                return Err(Stopped);
            }
            state = self.0.space.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.gone {
            return Err(Stopped);
        }
        state.bytes += piece.len();
        state.pieces.push_back(piece);
        state.wake();
        Ok(())
    }

    /// Does nobody read any more?
    pub fn is_gone(&self) -> bool {
        self.0.lock().gone
    }

    /// The body is whole.
    pub fn finish(self, trailers: Option<HeaderMap>) {
        let mut state = self.0.lock();
        state.end = Some(End::Whole(trailers));
        state.wake();
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.end.is_none() {
            state.end = Some(End::Broken);
            // What waits is not worth sending: the client has to throw it away.
            state.pieces.clear();
            state.wake();
        }
    }
}

impl Body for PipeBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut state = self.0.lock();
        if let Some(piece) = state.pieces.pop_front() {
            state.bytes -= piece.len();
            self.0.space.notify_one();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match &mut state.end {
            Some(End::Whole(trailers)) => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
            Some(End::Broken) => Poll::Ready(Some(Err(Broken))),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for PipeBody {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.pieces.clear();
        self.0.space.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A body that is all there, in pieces.
pub struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: u64,
}

impl Pieces {
    /// Of these, in order.
    pub fn new(pieces: Vec<Bytes>) -> Self {
        let pieces: VecDeque<Bytes> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        Self { bytes: pieces.iter().map(|piece| piece.len() as u64).sum(), pieces }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let piece = self.pieces.pop_front();
        self.bytes -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn a_writer_waits_for_its_reader_and_stops_when_it_is_gone() {
        let (writer, body) = pipe();
        let piece = Bytes::from(vec![0; LIMIT_BYTES]);
        writer.send(piece.clone(), || false).expect("has room");
        assert_eq!(writer.send(piece.clone(), || true), Err(Stopped), "no room, cancelled");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| writer.send(piece.clone(), || false));
            drop(body);
            assert_eq!(waiting.join().expect("ends"), Err(Stopped));
        });
    }

    #[tokio::test]
    async fn only_a_finished_body_is_whole() {
        let (writer, body) = pipe();
        writer.send(Bytes::from_static(b"ab"), || false).expect("has room");
        writer.finish(None);
        assert_eq!(body.collect().await.expect("whole").to_bytes(), "ab");
        let (writer, body) = pipe();
        writer.send(Bytes::from_static(b"ab"), || false).expect("has room");
        drop(writer);
        assert!(body.collect().await.is_err());
    }
}
