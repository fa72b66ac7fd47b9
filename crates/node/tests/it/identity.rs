//! Who is let in, by tokens and by JWTs, over HTTP and Flight; that they go when they have to; and what is written down of it.

mod audit;
mod ends;
mod issuer;
mod jwt;
mod tokens;

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::admin::with;
use crate::server::{Answer, TestServer};

/// A revoked token is worthless within this time on every node; a busy machine may take a little longer to say so.
pub const REVOKED_WITHIN: Duration = Duration::from_secs(2);
pub const SLACK: Duration = Duration::from_secs(3);

pub async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    server.send(server.request(Method::POST, path).json(&body)).await
}

/// Two tenants with marts of their own: `acme` has `sales` and `hr`.
pub async fn acme(server: &TestServer) {
    for tenant in ["acme", "evil"] {
        post(server, "/v1/tenants", json!({"name": tenant})).await;
        for mart in ["sales", "hr"] {
            post(server, &format!("/v1/tenants/{tenant}/marts"), json!({"name": mart})).await;
        }
    }
}

/// A new token's id and text.
pub async fn token(server: &TestServer, body: Value) -> (String, String) {
    let made = post(server, "/v1/tokens", body).await;
    let text = |field: &str| made.body[field].as_str().unwrap_or_else(|| panic!("no token: {made:?}")).to_owned();
    (text("id"), text("token"))
}

pub async fn revoke(server: &TestServer, id: &str) {
    let revoked = server.send(server.request(Method::DELETE, &format!("/v1/tokens/{id}"))).await;
    assert!(revoked.status.is_success(), "{revoked:?}");
}

pub fn query_request(server: &TestServer, token: &str, mart: &str, sql: &str) -> RequestBuilder {
    let (tenant, name) = mart.split_once('/').expect("TENANT/MART");
    let path = format!("/v1/tenants/{tenant}/marts/{name}/query");
    with(server.request(Method::POST, &path).json(&json!({ "sql": sql })), token)
}

pub async fn query(server: &TestServer, token: &str, mart: &str, sql: &str) -> Answer {
    server.send(query_request(server, token, mart, sql)).await
}
