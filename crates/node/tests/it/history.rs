//! A mart's past over HTTP: listing it, naming moments, going back, branching, compacting.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::server::{Answer, DEV, TestServer};

pub const MART: &str = "/v1/tenants/default/marts/dev";

pub async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.send(server.request(Method::POST, path).json(&body)).await
}

pub async fn get(server: &TestServer, path: &str) -> Answer {
    server.send(server.request(Method::GET, path)).await
}

async fn values(server: &TestServer, mart: &str) -> Value {
    server.query_in(mart, json!({"sql": "SELECT list(a ORDER BY a) FROM t"})).await.rows()[0][0].clone()
}

/// Writes a commit and says where it ended.
async fn insert(server: &TestServer, value: i64) -> String {
    let answer = server.query(&format!("INSERT INTO t VALUES ({value})")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.position.expect("a commit has a position")
}

async fn restore(server: &TestServer, at: &str) -> Answer {
    post(server, &format!("{MART}/restore"), json!({ "at": at })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mart_goes_back_and_forth_in_place_and_survives_the_loss_of_its_machine() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    let second = insert(&server, 2).await;
    let back = restore(&server, &first).await;
    assert_eq!(back.status, StatusCode::OK, "{back:?}");
    assert_eq!((back.body["restored"].as_str(), back.body["before"].as_str()), (Some(&*first), Some(&*second)));
    assert_eq!(values(&server, DEV).await, json!([1]));
    let third = insert(&server, 3).await;
    assert_eq!(values(&server, DEV).await, json!([1, 3]));
    // What was given up is still reachable, and so is what came after it was.
    assert_eq!(restore(&server, &second).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    assert_eq!(restore(&server, &third).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1, 3]));
    insert(&server, 4).await;
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(values(&server, DEV).await, json!([1, 3, 4]));
    assert_eq!(restore(&server, &first).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_expects_another_position_or_moment_changes_nothing() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    let second = insert(&server, 2).await;
    let body = json!({"at": first, "expected_position": first});
    let refused = post(&server, &format!("{MART}/restore"), body).await;
    assert_eq!((refused.code(), &refused.body["outcome"]), ("conflict", &json!("none")), "{refused:?}");
    for (at, code) in [("9.9.9", "not_found"), ("no-such-name", "not_found"), ("what?", "invalid")] {
        assert_eq!(restore(&server, at).await.code(), code, "{at}");
    }
    assert_eq!(restore(&server, "1980-01-01T00:00:00Z").await.code(), "not_found", "before it was made");
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    insert(&server, 3).await;
    let body = json!({"at": first, "expected_position": second});
    assert_eq!(post(&server, &format!("{MART}/restore"), body).await.code(), "conflict");
    assert_eq!(values(&server, DEV).await, json!([1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_during_restores_lose_nothing_that_was_acknowledged_after_the_last() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let start = insert(&server, -1).await;
    let requests = server.requests();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for value in 0.. {
            if *stopped.borrow_and_update() {
                break;
            }
            let body = json!({ "sql": format!("INSERT INTO t VALUES ({value})") });
            let request = requests.request(Method::POST, &format!("{MART}/query")).json(&body);
            let answer = requests.try_send(request).await.expect("the node runs");
            match answer.status {
                StatusCode::OK => acknowledged.push((value, answer.position.expect("a commit has one"))),
                _ => assert!(answer.body["outcome"] == "none" && answer.body["retryable"] == true, "{answer:?}"),
            }
        }
        acknowledged
    });
    let mut last = String::new();
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let back = restore(&server, &start).await;
        assert_eq!(back.status, StatusCode::OK, "{back:?}");
        last = back.body["position"].as_str().expect("a position").to_owned();
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stop.send_replace(true);
    let acknowledged = writer.await.expect("it does not panic");
    let epoch = |position: &str| position.split('.').next().and_then(|text| text.parse::<u64>().ok());
    let kept: Vec<i64> = std::iter::once(-1)
        .chain(acknowledged.iter().filter(|(_, position)| epoch(position) == epoch(&last)).map(|(value, _)| *value))
        .collect();
    assert!(kept.len() > 1 && kept.len() <= acknowledged.len());
    assert_eq!(values(&server, DEV).await, json!(kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_has_its_own_life() {
    let mut server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    insert(&server, 2).await;
    let branch = post(&server, &format!("{MART}/branches"), json!({"name": "try", "at": first})).await;
    assert_eq!(branch.status, StatusCode::OK, "{branch:?}");
    assert_eq!(values(&server, "default/try").await, json!([1]));
    server.query_in("default/try", json!({"sql": "INSERT INTO t VALUES (10)"})).await.rows();
    let again = post(&server, "/v1/tenants/default/marts/try/branches", json!({"name": "again"})).await;
    assert_eq!(again.status, StatusCode::OK, "{again:?}");
    server.query_in("default/again", json!({"sql": "INSERT INTO t VALUES (100)"})).await.rows();
    assert_eq!(post(&server, &format!("{MART}/branches"), json!({"name": "try"})).await.code(), "conflict");
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    assert_eq!(values(&server, "default/try").await, json!([1, 10]));
    assert_eq!(values(&server, "default/again").await, json!([1, 10, 100]));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_named_listed_gone_back_to_and_deleted() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 1).await;
    let monday = post(&server, &format!("{MART}/snapshots"), json!({"name": "monday"})).await;
    assert_eq!((monday.status, monday.body["position"].as_str()), (StatusCode::OK, Some(&*first)), "{monday:?}");
    let second = insert(&server, 2).await;
    insert(&server, 3).await;
    let body = json!({"name": "tuesday", "at": second});
    assert_eq!(post(&server, &format!("{MART}/snapshots"), body).await.status, StatusCode::OK);
    for (body, code) in [
        (json!({"name": "monday"}), "conflict"),
        (json!({"name": "2026"}), "invalid"),
        (json!({"name": "a/b"}), "invalid"),
        (json!({"name": "x", "at": "9.9.9"}), "not_found"),
        (json!({"nam": "x"}), "invalid"),
    ] {
        assert_eq!(post(&server, &format!("{MART}/snapshots"), body.clone()).await.code(), code, "{body}");
    }
    let listed = get(&server, &format!("{MART}/snapshots")).await;
    let listed = listed.body["snapshots"].as_array().expect("a list").clone();
    assert_eq!(
        listed.iter().map(|shown| shown["name"].as_str()).collect::<Vec<_>>(),
        [Some("monday"), Some("tuesday")]
    );
    assert!(listed[0]["bytes"].as_u64() > Some(0) && listed[0]["shared_bytes"].is_u64(), "{listed:?}");
    assert_eq!(restore(&server, "monday").await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1]));
    assert_eq!(restore(&server, "tuesday").await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([1, 2]));
    let gone = server.send(server.request(Method::DELETE, &format!("{MART}/snapshots/monday"))).await;
    assert_eq!(gone.status, StatusCode::OK);
    assert_eq!(restore(&server, "monday").await.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_lists_positions_with_their_times_and_a_time_means_the_commit_before_it() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let mut positions = Vec::new();
    for value in 0..5 {
        positions.push(insert(&server, value).await);
    }
    let listed = get(&server, &format!("{MART}/history")).await;
    let moments = listed.body["moments"].as_array().unwrap_or_else(|| panic!("{listed:?}")).clone();
    let commits: Vec<_> = moments.iter().filter(|moment| moment["what"] == "commit").collect();
    let newest_first: Vec<_> = commits.iter().filter_map(|moment| moment["position"].as_str()).take(5).collect();
    let expected: Vec<_> = positions.iter().rev().map(String::as_str).collect();
    assert_eq!(newest_first, expected);
    let third = commits[2]["time"].as_str().expect("a time");
    assert_eq!(restore(&server, third).await.body["restored"].as_str(), Some(&*positions[2]));
    assert_eq!(values(&server, DEV).await, json!([0, 1, 2]));
    let span = format!("{MART}/history?from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&buckets=8");
    let counted = get(&server, &span).await;
    let counts = counted.body["buckets"].as_array().unwrap_or_else(|| panic!("{counted:?}"));
    assert_eq!(counts.len(), 8);
    assert!(counts.iter().filter_map(|bucket| bucket["commits"].as_u64()).sum::<u64>() >= 6, "{counts:?}");
    for wrong in ["from=yesterday", "buckets=5", "buckets=0&from=2020-01-01T00:00:00Z", "x=1"] {
        assert_eq!(get(&server, &format!("{MART}/history?{wrong}")).await.code(), "invalid", "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_which_rows_would_come_and_go_and_changes_nothing() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t(a BIGINT); CREATE TABLE same AS SELECT 1 AS x; CREATE TABLE gone(y INT)").await;
    server.query("INSERT INTO t VALUES (1), (1), (2)").await.rows();
    let position = server.query("INSERT INTO gone VALUES (7)").await.position.expect("a position");
    server.query("DELETE FROM t WHERE a = 2; INSERT INTO t VALUES (1), (3), (NULL)").await;
    let now = server.query("DROP TABLE gone; CREATE TABLE fresh AS SELECT 1 AS z").await.position.expect("a position");
    let body = json!({"at": position, "dry_run": true});
    let answer = post(&server, &format!("{MART}/restore"), body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!((&answer.body["restores"], &answer.body["position"]), (&json!(position), &json!(now)));
    let tables = answer.body["tables"].as_array().expect("a list");
    let found = |name: &str| {
        let table = tables.iter().find(|table| table["table"] == name);
        table.map(|table| (table["rows_added"].clone(), table["rows_removed"].clone()))
    };
    assert_eq!(found("t"), Some((json!(1), json!(3))), "2 comes back; one 1, 3 and NULL go");
    assert_eq!(found("gone"), Some((json!(1), json!(0))));
    assert_eq!(found("fresh"), Some((json!(0), json!(1))));
    assert_eq!(found("same"), None);
    let body = json!({"at": position, "dry_run": true, "expected_position": position});
    assert_eq!(post(&server, &format!("{MART}/restore"), body).await.code(), "conflict");
    assert_eq!(server.query("SELECT count(*) FROM t").await.rows()[0][0], json!(5));
}

/// S22 of docs/seed-coverage.md.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_a_plain_file_that_any_duckdb_opens() {
    let server = TestServer::start().await;
    server.query("CREATE TABLE t AS SELECT range AS a FROM range(1000)").await.rows();
    let position = insert(&server, -5).await;
    server.query("DELETE FROM t").await.rows();
    let body = json!({"at": position, "storage_class": "STANDARD_IA"});
    let made = post(&server, &format!("{MART}/archives"), body).await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");
    let url = made.body["archives"][0]["url"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with("s3://sm-default-analytics/duckdb/dev/archives/2"), "{url}");
    let file = server.objects_dir().join(url.strip_prefix("s3://").expect("a URL"));
    let rows = crate::published::read(&file, "SELECT count(*) || ',' || min(a) FROM t");
    assert_eq!(rows.as_deref(), Ok("1001,-5"));
    for (body, code) in [
        (json!({"storage_class": "x y"}), "invalid"),
        (json!({"at": "9.9.9"}), "not_found"),
        (json!({"at": position, "older_than_days": 1}), "invalid"),
        (json!({"older_than_days": -1}), "invalid"),
    ] {
        assert_eq!(post(&server, &format!("{MART}/archives"), body.clone()).await.code(), code, "{body}");
    }
    let none = post(&server, &format!("{MART}/archives"), json!({"older_than_days": 1})).await;
    assert_eq!(none.body["archives"], json!([]), "no day has ended that long ago");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_says_first_what_it_would_let_go_and_the_mart_lives_on() {
    // A window of nothing, a grace of nothing: only the present stays.
    let settings = [("TARN_RETENTION_DAYS", "0"), ("TARN_RETENTION_GRACE_HOURS", "0"), ("TARN_CHECKPOINT_WAL", "1KB")];
    let mut server = TestServer::start_with(&settings).await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 0).await;
    let body = json!({"name": "kept"});
    post(&server, &format!("{MART}/snapshots"), body).await;
    for value in 1..200 {
        insert(&server, value).await;
    }
    server.logged("base shipped", 3).await;
    let planned = post(&server, &format!("{MART}/sweep"), json!({"dry_run": true})).await;
    assert_eq!(planned.status, StatusCode::OK, "{planned:?}");
    assert!(!planned.body["objects"].as_array().expect("a list").is_empty(), "{planned:?}");
    for _ in 0..2 {
        let swept = post(&server, &format!("{MART}/sweep"), json!({})).await;
        assert_eq!(swept.status, StatusCode::OK, "{swept:?}");
    }
    let early = get(&server, &format!("{MART}/history?limit=10000")).await;
    let moments = early.body["moments"].as_array().expect("a list");
    assert!(moments.iter().all(|moment| moment["position"] != first.as_str()), "the early ones are gone");
    assert_eq!(restore(&server, &first).await.code(), "not_found");
    insert(&server, 200).await;
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(server.query("SELECT count(*) FROM t").await.rows()[0][0], json!(201));
    assert_eq!(restore(&server, "kept").await.status, StatusCode::OK, "what has a name stays");
    assert_eq!(values(&server, DEV).await, json!([0]));
}

/// S25 of docs/seed-coverage.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_names_moments_of_marts_that_changed() {
    // Every 1.8 seconds.
    let server = TestServer::start_with(&[("TARN_SNAPSHOT_EVERY_HOURS", "0.0005")]).await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let mut seen = Vec::new();
    for value in 0..2 {
        let position = insert(&server, value).await;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let listed = get(&server, &format!("{MART}/snapshots")).await;
            let named = listed.body["snapshots"].as_array().expect("a list").clone();
            if let Some(found) = named.iter().find(|shown| shown["position"] == position.as_str()) {
                assert_eq!(found["automatic"], json!(true));
                seen.push(found["name"].as_str().expect("a name").to_owned());
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{listed:?}");
        }
    }
    assert!(seen.iter().all(|name| name.starts_with("auto-2")) && seen[0] != seen[1], "{seen:?}");
    // Looked after as well: what the mart takes of the store.
    let page = get(&server, "/metrics").await.body.as_str().expect("text").to_owned();
    let line = "tarn_disk_used_bytes{tenant=\"default\",mart=\"dev\",kind=\"objects\"} ";
    let bytes: f64 = page.lines().find_map(|found| found.strip_prefix(line)?.parse().ok()).expect("it was weighed");
    assert!(bytes > 4096.0, "{page}");
    let line = "tarn_upkeep_last_timestamp_seconds{tenant=\"default\",mart=\"dev\",job=\"snapshot\"} ";
    let last: f64 = page.lines().find_map(|found| found.strip_prefix(line)?.parse().ok()).expect("it was done");
    assert!(last > 1.7e9, "{page}");
    assert_eq!(restore(&server, &seen[0]).await.status, StatusCode::OK);
    assert_eq!(values(&server, DEV).await, json!([0]));
}

/// S25 of docs/seed-coverage.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_mart_that_nobody_uses_is_looked_after_and_doctor_tells() {
    let mut server = TestServer::start_with(&[("TARN_SNAPSHOT_EVERY_HOURS", "0")]).await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let position = insert(&server, 1).await;
    server.kill_node().await;
    // About every second. Nobody asks for the mart: what is listed is read from the store.
    let often = [("TARN_SNAPSHOT_EVERY_HOURS", "0.0005"), ("TARN_ARCHIVE_EVERY_DAYS", "0.00001")];
    server.start_again_with(&often).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let listed = get(&server, &format!("{MART}/snapshots")).await;
        let named = listed.body["snapshots"].as_array().expect("a list");
        let page = get(&server, "/metrics").await.body.as_str().expect("text").to_owned();
        let archived =
            page.contains("tarn_upkeep_last_timestamp_seconds{tenant=\"default\",mart=\"dev\",job=\"archive\"} ");
        if archived && named.iter().any(|shown| shown["position"] == position.as_str()) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{listed:?} {page}");
    }
    let store = format!("file:{}", server.objects_dir().display());
    let state = server.state_dir().display().to_string();
    let mut doctor = server.tarn(&["doctor", "--json", "--store", &store, "--state-dir", &state]);
    let found = doctor.env("TARN_ARCHIVE_EVERY_DAYS", "1").output().await.expect("runs");
    let report: Vec<Value> = serde_json::from_slice(&found.stdout).expect("JSON");
    for job in ["snapshot", "archive", "sweep", "verify", "vacuum"] {
        let what = format!("{job} of tenant default");
        assert!(report.iter().any(|line| line["check"] == what.as_str() && line["verdict"] != "fail"), "{report:?}");
    }
}

/// S23 of docs/seed-coverage.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_mart_has_a_window_of_its_own_and_what_is_read_is_not_deleted() {
    let settings = [("TARN_RETENTION_GRACE_HOURS", "0"), ("TARN_CHECKPOINT_WAL", "1KB")];
    let server = TestServer::start_with(&settings).await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    let first = insert(&server, 0).await;
    for value in 1..200 {
        insert(&server, value).await;
    }
    server.logged("base shipped", 3).await;
    // An engine on the first moment stays for a while after its query.
    let body = json!({"sql": "SELECT count(*) FROM t", "at": first});
    assert_eq!(server.query_in(DEV, body.clone()).await.rows()[0][0], json!(1));
    let planned = post(&server, &format!("{MART}/sweep"), json!({"dry_run": true})).await;
    assert_eq!(planned.body["objects"], json!([]), "30 days have not passed");
    for (days, code) in [(json!(-1), "invalid"), (json!("x"), "invalid")] {
        let request = server.request(Method::PUT, &format!("{MART}/retention")).json(&json!({ "days": days }));
        assert_eq!(server.send(request).await.code(), code);
    }
    let request = server.request(Method::PUT, &format!("{MART}/retention")).json(&json!({"days": 0}));
    assert_eq!(server.send(request).await.status, StatusCode::OK);
    let swept = post(&server, &format!("{MART}/sweep"), json!({})).await;
    assert!(swept.body["let_go"].as_u64() > Some(0), "{swept:?}");
    assert_eq!(swept.body["deleted"], json!(0), "the first moment is being read");
    assert_eq!(server.query_in(DEV, body).await.rows()[0][0], json!(1));
    assert_eq!(restore(&server, &first).await.code(), "not_found", "but nobody begins to");
}

#[tokio::test(flavor = "multi_thread")]
async fn moments_after_a_vacuum_are_found() {
    let server = TestServer::start_with(&[("TARN_CHECKPOINT_WAL", "1KB"), ("TARN_CHECKPOINT_IDLE_MS", "20")]).await;
    server.query("CREATE TABLE t(a BIGINT)").await.rows();
    for value in 0..100 {
        insert(&server, value).await;
    }
    server.logged("base shipped", 4).await;
    let vacuumed = post(&server, &format!("{MART}/vacuum"), json!({})).await;
    let mut positions = vec![vacuumed.body["position"].as_str().expect("a position").to_owned()];
    for value in 0..5 {
        positions.push(insert(&server, value).await);
    }
    for (index, position) in positions.iter().enumerate() {
        let counted = server.query_in(DEV, json!({"sql": "SELECT count(*) FROM t", "at": position})).await;
        assert_eq!(*counted.rows(), json!([[100 + index]]), "{position}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_position_is_in_the_history_though_checkpoints_come_between() {
    let server = TestServer::start_with(&[("TARN_CHECKPOINT_WAL", "2KB"), ("TARN_CHECKPOINT_IDLE_MS", "20")]).await;
    server.query("CREATE TABLE t(a BIGINT, s VARCHAR)").await.rows();
    let writers = (0..8).map(|writer| {
        let requests = server.requests();
        tokio::spawn(async move {
            let mut told = Vec::new();
            for value in 0..40 {
                let rows = if (value + writer) % 10 == 0 { 130_000 } else { 1 };
                let sql = format!("INSERT INTO t SELECT {value}, 'x' || i FROM range({rows}) r(i)");
                let request = requests.request(Method::POST, &format!("{MART}/query")).json(&json!({ "sql": sql }));
                let answer = requests.try_send(request).await.expect("the node runs");
                told.extend(answer.position.filter(|_| answer.durable.as_deref() == Some("object")));
            }
            told
        })
    });
    let told = futures::future::try_join_all(writers).await.expect("no writer panics").concat();
    let listed = get(&server, &format!("{MART}/history?limit=10000")).await;
    let listed: std::collections::BTreeSet<_> =
        listed.body["moments"].as_array().expect("a list").iter().filter_map(|m| m["position"].as_str()).collect();
    let gone: Vec<_> = told.iter().filter(|position| !listed.contains(position.as_str())).collect();
    assert!(gone.is_empty(), "{} of {} are not listed: {gone:?}", gone.len(), told.len());
}
