//! `tarn shell`: SQL and commands from a terminal, or from a pipe.
//!
//! Statements run in a session of the mart, so that transactions and temporary tables last from one to the next. At an earlier moment
//! there are none, and nothing can be written.

mod catalog;
mod complete;
mod editor;
mod input;
mod screen;
mod statement;

use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use engine::sql::{self, Kind};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::client::{self, Client, Refused};
use super::dsn::Dsn;
use super::query;
use crate::error::Code;
use crate::names::MartId;
use editor::{Editor, Typed};
use input::{Command, Input};
use screen::Screen;
use statement::Answer;

/// A result of more rows is cut in the shell; `\export` writes all of them.
const MOST_ROWS: u64 = 10_000;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The mart (default: `TARN_DSN`).
    dsn: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = client::runtime()?;
    let dsn = Dsn::find(args.dsn.as_deref())?;
    let mart = dsn.mart_id()?;
    let at = dsn.at.clone();
    let client = Client::new(dsn)?;
    let mut shell = Shell {
        base: format!("/v1/tenants/{}/marts/{}", mart.tenant, mart.mart),
        mart,
        client,
        session: None,
        in_transaction: false,
        at,
        last: None,
        screen: Screen::find(),
        known: complete::Shared::default(),
    };
    let ran = if std::io::stdin().is_terminal() { shell.converse(&runtime) } else { shell.obey(&runtime) };
    runtime.block_on(shell.close());
    ran
}

struct Shell {
    client: Client,
    mart: MartId,
    /// The mart's path.
    base: String,
    session: Option<String>,
    /// As far as its statements tell.
    in_transaction: bool,
    /// The earlier moment that is shown.
    at: Option<String>,
    /// The last SQL that was run.
    last: Option<String>,
    screen: Screen,
    known: complete::Shared,
}

enum Then {
    GoOn,
    Leave,
}

impl Shell {
    /// With a person.
    fn converse(&mut self, runtime: &Runtime) -> anyhow::Result<()> {
        // Also finds out whether anybody is there to talk to.
        runtime.block_on(self.learn())?;
        eprintln!(
            "tarn {} on {}. SQL ends with `;`, `\\?` lists commands, Ctrl-D leaves.",
            env!("CARGO_PKG_VERSION"),
            self.mart
        );
        let mut editor = Editor::new(self.known.clone())?;
        loop {
            match editor.read(&self.prompt())? {
                Typed::Line(text) => match self.take(runtime, &text) {
                    Ok(Then::GoOn) => {}
                    Ok(Then::Leave) => return Ok(()),
                    Err(error) => eprintln!("{error:#}"),
                },
                Typed::Nothing => {}
                Typed::End => return Ok(()),
            }
        }
    }

    /// Commands and statements from a pipe; the first that fails ends it.
    fn obey(&mut self, runtime: &Runtime) -> anyhow::Result<()> {
        let mut text = String::new();
        for line in std::io::stdin().lock().lines() {
            text.push_str(&line?);
            text.push('\n');
            if input::is_whole(&text)
                && let Then::Leave = self.take(runtime, &std::mem::take(&mut text))?
            {
                return Ok(());
            }
        }
        self.take(runtime, &text).map(|_| ())
    }

    fn prompt(&self) -> String {
        let moment = self.at.as_ref().map(|at| format!("@{at}")).unwrap_or_default();
        format!("{}{moment}{}> ", self.mart, if self.in_transaction { "*" } else { "" })
    }

    fn take(&mut self, runtime: &Runtime, text: &str) -> anyhow::Result<Then> {
        match input::parse(text) {
            Input::Nothing => Ok(Then::GoOn),
            Input::Wrong(why) => Err(anyhow!(why)),
            Input::Command(Command::Quit) => Ok(Then::Leave),
            Input::Command(command) => runtime.block_on(self.command(command)).map(|()| Then::GoOn),
            Input::Sql(sql) => runtime.block_on(self.sql(&sql)).map(|()| Then::GoOn),
        }
    }

