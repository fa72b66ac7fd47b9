//! Where in a statement a table stands: there a string is a file, and a name can be a system view or a table function.
//!
//! No parse, only clauses by bracket depth, and the unknown counts as a table: a list of tables ends only at a **reserved** word of
//! its grammar (any other may be an alias: `from a as set, b`), and inside of it a token is a value only behind an operator or
//! keyword that DuckDB follows with an expression. Brackets are value lists unless they open where a table starts.
//! **Invariant:** wrong in one direction only; a place that might be a table's counts as one.

use super::verb_at;
use crate::sql::{Words, lexer::TokenKind};

/// What a token may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Role {
    /// Part of an expression, an alias behind AS, a keyword: no table starts here.
    Value,
    /// Nothing proves that no table starts here.
    Unproved,
    /// The grammar has a table here.
    Table,
}

/// What the walk knows about an open bracket, or about the statement outside of all.
struct Level {
    place: Place,
    /// The offset of its first token.
    first: usize,
    /// A list of tables began in it.
    listed: bool,
}

/// Which part of a level the walk is in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// In a list of tables, or at the head of a statement, where nothing is proved yet.
    Tables,
    /// In expressions: only a keyword can lead to a table.
    Values,
    /// Inside `extract(… from …)`, `trim(… from …)` and their like, where FROM starts no list of tables.
    Keywords,
}

/// Reserved words behind which the list of tables is over. Reserved, so that none of them can be an alias.
const ENDS: [&str; 8] = ["select", "where", "having", "qualify", "window", "limit", "offset", "returning"];

/// Words that a table follows, wherever they stand.
const STARTS: [&str; 19] = [
    "from",
    "join",
    "table",
    "only",
    "lateral",
    "describe",
    "desc",
    "summarize",
    "show",
    "pivot",
    "pivot_wider",
    "pivot_longer",
    "unpivot",
    "using",
    "into",
    "update",
    "truncate",
    "vacuum",
    "copy",
];

/// Words that an expression or an alias follows, never a table.
const BEFORE_VALUES: [&str; 24] = [
    "as",
    "on",
    "and",
    "or",
    "not",
    "like",
    "ilike",
    "glob",
    "to",
    "escape",
    "between",
    "in",
    "is",
    "case",
    "when",
    "then",
    "else",
    "default",
    "by",
    "collate",
    "interval",
    "date",
    "timestamp",
    "time",
];

const PIVOTS: [&str; 4] = ["pivot", "unpivot", "pivot_wider", "pivot_longer"];

/// For each token: what may stand there?
pub(super) fn positions(words: Words<'_>) -> Vec<Role> {
    let verb = verb_at(words);
    // COPY's and ALTER's other strings are checked elsewhere or are plain data; their tables stand behind a word of `STARTS`.
    let place = match words.is_any(verb, &["copy", "alter", "drop", "comment"]) {
        true => Place::Values,
        false => Place::Tables,
    };
    let levels = vec![Level { place, first: verb, listed: false }];
    let mut walk = Walk { words, verb, levels, roles: Vec::with_capacity(words.tokens.len()) };
    for at in 0..words.tokens.len() {
        walk.step(at);
    }
    walk.roles
}

struct Walk<'a> {
    words: Words<'a>,
    /// Where the statement's verb stands.
    verb: usize,
    /// Never empty.
    levels: Vec<Level>,
    roles: Vec<Role>,
}

