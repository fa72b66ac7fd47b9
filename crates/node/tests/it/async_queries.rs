//! Queries that nobody waits for: from their acceptance to what is left of them, and who may see it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::admin::with;
use crate::server::{Answer, DEV, TestServer, works};
use crate::sessions::token;

const QUERIES: &str = "/v1/tenants/default/marts/dev/queries";
const ENDLESS: &str = "SELECT count(*) FROM range(1000000000000) a, range(1000000) b WHERE a.range + b.range < 0";

/// Has a query accepted and says its id.
async fn submit(server: &TestServer, body: Value) -> String {
    let accepted = server.send(server.request(Method::POST, QUERIES).json(&body)).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{accepted:?}");
    assert!(["queued", "running", "done"].contains(&accepted.body["state"].as_str().expect("a state")), "{accepted:?}");
    accepted.body["id"].as_str().expect("it has an id").to_owned()
}

async fn told(server: &TestServer, id: &str) -> Answer {
    server.send(server.request(Method::GET, &format!("/v1/queries/{id}"))).await
}

/// Asks until it is over.
async fn over(server: &TestServer, id: &str) -> Value {
    loop {
        let answer = told(server, id).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        if !["queued", "running"].contains(&answer.body["state"].as_str().expect("a state")) {
            return answer.body;
        }
    }
}

async fn result(server: &TestServer, id: &str, page: &str) -> Answer {
    server.send(server.request(Method::GET, &format!("/v1/queries/{id}/result{page}"))).await
}

