//! A table's rows in the place of another's, without losing what somebody else has written.
//!
//! **Invariant:** what was committed to a published table since the branch was made is never dropped. Until the transaction begins, the table's
//! digest tells; while it runs, DuckDB does: rows that others insert meanwhile stay, since only those are deleted that the transaction sees,
//! and what others change in the same rows, or in a table that is altered, is a conflict. So the table is emptied and filled, never replaced
//! (`CREATE OR REPLACE` drops rows that were committed while it ran), and altered before its rows are touched.

use serde_json::Value;
use temporalio_sdk::activities::ActivityError;

use super::{Call, failed};
use crate::definition::{MartName, table_name};
use crate::tarn::Refusal;

/// What a script says of a table that has other rows than it should.
const CHANGED: &str = "was changed in the mart while the transform ran";

/// A table's name, split.
pub(super) struct Table<'a> {
    schema: &'a str,
    table: &'a str,
}

/// Name and DuckDB type.
pub(super) type Columns = Vec<(String, String)>;

impl<'a> Table<'a> {
    pub(super) fn named(text: &'a str) -> Result<Self, Refusal> {
        let (schema, table) = table_name(text)
            .ok_or_else(|| Refusal::new("invalid", format!("`{text}` is not `table` or `schema.table`")))?;
        Ok(Self { schema, table })
    }

    pub(super) fn quoted(&self) -> String {
        format!("\"{}\".\"{}\"", self.schema, self.table)
    }

    /// None where the mart has no such table; a view is none.
    pub(super) async fn columns(&self, call: &Call<'_>, mart: &MartName) -> Result<Columns, ActivityError> {
        let of = |name: &str| {
            format!(
                "database_name = current_database() AND lower(schema_name) = lower('{}') AND lower({name}) = lower('{}')",
                self.schema, self.table
            )
        };
        let sql = format!(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE {} AND table_oid IN (SELECT table_oid FROM duckdb_tables() WHERE {}) ORDER BY column_index",
            of("table_name"),
            of("table_name")
        );
        let rows = call.rows(mart, &sql).await?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(rows.iter().map(|row| (text(row.first()), text(row.get(1)))).collect())
    }

    /// Of all rows, whatever their order.
    pub(super) async fn digest(&self, call: &Call<'_>, mart: &MartName) -> Result<String, ActivityError> {
        let rows = call.rows(mart, &self.digest_query()).await?;
        let told = rows.first().and_then(|row| row.first()).and_then(Value::as_str);
        told.map(str::to_owned).ok_or_else(|| failed(Refusal::new("internal", "a digest is one text")))
    }

    fn digest_query(&self) -> String {
        let sum = "count(*) || '/' || coalesce(sum(hash(\"tarn:row\")::HUGEINT), 0)";
        format!("SELECT {sum} FROM {} AS \"tarn:row\"", self.quoted())
    }

    /// The part of a transaction that gives the table the staging table's rows and the `wanted` columns. `found` are those that it has.
    pub(super) fn swap(&self, staging: &str, wanted: &Columns, found: &Columns, digest: Option<&str>) -> String {
        let (table, from) = (self.quoted(), format!("main.\"{staging}\""));
        let drop = format!("DROP TABLE {from};\n");
        let casts: Vec<_> = wanted.iter().map(|(name, ty)| format!("{0}::{ty} AS {0}", quoted(name))).collect();
        let rows = format!("SELECT {} FROM {from}", casts.join(", "));
        let Some(digest) = digest else {
            // One that somebody has made meanwhile is in its way.
            let schema = if self.schema == "main" {
                String::new()
            } else {
                format!("CREATE SCHEMA IF NOT EXISTS \"{}\";\n", self.schema)
            };
            return format!("{schema}CREATE TABLE {table} AS {rows};\n{drop}");
        };
        let changed = format!("{}.{} {CHANGED}", self.schema, self.table);
        let check = format!(
            "SELECT CASE WHEN ({}) <> '{}' THEN error('{changed}') END;\n",
            self.digest_query(),
            digest.replace('\'', "''")
        );
        let has = |columns: &Columns, one: &(String, String)| {
            columns.iter().any(|other| other.0.eq_ignore_ascii_case(&one.0) && other.1 == one.1)
        };
        let mut alters = String::new();
        // New ones first, since a table can't be without any; one whose type changes goes and comes.
        let (renewed, new): (Vec<_>, Vec<_>) = wanted
            .iter()
            .filter(|column| !has(found, column))
            .partition(|column| found.iter().any(|other| other.0.eq_ignore_ascii_case(&column.0)));
        let add = |(name, ty): &(String, String)| format!("ALTER TABLE {table} ADD COLUMN {} {ty};\n", quoted(name));
        alters.extend(new.iter().map(|column| add(column)));
        alters.extend(
            found
                .iter()
                .filter(|column| !has(wanted, column))
                .map(|(name, _)| format!("ALTER TABLE {table} DROP COLUMN {};\n", quoted(name))),
        );
        alters.extend(renewed.iter().map(|column| add(column)));
        format!("{check}{alters}DELETE FROM {table};\nINSERT INTO {table} BY NAME {rows};\n{drop}")
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table that was changed is a conflict: to try the same again can't help.
pub(super) fn conflict(error: ActivityError) -> ActivityError {
    match &error {
        ActivityError::Application(failure) if failure.to_string().contains(CHANGED) => {
            failed(Refusal::new("conflict", failure.to_string()))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_altered_before_it_is_emptied_and_never_replaced() {
        let table = Table::named("side.t").expect("a name");
        let columns =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, ty)| ((*name).to_owned(), (*ty).to_owned())).collect();
        let (wanted, found) = (
            columns(&[("a", "BIGINT"), ("b", "DATE"), ("c", "VARCHAR")]),
            columns(&[("A", "BIGINT"), ("b", "TIME"), ("d", "BLOB")]),
        );
        let script = table.swap("s", &wanted, &found, Some("1/2"));
        let steps: Vec<&str> = script.lines().collect();
        assert!(
            steps[0].starts_with("SELECT CASE WHEN (SELECT count(*)")
                && steps[0].contains("<> '1/2' THEN error('side.t was changed")
        );
        assert_eq!(
            steps[1..],
            [
                "ALTER TABLE \"side\".\"t\" ADD COLUMN \"c\" VARCHAR;",
                "ALTER TABLE \"side\".\"t\" DROP COLUMN \"b\";",
                "ALTER TABLE \"side\".\"t\" DROP COLUMN \"d\";",
                "ALTER TABLE \"side\".\"t\" ADD COLUMN \"b\" DATE;",
                "DELETE FROM \"side\".\"t\";",
                "INSERT INTO \"side\".\"t\" BY NAME SELECT \"a\"::BIGINT AS \"a\", \"b\"::DATE AS \"b\", \"c\"::VARCHAR AS \"c\" FROM main.\"s\";",
                "DROP TABLE main.\"s\";",
            ]
        );
        assert!(table.swap("s", &wanted, &Vec::new(), None).contains("CREATE TABLE \"side\".\"t\" AS SELECT"));
        assert!(!script.contains("REPLACE"));
    }
}
