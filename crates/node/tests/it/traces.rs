//! Traces as a collector gets them.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::Method;
use serde_json::json;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::server::TestServer;

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let named = of_resource.resource.expect("a resource").attributes;
            assert!(named.iter().any(|attribute| attribute.key == "service.name"), "{named:?}");
            for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                // The test may have seen enough.
                let _ = self.0.send(span);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on loopback: its address, and the spans that it gets.
async fn collector() -> (String, mpsc::UnboundedReceiver<Span>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let routes = tonic::service::Routes::new(TraceServiceServer::new(Collector(sender))).prepare().into_axum_router();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (format!("http://{address}"), receiver)
}

fn text(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    match value {
        any_value::Value::StringValue(text) => Some(text),
        other => Some(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of one trace by name, once its request's own is there.
async fn trace(spans: &mut mpsc::UnboundedReceiver<Span>, root: &str, query: &str) -> BTreeMap<String, Span> {
    let mut all: Vec<Span> = Vec::new();
    loop {
        let span = tokio::time::timeout(Duration::from_secs(30), spans.recv()).await.expect("in time").expect("sent");
        let found = span.name == root && text(&span, "tarn.query").as_deref() == Some(query);
        all.push(span.clone());
        if found {
            // Children end before their parent, and are sent before it.
            let of = all.into_iter().filter(|other| other.trace_id == span.trace_id);
            return of.map(|span| (span.name.clone(), span)).collect();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_and_its_parts_are_spans_of_node_and_engine() {
    let (endpoint, mut spans) = collector().await;
    let server = TestServer::start_with(&[("TARN_OTLP_ENDPOINT", &endpoint)]).await;
    server.query("create table t as select 1 a").await.rows();

    let id = uuid::Uuid::new_v4().to_string();
    let request = server
        .request(Method::POST, "/v1/tenants/default/marts/dev/query")
        .header("tarn-query-id", &id)
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .json(&json!({"sql": "insert into t values (2)"}));
    server.send(request).await.rows();
    let found = trace(&mut spans, "query", &id).await;
    let root = &found["query"];
    assert_eq!(hex(&root.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&root.parent_span_id), "b7ad6b7169203331");
    assert_eq!(text(root, "tarn.mart").as_deref(), Some("dev"));
    assert_eq!(text(root, "tarn.request").as_deref(), Some(id.as_str()));
    assert_eq!(
        (text(root, "tarn.kind").as_deref(), text(root, "tarn.outcome").as_deref()),
        (Some("write"), Some("ok"))
    );
    for part in ["open", "wait for a place", "engine", "engine: wait", "engine: run", "wait for the store"] {
        let span = found.get(part).unwrap_or_else(|| panic!("no `{part}` in {:?}", found.keys()));
        assert_eq!(span.parent_span_id, root.span_id, "{part}");
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{part}");
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano + 1_000_000, "{part}");
    }
    // Nothing of the text or the data is in a trace.
    assert!(found.values().all(|span| !format!("{span:?}").contains("insert")));

    let id = uuid::Uuid::new_v4().to_string();
    let failing = server.request(Method::POST, "/v1/tenants/default/marts/dev/query").header("tarn-query-id", &id);
    assert_eq!(server.send(failing.json(&json!({"sql": "from nowhere"}))).await.code(), "sql");
    let root = trace(&mut spans, "query", &id).await.remove("query").expect("found");
    assert_eq!((text(&root, "tarn.outcome").as_deref(), root.status.map(|status| status.code)), (Some("sql"), Some(2)));
    assert_ne!(hex(&root.trace_id), "0af7651916cd43dd8448eb211c80319c");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_traced_by_their_sender_or_by_chance_is_not_traced() {
    let (endpoint, mut spans) = collector().await;
    let server = TestServer::start_with(&[("TARN_OTLP_ENDPOINT", &endpoint), ("TARN_TRACE_SAMPLE", "0")]).await;
    server.query("select 1").await.rows();
    let request = server.request(Method::POST, "/v1/tenants/default/marts/dev/query");
    let request = request.header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    server.send(request.json(&json!({"sql": "select 2"}))).await.rows();
    let first = tokio::time::timeout(Duration::from_secs(30), spans.recv()).await.expect("in time").expect("sent");
    assert_eq!(hex(&first.trace_id), "0af7651916cd43dd8448eb211c80319c", "the other one came first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_nothing_but_its_traces() {
    let mut server = TestServer::start_with(&[("TARN_OTLP_ENDPOINT", "http://127.0.0.1:9")]).await;
    for _ in 0..20 {
        server.query("select 1").await.rows();
    }
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_query_is_in_the_log_with_the_way_to_its_plan() {
    let server = TestServer::start_with(&[("TARN_LOG_FORMAT", "json"), ("TARN_SLOW_QUERY_MS", "1")]).await;
    let id = uuid::Uuid::new_v4().to_string();
    let request = server.request(Method::POST, "/v1/tenants/default/marts/dev/query").header("tarn-query-id", &id);
    server.send(request.json(&json!({"sql": "select sum(range) from range(30000000)"}))).await.rows();
    server.logged(&id, 1).await;
    let log = server.log();
    let line = log.lines().find(|line| line.contains(&id)).expect("it was logged");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&line["target"], &line["fields"]["message"]), (&json!("tarn::slow"), &json!("slow query")), "{line}");
    assert_eq!((&line["fields"]["query"], &line["fields"]["outcome"]), (&json!(id), &json!("ok")), "{line}");
    assert!(line["fields"]["sql"].is_null(), "the text is in the log only if that is wanted: {line}");
    // The plan that the line leads to.
    let path = line["fields"]["plan"].as_str().expect("a plan").to_owned();
    let drawn = server.request(Method::GET, &path).send().await.expect("answers");
    assert_eq!(drawn.headers()["content-type"], "image/svg+xml");
    assert!(drawn.text().await.expect("text").contains("AGGREGATE"));
    let listed = server.send(server.request(Method::GET, "/v1/tenants/default/marts/dev/slow")).await;
    let listed = listed.body["queries"].as_array().expect("a list").clone();
    let own = listed.iter().find(|query| query["query"] == json!(id)).expect("it is listed");
    assert_eq!((&own["kind"], &own["plan"]), (&json!("read"), &json!(path)), "{own}");
    assert!(own["sql"].as_str().expect("text").contains("range(30000000)"));
}
