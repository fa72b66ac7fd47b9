//! An engine's commits as they happen, read from `GET /commits` by a task that never keeps the engine waiting.
//!
//! What is not taken yet piles up here; beyond a bound every second point is forgotten, which costs restorable moments, never a commit
//! (a later position includes the earlier ones).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use engine::wire;
use http::Method;
use http_body_util::BodyExt;
use replica::CommitPoint;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine_client::{ClientError, EngineBody, EngineClient, request};

/// Points kept while the object store is away.
const MAX_POINTS: usize = 100_000;
const MAX_LINE_BYTES: usize = 4096;
const RECONNECT: Duration = Duration::from_millis(100);

/// Why the feed can't start.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The engine is gone.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The engine says something else than was agreed on.
    #[error("the engine's commits can't be read")]
    Line,
}

/// Commits not yet taken. Dropping it ends the task.
pub struct Feed {
    shared: Arc<Shared>,
    first: CommitPoint,
    _stop: DropGuard,
}

#[derive(Default)]
struct Shared {
    points: Mutex<Points>,
    arrived: Notify,
}

#[derive(Default)]
struct Points {
    waiting: Vec<CommitPoint>,
    ended: bool,
}

impl Feed {
    /// Connects and reads where the engine is.
    pub async fn connect(client: EngineClient) -> Result<Self, FeedError> {
        let mut lines = Lines::open(&client).await?;
        let first = lines.next().await.ok_or(FeedError::Line)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::default());
        let task = pump(client, lines, shared.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(task).await });
        Ok(Self { shared, first, _stop: stop.drop_guard() })
    }

    /// Where the engine was at the start.
    pub fn first(&self) -> CommitPoint {
        self.first
    }

    /// Takes what has arrived, oldest first.
    pub fn take(&self) -> Vec<CommitPoint> {
        std::mem::take(&mut self.shared.points().waiting)
    }

    /// Waits until something has arrived (true), or the engine has ended and all it said was taken (false).
    pub async fn arrived(&self) -> bool {
        loop {
            let notified = self.shared.arrived.notified();
            {
                let points = self.shared.points();
                if !points.waiting.is_empty() {
                    return true;
                }
                if points.ended {
                    return false;
                }
            }
            notified.await;
        }
    }
}

impl Shared {
    fn points(&self) -> std::sync::MutexGuard<'_, Points> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, point: CommitPoint) {
        let mut points = self.points();
        if points.waiting.len() >= MAX_POINTS {
            thin(&mut points.waiting);
        }
        points.waiting.push(point);
        drop(points);
        self.arrived.notify_one();
    }
}

/// Forgets every second point, but never the newest.
fn thin(points: &mut Vec<CommitPoint>) {
    let length = points.len();
    let mut index = 0;
    points.retain(|_| {
        index += 1;
        index == length || index % 2 == 0
    });
}

/// Reads until the engine ends; an engine that cut us off for being slow is asked again.
async fn pump(client: EngineClient, mut lines: Lines, shared: Arc<Shared>) {
    loop {
        while let Some(point) = lines.next().await {
            shared.push(point);
        }
        tokio::time::sleep(RECONNECT).await;
        match Lines::open(&client).await {
            Ok(again) => lines = again,
            Err(_) => break,
        }
    }
    shared.points().ended = true;
    shared.arrived.notify_one();
}

/// The lines of one connection.
struct Lines {
    body: EngineBody,
    buffer: BytesMut,
}

impl Lines {
    async fn open(client: &EngineClient) -> Result<Self, ClientError> {
        let response = client.send(request(Method::GET, "/commits", Bytes::new())).await?;
        if !response.status().is_success() {
            return Err(ClientError::Lost);
        }
        Ok(Self { body: response.into_body(), buffer: BytesMut::new() })
    }

    async fn next(&mut self) -> Option<CommitPoint> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                let wire::CommitPoint { iteration, wal_end, time_us } = serde_json::from_slice(&line).ok()?;
                return Some(CommitPoint { iteration, wal_end, time_us });
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_order_and_the_newest() {
        let mut points: Vec<_> = (1..=7).map(|wal_end| CommitPoint { iteration: 1, wal_end, time_us: 0 }).collect();
        thin(&mut points);
        let left: Vec<_> = points.iter().map(|point| point.wal_end).collect();
        assert_eq!(left, [2, 4, 6, 7]);
    }
}
