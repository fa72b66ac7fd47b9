//! Tells the linker where the binary and the tests find `libduckdb.so`, and the binary where extensions lie in a checkout.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=DUCKDB_LIB_DIR");
    let dir = std::env::var_os("DUCKDB_LIB_DIR").map(PathBuf::from).unwrap_or_else(|| "/usr/local/lib".into());
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", dir.display());
    println!("cargo::rustc-env=TARN_BUILD_DUCKDB_DIR={}", dir.display());
}
