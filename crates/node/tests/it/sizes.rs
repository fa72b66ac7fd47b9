//! Profiles and places: who may ask for how much, who waits, and what they are told.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::flight::client::Client;
use crate::server::{Answer, DEV, TestServer, works};

const QUERY: &str = "/v1/tenants/default/marts/dev/query";
/// Needs more than 256 MB at once and nothing of it can be spilled.
const LARGE: &str = "select length(string_agg(repeat('x', 100), '')) from range(3000000)";
const SPIN: &str = "select count(*) from range(1000000000) a, range(1000000000) b";

async fn with_profile(server: &TestServer, token: &str, profile: &str, sql: &str) -> Answer {
    let http = reqwest::Client::new();
    let url = format!("http://{}{QUERY}", server.address());
    let request = http.post(url).bearer_auth(token).header("tarn-profile", profile).json(&json!({ "sql": sql }));
    server.send(request).await
}

async fn token(server: &TestServer, body: Value) -> String {
    let made = server.send(server.request(Method::POST, "/v1/tokens").json(&body)).await;
    made.body["token"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_as_large_as_what_runs_on_it() {
    let server = TestServer::start_with(&[("TARN_ENGINE_MEMORY", "256MB"), ("TARN_PROFILES", "large=2/2GB/60")]).await;
    let admin = crate::server::TOKEN;
    assert_eq!(with_profile(&server, admin, "notebook", LARGE).await.code(), "limited");
    assert_eq!(*with_profile(&server, admin, "large", LARGE).await.rows(), json!([[300_000_000]]));
    // It is small again as soon as nothing large runs, without a new process.
    let pid = server.engine_pid(DEV);
    while with_profile(&server, admin, "notebook", LARGE).await.status == StatusCode::OK {}
    assert_eq!(server.engine_pid(DEV), pid);
    // A mart's own profile is that of whoever names none.
    let made =
        server.request(Method::POST, "/v1/tenants/default/marts").json(&json!({"name": "big", "profile": "large"}));
    assert_eq!(server.send(made).await.body["profile"], "large");
    assert_eq!(*server.query_in("default/big", json!({ "sql": LARGE })).await.rows(), json!([[300_000_000]]));
    let none = server.request(Method::POST, "/v1/tenants/default/marts").json(&json!({"name": "x", "profile": "none"}));
    assert_eq!(server.send(none).await.code(), "invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_asks_for_no_more_than_it_may() {
    let server = TestServer::start().await;
    server.query("select 1").await.rows();
    let small = token(&server, json!({"tenant": "default", "role": "writer", "profiles": ["notebook", "batch"]})).await;
    for (profile, code) in [("heavy", "forbidden"), ("none", "forbidden")] {
        assert_eq!(with_profile(&server, &small, profile, "select 1").await.code(), code, "{profile}");
    }
    assert_eq!(with_profile(&server, crate::server::TOKEN, "none", "select 1").await.code(), "invalid");
    with_profile(&server, &small, "batch", "select 1").await.rows();
    let flight = Client::connect_as(server.address(), &small).await.with("tarn-mart", DEV);
    flight.execute("select 1").await.expect("the default is among them");
    flight.also_with("tarn-profile", "batch").execute("select 1").await.expect("it may");
    let refused = flight.also_with("tarn-profile", "heavy").execute("select 1").await.expect_err("it may not");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fills_the_node_waits_for_itself_and_for_nobody_else() {
    let settings =
        [("TARN_RUNNING_QUERIES", "2"), ("TARN_QUEUE_WAIT_MS", "400"), ("TARN_METRICS_LISTEN", "127.0.0.1:0")];
    let server = TestServer::start_with(&settings).await;
    server.query("create table t as select 42 a").await.rows();
    server.send(server.request(Method::POST, "/v1/tenants/other/marts").json(&json!({"name": "m"}))).await;
    server.query_in("other/m", json!({"sql": "select 1"})).await.rows();
    let requests = server.requests();
    let spin = tokio::spawn(async move {
        let body = json!({"sql": SPIN, "timeout_ms": 15_000});
        requests.try_send(requests.request(Method::POST, QUERY).json(&body)).await
    });
    works(server.engine_pid(DEV)).await;
    // The tenant's own next request waits, is told so, and is refused in the end.
    let asynchronous =
        server.request(Method::POST, "/v1/tenants/default/marts/dev/queries").json(&json!({"sql": "from t"}));
    let id = server.send(asynchronous).await.body["id"].as_str().expect("an id").to_owned();
    let mut seen = Vec::new();
    let end = loop {
        let told = server.send(server.request(Method::GET, &format!("/v1/queries/{id}"))).await.body;
        if told["queue_position"].is_number() {
            assert_eq!((&told["state"], &told["queue_position"]), (&json!("queued"), &json!(1)), "{told}");
        }
        seen.push(told["state"].as_str().expect("a state").to_owned());
        if told["state"] == "failed" {
            break told;
        }
    };
    assert!(seen.iter().any(|state| state == "queued"), "{seen:?}");
    assert_eq!((&end["error"]["code"], &end["error"]["retryable"]), (&json!("limited"), &json!(true)), "{end}");
    let refused = server.request(Method::POST, QUERY).json(&json!({"sql": "from t"})).send().await.expect("answers");
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    let text = refused.text().await.expect("text");
    assert!(text.contains("number 1 in line"), "{text}");
    // Another tenant does not wait at all.
    for _ in 0..20 {
        server.query_in("other/m", json!({"sql": "select 1", "timeout_ms": 200})).await.rows();
    }
    spin.abort();
    // Its places are free once its client is gone.
    let patience = std::time::Instant::now() + Duration::from_secs(20);
    while server.query("from t").await.status != StatusCode::OK {
        assert!(std::time::Instant::now() < patience, "the places of a client that went away are never free");
    }
}
