//! Engines as processes: spawning one for a mart, knowing when it ends, ending it.
//!
//! One [`Engine`] is one life of one process; restarting is the mart's business. It knows nothing of replicas.
//!
//! **Invariants:** an engine never outlives its node (it holds one end of a socket pair whose other end only the node has) and never
//! runs beside another engine of the same mart on this machine (it inherits the mart's lock). It gets no environment.

pub mod child;
mod groups;
mod lock;
mod socket;
mod spares;
mod spawn;

use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::wire;
use tokio::process::Child;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use groups::{Group, Groups, Share};
pub use lock::MartLock;
pub use socket::SocketDir;
pub use spares::Spares;
pub use spawn::{Blank, DEAF_MS, Launch, SpawnError};

use crate::engine_client::{CallError, EngineClient};
use crate::names::MartId;
use crate::profiles::Size;

/// A running engine. Dropping it kills the process.
pub struct Engine {
    client: EngineClient,
    pid: u32,
    kill: CancellationToken,
    exited: watch::Receiver<Option<&'static str>>,
    group: Option<Arc<Group>>,
    /// How many requests it had when the first of them saw it end.
    ended_with: OnceLock<usize>,
    /// The node's end of the life line: the engine ends when it is closed, also by the node's death.
    _life: OwnedFd,
}

impl Engine {
    fn watch(id: MartId, mut child: Child, client: EngineClient, life: OwnedFd, group: Option<Group>) -> Self {
        let kill = CancellationToken::new();
        let (send, exited) = watch::channel(None);
        let pid = child.id().unwrap_or_default();
        let killed = kill.clone();
        let group = group.map(Arc::new);
        let limited = group.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = child.wait() => ended,
                () = killed.cancelled() => {
                    // An error here means that the process has ended already.
                    let _ = child.start_kill();
                    child.wait().await
                }
            };
            match ended {
                Ok(status) => {
                    let reason = match limited.as_ref().is_some_and(|group| group.ran_out_of_memory()) {
                        true => MEMORY,
                        false => exit_reason(status),
                    };
                    tracing::info!(mart = %id, pid, reason, "engine ended");
                    send.send_replace(Some(reason));
                }
                Err(error) => tracing::error!(mart = %id, pid, %error, "can't wait for an engine"),
            }
        });
        Self { client, pid, kill, exited, group, ended_with: OnceLock::new(), _life: life }
    }

    /// Requests to it.
    pub fn client(&self) -> &EngineClient {
        &self.client
    }

    /// Makes it larger or smaller while it runs.
    pub async fn resize(&self, size: Size) -> Result<(), CallError> {
        let request = wire::ResizeRequest { memory_limit_bytes: size.memory_bytes, threads: size.threads };
        let share = Share { cpus: Some(size.threads), memory_bytes: size.memory_bytes };
        // The group is never the smaller of the two.
        if let Some(group) = &self.group {
            group.resize(share);
        }
        self.client.call::<_, serde_json::Value>("/resize", &request).await.map(drop)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.exited.borrow().is_none()
    }

    /// Ends it at once; what it had committed stays.
    pub fn kill(&self) {
        self.kill.cancel();
    }

    /// How many requests it had when it ended. To be asked by each of them that sees it end, with how many there still are: they notice
    /// one after the other, and the first one's number counts.
    pub fn ended_with(&self, requests: usize) -> usize {
        *self.ended_with.get_or_init(|| requests)
    }

    /// Waits until the process is gone; why it ended, as metrics and logs name it.
    pub async fn exited(&self) -> Option<&'static str> {
        let mut exited = self.exited.clone();
        exited.wait_for(Option::is_some).await.ok().and_then(|reason| *reason)
    }

    /// Asks it to take no more work and to end; kills it when it takes longer than its grace and a little.
    pub async fn shutdown(&self, grace: Duration) {
        let request = wire::ShutdownRequest { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) };
        let asked = async {
            // An engine that can't be asked is killed below.
            let _ = self.client.call::<_, serde_json::Value>("/shutdown", &request).await;
            self.exited().await
        };
        if tokio::time::timeout(grace + Duration::from_secs(5), asked).await.is_err() {
            self.kill();
            self.exited().await;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

/// Reason of an engine that can't replay its log without writing.
pub const REPLAY: &str = "replay";

/// Reason of an engine that took more memory than it may.
pub const MEMORY: &str = "memory";
/// Reason of an engine whose query ignored its interrupt.
pub const DEAF: &str = "deaf";

/// Reason of an engine that somebody else killed.
pub const KILLED: &str = "killed";

/// Why an engine ended, as metrics and logs name it.
fn exit_reason(status: ExitStatus) -> &'static str {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(wire::exit::OK), _) => "asked",
        (Some(wire::exit::OPEN), _) => "open",
        (Some(wire::exit::REPLAY), _) => REPLAY,
        (Some(wire::exit::ORPHAN), _) => "orphan",
        (Some(wire::exit::DEAF), _) => DEAF,
        (Some(wire::exit::MEMORY), _) => MEMORY,
        (Some(wire::exit::TEMP), _) => "temp",
        (Some(wire::exit::FATAL), _) => "fatal",
        (_, Some(9)) => KILLED,
        (_, Some(_)) => "crashed",
        _ => "exited",
    }
}
