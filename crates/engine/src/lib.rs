//! The process that runs DuckDB for one mart and serves it over HTTP on a unix socket; the only crate that names DuckDB.
//!
//! It knows nothing of tenants, tokens, object storage or credentials other than its own key to the node's gateway.

pub mod buffer;
pub mod checkpoint;
pub mod commit;
pub mod compact;
pub mod config;
pub mod duck;
pub mod exec;
pub mod failure;
pub mod files;
pub mod format;
pub mod handover;
pub mod hidden;
pub mod load;
pub mod open;
pub mod orders;
pub mod params;
pub mod pipe;
pub mod pool;
pub mod process;
pub mod queries;
pub mod replay;
pub mod server;
pub mod session;
pub mod sessions;
pub mod sql;
pub mod view;
pub mod wal;
pub mod walls;
pub mod wire;
pub mod writers;
