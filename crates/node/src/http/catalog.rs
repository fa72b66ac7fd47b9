//! `GET …/catalog`: schemas, tables, views and their columns, now or at an earlier moment.
//!
//! It is read by SQL as its caller, so it shows what its caller may see.

use std::collections::HashMap;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::query::{self, Made, query_id};
use super::{Caller, Shared, json, mart_id};
use crate::error::{ApiError, Code};

/// One row for each table and view; rows of views are not counted.
const RELATIONS: &str = "
    WITH relations AS (
        SELECT schema_name, table_name AS name, 'table' AS kind, table_oid AS oid, comment, estimated_size AS rows
        FROM duckdb_tables() WHERE NOT internal AND NOT temporary
        UNION ALL
        SELECT schema_name, view_name, 'view', view_oid, comment, NULL
        FROM duckdb_views() WHERE NOT internal AND NOT temporary
    ), columns AS (
        SELECT table_oid AS oid, schema_name, table_name AS name, list({
            'name': column_name, 'type': data_type, 'nullable': is_nullable,
            'default': column_default, 'comment': comment
        } ORDER BY column_index) AS columns
        FROM duckdb_columns() WHERE NOT internal GROUP BY ALL
    )
    SELECT schema_name, name, kind, comment, rows, columns
    FROM relations JOIN columns USING (oid, schema_name, name) ORDER BY schema_name, name";
const SCHEMAS: &str = "SELECT schema_name, comment FROM duckdb_schemas()
    WHERE (NOT internal OR schema_name = 'main') AND database_name = current_database() ORDER BY schema_name";
/// Of DuckDB's files.
const BLOCK_BYTES: u64 = 256 << 10;
/// Sizes are asked table by table; of more than so many the rest have none.
const MOST_SIZED: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    at: Option<String>,
}

pub(super) async fn show(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    headers: HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, ApiError> {
    let id = query_id(&headers)?;
    let Query(Asked { at }) = asked.map_err(|error| ApiError::new(Code::Invalid, error.body_text()))?;
    let mart = mart_id(&tenant, &mart)?;
    let ask = async |id: Uuid, sql: &str| {
        let made = Made { sql, params: None, timeout_ms: None, at: at.as_deref(), session: None };
        query::rows(&app, &caller, mart.clone(), (id, &headers), &made).await
    };
    let (head, relations) = ask(id, RELATIONS).await.map_err(|error| error.request_id(id))?;
    let (_, schemas) = ask(Uuid::new_v4(), SCHEMAS).await?;
    let blocks = match sizes(&relations) {
        // A table may have been dropped meanwhile; a catalog without sizes is better than none.
        Some(sql) => ask(Uuid::new_v4(), &sql).await.map(|(_, rows)| rows).unwrap_or_default(),
        None => Vec::new(),
    };
    let blocks: HashMap<(&str, &str), u64> =
        blocks.iter().filter_map(|row| Some(((row[0].as_str()?, row[1].as_str()?), number(&row[2])?))).collect();
    let told: Vec<_> = schemas
        .iter()
        .map(|schema| {
            let own = relations.iter().filter(|relation| relation[0] == schema[0]);
            let tables: Vec<_> = own.map(|relation| table(relation, &blocks)).collect();
            json!({"name": schema[0], "comment": schema[1], "tables": tables})
        })
        .collect();
    let mut answer = json(json!({ "schemas": told }));
    let copied = head.headers.iter().filter(|(name, _)| name.as_str().starts_with("tarn-"));
    answer.headers_mut().extend(copied.map(|(name, value)| (name.clone(), value.clone())));
    Ok(answer)
}

fn table(relation: &[Value], blocks: &HashMap<(&str, &str), u64>) -> Value {
    let key = (relation[0].as_str().unwrap_or_default(), relation[1].as_str().unwrap_or_default());
    json!({
        "name": relation[1],
        "kind": relation[2],
        "comment": relation[3],
        "rows": number(&relation[4]),
        "bytes": blocks.get(&key).map(|count| count * BLOCK_BYTES),
        "columns": relation[5],
    })
}

/// Large numbers come as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// How many blocks of the file hold each table: what is still in the log is in none.
fn sizes(relations: &[Vec<Value>]) -> Option<String> {
    let names = relations.iter().filter(|relation| relation[2] == "table");
    let one = |relation: &Vec<Value>| {
        let (schema, name) = (relation[0].as_str()?, relation[1].as_str()?);
        // DuckDB finds no table by a quoted name that has a quote in it.
        if schema.contains('"') || name.contains('"') {
            return None;
        }
        let quoted = format!("\"{schema}\".\"{name}\"");
        Some(format!(
            "SELECT {}, {}, count(DISTINCT block_id) FILTER (persistent) FROM pragma_storage_info({})",
            text(schema),
            text(name),
            text(&quoted)
        ))
    };
    let parts: Vec<_> = names.filter_map(one).take(MOST_SIZED).collect();
    (!parts.is_empty()).then(|| parts.join(" UNION ALL "))
}

/// A literal.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
