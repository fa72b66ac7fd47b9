//! The gate against a corpus of SQL that a tenant may and may not run (`testdata/sandbox-corpus.jsonl`).

use serde_json::Value as Json;

use super::check;
use crate::{format::tests::duck::Duck, wire::Role};

/// Blocked by a later wall, because tokens can't tell: whose bucket it is (the gateway decides), and how deep an expression of
/// operators gets (the engine's `max_expression_depth`).
const LATER_WALLS: [(&str, &str); 5] = [
    ("s3-scope-003", "gateway: another bucket"),
    ("s3-scope-016", "gateway: another tenant's bucket in a list"),
    ("s3-scope-019", "gateway: another tenant's bucket"),
    ("s3-scope-024", "gateway: the processed bucket is read-only"),
    ("planner-bomb-001", "engine: max_expression_depth"),
];

struct Entry {
    id: String,
    sql: String,
    expect: String,
    role: Role,
}

fn corpus() -> Vec<Entry> {
    let text = include_str!("../../../testdata/sandbox-corpus.jsonl");
    text.lines()
        .map(|line| {
            let entry: Json = serde_json::from_str(line).expect("a line of JSON");
            let field = |name: &str| entry[name].as_str().map(str::to_owned);
            let sql = match field("sql_gen") {
                Some(expression) => generate(&expression),
                None => field("sql").expect("SQL"),
            };
            let sql = sql
                .replace("{state}", "/srv/state/acme")
                .replace("{other_state}", "/srv/state/globex")
                .replace("{outside}", "/srv/outside");
            let role = if entry["role"] == "ro" { Role::Reader } else { Role::Writer };
            Entry { id: field("id").expect("an id"), sql, expect: field("expect").expect("an expectation"), role }
        })
        .collect()
}

/// Evaluates the corpus's long texts: literals and `'literal'*count`, joined by `+`.
fn generate(expression: &str) -> String {
    let mut out = String::new();
    let mut rest = expression;
    while let Some(open) = rest.find('\'') {
        let close = open + 1 + rest[open + 1..].find('\'').expect("a closing quote");
        let literal = &rest[open + 1..close];
        rest = &rest[close + 1..];
        let times = rest.strip_prefix('*').map_or(1, |count| {
            let digits = count.find(|c: char| !c.is_ascii_digit()).unwrap_or(count.len());
            rest = &count[digits..];
            count[..digits].parse().expect("a count")
        });
        out.push_str(&literal.repeat(times));
    }
    out
}

#[test]
fn what_must_be_blocked_is_refused_but_for_what_a_later_wall_stops() {
    let mut passed: Vec<String> = Vec::new();
    let mut blocked = 0;
    for entry in corpus().iter().filter(|entry| entry.expect == "blocked") {
        blocked += 1;
        if check(&entry.sql, entry.role).is_ok() {
            passed.push(entry.id.clone());
        }
    }
    assert!(blocked > 80, "{blocked}");
    assert_eq!(passed, LATER_WALLS.map(|(id, _)| id.to_owned()));
}

#[test]
fn what_is_allowed_or_only_expensive_passes() {
    for entry in corpus().iter().filter(|entry| matches!(entry.expect.as_str(), "ok" | "bounded")) {
        assert!(check(&entry.sql, entry.role).is_ok(), "{}: {:?}", entry.id, check(&entry.sql, entry.role));
    }
}

#[test]
fn hidden_writes_are_never_taken_for_reads() {
    for entry in corpus().iter().filter(|entry| entry.expect == "error") {
        for statement in check(&entry.sql, Role::Writer).into_iter().flatten() {
            assert!(!statement.kind.is_read(), "{}", entry.id);
        }
    }
}

/// Table functions that were looked at and are harmless; one that a later DuckDB adds has to be looked at before it passes.
const HARMLESS: [&str; 37] = [
    "duckdb_approx_database_count",
    "duckdb_columns",
    "duckdb_connection_count",
    "duckdb_constraints",
    "duckdb_coordinate_systems",
    "duckdb_dependencies",
    "duckdb_functions",
    "duckdb_indexes",
    "duckdb_keywords",
    "duckdb_memory",
    "duckdb_optimizers",
    "duckdb_prepared_statements",
    "duckdb_schemas",
    "duckdb_sequences",
    "duckdb_table_sample",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_variables",
    "duckdb_views",
    "generate_series",
    "icu_calendar_names",
    "json_each",
    "json_tree",
    "pg_timezone_names",
    "pragma_collations",
    "pragma_database_size",
    "pragma_show",
    "pragma_storage_info",
    "pragma_table_info",
    "pragma_version",
    "range",
    "repeat",
    "repeat_row",
    "summary",
    "test_all_types",
    "test_vector_types",
    "unnest",
];

#[test]
fn every_table_function_of_this_duckdb_is_refused_or_was_looked_at() {
    let names = Duck::open().column(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type IN ('table', 'table_macro') ORDER BY function_name COLLATE \"C\"",
    );
    let passed: Vec<String> =
        names.into_iter().filter(|name| check(&format!("FROM {name}()"), Role::Admin).is_ok()).collect();
    assert_eq!(passed, HARMLESS);
}
