//! What an engine and its node say to each other over the engine's unix socket.
//!
//! Only names and shapes: no DuckDB, no HTTP library. The node forwards bodies of `/query` untouched and reads nothing but the
//! headers named here.
//!
//! **Invariant:** a position on this page is always the end of a commit that DuckDB reported as committed (or the start of an
//! empty log after a checkpoint), never just the size of a file.

mod load;

use std::{fmt, str::FromStr};

pub use load::{IfExists, IfMissing, LoadRequest, Loaded};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The names of headers that engine and node exchange; HTTP lower case.
pub mod header {
    /// Answer: the query's id. Request: the id that the client chose (a UUID).
    pub const QUERY_ID: &str = "tarn-query-id";
    /// Answer: position `iteration.wal_bytes` of the last commit that this request made. Only if it committed something. For a
    /// read that wrote (a hidden `nextval`) it comes as a trailer.
    pub const COMMIT: &str = "tarn-commit";
    /// Answer: newest commit when the answer began, `iteration.wal_bytes`, if the request committed nothing.
    pub const AT: &str = "tarn-at";
    /// Answer, beside [`AT`]: `1` if another commit was in flight just then, so that the result may show a later moment.
    pub const AT_MOVING: &str = "tarn-at-moving";
    /// Answer: rows that the answering statement inserted, updated or deleted, over all sets of parameters.
    pub const CHANGED_ROWS: &str = "tarn-changed-rows";
    /// Answer: microseconds that the query waited for a place, and microseconds until its answer began, as `12;345`.
    pub const TOOK: &str = "tarn-took";
    /// Trailer, in the Flight format only: the [`super::ErrorBody`] of what failed after the first byte, percent-encoded JSON.
    pub const ERROR: &str = "tarn-error";
    /// Request of `/load`: the [`super::LoadRequest`], percent-encoded JSON.
    pub const LOAD: &str = "tarn-load";
    /// Answer: `true` if an earlier answer under the same idempotency key was repeated.
    pub const REPLAYED: &str = "tarn-replayed";
    /// Request: the deadline in milliseconds of a body that names none.
    pub const TIMEOUT_MS: &str = "tarn-timeout-ms";
    /// Request: runs at most once per principal and key.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// Request: who asks; any text that is the same for the same principal.
    pub const PRINCIPAL: &str = "tarn-principal";
    /// Request: `reader`, `writer` or `admin`.
    pub const ROLE: &str = "tarn-role";
}

/// What a caller may do in a mart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Only statements proved to be reads.
    Reader,
    /// Reads and writes.
    Writer,
    /// As a writer, and maintenance.
    Admin,
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "reader" => Ok(Self::Reader),
            "writer" => Ok(Self::Writer),
            "admin" => Ok(Self::Admin),
            _ => Err(()),
        }
    }
}

/// A moment of the mart's files: the checkpoint iteration and the byte just after the last whole commit in its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// Checkpoint iteration of the database file.
    pub iteration: u64,
    /// End of the last commit in the write-ahead log, in bytes; 0 without a log.
    pub wal_bytes: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.iteration, self.wal_bytes)
    }
}

impl FromStr for Point {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (iteration, wal_bytes) = text.split_once('.').ok_or(())?;
        Ok(Self { iteration: iteration.parse().map_err(|_| ())?, wal_bytes: wal_bytes.parse().map_err(|_| ())? })
    }
}

/// One line of `GET /commits`. The first line is the newest commit at that time; then each commit follows in order, and each
/// checkpoint as a line with the new iteration and `wal_end` 0. A reader that falls too far behind is cut off and connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitPoint {
    /// Checkpoint iteration of the database file.
    pub iteration: u64,
    /// Byte just after the commit in the write-ahead log; 0 right after a checkpoint.
    pub wal_end: u64,
    /// When the commit returned, microseconds since the Unix epoch; never goes back.
    pub time_us: i64,
}

impl CommitPoint {
    /// The same moment without its time.
    pub fn point(&self) -> Point {
        Point { iteration: self.iteration, wal_bytes: self.wal_end }
    }
}

