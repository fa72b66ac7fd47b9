//! How an engine is started: its descriptors, its configuration on standard input, an empty environment.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use engine::config::{EngineConfig, GatewayConfig, ViewConfig};
use engine::wire::Health;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::process::Command;

use super::{Engine, MartLock, SocketDir, exit_reason};
use crate::config::EngineLimits;
use crate::engine_client::EngineClient;
use crate::names::MartId;

/// Opening replays the log, which takes a while after a large one.
const OPEN_DEADLINE: Duration = Duration::from_secs(300);
/// A query that ignores its interrupt for so long takes its engine with it.
pub const DEAF_MS: u64 = 3_000;
/// When memory runs out, the kernel ends engines before nodes.
const OOM_SCORE: &str = "800";

/// Why an engine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The system refused.
    #[error("can't start an engine")]
    System(#[from] io::Error),
    /// The process ended before it answered; its own line on stderr says why.
    #[error("the engine ended while opening the mart: {0}")]
    Ended(&'static str),
    /// It did not answer in time.
    #[error("the engine took too long to open the mart")]
    Slow,
}

/// Everything needed to start the engine of one mart.
pub struct Launch<'a> {
    /// Whose engine it is, for the log.
    pub id: &'a MartId,
    /// The directory with `mart.db`.
    pub dir: &'a Path,
    /// The mart's lock, held.
    pub lock: &'a MartLock,
    /// What it may use.
    pub limits: &'a EngineLimits,
    /// Its way to `s3://`.
    pub gateway: Option<GatewayConfig>,
    /// An earlier moment to read instead of the directory's files.
    pub view: Option<ViewConfig>,
}

impl Launch<'_> {
    /// Starts the process and waits until it has opened the mart.
    pub async fn start(self, sockets: &SocketDir) -> Result<Engine, SpawnError> {
        let (listener, socket) = sockets.listen()?;
        let (life, engines_life) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
        let lock = self.lock.share()?;
        let config = self.config(listener.as_raw_fd(), engines_life.as_raw_fd(), lock.as_raw_fd())?;
        let mut child = command(vec![OwnedFd::from(listener), engines_life, lock])?;
        if let Some(pid) = child.id() {
            self.lock.record(pid)?;
            // Raising one's own chance is always allowed; where /proc is missing it does not matter.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        }
        let stdin = child.stdin.take().expect("stdin was asked to be piped");
        let mut stdin = std::fs::File::from(stdin.into_owned_fd()?);
        // Smaller than a pipe's buffer, so it can't block.
        stdin.write_all(&serde_json::to_vec(&config).expect("a configuration serialises"))?;
        drop(stdin);

        let engine = Engine::watch(self.id.clone(), child, EngineClient::new(socket), life);
        tokio::select! {
            health = engine.client.get::<Health>("/health") => match health {
                Ok(health) => {
                    tracing::info!(mart = %self.id, pid = engine.pid, duckdb = health.duckdb_version, iteration = health.iteration, wal_bytes = health.wal_bytes, "engine up");
                    Ok(engine)
                }
                Err(_) => Err(SpawnError::Ended(engine.exited().await.map_or("unknown", exit_reason))),
            },
            status = engine.exited() => Err(SpawnError::Ended(status.map_or("unknown", exit_reason))),
            () = tokio::time::sleep(OPEN_DEADLINE) => Err(SpawnError::Slow),
        }
    }

    fn config(&self, listen_fd: RawFd, life_fd: RawFd, lock_fd: RawFd) -> io::Result<EngineConfig> {
        let temp_dir = self.dir.join("temp");
        let home_dir = self.dir.join("home");
        for dir in [&temp_dir, &home_dir] {
            std::fs::create_dir_all(dir)?;
        }
        Ok(EngineConfig {
            db_path: self.dir.join("mart.db"),
            temp_dir,
            home_dir,
            memory_limit_bytes: self.limits.memory_bytes,
            threads: self.limits.threads,
            max_temp_bytes: self.limits.temp_bytes,
            httpfs_path: self.limits.httpfs.clone(),
            gateway: self.gateway.clone(),
            view: self.view.clone(),
            listen_fd,
            life_fd,
            lock_fd: Some(lock_fd),
            max_queries: self.limits.max_queries,
            deaf_ms: DEAF_MS,
            session_idle_ms: millis(self.limits.session_idle),
            transaction_idle_ms: millis(self.limits.transaction_idle),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn command(inherited: Vec<OwnedFd>) -> io::Result<tokio::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("tarn")
        .arg("engine")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    // SAFETY: between fork and exec only `fcntl` is called, which is async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            for fd in &inherited {
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        });
    }
    // The node's copies of the descriptors close with the command: an engine's death must leave no listener behind.
    command.spawn()
}
