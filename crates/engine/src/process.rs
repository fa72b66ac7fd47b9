//! The engine as a process: configuration from standard input, inherited sockets, and all the ways it ends.
//!
//! # Crash consistency
//! Every end is abrupt (`_exit`): no checkpoint, no destructor of DuckDB. What is committed is in the log, and the next open finds it.

mod memory;
mod temp;

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::FromRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    compact::{self, CompactError, Limits},
    config::EngineConfig,
    exec::Engine,
    handover::{self, Hello},
    open,
    queries::Queries,
    server::Server,
    walls::{self, First, Ground, Report},
    wire::exit,
};

unsafe extern "C" {
    /// Ends the process at once, without exit handlers (POSIX).
    fn _exit(code: i32) -> !;
}

const USAGE: &str = "usage: tarn engine (started by a node) | tarn engine --fold FILE | \
    tarn engine --walls DIR | tarn engine --compact FROM TO [--memory BYTES] [--threads N] | tarn engine --check FILE [--memory BYTES] [--threads N] | \
    tarn engine --diff FROM TO [--memory BYTES] [--threads N]";

/// Runs `tarn engine`: it serves a mart, or does one thing with plain copies of one and ends. What it found it then prints as a line
/// of JSON on standard output. `ready` is called once the walls are up, when threads may begin.
pub fn main(args: impl Iterator<Item = String>, ready: fn()) -> ExitCode {
    let args: Vec<String> = args.collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        [] => serve(ready),
        ["--walls", dir] => {
            let report = wall_in(&[&format!("{dir}/x")]);
            println!("{}", serde_json::to_string(&report).expect("plain structs have a JSON form"));
            Ok(())
        }
        ["--fold", file] => {
            wall_in(&[file]);
            open::fold(file.as_ref()).map_err(|error| error.to_string())
        }
        ["--compact", from, to, flags @ ..] => {
            wall_in(&[from, to]);
            limits(flags).and_then(|limits| said(compact::compact(from.as_ref(), to.as_ref(), limits)))
        }
        ["--diff", from, to, flags @ ..] => {
            wall_in(&[from, to]);
            limits(flags).and_then(|limits| said(compact::diff(from.as_ref(), to.as_ref(), limits)))
        }
        ["--check", file, flags @ ..] => {
            wall_in(&[file]);
            limits(flags).and_then(|limits| said(compact::check(file.as_ref(), limits)))
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // One line, whatever DuckDB says.
            eprintln!("engine: {}", message.replace('\n', " "));
            ExitCode::from(exit::OPEN as u8)
        }
    }
}

fn said<T: Serialize>(result: Result<T, CompactError>) -> Result<(), String> {
    let found = result.map_err(|error| error.to_string())?;
    println!("{}", serde_json::to_string(&found).expect("plain structs have a JSON form"));
    Ok(())
}

fn limits(flags: &[&str]) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for pair in flags.chunks(2) {
        let number = pair.get(1).and_then(|text| text.parse::<u64>().ok());
        match (pair[0], number) {
            ("--memory", Some(bytes)) => limits.memory_bytes = bytes,
            ("--threads", Some(threads)) => limits.threads = u32::try_from(threads).unwrap_or(u32::MAX),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(limits)
}

fn serve(ready: fn()) -> Result<(), String> {
    walls::close_descriptors(handover::KEPT);
    let First { report, door } = walls::first(true);
    let hello = Hello { report };
    let talk = io::stdin();
    let begun =
        handover::introduce(&talk, &hello, door).map_err(|error| format!("reading the configuration: {error}"))?;
    // The lock on the mart is only kept open.
    let Some((config, _lock)) = begun else { end(exit::ORPHAN) };
    memory::limit_damage();
    let status = memory::Status::open().map_err(|error| format!("watching memory: {error}"))?;
    let ground = ground(&config).map_err(|error| format!("making the mart's directories: {error}"))?;
    let report = walls::second(hello.report, &ground);
    for (wall, why) in report.lacking() {
        if config.required_walls.contains(&wall) {
            return Err(format!("the wall `{wall}` is required and does not stand: {why}"));
        }
    }
    ready();
    // SAFETY: the node made both descriptors for us and nothing else in this process uses them.
    let (life, listener) =
        unsafe { (UnixStream::from_raw_fd(handover::LIFE), UnixListener::from_raw_fd(handover::LISTENER)) };
    watch_life(life).map_err(|error| format!("watching the node: {error}"))?;
    let engine = match Engine::open(&config) {
        Ok(engine) => engine,
        Err(error) if config.view.is_some() && error.is_replay() => {
            eprintln!("engine: the log can't be replayed over a file that is only read");
            end(exit::REPLAY);
        }
        Err(error) => return Err(format!("opening the mart: {error}")),
    };
    memory::watch(status, engine.memory_limit_bytes.clone(), engine.queries.clone())
        .map_err(|error| format!("watching memory: {error}"))?;
    temp::watch(config.temp_dir.clone(), config.max_temp_bytes, engine.queries.clone())
        .map_err(|error| format!("watching spill files: {error}"))?;
    watch_queries(engine.queries.clone(), Duration::from_millis(config.deaf_ms))
        .map_err(|error| format!("starting a thread: {error}"))?;
    let server = Server::new(engine, config.max_queries);
    let code = run(server, listener).map_err(|error| format!("serving: {error}"))?;
    end(code)
}

/// What the engine of a mart touches.
fn ground(config: &EngineConfig) -> io::Result<Ground> {
    let files = config.db_path.parent().map(Path::to_owned);
    let own: Vec<PathBuf> = files.into_iter().chain([config.temp_dir.clone(), config.home_dir.clone()]).collect();
    for dir in &own {
        fs::create_dir_all(dir)?;
    }
    let port = config.gateway.as_ref().and_then(|gateway| gateway.endpoint.rsplit_once(':')?.1.parse().ok());
    Ok(Ground { own, read: config.httpfs_path.iter().cloned().collect(), port })
}

/// The same walls around work on plain files, without any way out.
fn wall_in(paths: &[&str]) -> Report {
    walls::close_descriptors(3);
    let own = paths.iter().filter_map(|path| Path::new(path).parent().map(Path::to_owned)).collect();
    walls::second(walls::first(false).report, &Ground { own, ..Ground::default() })
}

fn run(server: Arc<Server>, listener: UnixListener) -> io::Result<i32> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("io").enable_all().build()?;
    runtime.block_on(async {
        // Both may reach the whole process group; the node decides when its engines end.
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
            let mut asked = signal(kind)?;
            tokio::spawn(async move { while asked.recv().await.is_some() {} });
        }
        server.serve(listener).await
    })
}

/// Ends the process as soon as the node's end of the socket pair is closed, also while DuckDB is deaf.
fn watch_life(mut life: UnixStream) -> io::Result<()> {
    life.set_nonblocking(false)?;
    thread::Builder::new().name("life".into()).spawn(move || {
        let mut byte = [0];
        loop {
            match life.read(&mut byte) {
                Ok(0) => end(exit::ORPHAN),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => end(exit::ORPHAN),
                _ => {}
            }
        }
    })?;
    Ok(())
}

fn watch_queries(queries: Arc<Queries>, deaf: Duration) -> io::Result<()> {
    thread::Builder::new().name("watch".into()).spawn(move || queries.watch(deaf, || end(exit::DEAF)))?;
    Ok(())
}

/// Ends this process now.
fn end(code: i32) -> ! {
    // SAFETY: takes no memory of ours along that anyone could still use.
    unsafe { _exit(code) }
}
