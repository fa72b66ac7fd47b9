//! What a mart holds at one moment, as one text, and what must be true of it whatever happened.
//!
//! Every commit of the driver writes its number into `log` and into `pair`; a bulk load replaces `big` as well. So a commit that is half
//! there, or there twice, shows in any moment by itself.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::server::{Answer, Requests};

/// More than a row group: its rows bypass the log.
pub const BULK_ROWS: i64 = 130_000;

/// A mart's tables before the first step.
pub const TABLES: &str = "BEGIN; CREATE TABLE log(id BIGINT, bulk BOOLEAN); CREATE TABLE pair(id BIGINT);
     CREATE TABLE big(id BIGINT, i BIGINT, s VARCHAR, l BIGINT[]); COMMIT";

const CATALOG: &str = "SELECT
     (SELECT list(DISTINCT table_name ORDER BY table_name) FROM duckdb_columns() WHERE schema_name = 'main' AND NOT internal),
     (SELECT string_agg(table_name || '.' || column_name || ' ' || data_type, ', ' ORDER BY table_name, column_index)
         FROM duckdb_columns() WHERE schema_name = 'main' AND NOT internal),
     (SELECT string_agg(index_name || ' on ' || table_name, ', ' ORDER BY index_name) FROM duckdb_indexes())";

/// Everything that a mart holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Numbers of the commits that are in it.
    pub ids: BTreeSet<i64>,
    /// Tables and views.
    pub relations: Vec<String>,
    /// Catalog, and of every relation its count and a sum over its rows in any order.
    text: String,
}

/// A question that got no answer with rows.
pub struct Refused(pub Answer);

/// Reads all of it, at a moment if one is named.
pub async fn read(requests: &Requests, mart: &str, at: Option<&str>) -> Result<Content, Refused> {
    let catalog = rows(requests, mart, CATALOG, at).await?;
    let names = catalog[0][0].as_array().cloned().unwrap_or_default();
    let relations: Vec<String> = names.iter().filter_map(|name| name.as_str().map(ToOwned::to_owned)).collect();
    if relations.is_empty() {
        // Before the first step.
        return Ok(Content { ids: BTreeSet::new(), relations, text: String::new() });
    }
    let sums = relations.iter().map(|name| {
        format!("SELECT '{name}' AS name, count(*) AS rows, coalesce(sum(hash(r)), 0)::VARCHAR AS digest FROM {name} r")
    });
    let sums = sums.collect::<Vec<_>>().join(" UNION ALL ");
    let sql = format!(
        "SELECT (SELECT list(id ORDER BY id) FROM log), (SELECT list(id ORDER BY id) FROM pair),
             (SELECT max(id) FROM log WHERE bulk), (SELECT list(DISTINCT id) FROM big), (SELECT count(*) FROM big),
             (SELECT count(DISTINCT i) FROM big WHERE s IS NOT DISTINCT FROM {STRING} AND l = [i, id]),
             (SELECT list(name || ' ' || rows || ' ' || digest ORDER BY name)::VARCHAR FROM ({sums}))"
    );
    let found = rows(requests, mart, &sql, at).await?;
    let found = &found[0];
    let when = format!("{mart} at {at:?}");
    let ids: Vec<i64> = found[0].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
    assert_eq!(found[0], found[1], "{when}: a commit is half there");
    let loaded = match found[2].is_null() {
        true => (json!(null), 0),
        false => (json!([found[2]]), BULK_ROWS),
    };
    assert_eq!(
        (&found[3], &found[4], &found[5]),
        (&loaded.0, &json!(loaded.1), &json!(loaded.1)),
        "{when}: `big` is not whole"
    );
    let text = format!("{}; indexes: {}; {}", catalog[0][1], catalog[0][2], found[6]);
    let count = ids.len();
    let ids: BTreeSet<i64> = ids.into_iter().collect();
    assert_eq!(ids.len(), count, "{when}: a commit is there twice");
    Ok(Content { ids, relations, text })
}

/// Strings of a bulk load: some in blocks of their own, some missing.
pub const STRING: &str = "CASE i % 20000 WHEN 7 THEN repeat('long ', 2000) || i WHEN 8 THEN NULL ELSE 'row ' || i END";

async fn rows(requests: &Requests, mart: &str, sql: &str, at: Option<&str>) -> Result<Value, Refused> {
    let body = match at {
        Some(at) => json!({"sql": sql, "at": at}),
        None => json!({ "sql": sql }),
    };
    let path = format!("/v1/tenants/default/marts/{mart}/query");
    let answer = requests.try_send(requests.request(reqwest::Method::POST, &path).json(&body)).await;
    let answer = answer.expect("the node answers");
    if answer.status == reqwest::StatusCode::OK {
        return Ok(answer.body["rows"].clone());
    }
    assert_ne!(answer.body["code"], "sql", "{mart} at {at:?}: {answer:?}\n{sql}");
    Err(Refused(answer))
}
