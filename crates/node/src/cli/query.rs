//! `tarn query`: one request, its result to stdout or a file.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::dsn::{BadUsage, Dsn};
use super::table;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `[DSN] SQL`: the mart (default: TARN_DSN), and what to run there.
    #[arg(num_args = 1..=2, required = true, value_name = "DSN SQL")]
    words: Vec<String>,
    /// How to print the result.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Write the result to this file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ask an earlier moment: a time such as 2026-01-31T12:00:00Z, a snapshot's name or a position.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// Answer when the commit is on the node's disk, without waiting for the object store.
    #[arg(long)]
    local: bool,
}

/// How a result is written down.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Ndjson,
    Csv,
    Arrow,
    Parquet,
}

impl Format {
    fn accept(self) -> &'static str {
        match self {
            Self::Table | Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// By what a file is called.
    pub(super) fn of(file: &Path) -> anyhow::Result<Self> {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("json") => Ok(Self::Json),
            Some("ndjson" | "jsonl") => Ok(Self::Ndjson),
            Some("csv") => Ok(Self::Csv),
            Some("arrow" | "arrows") => Ok(Self::Arrow),
            Some("parquet") => Ok(Self::Parquet),
            Some("txt") => Ok(Self::Table),
            _ => Err(anyhow!("the file's name ends in none of .csv .json .ndjson .parquet .arrow .txt")),
        }
    }

    fn is_binary(self) -> bool {
        matches!(self, Self::Arrow | Self::Parquet)
    }
}

#[derive(Deserialize)]
struct Answer {
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
    row_count: u64,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (dsn, sql) = match args.words.as_slice() {
        [sql] => (None, sql),
        [dsn, sql] => (Some(dsn.as_str()), sql),
        _ => return Err(BadUsage("`tarn query [DSN] SQL`".into()).into()),
    };
    if args.format.is_binary() && args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(BadUsage("this format is not for a terminal: add `--output FILE`".into()).into());
    }
    let client = Client::new(Dsn::find(dsn)?)?;
    let mart = client.dsn().mart_id()?;
    let path = format!("/v1/tenants/{}/marts/{}/query", mart.tenant, mart.mart);
    let mut body = json!({"sql": sql, "durability": if args.local { "local" } else { "object" }});
    if let Some(at) = args.at.as_ref().or(client.dsn().at.as_ref()) {
        body["at"] = json!(at);
    }
    let request = client.request(Method::POST, &path).json(&body);
    if let Some(path) = &args.output {
        return save(&client, request, args.format, path).await;
    }
    let progress = Progress::start();
    let response = client.send(request.header("accept", args.format.accept())).await?;
    write(response, args.format, &mut std::io::stdout().lock(), progress).await
}

/// Sends a query and writes its result to a file: all of it, or none.
pub(super) async fn save(client: &Client, request: RequestBuilder, format: Format, path: &Path) -> anyhow::Result<()> {
    let progress = Progress::start();
    let response = client.send(request.header("accept", format.accept())).await?;
    let mut file = File::create(path).with_context(|| format!("can't write `{}`", path.display()))?;
    let written = write(response, format, &mut file, progress).await;
    if written.is_err() {
        // Half a result looks like a whole one.
        let _ = std::fs::remove_file(path);
    }
    written
}

async fn write(response: Response, format: Format, out: &mut impl Write, mut progress: Progress) -> anyhow::Result<()> {
    if format == Format::Table {
        let answer: Answer = response.json().await.context("the result broke off")?;
        progress.clear();
        let names: Vec<_> = answer.columns.into_iter().map(|column| column.name).collect();
        out.write_all(table::render(&names, &answer.rows).as_bytes())?;
        writeln!(out, "({} rows)", answer.row_count)?;
        return Ok(out.flush()?);
    }
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| anyhow!("the result broke off: it is not whole"))?;
        out.write_all(&piece)?;
        progress.add(piece.len());
    }
    if format == Format::Json {
        out.write_all(b"\n")?;
    }
    progress.clear();
    Ok(out.flush()?)
}

/// A line on a terminal once it takes over a second.
struct Progress {
    started: Instant,
    shown: Option<Instant>,
    bytes: usize,
    terminal: bool,
}

impl Progress {
    fn start() -> Self {
        let terminal = std::io::stderr().is_terminal() && !std::io::stdout().is_terminal();
        Self { started: Instant::now(), shown: None, bytes: 0, terminal }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        let due = self.shown.unwrap_or(self.started + Duration::from_millis(800)) + Duration::from_millis(200);
        if self.terminal && Instant::now() > due {
            self.shown = Some(Instant::now());
            eprint!("\r{:.1} MB in {:.0?} ", self.bytes as f64 / 1e6, self.started.elapsed());
        }
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
