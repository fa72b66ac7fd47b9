//! Results as Parquet files.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{Got, Served};

const PARQUET: &str = "application/vnd.apache.parquet";

async fn ask(served: &Served, body: Value) -> Got {
    served.ask(body, &[("accept", PARQUET)]).await
}

/// Reads the file back with the engine itself.
async fn back(served: &Served, file: Bytes, sql: &str) -> Value {
    let request = json!({"table": "back", "if_missing": "create", "if_exists": "replace"});
    let got = served.load(request, PARQUET, file).await;
    assert_eq!(got.status, 200, "{got:?}");
    served.rows(sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_s_rows_come_as_a_file_with_its_length() {
    let served = Served::start().await;
    served.query("create table t as select range i, 'x' || range as s from range(300000)").await;
    let got = ask(&served, json!({"sql": "select * from t order by i desc"})).await;
    assert_eq!((got.status, got.header("content-type")), (200, Some(PARQUET)));
    assert!(got.body.starts_with(b"PAR1") && got.body.ends_with(b"PAR1"));
    assert!(got.header("tarn-at").is_some());
    let sql = "select count(*), first(i order by rowid), sum(i), count(distinct s) from back";
    assert_eq!(back(&served, got.body, sql).await, json!([[300_000, 299_999, 44_999_850_000u64, 300_000]]));
    assert_eq!(std::fs::read_dir(served.home.dir.path().join("tmp/load")).expect("lists").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_limits_scripts_and_all_that_reads() {
    let served = Served::start().await;
    let got = ask(&served, json!({"sql": "select range + $n::int as a from range(10)", "params": {"n": 5}})).await;
    assert_eq!(back(&served, got.body, "select min(a), max(a) from back").await, json!([[5, 14]]));
    let got = ask(&served, json!({"sql": "from range(10) -- all of it", "max_rows": 3})).await;
    assert_eq!(back(&served, got.body, "select count(*) from back").await, json!([[3]]));
    let got =
        ask(&served, json!({"sql": "create table t as select 1 a, 'k' b; insert into t values (2, 'l'); from t"}))
            .await;
    assert!(got.commit().wal_bytes > 0);
    assert_eq!(back(&served, got.body, "from back order by a").await, json!([[1, "k"], [2, "l"]]));
    for sql in ["describe t", "show tables", "summarize t", "pivot t on b using sum(a)", "values (1)", "table t"] {
        let got = ask(&served, json!({"sql": sql})).await;
        assert_eq!(got.status, 200, "{sql}: {got:?}");
        assert!(got.body.starts_with(b"PAR1"), "{sql}");
    }
    let got = ask(&served, json!({"sql": "select 1 as a, 2 as a, 3 as \"a\"\"b\""})).await;
    assert_eq!(back(&served, got.body, "select a, a_1, \"a\"\"b\" from back").await, json!([[1, 2, 3]]));
    let got = ask(&served, json!({"sql": "select 1 as a where false"})).await;
    assert_eq!(back(&served, got.body, "select count(*) from back").await, json!([[0]]));
    let reader = served.ask(json!({"sql": "from t"}), &[("accept", PARQUET), ("tarn-role", "reader")]).await;
    assert_eq!(reader.status, 200, "{reader:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_come_back_as_they_were_or_not_at_all() {
    let served = Served::start().await;
    for (value, typed) in [
        ("170141183460469231731687303715884105::hugeint", "DECIMAL(38,0)"),
        ("[12345678901234567890123::hugeint]", "DECIMAL(38,0)[]"),
        ("{'a': 1::uhugeint, 'b': [interval 1 microsecond]}", "STRUCT(a DECIMAL(38,0), b VARCHAR[])"),
        ("interval '3 months 1 microsecond'", "VARCHAR"),
        ("timetz '12:00:00+01:30'", "VARCHAR"),
        ("'4ac7a9e9-607c-4c8a-84f3-843f0191e3fd'::uuid", "UUID"),
        ("timestamp_ns '2020-01-01 00:00:00.123456789'", "TIMESTAMP_NS"),
        ("timestamptz '2020-01-01 00:00:00+01'", "TIMESTAMP WITH TIME ZONE"),
        ("1.25::decimal(30, 2)", "DECIMAL(30,2)"),
        ("map {'a': 1::tinyint}", "MAP(VARCHAR, TINYINT)"),
        ("'\\xFF\\x00'::blob", "BLOB"),
        ("18446744073709551615::ubigint", "UBIGINT"),
        ("1.5::float", "FLOAT"),
        ("'b'::enum('a', 'b')", "VARCHAR"),
    ] {
        let got = ask(&served, json!({"sql": format!("select {value} as x")})).await;
        assert_eq!(got.status, 200, "{value}: {got:?}");
        let rows = back(&served, got.body, "select typeof(x), x::varchar from back").await;
        let here = served.rows(&format!("select ({value})::varchar")).await;
        assert_eq!(rows, json!([[typed, here[0][0]]]), "{value}");
    }
    let got = ask(&served, json!({"sql": "select union_value(a := 1) as x"})).await;
    assert_eq!((got.status, got.json()["code"].clone()), (422, json!("sql")));
    let got = ask(&served, json!({"sql": "select 170141183460469231731687303715884105727::hugeint as x"})).await;
    assert_eq!(got.status, 422, "39 digits are an error and no other number");
    let got = ask(&served, json!({"sql": "select error('late')"})).await;
    assert_eq!((got.status, got.json()["outcome"].clone()), (422, json!("none")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_rows_to_write_is_refused_before_it_runs() {
    let served = Served::start().await;
    served.query("create table t(i int)").await;
    for sql in [
        "insert into t values (1)",
        "insert into t values (1) returning i",
        "explain from t",
        "from t; insert into t values (1)",
        "create table u(i int)",
    ] {
        let got = ask(&served, json!({"sql": sql})).await;
        assert_eq!((got.status, got.json()["code"].clone()), (400, json!("invalid")), "{sql}: {got:?}");
    }
    assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
}
