//! Tokens of the installation: how far they reach, how long, and what guessing comes to.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{acme, post, query, token};
use crate::admin::with;
use crate::flight::client::Client;
use crate::server::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn a_marts_token_reaches_no_other_mart_by_any_path() {
    let server = TestServer::start().await;
    acme(&server).await;
    let (_, own) =
        token(&server, json!({"tenant": "acme", "mart": "sales", "role": "admin", "name": "sales only"})).await;
    query(&server, &own, "acme/sales", "CREATE TABLE t AS SELECT 1 AS a").await.rows();
    query(&server, crate::server::TOKEN, "acme/hr", "CREATE TABLE secret AS SELECT 2 AS b").await.rows();
    for mart in ["acme/hr", "evil/sales", "acme/none"] {
        let base = format!("/v1/tenants/{}", mart.replace('/', "/marts/"));
        for (method, path, body) in [
            (Method::POST, "/query", json!({"sql": "SELECT 1"})),
            (Method::POST, "/query", json!({"sql": "SELECT 1", "at": "2026-01-01T00:00:00Z"})),
            (Method::POST, "/queries", json!({"sql": "SELECT 1"})),
            (Method::POST, "/sessions", json!({})),
            (Method::DELETE, "/sessions/00000000-0000-4000-8000-000000000000", json!(null)),
            (Method::GET, "/history", json!(null)),
            (Method::GET, "/snapshots", json!(null)),
            (Method::POST, "/snapshots", json!({"name": "x"})),
            (Method::DELETE, "/snapshots/x", json!(null)),
            (Method::POST, "/restore", json!({"at": "x"})),
            (Method::POST, "/branches", json!({"name": "x"})),
            (Method::POST, "/archives", json!({})),
            (Method::POST, "/vacuum", json!({})),
            (Method::PUT, "/retention", json!({"days": 0})),
            (Method::POST, "/sweep", json!({})),
            (Method::POST, "/verify", json!({})),
            (Method::GET, "/positions/1.1.0", json!(null)),
            (Method::PUT, "/tables/main/t?mode=append", json!([])),
            (Method::GET, "", json!(null)),
            (Method::DELETE, "", json!(null)),
        ] {
            let request = server.request(method.clone(), &format!("{base}{path}")).json(&body);
            let answer = server.send(with(request, &own)).await;
            assert_eq!(answer.code(), "forbidden", "{method} {base}{path}: {answer:?}");
        }
        let client = Client::connect_as(server.address(), &own).await.with("tarn-mart", mart);
        assert_eq!(client.execute("SELECT 1").await.expect_err("not its own").code(), tonic::Code::PermissionDenied);
    }
    // What lies above it.
    for (method, path, body) in [
        (Method::POST, "/v1/tenants", json!({"name": "x"})),
        (Method::POST, "/v1/tenants/acme/marts", json!({"name": "x"})),
        (Method::POST, "/v1/tenants/acme/marts/sales/branches", json!({"name": "x"})),
        (Method::POST, "/v1/tokens", json!({"tenant": "acme", "role": "reader"})),
        (Method::POST, "/v1/tokens", json!({"tenant": "acme", "mart": "hr", "role": "reader"})),
        (Method::POST, "/v1/tokens", json!({"role": "admin"})),
        (Method::GET, "/metrics", json!(null)),
    ] {
        let answer = server.send(with(server.request(method, path).json(&body), &own)).await;
        assert_eq!(answer.code(), "forbidden", "{path}: {answer:?}");
    }
    let get = async |path: &str| server.send(with(server.request(Method::GET, path), &own)).await.body;
    assert_eq!(get("/v1/tenants").await["tenants"][0]["marts"], 1);
    let names =
        |list: &Value| list.as_array().expect("a list").iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&get("/v1/tenants/acme/marts").await["marts"]), ["sales"]);
    assert_eq!(names(&get("/v1/tokens").await["tokens"]), ["sales only"]);
    // Its own mart is where it is without saying so.
    let client = Client::connect_as(server.address(), &own).await;
    let info = client.execute("SELECT a FROM t").await.expect("its mart is the default");
    assert_eq!(client.count(&info).await.expect("it is its own"), 1);
    // It gives out what it has.
    let made = json!({"tenant": "acme", "mart": "sales", "role": "reader"});
    let answer = server.send(with(server.request(Method::POST, "/v1/tokens").json(&made), &own)).await;
    let reader = answer.body["token"].as_str().expect("it is made").to_owned();
    query(&server, &reader, "acme/sales", "SELECT a FROM t").await.rows();
    // A mart of the same name is another mart.
    server.send(server.request(Method::DELETE, "/v1/tenants/acme/marts/sales")).await;
    post(&server, "/v1/tenants/acme/marts", json!({"name": "sales"})).await;
    assert_eq!(query(&server, &own, "acme/sales", "SELECT 1").await.code(), "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_made_as_asked_or_not_at_all() {
    let server = TestServer::start().await;
    acme(&server).await;
    let new = |more: Value| {
        let mut body = json!({"tenant": "acme", "role": "admin"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    for (more, code) in [
        (json!({"expires_in": "soon"}), "invalid"),
        (json!({"expires_in": "0s"}), "invalid"),
        (json!({"expires_at": "2020-01-01T00:00:00Z"}), "invalid"),
        (json!({"expires_in": "1d", "expires_at": "2100-01-01T00:00:00Z"}), "invalid"),
        (json!({"profiles": []}), "invalid"),
        (json!({"profiles": ["a b"]}), "invalid"),
        (json!({"mart": "none"}), "not_found"),
        (json!({"tenant": "none"}), "not_found"),
        (json!({"tenant": null, "mart": "sales"}), "invalid"),
    ] {
        assert_eq!(post(&server, "/v1/tokens", new(more.clone())).await.code(), code, "{more}");
    }
    let (_, limited) = token(&server, new(json!({"profiles": ["notebook"], "expires_in": "30d", "name": "few"}))).await;
    let listed = server.send(server.request(Method::GET, "/v1/tokens")).await;
    let few = &listed.body["tokens"][0];
    assert_eq!((&few["profiles"], &few["expired"]), (&json!(["notebook"]), &json!(false)), "{few}");
    assert!(few["expires"].as_str().is_some_and(|time| time > "2026"), "{few}");
    let more = new(json!({"profiles": ["heavy"]}));
    let answer = server.send(with(server.request(Method::POST, "/v1/tokens").json(&more), &limited)).await;
    assert_eq!(answer.code(), "forbidden", "nobody gives out more than they have");
    let same = server.send(with(server.request(Method::POST, "/v1/tokens").json(&new(json!({}))), &limited)).await;
    assert_eq!(same.body["profiles"], json!(["notebook"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_lists_and_revokes_tokens() {
    let server = TestServer::start().await;
    acme(&server).await;
    let dsn = format!("tarn://{}/acme", server.address());
    let run = async |arguments: &[&str]| {
        let output = server.tarn(arguments).output().await.expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let made =
        ["token", "create", &dsn, "--role", "reader", "--mart", "sales", "--expires", "30d", "--profile", "notebook"];
    let text = run(&made).await.trim().to_owned();
    query(&server, &text, "acme/sales", "SELECT 1").await.rows();
    assert_eq!(query(&server, &text, "acme/hr", "SELECT 1").await.code(), "forbidden");
    let listed: Value = serde_json::from_str(&run(&["token", "list", &dsn, "--json"]).await).expect("JSON");
    assert_eq!((&listed[0]["mart"], &listed[0]["profiles"]), (&json!("sales"), &json!(["notebook"])));
    let id = listed[0]["id"].as_str().expect("it has one");
    let json: Value = serde_json::from_str(&run(&["token", "revoke", id, &dsn, "--json"]).await).expect("JSON");
    assert_eq!(json["revoked"], true);
    assert_eq!(query(&server, &text, "acme/sales", "SELECT 1").await.code(), "unauthenticated");
    let at: Value = serde_json::from_str(
        &run(&["token", "create", &dsn, "--role", "admin", "--expires", "2100-01-01T00:00:00Z", "--json"]).await,
    )
    .expect("JSON");
    assert!(at["expires"].as_str().is_some_and(|time| time.starts_with("2100-01-01")), "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_told_to_wait_and_who_knows_passes() {
    let server = TestServer::start().await;
    acme(&server).await;
    let (id, good) = token(&server, json!({"tenant": "acme", "role": "reader"})).await;
    let mut codes = Vec::new();
    for index in 0..30 {
        codes.push(query(&server, &format!("tarn_{id}_{index}"), "acme/sales", "SELECT 1").await.code().to_owned());
    }
    assert_eq!((codes[0].as_str(), codes[29].as_str()), ("unauthenticated", "limited"));
    let refused = super::query_request(&server, "tarn_x_y", "acme/sales", "SELECT 1").send().await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let after = refused.headers().get("retry-after").and_then(|after| after.to_str().ok()?.parse::<u64>().ok());
    assert!(after.is_some_and(|after| (1..=60).contains(&after)), "{after:?}");
    let stranger = Client::connect_as(server.address(), "tarn_0_wrong").await;
    assert_eq!(stranger.execute("SELECT 1").await.expect_err("too many").code(), tonic::Code::ResourceExhausted);
    // From the same address.
    query(&server, &good, "acme/sales", "SELECT 1").await.rows();
    let client = Client::connect_as(server.address(), &good).await.with("tarn-mart", "acme/sales");
    client.execute("SELECT 1").await.expect("a valid token always passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_without_a_token_is_short_and_refused() {
    let server = TestServer::start().await;
    let handshake = async |payload: Vec<u8>| {
        let stranger = Client::connect_as(server.address(), "x").await;
        let mut request = tonic::Request::new(futures::stream::iter([arrow_flight::HandshakeRequest {
            payload: payload.into(),
            protocol_version: 0,
        }]));
        request.metadata_mut().remove("authorization");
        stranger.stub().handshake(request).await
    };
    let large = handshake(vec![b'x'; 64 << 10]).await.expect_err("nobody reads that much of a stranger");
    assert_eq!(large.code(), tonic::Code::OutOfRange);
    assert_eq!(handshake(vec![b'x'; 100]).await.expect_err("no token").code(), tonic::Code::Unauthenticated);
    use prost::Message;
    let basic =
        |password: &str| arrow_flight::BasicAuth { username: "any".into(), password: password.into() }.encode_to_vec();
    assert_eq!(handshake(basic("wrong")).await.expect_err("no token").code(), tonic::Code::Unauthenticated);
    handshake(basic(crate::server::TOKEN)).await.expect("the password is a token");
}
