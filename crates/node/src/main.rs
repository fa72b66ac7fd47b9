//! The `tarn` binary.
//!
//! Its allocator is jemalloc, for the node and for engines: it exports `malloc` and DuckDB, which plans every statement out of thousands
//! of small allocations, finds it there. A small statement takes a quarter less time than with the C library's.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Few arenas and a quick return of what is free: an engine is judged by its resident memory.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"narenas:4,background_thread:true,dirty_decay_ms:500,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    node::cli::main()
}
