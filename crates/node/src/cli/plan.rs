//! `tarn plan`: how DuckDB would run a statement, or did.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use reqwest::Method;
use serde_json::json;

use super::client::Client;
use super::dsn::{BadUsage, Dsn};
use crate::plan::Format;

#[derive(clap::Args)]
pub(super) struct Args {
    /// `[DSN] SQL`: the mart (default: TARN_DSN), and the statement.
    #[arg(num_args = 1..=2, required = true, value_name = "DSN SQL")]
    words: Vec<String>,
    /// Run it, and say how long each operator took.
    #[arg(long)]
    analyze: bool,
    /// How to write the plan.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Write it to this file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Plan against an earlier moment: a time, a snapshot's name or a position.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (dsn, sql) = match args.words.as_slice() {
        [sql] => (None, sql),
        [dsn, sql] => (Some(dsn.as_str()), sql),
        _ => return Err(BadUsage("`tarn plan [DSN] SQL`".into()).into()),
    };
    let client = Client::new(Dsn::find(dsn)?)?;
    let mart = client.dsn().mart_id()?;
    let mut body = json!({"sql": sql, "analyze": args.analyze, "format": args.format});
    if let Some(at) = args.at.as_ref().or(client.dsn().at.as_ref()) {
        body["at"] = json!(at);
    }
    let path = format!("/v1/tenants/{}/marts/{}/plan", mart.tenant, mart.mart);
    let plan = client.send(client.request(Method::POST, &path).json(&body)).await?.bytes().await;
    let plan = plan.context("the plan broke off")?;
    if let Some(path) = &args.output {
        return std::fs::write(path, &plan).with_context(|| format!("can't write `{}`", path.display()));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&plan)?;
    if !plan.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
