//! Bulk loads: a body of Arrow, Parquet, CSV or NDJSON becomes rows of a table, all or nothing.
//!
//! Arrow goes straight from the socket into an INSERT, a group of batches at a time ([`ipc`], [`groups`], [`scan`]); the other formats are
//! read by DuckDB itself from a file of the engine's own. Here is how a body is read; what statements are run is in `exec::load`.
//! **Invariant:** nothing here commits, and a body that is not whole ends as an error, never as its end.

pub mod body;
pub mod depth;
mod expanded;
pub mod groups;
pub mod ipc;
pub mod places;
pub mod reader;
pub mod scan;
pub mod shape;
pub mod spool;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use reader::read_failure;

use crate::{failure::Failure, wire::Code};

/// Runs what may panic on bytes that nobody vouches for, as Arrow's code does in places.
pub fn guarded<T>(call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Failure::new(Code::Invalid, "the body can't be decoded: it contradicts itself")))
}
