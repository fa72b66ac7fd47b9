//! One request for SQL: how far it is, once that takes a second, and Ctrl-C, which stops it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use engine::wire::header::QUERY_ID;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::client::Client;

/// Nobody needs to know of what takes less.
const QUIET: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(200);
const BAR_WIDTH: usize = 30;

/// A result.
pub(super) struct Answer {
    pub names: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// Whether there are more rows.
    pub truncated: bool,
}

impl Answer {
    /// Its first column.
    pub(super) fn texts(self) -> Vec<String> {
        self.rows.iter().filter_map(|row| row.first()?.as_str()).map(str::to_owned).collect()
    }
}

#[derive(Deserialize)]
struct Body {
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
    truncated: bool,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

/// Sends the body to `{base}/query` and waits for all of its answer.
pub(super) async fn run(client: &Client, base: &str, body: &Value) -> anyhow::Result<Answer> {
    let id = Uuid::new_v4();
    let request = client.request(Method::POST, &format!("{base}/query")).header(QUERY_ID, id.to_string());
    let answer = async {
        let answer = client.send(request.header("accept", "application/json").json(body)).await?;
        answer.json::<Body>().await.context("the result broke off")
    };
    tokio::pin!(answer);
    let path = format!("/v1/queries/{id}");
    let mut bar = Bar::new();
    let mut stopped = false;
    let told = loop {
        tokio::select! {
            told = &mut answer => break told,
            _ = tokio::signal::ctrl_c() => {
                if std::mem::replace(&mut stopped, true) {
                    // Twice: whoever types it does not want to wait for an answer.
                    break Err(anyhow!("no longer waited for; the server was told to stop it"));
                }
                let cancel = client.request(Method::DELETE, &path);
                // That it is over already, or not there yet, is no trouble: its answer tells.
                let _ = client.send(cancel).await;
            }
            () = bar.due() => {
                let told = client.json(client.request(Method::GET, &path)).await;
                bar.draw(told.ok().and_then(|told| told["progress"].as_f64()));
            }
        }
    };
    bar.clear();
    let Body { columns, rows, truncated } = told?;
    Ok(Answer { names: columns.into_iter().map(|column| column.name).collect(), rows, truncated })
}

/// A line on the terminal.
struct Bar {
    started: Instant,
    terminal: bool,
    drawn: bool,
}

impl Bar {
    fn new() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal(), drawn: false }
    }

    /// Until it is to be drawn again.
    async fn due(&self) {
        match self.terminal {
            true => tokio::time::sleep(STEP.max(QUIET.saturating_sub(self.started.elapsed()))).await,
            false => std::future::pending().await,
        }
    }

    /// `progress` is from 0 to 1, where it is known.
    fn draw(&mut self, progress: Option<f64>) {
        self.drawn = true;
        let part = progress.unwrap_or(0.0).clamp(0.0, 1.0);
        let full = (part * BAR_WIDTH as f64) as usize;
        let bar = "█".repeat(full) + &"░".repeat(BAR_WIDTH - full);
        eprint!(
            "\r\x1b[K{bar} {:>3.0} %  {:.1} s  Ctrl-C stops it",
            part * 100.0,
            self.started.elapsed().as_secs_f64()
        );
        let _ = std::io::stderr().flush();
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprint!("\r\x1b[K");
        }
    }
}
