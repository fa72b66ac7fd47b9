//! Loads as statements: what the mart does by itself passes through nobody else, says why it failed, and is known by its text when it is
//! tried again.

use crate::definition::{Ingest, Mode, table_name};
use crate::tarn::Refusal;

/// # Errors
/// `invalid` for what no definition could say.
pub(super) fn statement(work: &Ingest) -> Result<String, Refusal> {
    let invalid = |what: &str| Refusal::new("invalid", what);
    let (schema, table) = table_name(&work.table).ok_or_else(|| invalid("`table` wants `table` or `schema.table`"))?;
    let into = format!("\"{schema}\".\"{table}\"");
    let rows = match (&work.from, &work.sql) {
        (Some(files), None) => format!("FROM '{}'", files.replace('\'', "''")),
        // The line's end closes a comment that the text may end with.
        (None, Some(sql)) => format!("FROM ({}\n)", sql.trim().trim_end_matches(';')),
        _ => return Err(invalid("wants either `from` or `sql`")),
    };
    match (work.mode, work.key.as_slice()) {
        (Mode::Create, []) => Ok(format!("CREATE TABLE {into} AS {rows}")),
        (Mode::Replace, []) => Ok(format!("CREATE OR REPLACE TABLE {into} AS {rows}")),
        (Mode::Append, []) => Ok(format!("INSERT INTO {into} BY NAME {rows}")),
        (Mode::Upsert, [_, ..]) => Ok(upsert(&into, &rows, &work.key)),
        (Mode::Upsert, []) => Err(invalid("`mode: upsert` wants `key`")),
        (_, [_, ..]) => Err(invalid("`key` goes with `mode: upsert` only")),
    }
}

/// Each key once, and whole: which of two rows is to stay, nobody could say.
fn upsert(into: &str, rows: &str, key: &[String]) -> String {
    let key: Vec<String> = key.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    let all = |form: &dyn Fn(&String) -> String, between: &str| key.iter().map(form).collect::<Vec<_>>().join(between);
    let partition = key.join(", ");
    let nulls = all(&|name| format!("{name} IS NULL"), " OR ");
    let same = all(&|name| format!("t.{name} = s.{name}"), " AND ");
    format!(
        "MERGE INTO {into} AS t USING (SELECT * EXCLUDE (tarn_times) FROM (SELECT *, count(*) OVER (PARTITION BY {partition}) AS tarn_times {rows})
         WHERE CASE WHEN {nulls} THEN error('a row has NULL in the key') WHEN tarn_times > 1 THEN error('a key comes more than once') ELSE true END) AS s
         ON ({same}) WHEN MATCHED THEN UPDATE BY NAME WHEN NOT MATCHED THEN INSERT BY NAME"
    )
}
