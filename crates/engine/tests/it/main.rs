//! Claims about one engine with a real DuckDB, from the commit's position to the socket.

mod commits;
mod compact;
mod escapes;
mod faults;
mod flight;
mod hostile_loads;
mod load_types;
mod loads;
mod parquet;
mod process;
mod queries;
mod ranges;
mod replays;
mod sessions;
mod streams;
mod support;
mod views;
mod walls;
mod writers;
