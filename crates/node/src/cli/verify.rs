//! `tarn verify`: has the node read a mart's replica back, and shows what is wrong with it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::dsn::Dsn;

/// Nobody is told about less.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(super) struct Args {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// Everything that is retained, not only what the newest moment needs.
    #[arg(long)]
    all: bool,
    /// Put damaged objects back from the bucket's older versions.
    #[arg(long)]
    repair: bool,
    /// Restore the newest moment on the node, aside, and read every row.
    #[arg(long)]
    trial: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let client = Client::new(Dsn::find(args.dsn.as_deref())?)?;
    let mart = client.dsn().mart_id()?;
    let path = format!("/v1/tenants/{}/marts/{}/verify", mart.tenant, mart.mart);
    let body = json!({"all": args.all, "repair": args.repair, "trial": args.trial});
    let report = waited(client.json(client.request(Method::POST, &path).json(&body))).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(shown(&report).as_bytes())?;
    }
    drop(out);
    let problems = list(&report, "problems").len();
    if problems > 0 {
        let advice =
            if args.repair { "docs/recovery.md says what else can be done" } else { "`--repair` tries older versions" };
        bail!("{problems} damaged; {advice}");
    }
    if args.trial && report["trial"].is_null() {
        bail!("nothing was restored on trial: the mart is empty");
    }
    Ok(())
}

/// Says on a terminal how long it takes.
async fn waited(answer: impl Future<Output = anyhow::Result<Value>>) -> anyhow::Result<Value> {
    let mut answer = std::pin::pin!(answer);
    let (started, mut stderr) = (Instant::now(), std::io::stderr());
    let terminal = stderr.is_terminal();
    let mut said = false;
    loop {
        match tokio::time::timeout(PATIENCE, &mut answer).await {
            Ok(answer) => {
                if said {
                    write!(stderr, "\r\x1b[K")?;
                }
                return answer;
            }
            Err(_) if terminal => {
                write!(stderr, "\rverifying, {} s", started.elapsed().as_secs())?;
                stderr.flush()?;
                said = true;
            }
            Err(_) => {}
        }
    }
}

fn list<'a>(report: &'a Value, field: &str) -> &'a [Value] {
    report[field].as_array().map_or(&[], Vec::as_slice)
}

fn shown(report: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut text = format!("{} objects, {} MB read\n", number(&report["objects"]), number(&report["bytes"]) >> 20);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for object in list(report, "repaired") {
        let from = object["version"].as_str().map_or("made anew".to_owned(), |version| format!("version {version}"));
        text.push_str(&format!("repaired  {}: {from}\n", word(&object["key"])));
    }
    for problem in list(report, "problems") {
        text.push_str(&format!(
            "{:<8}  {}: {}\n",
            word(&problem["what"]),
            word(&problem["key"]),
            word(&problem["reason"])
        ));
    }
    if let Some(trial) = report["trial"].as_object() {
        text.push_str(&format!(
            "restored on trial at {}: {} tables, {} rows, {} ms\n",
            trial["position"].as_str().unwrap_or_default(),
            number(&trial["tables"]),
            number(&trial["rows"]),
            number(&trial["took_ms"]),
        ));
    }
    if let Some(note) = report["note"].as_str() {
        text.push_str(&format!("{note}\n"));
    }
    text
}