    async fn command(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Help => self.screen.show(&help()),
            Command::Quit => Ok(()),
            Command::Describe(name) => {
                let catalog = self.catalog().await?;
                self.screen.show(&catalog::describe(&catalog, name.as_deref(), &self.screen)?)
            }
            Command::Plan { analyze, sql } => {
                let mut body = json!({"sql": self.or_last(sql)?, "analyze": analyze, "format": "text"});
                self.moment(&mut body);
                let request = self.client.request(Method::POST, &format!("{}/plan", self.base)).json(&body);
                let plan = self.client.send(request).await?.text().await?;
                self.screen.show(&format!("{}\n", plan.trim_end()))
            }
            Command::Timing(on) => {
                self.screen.timing = on.unwrap_or(!self.screen.timing);
                eprintln!("timing is {}", word(self.screen.timing));
                Ok(())
            }
            Command::Records(on) => {
                self.screen.records = on.unwrap_or(!self.screen.records);
                eprintln!("records are {}", word(self.screen.records));
                Ok(())
            }
            Command::At(moment) => {
                if self.in_transaction {
                    return Err(anyhow!("a transaction is open: COMMIT or ROLLBACK first"));
                }
                let before = std::mem::replace(&mut self.at, moment);
                // Whether there is such a moment shows at once.
                if let Err(error) = self.learn().await {
                    self.at = before;
                    return Err(error);
                }
                Ok(())
            }
            Command::Export { file, sql } => {
                let sql = self.or_last(sql)?;
                self.export(&file, &sql).await
            }
        }
    }

    fn or_last(&self, sql: Option<String>) -> anyhow::Result<String> {
        sql.or_else(|| self.last.clone()).ok_or_else(|| anyhow!("no statement was run yet: give one"))
    }

    async fn sql(&mut self, sql: &str) -> anyhow::Result<()> {
        self.last = Some(sql.to_owned());
        let started = Instant::now();
        let Answer { names, rows, truncated } = self.run(sql).await?;
        let mut text = self.screen.rows(&names, &rows);
        text.push_str(&format!("({} row{})\n", rows.len(), if rows.len() == 1 { "" } else { "s" }));
        if truncated {
            text.push_str("there are more: `\\export FILE` writes all of them\n");
        }
        if self.screen.timing {
            text.push_str(&format!("{:.1} ms\n", started.elapsed().as_secs_f64() * 1e3));
        }
        self.screen.show(&text)?;
        if changes_names(sql) && self.screen.is_terminal {
            self.learn().await?;
        }
        Ok(())
    }

    /// Runs SQL where it belongs: at the earlier moment, or in the session.
    async fn run(&mut self, sql: &str) -> anyhow::Result<Answer> {
        let mut body = json!({"sql": sql, "max_rows": MOST_ROWS});
        let in_session = self.place(&mut body, sql).await?;
        let first = statement::run(&self.client, &self.base, &body).await;
        let answer = match first {
            Err(error) if in_session && is_gone(&error) => {
                self.session = None;
                if std::mem::take(&mut self.in_transaction) {
                    return Err(anyhow!("the session has ended, and its transaction with it: nothing of that stays"));
                }
                self.place(&mut body, sql).await?;
                statement::run(&self.client, &self.base, &body).await
            }
            other => other,
        };
        if in_session {
            self.follow(sql, answer.is_ok());
        }
        answer
    }

    /// Fills in where it runs; whether that is the session.
    async fn place(&mut self, body: &mut Value, sql: &str) -> anyhow::Result<bool> {
        if self.moment(body) || is_upkeep(sql) {
            return Ok(false);
        }
        body["session"] = json!(self.session().await?);
        Ok(true)
    }

    fn moment(&self, body: &mut Value) -> bool {
        if let Some(at) = &self.at {
            body["at"] = json!(at);
        }
        self.at.is_some()
    }

    async fn session(&mut self) -> anyhow::Result<String> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let request = self.client.request(Method::POST, &format!("{}/sessions", self.base));
        let told = self.client.json(request).await?;
        let session = told["session"].as_str().ok_or_else(|| anyhow!("the server's answer has no session"))?;
        self.session = Some(session.to_owned());
        Ok(session.to_owned())
    }

    /// Whether a transaction is open, by what was run.
    fn follow(&mut self, sql: &str, ran: bool) {
        for statement in sql::split(sql).unwrap_or_default() {
            match statement.kind {
                Kind::TxBegin if ran => self.in_transaction = true,
                // One that is refused at its COMMIT has ended too.
                Kind::TxCommit | Kind::TxRollback => self.in_transaction = false,
                _ => {}
            }
        }
    }

    async fn export(&mut self, file: &Path, sql: &str) -> anyhow::Result<()> {
        let format = query::Format::of(file)?;
        let mut body = json!({"sql": sql});
        self.place(&mut body, sql).await?;
        let request = self.client.request(Method::POST, &format!("{}/query", self.base)).json(&body);
        query::save(&self.client, request, format, file).await?;
        eprintln!("written to {}", file.display());
        Ok(())
    }

    async fn catalog(&self) -> anyhow::Result<Value> {
        let mut request = self.client.request(Method::GET, &format!("{}/catalog", self.base));
        if let Some(at) = &self.at {
            request = request.query(&[("at", at)]);
        }
        self.client.json(request).await
    }

    /// Asks for the names that are completed.
    async fn learn(&self) -> anyhow::Result<()> {
        let catalog = self.catalog().await?;
        let snapshots = self.client.json(self.client.request(Method::GET, &format!("{}/snapshots", self.base))).await?;
        let words = match complete::words(&self.known) {
            Some(words) => words,
            None => statement::run(&self.client, &self.base, &json!({"sql": catalog::WORDS})).await?.texts(),
        };
        catalog::fill(&self.known, &catalog, &snapshots, words);
        Ok(())
    }

    async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            let request = self.client.request(Method::DELETE, &format!("{}/sessions/{session}", self.base));
            // It would end by itself; a node that does not answer must not keep the terminal.
            let _ = tokio::time::timeout(Duration::from_secs(2), self.client.send(request)).await;
        }
    }
}

/// Whether the session is no more: idle for too long, or its engine was closed or died.
fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.0.code == Code::NotFound)
}

/// Runs outside of sessions.
fn is_upkeep(sql: &str) -> bool {
    sql::split(sql).is_ok_and(|statements| statements.iter().any(|statement| statement.kind == Kind::Vacuum))
}

fn changes_names(sql: &str) -> bool {
    sql::split(sql).is_ok_and(|statements| {
        statements.iter().any(|statement| matches!(statement.kind, Kind::Ddl | Kind::TxCommit | Kind::TxRollback))
    })
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn help() -> String {
    let mut text = String::from("SQL, over as many lines as it takes, to its `;`. Ctrl-C stops what runs.\n\n");
    for (name, words, does) in input::COMMANDS {
        text.push_str(&format!("{:<24}{does}\n", format!("{name} {words}")));
    }
    text
}
