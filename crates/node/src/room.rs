//! How large one engine is just now: as large as the largest profile of what runs on it, at least as it began.
//!
//! It grows before a request that needs it is sent and shrinks when that has ended; DuckDB takes both at once, spilling what no longer
//! fits. It does not decide who may ask for what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::profiles::Size;
use crate::watcher::Live;

/// An engine's size and what is asked of it.
pub struct Room {
    start: Size,
    wanted: Mutex<Vec<Size>>,
    /// What the engine was last told. Held while it is told, so that it never hears an older wish after a newer one.
    told: tokio::sync::Mutex<Size>,
}

/// What one request asks of an engine. Dropping it takes that back.
pub struct Asked {
    live: Arc<Live>,
    size: Size,
}

impl Room {
    /// Of an engine that began with this size.
    pub fn new(start: Size) -> Self {
        Self { start, wanted: Mutex::default(), told: tokio::sync::Mutex::new(start) }
    }

    /// Makes the engine large enough for one more request.
    pub async fn ask(live: &Arc<Live>, size: Size) -> Asked {
        live.room.wanted().push(size);
        let asked = Asked { live: live.clone(), size };
        // What fits into the size it began with, fits always.
        if size.max(live.room.start) != live.room.start {
            live.room.settle(live).await;
        }
        asked
    }

    async fn settle(&self, live: &Live) {
        let mut told = self.told.lock().await;
        let size = self.wanted().iter().fold(self.start, |size, wanted| size.max(*wanted));
        if size == *told {
            return;
        }
        match live.engine.resize(size).await {
            Ok(()) => *told = size,
            // It goes on at the size it had; one that ended has none.
            Err(error) => tracing::debug!(?error, ?size, "an engine was not resized"),
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Vec<Size>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let room = &self.live.room;
        let mut wanted = room.wanted();
        if let Some(at) = wanted.iter().position(|size| *size == self.size) {
            wanted.swap_remove(at);
        }
        drop(wanted);
        if self.size.max(room.start) != room.start
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let live = self.live.clone();
            runtime.spawn(async move { live.room.settle(&live).await });
        }
    }
}
