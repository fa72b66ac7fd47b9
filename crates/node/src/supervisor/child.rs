//! Engines that do one thing to files nobody else has open, and end: folding a copy, compacting it, checking it.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use engine::compact::{Checked, Compacted, TableDiff};
use engine::walls::{Report, Wall};
use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::groups::{Groups, be_nice, set_apart};

/// Far more than any database that fits a machine takes.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Engines of marts go first: nobody waits for an answer of these.
const NICE: i32 = 10;
/// Building walls takes milliseconds.
const WALLS_DEADLINE: Duration = Duration::from_secs(30);

/// Which walls stand around an engine whose directory is `dir`: a process builds them and tells. Control groups are tried as well, under
/// a name that no node's have.
pub async fn walls(dir: &Path) -> io::Result<Report> {
    let mut report: Report = answer(&run(&["--walls".as_ref(), dir], WALLS_DEADLINE).await?)?;
    let groups = Groups::find(&dir.join(format!("walls-{}", std::process::id())));
    report.note(Wall::Limits, groups.lacking().map_or(Ok(()), Err));
    Ok(report)
}

/// Folds a copy's log into it.
pub async fn fold(db: &Path, deadline: Duration) -> io::Result<()> {
    run(&["--fold".as_ref(), db], deadline).await.map(drop)
}

/// Writes a compact copy of a database and proves that it holds the same.
pub async fn compact(from: &Path, to: &Path) -> io::Result<Compacted> {
    answer(&run(&["--compact".as_ref(), from, to], DEADLINE).await?)
}

/// Reads every row of a database.
pub async fn check(db: &Path) -> io::Result<Checked> {
    answer(&run(&["--check".as_ref(), db], DEADLINE).await?)
}

/// How the rows of two databases differ.
pub async fn diff(from: &Path, to: &Path) -> io::Result<Vec<TableDiff>> {
    answer(&run(&["--diff".as_ref(), from, to], DEADLINE).await?)
}

async fn run(words: &[&Path], deadline: Duration) -> io::Result<Vec<u8>> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tarn").arg("engine").args(words);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let child = command.spawn()?;
    set_apart(child.id());
    if let Some(pid) = child.id() {
        be_nice(pid, NICE);
    }
    match tokio::time::timeout(deadline, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(output.stdout),
        Ok(Ok(output)) => Err(io::Error::other(format!("the engine failed: {}", output.status))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the engine took too long")),
    }
}

fn answer<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(io::Error::other)
}
