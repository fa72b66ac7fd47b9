//! The gate: which SQL reaches DuckDB at all, decided on tokens before DuckDB sees the text.
//!
//! It is the first of several walls (settings, gateway, process come after it) and the only one that can stop what DuckDB does
//! while it parses, plans or prepares. It does not know tenants or buckets: whose `s3://` path it is, the gateway decides.
//! Invariants:
//! - Allow-lists for what a statement may be and what CREATE may make; deny-lists (`names`) only for functions, matched quoted or
//!   not, with any schema in front, called as `f(x)` or `x.f()`.
//! - A file path is a literal that is decoded and checked here (`paths`); a computed one is refused.
//! - Where a table may stand is decided by what proves the opposite (`tables`); DuckDB itself is asked in a test (`shapes`).
//! - Every refusal is final and names what to do instead.

#[cfg(test)]
mod corpus;
mod names;
#[cfg(test)]
mod ordinary;
mod paths;
#[cfg(test)]
mod reads;
#[cfg(test)]
mod shapes;
mod tables;

use super::{Kind, SqlError, Statement, Words, lexer::TokenKind};
use crate::wire::Role;

/// Longest script, in bytes.
pub const MAX_SQL_BYTES: usize = 256 * 1024;
/// Most tokens in a script.
pub const MAX_TOKENS: usize = 40_000;
/// Deepest nesting of brackets.
pub const MAX_NESTING: usize = 150;
/// The schema that the engine keeps its own tables in.
pub(crate) const OWN_SCHEMA: &str = "_tarn";
/// Extensions that are there already, so that INSTALL and LOAD of them are answered as done.
const LOADED_EXTENSIONS: [&str; 6] = ["httpfs", "parquet", "json", "icu", "core_functions", "autocomplete"];

/// Which of the contract's codes a refusal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedCode {
    /// The text is malformed, or asks for what does not exist here.
    Invalid,
    /// The text is understood and not allowed, or not with this role.
    Forbidden,
    /// The text passes a limit.
    TooLarge,
    /// No SQL that DuckDB would understand.
    Sql,
}

/// Why a script does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub code: RefusedCode,
    /// What is wrong, in lower case, names in backticks.
    pub message: String,
    /// What to do instead; may be empty.
    pub hint: String,
    /// Zero-based number of the statement at fault, where one is.
    pub statement_index: Option<usize>,
}

impl Refused {
    fn forbidden(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Refused { code: RefusedCode::Forbidden, message: message.into(), hint: hint.into(), statement_index: None }
    }

    fn too_large(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Refused { code: RefusedCode::TooLarge, message: message.into(), hint: hint.into(), statement_index: None }
    }
}

impl From<SqlError> for Refused {
    fn from(error: SqlError) -> Self {
        Refused { code: RefusedCode::Invalid, message: error.to_string(), hint: String::new(), statement_index: None }
    }
}

/// Splits `script` and checks every statement for `role`; the statements come back ready to run.
pub fn check(script: &str, role: Role) -> Result<Vec<Statement<'_>>, Refused> {
    if script.len() > MAX_SQL_BYTES {
        return Err(Refused::too_large(
            format!("the SQL text is {} bytes; the limit is {MAX_SQL_BYTES}", script.len()),
            "load data with `PUT …/tables/{schema}/{table}` instead of literals",
        ));
    }
    let statements = super::split(script)?;
    if statements.iter().map(|statement| statement.tokens.len()).sum::<usize>() > MAX_TOKENS {
        return Err(Refused::too_large(
            format!("the SQL text has more than {MAX_TOKENS} tokens"),
            "load data with `PUT …/tables/{schema}/{table}` instead of literals",
        ));
    }
    for (index, statement) in statements.iter().enumerate() {
        check_statement(script, statement, role)
            .map_err(|refused| Refused { statement_index: Some(index), ..refused })?;
    }
    Ok(statements)
}

fn check_statement(script: &str, statement: &Statement<'_>, role: Role) -> Result<(), Refused> {
    let words = Words { sql: script, tokens: &statement.tokens };
    check_nesting(words)?;
    check_kind(words, &statement.kind, role)?;
    let tables = tables::positions(words);
    names::check(words, &statement.kind, &tables)?;
    paths::check(words, &tables)
}

