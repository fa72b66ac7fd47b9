//! Threads that run DuckDB: each has its own session; the one that was busy last comes first, while its memory is warm.
//!
//! How many may run at once is decided by the caller's permits; a job here never waits for another. No async thread runs DuckDB.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use crate::session::Session;

/// Work for a thread with a session.
pub type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// The threads.
#[derive(Clone, Default)]
pub struct Pool {
    idle: Arc<Mutex<Vec<SyncSender<Job>>>>,
}

impl Pool {
    /// Runs `job` on an idle thread, or on a new one.
    pub fn run(&self, mut job: Job) -> std::io::Result<()> {
        loop {
            let Some(worker) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() else { break };
            match worker.send(job) {
                Ok(()) => return Ok(()),
                // That thread is gone; try the next.
                Err(unsent) => job = unsent.0,
            }
        }
        let (sender, receiver) = sync_channel::<Job>(1);
        let pool = self.clone();
        thread::Builder::new().name("duckdb".into()).spawn(move || pool.work(job, sender, receiver))?;
        Ok(())
    }

    fn work(&self, first: Job, sender: SyncSender<Job>, receiver: Receiver<Job>) {
        let mut session = Session::default();
        let mut job = first;
        loop {
            job(&mut session);
            session.reset();
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender.clone());
            match receiver.recv() {
                Ok(next) => job = next,
                Err(_) => return,
            }
        }
    }
}
