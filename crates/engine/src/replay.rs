//! What DuckDB's log can't bring back is refused before it happens.
//!
//! DuckDB 1.5.5 replays a log in a connection whose names are not the mart's, makes the log's types before anything else, and runs
//! each ALTER again. So some changes that DuckDB commits gladly give a log that never opens again, and some another content than was
//! committed. Decision 0014 lists them. Here are the rules that keep them out of every log; they err on the side of refusal.
//!
//! It works on tokens and on the catalog as the statement's own transaction sees it. Not here: which objects SQL may touch at all
//! (`sql::gate`), and how a log is opened (`open`).
//!
//! **Invariants:** every statement that changes the catalog comes here, in its transaction, before DuckDB runs it; and every
//! transaction of a mart with an index before its COMMIT (`bulk`).

pub(crate) mod bulk;
mod tables;

use std::collections::HashSet;

use crate::{
    duck::{Connection, DuckError},
    failure::Failure,
    sql::{Kind, Statement, Words},
    wal::Names,
    wire::Code,
};

/// Why a statement does not run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Its log could not be replayed.
    Failure(Failure),
    /// The catalog could not be asked.
    Duck(DuckError),
}

impl From<DuckError> for Refusal {
    fn from(error: DuckError) -> Self {
        Self::Duck(error)
    }
}

/// Does `statement` change the catalog, so that [`check`] has to see it?
pub(crate) fn concerns(statement: &Statement<'_>) -> bool {
    match &statement.kind {
        Kind::Ddl => true,
        Kind::Explain { analyze, inner } => *analyze && **inner == Kind::Ddl,
        _ => false,
    }
}

/// Refuses `statement` of `script` if it could not be replayed. `logged` are the names in the log, `open` those of the transaction, to
/// which the statement's are added.
pub(crate) fn check(
    connection: &Connection,
    script: &str,
    statement: &Statement<'_>,
    logged: impl FnOnce() -> Names,
    open: &mut Names,
) -> Result<(), Refusal> {
    if statement.kind != Kind::Ddl {
        return refuse(
            "EXPLAIN ANALYZE can't run a change of the catalog",
            "leave out ANALYZE, or run the statement itself",
        );
    }
    let words = Words { sql: script, tokens: &statement.tokens };
    let mut at = 1;
    while words.is_any(at, &["or", "replace", "temp", "temporary", "local", "global", "unlogged", "persistent"]) {
        at += 1;
    }
    let rest = words.from(at + 1);
    match statement.first.as_str() {
        "alter" => tables::alter(connection, words)?,
        "comment" if words.is(2, "column") => tables::comment_on_column(connection, words.from(3))?,
        "create" if words.is(at, "type") => new_type(rest, logged(), open)?,
        "create" if words.is(at, "table") => tables::create(connection, rest)?,
        _ => {}
    }
    note(words, at, open);
    Ok(())
}

/// A type is made before everything else in the log: before its schema, and before one that it was made of is dropped.
fn new_type(words: Words<'_>, logged: Names, open: &Names) -> Result<(), Refusal> {
    const HINT: &str =
        "make it in schema `main`, in a schema that is older, or once the server has folded the log into the file";
    let (path, behind) = path(words, behind_if_exists(words, 0));
    let [schemas @ .., _] = path.as_slice() else { return not_understood() };
    if logged.unknown || open.unknown {
        return refuse("a type can't be created right after schemas or types were dropped", HINT);
    }
    let is_new = |schema: &&String| logged.schemas.contains(*schema) || open.schemas.contains(*schema);
    if let Some(schema) = schemas.iter().find(is_new) {
        return refuse(
            format!("schema `{schema}` is too new for a type: the two can't be recovered from one log"),
            HINT,
        );
    }
    let is_dropped = |name: &&String| logged.dropped_types.contains(*name) || open.dropped_types.contains(*name);
    let used = names(words.from(behind));
    if let Some(name) = used.iter().find(is_dropped) {
        return refuse(
            format!("type `{name}` was dropped or replaced too recently to make another type of it"),
            "write its definition out, or try again once the server has folded the log into the file",
        );
    }
    Ok(())
}

/// Keeps what the transaction makes and drops; its log is written at COMMIT only.
fn note(words: Words<'_>, at: usize, open: &mut Names) {
    let noun = if words.is(at, "schema") {
        &mut open.schemas
    } else if words.is(at, "type") && (words.is(0, "drop") || words.is(1, "or")) {
        &mut open.dropped_types
    } else {
        return;
    };
    let (path, behind) = path(words, behind_if_exists(words, at + 1));
    // A list, or what goes along with a CASCADE, is not looked into.
    let whole = behind == words.tokens.len() || !words.is(0, "drop") || words.is(behind, "restrict");
    match path.into_iter().next_back() {
        Some(name) if whole => {
            noun.insert(name);
        }
        _ => open.unknown = true,
    }
}

fn behind_if_exists(words: Words<'_>, at: usize) -> usize {
    if !words.is(at, "if") {
        return at;
    }
    if words.is(at + 1, "not") { at + 3 } else { at + 2 }
}

/// The dotted name at `at`, in lower case, and where it ends; empty if there is none.
fn path(words: Words<'_>, mut at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    while let Some(name) = words.tokens.get(at).and_then(|token| token.name(words.sql)) {
        path.push(name.to_ascii_lowercase());
        if !words.symbol(at + 1, b'.') {
            return (path, at + 1);
        }
        at += 2;
    }
    (Vec::new(), at)
}

/// All names, in lower case, keywords among them.
fn names(words: Words<'_>) -> HashSet<String> {
    words.tokens.iter().filter_map(|token| token.name(words.sql)).map(|name| name.to_ascii_lowercase()).collect()
}

/// Names that are called.
fn calls(words: Words<'_>) -> HashSet<String> {
    let called = |at: &usize| words.symbol(at + 1, b'(');
    let name = |at: usize| words.tokens[at].name(words.sql).map(|name| name.to_ascii_lowercase());
    (0..words.tokens.len()).filter(called).filter_map(name).collect()
}

fn refuse(message: impl Into<String>, hint: &str) -> Result<(), Refusal> {
    Err(Refusal::Failure(Failure::new(Code::Invalid, message).hint(hint)))
}

fn not_understood() -> Result<(), Refusal> {
    refuse(
        "it is not clear what the statement is about",
        "name the object in the plain way, with double quotes if need be",
    )
}
