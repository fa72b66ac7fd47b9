//! Everything that a database holds, in a form that two files can be compared by: each object as a line of text, each table's rows as
//! a count and sums of hashes.
//!
//! **Invariants:** the order of rows and objects does not count; duplicates, NULLs, the order of columns and every difference that a
//! value's text or its equality shows do. Generated columns are compared by their expressions: reading them could run anything.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    CompactError,
    instance::{Instance, Table, name, path_text},
};
use crate::open::{MART, literal};

/// Kinds of objects, and what of them counts. A sequence's `sql` starts at its next value; where it once started is forgotten when it is
/// stored.
const OBJECTS: [(&str, &str); 9] = [
    ("schema", "schema_name, comment, tags FROM duckdb_schemas()"),
    ("type", "schema_name, type_name, logical_type, type_category, comment, tags, labels FROM duckdb_types()"),
    (
        "sequence",
        "schema_name, sequence_name, comment, tags, min_value, max_value, increment_by, cycle, sql FROM duckdb_sequences()",
    ),
    ("table", "schema_name, table_name, comment, tags, sql FROM duckdb_tables()"),
    (
        "column",
        "schema_name, table_name, column_name, column_index, comment, column_default, is_nullable, data_type FROM duckdb_columns()",
    ),
    (
        "constraint",
        "schema_name, table_name, constraint_type, constraint_text, expression, constraint_column_names, constraint_name, referenced_table, referenced_column_names FROM duckdb_constraints()",
    ),
    (
        "index",
        "schema_name, index_name, table_name, comment, tags, is_unique, is_primary, expressions, sql FROM duckdb_indexes()",
    ),
    ("view", "schema_name, view_name, comment, tags, column_count, sql FROM duckdb_views()"),
    (
        "macro",
        "schema_name, function_name, function_type, comment, tags, parameters, parameter_types, varargs, macro_definition FROM duckdb_functions()",
    ),
];

/// Types whose hash tells all their values apart. Of others it does not: an interval of a month is as good as one of 30 days, and all
/// integers of 16 bytes whose halves are the same are as good as 0.
const EXACT: [&str; 20] = [
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "VARCHAR",
    "BLOB",
    "DATE",
    "TIME",
    "TIME_NS",
    "TIMESTAMP",
    "TIMESTAMP_S",
    "TIMESTAMP_MS",
    "TIMESTAMP_NS",
    "TIMESTAMP WITH TIME ZONE",
    "JSON",
];

/// What a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// One line each.
    objects: BTreeSet<String>,
    rows: Vec<Rows>,
}

/// What a table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rows {
    table: String,
    count: u64,
    /// Sum and exclusive or of all rows' hashes.
    hashes: (String, String),
}

impl Content {
    /// Reads every row of every table of the attached mart.
    pub(super) fn read(instance: &Instance) -> Result<Self, CompactError> {
        let mut objects = BTreeSet::new();
        for (kind, what) in OBJECTS {
            let internal = match kind {
                "schema" | "constraint" | "index" | "sequence" => "",
                _ => "AND NOT internal",
            };
            let sql = format!(
                "SELECT '{kind} ' || to_json(x)::VARCHAR FROM (SELECT {what} WHERE database_name = '{MART}' {internal}) x"
            );
            objects.extend(instance.connection.column(&sql)?);
        }
        objects.extend(types(instance)?);
        let tables = instance.tables()?;
        let rows = tables.iter().map(|table| rows(instance, table)).collect::<Result<_, _>>()?;
        Ok(Self { objects, rows })
    }

    /// The same, with each object's definition as DuckDB exports it: only there are the default values of macros' parameters.
    pub(super) fn read_with_definitions(instance: &Instance) -> Result<Self, CompactError> {
        let mut content = Self::read(instance)?;
        content.objects.extend(definitions(instance)?);
        Ok(content)
    }

    /// How many tables.
    pub fn tables(&self) -> usize {
        self.rows.len()
    }

    /// How many rows they have together.
    pub fn rows(&self) -> u64 {
        self.rows.iter().map(|rows| rows.count).sum()
    }

    /// The first difference to `other`, a copy.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if let Some(line) = self.objects.difference(&other.objects).next() {
            return Some(format!("it lacks {line}"));
        }
        if let Some(line) = other.objects.difference(&self.objects).next() {
            return Some(format!("it has {line}"));
        }
        let differs = self.rows.iter().zip(&other.rows).find(|(rows, others)| rows != others);
        differs.map(|(rows, others)| match rows.count == others.count {
            true => format!("rows of {} are not the same", rows.table),
            false => format!("{} has {} rows instead of {}", rows.table, others.count, rows.count),
        })
    }

    /// Hex SHA-256 over all of it.
    pub(super) fn fingerprint(&self, instance: &Instance) -> Result<String, CompactError> {
        let mut text = String::new();
        for object in &self.objects {
            let _ = writeln!(text, "{} {object}", object.len());
        }
        for rows in &self.rows {
            let _ = writeln!(text, "{} {} {} {}", rows.table, rows.count, rows.hashes.0, rows.hashes.1);
        }
        let hashed = instance.connection.column_with("SELECT sha256($1)", &[&text])?;
        Ok(hashed.into_iter().next().unwrap_or_default())
    }
}