fn check_nesting(words: Words<'_>) -> Result<(), Refused> {
    let mut depth = 0usize;
    for token in words.tokens {
        match token.kind {
            TokenKind::Symbol(b'(' | b'[' | b'{') => depth += 1,
            // The engine puts statements into brackets of its own: none may end there.
            TokenKind::Symbol(b')' | b']' | b'}') => {
                depth = depth.checked_sub(1).ok_or_else(|| unbalanced("a bracket is closed that was not opened"))?;
            }
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(Refused::too_large(format!("brackets nest deeper than {MAX_NESTING}"), ""));
        }
    }
    if depth == 0 { Ok(()) } else { Err(unbalanced("a bracket is not closed")) }
}

fn unbalanced(what: &str) -> Refused {
    let message = format!("syntax error: {what}");
    Refused { code: RefusedCode::Sql, message, hint: String::new(), statement_index: None }
}

fn check_kind(words: Words<'_>, kind: &Kind, role: Role) -> Result<(), Refused> {
    // A reader's transactions are begun READ ONLY, whatever it says.
    let harmless =
        matches!(kind, Kind::InstallLoad(_) | Kind::Unknown(_) | Kind::TxBegin | Kind::TxCommit | Kind::TxRollback);
    if role == Role::Reader && !kind.is_read() && !harmless {
        return Err(Refused::forbidden(
            "a reader may only run statements that read",
            "ask for a token with the role `writer`",
        ));
    }
    match kind {
        Kind::Read | Kind::Write | Kind::TxBegin | Kind::TxCommit | Kind::TxRollback | Kind::CopyTo => Ok(()),
        Kind::Ddl => check_ddl(words),
        Kind::InstallLoad(name) if LOADED_EXTENSIONS.contains(&name.as_str()) => Ok(()),
        Kind::InstallLoad(name) => Err(Refused::forbidden(
            format!("extension `{name}` is not available"),
            format!("available: {}", LOADED_EXTENSIONS.join(", ")),
        )),
        Kind::Vacuum if role == Role::Admin => Ok(()),
        Kind::Vacuum => Err(Refused::forbidden("VACUUM needs the role `admin`", "an admin runs `tarn vacuum`")),
        Kind::Checkpoint => {
            Err(Refused::forbidden("CHECKPOINT is not available", "the server decides when to checkpoint"))
        }
        Kind::Session => Err(Refused::forbidden(
            "SET, RESET and USE are not available",
            "write names with their schema; settings belong to the server",
        )),
        Kind::Explain { inner, .. } => match &**inner {
            Kind::Ddl => check_ddl(explained(words)),
            Kind::Read | Kind::Write | Kind::CopyTo => Ok(()),
            _ => Err(Refused::forbidden("only queries, writes and DDL can be explained", "")),
        },
        Kind::Other(why) => Err(Refused::forbidden(*why, "")),
        Kind::Unknown(word) => Err(Refused {
            code: RefusedCode::Sql,
            message: format!("syntax error: no statement starts with `{word}`"),
            hint: String::new(),
            statement_index: None,
        }),
    }
}

/// Where the statement's verb stands: first, or behind EXPLAIN and its options.
fn verb_at(words: Words<'_>) -> usize {
    if !words.is(0, "explain") {
        return 0;
    }
    let mut at = 1;
    while words.is_any(at, &["analyze", "analyse", "verbose"]) {
        at += 1;
    }
    if words.symbol(at, b'(') { words.behind_group(at) } else { at }
}

