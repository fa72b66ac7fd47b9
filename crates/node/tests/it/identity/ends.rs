//! Tokens that end while something runs for them.

use std::time::Instant;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::issuer::{Signer, TestIssuer, now};
use super::{REVOKED_WITHIN, SLACK, acme, query, query_request, revoke, token};
use crate::admin::with;
use crate::flight::client::{Client, ticket_of};
use crate::server::{TOKEN, TestServer};

/// Never ends by itself.
const LONG: &str = "SELECT i, i * 2 AS j FROM range(100000000000) AS t(i)";
const MART: &str = "acme/sales";

fn writer() -> Value {
    json!({"tenant": "acme", "role": "writer"})
}

/// A stream of which something has come.
async fn streaming(request: RequestBuilder) -> reqwest::Response {
    let mut response = request.header("accept", "application/x-ndjson").send().await.expect("it answers");
    assert_eq!(response.status(), StatusCode::OK);
    response.chunk().await.expect("it streams").expect("it has rows");
    response
}

/// Reads on until it breaks; never until it ends well.
async fn breaks(mut response: reqwest::Response) {
    loop {
        match response.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if it were whole"),
            Err(_) => return,
        }
    }
}

/// Waits until nothing runs in the mart but what asks.
async fn falls_silent(server: &TestServer, id: &str) {
    loop {
        let known = server.send(server.request(Method::GET, &format!("/v1/queries/{id}"))).await;
        if known.status == StatusCode::NOT_FOUND {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_s_stream_breaks_and_its_query_stops() {
    let server = TestServer::start().await;
    acme(&server).await;
    let (id, text) = token(&server, writer()).await;
    let query_id = "6f0f1a94-6a0e-4f0e-9d0e-3d1c9d6f5a11";
    let response = streaming(query_request(&server, &text, MART, LONG).header("tarn-query-id", query_id)).await;
    // A client that reads nothing more holds nothing up.
    let idle_id = "6f0f1a94-6a0e-4f0e-9d0e-3d1c9d6f5a12";
    let idle = streaming(query_request(&server, &text, MART, LONG).header("tarn-query-id", idle_id)).await;
    let (other_id, other) = token(&server, writer()).await;
    let unharmed = streaming(query_request(&server, &other, MART, LONG)).await;
    let revoked = Instant::now();
    revoke(&server, &id).await;
    breaks(response).await;
    falls_silent(&server, query_id).await;
    falls_silent(&server, idle_id).await;
    assert!(revoked.elapsed() < REVOKED_WITHIN + SLACK, "{:?}", revoked.elapsed());
    breaks(idle).await;
    let mut unharmed = unharmed;
    for _ in 0..20 {
        unharmed.chunk().await.expect("it goes on").expect("it has rows");
    }
    revoke(&server, &other_id).await;
    breaks(unharmed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_by_itself_ends_what_runs() {
    let server = TestServer::start().await;
    acme(&server).await;
    query(&server, TOKEN, MART, "SELECT 1").await.rows();
    let (_, text) = token(&server, json!({"tenant": "acme", "role": "reader", "expires_in": "2s"})).await;
    let made = Instant::now();
    breaks(streaming(query_request(&server, &text, MART, LONG)).await).await;
    assert!(made.elapsed() < 2 * REVOKED_WITHIN + SLACK, "{:?}", made.elapsed());
    assert_eq!(query(&server, &text, MART, "SELECT 1").await.code(), "unauthenticated");
    let listed = server.send(server.request(Method::GET, "/v1/tokens")).await;
    assert_eq!(listed.body["tokens"][0]["expired"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_that_ends_ends_what_runs_unless_a_newer_one_came() {
    let signer = Signer::new("e", jsonwebtoken::Algorithm::ES256);
    let issuer = TestIssuer::start(&[&signer]).await;
    let server = issuer.node(&[]).await;
    acme(&server).await;
    query(&server, TOKEN, MART, "SELECT 1").await.rows();
    // Clocks may differ by ten seconds, so these have about three left.
    let ending = |subject: &str| {
        let mut claims = issuer.claims(subject, "acme", "reader");
        claims["exp"] = (now() - 7).into();
        signer.sign(&claims)
    };
    let ann = streaming(query_request(&server, &ending("ann"), MART, LONG)).await;
    let mut bob = streaming(query_request(&server, &ending("bob"), MART, LONG)).await;
    let newer = signer.sign(&issuer.claims("bob", "acme", "reader"));
    query(&server, &newer, MART, "SELECT 1").await.rows();
    breaks(ann).await;
    for _ in 0..20 {
        bob.chunk().await.expect("it goes on").expect("it has rows");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_s_flight_stream_ends_with_a_refusal() {
    let server = TestServer::start().await;
    acme(&server).await;
    let (id, text) = token(&server, writer()).await;
    let client = Client::connect_as(server.address(), &text).await.with("tarn-mart", MART);
    let prepared = client.prepare("SELECT 1", None).await.expect("it is described");
    let info = client.execute(LONG).await.expect("it is described");
    let mut stream = client.stub().do_get(client.request(ticket_of(&info))).await.expect("it runs").into_inner();
    stream.next().await.expect("it streams").expect("a schema");
    let revoked = Instant::now();
    revoke(&server, &id).await;
    let end = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            Some(Err(status)) => break status,
            None => panic!("it ended as if it were whole"),
        }
    };
    assert_eq!(end.code(), tonic::Code::Unauthenticated, "{end:?}");
    assert!(revoked.elapsed() < REVOKED_WITHIN + SLACK, "{:?}", revoked.elapsed());
    for refused in [
        client.get(ticket_of(&info)).await.map(|_| ()),
        client
            .info(arrow_flight::sql::CommandPreparedStatementQuery {
                prepared_statement_handle: prepared.prepared_statement_handle,
            })
            .await
            .map(|_| ()),
        client.begin().await.map(|_| ()),
    ] {
        assert_eq!(refused.expect_err("it was revoked").code(), tonic::Code::Unauthenticated);
    }
}

/// A row that a transaction has changed can't be changed until that is over.
async fn can_be_changed(server: &TestServer) -> bool {
    query(server, TOKEN, MART, "UPDATE t SET a = a + 1").await.status == StatusCode::OK
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_transactions_and_async_queries_end_with_their_token() {
    let server = TestServer::start().await;
    acme(&server).await;
    query(&server, TOKEN, MART, "CREATE TABLE t AS SELECT 1 AS a").await.rows();

    let (id, text) = token(&server, writer()).await;
    let base = "/v1/tenants/acme/marts/sales";
    let send = async |path: &str, body: Value| {
        server.send(with(server.request(Method::POST, &format!("{base}{path}")).json(&body), &text)).await
    };
    let session = send("/sessions", json!({})).await.body["session"].clone();
    send("/query", json!({"sql": "BEGIN; UPDATE t SET a = 7", "session": session})).await.rows();
    assert!(!can_be_changed(&server).await, "the row is not taken");
    let job = send("/queries", json!({"sql": format!("SELECT sum(i) FROM ({LONG})")})).await;
    let job = job.body["id"].as_str().expect("it is taken").to_owned();
    let revoked = Instant::now();
    revoke(&server, &id).await;
    while !can_be_changed(&server).await {}
    loop {
        let told = server.send(server.request(Method::GET, &format!("/v1/queries/{job}"))).await;
        if told.body["state"] == "cancelled" {
            break;
        }
        assert!(["queued", "running"].contains(&told.body["state"].as_str().unwrap_or_default()), "{told:?}");
    }
    assert!(revoked.elapsed() < REVOKED_WITHIN + SLACK, "{:?}", revoked.elapsed());

    // The same over Flight.
    let (id, text) = token(&server, writer()).await;
    let client = Client::connect_as(server.address(), &text).await.with("tarn-mart", MART);
    let transaction = client.begin().await.expect("it begins");
    let update = arrow_flight::sql::CommandStatementUpdate {
        query: "UPDATE t SET a = 7".into(),
        transaction_id: Some(transaction),
    };
    client.update_by(update).await.expect("it runs");
    assert!(!can_be_changed(&server).await, "the row is not taken");
    let revoked = Instant::now();
    revoke(&server, &id).await;
    while !can_be_changed(&server).await {}
    assert!(revoked.elapsed() < REVOKED_WITHIN + SLACK, "{:?}", revoked.elapsed());
    let rows = query(&server, TOKEN, MART, "SELECT max(a) < 7 FROM t").await;
    assert_eq!(*rows.rows(), json!([[true]]), "nothing of it was committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_a_revoked_token_loads_nothing() {
    let server = TestServer::start().await;
    acme(&server).await;
    query(&server, TOKEN, MART, "CREATE TABLE t(a BIGINT)").await.rows();
    let (id, text) = token(&server, writer()).await;
    let (send, receive) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let rows = futures::stream::unfold(receive, |mut rows| async move { Some((rows.recv().await?, rows)) });
    let request = server
        .request(Method::PUT, "/v1/tenants/acme/marts/sales/tables/main/t?mode=append")
        .header("content-type", "text/csv")
        .body(reqwest::Body::wrap_stream(rows));
    let upload = tokio::spawn(with(request, &text).send());
    send.send(Ok("a\n1\n2\n".into())).await.expect("it reads");
    send.send(Ok("3\n".into())).await.expect("it reads");
    revoke(&server, &id).await;
    let answer = upload.await.expect("it does not panic");
    drop(send);
    // A client may learn only that its connection is gone.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED));
    assert_eq!(*query(&server, TOKEN, MART, "SELECT count(*) FROM t").await.rows(), json!([[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_s_streams_end_too_when_a_token_is_revoked_or_a_mart_is_dropped() {
    let first = TestServer::start_with(&[("TARN_TAKEOVER_AFTER", "1000s")]).await;
    let store = format!("file:{}", first.objects_dir().display());
    let second = TestServer::start_with(&[("TARN_STORE", store.as_str()), ("TARN_TAKEOVER_AFTER", "1000s")]).await;
    // The second node made the marts, so it serves them; it is the first that says who has to go.
    acme(&second).await;
    let (id, text) = token(&second, writer()).await;
    while query(&second, &text, MART, "SELECT 1").await.status != StatusCode::OK {}
    let response = streaming(query_request(&second, &text, MART, LONG)).await;
    let revoked = Instant::now();
    revoke(&first, &id).await;
    breaks(response).await;
    assert!(revoked.elapsed() < REVOKED_WITHIN + SLACK, "{:?}", revoked.elapsed());
    assert_eq!(query(&second, &text, MART, "SELECT 1").await.code(), "unauthenticated");

    let (_, text) = token(&second, writer()).await;
    while query(&second, &text, MART, "SELECT 1").await.status != StatusCode::OK {}
    let response = streaming(query_request(&second, &text, MART, LONG)).await;
    let dropped = Instant::now();
    let answer = first.send(first.request(Method::DELETE, "/v1/tenants/acme/marts/sales")).await;
    assert!(answer.status.is_success(), "{answer:?}");
    breaks(response).await;
    assert!(dropped.elapsed() < REVOKED_WITHIN + SLACK, "{:?}", dropped.elapsed());
    assert_eq!(query(&second, &text, MART, "SELECT 1").await.code(), "not_found");
}
