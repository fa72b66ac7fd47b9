//! Answers: what runs, what is committed, and what an error says about it.

use engine::wire::Point;
use serde_json::{Value, json};

use crate::support::{Got, Home, Served};

fn error(got: &Got) -> (u16, Value) {
    (got.status, got.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_answers_with_rows_and_the_newest_position() {
    let served = Served::start().await;
    let commit = served.query("create table t as select 1 a").await.commit();
    let got = served.query("select a, 'x' b from t").await;
    assert_eq!(
        got.json(),
        json!({"columns": [{"name": "a", "type": "INTEGER"}, {"name": "b", "type": "VARCHAR"}], "rows": [[1, "x"]], "row_count": 1, "truncated": false})
    );
    assert_eq!((got.header("tarn-at"), got.header("tarn-commit")), (Some(commit.to_string().as_str()), None));
    assert!(got.header("tarn-query-id").is_some_and(|id| id.parse::<uuid::Uuid>().is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_autocommits_and_its_last_commit_is_the_position() {
    let served = Served::start().await;
    let got = served
        .query("create table t(a int); insert into t values (1), (2); insert into t values (3) returning a * 10 as b")
        .await;
    assert_eq!(got.json()["rows"], json!([[30]]));
    assert_eq!(
        got.commit(),
        Point { iteration: 0, wal_bytes: std::fs::metadata(served.home.wal()).expect("a log").len() }
    );
    assert_eq!(served.rows("select count(*) from t").await, json!([[3]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_script_names_its_statement_and_what_is_committed() {
    let served = Served::start().await;
    let got = served
        .query("create table t(a int); insert into t values (1); insert into t values ('x'); insert into t values (2)")
        .await;
    let (status, body) = error(&got);
    assert_eq!(
        (status, &body["code"], &body["statement_index"], &body["committed"]),
        (422, &json!("sql"), &json!(2), &json!(2))
    );
    assert_eq!((&body["outcome"], &body["retryable"]), (&json!("committed"), &json!(false)));
    assert_eq!(got.commit().wal_bytes, std::fs::metadata(served.home.wal()).expect("a log").len());
    assert_eq!(served.rows("select count(*) from t").await, json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_all_or_nothing_and_never_left_open() {
    let served = Served::start().await;
    served.query("create table t(a int)").await;
    let got = served.query("begin; insert into t values (1); select count(*) from t; commit").await;
    assert_eq!((got.status, &got.json()["rows"]), (200, &json!([[1]])), "the last result is the select's");
    let got = served.query("begin; insert into t values (2); select error('no'); commit").await;
    assert_eq!(error(&got).1["outcome"], "none");
    let got = served.query("begin; insert into t values (3)").await;
    assert_eq!((error(&got).0, &error(&got).1["outcome"]), (400, &json!("none")));
    let got = served.query("begin; insert into t values (4); rollback").await;
    assert_eq!((got.status, got.header("tarn-commit")), (200, None));
    assert_eq!(served.rows("select a from t").await, json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_users_paste_first_is_answered_as_done() {
    let served = Served::start().await;
    let got = served.query("INSTALL httpfs; LOAD httpfs;").await;
    assert_eq!((got.status, got.json()["rows"].clone()), (200, json!([])));
    assert_eq!(served.rows("load httpfs; select 42").await, json!([[42]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_go_to_the_statement_that_takes_them() {
    let served = Served::start().await;
    let got = served
        .ask(json!({"sql": "create table t(a int); insert into t values ($a) returning a", "params": {"a": 7}}), &[])
        .await;
    assert_eq!((got.status, got.json()["rows"].clone()), (200, json!([[7]])), "{got:?}");
    let got = served.ask(json!({"sql": "select ?::int + ?::int", "params": [1, 2]}), &[]).await;
    assert_eq!(got.json()["rows"], json!([[3]]));
    for body in [
        json!({"sql": "select ?", "params": []}),
        json!({"sql": "select 1", "params": [1]}),
        json!({"sql": "select ?"}),
    ] {
        let got = served.ask(body.clone(), &[]).await;
        assert_eq!((got.status, &got.json()["code"]), (400, &json!("invalid")), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_a_clear_error_and_the_next_request_is_fine() {
    let served = Served::start().await;
    for (body, headers, status) in [
        (r#"{"sql": "selec 1"}"#.to_owned(), vec![], 422),
        (r#"{"sql": "select * from nowhere"}"#.to_owned(), vec![], 422),
        (r#"{"sql": "select 1 +"}"#.to_owned(), vec![], 422),
        (r#"{"sql": ""}"#.to_owned(), vec![], 400),
        (r#"{"sql": 1}"#.to_owned(), vec![], 400),
        (r#"{"sql": "select 1", "nonsense": 1}"#.to_owned(), vec![], 400),
        ("{".to_owned(), vec![], 400),
        (r#"["select 1", null, null, null, null]"#.to_owned(), vec![], 400),
        (r#"{"sql": "select $a", "params": {"a": 1, "a": 2}}"#.to_owned(), vec![], 400),
        (r#"{"sql": "select $a", "params": {"a": 1, "A": 2}}"#.to_owned(), vec![], 400),
        (r#"{"sql": "select 1", "sql": "select 2"}"#.to_owned(), vec![], 400),
        (json!({"sql": format!("select '{}'", "x".repeat(300_000))}).to_string(), vec![], 413),
        (r#"{"sql": "select 1"}"#.to_owned(), vec![("accept", "application/xml")], 400),
        (r#"{"sql": "select 1"}"#.to_owned(), vec![("tarn-query-id", "7")], 400),
        (r#"{"sql": "select 1"}"#.to_owned(), vec![("tarn-role", "king")], 400),
        (r#"{"sql": "create table t(a int)"}"#.to_owned(), vec![("tarn-role", "reader")], 403),
    ] {
        let got = served.send("POST", "/query", body.clone().into(), &headers).await;
        let answer = got.json();
        assert_eq!(got.status, status, "{body}: {answer}");
        assert_eq!(answer["outcome"], "none", "{body}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.contains("/tmp")), "{answer}");
    }
    let got = served.send("POST", "/query", vec![b'{', 0xff, 0xfe].into(), &[]).await;
    assert_eq!((got.status, &got.json()["code"]), (400, &json!("invalid")));
    assert_eq!(served.rows("select 1").await, json!([[1]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_objects_end_with_their_request() {
    let served = Served::start().await;
    assert_eq!(served.rows("create temp table x as select 5 a; select a from x").await, json!([[5]]));
    for _ in 0..20 {
        assert_eq!(served.query("select a from x").await.status, 422);
    }
    assert_eq!(served.rows("pivot (select 'k' a, 2 b) on a using sum(b)").await, json!([[2]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nextval_that_hides_is_committed_and_its_position_follows_the_rows() {
    let served = Served::start().await;
    served
        .query("create sequence s; create macro m() as nextval('s'); create view v as select m() n from range(100000)")
        .await;
    let size = || std::fs::metadata(served.home.wal()).expect("a log").len();
    let before = size();
    let got = served.query("select max(n) from v").await;
    assert_eq!((got.json()["rows"].clone(), size() > before), (json!([[100_000]]), true));
    assert_eq!(got.commit().wal_bytes, size(), "a small answer has it in its head");
    let got = served.query("select n, repeat('x', 20) from v").await;
    let trailer = got.trailers.get("tarn-commit").expect("a large answer has it in its trailer");
    assert_eq!(trailer.to_str().expect("text"), format!("0.{}", size()));
    served
        .query(
            "drop view v; drop macro m; create table g(i int, j bigint as (nextval('s'))); insert into g(i) values (1)",
        )
        .await;
    let before = size();
    let got = served.query("from g").await;
    assert!(size() > before && got.commit().wal_bytes == size(), "a generated column hides one too");
    served.query("drop table g").await;
    assert!(served.query("select 1").await.header("tarn-commit").is_none());
    assert!(!served.server.engine().reads_may_write(), "nothing hides any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_does_not_write_through_a_view() {
    let served = Served::start().await;
    served.query("create sequence s; create view v as select nextval('s') n; create table t as select 1 a").await;
    let size = || std::fs::metadata(served.home.wal()).expect("a log").len();
    let before = size();
    let got = served.ask(json!({"sql": "from v"}), &[("tarn-role", "reader")]).await;
    assert_eq!((got.status, got.json()["code"].clone(), size()), (403, json!("forbidden"), before), "{got:?}");
    let got = served.ask(json!({"sql": "from t"}), &[("tarn-role", "reader")]).await;
    assert_eq!((got.status, got.json()["rows"].clone()), (200, json!([[1]])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_nextval_is_found_again_after_a_restart() {
    let home = {
        let served = Served::start().await;
        served.query("create sequence s; create macro m() as nextval('s')").await;
        served.home
    };
    // The other engine's threads may hold the file a little longer.
    let copy = Home::new();
    std::fs::copy(home.wal(), copy.wal()).expect("copies");
    std::fs::copy(home.db(), copy.db()).expect("copies");
    let served = Served::over(copy).await;
    assert!(served.query("select m()").await.header("tarn-commit").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_runs_once_and_repeats_its_answer() {
    let served = Served::start().await;
    served.query("create table t(a int)").await;
    let body = json!({"sql": "insert into t values (1); insert into t select count(*) from t returning a"});
    let key = [("idempotency-key", "k1"), ("tarn-principal", "ann")];
    let (first, second) = tokio::join!(served.ask(body.clone(), &key), served.ask(body.clone(), &key));
    assert_eq!((first.status, &first.body), (200, &second.body), "{first:?} {second:?}");
    assert_eq!([&first, &second].iter().filter(|got| got.header("tarn-replayed").is_some()).count(), 1);
    assert_eq!(first.commit(), second.commit());
    let other = served.ask(json!({"sql": "insert into t values (9)"}), &key).await;
    assert_eq!((other.status, &other.json()["code"]), (409, &json!("conflict")));
    let bob = served.ask(body.clone(), &[("idempotency-key", "k1"), ("tarn-principal", "bob")]).await;
    assert_eq!((bob.status, bob.header("tarn-replayed")), (200, None), "another's key is another key");
    assert_eq!(served.rows("select count(*) from t").await, json!([[4]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_request_leaves_no_trace_of_its_key() {
    let served = Served::start().await;
    served.query("create table t(a int unique)").await;
    let key = [("idempotency-key", "k"), ("tarn-principal", "ann")];
    let body = json!({"sql": "begin; insert into t values (1); insert into t values (1); commit"});
    assert_eq!(served.ask(body, &key).await.json()["outcome"], "none");
    assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
    assert_eq!(served.ask(json!({"sql": "insert into t values (2)"}), &key).await.status, 200);
    let got = served
        .ask(
            json!({"sql": "begin; insert into t values (3); commit; insert into t values (4)"}),
            &[("idempotency-key", "z")],
        )
        .await;
    assert_eq!((got.status, &got.json()["code"]), (400, &json!("invalid")));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_one_row_conflict_and_the_loser_may_retry() {
    let served = Served::start().await;
    served.query("create table t as select 0 a from range(1)").await;
    let slow = "begin; update t set a = a + 1; select count(*) from range(30000000) x, range(3) y where x.range + y.range < 0; commit";
    let (one, two) = tokio::join!(served.query(slow), served.query(slow));
    let mut statuses = [one.status, two.status];
    statuses.sort();
    assert_eq!(statuses, [200, 409], "{one:?} {two:?}");
    let lost = if one.status == 409 { one } else { two };
    assert_eq!((lost.json()["code"].clone(), lost.json()["retryable"].clone()), (json!("conflict"), json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_names_every_commit_in_order() {
    use http_body_util::BodyExt;
    let served = Served::start().await;
    let mut feed = served.begin("GET", "/commits", Default::default(), &[]).await.into_body();
    let mut expected = vec![Point::default()];
    for sql in ["create table t(a int)", "insert into t values (1)", "insert into t values (2)"] {
        expected.push(served.query(sql).await.commit());
    }
    let got = served.send("POST", "/checkpoint", r#"{"reader_wait_ms": 1000}"#.into(), &[]).await;
    assert_eq!((got.status, &got.json()["iteration"], &got.json()["wal_bytes"]), (200, &json!(1), &json!(0)));
    expected.push(Point { iteration: 1, wal_bytes: 0 });
    let mut text = String::new();
    while text.lines().count() < expected.len() {
        let frame = feed.frame().await.expect("goes on").expect("is whole").into_data().expect("data");
        text.push_str(std::str::from_utf8(&frame).expect("text"));
    }
    let points: Vec<engine::wire::CommitPoint> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    assert_eq!(points.iter().map(|point| point.point()).collect::<Vec<_>>(), expected);
    assert!(points.is_sorted_by_key(|point| point.time_us));
    let health = served.send("GET", "/health", Default::default(), &[]).await.json();
    assert_eq!(
        (&health["iteration"], &health["wal_bytes"], &health["duckdb_version"]),
        (&json!(1), &json!(0), &json!("v1.5.5"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_commits_each_get_their_own_position() {
    let served = std::sync::Arc::new(Served::start().await);
    served.query("create table t(a int)").await;
    let tasks: Vec<_> = (0..8)
        .map(|worker| {
            let served = served.clone();
            tokio::spawn(async move {
                let mut points = Vec::new();
                for turn in 0..10 {
                    points
                        .push(served.query(&format!("insert into t values ({})", worker * 100 + turn)).await.commit());
                }
                points
            })
        })
        .collect();
    let mut points = Vec::new();
    for task in tasks {
        points.extend(task.await.expect("ends"));
    }
    points.sort();
    points.dedup();
    assert_eq!(points.len(), 80);
    assert_eq!(
        points.last().map(|point| point.wal_bytes),
        Some(std::fs::metadata(served.home.wal()).expect("a log").len())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_waits_for_its_commit_takes_no_more_than_the_temporary_space() {
    let served = Served::over(Home { max_temp_bytes: 8 << 20, ..Home::new() }).await;
    served.query("create table t(a int, s text)").await;
    let insert = |rows: u32| format!("insert into t select i, repeat('x', 1000) from range({rows}) r(i) returning s");
    let got = served.query(&insert(30_000)).await;
    assert_eq!((got.status != 200, &got.json()["code"]), (true, &json!("limited")), "{got:?}");
    assert_eq!(served.rows("select count(*) from t").await, json!([[0]]));
    let got = served.query(&insert(6_000)).await;
    assert_eq!(got.json()["rows"].as_array().map(Vec::len), Some(6_000));
}
