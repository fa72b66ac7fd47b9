//! The peer that `make bench` compares the server with: the same statements on as many connections, on DuckDB in this very process.
//!
//! No gate, no encoder, no socket: what DuckDB itself takes for `duckdb_query`, commits fsynced as DuckDB does by default. One thread per
//! connection, one second of warm-up. Prints one JSON object like the load generator's.
//!
//! `peer --db FILE|:memory: --connections N --seconds S [--setup SQL] --sql SQL`; `{i}` in SQL becomes a number of its own each time.

use std::ffi::{CStr, CString};
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libduckdb_sys as duck;

const WARM_UP: Duration = Duration::from_secs(1);

struct Args {
    db: String,
    connections: usize,
    seconds: f64,
    setup: Option<String>,
    sql: String,
}

fn main() -> ExitCode {
    match parse().and_then(|args| run(&args)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Args, String> {
    let mut args = Args { db: ":memory:".into(), connections: 1, seconds: 5.0, setup: None, sql: "SELECT 1".into() };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        let value = words.next().ok_or(format!("`{flag}` wants a value"))?;
        match flag.as_str() {
            "--db" => args.db = value,
            "--connections" => args.connections = value.parse().map_err(|_| "`--connections` wants a number")?,
            "--seconds" => args.seconds = value.parse().map_err(|_| "`--seconds` wants a number")?,
            "--setup" => args.setup = Some(value),
            "--sql" => args.sql = value,
            _ => return Err(format!("`{flag}` is not known")),
        }
    }
    Ok(args)
}

fn run(args: &Args) -> Result<serde_json::Value, String> {
    let database = Database::open(&args.db)?;
    if let Some(setup) = &args.setup {
        database.connect()?.query(setup)?;
    }
    let counter = AtomicU64::new(0);
    let connections = (0..args.connections).map(|_| database.connect()).collect::<Result<Vec<_>, _>>()?;
    let latencies = std::thread::scope(|scope| {
        let clients: Vec<_> =
            connections.into_iter().map(|connection| scope.spawn(|| client(args, connection, &counter))).collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client thread returns its errors"))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut latencies = latencies.concat();
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).map(|us| f64::from(*us) / 1000.0);
    Ok(serde_json::json!({
        "connections": args.connections,
        "requests": latencies.len(),
        "errors": 0,
        "per_second": latencies.len() as f64 / args.seconds,
        "p50_ms": at(0.50),
        "p99_ms": at(0.99),
    }))
}

fn client(args: &Args, mut connection: Connection, counter: &AtomicU64) -> Result<Vec<u32>, String> {
    let mut latencies = Vec::new();
    let start = Instant::now();
    let end = WARM_UP + Duration::from_secs_f64(args.seconds);
    loop {
        let sent = start.elapsed();
        if sent >= end {
            return Ok(latencies);
        }
        connection.query(&args.sql.replace("{i}", &counter.fetch_add(1, Ordering::Relaxed).to_string()))?;
        if sent >= WARM_UP {
            let took = start.elapsed() - sent;
            latencies.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }
}

struct Database(duck::duckdb_database);

impl Database {
    fn open(path: &str) -> Result<Database, String> {
        let path = CString::new(path).map_err(|_| "`--db` holds a zero byte")?;
        let mut handle = ptr::null_mut();
        // SAFETY: `path` outlives the call; `handle` is written by it.
        match unsafe { duck::duckdb_open(path.as_ptr(), &mut handle) } {
            duck::duckdb_state_DuckDBSuccess => Ok(Database(handle)),
            _ => Err("the database does not open".into()),
        }
    }

    fn connect(&self) -> Result<Connection, String> {
        let mut handle = ptr::null_mut();
        // SAFETY: the database is open; `handle` is written by the call.
        match unsafe { duck::duckdb_connect(self.0, &mut handle) } {
            duck::duckdb_state_DuckDBSuccess => Ok(Connection(handle)),
            _ => Err("the database takes no connection".into()),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: every connection was dropped before: `run` moves them into threads that it joins.
        unsafe { duck::duckdb_close(&mut self.0) }
    }
}

struct Connection(duck::duckdb_connection);

// SAFETY: DuckDB's connections may move between threads; `query` takes `&mut self`, so no two threads use one at a time.
unsafe impl Send for Connection {}

impl Connection {
    fn query(&mut self, sql: &str) -> Result<(), String> {
        let sql = CString::new(sql).map_err(|_| "`--sql` holds a zero byte")?;
        // SAFETY: an all-zero result is what `duckdb_query` expects to fill; it is destroyed once, after its error was copied.
        unsafe {
            let mut result = std::mem::zeroed();
            let state = duck::duckdb_query(self.0, sql.as_ptr(), &mut result);
            let outcome = match state {
                duck::duckdb_state_DuckDBSuccess => Ok(()),
                _ => Err(CStr::from_ptr(duck::duckdb_result_error(&mut result)).to_string_lossy().into_owned()),
            };
            duck::duckdb_destroy_result(&mut result);
            outcome
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: connected once, disconnected once.
        unsafe { duck::duckdb_disconnect(&mut self.0) }
    }
}
