//! Other ways of writing what is refused.

use serde_json::{Value, json};

use super::place::Place;

/// A refused statement in other clothes.
pub fn of_statement(sql: &str) -> Vec<String> {
    let mut variants = vec![
        sql.to_uppercase(),
        sql.replacen(' ', "/* ; */\n-- ' \n", 1),
        sql.replacen('(', " /**/ ( ", 1),
        format!("\u{feff}{sql}"),
        format!("\u{a0}{sql}"),
        format!("\t\n\r {sql} ;;"),
        format!("{sql};"),
        format!("select 1; {sql}"),
        format!("{sql}; select 1"),
        format!("begin; {sql}; rollback"),
        format!("explain {sql}"),
        format!("explain analyze {sql}"),
        format!("explain (format json) {sql}"),
        format!("describe {sql}"),
        format!("summarize {sql}"),
        format!("prepare pp as {sql}"),
        format!("execute {sql}"),
        format!("({sql})"),
        format!("from ({sql})"),
        format!("select * from ({sql}) as x"),
        format!("select * from t where exists ({sql})"),
        format!("select (select count(*) from ({sql}))"),
        format!("with q as materialized ({sql}) select * from q"),
        format!("with recursive q as ({sql}) from q"),
        format!("select * from t, lateral ({sql}) l"),
        format!("select 1 union all by name {sql}"),
        format!("create or replace view zz as {sql}"),
        format!("create or replace table zz as {sql}"),
        format!("create or replace temp table zz as {sql}"),
        format!("create or replace macro zz() as table {sql}"),
        format!("insert into t {sql}"),
        format!("insert into t select 1, (select any_value(COLUMNS(*))::varchar from ({sql}))"),
        format!("copy ({sql}) to 's3://sm-acme-analytics/out.csv'"),
        format!("pivot ({sql}) on i"),
        format!("unpivot ({sql}) on columns(*)"),
        format!("from query($${sql}$$)"),
        format!("select * from json_execute_serialized_sql(json_serialize_sql($${sql}$$))"),
        format!("do $${sql}$$"),
    ];
    variants.retain(|variant| variant != sql);
    variants
}

const FUNCTIONS: [&str; 18] = [
    "read_text",
    "read_blob",
    "read_csv",
    "read_csv_auto",
    "read_json",
    "read_json_auto",
    "read_json_objects",
    "read_json_objects_auto",
    "read_ndjson",
    "read_ndjson_auto",
    "read_ndjson_objects",
    "read_parquet",
    "parquet_scan",
    "parquet_metadata",
    "parquet_schema",
    "parquet_file_metadata",
    "sniff_csv",
    "glob",
];

/// A statement, its parameters, and the place that it names.
pub struct Named {
    pub sql: String,
    pub params: Value,
    pub path: String,
}

