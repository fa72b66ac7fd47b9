//! Lets programs and tests that link this crate find `libduckdb.so` at run time: beside themselves first, then where it was linked.

fn main() {
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    if let Ok(dir) = std::env::var("DUCKDB_LIB_DIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN:{dir}");
        // The node's binary links this crate: it reads the directory from here.
        println!("cargo:lib_dir={dir}");
    }
}
