//! Tenants, marts, tokens: who may do what, and that it outlives the machine.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::server::{Answer, TestServer};

async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.send(server.request(Method::POST, path).json(&body)).await
}

/// A tenant `acme` with a mart `sales`, and a token of that role.
async fn acme(server: &TestServer, role: &str) -> String {
    post(server, "/v1/tenants", json!({"name": "acme"})).await;
    post(server, "/v1/tenants/acme/marts", json!({"name": "sales"})).await;
    let made = post(server, "/v1/tokens", json!({"tenant": "acme", "role": role, "name": "test"})).await;
    made.body["token"].as_str().unwrap_or_else(|| panic!("no token: {made:?}")).to_owned()
}

/// With this token in place of the admin's.
pub fn with(request: RequestBuilder, token: &str) -> RequestBuilder {
    // A second header of the same name would be added, so the first is replaced whole.
    let (client, request) = request.build_split();
    let mut request = request.expect("a legal request");
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("a legal header"));
    RequestBuilder::from_parts(client, request)
}

async fn query(server: &TestServer, token: &str, mart: &str, sql: &str) -> Answer {
    let (tenant, name) = mart.split_once('/').expect("TENANT/MART");
    let request =
        server.request(Method::POST, &format!("/v1/tenants/{tenant}/marts/{name}/query")).json(&json!({ "sql": sql }));
    server.send(with(request, token)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_reaches_its_tenant_in_its_role_and_nothing_else() {
    let server = TestServer::start().await;
    let writer = acme(&server, "writer").await;
    let reader = acme(&server, "reader").await;
    query(&server, &writer, "acme/sales", "CREATE TABLE t AS SELECT 1 AS a").await.rows();
    assert_eq!(*query(&server, &reader, "acme/sales", "SELECT a FROM t").await.rows(), json!([[1]]));
    assert_eq!(query(&server, &reader, "acme/sales", "INSERT INTO t VALUES (2)").await.code(), "forbidden");
    for token in [&reader, &writer] {
        assert_eq!(query(&server, token, "default/dev", "SELECT 1").await.code(), "forbidden");
        assert_eq!(
            query(&server, token, "nobody/dev", "SELECT 1").await.code(),
            "forbidden",
            "unknown tenants look like foreign ones"
        );
        for (method, path, body) in [
            (Method::POST, "/v1/tenants", json!({"name": "x"})),
            (Method::POST, "/v1/tenants/acme/marts", json!({"name": "x"})),
            (Method::DELETE, "/v1/tenants/acme/marts/sales", json!(null)),
            (Method::POST, "/v1/tokens", json!({"tenant": "acme", "role": "admin"})),
            (Method::POST, "/v1/tokens", json!({"role": "admin"})),
        ] {
            let answer = server.send(with(server.request(method, path).json(&body), token)).await;
            assert_eq!(answer.code(), "forbidden", "{path}: {answer:?}");
        }
        let listed = server.send(with(server.request(Method::GET, "/v1/tenants"), token)).await;
        assert_eq!(listed.body["tenants"].as_array().map(Vec::len), Some(1), "{listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_worthless() {
    let server = TestServer::start().await;
    let token = acme(&server, "writer").await;
    query(&server, &token, "acme/sales", "SELECT 1").await.rows();
    let tokens = server.send(server.request(Method::GET, "/v1/tokens")).await;
    assert!(!tokens.body.to_string().contains(&token), "a list shows a token's text");
    let id = tokens.body["tokens"][0]["id"].as_str().expect("it is listed").to_owned();
    let revoked = server.send(server.request(Method::DELETE, &format!("/v1/tokens/{id}"))).await;
    assert_eq!(revoked.status, StatusCode::OK);
    assert_eq!(query(&server, &token, "acme/sales", "SELECT 1").await.code(), "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_marts_and_tokens_outlive_the_machine() {
    let mut server = TestServer::start().await;
    let token = acme(&server, "writer").await;
    query(&server, &token, "acme/sales", "CREATE TABLE t AS SELECT 5 AS a").await.rows();
    server.kill_node().await;
    server.wipe_state();
    server.start_again().await;
    assert_eq!(*query(&server, &token, "acme/sales", "SELECT a FROM t").await.rows(), json!([[5]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_once() {
    let server = TestServer::start().await;
    assert_eq!(post(&server, "/v1/tenants", json!({"name": "acme"})).await.status, StatusCode::OK);
    assert_eq!(post(&server, "/v1/tenants", json!({"name": "acme"})).await.code(), "conflict");
    assert_eq!(post(&server, "/v1/tenants", json!({"name": "Acme!"})).await.code(), "invalid");
    assert_eq!(post(&server, "/v1/tenants/acme/marts", json!({"name": "m"})).await.status, StatusCode::OK);
    assert_eq!(post(&server, "/v1/tenants/acme/marts", json!({"name": "m"})).await.code(), "conflict");
    let gone = server.send(server.request(Method::DELETE, "/v1/tenants/acme/marts/other")).await;
    assert_eq!(gone.code(), "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_state_directory_is_refused() {
    let server = TestServer::start().await;
    let mut second = server.tarn(&["serve", "--listen", "127.0.0.1:0", "--state-dir"]);
    let output = second
        .arg(server.state_dir())
        .env("TARN_STORE", format!("file:{}", server.objects_dir().display()))
        .output()
        .await
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another `tarn serve`"), "{output:?}");
}
