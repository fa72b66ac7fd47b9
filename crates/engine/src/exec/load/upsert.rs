//! Rows that overwrite those with the same key, and are added where there are none.
//!
//! They go into a temporary table first: whether a key comes twice is known at the body's end only. It is not in the mart's log.

use uuid::Uuid;

use super::{
    Code, Failure, Loading,
    target::{Target, list, quoted},
};
use crate::open::MART;

const PRIMARY_KEY: &str = "
    SELECT unnest(constraint_column_names) FROM duckdb_constraints()
    WHERE constraint_type = 'PRIMARY KEY' AND database_name = $1 AND lower(schema_name) = lower($2) AND lower(table_name) = lower($3)";

/// An upsert under way.
pub(super) struct Upsert {
    /// The temporary table, in SQL.
    pub stage: String,
    target: String,
    key: Vec<String>,
    /// All columns of the body, by their names in the table.
    columns: Vec<String>,
}

impl Upsert {
    /// Makes the temporary table for `columns` of `target`.
    pub fn begin(loading: &mut Loading<'_, '_>, target: &Target, columns: &[String]) -> Result<Self, Failure> {
        let request = loading.request;
        let asked = match request.key.is_empty() {
            false => request.key.clone(),
            true => {
                let database = if request.temporary { "temp" } else { MART };
                let schema = request.schema.as_deref().unwrap_or("main");
                loading.ask(PRIMARY_KEY, &[database, schema, &request.table])?
            }
        };
        if asked.is_empty() {
            return Err(no_key(&target.shown));
        }
        let mut key = Vec::new();
        for name in asked {
            let column = columns.iter().find(|column| column.to_lowercase() == name.to_lowercase());
            let column = column.ok_or_else(|| {
                Failure::new(Code::Invalid, format!("the key's column `{name}` is not in the body"))
                    .hint("the body needs all columns of the key")
            })?;
            if !key.contains(column) {
                key.push(column.clone());
            }
        }
        let stage = format!("temp.main.{}", quoted(&format!("_tarn_load_{}", Uuid::new_v4().simple())));
        let names = list(columns.iter().map(String::as_str));
        // A request that breaks off rolls it back.
        loading.execute(&format!("CREATE TEMPORARY TABLE {stage} AS SELECT {names} FROM {} LIMIT 0", target.name))?;
        Ok(Self { stage, target: target.name.clone(), key, columns: columns.to_vec() })
    }

    /// Checks the keys and moves all rows over.
    pub fn merge(&self, loading: &mut Loading<'_, '_>) -> Result<(), Failure> {
        let (stage, key) = (&self.stage, list(self.key.iter().map(String::as_str)));
        let shown = self.key.join(", ");
        let any_null: Vec<String> = self.key.iter().map(|name| format!("{} IS NULL", quoted(name))).collect();
        let nulls = loading
            .ask(&format!("SELECT count(*)::VARCHAR FROM {stage} WHERE {}", any_null.join(" OR ")), &[])?
            .concat();
        if nulls != "0" {
            return Err(Failure::new(
                Code::Invalid,
                format!("{nulls} rows of the body have NULL in the key ({shown})"),
            )
            .hint("each row needs a whole key"));
        }
        let texts: Vec<String> = self.key.iter().map(|name| format!("{}::VARCHAR", quoted(name))).collect();
        let twice = loading
            .ask(
                &format!(
                    "SELECT count(*) OVER () || chr(10) || left(concat_ws(', ', {}), 200)
                     FROM (SELECT {key} FROM {stage} GROUP BY {key} HAVING count(*) > 1) ORDER BY ALL LIMIT 1",
                    texts.join(", ")
                ),
                &[],
            )?
            .concat();
        if let Some((count, example)) = twice.split_once('\n') {
            let message =
                format!("{count} keys come more than once in the body: which row is to stay? ({shown}) = ({example})");
            return Err(Failure::new(Code::Invalid, message).hint("send one row for each key"));
        }
        loading.execute(&self.statement())?;
        loading.execute(&format!("DROP TABLE {stage}")).map(drop)
    }

    fn statement(&self) -> String {
        let on: Vec<String> = self.key.iter().map(|name| format!("t.{0} = s.{0}", quoted(name))).collect();
        let others = self.columns.iter().filter(|column| !self.key.contains(column));
        let set: Vec<String> = others.map(|name| format!("{0} = s.{0}", quoted(name))).collect();
        let update = match set.is_empty() {
            true => String::new(),
            false => format!("WHEN MATCHED THEN UPDATE SET {}", set.join(", ")),
        };
        let values: Vec<String> = self.columns.iter().map(|name| format!("s.{}", quoted(name))).collect();
        format!(
            "MERGE INTO {} AS t USING {} AS s ON ({}) {update} WHEN NOT MATCHED THEN INSERT ({}) VALUES ({})",
            self.target,
            self.stage,
            on.join(" AND "),
            list(self.columns.iter().map(String::as_str)),
            values.join(", ")
        )
    }
}

/// Nothing tells rows apart.
pub(super) fn no_key(table: &str) -> Failure {
    Failure::new(Code::Invalid, format!("an upsert needs a key, and table `{table}` has no primary key"))
        .hint("name the columns that tell rows apart in `key`")
}
