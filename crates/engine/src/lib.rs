//! The process that runs DuckDB for one mart and serves it over HTTP on a unix socket; the only crate that names DuckDB.
//!
//! It knows nothing of tenants, tokens, object storage or credentials other than its own key to the node's gateway.

pub mod config;
pub mod wire;

pub mod sql;
