//! The process that runs DuckDB for one mart and serves it over HTTP on a unix socket; the only crate that names DuckDB.
//!
//! It knows nothing of tenants, tokens, object storage or credentials other than its own key to the node's gateway.

pub mod commit;
pub mod config;
pub mod duck;
pub mod files;
pub mod open;
pub mod pipe;
pub mod pool;
pub mod queries;
pub mod session;
pub mod wal;
pub mod wire;
pub mod writers;

pub mod format;
pub mod params;
pub mod sql;
