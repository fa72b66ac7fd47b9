//! `/openapi.json`: what there is to call, for people and for tools that make clients and tests of it.
//!
//! Written by hand beside the routes; tests hold it against them, and against a running node.

mod schemas;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use schemas::{of, schemas};

const MART: &str = "/v1/tenants/{tenant}/marts/{mart}";
const FORMATS: [&str; 4] =
    ["application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"];
/// Refusals that any call may answer with.
const REFUSALS: [u16; 12] = [400, 401, 403, 404, 409, 413, 422, 429, 499, 500, 503, 504];

pub(super) async fn show() -> Response {
    ([(CONTENT_TYPE, "application/json")], document().to_string()).into_response()
}

/// One call.
struct Call {
    method: &'static str,
    path: String,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Map<String, Value>,
    is_open: bool,
}

impl Call {
    /// `~` stands for a mart's path.
    fn new(method: &'static str, path: &str, summary: &'static str) -> Self {
        let path = path.replacen('~', MART, 1);
        let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters = named.map(of_path).collect();
        Self { method, path, summary, parameters, body: None, answers: Map::new(), is_open: false }
    }

    /// JSON that it takes.
    fn takes(mut self, schema: &str) -> Self {
        self.body = Some(json!({"required": true, "content": {"application/json": {"schema": of(schema)}}}));
        self
    }

    /// A parameter of the query string or a header.
    fn with(mut self, place: &str, name: &str, schema: Value) -> Self {
        self.parameters.push(json!({"in": place, "name": name, "schema": schema}));
        self
    }

    /// JSON that it answers with.
    fn gives(self, status: u16, what: &str, schema: &str) -> Self {
        self.answers(status, what, json!({"application/json": {"schema": of(schema)}}))
    }

    fn answers(mut self, status: u16, what: &str, content: Value) -> Self {
        self.answers.insert(status.to_string(), json!({"description": what, "content": content}));
        self
    }

    /// To whoever can connect.
    fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    fn written(mut self) -> (String, &'static str, Value) {
        for status in REFUSALS {
            let refusal = json!({"$ref": "#/components/responses/Refusal"});
            self.answers.entry(status.to_string()).or_insert(refusal);
        }
        let mut told = json!({"summary": self.summary, "responses": self.answers});
        if !self.parameters.is_empty() {
            for parameter in &mut self.parameters {
                if parameter["in"] == "path" || parameter["name"] == "mode" {
                    parameter["required"] = json!(true);
                }
            }
            told["parameters"] = json!(self.parameters);
        }
        if let Some(body) = self.body {
            told["requestBody"] = body;
        }
        if self.is_open {
            told["security"] = json!([]);
        }
        (self.path, self.method, told)
    }
}

fn of_path(name: &str) -> Value {
    let schema = match name {
        "tenant" | "mart" => of("Name"),
        "position" => of("Position"),
        "id" | "session" | "query" => json!({"type": "string", "format": "uuid"}),
        _ => json!({"type": "string", "minLength": 1}),
    };
    json!({"in": "path", "name": name, "schema": schema})
}

/// A result in any of its formats.
fn result() -> Value {
    let mut content = json!({"application/json": {"schema": of("Result")}});
    for format in FORMATS {
        content[format] = json!({"schema": {"type": "string", "format": "binary"}});
    }
    content
}

fn text(name: &str) -> Value {
    json!({ name: {"schema": {"type": "string"}} })
}

