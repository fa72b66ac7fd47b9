//! Sessions: a connection of one's own from request to request.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Got, Home, Served};

struct Session<'a> {
    served: &'a Served,
    id: String,
}

impl<'a> Session<'a> {
    async fn open(served: &'a Served) -> Self {
        let id = Uuid::new_v4().to_string();
        let got = served.send("POST", "/sessions", json!({ "id": id }).to_string().into(), &[]).await;
        assert_eq!(got.status, 200, "{got:?}");
        Self { served, id }
    }

    async fn ask(&self, sql: &str) -> Got {
        self.ask_with(sql, &[]).await
    }

    async fn ask_with(&self, sql: &str, headers: &[(&str, &str)]) -> Got {
        self.served.ask(json!({ "sql": sql, "session": self.id }), headers).await
    }

    async fn rows(&self, sql: &str) -> Value {
        let got = self.ask(sql).await;
        assert_eq!(got.status, 200, "{sql}: {got:?}");
        got.json()["rows"].clone()
    }

    async fn close(&self) -> u16 {
        self.served.send("DELETE", &format!("/sessions/{}", self.id), "".into(), &[]).await.status
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_tables_live_as_long_as_their_session_and_are_nobody_elses() {
    let served = Served::start().await;
    let (one, two) = (Session::open(&served).await, Session::open(&served).await);
    one.rows("CREATE TEMP TABLE mine AS SELECT 42 AS x").await;
    assert_eq!(one.rows("FROM mine").await, json!([[42]]));
    assert_eq!(two.ask("FROM mine").await.status, 422);
    assert_eq!(served.query("FROM mine").await.status, 422);
    assert_eq!(one.close().await, 200);
    assert_eq!(one.ask("FROM mine").await.json()["code"], "not_found");
    assert_eq!(one.close().await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_seen_by_others_at_its_commit_and_its_position_comes_with_it() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    let inserted = session.ask("INSERT INTO t VALUES (1), (2)").await;
    assert_eq!((inserted.header("tarn-changed-rows"), inserted.header("tarn-commit")), (Some("2"), None));
    assert_eq!(session.rows("SELECT count(*) FROM t").await, json!([[2]]));
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[0]]));
    assert!(session.ask("COMMIT").await.commit().wal_bytes > 0);
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[2]]));
    session.rows("BEGIN").await;
    session.rows("DELETE FROM t").await;
    session.rows("ROLLBACK").await;
    assert_eq!(session.rows("SELECT count(*) FROM t").await, json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_only_begun_stands_in_nobodys_way() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    let folded = served.send("POST", "/checkpoint", "{}".into(), &[]).await;
    assert_eq!(folded.status, 200, "{folded:?}");
    served.rows("INSERT INTO t VALUES (7)").await;
    assert_eq!(session.rows("FROM t").await, json!([[7]]), "its moment is that of its first statement");
    assert_eq!(session.ask("BEGIN").await.status, 422, "it is in a transaction");
    session.rows("COMMIT").await;
    assert_eq!(session.ask("COMMIT").await.status, 422);
    assert_eq!(session.ask("BEGIN nonsense").await.status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_commit_of_conflicting_writes_can_be_tried_again() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER); INSERT INTO t VALUES (1)").await;
    let (one, two) = (Session::open(&served).await, Session::open(&served).await);
    one.rows("BEGIN").await;
    two.rows("BEGIN").await;
    one.rows("UPDATE t SET i = 2").await;
    let got = two.ask("UPDATE t SET i = 3").await.json();
    assert_eq!((&got["code"], &got["retryable"], &got["outcome"]), (&json!("conflict"), &json!(true), &json!("none")));
    two.rows("ROLLBACK").await;
    one.rows("COMMIT").await;
    two.rows("UPDATE t SET i = 3").await;
    assert_eq!(served.rows("FROM t").await, json!([[3]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_is_rolled_back_and_its_session_is_told() {
    let served = Served::over(Home { transaction_idle_ms: 50, ..Home::new() }).await;
    served.rows("CREATE TABLE t (i INTEGER)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    session.rows("INSERT INTO t VALUES (1)").await;
    // Once it is rolled back, the writers' gate can be closed for a checkpoint.
    let wait = json!({ "reader_wait_ms": 60_000 }).to_string();
    let folded = served.send("POST", "/checkpoint", wait.into(), &[]).await;
    assert_eq!(folded.status, 200, "{folded:?}");
    let got = session.ask("SELECT 1").await.json();
    assert_eq!((&got["code"], &got["retryable"]), (&json!("conflict"), &json!(true)), "{got}");
    assert_eq!(session.ask("COMMIT").await.json()["code"], "conflict");
    assert_eq!(session.rows("SELECT count(*) FROM t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_nobody_uses_ends() {
    let served = Served::over(Home { session_idle_ms: 1, ..Home::new() }).await;
    let session = Session::open(&served).await;
    while !served.server.engine().sessions.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(session.ask("SELECT 1").await.json()["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_principal_finds_a_session() {
    let served = Served::start().await;
    let session = Session::open(&served).await;
    let got = session.ask_with("SELECT 1", &[("tarn-principal", "somebody else")]).await;
    assert_eq!(got.json()["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_lets_the_next_request_have_its_turn_and_comes_whole_later() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t AS SELECT i, repeat('x', 100) AS s FROM range(500000) r(i)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    let body = json!({ "sql": "FROM t", "session": session.id }).to_string();
    let accept = [("accept", "application/vnd.apache.arrow.stream")];
    let unread = served.begin("POST", "/query", body.into(), &accept).await;
    session.rows("INSERT INTO t VALUES (-1, 'y')").await;
    session.rows("COMMIT").await;
    let bytes = http_body_util::BodyExt::collect(unread.into_body()).await.expect("comes whole").to_bytes();
    let batches = arrow_ipc::reader::StreamReader::try_new(&bytes[..], None).expect("is a stream");
    let rows: usize = batches.map(|batch| batch.expect("is whole").num_rows()).sum();
    assert_eq!(rows, 500_000, "what it was when it was asked for");
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[500_001]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_an_answer_keeps_its_transaction() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t AS SELECT i, repeat('x', 100) AS s FROM range(500000) r(i)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    session.rows("INSERT INTO t VALUES (-1, 'y')").await;
    let body = json!({ "sql": "FROM t", "session": session.id }).to_string();
    drop(served.begin("POST", "/query", body.into(), &[]).await);
    session.rows("COMMIT").await;
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[500_001]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_transaction_reads_one_moment_and_writes_nothing() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER); CREATE SEQUENCE s; CREATE VIEW v AS SELECT nextval('s') AS n").await;
    let session = Session::open(&served).await;
    let reader = [("tarn-role", "reader")];
    assert_eq!(session.ask_with("BEGIN", &reader).await.status, 200);
    assert_eq!(session.ask_with("SELECT count(*) FROM t", &reader).await.json()["rows"], json!([[0]]));
    served.rows("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.ask_with("SELECT count(*) FROM t", &reader).await.json()["rows"], json!([[0]]));
    assert_eq!(session.ask_with("INSERT INTO t VALUES (2)", &reader).await.json()["code"], "forbidden");
    assert_eq!(session.ask_with("FROM v", &reader).await.json()["code"], "forbidden");
    assert_eq!(session.ask_with("ROLLBACK", &reader).await.status, 200);
    assert_eq!(session.ask_with("SELECT count(*) FROM t", &reader).await.json()["rows"], json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_rows_come_page_by_page_with_their_types() {
    let served = Served::start().await;
    let session = Session::open(&served).await;
    let sql = "SELECT i, i::HUGEINT AS h, uuid() AS u FROM range($1) r(i) -- the end";
    let body = json!({ "sql": sql, "params": [5000], "session": session.id, "keep": true });
    let kept = served.ask(body.clone(), &[("tarn-role", "reader")]).await;
    assert_eq!((kept.status, kept.json()), (200, json!({ "rows": 5000 })));
    let page = session.ask("FROM temp.main._tarn_result ORDER BY rowid LIMIT 2 OFFSET 4998").await.json();
    assert_eq!((&page["rows"][0][0], &page["rows"][1][1]), (&json!(4998), &json!(4999)));
    assert_eq!(page["columns"][1]["type"], "HUGEINT");
    let written = json!({ "sql": "CREATE TABLE t (i INTEGER)", "session": session.id, "keep": true });
    assert_eq!(served.ask(written, &[]).await.json()["code"], "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_files_does_not_wait_for_an_idle_transaction() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    session.rows("INSERT INTO t VALUES (1)").await;
    let order = json!({ "state": "closed", "wait_ms": 0, "abort": true }).to_string();
    let closed = served.send("POST", "/writers", order.into(), &[]).await;
    assert_eq!(closed.status, 200, "{closed:?}");
    served.send("POST", "/writers", json!({ "state": "open" }).to_string().into(), &[]).await;
    assert_eq!(session.ask("COMMIT").await.json()["code"], "conflict");
    assert_eq!(served.rows("SELECT count(*) FROM t").await, json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_transaction_that_failed_is_no_success() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER PRIMARY KEY)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    session.rows("INSERT INTO t VALUES (1)").await;
    assert_eq!(session.ask("INSERT INTO t VALUES (1)").await.status, 422);
    let got = session.ask("COMMIT").await.json();
    assert_eq!((&got["code"], &got["outcome"]), (&json!("sql"), &json!("none")), "{got}");
    session.rows("BEGIN").await;
    session.rows("INSERT INTO t VALUES (2)").await;
    assert_eq!(session.ask("ROLLBACK TO SAVEPOINT x").await.status, 422);
    assert_eq!(session.ask("COMMIT AND NOT REALLY").await.status, 422);
    session.rows("COMMIT WORK").await;
    assert_eq!(served.rows("FROM t").await, json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_kept_busy_does_not_hold_up_a_checkpoint_that_insists() {
    let served = std::sync::Arc::new(Served::start().await);
    served.rows("CREATE TABLE t (i INTEGER)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    session.rows("SELECT count(*) FROM t").await;
    let order = json!({ "state": "closed", "wait_ms": 100, "abort": true }).to_string();
    let closing = served.send("POST", "/writers", order.into(), &[]);
    tokio::pin!(closing);
    let closed = loop {
        tokio::select! {
            closed = &mut closing => break closed,
            _ = session.ask("SELECT 1") => {}
        }
    };
    assert_eq!(closed.status, 200, "{closed:?}");
    assert_eq!(session.ask("SELECT 1").await.json()["code"], "conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_does_not_leave_the_brackets_around_it() {
    let served = Served::start().await;
    let session = Session::open(&served).await;
    let sql = "SELECT 1 AS a) t, (SELECT 2 AS c) x, (SELECT 3 AS b";
    let body = json!({ "sql": sql, "session": session.id, "keep": true });
    for got in [
        served.ask(body, &[]).await,
        served.send("POST", "/describe", json!({"sql": sql}).to_string().into(), &[]).await,
    ] {
        let answer = got.json();
        assert_eq!((got.status, &answer["code"]), (422, &json!("sql")), "{answer}");
        assert!(answer["message"].as_str().is_some_and(|message| message.contains("bracket")), "{answer}");
    }
    assert_eq!(served.query("SELECT (1").await.json()["code"], "sql");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_refused_ends_its_transaction() {
    let served = Served::start().await;
    served.rows("CREATE TABLE t (i INTEGER); CREATE INDEX x ON t (i)").await;
    let session = Session::open(&served).await;
    session.rows("BEGIN").await;
    session.rows("INSERT INTO t SELECT range FROM range(200000)").await;
    assert_eq!(session.ask("COMMIT").await.json()["code"], "invalid");
    // What comes next commits by itself.
    assert!(session.ask("INSERT INTO t VALUES (-1)").await.commit().wal_bytes > 0);
    assert_eq!(served.rows("FROM t").await, json!([[-1]]));
}
