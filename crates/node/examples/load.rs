//! A load generator for `make bench`: one thread and one keep-alive connection per client, each sending the same request again as soon as
//! its answer is complete.
//!
//! It speaks just enough HTTP/1.1 for that (a `POST` with a length, answers with a length or chunked) so that measuring costs the server's
//! machine as little as can be. Not a general client: it follows nothing, retries nothing, and stops at the first broken connection.
//! Prints one JSON object: requests, errors (status other than 200), seconds, latencies.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// `load --path /v1/tenants/default/marts/dev/query --connections 32 --body '{"sql":"SELECT 1"}'`
#[derive(Parser)]
struct Args {
    /// Host and port of the server.
    #[arg(long, default_value = "127.0.0.1:8642")]
    address: String,
    /// Path of every request.
    #[arg(long)]
    path: String,
    /// Body of every request; `{i}` becomes a number that no other request of this run has.
    #[arg(long)]
    body: String,
    /// Bearer token.
    #[arg(long, env = "TARN_TOKEN", hide_env_values = true)]
    token: String,
    /// Clients, each with a connection of its own.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Length of the run; one second before it warms up and is not counted.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

const WARM_UP: Duration = Duration::from_secs(1);

/// What one client saw after the warm-up.
#[derive(Default)]
struct Seen {
    latencies_us: Vec<u32>,
    errors: u64,
    first_error: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let counter = AtomicU64::new(0);
    let ready = Barrier::new(args.connections);
    let seen = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..args.connections).map(|_| scope.spawn(|| client(&args, &counter, &ready))).collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client thread returns its errors"))
            .collect::<Result<Vec<Seen>>>()
    })?;
    report(&args, seen);
    Ok(())
}

fn client(args: &Args, counter: &AtomicU64, ready: &Barrier) -> Result<Seen> {
    let connection = TcpStream::connect(&args.address).with_context(|| format!("connect to `{}`", args.address));
    // Every thread passes the barrier, also one that failed: the others would wait for it forever.
    ready.wait();
    let stream = connection?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n",
        args.path, args.address, args.token
    );
    let mut seen = Seen::default();
    let start = Instant::now();
    let end = WARM_UP + Duration::from_secs_f64(args.seconds);
    let mut answer = Vec::new();
    loop {
        let sent = start.elapsed();
        if sent >= end {
            return Ok(seen);
        }
        let body = args.body.replace("{i}", &counter.fetch_add(1, Ordering::Relaxed).to_string());
        write!(writer_buffer(&mut answer), "{head}content-length: {}\r\n\r\n{body}", body.len())?;
        writer.write_all(&answer)?;
        let status = read_answer(&mut reader, &mut answer)?;
        let took = start.elapsed() - sent;
        if sent >= WARM_UP {
            seen.latencies_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
        if status != 200 {
            seen.errors += 1;
            seen.first_error.get_or_insert_with(|| format!("{status}: {}", String::from_utf8_lossy(&answer)));
        }
    }
}

/// The answer's buffer serves for the request too: they never overlap.
fn writer_buffer(buffer: &mut Vec<u8>) -> &mut Vec<u8> {
    buffer.clear();
    buffer
}

/// Reads one whole answer; its body is left in `body`.
fn read_answer(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Result<u16> {
    let mut line = String::new();
    read_line(reader, &mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status line")?;
    let mut length = None;
    let mut chunked = false;
    loop {
        read_line(reader, &mut line)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').context("a header line")?;
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    body.clear();
    match length {
        Some(length) => append(reader, body, length)?,
        None if chunked => read_chunks(reader, body, &mut line)?,
        None => bail!("an answer with neither length nor chunks"),
    }
    Ok(status)
}

fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>, line: &mut String) -> Result<()> {
    loop {
        read_line(reader, line)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("a chunk's size, got `{size}`"))?;
        if size == 0 {
            break;
        }
        append(reader, body, size)?;
        read_line(reader, line)?;
    }
    // Trailers, if any, up to the empty line.
    while !line.is_empty() {
        read_line(reader, line)?;
    }
    Ok(())
}

fn append(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let start = body.len();
    body.resize(start + length, 0);
    reader.read_exact(&mut body[start..])
}

fn read_line(reader: &mut BufReader<TcpStream>, line: &mut String) -> Result<()> {
    line.clear();
    if reader.read_line(line)? == 0 {
        bail!("the server closed the connection");
    }
    line.truncate(line.trim_end().len());
    Ok(())
}

fn report(args: &Args, seen: Vec<Seen>) {
    let errors: u64 = seen.iter().map(|client| client.errors).sum();
    let first_error = seen.iter().find_map(|client| client.first_error.clone());
    let mut latencies: Vec<u32> = seen.into_iter().flat_map(|client| client.latencies_us).collect();
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).map(|us| f64::from(*us) / 1000.0);
    let report = serde_json::json!({
        "connections": args.connections,
        "requests": latencies.len(),
        "errors": errors,
        "first_error": first_error,
        "per_second": latencies.len() as f64 / args.seconds,
        "p50_ms": at(0.50),
        "p99_ms": at(0.99),
    });
    println!("{report}");
}
