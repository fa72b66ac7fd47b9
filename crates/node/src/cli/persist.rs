//! `tarn persist`: a query's result into a table of Postgres, by the node.

use anyhow::Context;
use reqwest::Method;
use serde_json::json;

use super::client::Client;
use super::dsn::{BadUsage, Dsn};

#[derive(clap::Args)]
pub(super) struct Args {
    /// `[DSN] SQL`: the mart (default: TARN_DSN), and the query.
    #[arg(num_args = 1..=2, required = true, value_name = "DSN SQL")]
    words: Vec<String>,
    /// The Postgres connection, by the name that the node knows it by.
    #[arg(long, value_name = "NAME")]
    connection: String,
    /// `table` or `schema.table`.
    #[arg(long, value_name = "TABLE")]
    table: String,
    /// What becomes of the table.
    #[arg(long, value_parser = ["create", "append", "replace", "upsert"])]
    mode: String,
    /// The columns that tell rows apart, for `upsert`.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    key: Vec<String>,
    /// Do it once, however often it is asked for under this key.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// The result at an earlier moment: a time, a snapshot's name or a position.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// Answer as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (dsn, sql) = match args.words.as_slice() {
        [sql] => (None, sql),
        [dsn, sql] => (Some(dsn.as_str()), sql),
        _ => return Err(BadUsage("`tarn persist [DSN] SQL`".into()).into()),
    };
    let client = Client::new(Dsn::find(dsn)?)?;
    let mart = client.dsn().mart_id()?;
    let body = json!({
        "sql": sql,
        "postgres": {"connection": args.connection, "table": args.table, "mode": args.mode, "key": args.key},
        "idempotency_key": args.idempotency_key,
        "at": args.at.as_ref().or(client.dsn().at.as_ref()),
    });
    let path = format!("/v1/tenants/{}/marts/{}/persist", mart.tenant, mart.mart);
    let told = client.json(client.request(Method::POST, &path).json(&body)).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&told).context("the answer is JSON")?);
    } else {
        let before = if told["replayed"] == json!(true) { ", as it was before under this key" } else { "" };
        println!(
            "{} rows in {} of `{}`{before}; checksum {}",
            told["rows"],
            args.table,
            args.connection,
            told["checksum"].as_str().unwrap_or_default()
        );
    }
    Ok(())
}