fn of_sql() -> Vec<Call> {
    let uuid = || json!({"type": "string", "format": "uuid"});
    let profile = || json!({"type": "string"});
    let plan =
        |format: &str| json!({"schema": if format.ends_with("json") { json!({}) } else { json!({"type": "string"}) }});
    let plans = ["text/plain", "application/json", "image/svg+xml", "text/vnd.graphviz"];
    let plans: Map<String, Value> = plans.iter().map(|format| ((*format).to_owned(), plan(format))).collect();
    let moment = || json!({"type": "string"});
    vec![
        Call::new(
            "post",
            "~/query",
            "Run a statement or a script; the answer is the last result, in the format of `Accept`.",
        )
        .with("header", "Idempotency-Key", json!({"type": "string", "minLength": 1, "maxLength": 200}))
        .with("header", "tarn-query-id", uuid())
        .with("header", "tarn-profile", profile())
        .takes("Query")
        .answers(200, "the result", result()),
        Call::new("post", "~/queries", "Run a query that nobody waits for.")
            .with("header", "Idempotency-Key", json!({"type": "string", "minLength": 1, "maxLength": 200}))
            .with("header", "tarn-query-id", uuid())
            .with("header", "tarn-profile", profile())
            .takes("Query")
            .gives(202, "it runs, or waits for its turn", "Job"),
        Call::new("get", "/v1/queries/{id}", "How far a query is.").gives(200, "its state", "Job"),
        Call::new("delete", "/v1/queries/{id}", "Cancel a query, or forget one that is over.")
            .gives(200, "done", "Anything"),
        Call::new("get", "/v1/queries/{id}/result", "The result of a query that is over, or some of its rows.")
            .with("query", "offset", json!({"type": "integer", "minimum": 0}))
            .with("query", "limit", json!({"type": "integer", "minimum": 0}))
            .answers(200, "the result", result()),
        Call::new("post", "~/plan", "How DuckDB would run a statement, or, with `analyze`, did.")
            .takes("Plan")
            .answers(200, "the plan", json!(plans)),
        Call::new("post", "~/persist", "A query's result into a table of Postgres: all of it, or nothing.")
            .with("header", "tarn-query-id", uuid())
            .with("header", "tarn-profile", profile())
            .takes("Persist")
            .gives(200, "it is there", "Persisted"),
        Call::new("post", "~/classify", "Which statements a script has, and what kind each is.").takes("Sql").gives(
            200,
            "the statements",
            "Statements",
        ),
        Call::new("post", "~/sessions", "Open a connection of one's own.").gives(200, "it is open", "Session"),
        Call::new("delete", "~/sessions/{session}", "Close it.").gives(200, "it is closed", "Anything"),
        Call::new("put", "~/tables/{schema}/{table}", "Load the rows of the body: all, or none.")
            .with("query", "mode", json!({"enum": ["create", "append", "replace", "upsert"]}))
            .with("query", "key", json!({"type": "string"}))
            .with("query", "durability", json!({"enum": ["object", "local"]}))
            .with("query", "timeout_ms", json!({"type": "integer", "minimum": 0}))
            .with("header", "Idempotency-Key", json!({"type": "string", "minLength": 1, "maxLength": 200}))
            .rows()
            .gives(200, "the rows are there", "Loaded"),
        Call::new("get", "~/catalog", "Schemas, tables, views and their columns.").with("query", "at", moment()).gives(
            200,
            "the catalog",
            "Catalog",
        ),
        Call::new("get", "~/slow", "The slowest queries of the mart on its node, for its administrators.").gives(
            200,
            "the queries",
            "SlowQueries",
        ),
        Call::new("get", "~/slow/{query}/plan", "How DuckDB ran one of them.")
            .with("query", "format", json!({"enum": ["svg", "json"]}))
            .answers(
                200,
                "the plan",
                json!({"image/svg+xml": {"schema": {"type": "string"}}, "application/json": {"schema": {}}}),
            ),
        Call::new("get", "~/positions/{position}", "Whether a commit is in the object store.")
            .with("query", "wait_ms", json!({"type": "integer", "minimum": 0}))
            .gives(200, "where it is", "Durable"),
    ]
}

impl Call {
    /// Rows that it takes, in any format of loads.
    fn rows(mut self) -> Self {
        let content: Map<String, Value> = FORMATS
            .iter()
            .map(|format| ((*format).to_owned(), json!({"schema": {"type": "string", "format": "binary"}})))
            .collect();
        self.body = Some(json!({"required": true, "content": content}));
        self
    }
}

