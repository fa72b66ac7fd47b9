//! A mart's copy in object storage: a log of commits with bases, as bytes.
//!
//! Knows DuckDB's file and WAL *framing*; does not know DuckDB, HTTP, or tenants. Start at [`MartReplica`]: it opens a mart for
//! writing ([`open`]: reuse local files, or restore them) and hands out the one [`Shipper`] that makes commits durable.
//!
//! **Invariants:** data first, record second; the log is strictly sequential and its slots are the only conditional write;
//! everything read back is checked by blake3; epochs, never clocks, decide who may write.

pub mod error;
pub mod hash;
pub mod history;
pub mod image;
pub mod layout;
pub mod local;
pub mod log;
pub mod manifest;
pub mod mount;
pub mod names;
pub mod open;
pub mod pack;
pub mod past;
pub mod plan;
pub mod position;
pub mod record;
pub mod restore;
pub mod retention;
pub mod ship;
pub mod store;
pub mod verify;
pub mod view;
pub mod wal;
pub mod writer;

pub use error::{Error, Result};
pub use log::Stores;
pub use open::{How, MartReplica, Opened};
pub use position::{CommitPoint, Position};
pub use ship::{Adopt, Shipper};
pub use store::FileStore;
pub use writer::Writer;

/// Name of the database in a mart's directory; its WAL is this with `.wal` appended.
pub const DB_FILE: &str = "mart.db";
/// Name of the WAL in a mart's directory.
pub const WAL_FILE: &str = "mart.db.wal";
