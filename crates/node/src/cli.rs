//! The command line: parses words, calls the rest, prints. Data goes to stdout, everything else to stderr; 0 is success, 2 wrong
//! usage, 1 any other failure.

mod client;
mod doctor;
mod dsn;
mod flags;
mod health;
mod history;
mod mart;
mod persist;
mod plan;
mod query;
mod serve;
mod shell;
mod table;
mod token;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use flags::Settings;

/// DuckDB as an analytics server whose home is object storage.
#[derive(Parser)]
#[command(
    name = "tarn",
    version,
    arg_required_else_help = true,
    after_help = "Example:\n  tarn serve &\n  tarn query tarn://127.0.0.1:8642/default/dev 'select 42 as answer'"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node.
    #[command(
        after_help = "Example:\n  tarn serve --listen 127.0.0.1:8642 --store file:volumes/objects\n\nEvery flag has an environment variable and a key in tarn.toml: docs/configuration.md."
    )]
    Serve(Settings),
    /// Run SQL and print its last result.
    #[command(
        after_help = "Examples:\n  tarn query tarn://127.0.0.1:8642/default/dev 'select 42 as answer'\n  TARN_DSN=tarn://127.0.0.1:8642/default/dev tarn query 'from flights' --format csv --output flights.csv"
    )]
    Query(query::Args),
    /// Work with a mart in a terminal: SQL over several lines, completion, history, plans, earlier moments.
    #[command(
        after_help = "Examples:\n  tarn shell tarn://127.0.0.1:8642/default/dev\n  echo 'select 42 as answer;' | tarn shell tarn://127.0.0.1:8642/default/dev\n\nVariables: TARN_PAGER (else PAGER, else `less -FRSX`; empty for none), NO_COLOR. The history is $XDG_STATE_HOME/tarn/history."
    )]
    Shell(shell::Args),
    /// Show how DuckDB runs a statement.
    #[command(
        after_help = "Examples:\n  tarn plan tarn://127.0.0.1:8642/default/dev 'select carrier, count(*) from flights group by all'\n  tarn plan 'from flights limit 5' --analyze --format svg --output plan.svg"
    )]
    Plan(plan::Args),
    /// Write a query's result into a table of Postgres: all of it, or nothing.
    #[command(
        after_help = "Example:\n  tarn persist tarn://127.0.0.1:8642/default/dev 'from metrics.daily' --connection reporting --table reports.daily --mode upsert --key day,carrier"
    )]
    Persist(persist::Args),
    /// Make, list and drop marts.
    #[command(subcommand, after_help = "Example:\n  tarn mart create tarn://127.0.0.1:8642/default/sales")]
    Mart(mart::Command),
    /// Make, list and revoke tokens.
    #[command(
        subcommand,
        after_help = "Example:\n  tarn token create tarn://127.0.0.1:8642/acme --role writer --name etl"
    )]
    Token(token::Command),
    /// Name moments of a mart, list them, forget their names.
    #[command(
        subcommand,
        after_help = "Example:\n  tarn snapshot create before-import tarn://127.0.0.1:8642/default/dev"
    )]
    Snapshot(history::SnapshotCommand),
    /// List a mart's moments, newest first.
    #[command(after_help = "Example:\n  tarn history tarn://127.0.0.1:8642/default/dev --from 2026-01-31T00:00:00Z")]
    History(history::HistoryArgs),
    /// Make a mart what it was at an earlier moment. What it is now stays in its history.
    #[command(
        after_help = "Examples:\n  tarn restore tarn://127.0.0.1:8642/default/dev --at 2026-01-31T12:00:00Z --dry-run\n  tarn restore tarn://127.0.0.1:8642/default/dev --at before-import --yes"
    )]
    Restore(history::RestoreArgs),
    /// Make a mart that begins as another was at some moment, and shares its data.
    #[command(after_help = "Example:\n  tarn branch try tarn://127.0.0.1:8642/default/dev --at before-import")]
    Branch(history::BranchArgs),
    /// Rewrite a mart's file without its free space. Writers wait meanwhile; the copy is compared before it is used.
    #[command(after_help = "Example:\n  tarn vacuum tarn://127.0.0.1:8642/default/dev")]
    Vacuum(history::VacuumArgs),
    /// Write a plain, compact DuckDB file of a moment to `duckdb/{mart}/archives/` in the tenant's bucket.
    #[command(
        after_help = "Examples:\n  tarn archive tarn://127.0.0.1:8642/default/dev --storage-class GLACIER_IR\n  tarn archive tarn://127.0.0.1:8642/default/dev --older-than 7"
    )]
    Archive(history::ArchiveArgs),
    /// Set how long every moment of one mart is kept.
    #[command(after_help = "Example:\n  tarn retention tarn://127.0.0.1:8642/default/dev --days 90")]
    Retention(history::RetentionArgs),
    /// Let go what the retention window has passed, now instead of daily.
    #[command(after_help = "Example:\n  tarn sweep tarn://127.0.0.1:8642/default/dev --dry-run")]
    Sweep(history::SweepArgs),
    /// Read a mart's replica back from the object store; exits with 1 if something is damaged.
    #[command(
        after_help = "Examples:\n  tarn verify tarn://127.0.0.1:8642/default/sales\n  tarn verify tarn://127.0.0.1:8642/default/sales --all --repair"
    )]
    Verify(verify::Args),
    /// Ask whether a node serves; exits with 0 if it does. For health checks of containers.
    #[command(after_help = "Example:\n  tarn health http://127.0.0.1:8642/readyz")]
    Health(health::Args),
    /// Check the store, credentials, disk, extensions and limits, and say what to do about each.
    #[command(after_help = "Example:\n  tarn doctor --store s3")]
    Doctor(doctor::Args),
}

/// Runs the command line of this process. `ready` is called once threads may begin, which in an engine is when its walls are up.
pub fn main(ready: fn()) -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("engine") {
        return engine(words, ready);
    }
    ready();
    let ran = match Cli::parse().command {
        Command::Serve(settings) => serve::run(&settings),
        Command::Query(args) => client::block_on(query::run(args)),
        Command::Shell(args) => shell::run(&args),
        Command::Plan(args) => client::block_on(plan::run(args)),
        Command::Persist(args) => client::block_on(persist::run(args)),
        Command::Mart(command) => client::block_on(mart::run(command)),
        Command::Token(command) => client::block_on(token::run(command)),
        Command::Snapshot(command) => client::block_on(history::snapshot(command)),
        Command::History(args) => client::block_on(history::history(args)),
        Command::Restore(args) => client::block_on(history::restore(args)),
        Command::Branch(args) => client::block_on(history::branch(args)),
        Command::Vacuum(args) => client::block_on(history::vacuum(args)),
        Command::Archive(args) => client::block_on(history::archive(args)),
        Command::Retention(args) => client::block_on(history::retention(args)),
        Command::Sweep(args) => client::block_on(history::sweep(args)),
        Command::Verify(args) => client::block_on(verify::run(args)),
        Command::Health(args) => client::block_on(health::run(args)),
        Command::Doctor(args) => doctor::run(&args),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error)
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::FAILURE
        }
        Err(error) => {
            // Nothing is left to tell it to if this fails.
            let _ = writeln!(std::io::stderr(), "tarn: {error:#}");
            if error.is::<dsn::BadUsage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// The process that runs one mart's DuckDB, started by `serve` and by nobody else: no flag, no help.
fn engine(words: impl Iterator<Item = String>, ready: fn()) -> ExitCode {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false).with_writer(std::io::stderr).init();
    engine::process::main(words, ready)
}
