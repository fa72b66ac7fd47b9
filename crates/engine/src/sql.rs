//! SQL text as the engine sees it before DuckDB does: statements, and what kind each is.
//!
//! DuckDB's own parse, prepare and extract already touch files and the network, so everything here works on tokens alone.
//! It is no parser: a text that passes may still be a syntax error for DuckDB. Invariants:
//! - `Kind::Read` is **proved**: first keyword of a query, no data-changing verb where one could stand, no `nextval`. Doubt is
//!   `Write` (which costs a buffer) or `Other` (refused), never `Read`. A view or macro may still hide a `nextval`: only a catalog
//!   can tell.
//! - A statement's text holds no `;` that DuckDB would see as the end of a statement.

pub mod gate;
pub mod lexer;

use std::ops::Range;

pub use lexer::SqlError;
use lexer::{Token, TokenKind};

/// One statement of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The statement without its `;` and the comments around it.
    pub text: &'a str,
    /// Where `text` stands in the script, in bytes.
    pub span: Range<usize>,
    /// What it does.
    pub kind: Kind,
    /// The first keyword in lower case (`(` is looked through).
    pub first: String,
    /// The tokens, as byte ranges of the whole script.
    pub(crate) tokens: Vec<Token>,
}

/// What a statement does, as far as tokens can prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing and may stream. `PIVOT` and `UNPIVOT` belong here although DuckDB expands them into several statements
    /// (a temporary enum type, then the query): prepare them by extraction, not by `duckdb_prepare`.
    Read,
    /// INSERT, UPDATE, DELETE, MERGE, TRUNCATE, COPY FROM, and every query that could change something.
    Write,
    /// CREATE, DROP, ALTER, COMMENT.
    Ddl,
    TxBegin,
    TxCommit,
    TxRollback,
    /// `INSTALL x` or `LOAD x`: the extension's name in lower case.
    InstallLoad(String),
    /// VACUUM or ANALYZE.
    Vacuum,
    Checkpoint,
    /// `COPY … TO`: writes outside the mart, reads inside it.
    CopyTo,
    /// SET, RESET, USE.
    Session,
    /// EXPLAIN; with `analyze` the inner statement runs.
    Explain {
        analyze: bool,
        inner: Box<Kind>,
    },
    /// Nothing that a client may run; says why.
    Other(&'static str),
    /// No statement of DuckDB's starts with this word: a typing error, most likely.
    Unknown(String),
}

impl Kind {
    /// Does running it leave the mart as it is, so that it may stream outside a transaction?
    pub fn is_read(&self) -> bool {
        match self {
            Kind::Read => true,
            Kind::Explain { analyze, inner } => !analyze || inner.is_read(),
            _ => false,
        }
    }

    /// The contract's word for it: `read`, `write`, `ddl` or `other`.
    pub fn label(&self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Ddl => "ddl",
            Kind::Explain { .. } if self.is_read() => "read",
            Kind::Explain { inner, .. } => inner.label(),
            _ => "other",
        }
    }
}

/// How much of an unknown word an error repeats.
const MAX_SHOWN_CHARS: usize = 40;

/// Cuts a script into statements; empty ones vanish.
pub fn split(sql: &str) -> Result<Vec<Statement<'_>>, SqlError> {
    let tokens = lexer::lex(sql)?;
    Ok(tokens
        .split(|token| token.is_symbol(b';'))
        .filter(|tokens| !tokens.is_empty())
        .map(|tokens| statement(sql, tokens))
        .collect())
}

fn statement<'a>(sql: &'a str, tokens: &[Token]) -> Statement<'a> {
    let span = tokens[0].start..tokens[tokens.len() - 1].end;
    Statement {
        text: &sql[span.clone()],
        kind: Words { sql, tokens }.classify(),
        first: first_word(sql, tokens).map(|word| word.to_ascii_lowercase()).unwrap_or_default(),
        tokens: tokens.to_vec(),
        span,
    }
}

fn first_word<'a>(sql: &'a str, tokens: &[Token]) -> Option<&'a str> {
    let token = tokens.iter().find(|token| !token.is_symbol(b'('))?;
    (token.kind == TokenKind::Word).then(|| token.text(sql))
}

