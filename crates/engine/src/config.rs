//! What a node tells an engine at its start: one JSON object (see `handover`).
//!
//! The engine reads no environment and no file for its configuration. Secrets in here are worth nothing outside the node's gateway.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::walls::Wall;

/// Everything an engine needs to open one mart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// The mart's DuckDB file; made when missing.
    pub db_path: PathBuf,
    /// An empty directory for DuckDB's and the engine's spill files; emptied at start.
    pub temp_dir: PathBuf,
    /// An empty directory that stands for the home directory.
    pub home_dir: PathBuf,
    /// DuckDB's memory limit. The process may pass it by 300 MB before it ends itself.
    pub memory_limit_bytes: u64,
    /// DuckDB's worker threads.
    pub threads: u32,
    /// Limit of DuckDB's spill files.
    pub max_temp_bytes: u64,
    /// A past moment to show instead of the mart's file, which is then neither read nor made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<ViewConfig>,
    /// The signed httpfs extension; without it there is no `s3://`.
    #[serde(default)]
    pub httpfs_path: Option<PathBuf>,
    /// The node's S3 gateway; without it there is no `s3://`.
    #[serde(default)]
    pub gateway: Option<GatewayConfig>,
    /// Walls without which the engine must not run.
    #[serde(default)]
    pub required_walls: Vec<Wall>,
    /// Queries that may run at once; more wait.
    #[serde(default = "default_max_queries")]
    pub max_queries: usize,
    /// Ends the process when a query ignores its interrupt for so long.
    #[serde(default = "default_deaf_ms")]
    pub deaf_ms: u64,
    /// Ends a session that nobody used for so long.
    #[serde(default = "default_session_idle_ms")]
    pub session_idle_ms: u64,
    /// Rolls back a session's transaction that nobody went on with for so long.
    #[serde(default = "default_transaction_idle_ms")]
    pub transaction_idle_ms: u64,
}

/// A mart at a past moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// Where its file is (`s3://…/mart.db`, or `http://…`); the log up to that moment is beside it, with `.wal` behind the name. No
    /// client may read there by itself: the directory is no part of the gateway's scopes.
    pub url: String,
    /// The moment's checkpoint iteration.
    pub iteration: u64,
    /// End of the moment's last commit in the log.
    pub wal_bytes: u64,
}

/// Where and as whom the engine's `s3://` goes.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// `127.0.0.1:PORT`.
    pub endpoint: String,
    /// This engine's access key.
    pub key_id: String,
    /// Its secret.
    pub secret: String,
    /// URL prefixes the engine may use, each with its trailing slash (`s3://sm-acme-raw/`).
    pub scopes: Vec<String>,
    /// The region that requests are signed for.
    pub region: String,
}

impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("endpoint", &self.endpoint)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

fn default_max_queries() -> usize {
    64
}

fn default_session_idle_ms() -> u64 {
    900_000
}

fn default_transaction_idle_ms() -> u64 {
    60_000
}

fn default_deaf_ms() -> u64 {
    5_000
}
