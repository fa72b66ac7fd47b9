//! Changes of tables that would not be replayed, or not the same way.
//!
//! An ALTER, a comment on a column, and the DROP of a table that refers to another bind the expressions of a table's checks and generated
//! columns anew, and in a replay the mart's macros, types and sequences are not found. Where an ALTER computes values, they are
//! computed again.

use std::collections::HashSet;

use super::{Refusal, behind_if_exists, calls, names, not_understood, path, refuse};
use crate::{
    duck::{Connection, DuckError},
    sql::{Words, lexer},
};

const TYPES: &str = "SELECT DISTINCT lower(type_name) FROM duckdb_types() WHERE NOT internal";
const MACROS: &str = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE NOT internal";
/// Built-in functions that need not give the same again.
const UNSTABLE: &str = "
    SELECT DISTINCT lower(function_name) FROM duckdb_functions()
    WHERE internal AND (function_type = 'scalar' AND stability IS DISTINCT FROM 'CONSISTENT'
        OR function_type = 'macro' AND regexp_matches(macro_definition, 'current|now|today|random|uuid|setting|txid', 'i'))";
/// More of them: DuckDB says otherwise.
const ALSO_UNSTABLE: [&str; 8] = [
    "age",
    "ago",
    "current_localtime",
    "current_localtimestamp",
    "current_role",
    "current_setting",
    "getvariable",
    "session_user",
];
const SEQUENCES: [&str; 2] = ["nextval", "currval"];
const DEFINITIONS: &str = "SELECT sql FROM duckdb_tables() WHERE lower(table_name) = lower($1)";

/// ALTER of anything.
pub(super) fn alter(connection: &Connection, words: Words<'_>) -> Result<(), Refusal> {
    let (table, behind) = path(words, behind_if_exists(words, 2));
    let Some(table) = table.last() else { return not_understood() };
    let rest = words.from(if words.symbol(behind, b'*') { behind + 1 } else { behind });
    if rest.is(0, "owned") {
        return refuse("OWNED BY is not available: the log does not keep it", "drop the sequence after its table");
    }
    if rest.is(0, "rename") && rest.is(1, "to") {
        return Ok(());
    }
    definition(connection, table)?;
    let mut at = 1 + usize::from(rest.is(1, "column"));
    if rest.is(0, "alter") {
        let (column, behind) = path(rest, at);
        if column.is_empty() {
            return not_understood();
        }
        at = behind;
        while rest.is_any(at, &["set", "data"]) {
            at += 1;
        }
        if rest.is(at, "type") {
            return new_type(connection, rest.from(at + 1));
        }
    }
    if rest.is(0, "add") {
        let (column, behind) = path(rest, behind_if_exists(rest, at));
        // DuckDB itself makes several plain steps of a column with a computed default, but not of a field.
        if column.len() > 1 {
            let default = (behind..rest.tokens.len()).find(|at| rest.is(*at, "default"));
            return default.map_or(Ok(()), |at| computed(connection, rest.from(at + 1), "the default of a field"));
        }
    }
    Ok(())
}

/// COMMENT ON COLUMN, from the column's name on.
pub(super) fn comment_on_column(connection: &Connection, words: Words<'_>) -> Result<(), Refusal> {
    let (column, _) = path(words, 0);
    match column.as_slice() {
        [.., table, _] => definition(connection, table),
        _ => not_understood(),
    }
}

/// CREATE TABLE: dropping a table binds those anew that it refers to.
pub(super) fn create(connection: &Connection, words: Words<'_>) -> Result<(), Refusal> {
    for at in (0..words.tokens.len()).filter(|at| words.is(*at, "references")) {
        match path(words, at + 1).0.last() {
            Some(table) => definition(connection, table)?,
            None => return not_understood(),
        }
    }
    Ok(())
}

/// A column's new type and how its values become it.
fn new_type(connection: &Connection, words: Words<'_>) -> Result<(), Refusal> {
    computed(connection, words, "a column's new type")?;
    let unstable = set(connection, UNSTABLE)?;
    let is_unstable = |name: &&String| unstable.contains(*name) || ALSO_UNSTABLE.contains(&name.as_str());
    match calls(words).iter().find(is_unstable) {
        Some(name) => refuse(
            format!("`{name}` can't be used here: recovery would compute other values"),
            "change the type first, then UPDATE the column",
        ),
        None => Ok(()),
    }
}

fn computed(connection: &Connection, words: Words<'_>, what: &str) -> Result<(), Refusal> {
    match own_name(connection, words)? {
        Some(name) => refuse(
            format!("{what} can't use `{name}`: recovery would not find it"),
            "add a column of the type you want, UPDATE it from the old one, drop the old one and rename the new one",
        ),
        None => Ok(()),
    }
}

/// Refuses if a check or generated column of a table called `table`, in any schema, uses something of the mart's own.
fn definition(connection: &Connection, table: &str) -> Result<(), Refusal> {
    for sql in connection.column_with(DEFINITIONS, &[table])? {
        let Ok(tokens) = lexer::lex(&sql) else { return not_understood() };
        let words = Words { sql: &sql, tokens: &tokens };
        for at in 0..tokens.len() {
            let generated = words.is(at, "generated") && words.is(at + 1, "always") && words.is(at + 2, "as");
            let open = match (generated, words.is(at, "check")) {
                (true, _) => at + 3,
                (_, true) => at + 1,
                _ => continue,
            };
            if !words.symbol(open, b'(') {
                continue;
            }
            let group = Words { sql: &sql, tokens: &tokens[open..words.behind_group(open)] };
            if let Some(name) = own_name(connection, group)? {
                return refuse(
                    format!(
                        "a check or generated column of table `{table}` uses `{name}`: recovery could not repeat the change"
                    ),
                    "make a new table with CREATE TABLE and INSERT … SELECT, drop the old one and rename the new one",
                );
            }
        }
    }
    Ok(())
}

/// A type, macro or sequence of the mart's that the expression uses.
fn own_name(connection: &Connection, words: Words<'_>) -> Result<Option<String>, DuckError> {
    let (all, called) = (names(words), calls(words));
    if let Some(name) = called.iter().find(|name| SEQUENCES.contains(&name.as_str())) {
        return Ok(Some(name.clone()));
    }
    let found = all.intersection(&set(connection, TYPES)?).min().cloned();
    Ok(match found {
        None if !called.is_empty() => called.intersection(&set(connection, MACROS)?).min().cloned(),
        found => found,
    })
}

fn set(connection: &Connection, sql: &str) -> Result<HashSet<String>, DuckError> {
    Ok(connection.column(sql)?.into_iter().collect())
}
