//! Plans, the catalog, and what a script's statements are.

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, TOKEN, TestServer};

const MART: &str = "/v1/tenants/default/marts/dev";
const JOIN: &str = "select a.i, count(*) from numbers a join numbers b on a.i = b.i where a.i < $1 group by all";

async fn plan(server: &TestServer, body: Value) -> Answer {
    server.send(server.request(Method::POST, &format!("{MART}/plan")).json(&body)).await
}

async fn reader(server: &TestServer) -> String {
    let made = server.request(Method::POST, "/v1/tokens").json(&json!({"tenant": "default", "role": "reader"}));
    server.send(made).await.body["token"].as_str().expect("a token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_comes_in_every_format_and_with_analyze_it_ran() {
    let server = TestServer::start().await;
    server.query("create table numbers as select i from range(1000) t(i)").await.rows();
    let operators = json!([["HASH_JOIN", "HASH_GROUP_BY"], ["SEQ_SCAN", "TABLE_SCAN"]]);
    for analyze in [false, true] {
        for (format, start) in [("graphviz", "digraph"), ("svg", "<svg "), ("json", ""), ("text", "")] {
            let answer =
                plan(&server, json!({"sql": JOIN, "params": [100], "format": format, "analyze": analyze})).await;
            assert!(answer.status.is_success(), "{answer:?}");
            let text = answer.body.as_str().map_or_else(|| answer.body.to_string(), str::to_owned);
            assert!(text.trim_start().starts_with(start), "{text}");
            for any in operators.as_array().expect("a list") {
                let found = any.as_array().expect("a list").iter().filter_map(Value::as_str);
                assert!(found.into_iter().any(|name| text.contains(name)), "{format} has no {any}: {text}");
            }
        }
    }
    let ran = plan(&server, json!({"sql": "from numbers", "format": "svg", "analyze": true})).await;
    assert!(ran.body.as_str().expect("a drawing").contains(">1000 rows</text>"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_of_one_statement_of_its_caller() {
    let server = TestServer::start().await;
    server.query("create table numbers as select i from range(1000) t(i)").await.rows();
    for sql in ["from numbers; drop table numbers", "explain from numbers", "begin", "pragma version"] {
        assert_eq!(plan(&server, json!({"sql": sql})).await.code(), "invalid", "{sql}");
    }
    assert_eq!(plan(&server, json!({"sql": "from nothing"})).await.code(), "sql");
    assert_eq!(plan(&server, json!({"sql": "from numbers", "format": "pdf"})).await.code(), "invalid");
    // Seen, not done.
    assert!(plan(&server, json!({"sql": "delete from numbers"})).await.status.is_success());
    assert_eq!(*server.query("select count(*) from numbers").await.rows(), json!([[1000]]));
    let token = reader(&server).await;
    let as_reader = |analyze: bool| {
        let request = reqwest::Client::new().post(format!("http://{}{MART}/plan", server.address()));
        server.send(request.bearer_auth(&token).json(&json!({"sql": "delete from numbers", "analyze": analyze})))
    };
    assert_eq!(as_reader(true).await.code(), "forbidden");
    let written = plan(&server, json!({"sql": "delete from numbers where i < 10", "analyze": true})).await;
    assert!(written.position.is_some() && written.durable.as_deref() == Some("object"), "{written:?}");
    assert_eq!(*server.query("select count(*) from numbers").await.rows(), json!([[990]]));
    let earlier = written.position.expect("it was checked");
    server.query("drop table numbers").await.rows();
    assert!(plan(&server, json!({"sql": "from numbers", "at": earlier})).await.status.is_success());
    assert_ne!(TOKEN, token);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_tells_schemas_tables_columns_and_sizes_of_any_moment() {
    // What is still in the log has no blocks.
    let server = TestServer::start_with(&[("TARN_CHECKPOINT_WAL", "1KB"), ("TARN_CHECKPOINT_IDLE_MS", "20")]).await;
    let catalog = async |query: &str| server.send(server.request(Method::GET, &format!("{MART}/catalog{query}"))).await;
    let empty = catalog("").await;
    assert_eq!(empty.body, json!({"schemas": [{"name": "main", "comment": null, "tables": []}]}));
    let made = server
        .query(
            "create schema \"odd's\"; create table \"odd's\".\"t 1\"(a decimal(9,2) not null default 1, b struct(x int)[]);
             comment on table \"odd's\".\"t 1\" is 'money'; comment on column \"odd's\".\"t 1\".a is 'euros';
             insert into \"odd's\".\"t 1\"(a) select range from range(1000); create view v as select 1 as one; create table \"a\"\"b\"(c int)",
        )
        .await;
    let at = made.position.expect("it was committed");
    server.logged("checkpoint iteration=1", 1).await;
    let told = catalog("").await;
    let schemas = &told.body["schemas"];
    assert_eq!((&schemas[0]["name"], &schemas[1]["name"]), (&json!("main"), &json!("odd's")), "{told:?}");
    assert_eq!((&schemas[0]["tables"][1]["kind"], &schemas[0]["tables"][1]["rows"]), (&json!("view"), &json!(null)));
    let table = &schemas[1]["tables"][0];
    assert_eq!((&table["name"], &table["comment"], &table["rows"]), (&json!("t 1"), &json!("money"), &json!(1000)));
    assert!(table["bytes"].as_u64().is_some_and(|bytes| bytes >= 256 << 10), "{table}");
    let a = &table["columns"][0];
    assert_eq!(
        (&a["name"], &a["type"], &a["nullable"], &a["comment"]),
        (&json!("a"), &json!("DECIMAL(9,2)"), &json!(false), &json!("euros"))
    );
    assert_eq!(table["columns"][1]["type"], "STRUCT(x INTEGER)[]");
    server.query("drop view v; drop table \"odd's\".\"t 1\"").await.rows();
    assert_eq!(catalog("").await.body["schemas"][1]["tables"], json!([]));
    let earlier = catalog(&format!("?at={at}")).await;
    assert_eq!(earlier.body["schemas"][1]["tables"][0]["rows"], 1000, "{earlier:?}");
    assert_eq!(catalog("?when=now").await.code(), "invalid");
    assert_eq!(catalog("?at=never").await.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_told_by_kind_and_place() {
    let server = TestServer::start().await;
    let classify = async |sql: &str| {
        let request = server.request(Method::POST, &format!("{MART}/classify")).json(&json!({ "sql": sql }));
        server.send(request).await
    };
    let told = classify(" select ';' ;; insert into t values (1); create table u(a int) -- end\n; begin").await;
    let kinds: Vec<_> =
        told.body["statements"].as_array().expect("a list").iter().map(|one| one["kind"].clone()).collect();
    assert_eq!(kinds, [json!("read"), json!("write"), json!("ddl"), json!("other")]);
    assert_eq!(told.body["statements"][0], json!({"kind": "read", "start": 1, "end": 11}));
    assert_eq!(classify("select 'open").await.code(), "sql");
}
