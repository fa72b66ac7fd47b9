//! Functions and system views that a client's SQL may not name.
//!
//! They reach files, secrets, settings, other sessions or the checkpoint, run text as SQL, or can't be interrupted. A name counts
//! where it is called (`f(`, quoted or not, behind any schema or dot) or where it may stand as a table; a column of the same name is
//! nobody's business, but for the few names of `HIDDEN`.

use super::{OWN_SCHEMA, Refused, tables::Role};
use crate::sql::{Kind, Words};

/// Called or selected from: never.
const DENIED: [&str; 78] = [
    // how the engine reads the rows of a load
    crate::load::scan::FUNCTION,
    // run text as SQL, or plan it (planning reads files)
    "query",
    "query_table",
    "histogram_values",
    "json_execute_serialized_sql",
    "json_serialize_plan",
    "sql_auto_complete",
    "check_peg_parser",
    "from_substrait",
    "from_substrait_json",
    "get_substrait",
    "get_substrait_json",
    // open databases and raw memory
    "read_duckdb",
    "duckdb_scan",
    "seq_scan",
    "index_scan",
    "arrow_scan",
    "arrow_scan_dumb",
    "pandas_scan",
    "python_map_function",
    "sqlite_scan",
    "sqlite_attach",
    "sqlite_query",
    "postgres_scan",
    "postgres_scan_pushdown",
    "postgres_attach",
    "postgres_query",
    "postgres_execute",
    "mysql_query",
    "mysql_execute",
    "delta_scan",
    "iceberg_scan",
    "iceberg_metadata",
    "iceberg_snapshots",
    "st_read",
    "read_xlsx",
    "start_ui",
    "get_block_size",
    "load_aws_credentials",
    "http_get",
    "http_post",
    // secrets, settings, paths, other sessions
    "which_secret",
    "getenv",
    "pg_settings",
    "pragma_database_list",
    "pragma_last_profiling_output",
    "database_list",
    "write_log",
    "truncate_duckdb_logs",
    "parse_duckdb_log_message",
    "test_all_types_internal",
    "set_config",
    "pg_read_file",
    // the server owns checkpoints and maintenance
    "copy_database",
    "import_database",
    "all_profiling_output",
    "add_parquet_key",
    "checkpoint",
    "force_checkpoint",
    "wal_checkpoint",
    "dbgen",
    "dsdgen",
    "tpch",
    "tpcds",
    "reload_ui",
    "stop_ui",
    "stop_ui_server",
    "start_ui_server",
    // deaf to interrupts, quadratic in time or memory
    "levenshtein",
    "editdist3",
    "damerau_levenshtein",
    "jaro_similarity",
    "jaro_winkler_similarity",
    "hamming",
    "mismatches",
    "sleep_ms",
    "sleep",
    "pg_sleep",
];

/// Of the `duckdb_*` and `pragma_*` functions and views only these; new ones have to be looked at first.
const ALLOWED_INTROSPECTION: [&str; 25] = [
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
    "pragma_collations",
    "pragma_database_size",
    "pragma_show",
    "pragma_storage_info",
    "pragma_table_info",
    "pragma_version",
];

/// Relations and functions of DuckDB that show the server's paths, settings, secrets or other sessions: refused wherever the name
/// stands, also where it could be a column.
const HIDDEN: [&str; 16] = [
    "duckdb_databases",
    "duckdb_extensions",
    "duckdb_external_file_cache",
    "duckdb_log_contexts",
    "duckdb_logs",
    "duckdb_logs_parsed",
    "duckdb_profiling_settings",
    "duckdb_secret_types",
    "duckdb_secrets",
    "duckdb_settings",
    "duckdb_temporary_files",
    "pg_settings",
    "pragma_database_list",
    "pragma_metadata_info",
    "pragma_platform",
    "pragma_user_agent",
];

/// Settings that a query may ask for by `current_setting`.
const READABLE_SETTINGS: [&str; 8] = [
    "timezone",
    "calendar",
    "memory_limit",
    "max_memory",
    "threads",
    "worker_threads",
    "default_order",
    "default_null_order",
];

