//! Copies a database into a new file: first all objects without rows, as DuckDB itself copies them, then the rows.
//!
//! Objects may name the mart's database, so the source has its name while objects are copied, and the copy while rows are.
//! DuckDB's own copy of rows fails with foreign keys; here referenced tables come first, and within a table that refers to itself
//! the referenced rows (see `levels`).

use std::{collections::HashSet, fs, path::Path};

use super::{
    CompactError, Limits,
    instance::{Instance, Table, name, path_text},
    levels,
};
use crate::files::wal_path;
use crate::open::{MART, STORAGE_VERSION, literal};

/// Name of the database that rows are copied from.
pub(super) const SOURCE: &str = "tarn_source";

/// The new file's log is folded when it is longer.
const MAX_LOG_BYTES: u64 = 256 << 20;

/// A foreign key of a table; DuckDB has none across schemas.
#[derive(Clone, Debug)]
pub(super) struct ForeignKey {
    pub table: (String, String),
    pub columns: Vec<String>,
    pub referenced: String,
    pub referenced_columns: Vec<String>,
}

/// Makes `to` from `from`.
pub(super) fn copy(from: &Path, to: &Path, limits: Limits) -> Result<(), CompactError> {
    objects(from, to, limits)?;
    let instance = Instance::open(&super::spill_dir(to), limits)?;
    let connection = &instance.connection;
    // The copy is the mart now: what its defaults and checks name is found in itself.
    instance.attach(from, SOURCE)?;
    connection.execute(&format!("ATTACH {} AS {MART}; USE {MART}", literal(path_text(to)?)))?;
    instance.close_walls()?;
    instance.find_everywhere()?;
    let keys = foreign_keys(&instance)?;
    for table in in_order(instance.tables()?, &keys)? {
        rows(&instance, &table, &keys)?;
        // A log takes memory until it is folded.
        if fs::metadata(wal_path(to)).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
            connection.execute(&format!("CHECKPOINT {MART}"))?;
        }
    }
    Ok(connection.execute(&format!("CHECKPOINT {MART}; USE memory; DETACH {MART}"))?)
}

/// Makes `to` with everything but rows.
fn objects(from: &Path, to: &Path, limits: Limits) -> Result<(), CompactError> {
    const COPY: &str = "tarn_copy";
    let instance = Instance::open(&super::spill_dir(to), limits)?;
    let connection = &instance.connection;
    instance.attach(from, MART)?;
    connection.execute(&format!("USE {MART}"))?;
    let file = literal(path_text(to)?);
    connection.execute(&format!("ATTACH {file} AS {COPY} (STORAGE_VERSION '{STORAGE_VERSION}')"))?;
    instance.close_walls()?;
    instance.find_everywhere()?;
    let copy = format!("COPY FROM DATABASE {MART} TO {COPY} (SCHEMA); CHECKPOINT {COPY}; DETACH {COPY}");
    Ok(connection.execute(&copy)?)
}

fn rows(instance: &Instance, table: &Table, keys: &[ForeignKey]) -> Result<(), CompactError> {
    let columns = instance.stored_columns(table)?;
    let columns = columns.iter().map(|(column, _)| name(column)).collect::<Vec<_>>().join(", ");
    let own: Vec<&ForeignKey> = keys.iter().filter(|key| key.is_of(table) && key.referenced == table.name).collect();
    let insert =
        format!("INSERT INTO {} ({columns}) SELECT {columns} FROM {}", table.within(MART), table.within(SOURCE));
    if own.is_empty() {
        return Ok(instance.connection.execute(&insert)?);
    }
    levels::rows(instance, table, &own, &insert)
}

/// Referenced tables before those that refer to them.
fn in_order(tables: Vec<Table>, keys: &[ForeignKey]) -> Result<Vec<Table>, CompactError> {
    let mut done: HashSet<(String, String)> = HashSet::new();
    let mut ordered = Vec::new();
    let mut left = tables;
    while !left.is_empty() {
        let (ready, waiting): (Vec<Table>, Vec<Table>) = left.into_iter().partition(|table| {
            let mut own = keys.iter().filter(|key| key.is_of(table) && key.referenced != table.name);
            own.all(|key| done.contains(&(table.schema.clone(), key.referenced.clone())))
        });
        if ready.is_empty() {
            return Err(CompactError::Unsupported("tables refer to each other in a circle".to_owned()));
        }
        done.extend(ready.iter().map(|table| (table.schema.clone(), table.name.clone())));
        ordered.extend(ready);
        left = waiting;
    }
    Ok(ordered)
}

fn foreign_keys(instance: &Instance) -> Result<Vec<ForeignKey>, CompactError> {
    type Row = (String, String, Vec<String>, String, Vec<String>);
    let rows: Vec<Row> = instance.rows(&format!(
        "SELECT to_json([to_json(schema_name), to_json(table_name), to_json(constraint_column_names), to_json(referenced_table),
                to_json(referenced_column_names)])::VARCHAR
         FROM duckdb_constraints() WHERE database_name = '{MART}' AND constraint_type = 'FOREIGN KEY'"
    ))?;
    let key = |(schema, table, columns, referenced, referenced_columns)| ForeignKey {
        table: (schema, table),
        columns,
        referenced,
        referenced_columns,
    };
    Ok(rows.into_iter().map(key).collect())
}

impl ForeignKey {
    fn is_of(&self, table: &Table) -> bool {
        self.table.0 == table.schema && self.table.1 == table.name
    }
}

impl Instance {
    /// Lets names without a schema be found in all of the mart's: objects may have been made while another schema was in use.
    pub(super) fn find_everywhere(&self) -> Result<(), CompactError> {
        let schemas: Vec<String> = self.rows(&format!(
            "SELECT to_json(schema_name)::VARCHAR FROM duckdb_schemas()
             WHERE database_name = '{MART}' AND schema_name NOT IN ('information_schema', 'pg_catalog')
             ORDER BY schema_name <> 'main', schema_name"
        ))?;
        let path = schemas.iter().map(|schema| format!("{MART}.{}", name(schema))).collect::<Vec<_>>().join(",");
        Ok(self.connection.execute(&format!("SET search_path = {}", literal(&path)))?)
    }
}
