//! Claims about one engine with a real DuckDB, from the commit's position to the socket.

mod commits;
mod faults;
mod process;
mod queries;
mod streams;
mod support;
mod walls;
mod writers;