/// Answer of `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Checkpoint iteration of the database file.
    pub iteration: u64,
    /// End of the last commit in the write-ahead log.
    pub wal_bytes: u64,
    /// DuckDB's version, such as `v1.5.5`.
    pub duckdb_version: String,
    /// The engine's process id.
    pub pid: u32,
    /// Queries that run or stream just now.
    pub queries: usize,
    /// Sessions that are open.
    pub sessions: usize,
}

/// Answer of `GET /queries/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// From 0 to 1, where DuckDB can tell.
    pub progress: Option<f64>,
}

/// Body of `POST /query`: the public body, plus what only the node may add.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// One statement or a script.
    pub sql: String,
    /// An array (positional) or an object (named) without a name that comes twice; see `docs/types.md`.
    #[serde(default, deserialize_with = "crate::params::unique::optional", skip_serializing_if = "Option::is_none")]
    pub params: Option<serde_json::Value>,
    /// Base64 of an Arrow IPC stream whose rows are sets of positional parameters: a write runs once for each, all in one
    /// transaction; a read runs once for each and the answers are joined. Not beside `params`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params_arrow: Option<String>,
    /// Runs on this session's connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Uuid>,
    /// With `session`, for a single statement that reads: its rows go into the session's table [`KEPT_TABLE`], the answer is [`Kept`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Interrupts the request after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// At most so many rows; `truncated` in the answer says whether there were more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// Read by the node, ignored by the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// An earlier moment; read by the node, ignored by the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Where a kept result is, in its session.
pub const KEPT_TABLE: &str = "temp.main._tarn_result";

/// The media type of [`crate::format::Format::Flight`].
pub const FLIGHT: &str = "application/x-tarn-flight";

/// Answer of a query that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// How many rows there are.
    pub rows: u64,
}

/// Answer of `POST /describe`, which takes a [`QueryRequest`] and runs nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// `read`, `write`, `ddl` or `other`, the strongest of all statements.
    pub kind: String,
    /// How many statements there are.
    pub statements: usize,
    /// Base64 of an encapsulated Arrow IPC schema message: what a single statement that reads returns. `None` for all else.
    pub schema: Option<String>,
    /// False if types in `schema` depend on the parameters' values, which are not known: there text stands for them. False as well if
    /// the statement may write though it reads by its text (`nextval` in a view), or could not be described without running it.
    pub exact: bool,
    /// The same of its parameters, named `1`, `2`, … or as they are called; those whose type DuckDB can't tell are text.
    pub parameters: Option<String>,
}

/// Body of `POST /sessions`. Ended by `DELETE /sessions/{id}`, which rolls back what is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// The session's id, chosen by the node: random, and bound to the principal that asks.
    pub id: Uuid,
}

/// What an engine says of a session that it does not have, or not any more.
pub const NO_SESSION: &str = "no such session";

/// Body of `POST /sessions/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionSettings {
    /// Names without a schema are looked up in this one of the mart's first.
    pub schema: String,
}

/// What became of the request's effects when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing of it happened.
    None,
    /// All of it, or the statements before the failing one, are committed.
    Committed,
    /// It can't be told.
    Unknown,
}

/// The error codes of the contract that an engine uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed.
    Invalid,
    /// The caller's role or the mart's walls do not allow it.
    Forbidden,
    /// No such query.
    NotFound,
    /// Another transaction was in the way, or a key was used for something else.
    Conflict,
    /// SQL, parameters or a kept answer are over a limit.
    TooLarge,
    /// DuckDB refused the statement.
    Sql,
    /// Out of memory, disk or queue.
    Limited,
    /// Cancelled by the caller.
    Cancelled,
    /// A defect.
    Internal,
    /// The engine is going away.
    Unavailable,
    /// Ran past `timeout_ms`.
    Timeout,
}

