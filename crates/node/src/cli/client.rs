//! Requests of the command line to a node, and what a refusal looks like in a terminal.

use std::fmt;

use anyhow::{Context, anyhow};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::dsn::Dsn;
use crate::error::ApiError;

/// A node to talk to.
pub(super) struct Client {
    http: reqwest::Client,
    dsn: Dsn,
}

impl Client {
    /// Trusts the machine's authorities and, if `TARN_CA_FILE` names a file, those in it.
    pub(super) fn new(dsn: Dsn) -> anyhow::Result<Self> {
        let mut http = reqwest::Client::builder();
        if let Some(path) = &dsn.ca_file {
            let wrong = || format!("`TARN_CA_FILE`: `{path}` can't be used");
            let pem = std::fs::read(path).with_context(wrong)?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem).with_context(wrong)? {
                http = http.add_root_certificate(certificate);
            }
        }
        Ok(Self { http: http.build().context("can't make a client")?, dsn })
    }

    pub(super) fn dsn(&self) -> &Dsn {
        &self.dsn
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.dsn.base_url()));
        if let Some(profile) = &self.dsn.profile {
            request = request.header(crate::app::PROFILE, profile);
        }
        match &self.dsn.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends, and makes an error of everything that is not a success.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| unreachable(&self.dsn, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let Ok(error) = serde_json::from_slice::<ApiError>(&body) else {
            return Err(anyhow!("the server answered {status}"));
        };
        Err(Refused(error).into())
    }

    pub(super) async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        self.send(request).await?.json().await.context("the server's answer is not JSON")
    }
}

/// The server's refusal.
#[derive(Debug, thiserror::Error)]
pub(super) struct Refused(pub(super) ApiError);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = &self.0;
        if let Some(index) = error.statement_index {
            write!(f, "statement {}: ", index + 1)?;
        }
        f.write_str(&error.message)?;
        if error.hint.is_empty() { Ok(()) } else { write!(f, "\nhint: {}", error.hint) }
    }
}

fn unreachable(dsn: &Dsn, error: &reqwest::Error) -> anyhow::Error {
    if error.is_connect() {
        return anyhow!("can't connect to {}; is `tarn serve` running there?", dsn.host);
    }
    anyhow!(
        "the request to {} failed: {}",
        dsn.host,
        std::error::Error::source(error).map_or_else(|| "no answer".into(), ToString::to_string)
    )
}

/// Runs a command's future.
pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    runtime()?.block_on(work)
}

pub(super) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start")
}
