//! The node: one process that routes tenants' requests to the engines of their marts, keeps every mart's replica in object
//! storage, and speaks S3 to the engines. It never decodes a result and never opens a mart's files with DuckDB.
//!
//! Dependencies point one way: `cli`, `http`, `flight` → `app`, `running` → `auth`, `control`, `router` → `marts` → `replicator` → `watcher` → `supervisor` →
//! `engine_client`; `stores`, `cluster` and `gateway` stand beside them.

pub mod admission;
pub mod app;
pub mod archive;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod control;
pub mod door;
pub mod engine_client;
pub mod error;
pub mod flight;
pub mod followers;
pub mod gateway;
pub mod http;
pub mod jobs;
pub mod marts;
pub mod metrics;
pub mod names;
pub mod orders;
pub mod past;
pub mod persist;
pub mod pins;
mod plan;
mod precedence;
pub mod profiles;
pub mod publish;
pub mod replicator;
pub mod revocation;
pub mod room;
pub mod router;
pub mod running;
pub mod scratch;
pub mod server;
pub mod slow;
pub mod stores;
pub mod supervisor;
pub mod tls;
pub mod traces;
pub mod upkeep;
pub mod vacuum;
pub mod verify;
pub mod visit;
pub mod watcher;
