//! The way of a request's body from the socket to the thread that reads it: pieces of bytes, bounded by their sum.
//!
//! **Invariant:** the reader sees an end of file only if the sender saw the whole body; a sender that is dropped breaks the body, so
//! that no part is taken for the whole.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;

/// Bytes that may wait for the reader.
const LIMIT_BYTES: usize = 8 << 20;
/// How often a waiting reader looks whether it has to stop.
const LOOK: Duration = Duration::from_millis(20);

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    gone: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Whole,
    Broken,
}

/// The socket's end.
pub struct BodySender(Arc<Shared>);

/// The thread's end.
pub struct BodyReceiver(Arc<Shared>);

/// The body broke before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// The reader needs no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotWanted;

/// A pair of ends.
pub fn body() -> (BodySender, BodyReceiver) {
    let shared = Arc::new(Shared { state: Mutex::default(), arrived: Condvar::new() });
    (BodySender(shared.clone()), BodyReceiver(shared))
}

impl BodySender {
    /// Hands over a piece; waits while too much is under way.
    pub async fn send(&self, piece: Bytes) -> Result<(), NotWanted> {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock();
            if state.gone {
                return Poll::Ready(Err(NotWanted));
            }
            if state.bytes == 0 || state.bytes + piece.len() <= LIMIT_BYTES {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await?;
        let mut state = self.0.lock();
        state.bytes += piece.len();
        state.pieces.push_back(piece);
        self.0.arrived.notify_one();
        Ok(())
    }

    /// The body is whole.
    pub fn finish(self) {
        self.0.end(End::Whole);
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        self.0.end(End::Broken);
    }
}

impl BodyReceiver {
    /// The next piece, or `None` at the end. While none comes, `idle` is called with the time waited so far, every 20 ms; its error
    /// ends the wait.
    pub fn next<E: From<Broken>>(&self, mut idle: impl FnMut(Duration) -> Result<(), E>) -> Result<Option<Bytes>, E> {
        let mut state = self.0.lock();
        let started = Instant::now();
        loop {
            if let Some(piece) = state.pieces.pop_front() {
                state.bytes -= piece.len();
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
                return Ok(Some(piece));
            }
            match state.end {
                Some(End::Whole) => return Ok(None),
                Some(End::Broken) => return Err(Broken.into()),
                None => state = self.0.arrived.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0,
            }
            if state.pieces.is_empty() && state.end.is_none() {
                drop(state);
                idle(started.elapsed())?;
                state = self.0.lock();
            }
        }
    }
}

impl Drop for BodyReceiver {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.pieces.clear();
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Ended {
        Broken,
        Told,
    }

    impl From<Broken> for Ended {
        fn from(_: Broken) -> Self {
            Self::Broken
        }
    }

    #[tokio::test]
    async fn only_a_finished_body_has_an_end() {
        let (sender, receiver) = body();
        sender.send(Bytes::from_static(b"ab")).await.expect("has room");
        sender.finish();
        let next = || receiver.next::<Ended>(|_| Err(Ended::Told));
        assert_eq!((next(), next()), (Ok(Some(Bytes::from_static(b"ab"))), Ok(None)));
        let (sender, receiver) = body();
        drop(sender);
        assert_eq!(receiver.next::<Ended>(|_| Err(Ended::Told)), Err(Ended::Broken));
    }

    #[tokio::test]
    async fn a_sender_waits_for_room_and_stops_when_its_reader_is_gone() {
        let (sender, receiver) = body();
        let piece = Bytes::from(vec![0; LIMIT_BYTES]);
        sender.send(piece.clone()).await.expect("has room");
        let second = sender.send(piece);
        tokio::pin!(second);
        let waits = std::future::poll_fn(|context| Poll::Ready(second.as_mut().poll(context).is_pending())).await;
        assert!(waits, "no room");
        drop(receiver);
        assert_eq!(second.await, Err(NotWanted));
    }

    #[test]
    fn a_reader_that_waits_can_be_told_to_stop() {
        let (_sender, receiver) = body();
        assert_eq!(receiver.next::<Ended>(|_| Err(Ended::Told)), Err(Ended::Told));
    }
}
