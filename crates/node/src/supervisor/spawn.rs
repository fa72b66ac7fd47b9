//! How an engine is started: first a blank one, which has its descriptors and half of its walls and waits; then its configuration.
//!
//! It gets an empty environment, and no descriptor but those of [`engine::handover`].

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use engine::config::{EngineConfig, GatewayConfig, ViewConfig};
use engine::handover::{self, Hello};
use engine::wire::Health;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::groups::set_apart;
use super::{Engine, Groups, MartLock, Share, SocketDir};
use crate::config::EngineLimits;
use crate::engine_client::EngineClient;
use crate::names::MartId;

/// Opening replays the log, which takes a while after a large one.
const OPEN_DEADLINE: Duration = Duration::from_secs(300);
/// A process that has only to begin has this long.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);
/// A query that ignores its interrupt for so long takes its engine with it.
pub const DEAF_MS: u64 = 2_000;
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

/// An engine's process that knows no mart yet. Dropping it ends it.
pub struct Blank {
    child: Child,
    talk: UnixStream,
    life: OwnedFd,
    socket: PathBuf,
    door: Option<TcpListener>,
}

impl Blank {
    /// Starts a process and waits until it is ready for its mart.
    pub async fn spawn(sockets: &SocketDir) -> Result<Self, SpawnError> {
        let (listener, socket) = sockets.listen()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("tarn")
            .arg("engine")
            .env_clear()
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        let ends = handover::equip(command.as_std_mut(), listener.into())?;
        let child = command.spawn()?;
        // The node's copies of the engine's descriptors close with it: an engine's death must leave no listener behind.
        drop(command);
        set_apart(child.id());
        if let Some(pid) = child.id() {
            // Raising one's own chance is always allowed; where /proc is missing it does not matter.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        }
        // It keeps messages apart, which a stream does not, but waits alike.
        let talk = std::os::unix::net::UnixStream::from(ends.talk);
        talk.set_nonblocking(true)?;
        let talk = UnixStream::from_std(talk)?;
        let hello = talk.async_io(Interest::READABLE, || handover::receive::<Hello>(&talk));
        let (hello, door) = match tokio::time::timeout(HELLO_DEADLINE, hello).await {
            Ok(Ok(Some(hello))) => hello,
            Ok(Ok(None)) => return Err(SpawnError::Ended("unknown")),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(SpawnError::Slow),
        };
        tracing::debug!(pid = child.id(), lacking = hello.report.lacking().count(), "a blank engine waits");
        Ok(Self { child, talk, life: ends.life, socket, door: door.map(TcpListener::from) })
    }

    /// The listener that this engine, and where it has a network namespace of its own nobody else, can connect to. Once.
    pub fn door(&mut self) -> io::Result<TcpListener> {
        match self.door.take() {
            Some(door) => Ok(door),
            None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    /// Whether it still waits.
    pub fn waits(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
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
    /// Where its control group is made.
    pub groups: &'a Groups,
    /// Its way to `s3://`.
    pub gateway: Option<GatewayConfig>,
    /// An earlier moment to read instead of the directory's files.
    pub view: Option<ViewConfig>,
}

impl Launch<'_> {
    /// Gives the process its mart and waits until it has opened it.
    pub async fn start(self, blank: Blank) -> Result<Engine, SpawnError> {
        let config = self.config()?;
        let lock = self.lock.share()?;
        let mut group = None;
        if let Some(pid) = blank.child.id() {
            self.lock.record(pid)?;
            let share = Share { cpus: Some(self.limits.threads), memory_bytes: self.limits.memory_bytes };
            // Before it has its configuration: it looks up its group while it still may.
            group = self.groups.admit(self.id, pid, share);
        }
        let Blank { child, talk, life, socket, door: _ } = blank;
        talk.async_io(Interest::WRITABLE, || handover::send(&talk, &config, Some(&lock))).await?;
        drop(lock);
        let engine = Engine::watch(self.id.clone(), child, EngineClient::new(socket), life, group);
        tokio::select! {
            health = engine.client.get::<Health>("/health") => match health {
                Ok(health) => {
                    tracing::info!(mart = %self.id, pid = engine.pid, duckdb = health.duckdb_version, iteration = health.iteration, wal_bytes = health.wal_bytes, "engine up");
                    Ok(engine)
                }
                Err(_) => Err(SpawnError::Ended(engine.exited().await.unwrap_or("unknown"))),
            },
            reason = engine.exited() => Err(SpawnError::Ended(reason.unwrap_or("unknown"))),
            () = tokio::time::sleep(OPEN_DEADLINE) => Err(SpawnError::Slow),
        }
    }

    fn config(&self) -> io::Result<EngineConfig> {
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
            required_walls: self.limits.required_walls.clone(),
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