/// The words from the DDL verb behind EXPLAIN on.
fn explained(words: Words<'_>) -> Words<'_> {
    let at = (0..words.tokens.len()).find(|&at| words.is_any(at, &["create", "drop", "alter", "comment"])).unwrap_or(0);
    words.from(at)
}

/// What CREATE, DROP, ALTER and COMMENT ON may be about: parts of the mart, never secrets, databases or settings.
fn check_ddl(words: Words<'_>) -> Result<(), Refused> {
    const OBJECTS: [&str; 10] =
        ["table", "view", "schema", "sequence", "type", "macro", "function", "index", "column", "recursive"];
    let mut at = 1;
    loop {
        if words.is_any(at, &OBJECTS) {
            // CREATE MACRO TABLE and the like are fine: the first noun decides.
            return Ok(());
        }
        if words.is_any(at, &["or", "replace", "temp", "temporary", "local", "global", "unique", "unlogged", "on"]) {
            at += 1;
            continue;
        }
        let what = words.tokens.get(at).map(|token| token.text(words.sql).to_ascii_uppercase()).unwrap_or_default();
        return Err(Refused::forbidden(
            format!("{} `{what}` is not available", words.tokens[0].text(words.sql).to_ascii_uppercase()),
            "tables, views, schemas, sequences, types, macros and indexes are",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sql: &str, role: Role) -> RefusedCode {
        check(sql, role).expect_err(sql).code
    }

    #[test]
    fn what_users_paste_passes() {
        let seed = "INSTALL httpfs; LOAD httpfs;
            SELECT a.id, m.metric, m.value
            FROM read_parquet('s3://sm-default-processed/metrics/*.parquet') m
            JOIN read_json('s3://sm-default-processed/knowledge/*.json') a ON a.id = m.asset_id
            WHERE m.metric = 'engagement_score';";
        assert_eq!(check(seed, Role::Reader).expect("passes").len(), 3);
        for sql in [
            "create or replace temp table t as from read_csv(['s3://b/a.csv', $$s3://b/b.csv$$], header = true)",
            "copy t to 's3://b/x' (format parquet, partition_by (a), filename_pattern 'part_{i}')",
            "copy (select '?') to e's3://b/x.csv' with (header, delimiter '|', nullstr '?')",
            "copy t (a, b) from 's3://b/x.csv'",
            "create macro f(x) as x + 1",
            "create unique index i on t(a)",
            "comment on column t.a is 'x'",
            "select extract(year from '2020-01-01'::date), substring('a?' from '?'), 1 is distinct from '?' from t",
            "select \"a/b\", '../%' from t where \"a/b\" like '/%' order by \"a/b\"",
            "summarize 's3://b/x.parquet'",
            "select a, histogram(b) from t group by a",
            "select trim(from '/x'), position('a' in '/x')",
            "from \"s3://b/x.parquet\"",
            "from \"my schema\".\"a b\" x",
            "begin; insert into t values (1); commit",
            "select current_setting('TimeZone')",
            "select * from duckdb_tables() where schema_name = 'main'",
            "create table checkpoint (i int)",
            "select checkpoint from query where levenshtein = 1",
            "select t.a from \"my table\" t, t2 \"b\" join \"x.y\" using (i)",
        ] {
            assert!(check(sql, Role::Writer).is_ok(), "{sql}: {:?}", check(sql, Role::Writer));
        }
    }

    #[test]
    fn limits_are_limits() {
        let long = format!("select '{}'", "x".repeat(MAX_SQL_BYTES));
        assert_eq!(refused(&long, Role::Admin), RefusedCode::TooLarge);
        assert_eq!(refused(&format!("select {}1", "1+".repeat(MAX_TOKENS / 2)), Role::Admin), RefusedCode::TooLarge);
        assert_eq!(
            refused(&format!("select {}1{}", "(".repeat(151), ")".repeat(151)), Role::Admin),
            RefusedCode::TooLarge
        );
        assert!(check(&format!("select {}1{}", "[".repeat(150), "]".repeat(150)), Role::Admin).is_ok());
    }

    #[test]
    fn a_malformed_text_is_invalid_and_names_its_place() {
        let error = check("select 1; select 'x", Role::Writer).expect_err("unterminated");
        assert_eq!((error.code, error.message.as_str()), (RefusedCode::Invalid, "unterminated string (at byte 17)"));
    }

    #[test]
    fn a_reader_only_reads() {
        for sql in [
            "insert into t values (1)",
            "copy t to 's3://b/x'",
            "select nextval('s')",
            "create temp table t(i int)",
            "explain analyze delete from t",
            "vacuum",
        ] {
            assert_eq!(refused(sql, Role::Reader), RefusedCode::Forbidden, "{sql}");
        }
        assert!(check("explain delete from t; from t", Role::Reader).is_ok());
    }

    #[test]
    fn only_an_admin_vacuums_and_nobody_checkpoints_or_sets() {
        assert!(check("vacuum", Role::Admin).is_ok());
        assert_eq!(refused("vacuum", Role::Writer), RefusedCode::Forbidden);
        for sql in [
            "checkpoint",
            "force checkpoint",
            "set threads = 1",
            "use x",
            "reset all",
            "pragma version",
            "explain checkpoint",
            "create secret s (type s3)",
            "create or replace persistent secret s (type s3)",
            "drop secret s",
            "drop database x",
            "alter database x set alias to y",
            "install spatial",
            "load 'sqlite'",
        ] {
            assert_eq!(refused(sql, Role::Admin), RefusedCode::Forbidden, "{sql}");
        }
    }

    #[test]
    fn a_refusal_says_which_statement() {
        assert_eq!(check("select 1; select 2; checkpoint", Role::Admin).expect_err("refused").statement_index, Some(2));
    }
}
