//! The public API of a node, as far as activities need it.

mod dsn;

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Body, Client, Method, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::Value;

pub use dsn::Dsn;

use crate::definition::MartName;

const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Why a call did not do what it should.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// A code of the API, `unavailable` where no answer came.
    pub code: String,
    pub message: String,
    /// Whether the same call may go well later. One of unknown outcome is among them: its key finds out.
    pub passing: bool,
}

#[derive(Deserialize)]
struct Told {
    code: String,
    message: String,
    #[serde(default)]
    hint: String,
    retryable: bool,
    outcome: String,
}

impl Refusal {
    fn silent(error: &reqwest::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self { code: "unavailable".into(), message: text, passing: true }
    }

    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), passing: false }
    }
}

/// A node and who asks it.
#[derive(Clone)]
pub struct Tarn {
    http: Client,
    node: Arc<str>,
    token: Arc<str>,
    /// That of the DSN.
    mart: Option<MartName>,
}

impl Tarn {
    /// # Errors
    /// A file of authorities that can't be read.
    pub fn new(dsn: &Dsn) -> anyhow::Result<Self> {
        let mut builder = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .tcp_keepalive(Duration::from_secs(15))
            .pool_idle_timeout(Duration::from_secs(20));
        if let Some(file) = &dsn.ca_file {
            let pem = std::fs::read(file).map_err(|error| anyhow::anyhow!("`{}`: {error}", file.display()))?;
            builder = builder.tls_built_in_root_certs(false);
            for authority in reqwest::Certificate::from_pem_bundle(&pem)? {
                builder = builder.add_root_certificate(authority);
            }
        }
        let scheme = if dsn.tls { "https" } else { "http" };
        Ok(Self {
            http: builder.build()?,
            node: format!("{scheme}://{}", dsn.place).into(),
            token: dsn.token.as_str().into(),
            mart: dsn.mart.clone(),
        })
    }

    /// The mart that is meant.
    ///
    /// # Errors
    /// Neither the work nor the worker's DSN names one.
    pub fn mart(&self, wanted: Option<&MartName>) -> Result<MartName, Refusal> {
        let missing = || Refusal::new("invalid", "no mart: name one in the definition or in the worker's TARN_DSN");
        wanted.or(self.mart.as_ref()).cloned().ok_or_else(missing)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.node)).bearer_auth(&self.token)
    }

    /// JSON to a path and JSON back; an answer to a query has its `position` put in.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Value, Refusal> {
        let mut request = with(self.request(method, path), headers);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = answered(request).await?;
        let position = answer.headers().get("tarn-position").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut told: Value = answer.json().await.map_err(|error| Refusal::silent(&error))?;
        if let (Some(position), Value::Object(fields)) = (position, &mut told) {
            fields.entry("position").or_insert_with(|| position.into());
        }
        Ok(told)
    }

    /// A query's result as it comes, in the place of a table of the schema `main`; nothing of it is kept here.
    pub async fn copy(
        &self,
        (from, body, asking): Asked<'_>,
        (to, table, loading): Place<'_>,
    ) -> Result<Value, Refusal> {
        let read = self.request(Method::POST, &format!("{}/query", mart_path(from))).header("accept", ARROW).json(body);
        let answer = answered(with(read, asking)).await?;
        let load = self.request(Method::PUT, &format!("{}/tables/main/{table}?mode=replace", mart_path(to)));
        let load = load.header("content-type", ARROW).body(Body::wrap_stream(answer.bytes_stream()));
        answered(with(load, loading)).await?.json().await.map_err(|error| Refusal::silent(&error))
    }
}

type Headers<'a> = &'a [(&'a str, &'a str)];
/// The mart, the query's body, headers.
type Asked<'a> = (&'a MartName, &'a Value, Headers<'a>);
/// The mart, the table, headers.
type Place<'a> = (&'a MartName, &'a str, Headers<'a>);

fn with(mut request: RequestBuilder, headers: Headers<'_>) -> RequestBuilder {
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

/// `/v1/tenants/…/marts/…`.
pub fn mart_path(mart: &MartName) -> String {
    let (tenant, name) = mart.0.split_once('/').unwrap_or((&mart.0, ""));
    format!("/v1/tenants/{tenant}/marts/{name}")
}

async fn answered(request: RequestBuilder) -> Result<Response, Refusal> {
    let answer = request.send().await.map_err(|error| Refusal::silent(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = answer.text().await.map_err(|error| Refusal::silent(&error))?;
    Err(match serde_json::from_str::<Told>(&text) {
        Ok(told) => Refusal {
            passing: told.retryable || told.outcome == "unknown",
            message: if told.hint.is_empty() { told.message } else { format!("{} ({})", told.message, told.hint) },
            code: told.code,
        },
        // A proxy's own words.
        Err(_) => Refusal {
            code: "unavailable".into(),
            message: format!("the server answered {status}"),
            passing: status.is_server_error(),
        },
    })
}