async fn delete(server: &TestServer, id: &str) -> Answer {
    server.send(server.request(Method::DELETE, &format!("/v1/queries/{id}"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_read_stay_and_are_read_in_any_form_page_by_page() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT i, (i / 4)::DECIMAL(9,2) AS d FROM range(300000) r(i)").await.rows();
    let id = submit(&server, json!({"sql": "SELECT * FROM t WHERE i >= $1", "params": [10]})).await;
    let done = over(&server, &id).await;
    assert_eq!((&done["state"], &done["progress"], &done["rows"]), (&json!("done"), &json!(1.0), &json!(299_990)));
    assert!(done["position"].is_string() && done["durable"] == "object" && done["finished"].is_string(), "{done}");
    // What comes later does not change what was read.
    server.query("DELETE FROM t").await.rows();
    let page = result(&server, &id, "?offset=200000&limit=3").await;
    assert_eq!(
        *page.rows(),
        json!([[200_010, "50002.50"], [200_011, "50002.75"], [200_012, "50003.00"]]),
        "a DECIMAL stays one"
    );
    assert_eq!(page.body["columns"][1], json!({"name": "d", "type": "DECIMAL(9,2)"}));
    assert_eq!((page.position, page.durable.as_deref()), (done["position"].as_str().map(Into::into), Some("object")));
    assert_eq!(*result(&server, &id, "?limit=0").await.rows(), json!([]));
    assert_eq!(*result(&server, &id, "?offset=999999999").await.rows(), json!([]));

    let csv = |page: String| {
        let request =
            server.request(Method::GET, &format!("/v1/queries/{id}/result{page}")).header("accept", "text/csv");
        server.send(request)
    };
    let whole = csv(String::new()).await.body.as_str().expect("CSV").to_owned();
    let mut pages = String::from("i,d\r\n");
    for page in 0..3 {
        let part = csv(format!("?offset={}&limit=100000", page * 100_000)).await;
        pages.push_str(part.body.as_str().expect("CSV").strip_prefix("i,d\r\n").expect("a header line"));
    }
    assert!(whole == pages, "pages are parts of the whole, in order");
    assert_eq!(whole.lines().count(), 299_991);
    assert_eq!(delete(&server, &id).await.body["deleted"], json!(true));
    for gone in [told(&server, &id).await, result(&server, &id, "").await, delete(&server, &id).await] {
        assert_eq!(gone.code(), "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_runs_once_and_its_answer_is_kept_as_it_was_asked_for() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a INTEGER)").await.rows();
    let insert = |key: &'static str| {
        let request = server.request(Method::POST, QUERIES).header("accept", "text/csv").header("idempotency-key", key);
        request.json(&json!({"sql": "INSERT INTO t VALUES (1), (2) RETURNING a * 10 AS b"}))
    };
    let accepted =
        server.request(Method::POST, QUERIES).json(&json!({"sql": "SELECT 1"})).send().await.expect("it answers");
    let location = accepted.headers()["location"].to_str().expect("text").to_owned();
    let id = accepted.headers()["tarn-query-id"].to_str().expect("text").to_owned();
    assert_eq!(location, format!("/v1/queries/{id}"));
    for _ in 0..2 {
        let accepted = server.send(insert("once")).await;
        let id = accepted.body["id"].as_str().expect("it has an id");
        let done = over(&server, id).await;
        assert_eq!((&done["state"], &done["durable"]), (&json!("done"), &json!("object")), "{done}");
        let answer = result(&server, id, "").await;
        assert_eq!(answer.body, json!("b\r\n10\r\n20\r\n"));
        assert_eq!(answer.position.as_deref(), done["position"].as_str());
        assert_eq!(result(&server, id, "?limit=1").await.code(), "invalid");
    }
    assert_eq!(*server.query("SELECT count(*) FROM t").await.rows(), json!([[2]]), "under one key it runs once");
    let id = submit(&server, json!({"sql": "UPDATE t SET a = 5"})).await;
    assert_eq!(over(&server, &id).await["rows"], json!(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_says_why_like_any_query() {
    let server = TestServer::start().await;
    let id = submit(&server, json!({"sql": "CREATE TABLE t AS SELECT 1 AS a; INSERT INTO t VALUES ('x')"})).await;
    let failed = over(&server, &id).await;
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("sql")), "{failed}");
    assert_eq!((&failed["error"]["outcome"], &failed["error"]["committed"]), (&json!("committed"), &json!(1)));
    assert!(failed["error"]["position"].is_string() && failed["error"]["request_id"] == json!(id), "{failed}");
    let same = result(&server, &id, "").await;
    assert_eq!((same.status, &same.body), (StatusCode::UNPROCESSABLE_ENTITY, &failed["error"]));
    for (body, code) in [
        (json!({"sql": "SELECT 1 +"}), "sql"),
        (json!({"sql": "SELECT * FROM nowhere"}), "sql"),
        (json!({"sql": "SELECT $1 + $2", "params": [1]}), "invalid"),
    ] {
        let id = submit(&server, body.clone()).await;
        assert_eq!(over(&server, &id).await["error"]["code"], code, "{body}");
    }
    let session = json!({"sql": "SELECT 1", "session": "0b7e9a52-2f4b-4a0c-9d1e-6a7f21c0d4e8"});
    for (what, body, code) in [
        ("no SQL", json!({}), "invalid"),
        ("an unknown field", json!({"sql": "SELECT 1", "page": 1}), "invalid"),
        ("a session", session, "invalid"),
        ("a moment that is none", json!({"sql": "SELECT 1", "at": "?"}), "invalid"),
        ("a write in the past", json!({"sql": "CREATE TABLE x(a INT)", "at": "2026-01-31T12:00:00Z"}), "invalid"),
    ] {
        let refused = server.send(server.request(Method::POST, QUERIES).json(&body)).await;
        assert_eq!(refused.code(), code, "{what}: {refused:?}");
    }
    let nowhere = server.request(Method::POST, "/v1/tenants/default/marts/nowhere/queries");
    assert_eq!(server.send(nowhere.json(&json!({"sql": "SELECT 1"}))).await.code(), "not_found");
    for odd in ["?limit=x", "?limit=-1", "?page=2"] {
        assert_eq!(result(&server, &id, odd).await.code(), "invalid", "{odd}");
    }
    assert_eq!(told(&server, "seven").await.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_runs_or_waits_can_be_cancelled_and_gives_its_place_back() {
    let server = TestServer::start_with(&[("TARN_MAX_QUERIES", "2")]).await;
    server.query("SELECT 1").await.rows();
    for endless in [ENDLESS.to_owned(), format!("CREATE TABLE t AS {ENDLESS}")] {
        let first = submit(&server, json!({ "sql": endless })).await;
        works(server.engine_pid(DEV)).await;
        let running = told(&server, &first).await;
        assert_eq!((running.status, &running.body["state"]), (StatusCode::OK, &json!("running")), "{running:?}");
        assert_eq!(result(&server, &first, "").await.code(), "conflict", "there is none yet");
        // Half of the places are for those who wait for their answers.
        let second = submit(&server, json!({"sql": "SELECT 1"})).await;
        assert_eq!(told(&server, &second).await.body["state"], "queued");
        server.query("SELECT 1").await.rows();
        let waiting = delete(&server, &second).await;
        assert_eq!(
            (&waiting.body["state"], &waiting.body["cancelled"]),
            (&json!("cancelled"), &json!(true)),
            "{waiting:?}"
        );
        let stopped = delete(&server, &first).await;
        assert_eq!(stopped.body["state"], "cancelled", "{stopped:?}");
        assert_eq!(
            (&stopped.body["error"]["code"], &stopped.body["error"]["outcome"]),
            (&json!("cancelled"), &json!("none"))
        );
        assert_eq!(result(&server, &first, "").await.code(), "cancelled");
        let next = submit(&server, json!({"sql": "SELECT 42 AS a"})).await;
        assert_eq!(over(&server, &next).await["state"], "done", "the place is free again");
        assert_eq!(*result(&server, &next, "").await.rows(), json!([[42]]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_owner_and_the_node_s_admin_see_a_query() {
    let server = TestServer::start().await;
    let (ann, bob) = (token(&server, "reader").await, token(&server, "admin").await);
    let accepted =
        server.send(with(server.request(Method::POST, QUERIES).json(&json!({"sql": "SELECT 7 AS a"})), &ann)).await;
    let id = accepted.body["id"].as_str().expect("it has an id");
    assert_eq!(over(&server, id).await["state"], "done", "the node's admin sees it");
    for (method, path) in [(Method::GET, ""), (Method::GET, "/result"), (Method::DELETE, "")] {
        let request = server.request(method, &format!("/v1/queries/{id}{path}"));
        assert_eq!(server.send(with(request, &bob)).await.code(), "not_found");
    }
    let own = server.send(with(server.request(Method::GET, &format!("/v1/queries/{id}/result")), &ann)).await;
    assert_eq!(*own.rows(), json!([[7]]));
    assert_eq!(*result(&server, id, "").await.rows(), json!([[7]]), "so does the node's admin");
    let write = with(server.request(Method::POST, QUERIES).json(&json!({"sql": "CREATE TABLE t(a INT)"})), &ann);
    let accepted = server.send(write).await;
    let refused = over(&server, accepted.body["id"].as_str().expect("it has an id")).await;
    assert_eq!(refused["error"]["code"], "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_principal_keeps_so_many_and_no_more() {
    let server = TestServer::start().await;
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(submit(&server, json!({"sql": "SELECT 1"})).await);
    }
    let request = || server.request(Method::POST, QUERIES).json(&json!({"sql": "SELECT 1"}));
    let refused = server.send(request()).await;
    assert_eq!((refused.code(), &refused.body["retryable"]), ("limited", &json!(true)), "{refused:?}");
    assert!(refused.body["hint"].as_str().is_some_and(|hint| hint.contains("DELETE")), "{refused:?}");
    over(&server, &ids[0]).await;
    delete(&server, &ids[0]).await;
    assert_eq!(server.send(request()).await.status, StatusCode::ACCEPTED);
    let taken = server.send(request().header("tarn-query-id", &ids[1])).await;
    assert_eq!(taken.code(), "conflict", "sent again under its id, it does not run twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_do_not_outlive_their_engine_and_say_so() {
    let server = TestServer::start().await;
    let done = submit(&server, json!({"sql": "SELECT 1"})).await;
    over(&server, &done).await;
    let runs = submit(&server, json!({ "sql": ENDLESS })).await;
    works(server.engine_pid(DEV)).await;
    server.kill_engine(DEV);
    let failed = over(&server, &runs).await;
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("unavailable")), "{failed}");
    assert_eq!((&failed["error"]["outcome"], &failed["error"]["retryable"]), (&json!("none"), &json!(true)));
    let gone = loop {
        let answer = result(&server, &done, "").await;
        if answer.code() != "unavailable" {
            break answer;
        }
    };
    assert_eq!(gone.code(), "not_found");
    assert!(gone.body["message"].as_str().is_some_and(|text| text.contains("engine")), "{gone:?}");
    while server.query("SELECT 1").await.status != StatusCode::OK {}
    let again = submit(&server, json!({"sql": "SELECT 1"})).await;
    let done = over(&server, &again).await;
    assert_eq!(done["state"], "done", "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_long_to_keep_says_what_was_committed() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a VARCHAR)").await.rows();
    let sql = "INSERT INTO t SELECT repeat('x', 1000) FROM range(20000) RETURNING a";
    let failed = over(&server, &submit(&server, json!({ "sql": sql })).await).await;
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("too_large")), "{failed}");
    assert_eq!((&failed["error"]["outcome"], failed["error"]["position"].is_string()), (&json!("committed"), true));
    assert_eq!(*server.query("SELECT count(*) FROM t").await.rows(), json!([[20000]]));
    let read = over(&server, &submit(&server, json!({"sql": "FROM t"})).await).await;
    assert_eq!((&read["state"], &read["rows"]), (&json!("done"), &json!(20000)), "a read's rows may be many");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_moment_can_be_asked_too() {
    let server = TestServer::start().await;
    let before = server.query("CREATE TABLE t AS SELECT 1 AS a").await.position.expect("a commit has a position");
    server.query("UPDATE t SET a = 2").await.rows();
    let id = submit(&server, json!({"sql": "SELECT a FROM t", "at": before})).await;
    let done = over(&server, &id).await;
    assert_eq!(
        (&done["state"], &done["position"], &done["durable"]),
        (&json!("done"), &json!(before), &json!("object"))
    );
    assert_eq!(*result(&server, &id, "").await.rows(), json!([[1]]));
    let id = submit(&server, json!({"sql": "SELECT a FROM t", "at": "no-such-snapshot"})).await;
    assert_eq!(over(&server, &id).await["error"]["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn max_rows_holds_for_the_whole_and_for_pages() {
    let server = TestServer::start().await;
    let id = submit(&server, json!({"sql": "SELECT i FROM range(10) r(i)", "max_rows": 4})).await;
    assert_eq!(over(&server, &id).await["rows"], json!(4));
    let whole = result(&server, &id, "").await;
    assert_eq!((whole.rows(), &whole.body["truncated"]), (&json!([[0], [1], [2], [3]]), &json!(true)));
    assert_eq!(*result(&server, &id, "?offset=3&limit=5").await.rows(), json!([[3]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_lone_read_is_kept_and_what_may_write_in_hiding_is_answered_too() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT i % 3 AS g, i FROM range(9) r(i)").await.rows();
    for sql in [
        "SHOW TABLES",
        "DESCRIBE t",
        "SUMMARIZE t",
        "FROM t -- a comment at the end",
        "PIVOT t ON g USING count(*)",
        "WITH x AS (SELECT 1 AS a) FROM x",
        "SELECT 1 AS a, 2 AS a",
        "EXPLAIN SELECT 1",
        "VALUES (1), (2)",
    ] {
        let id = submit(&server, json!({ "sql": sql })).await;
        let done = over(&server, &id).await;
        assert_eq!(done["state"], "done", "{sql}: {done}");
        let direct = server.query(sql).await;
        assert_eq!(result(&server, &id, "").await.rows(), direct.rows(), "{sql}");
    }
    server.query("CREATE SEQUENCE s; CREATE VIEW v AS SELECT nextval('s') AS n").await.rows();
    let id = submit(&server, json!({"sql": "SELECT n FROM v"})).await;
    assert_eq!(over(&server, &id).await["state"], "done");
    assert_eq!(*result(&server, &id, "").await.rows(), json!([[1]]));
    let id = submit(&server, json!({"sql": "SELECT count(*) FROM t"})).await;
    assert_eq!(over(&server, &id).await["state"], "done", "any read of such a mart");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_forgotten() {
    let server = TestServer::start_with(&[("TARN_SESSION_IDLE_MS", "1")]).await;
    let id = submit(&server, json!({"sql": "SELECT 1"})).await;
    while told(&server, &id).await.status == StatusCode::OK {}
    assert_eq!(told(&server, &id).await.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_does_not_wait_for_them() {
    let mut server = TestServer::start().await;
    submit(&server, json!({ "sql": ENDLESS })).await;
    works(server.engine_pid(DEV)).await;
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_finds_a_query_that_another_one_runs() {
    let free = || {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        port.local_addr().expect("it is bound").to_string()
    };
    let (place, other) = (free(), free());
    let short = ("TARN_TAKEOVER_AFTER", "4s");
    let mut first = TestServer::start_with(&[short, ("TARN_ADVERTISE", &place), ("TARN_LISTEN", &place)]).await;
    first.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let store = format!("file:{}", first.objects_dir().display());
    let second = [("TARN_STORE", store.as_str()), short, ("TARN_ADVERTISE", &other), ("TARN_LISTEN", &other)];
    let second = TestServer::start_with(&second).await;
    while second.query("SELECT 1").await.status != StatusCode::OK {}

    let id = submit(&second, json!({"sql": "FROM t"})).await;
    for node in [&second, &first] {
        assert_eq!(over(node, &id).await["state"], "done");
        assert_eq!(*result(node, &id, "?limit=5").await.rows(), json!([[1]]));
    }
    let rows = second.request(Method::PUT, "/v1/tenants/default/marts/dev/tables/main/t?mode=append");
    let loaded = second.send(rows.header("content-type", "text/csv").body("a\n2\n")).await;
    assert_eq!((loaded.status, &loaded.body["rows"]), (StatusCode::OK, &json!(1)), "{loaded:?}");
    // One that somebody waits for, too.
    let own = "0b7e9a52-2f4b-4a0c-9d1e-6a7f21c0d4e8";
    let requests = first.requests();
    let request = requests.request(Method::POST, "/v1/tenants/default/marts/dev/query").header("tarn-query-id", own);
    let waiting = tokio::spawn(async move { requests.try_send(request.json(&json!({ "sql": ENDLESS }))).await });
    while told(&second, own).await.status != StatusCode::OK {}
    while delete(&second, own).await.status != StatusCode::OK {}
    assert_eq!(waiting.await.expect("no panic").expect("an answer").code(), "cancelled");

    assert_eq!(delete(&second, &id).await.status, StatusCode::OK);
    assert_eq!(told(&first, &id).await.code(), "not_found");
    assert_eq!(told(&second, &id).await.code(), "not_found");
    first.kill_node().await;
    let unsure = told(&second, &id).await;
    assert_eq!((unsure.code(), &unsure.body["retryable"]), ("unavailable", &json!(true)), "{unsure:?}");
    // Its results died with it: once it counts as dead, that is certain.
    while told(&second, &id).await.code() == "unavailable" {}
    assert_eq!(told(&second, &id).await.code(), "not_found");
}