/// Refuses the first denied name in `words`.
pub(super) fn check(words: Words<'_>, kind: &Kind, tables: &[Role]) -> Result<(), Refused> {
    let changes = !kind.is_read();
    for (at, token) in words.tokens.iter().enumerate() {
        let Some(name) = token.name(words.sql) else { continue };
        let name = name.to_ascii_lowercase();
        if name == OWN_SCHEMA {
            return Err(Refused::forbidden(
                format!("the name `{OWN_SCHEMA}` belongs to the server"),
                "choose another name",
            ));
        }
        // The instance's own `:memory:` database is not part of the mart: what is written there is lost at the next restart.
        if changes && name == "memory" && words.symbol(at + 1, b'.') && !(at > 0 && words.symbol(at - 1, b'.')) {
            return Err(Refused::forbidden(
                "the database `memory` is not part of the mart",
                "leave the database out of the name",
            ));
        }
        if HIDDEN.contains(&name.as_str()) {
            return Err(Refused::forbidden(format!("`{name}` is not available"), ""));
        }
        let called = words.symbol(at + 1, b'(') && !is_definition(words, at);
        if called && name == "current_setting" && !asks_readable_setting(words, at) {
            return Err(Refused::forbidden(
                "`current_setting` is available for a few settings only",
                format!("available: {}", READABLE_SETTINGS.join(", ")),
            ));
        }
        let introspection = (name.starts_with("duckdb_") || name.starts_with("pragma_"))
            && !ALLOWED_INTROSPECTION.contains(&name.as_str());
        let switch = called && ["enable_", "disable_", "verify_"].iter().any(|prefix| name.starts_with(prefix));
        let table = is_table(words, at, tables);
        // The table macro `histogram` takes a table's name as text, so it opens files; the aggregate of that name does not.
        let denied = introspection || is_denied(&name, called) || called && table && name == "histogram";
        if switch || (called || table) && denied {
            return Err(Refused::forbidden(format!("`{name}` is not available"), ""));
        }
    }
    Ok(())
}

fn is_denied(name: &str, called: bool) -> bool {
    // As a table only the names of system views count; a mart may have a table called `query`.
    if called {
        DENIED.contains(&name)
    } else {
        matches!(name, "pg_settings" | "pragma_database_list" | "database_list")
    }
}

/// `CREATE TABLE name (`, `INSERT INTO name (`: the bracket opens a column list.
fn is_definition(words: Words<'_>, at: usize) -> bool {
    at > 0 && words.is_any(at - 1, &["table", "into"])
}

/// Does the word at `at`, or the dotted name that it ends, stand where a table stands?
fn is_table(words: Words<'_>, at: usize, tables: &[Role]) -> bool {
    let mut first = at;
    while first >= 2 && words.symbol(first - 1, b'.') && words.tokens[first - 2].name(words.sql).is_some() {
        first -= 2;
    }
    tables[first] != Role::Value
}

fn asks_readable_setting(words: Words<'_>, at: usize) -> bool {
    let value = words.tokens.get(at + 2).and_then(|token| token.string_value(words.sql));
    words.symbol(at + 3, b')')
        && value.is_some_and(|value| READABLE_SETTINGS.contains(&value.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::tests::duck::Duck, sql::gate::check, wire::Role};

    #[test]
    fn what_the_catalog_has_and_the_gate_does_not_allow_is_refused_wherever_it_stands() {
        let names = Duck::open().column(
            "SELECT function_name FROM duckdb_functions() UNION SELECT view_name FROM duckdb_views() ORDER BY ALL",
        );
        let introspection = names
            .iter()
            .filter(|name| name.starts_with("duckdb_") || name.starts_with("pragma_") || *name == "pg_settings");
        let hidden: Vec<&str> =
            introspection.map(String::as_str).filter(|name| !ALLOWED_INTROSPECTION.contains(name)).collect();
        assert_eq!(hidden, HIDDEN);
        for name in hidden {
            for sql in ["select X from t", "select 1 as X", "select t.\"X\" from t", "from t as a, main.X b"] {
                assert!(check(&sql.replace('X', name), Role::Reader).is_err(), "{name} in {sql}");
            }
        }
    }

    #[test]
    fn a_denied_function_is_found_in_every_spelling() {
        for sql in [
            "select * from \"Query\"('select 1')",
            "from query /* x */ (\n'select 1')",
            "select system.main.getenv('PATH')",
            "select 'a'.levenshtein('b')",
            "create macro m(x) as table from query_table(x)",
            "insert into t from checkpoint()",
            "select (select message from duckdb_logs)",
            "from main.\"duckdb_logs\"",
            "select * from t, duckdb_settings()",
            "select 1 from x where i in (from pg_catalog.pg_settings)",
            "select path from range(1) as set, duckdb_databases",
            "from range(1) as set, duckdb_future_secrets",
            "from range(1) tablesample 100%, pg_settings",
            "select * from range(1) as sample, histogram('/etc/passwd', x)",
            "from only duckdb_logs",
            "describe duckdb_secrets",
            "from enable_logging('QueryLog')",
            "select current_setting('home_directory')",
            "select current_setting('time' || 'zone')",
            "from alias: duckdb_databases()",
            "from duckdb_something_new()",
            "select * from _tarn.keys",
            "create table memory.main.t(i int)",
            "insert into \"memory\".t values (1)",
            "copy t to 's3://b/x' (filename_pattern 'x', _tarn 1)",
        ] {
            assert!(check(sql, Role::Writer).is_err(), "{sql} should be refused");
        }
    }
}