/// Each way of naming each forbidden place to each function that reads files.
pub fn of_paths(place: &Place) -> Vec<Named> {
    let mut paths: Vec<String> = [
        "/etc/passwd",
        "/etc/../etc/passwd",
        "file:///etc/passwd",
        "/proc/self/environ",
        "/proc/self/status",
        "~/.bashrc",
        "./x.csv",
        "../x.csv",
        "*",
        "/**",
        "s3://sm-globex-raw/d/f.csv",
        "s3a://sm-globex-raw/d/f.csv",
        "S3://sm-globex-raw/d/f.csv",
        "r2://sm-globex-raw/d/f.csv",
        "hf://datasets/x/y.csv",
        "s3://sm-globex-*/d/f.csv",
        "s3://sm-acme-raw/../sm-globex-raw/d/f.csv",
        "s3://sm-acme-raw//d/f.csv",
        "s3://sm-acme-raw/./d/f.csv",
        "s3://sm-acme-raw/%2e%2e/sm-globex-raw/d/f.csv",
        "s3://sm-acme-raw/d/f.csv?s3_endpoint=127.0.0.1:18099",
        "s3://sm-acme-raw/d/f.csv?s3_url_style=path",
        "s3://sm-acme-raw/d/f.csv?x=y",
        "s3://sm-acme-raw/d/f.csv#x",
        "s3://sm-acme-raw@127.0.0.1:18099/d/f.csv",
        "s3://127.0.0.1:18099/d/f.csv",
        "s3://sm-acme-analytics/duckdb/m/x",
        "http://127.0.0.1:18099/x.csv",
        "https://127.0.0.1:18099/x.csv",
        "http://localhost:18099/x.csv",
        "http://169.254.169.254/latest/meta-data",
        "sqlite:/etc/passwd",
        "postgres:host=127.0.0.1 port=18099",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend(place.local_files());
    let mut all = Vec::new();
    for path in &paths {
        let mut variants = Vec::new();
        for function in FUNCTIONS {
            variants.push((format!("select * from {function}('{path}')"), json!([])));
        }
        let hex: String = path.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        let (head, tail) = path.split_at(path.len() / 2);
        for name in [
            format!("e'{path}'"),
            format!("E'{hex}'"),
            format!("$${path}$$"),
            format!("$q${path}$q$"),
            format!("['{path}']"),
            format!("['s3://sm-acme-raw/d/f.csv', '{path}']"),
            format!("'{head}' || '{tail}'"),
            format!("concat('{head}', '{tail}')"),
            format!("'{head}'\n'{tail}'"),
            format!("('{path}')"),
            format!("'{path}'::varchar"),
            format!("cast('{path}' as varchar)"),
            format!("(select '{path}')"),
            format!("replace('{path}', 'a', 'a')"),
            format!("chr({}) || '{}'", path.as_bytes()[0], &path[1..]),
            format!("if(true, '{path}', '')"),
            format!("'{path}'::json"),
            format!("\"{path}\""),
            format!("'{path}', union_by_name := true"),
            format!("'{path}', filename := true, hive_partitioning := true"),
        ] {
            for function in ["read_text", "read_csv", "\"Read_Csv\"", "main.read_text", "system.main.read_text", "glob"]
            {
                variants.push((format!("select * from {function}({name})"), json!([])));
            }
        }
        for sql in [
            "select * from read_text($1)",
            "select * from read_csv(?)",
            "select * from glob($1)",
            "from query_table($1)",
        ] {
            variants.push((sql.to_owned(), json!([path])));
        }
        for sql in [
            format!("from '{path}'"),
            format!("from \"{path}\""),
            format!("table '{path}'"),
            format!("describe '{path}'"),
            format!("summarize '{path}'"),
            format!("describe select * from '{path}'"),
            format!("explain select * from '{path}'"),
            format!("select * from t join '{path}' on true"),
            format!("insert into t by name from '{path}'"),
            format!("copy t from '{path}'"),
            format!("copy t to '{path}'"),
            format!("copy (select 1) to '{path}' (format csv)"),
            format!("copy (select 1) to '{path}' with (use_tmp_file false)"),
            format!(
                "copy (select 1 a, 2 b) to 's3://sm-acme-analytics/p' (format csv, partition_by (a), filename_pattern '{path}')"
            ),
            format!(
                "copy (select 1 a) to 's3://sm-acme-analytics/p' (format csv, per_thread_output, file_extension '{path}')"
            ),
            format!("attach '{path}' as a"),
            format!("attach if not exists '{path}' as a (read_only)"),
            format!("export database '{path}'"),
            format!("import database '{path}'"),
            format!("install '{path}'"),
            format!("load '{path}'"),
            format!("create secret x (type s3, endpoint '{path}')"),
            format!("set variable x = '{path}'"),
            format!("create view zz as from '{path}'"),
            format!("create macro zz() as table from '{path}'"),
            "create macro zz(p) as table from read_text(p)".to_owned(),
            format!("merge into t using '{path}' s on false when not matched then insert"),
        ] {
            variants.push((sql, json!([])));
        }
        all.extend(variants.into_iter().map(|(sql, params)| Named { sql, params, path: path.clone() }));
    }
    all
}

/// Statements that would change something if a reader could run them.
pub fn of_writes() -> Vec<String> {
    let plain = [
        "insert into t values (1, 'a')",
        "insert into t by name select 1 i, 'a' v",
        "insert or replace into t values (1, 'a')",
        "update t set i = 1",
        "delete from t",
        "truncate t",
        "merge into t using (select 1 i) s on t.i = s.i when matched then delete",
        "drop table t",
        "drop sequence s",
        "alter table t add column x int",
        "alter table t rename to u",
        "create table u (a int)",
        "create or replace table t (a int)",
        "create view u as select 1",
        "create macro u() as 1",
        "create type u as enum ('a')",
        "create schema u",
        "create index u on t(i)",
        "create sequence u",
        "comment on table t is 'x'",
        "copy t from 's3://sm-acme-raw/d/f.csv'",
        "copy t to 's3://sm-acme-analytics/ro.csv'",
        "copy (select 1) to 's3://sm-acme-analytics/ro.csv'",
        "export database 's3://sm-acme-analytics/e'",
        "select nextval('s')",
        "vacuum",
        "vacuum analyze t",
        "checkpoint",
        "force checkpoint",
        "analyze",
        "from checkpoint()",
        "from force_checkpoint()",
    ];
    let mut all = Vec::new();
    for sql in plain {
        all.push(sql.to_owned());
        all.push(sql.to_uppercase());
        all.push(format!("/* read */ {sql} -- only"));
        all.push(format!("begin; {sql}; commit"));
        all.push(format!("begin transaction read write; {sql}; commit"));
        all.push(format!("commit; {sql}"));
        all.push(format!("rollback; begin; {sql}; commit"));
        all.push(format!("select 1; {sql}"));
        all.push(format!("explain analyze {sql}"));
        all.push(format!("prepare p as {sql}; execute p"));
        all.push(format!("with x as ({sql} returning *) select * from x"));
        all.push(format!("select * from ({sql} returning *)"));
        all.push(format!("from query('{}')", sql.replace('\'', "''")));
    }
    for hidden in [
        "select (select nextval('s'))",
        "select * from range(3) r(i) where nextval('s') > 0",
        "select \"nextval\"('s')",
        "select main.nextval('s')",
        "select system.main.nextval('s')",
        "select s.nextval from (select 1) s, t where nextval('s') = 1",
        "select list_transform([1], lambda x: nextval('s'))",
        "select list_transform([1], x -> nextval('s'))",
        "select nextval($$s$$)",
        "select nextval('s') from t limit 0",
        "values (nextval('s'))",
        "explain analyze select nextval('s')",
        "select apply([1], x -> nextval('s'))",
        "pragma create_fts_index('t', 'i', 'v')",
        "call pragma_version()",
    ] {
        all.push(hidden.to_owned());
    }
    all
}
