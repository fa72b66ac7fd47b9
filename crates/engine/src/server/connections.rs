//! Connections that may still carry answers: a shutdown lets them end before the process does.
//!
//! A query is over when its last piece is handed over, and by then a slow node has not read it. Not counted: the feed of commits,
//! which has no end, the shutdown's own connection, and what comes after a shutdown began.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{sync::watch, time::Instant};

/// All connections of a server.
pub(super) struct Connections {
    open: Arc<watch::Sender<usize>>,
    closing: watch::Sender<bool>,
}

/// One of them, until dropped or left out.
#[derive(Clone)]
pub(super) struct Counted(Arc<Mutex<Option<Place>>>);

struct Place(Arc<watch::Sender<usize>>);

impl Connections {
    pub fn new() -> Self {
        Self { open: Arc::new(watch::channel(0).0), closing: watch::channel(false).0 }
    }

    /// Counts a new connection, and lets it know when it is to end.
    pub fn enter(&self) -> (Counted, watch::Receiver<bool>) {
        let closing = self.closing.subscribe();
        let place = (!*closing.borrow()).then(|| {
            self.open.send_modify(|open| *open += 1);
            Place(self.open.clone())
        });
        (Counted(Arc::new(Mutex::new(place))), closing)
    }

    /// Lets each connection end behind its answer, and waits for them until `deadline`.
    pub async fn close(&self, deadline: Instant) {
        self.closing.send_replace(true);
        let mut open = self.open.subscribe();
        // Who has not read its answer by then, does not get it.
        let _ = tokio::time::timeout_at(deadline, open.wait_for(|open| *open == 0)).await;
    }
}

impl Counted {
    /// Nobody waits for this one.
    pub fn leave_out(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}