impl Walk<'_> {
    fn step(&mut self, at: usize) {
        let role = self.role(at);
        self.roles.push(role);
        match self.words.tokens[at].kind {
            TokenKind::Symbol(b'(') => {
                let place = self.inside_bracket(at, role);
                self.levels.push(Level { place, first: at + 1, listed: false });
            }
            TokenKind::Symbol(b'[' | b'{') => {
                self.levels.push(Level { place: Place::Values, first: at + 1, listed: false });
            }
            TokenKind::Symbol(b')' | b']' | b'}') if self.levels.len() > 1 => {
                self.levels.pop();
            }
            TokenKind::Word => {
                let place = self.behind_word(at);
                let lists = self.words.is_any(at, &["from", "join", "using"]);
                let level = self.level_mut();
                level.place = place;
                level.listed |= lists;
            }
            _ => {}
        }
    }

    fn level(&self) -> &Level {
        self.levels.last().expect("the statement's own level is never popped")
    }

    fn level_mut(&mut self) -> &mut Level {
        self.levels.last_mut().expect("the statement's own level is never popped")
    }

    fn role(&self, at: usize) -> Role {
        let Some(before) = at.checked_sub(1) else { return Role::Value };
        let words = self.words;
        let expression = words.is(before, "from") && self.is_no_clause(before)
            // ALTER … TYPE … USING expression.
            || words.is(before, "using") && words.is(self.verb, "alter");
        if words.is_any(before, &STARTS) && !expression {
            return Role::Table;
        }
        if self.level().place != Place::Tables {
            return Role::Value;
        }
        match words.tokens[before].kind {
            TokenKind::Symbol(b',' | b'(' | b':') => Role::Table,
            TokenKind::Symbol(b')' | b']' | b'}') => Role::Unproved,
            TokenKind::Symbol(_) => Role::Value,
            // ON of CREATE INDEX names a table.
            TokenKind::Word if words.is(before, "on") && words.is(self.verb, "create") => Role::Table,
            TokenKind::Word if words.is_any(before, &BEFORE_VALUES) || words.is(before, "from") => Role::Value,
            _ => Role::Unproved,
        }
    }

    /// Is the FROM at `at` one that no table follows?
    fn is_no_clause(&self, at: usize) -> bool {
        let copy = self.levels.len() == 1 && self.words.is(self.verb, "copy");
        self.level().place == Place::Keywords || copy || self.is_distinct_from(at)
    }

    /// `IS [NOT] DISTINCT FROM` compares.
    fn is_distinct_from(&self, at: usize) -> bool {
        let words = self.words;
        let is = |at: usize| words.is(at, "is") && at > 0 && !words.symbol(at - 1, b'.');
        at >= 2 && words.is(at - 1, "distinct") && (is(at - 2) || at >= 3 && words.is(at - 2, "not") && is(at - 3))
    }

    /// What a bracket opens: a bracketed list of tables where a table starts, else values (a query inside brings its own FROM).
    fn inside_bracket(&self, at: usize, role: Role) -> Place {
        if self.is_keyword_call(at) {
            return Place::Keywords;
        }
        let name_before = at.checked_sub(1).is_some_and(|before| {
            let token = &self.words.tokens[before];
            token.is_string()
                || matches!(
                    token.kind,
                    TokenKind::Word | TokenKind::QuotedIdent | TokenKind::Number | TokenKind::Parameter
                )
        });
        match role {
            Role::Table => Place::Tables,
            // A call's arguments, columns behind an alias, options.
            Role::Unproved if !name_before => Place::Tables,
            _ => Place::Values,
        }
    }

    /// Does the bracket at `at` belong to `extract(x from y)`, `trim([x] from y)`, `substring(x from y)` or `overlay(…)`, and not to a
    /// table or an alias of that name (`insert into trim (…)`)?
    fn is_keyword_call(&self, at: usize) -> bool {
        let words = self.words;
        let Some(name) = at.checked_sub(1) else { return false };
        if !words.is_any(name, &["extract", "substring", "trim", "overlay"]) || self.roles[name] != Role::Value {
            return false;
        }
        let before = name.checked_sub(1);
        let dotted = before.is_some_and(|before| words.symbol(before, b'.'));
        // Behind AS it is the alias of INSERT's table, but in CREATE MACRO an expression.
        let alias = before.is_some_and(|before| words.is(before, "as")) && !words.is(self.verb, "create");
        if dotted || alias || words.is(at + 1, "from") && !words.is(name, "trim") {
            return false;
        }
        // A query has more than one keyword of its own.
        let end = words.behind_group(at);
        let mut inner = at + 1;
        while inner < end {
            let query = [
                "select",
                "values",
                "table",
                "with",
                "union",
                "except",
                "intersect",
                "join",
                "where",
                "order",
                "limit",
            ];
            if words.is_any(inner, &query) && !words.symbol(inner - 1, b'.') {
                return false;
            }
            let opens = matches!(words.tokens[inner].kind, TokenKind::Symbol(b'(' | b'[' | b'{'));
            inner = if opens { words.behind_group(inner) } else { inner + 1 };
        }
        true
    }

    /// The place behind the word at `at`.
    fn behind_word(&self, at: usize) -> Place {
        let words = self.words;
        let place = self.level().place;
        if words.is(at, "join") || words.is(at, "from") && !self.is_no_clause(at) {
            return Place::Tables;
        }
        // Behind a dot every word is a name.
        if place != Place::Tables || at > 0 && words.symbol(at - 1, b'.') {
            return place;
        }
        let ends = words.is_any(at, &ENDS) || words.is_any(at, &["group", "order"]) && words.is(at + 1, "by");
        if ends || self.starts_rows(at) || self.starts_assignments(at) || self.starts_pivot_columns(at) {
            return Place::Values;
        }
        place
    }

    /// `VALUES (`, where it can't be the alias of a table: at the start of a query, or before any list of tables.
    fn starts_rows(&self, at: usize) -> bool {
        let words = self.words;
        if !words.is(at, "values") || !words.symbol(at + 1, b'(') {
            return false;
        }
        let Some(before) = at.checked_sub(1) else { return true };
        let dotted = before > 0 && words.symbol(before - 1, b'.');
        words.symbol(before, b'(')
            || words.is_any(before, &["all", "union", "except", "intersect", "distinct"]) && !dotted
            || self.levels.len() == 1 && !self.level().listed
    }

    /// SET of an UPDATE, before any FROM.
    fn starts_assignments(&self, at: usize) -> bool {
        let head = self.levels.len() == 1 && !self.level().listed;
        head && self.words.is(at, "set") && self.words.is(self.verb, "update")
    }

    /// ON of `PIVOT t ON columns` where the word opens its bracket or the statement; that list has columns only.
    fn starts_pivot_columns(&self, at: usize) -> bool {
        self.words.is(at, "on") && self.words.is_any(self.level().first, &PIVOTS)
    }
}
