//! The `tarn` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    node::cli::main()
}
