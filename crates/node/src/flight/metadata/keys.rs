//! Primary and foreign keys. Schemas as `FlightSql.proto` has them.
//!
//! DuckDB's foreign keys stay within a schema, always to a primary or unique key, and never cascade.

use std::sync::{Arc, LazyLock};

use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringArray, UInt8Array};
use arrow_flight::sql::{
    CommandGetCrossReference, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys, UpdateDeleteRules,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde_json::Value;

use super::{Row, text};
use crate::error::ApiError;
use crate::flight::Flight;
use crate::flight::call::Call;

/// Catalog, schema, table, column, key and place of each column of a primary key.
const PRIMARY: &str = "
    SELECT database_name, schema_name, table_name, column_name, constraint_name, place
    FROM (SELECT *, unnest(constraint_column_names) AS column_name, unnest(range(1, len(constraint_column_names) + 1)) AS place
        FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY' AND database_name IN ('mart', 'temp') AND schema_name <> '_tarn')
    WHERE table_name = ?
        AND schema_name = coalesce(?, schema_name) AND database_name = coalesce(?, database_name)
    ORDER BY database_name, schema_name, table_name, constraint_name, place";
/// The same of both sides of foreign keys. Where the key that is referred to has a name of its own, it is told.
const FOREIGN: &str = "
    WITH foreign_keys AS (
        SELECT *, unnest(constraint_column_names) AS fk_column, unnest(referenced_column_names) AS pk_column,
            unnest(range(1, len(constraint_column_names) + 1)) AS place
        FROM duckdb_constraints() WHERE constraint_type = 'FOREIGN KEY' AND database_name = 'mart' AND schema_name <> '_tarn'),
    keys AS (
        SELECT schema_name, table_name, constraint_column_names, min(constraint_name) AS constraint_name
        FROM duckdb_constraints() WHERE constraint_type IN ('PRIMARY KEY', 'UNIQUE') AND database_name = 'mart' GROUP BY ALL)
    SELECT f.database_name, f.schema_name, f.referenced_table, f.pk_column, f.database_name, f.schema_name, f.table_name,
        f.fk_column, f.place, f.constraint_name, k.constraint_name
    FROM foreign_keys f LEFT JOIN keys k ON k.schema_name = f.schema_name AND k.table_name = f.referenced_table
        AND k.constraint_column_names = f.referenced_column_names";

static PRIMARY_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
});

static FOREIGN_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
});

pub(super) fn primary_schema() -> SchemaRef {
    PRIMARY_SCHEMA.clone()
}

pub(super) fn foreign_schema() -> SchemaRef {
    FOREIGN_SCHEMA.clone()
}

/// A table by catalog and schema, where they are given, and its name.
struct Named<'a>(&'a Option<String>, &'a Option<String>, &'a str);

pub(super) async fn primary(
    flight: &Arc<Flight>,
    call: &Call,
    asked: CommandGetPrimaryKeys,
) -> Result<RecordBatch, ApiError> {
    let params = [Some(asked.table.as_str()), asked.db_schema.as_deref(), asked.catalog.as_deref()];
    let rows = flight.rows(call, PRIMARY, &params).await?;
    let columns: Vec<ArrayRef> = vec![
        strings(&rows, 0),
        strings(&rows, 1),
        strings(&rows, 2),
        strings(&rows, 3),
        strings(&rows, 4),
        numbers(&rows, 5),
    ];
    RecordBatch::try_new(primary_schema(), columns).map_err(|error| ApiError::internal("keys are a table", error))
}

pub(super) async fn exported(
    flight: &Arc<Flight>,
    call: &Call,
    asked: CommandGetExportedKeys,
) -> Result<RecordBatch, ApiError> {
    foreign(flight, call, Some(Named(&asked.catalog, &asked.db_schema, &asked.table)), None).await
}

pub(super) async fn imported(
    flight: &Arc<Flight>,
    call: &Call,
    asked: CommandGetImportedKeys,
) -> Result<RecordBatch, ApiError> {
    foreign(flight, call, None, Some(Named(&asked.catalog, &asked.db_schema, &asked.table))).await
}

pub(super) async fn between(
    flight: &Arc<Flight>,
    call: &Call,
    asked: CommandGetCrossReference,
) -> Result<RecordBatch, ApiError> {
    let from = Named(&asked.pk_catalog, &asked.pk_db_schema, &asked.pk_table);
    let to = Named(&asked.fk_catalog, &asked.fk_db_schema, &asked.fk_table);
    foreign(flight, call, Some(from), Some(to)).await
}

async fn foreign(
    flight: &Arc<Flight>,
    call: &Call,
    primary: Option<Named<'_>>,
    foreign: Option<Named<'_>>,
) -> Result<RecordBatch, ApiError> {
    let mut rows = flight.rows(call, FOREIGN, &[]).await?;
    let is = |named: &Option<Named<'_>>, row: &Row, at: usize| {
        named.as_ref().is_none_or(|Named(catalog, schema, table)| {
            catalog.as_deref().is_none_or(|name| name == text(row, at))
                && schema.as_deref().is_none_or(|name| name == text(row, at + 1))
                && *table == text(row, at + 2)
        })
    };
    rows.retain(|row| is(&primary, row, 0) && is(&foreign, row, 4));
    // By the other side, as the specification wants it.
    let first = if foreign.is_some() && primary.is_none() { 0 } else { 4 };
    rows.sort_by(|one, other| {
        let order = |row: &Row| {
            let name = [0, 1, 2].map(|at| text(row, first + at).to_owned());
            (name, text(row, 9).to_owned(), row.get(8).and_then(Value::as_i64))
        };
        order(one).cmp(&order(other))
    });
    let rule: ArrayRef = Arc::new(UInt8Array::from(vec![UpdateDeleteRules::NoAction as u8; rows.len()]));
    let mut columns: Vec<ArrayRef> = (0..8).map(|at| strings(&rows, at)).collect();
    columns.extend([numbers(&rows, 8), strings(&rows, 9), strings(&rows, 10), rule.clone(), rule]);
    RecordBatch::try_new(foreign_schema(), columns).map_err(|error| ApiError::internal("keys are a table", error))
}

fn strings(rows: &[Row], at: usize) -> ArrayRef {
    Arc::new(rows.iter().map(|row| row.get(at).and_then(Value::as_str)).collect::<StringArray>())
}

fn numbers(rows: &[Row], at: usize) -> ArrayRef {
    let number = |row: &Row| row.get(at).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
    Arc::new(rows.iter().map(number).collect::<Int32Array>())
}
