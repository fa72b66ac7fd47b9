//! The corpus of statements: `tests/testdata/sandbox-corpus.jsonl`, one case a line.

use serde::Deserialize;

use super::place::Role;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// Answered.
    Ok,
    /// Refused, and nothing is touched.
    Blocked,
    /// Fails in DuckDB.
    Error,
    /// Takes the engine to its limits or past them; ends in time and harms nobody.
    Bounded,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub id: String,
    pub sql: String,
    pub expect: Expect,
    pub role: Role,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    sql: String,
    expect: Expect,
    role: String,
}

pub fn corpus() -> Vec<Case> {
    let text = include_str!("../../testdata/sandbox-corpus.jsonl");
    let cases = text.lines().map(|line| {
        let line: Line = serde_json::from_str(line).expect("a case");
        let role = if line.role == "ro" { Role::Reader } else { Role::Writer };
        Case { sql: written_out(&line.id, line.sql), id: line.id, expect: line.expect, role }
    });
    cases.collect()
}

/// Statements too long to be written in the file.
fn written_out(id: &str, sql: String) -> String {
    match id {
        "planner-bomb-001" => format!("select {}1", "1+".repeat(900)),
        "planner-bomb-002" => format!("select {}1{}", "[".repeat(900), "]".repeat(900)),
        "planner-bomb-003" => format!("select {}1{}", "abs(".repeat(900), ")".repeat(900)),
        _ => sql,
    }
}