fn of_history() -> Vec<Call> {
    let time = || json!({"type": "string", "format": "date-time"});
    vec![
        Call::new("get", "~/history", "Commits and what else happened, newest first; or counts per bucket of time.")
            .with("query", "from", time())
            .with("query", "to", time())
            .with("query", "buckets", json!({"type": "integer", "minimum": 1, "maximum": 10_000}))
            .with("query", "limit", json!({"type": "integer", "minimum": 1}))
            .gives(200, "the moments", "Anything"),
        Call::new("get", "~/snapshots", "Named moments.").gives(200, "the snapshots", "Snapshots"),
        Call::new("post", "~/snapshots", "Name a moment, by default the newest.").takes("NewSnapshot").gives(
            200,
            "it has its name",
            "Snapshot",
        ),
        Call::new("delete", "~/snapshots/{name}", "Forget the name of a moment.").gives(200, "forgotten", "Anything"),
        Call::new("post", "~/restore", "Make the mart what it was; `dry_run` says what that would change.")
            .takes("Restore")
            .gives(200, "done, or what it would do", "Anything"),
        Call::new("post", "~/branches", "Make a mart that begins as this one is, or was.").takes("NewBranch").gives(
            200,
            "it is there",
            "Branch",
        ),
        Call::new("post", "~/archives", "Write a plain DuckDB file of a moment into the tenant's bucket.")
            .takes("NewArchive")
            .gives(200, "what was written", "Archives"),
        Call::new("post", "~/vacuum", "Rewrite the mart's file without its free space.").gives(200, "done", "Vacuumed"),
        Call::new("put", "~/retention", "How long every moment of this mart is kept.").takes("Retention").gives(
            200,
            "what holds now",
            "Anything",
        ),
        Call::new("post", "~/sweep", "Let go what is kept no longer; `dry_run` says what that is.")
            .takes("Sweep")
            .gives(200, "done, or what it would do", "Anything"),
        Call::new("post", "~/verify", "Read the replica back from the object store.").takes("Verify").gives(
            200,
            "what was found",
            "Anything",
        ),
    ]
}

fn of_administration() -> Vec<Call> {
    vec![
        Call::new("get", "/v1/tenants", "Tenants that the token reaches.").gives(200, "the tenants", "Tenants"),
        Call::new("post", "/v1/tenants", "Make a tenant.").takes("NewTenant").gives(200, "it is there", "Tenant"),
        Call::new("get", "/v1/tenants/{tenant}/marts", "Marts of a tenant that the token reaches.").gives(
            200,
            "the marts",
            "Marts",
        ),
        Call::new("post", "/v1/tenants/{tenant}/marts", "Make a mart.").takes("NewMart").gives(
            200,
            "it is there",
            "Mart",
        ),
        Call::new("get", "~", "One mart.").gives(200, "the mart", "Mart"),
        Call::new("delete", "~", "Drop a mart.").gives(200, "it is gone", "Anything"),
        Call::new("get", "/v1/tokens", "Tokens that the caller may manage.").gives(200, "the tokens", "Tokens"),
        Call::new("post", "/v1/tokens", "Make a token; its text is in this answer and never again.")
            .takes("NewToken")
            .gives(200, "the token", "Token"),
        Call::new("delete", "/v1/tokens/{id}", "Revoke a token, on every node within 2 s.")
            .gives(200, "revoked", "Anything"),
        Call::new("get", "/healthz", "Whether the process lives.").open().answers(200, "it does", text("text/plain")),
        Call::new("get", "/readyz", "Whether it takes requests.").open().answers(200, "it does", text("text/plain")),
        Call::new("get", "/openapi.json", "This.").open().gives(200, "this", "Anything"),
        Call::new("get", "/metrics", "Prometheus' text format, for the node's administrator.").answers(
            200,
            "the metrics",
            text("text/plain"),
        ),
    ]
}

fn document() -> Value {
    let mut paths = json!({});
    for call in of_sql().into_iter().chain(of_history()).chain(of_administration()) {
        let (path, method, told) = call.written();
        paths[path][method] = told;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tarn",
            "summary": "DuckDB as an analytics server whose home is object storage",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Refusal": {"description": "a refusal", "content": {"application/json": {"schema": of("Error")}}},
            },
            "schemas": schemas(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_told_and_nothing_else_is() {
        let source = include_str!("../http.rs");
        let mut routed = Vec::new();
        for line in source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
            let (path, handlers) = line.split_once("\", ").expect("a path and its handlers");
            for method in ["get", "post", "put", "delete"] {
                if handlers.starts_with(&format!("{method}(")) || handlers.contains(&format!(".{method}(")) {
                    routed.push(format!("{method} {path}"));
                }
            }
        }
        let document = document();
        let paths = document["paths"].as_object().expect("an object");
        let methods = |(path, calls): (&String, &Value)| {
            let calls = calls.as_object().expect("an object");
            calls.keys().map(|method| format!("{method} {path}")).collect::<Vec<_>>()
        };
        let mut told: Vec<String> = paths.iter().flat_map(methods).collect();
        routed.sort();
        told.sort();
        assert!(routed.len() > 30, "{routed:?}");
        assert_eq!(told, routed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for rest in text.split("\"$ref\":\"#").skip(1) {
            let pointer = rest.split('"').next().expect("the reference ends");
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
