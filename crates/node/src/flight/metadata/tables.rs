//! Catalogs, schemas, tables and their types.
//!
//! The mart is the catalog `mart`; a session's temporary tables are in `temp`, which is there only while it has some. What the server
//! keeps for itself is not shown.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::IpcMessage;
use arrow_flight::sql::metadata::{GetCatalogsBuilder, GetDbSchemasBuilder, GetTablesBuilder};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables};
use arrow_schema::{Field, Schema};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{Row, built, text};
use crate::error::{ApiError, Code};
use crate::flight::Flight;
use crate::flight::call::Call;
use crate::flight::ingest::CATALOG;
use crate::flight::run::Asked;
use crate::flight::statements::decoded;

const TEMPORARY: &str = "LOCAL TEMPORARY";
/// Tables that are described at once.
const AT_ONCE: usize = 8;

/// What is shown, with the schema and table that a pattern is held against.
const TABLES: &str = r"
    WITH shown AS (
        SELECT database_name AS c, schema_name AS s, table_name AS t,
            CASE WHEN temporary THEN 'LOCAL TEMPORARY' ELSE 'TABLE' END AS k, comment AS r FROM duckdb_tables() WHERE NOT internal
        UNION ALL SELECT database_name, schema_name, view_name,
            CASE WHEN temporary THEN 'LOCAL TEMPORARY' ELSE 'VIEW' END, comment FROM duckdb_views() WHERE NOT internal)
    SELECT c, s, t, k, r FROM shown
    WHERE c IN ('mart', 'temp') AND s <> '_tarn' AND t <> '_tarn_result' AND s LIKE ? ESCAPE '\' AND t LIKE ? ESCAPE '\'
    ORDER BY ALL";
const SCHEMAS: &str = r"
    SELECT database_name, schema_name FROM duckdb_schemas()
    WHERE schema_name <> '_tarn' AND schema_name LIKE ? ESCAPE '\' AND (database_name = 'mart' OR database_name = 'temp'
        AND EXISTS (FROM duckdb_tables() WHERE temporary AND table_name <> '_tarn_result'))
    ORDER BY ALL";
const COLUMNS: &str = r"
    SELECT database_name, schema_name, table_name, column_name, data_type, is_nullable, comment, numeric_precision, numeric_scale
    FROM duckdb_columns()
    WHERE database_name IN ('mart', 'temp') AND schema_name LIKE ? ESCAPE '\' AND table_name LIKE ? ESCAPE '\'";

pub(super) async fn catalogs(flight: &Arc<Flight>, call: &Call) -> Result<RecordBatch, ApiError> {
    let mut builder = GetCatalogsBuilder::new();
    let mut names: Vec<_> =
        flight.rows(call, SCHEMAS, &[Some("%")]).await?.iter().map(|row| text(row, 0).to_owned()).collect();
    names.push(CATALOG.to_owned());
    names.sort();
    names.dedup();
    names.into_iter().for_each(|name| builder.append(name));
    built(builder.build())
}

pub(super) async fn schemas(
    flight: &Arc<Flight>,
    call: &Call,
    asked: CommandGetDbSchemas,
) -> Result<RecordBatch, ApiError> {
    let pattern = asked.db_schema_filter_pattern.as_deref().unwrap_or("%");
    let mut builder = GetDbSchemasBuilder::new(None::<String>, None::<String>);
    for row in flight.rows(call, SCHEMAS, &[Some(pattern)]).await? {
        if is_in(&asked.catalog, &row) {
            builder.append(text(&row, 0), text(&row, 1));
        }
    }
    built(builder.build())
}

pub(super) fn table_types(asked: CommandGetTableTypes) -> Result<RecordBatch, ApiError> {
    let mut builder = asked.into_builder();
    for name in [TEMPORARY, "TABLE", "VIEW"] {
        builder.append(name);
    }
    built(builder.build())
}

pub(super) async fn tables(
    flight: &Arc<Flight>,
    call: &Call,
    asked: CommandGetTables,
) -> Result<RecordBatch, ApiError> {
    let pattern = |pattern: &Option<String>| pattern.clone().unwrap_or_else(|| "%".to_owned());
    let (schema, table) = (pattern(&asked.db_schema_filter_pattern), pattern(&asked.table_name_filter_pattern));
    let is_wanted = |row: &Row| {
        let types = &asked.table_types;
        // The SQL standard's word, which DuckDB's own catalog has.
        let spelled = |name: &str| if name == "BASE TABLE" { "TABLE" } else { name } == text(row, 3);
        is_in(&asked.catalog, row) && (types.is_empty() || types.iter().any(|name| spelled(name)))
    };
    let mut found = flight.rows(call, TABLES, &[Some(&schema), Some(&table)]).await?;
    found.retain(is_wanted);
    let mut schemas = vec![Schema::empty(); found.len()];
    if asked.include_schema {
        let columns = columns(flight, call, &schema, &table).await?;
        let described: Vec<_> = found.iter().map(|row| described(flight, call, row, &columns)).collect();
        schemas = stream::iter(described).buffered(AT_ONCE).try_collect().await?;
    }
    let mut builder =
        GetTablesBuilder::new(None::<String>, None::<String>, None::<String>, None::<String>, asked.include_schema);
    for (row, schema) in found.iter().zip(&schemas) {
        built(
            builder
                .append(text(row, 0), text(row, 1), text(row, 2), text(row, 3), schema)
                .map(|()| RecordBatch::new_empty(builder.schema())),
        )?;
    }
    built(builder.build())
}

