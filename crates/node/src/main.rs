//! The `tarn` binary.
//!
//! Its allocator is jemalloc, for the node and for engines: it exports `malloc` and DuckDB, which plans every statement out of thousands
//! of small allocations, finds it there. A small statement takes a quarter less time than with the C library's.

use std::ffi::{c_char, c_int, c_void};
use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Few arenas and a quick return of what is free: an engine is judged by its resident memory. The threads that return it
/// begin later: an engine's walls go up before there are threads.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"narenas:4,background_thread:false,dirty_decay_ms:500,muzzy_decay_ms:0\0";

unsafe extern "C" {
    /// Reads and writes jemalloc's settings (jemalloc(3)).
    fn mallctl(name: *const c_char, old: *mut c_void, old_size: *mut usize, new: *mut c_void, new_size: usize)
    -> c_int;
}

fn main() -> ExitCode {
    node::cli::main(return_memory_in_background)
}

/// Has freed memory returned to the system by threads of the allocator's own, not only when somebody allocates.
fn return_memory_in_background() {
    let mut on = true;
    // SAFETY: `background_thread` is a C `bool`, which Rust's is; the call copies it.
    let failed = unsafe {
        mallctl(
            c"background_thread".as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw mut on).cast(),
            size_of::<bool>(),
        )
    };
    debug_assert_eq!(failed, 0, "jemalloc knows the setting");
}
