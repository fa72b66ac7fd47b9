//! The engine as a process: configuration from standard input, inherited sockets, and all the ways it ends.
//!
//! # Crash consistency
//! Every end is abrupt (`_exit`): no checkpoint, no destructor of DuckDB. What is committed is in the log, and the next open finds it.

mod memory;

use std::{
    io::{self, Read},
    os::{
        fd::{FromRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
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
    open,
    queries::Queries,
    server::Server,
    wire::exit,
};

unsafe extern "C" {
    /// Ends the process at once, without exit handlers (POSIX).
    fn _exit(code: i32) -> !;
}

const USAGE: &str = "usage: tarn engine (configuration on standard input) | tarn engine --fold FILE | \
    tarn engine --compact FROM TO [--memory BYTES] [--threads N] | tarn engine --check FILE [--memory BYTES] [--threads N] | \
    tarn engine --diff FROM TO [--memory BYTES] [--threads N]";

/// Runs `tarn engine`: it serves a mart, or does one thing with plain copies of one and ends. What it found it then prints as a line
/// of JSON on standard output.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        [] => serve(),
        ["--fold", file] => open::fold(file.as_ref()).map_err(|error| error.to_string()),
        ["--compact", from, to, flags @ ..] => {
            limits(flags).and_then(|limits| said(compact::compact(from.as_ref(), to.as_ref(), limits)))
        }
        ["--diff", from, to, flags @ ..] => {
            limits(flags).and_then(|limits| said(compact::diff(from.as_ref(), to.as_ref(), limits)))
        }
        ["--check", file, flags @ ..] => limits(flags).and_then(|limits| said(compact::check(file.as_ref(), limits))),
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

fn serve() -> Result<(), String> {
    let config = read_config().map_err(|error| format!("reading the configuration: {error}"))?;
    watch_life(config.life_fd).map_err(|error| format!("watching the node: {error}"))?;
    memory::limit_damage();
    // SAFETY: the node opened this listener for us and nothing else in this process uses the descriptor.
    let listener = unsafe { UnixListener::from_raw_fd(config.listen_fd) };
    let engine = match Engine::open(&config) {
        Ok(engine) => engine,
        Err(error) if config.view.is_some() && error.is_replay() => {
            eprintln!("engine: the log can't be replayed over a file that is only read");
            end(exit::REPLAY);
        }
        Err(error) => return Err(format!("opening the mart: {error}")),
    };
    memory::watch(config.memory_limit_bytes, engine.queries.clone())
        .map_err(|error| format!("watching memory: {error}"))?;
    watch_queries(engine.queries.clone(), Duration::from_millis(config.deaf_ms))
        .map_err(|error| format!("starting a thread: {error}"))?;
    let server = Server::new(engine, config.max_queries);
    let code = run(server, listener).map_err(|error| format!("serving: {error}"))?;
    end(code)
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

fn read_config() -> io::Result<EngineConfig> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

/// Ends the process as soon as the node's end of the socket pair is closed, also while DuckDB is deaf.
fn watch_life(fd: RawFd) -> io::Result<()> {
    // SAFETY: the node made this descriptor for us and nothing else in this process uses it.
    let mut life = unsafe { UnixStream::from_raw_fd(fd) };
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