/// The tokens of one statement with their text, to look at by position.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a> {
    pub sql: &'a str,
    pub tokens: &'a [Token],
}

impl<'a> Words<'a> {
    pub fn from(self, at: usize) -> Words<'a> {
        Words { sql: self.sql, tokens: &self.tokens[at.min(self.tokens.len())..] }
    }

    /// Is token `at` the unquoted word `word` (lower case)?
    pub fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_word(self.sql, word))
    }

    pub fn is_any(&self, at: usize, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(at, word))
    }

    pub fn symbol(&self, at: usize, byte: u8) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_symbol(byte))
    }

    /// The offset behind the bracket group that opens at `at`, or the end.
    pub fn behind_group(&self, at: usize) -> usize {
        let mut depth = 0usize;
        for (i, token) in self.tokens.iter().enumerate().skip(at) {
            match token.kind {
                TokenKind::Symbol(b'(' | b'[' | b'{') => depth += 1,
                TokenKind::Symbol(b')' | b']' | b'}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return i + 1;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len()
    }

    fn classify(self) -> Kind {
        let Some(first) = first_word(self.sql, self.tokens) else {
            let text = self.tokens.first().map(|token| token.text(self.sql)).unwrap_or_default();
            return Kind::Unknown(text.chars().take(MAX_SHOWN_CHARS).collect());
        };
        match first.to_ascii_lowercase().as_str() {
            "select" | "from" | "values" | "table" | "show" | "describe" | "desc" | "summarize" | "pivot"
            | "unpivot" | "pivot_wider" | "pivot_longer" => self.query(),
            // `(` in front of anything else is no statement of DuckDB's.
            _ if self.symbol(0, b'(') && !self.is_leading_with() => Kind::Other("`(` starts only a query"),
            "with" => self.with(),
            "insert" | "delete" | "merge" | "truncate" => Kind::Write,
            "update" if self.is(1, "extensions") && (self.tokens.len() == 2 || self.symbol(2, b'(')) => {
                Kind::Other("extensions are pinned by the server")
            }
            "update" => Kind::Write,
            "create" | "drop" | "alter" | "comment" => Kind::Ddl,
            "copy" => self.copy(),
            "begin" | "start" => Kind::TxBegin,
            "commit" | "end" => Kind::TxCommit,
            "rollback" | "abort" => Kind::TxRollback,
            "install" | "load" => self.install(),
            "force" if self.is(1, "checkpoint") => Kind::Checkpoint,
            "force" => Kind::Other("extensions are pinned by the server"),
            "vacuum" | "analyze" => Kind::Vacuum,
            "checkpoint" => Kind::Checkpoint,
            "set" | "reset" | "use" => Kind::Session,
            "explain" => self.explain(),
            "pragma" => Kind::Other("PRAGMA is not available; use SHOW, DESCRIBE, or the `duckdb_tables()` family"),
            "call" => Kind::Other("CALL is not available; table functions can be selected from"),
            "attach" | "detach" => Kind::Other("a mart is one database; ATTACH and DETACH are not available"),
            "export" | "import" => Kind::Other("EXPORT and IMPORT DATABASE are not available; use COPY per table"),
            "prepare" | "execute" | "deallocate" => {
                Kind::Other("PREPARE and EXECUTE are not available; send `params` with the request")
            }
            _ => Kind::Unknown(first.chars().take(MAX_SHOWN_CHARS).collect()),
        }
    }

    fn is_leading_with(&self) -> bool {
        let at = self.tokens.iter().position(|token| !token.is_symbol(b'(')).unwrap_or(0);
        self.is(at, "with")
    }

    /// A query is a read unless something in it could change data.
    fn query(self) -> Kind {
        if self.may_write() { Kind::Write } else { Kind::Read }
    }

    /// `nextval`, `INTO`, or a data-changing verb behind a bracket (DuckDB 1.5 rejects those in a CTE; a later one may not).
    fn may_write(&self) -> bool {
        self.tokens.iter().enumerate().any(|(at, token)| {
            let named = |name: &str| token.name(self.sql).is_some_and(|n| n.eq_ignore_ascii_case(name));
            let opens_group = at > 0 && self.symbol(at - 1, b'(');
            (named("nextval") || named("setval")) && self.symbol(at + 1, b'(')
                || token.is_word(self.sql, "into")
                || opens_group
                    && ["insert", "delete", "merge", "truncate"].iter().any(|verb| token.is_word(self.sql, verb))
                    && !self.ends_item(at + 1)
                || opens_group && token.is_word(self.sql, "update") && !self.ends_item(at + 1)
        })
    }

    /// Is what follows a column called like a verb, as in `max(update)`, rather than a statement?
    fn ends_item(&self, at: usize) -> bool {
        self.tokens.get(at).is_none_or(|token| {
            matches!(
                token.kind,
                TokenKind::Symbol(b')' | b',' | b'(' | b'.' | b'+' | b'-' | b'*' | b'/' | b'=' | b'<' | b'>' | b':')
            )
        })
    }

    /// `WITH [RECURSIVE] name [(…)] [USING KEY (…)] AS [NOT] [MATERIALIZED] (…), …` and then the verb that counts.
    fn with(self) -> Kind {
        let mut at = self.tokens.iter().position(|token| !token.is_symbol(b'(')).unwrap_or(0) + 1;
        if self.is(at, "recursive") && !self.is(at + 1, "as") {
            at += 1;
        }
        loop {
            at += 1; // the name
            while at < self.tokens.len() && !self.is(at, "as") {
                at = if self.symbol(at, b'(') { self.behind_group(at) } else { at + 1 };
            }
            at += 1;
            while self.is_any(at, &["not", "materialized"]) {
                at += 1;
            }
            if !self.symbol(at, b'(') {
                return Kind::Write;
            }
            at = self.behind_group(at);
            if !self.symbol(at, b',') {
                break;
            }
            at += 1;
        }
        while self.symbol(at, b'(') {
            at += 1;
        }
        if self.is_any(
            at,
            &[
                "select",
                "from",
                "values",
                "table",
                "pivot",
                "unpivot",
                "pivot_wider",
                "pivot_longer",
                "summarize",
                "describe",
                "desc",
                "show",
                "with",
            ],
        ) {
            return self.query();
        }
        Kind::Write
    }

    fn copy(self) -> Kind {
        if self.is(1, "from") && self.is(2, "database") {
            return Kind::Other("COPY FROM DATABASE is not available; a mart is one database");
        }
        // The direction is the first FROM or TO outside brackets: a table's column list and a query stand in brackets.
        let mut at = 1;
        while at < self.tokens.len() {
            if self.is(at, "to") {
                return Kind::CopyTo;
            }
            if self.is(at, "from") {
                return Kind::Write;
            }
            at = if self.symbol(at, b'(') { self.behind_group(at) } else { at + 1 };
        }
        Kind::Other("COPY needs FROM or TO")
    }

    fn install(self) -> Kind {
        let name = self.tokens.get(1).and_then(|token| token.name(self.sql).or_else(|| token.string_value(self.sql)));
        match name {
            Some(name) if self.tokens.len() == 2 => Kind::InstallLoad(name.to_ascii_lowercase()),
            _ => {
                Kind::Other("extensions are pinned by the server; a plain `INSTALL name` or `LOAD name` is understood")
            }
        }
    }

    fn explain(self) -> Kind {
        let mut at = 1;
        let mut analyze = false;
        if self.is_any(at, &["analyze", "analyse"]) {
            analyze = true;
            at += 1;
        }
        if self.is(at, "verbose") {
            at += 1;
        }
        if self.symbol(at, b'(')
            && self.is_any(at + 1, &["analyze", "analyse", "format", "verbose", "costs", "timing", "summary"])
        {
            let end = self.behind_group(at);
            analyze |= (at..end).any(|i| {
                self.tokens[i]
                    .name(self.sql)
                    .is_some_and(|n| n.eq_ignore_ascii_case("analyze") || n.eq_ignore_ascii_case("analyse"))
            });
            at = end;
        }
        let inner = self.from(at);
        if inner.is(0, "explain") {
            return Kind::Other("EXPLAIN of EXPLAIN");
        }
        match inner.classify() {
            kind @ (Kind::Other(_) | Kind::Unknown(_)) => kind,
            kind => Kind::Explain { analyze, inner: Box::new(kind) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Kind {
        let mut statements = split(sql).expect("splits");
        assert_eq!(statements.len(), 1, "{sql}");
        statements.remove(0).kind
    }

    #[test]
    fn a_script_splits_only_at_semicolons_that_duckdb_sees() {
        let sql = " select ';' ; /* ; */ select $$;$$ -- ; \n;; insert into t values (e'\\';') ; ";
        let texts: Vec<_> = split(sql).expect("splits").into_iter().map(|s| s.text).collect();
        assert_eq!(texts, ["select ';'", "select $$;$$", "insert into t values (e'\\';')"]);
        assert_eq!(split("/* nothing */ ;; -- ;").expect("splits"), []);
    }

    #[test]
    fn a_span_points_at_the_statement_in_the_script() {
        let sql = "select 1; -- é\n  select 2 ;";
        let second = &split(sql).expect("splits")[1];
        assert_eq!((&sql[second.span.clone()], second.first.as_str()), ("select 2", "select"));
    }

    #[test]
    fn queries_are_reads() {
        for sql in [
            "select 1",
            "(select 1) union (select 2)",
            "from t",
            "FROM t SELECT a",
            "values (1)",
            "table t",
            "show tables",
            "describe t",
            "summarize t",
            "pivot t on v using count(*)",
            "with a as (select 1) select * from a",
            "with recursive r(n) as materialized (select 1 union all select n+1 from r) from r",
            "with a as (select 1), b(x) using key (x) as not materialized (select 2) (select * from a, b)",
            "explain delete from t",
            "explain analyze select 1",
            "explain (analyze, format json) select 1",
            "explain (select 1)",
            "select max(update) from t",
            "select \"delete\" from t",
            "select 'nextval(1)'",
        ] {
            assert!(kind(sql).is_read(), "{sql}: {:?}", kind(sql));
        }
    }

    #[test]
    fn whatever_could_change_data_is_no_read() {
        for sql in [
            "select nextval('s')",
            "select \"NextVal\"('s')",
            "select main.nextval /* */ ('s')",
            "with x as (insert into t values (1) returning *) select * from x",
            "with x as (delete from t returning *) select * from x",
            "with x as (select 1) insert into t from x",
            "with x as (select 1) update t set a=1",
            "with x as (select 1) delete from t",
            "with x as (select 1) merge into t using x on true when matched then delete",
            "explain analyze delete from t",
            "explain (format json, analyze) insert into t values (1)",
            "explain (\"analyze\") update t set a=1",
            "select 1 into x",
            "insert into t values (1) returning *",
        ] {
            assert!(!kind(sql).is_read(), "{sql}: {:?}", kind(sql));
        }
    }

    #[test]
    fn other_statements_have_their_kinds() {
        assert_eq!(kind("create table t(i int)"), Kind::Ddl);
        assert_eq!(kind("copy t(a) from 's3://x'"), Kind::Write);
        assert_eq!(kind("copy (select * from t) to 's3://x'"), Kind::CopyTo);
        assert_eq!(kind("INSTALL 'HTTPFS'"), Kind::InstallLoad("httpfs".to_owned()));
        assert!(matches!(kind("install spatial from community"), Kind::Other(_)));
        assert!(matches!(kind("copy from database a to b"), Kind::Other(_)));
        assert!(matches!(kind("update extensions"), Kind::Other(_)));
        assert_eq!(kind("update extensions set a = 1"), Kind::Write);
        assert_eq!(
            (kind("begin transaction read only"), kind("END"), kind("abort")),
            (Kind::TxBegin, Kind::TxCommit, Kind::TxRollback)
        );
        assert_eq!(
            (kind("force checkpoint"), kind("vacuum analyze"), kind("set x=1")),
            (Kind::Checkpoint, Kind::Vacuum, Kind::Session)
        );
        for sql in [
            "pragma version",
            "call x()",
            "prepare p as select 1",
            "execute p",
            "attach 'x'",
            "explain execute p",
            "(insert into t values (1))",
        ] {
            assert!(matches!(kind(sql), Kind::Other(_)), "{sql}");
        }
        for sql in ["'x'", "1", "SELEKT 1", "explain SELEKT 1"] {
            assert!(matches!(kind(sql), Kind::Unknown(_)), "{sql}");
        }
    }
}