impl Code {
    /// The contract's HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Sql => 422,
            Self::Limited => 429,
            Self::Cancelled => 499,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// Body of every answer that is not a success. The node adds `position` and `request_id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What kind of failure.
    pub code: Code,
    /// What went wrong; holds no path, address or key of the server.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The same request may be sent again; only with outcome `none`.
    pub retryable: bool,
    /// What became of the request's effects.
    pub outcome: Outcome,
    /// The failing statement of a script, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement_index: Option<usize>,
    /// How many statements of the script are committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<usize>,
}

/// Body of `POST /checkpoint`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// How long writers may be held off while running ones finish and old readers end.
    #[serde(default)]
    pub reader_wait_ms: u64,
    /// Aborts the queries that still stand in the way after that time (`limited`, retryable) and tries once more.
    #[serde(default)]
    pub abort_readers: bool,
}

/// Answer of `POST /checkpoint`; a checkpoint that could not get through answers 409 `conflict` and has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAnswer {
    /// The iteration after the checkpoint.
    pub iteration: u64,
    /// Commits in the new log when the answer was made; 0 as writers are let in only after it.
    pub wal_bytes: u64,
    /// How long writers were held off.
    pub stall_ms: u64,
}

/// Who the writers' gate lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WritersState {
    /// Every writer; how an engine starts.
    Open,
    /// None for now: new writers wait.
    Closed,
    /// None ever again: new and waiting writers are answered `unavailable`, retryable. Reads go on.
    Retired,
}

/// Body of `POST /writers`. `closed` and `retired` first let running writers end; a later order takes the place of one that waits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WritersRequest {
    /// What the gate is to be.
    pub state: WritersState,
    /// How long running writers may take to end while new ones wait.
    #[serde(default)]
    pub wait_ms: u64,
    /// Stops the writers that are not done by then (`unavailable`, retryable); a COMMIT under way is waited for.
    #[serde(default)]
    pub abort: bool,
}

/// Answer of `POST /writers`. Without success (409 `conflict`) the gate is as it was before the request; `retired` stays for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritersAnswer {
    /// What the gate is now.
    pub state: WritersState,
    /// Checkpoint iteration of the database file.
    pub iteration: u64,
    /// End of the last commit in the write-ahead log; the last there will be as long as the gate stays as it is, unless it is open.
    pub wal_bytes: u64,
}

/// Body of `POST /shutdown`: no new work at once; running work is interrupted after `grace_ms`; once it is done and its answers are
/// with the node, at the latest then, the process ends with status 0.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// How long running queries may go on.
    #[serde(default)]
    pub grace_ms: u64,
}

/// Body of `POST /resize`: how large the engine is from now on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// DuckDB's memory limit.
    pub memory_limit_bytes: u64,
    /// DuckDB's threads.
    pub threads: u32,
}

/// How an engine's process ends.
pub mod exit {
    /// Asked to by `POST /shutdown`.
    pub const OK: i32 = 0;
    /// The configuration or the database can't be opened; one line on stderr says why.
    pub const OPEN: i32 = 2;
    /// The log of a past moment can't be replayed over a file that is only read: it makes an index over rows, and DuckDB writes that
    /// into the file. Restored to a disk of its own, the moment opens like any mart.
    pub const REPLAY: i32 = 3;
    /// The node's end of the life socket closed.
    pub const ORPHAN: i32 = 80;
    /// A query ignored its interrupt for too long.
    pub const DEAF: i32 = 81;
    /// The process passed its memory limit by far.
    pub const MEMORY: i32 = 82;
    /// DuckDB declared the database invalid; reopening recovers it.
    pub const FATAL: i32 = 83;
    /// Its spill files passed their quota by far.
    pub const TEMP: i32 = 84;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_reads_back_what_it_prints() {
        let point = Point { iteration: 7, wal_bytes: 1234 };
        assert_eq!(point.to_string(), "7.1234");
        assert_eq!("7.1234".parse(), Ok(point));
        assert!("7".parse::<Point>().is_err());
        assert!("7.".parse::<Point>().is_err());
    }

    #[test]
    fn a_later_iteration_is_later_whatever_its_log() {
        assert!(Point { iteration: 2, wal_bytes: 0 } > Point { iteration: 1, wal_bytes: u64::MAX });
    }
}