/// What the mart's catalog tells of columns, by catalog, schema and table, and then by column.
type Columns = HashMap<[String; 3], HashMap<String, Row>>;

async fn columns(flight: &Arc<Flight>, call: &Call, schema: &str, table: &str) -> Result<Columns, ApiError> {
    let mut all = Columns::new();
    for row in flight.rows(call, COLUMNS, &[Some(schema), Some(table)]).await? {
        let table = [0, 1, 2].map(|at| text(&row, at).to_owned());
        all.entry(table).or_default().insert(text(&row, 3).to_owned(), row);
    }
    Ok(all)
}

/// A table's schema as a query over it has it, with what the catalog knows of its columns. A view that does not work any more has none.
async fn described(flight: &Arc<Flight>, call: &Call, row: &Row, columns: &Columns) -> Result<Schema, ApiError> {
    let name = [0, 1, 2].map(|at| text(row, at).to_owned());
    let quoted = name.each_ref().map(|part| format!("\"{}\"", part.replace('"', "\"\""))).join(".");
    let sql = format!("SELECT * FROM {quoted}");
    let in_session = flight.session_of(call);
    let described = match flight.describe_at(call, &sql, in_session.map(|used| used.id())).await {
        Ok(described) => described,
        // Nor has a table whose name the gate takes for a file's: it must not hide the others.
        Err(error) if matches!(error.code, Code::Sql | Code::NotFound | Code::Conflict | Code::Forbidden) => {
            return Ok(Schema::empty());
        }
        Err(error) => return Err(error),
    };
    let Some(message) = decoded(described.schema)? else { return Ok(Schema::empty()) };
    let schema = Schema::try_from(IpcMessage(message))
        .map_err(|error| ApiError::internal("an engine's schema is read", error))?;
    let known = columns.get(&name);
    let fields = schema.fields().iter().map(|field| match known.and_then(|known| known.get(field.name())) {
        Some(column) => annotated(field, &name, column),
        None => field.as_ref().clone(),
    });
    Ok(Schema::new(fields.collect::<Vec<_>>()))
}

/// A field with the words that Flight SQL has for columns.
fn annotated(field: &Field, [catalog, schema, table]: &[String; 3], column: &Row) -> Field {
    let mut words = field.metadata().clone();
    // Elsewhere DuckDB counts bits.
    let is_decimal = text(column, 4).starts_with("DECIMAL");
    let number =
        |at: usize| column.get(at).and_then(Value::as_i64).filter(|_| is_decimal).map(|number| number.to_string());
    let told = [
        ("CATALOG_NAME", Some(catalog.clone())),
        ("SCHEMA_NAME", Some(schema.clone())),
        ("TABLE_NAME", Some(table.clone())),
        ("TYPE_NAME", Some(text(column, 4).to_owned())),
        ("PRECISION", number(7)),
        ("SCALE", number(8)),
        ("IS_AUTO_INCREMENT", Some("0".to_owned())),
        ("IS_CASE_SENSITIVE", Some("1".to_owned())),
        ("IS_READ_ONLY", Some("0".to_owned())),
        ("IS_SEARCHABLE", Some("1".to_owned())),
        ("REMARKS", column.get(6).and_then(Value::as_str).map(str::to_owned)),
    ];
    words.extend(told.into_iter().filter_map(|(name, value)| Some((format!("ARROW:FLIGHT:SQL:{name}"), value?))));
    let nullable = column.get(5).and_then(Value::as_bool).unwrap_or(true);
    field.clone().with_nullable(nullable).with_metadata(words)
}

/// Whether a row is in the catalog that is asked for; the empty name asks for what is in none.
fn is_in(catalog: &Option<String>, row: &Row) -> bool {
    catalog.as_deref().is_none_or(|catalog| catalog == text(row, 0))
}

impl Flight {
    async fn describe_at(
        self: &Arc<Self>,
        call: &Call,
        sql: &str,
        session: Option<uuid::Uuid>,
    ) -> Result<engine::wire::Described, ApiError> {
        let request = engine::wire::QueryRequest { sql: sql.to_owned(), session, ..Default::default() };
        let asked = Asked::query(uuid::Uuid::new_v4(), &request, "application/json")?;
        self.run_json(call, Asked { path: "/describe", reads_only: true, ..asked }).await
    }
}
