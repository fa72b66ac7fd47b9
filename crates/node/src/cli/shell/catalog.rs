//! A mart's catalog: what `\d` shows of it, and what is completed.

use std::sync::PoisonError;

use anyhow::anyhow;
use serde_json::{Value, json};

use super::complete::{Shared, Table};
use super::screen::Screen;

/// DuckDB's own words that people type.
pub(super) const WORDS: &str = "SELECT keyword_name FROM duckdb_keywords() UNION
    SELECT DISTINCT function_name FROM duckdb_functions() WHERE regexp_matches(function_name, '^[a-z][a-z0-9_]*$') AND NOT starts_with(function_name, '__')
    ORDER BY ALL";

/// The tables and views, or the columns of the one that is called so.
pub(super) fn describe(catalog: &Value, name: Option<&str>, screen: &Screen) -> anyhow::Result<String> {
    let Some(name) = name else {
        let names = ["schema", "name", "kind", "rows", "bytes", "comment"].map(Into::into);
        let rows: Vec<_> = tables(catalog)
            .map(|(schema, table)| {
                let told = ["name", "kind", "rows", "bytes", "comment"].map(|key| table[key].clone());
                [vec![json!(schema)], told.to_vec()].concat()
            })
            .collect();
        return Ok(if rows.is_empty() { "no tables\n".into() } else { screen.rows(&names, &rows) });
    };
    let wanted = name.replace('"', "").to_lowercase();
    let found = tables(catalog).find(|(schema, table)| {
        let own = table["name"].as_str().unwrap_or_default().to_lowercase();
        wanted == own || wanted == format!("{}.{own}", schema.to_lowercase())
    });
    let (schema, table) = found.ok_or_else(|| anyhow!("there is no table or view `{name}`"))?;
    let names = ["column", "type", "nullable", "default", "comment"].map(Into::into);
    let columns = table["columns"].as_array().into_iter().flatten();
    let rows: Vec<_> = columns
        .map(|column| {
            let nullable = if column["nullable"] == json!(false) { json!("not null") } else { Value::Null };
            vec![
                column["name"].clone(),
                column["type"].clone(),
                nullable,
                column["default"].clone(),
                column["comment"].clone(),
            ]
        })
        .collect();
    let head = format!("{} {schema}.{}\n", text(&table["kind"]), text(&table["name"]));
    Ok(head + &screen.rows(&names, &rows))
}

/// Keeps the names of a catalog for the editor.
pub(super) fn fill(known: &Shared, catalog: &Value, snapshots: &Value, words: Vec<String>) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.schemas = catalog["schemas"].as_array().into_iter().flatten().map(|schema| text(&schema["name"])).collect();
    known.tables = tables(catalog)
        .map(|(schema, table)| {
            let columns =
                table["columns"].as_array().into_iter().flatten().map(|column| text(&column["name"])).collect();
            Table { schema: schema.to_owned(), name: text(&table["name"]), columns }
        })
        .collect();
    known.snapshots = snapshots["snapshots"].as_array().into_iter().flatten().map(|one| text(&one["name"])).collect();
    known.words = words;
}

/// Each table and view with its schema.
fn tables(catalog: &Value) -> impl Iterator<Item = (&str, &Value)> {
    catalog["schemas"].as_array().into_iter().flatten().flat_map(|schema| {
        let name = schema["name"].as_str().unwrap_or_default();
        schema["tables"].as_array().into_iter().flatten().map(move |table| (name, table))
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
