//! `tarn mart create|list|drop`.

use std::io::{IsTerminal, Write};

use anyhow::bail;
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::dsn::{BadUsage, Dsn};
use super::table;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a mart.
    #[command(after_help = "Example:\n  tarn mart create tarn://127.0.0.1:8642/default/sales")]
    Create {
        /// The new mart (default: TARN_DSN).
        dsn: Option<String>,
        /// The profile of requests that name none.
        #[arg(long)]
        profile: Option<String>,
    },
    /// List a tenant's marts.
    #[command(after_help = "Example:\n  tarn mart list tarn://127.0.0.1:8642/default")]
    List {
        /// The tenant (default: TARN_DSN).
        dsn: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Drop a mart with all its data.
    #[command(after_help = "Example:\n  tarn mart drop tarn://127.0.0.1:8642/default/sales --yes")]
    Drop {
        /// The mart (default: TARN_DSN).
        dsn: Option<String>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { dsn, profile } => {
            let client = Client::new(Dsn::find(dsn.as_deref())?)?;
            let mart = client.dsn().mart_id()?;
            let request = client.request(Method::POST, &format!("/v1/tenants/{}/marts", mart.tenant));
            client.json(request.json(&json!({"name": mart.mart, "profile": profile}))).await?;
            eprintln!("mart `{mart}` made");
        }
        Command::List { dsn, json } => {
            let client = Client::new(Dsn::find(dsn.as_deref())?)?;
            let Some(tenant) = client.dsn().tenant.clone() else {
                return Err(BadUsage("the DSN names no tenant: `tarn://HOST:PORT/TENANT`".into()).into());
            };
            let answer = client.json(client.request(Method::GET, &format!("/v1/tenants/{tenant}/marts"))).await?;
            print_list(&answer["marts"], &["name", "created"], json)?;
        }
        Command::Drop { dsn, yes } => {
            let client = Client::new(Dsn::find(dsn.as_deref())?)?;
            let mart = client.dsn().mart_id()?;
            if !yes && !confirmed(&format!("drop mart `{mart}` with all its data?"))? {
                bail!("not dropped");
            }
            client
                .send(client.request(Method::DELETE, &format!("/v1/tenants/{}/marts/{}", mart.tenant, mart.mart)))
                .await?;
            eprintln!("mart `{mart}` dropped");
        }
    }
    Ok(())
}

/// Asks a person.
pub(super) fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(BadUsage("add `--yes` when nobody can be asked".into()).into());
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

/// A list of objects as JSON or as a table of some of their fields.
pub(super) fn print_list(list: &Value, fields: &[&str], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, list)?;
        writeln!(out)?;
        return Ok(());
    }
    let rows: Vec<Vec<Value>> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| fields.iter().map(|field| entry[field].clone()).collect())
        .collect();
    let names: Vec<_> = fields.iter().map(|field| (*field).to_owned()).collect();
    out.write_all(table::render(&names, &rows).as_bytes())?;
    Ok(())
}
