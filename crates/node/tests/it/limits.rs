//! What the kernel holds engines to: groups of their own, and processor time by tenant however many engines each has.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::server::{DEV, TestServer};

/// What the node says at its start where control groups can't be had.
const LACKING: &str = "the wall `limits` around engines does not stand here";
/// Endless on all processors: the table has many groups of rows.
const SPIN: &str = "select count(*) from wide a, wide b where a.i + b.i < 0";
const WIDE: &str = "create table wide as select range i from range(2000000)";

fn groups_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs")
}

/// What a process has used of the processors, in the kernel's ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<_> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_in_a_group_of_its_own_or_the_log_says_why_not() {
    let mut server = TestServer::start().await;
    server.query("select 1").await.rows();
    let found = groups_of(server.engine_pid(DEV));
    println!("{found}");
    if !server.log().contains(LACKING) {
        assert!(found.contains("/default/dev."), "{found}");
        assert!(!groups_of(server.node_pid()).contains("/default/"), "the node is in an engine's group");
    }
    server.stop().await;
    // A group's path in the hierarchy is the end of its directory's, wherever it is mounted.
    for line in found.lines().filter(|line| line.contains("/default/dev.")) {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().expect("controllers"), parts.next().expect("a path"));
        let dir = format!("/sys/fs/cgroup/{controllers}{path}");
        assert!(!std::path::Path::new(&dir).exists(), "`{dir}` is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_takes_the_engine_beyond_its_memory_is_told_and_the_restart_is_counted() {
    let server = TestServer::start_with(&[("TARN_ENGINE_MEMORY", "256MB")]).await;
    server.query("create table kept as select 42 a").await.rows();
    // 8 GB in one value, which DuckDB's limit does not see.
    let answer = server.query("select len(range(1000000000))").await;
    let told = (answer.code(), &answer.body["outcome"], &answer.body["retryable"]);
    assert_eq!(told, ("unavailable", &json!("none"), &json!(false)), "it ran alone: {answer:?}");
    assert!(answer.body["message"].as_str().is_some_and(|text| text.contains("memory limit")), "{answer:?}");
    let kept = loop {
        let answer = server.query("from kept").await;
        match answer.status.is_success() {
            true => break answer,
            false => assert_eq!(answer.body["retryable"], true, "{answer:?}"),
        }
    };
    assert_eq!(*kept.rows(), json!([[42]]));
    let page = server.request(Method::GET, "/metrics").send().await.expect("answers").text().await.expect("a text");
    let line = "tarn_engine_restarts_total{reason=\"memory\"} 1";
    assert!(page.lines().any(|found| found == line), "`{line}` is not in\n{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_many_busy_engines_gets_no_more_of_the_processors_than_one_with_one() {
    let server = TestServer::start().await;
    let marts = ["many/a", "many/b", "many/c", "few/m"];
    for tenant in ["many", "few"] {
        let made = server.send(server.request(Method::POST, "/v1/tenants").json(&json!({ "name": tenant }))).await;
        assert!(made.status.is_success(), "{made:?}");
    }
    for mart in marts {
        let (tenant, name) = mart.split_once('/').expect("both");
        let path = format!("/v1/tenants/{tenant}/marts");
        let made = server.send(server.request(Method::POST, &path).json(&json!({ "name": name }))).await;
        assert!(made.status.is_success(), "{made:?}");
        server.query_in(mart, json!({ "sql": WIDE })).await.rows();
    }
    let pids = marts.map(|mart| server.engine_pid(mart));
    let busy = futures::future::join_all(marts.map(|mart| server.query_in(mart, json!({ "sql": SPIN }))));
    let measured = async {
        let all = || pids.map(ticks);
        // All of them are at it by then.
        let since = |before: [u64; 4]| {
            let now = all();
            std::array::from_fn::<u64, 4, _>(|at| now[at] - before[at])
        };
        let (start, mut begun) = (all(), None);
        loop {
            let used = since(start);
            if begun.is_none() && used.iter().all(|ticks| *ticks > 10) {
                begun = Some(all());
            }
            if let Some(used) = begun.map(since).filter(|used| used.iter().sum::<u64>() > 400) {
                return used;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let [a, b, c, few] = tokio::select! {
        used = measured => used,
        answers = busy => panic!("they are endless: {answers:?}"),
    };
    println!("many: {a} + {b} + {c}, few: {few}");
    if !server.log().contains(LACKING) {
        assert!(few * 100 > (a + b + c + few) * 35, "many: {a} + {b} + {c}, few: {few}");
    }
}
