//! Pipelines on Temporal: activities over Tarn's public API, and the workflows that are made of them.
//!
//! Nothing here knows DuckDB, object storage or Postgres: all work is done by a node, and a worker may die at any moment. Each activity that
//! writes has an idempotency key made of the workflow's run and the activity's id, so that it runs once however often it is tried.

pub mod activities;
pub mod cli;
pub mod definition;
pub mod schedules;
pub mod tarn;
pub mod temporal;
pub mod workflows;