fn rows(instance: &Instance, table: &Table) -> Result<Rows, CompactError> {
    let columns = instance.stored_columns(table)?;
    let hashed = columns.iter().map(|(column, kind)| hashed(&name(column), kind)).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "SELECT to_json([count(*)::VARCHAR, coalesce(sum(h), 0)::VARCHAR, coalesce(bit_xor(h), 0)::VARCHAR])::VARCHAR
         FROM (SELECT hash({hashed}) h FROM {})",
        table.within(MART)
    );
    let found: Vec<(String, String, String)> = instance.rows(&sql)?;
    let (count, sum, xor) = found.into_iter().next().unwrap_or_default();
    let count = count.parse().map_err(|_| CompactError::Unsupported("a table has no count of rows".to_owned()))?;
    Ok(Rows { table: format!("{}.{}", name(&table.schema), name(&table.name)), count, hashes: (sum, xor) })
}

/// What of a column goes into its row's hash.
fn hashed(column: &str, kind: &str) -> String {
    if EXACT.contains(&kind) {
        return column.to_owned();
    }
    let text = format!("{column}, {column}::VARCHAR");
    // Neither tells the members of a union apart.
    if kind.contains("UNION(") { format!("{text}, to_json({column})::VARCHAR") } else { text }
}

/// The mart's types, down to their members.
fn types(instance: &Instance) -> Result<Vec<String>, CompactError> {
    let sql = format!(
        "SELECT to_json([schema_name, type_name])::VARCHAR FROM duckdb_types() WHERE database_name = '{MART}' AND NOT internal"
    );
    let mut lines = Vec::new();
    for (schema, kind) in instance.rows::<(String, String)>(&sql)? {
        let full = format!("{MART}.{}.{}", name(&schema), name(&kind));
        let texts = instance.connection.column(&format!("SELECT typeof(NULL::{full})"))?;
        lines.push(format!("type {full} {}", texts.concat()));
    }
    Ok(lines)
}

/// The statements of an export without rows.
fn definitions(instance: &Instance) -> Result<Vec<String>, CompactError> {
    const EMPTY: &str = "tarn_empty";
    let dir = instance.spill.0.join("export");
    instance.find_everywhere()?;
    instance.connection.execute(&format!(
        "ATTACH ':memory:' AS {EMPTY}; COPY FROM DATABASE {MART} TO {EMPTY} (SCHEMA); EXPORT DATABASE {EMPTY} TO {}",
        literal(path_text(&dir)?)
    ))?;
    let text = std::fs::read_to_string(dir.join("schema.sql"))?;
    Ok(text.split(";\n").map(|statement| format!("definition {statement}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duck::Database;

    #[test]
    fn values_that_come_near_each_other_have_hashes_of_their_own() {
        let types: Vec<(String, Vec<String>)> =
            serde_json::from_str(include_str!("../../testdata/near-values.json")).expect("JSON");
        let connection = Database::open_in_memory(&[]).expect("opens").connect().expect("connects");
        for (kind, values) in types {
            connection.execute(&format!("CREATE OR REPLACE TABLE t (c {kind})")).expect("is a type");
            for value in values.iter().map(String::as_str).chain(["NULL"]) {
                connection.execute(&format!("INSERT INTO t VALUES ({value})")).expect("is a value");
            }
            // The type as the catalog names it.
            let of = "SELECT data_type FROM duckdb_columns() WHERE table_name = 't'";
            let full = connection.column(of).expect("runs").concat();
            let hashes = connection.column(&format!("SELECT hash({})::VARCHAR FROM t", hashed("c", &full)));
            let hashes: BTreeSet<String> = hashes.expect("runs").into_iter().collect();
            assert_eq!(hashes.len(), values.len() + 1, "{kind}");
        }
    }

    #[test]
    fn only_plain_types_are_hashed_alone() {
        assert_eq!(hashed("c", "BIGINT"), "c");
        for kind in ["DECIMAL(18,3)", "INTEGER[]", "DOUBLE", "INTERVAL", "ENUM('a')"] {
            assert_eq!(hashed("c", kind), "c, c::VARCHAR", "{kind}");
        }
        assert_eq!(hashed("c", "UNION(a INTEGER)[]"), "c, c::VARCHAR, to_json(c)::VARCHAR");
    }
}
