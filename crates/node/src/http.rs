//! The public HTTP API: routes, and what every request goes through.
//!
//! Handlers check and translate; the work is done by `router`, `marts` and `control`. Errors get their request's id here.

mod catalog;
mod changes;
mod drain;
mod forward;
mod health;
mod history;
mod marts;
mod metrics;
mod openapi;
mod peers;
mod persist;
mod plan;
mod positions;
mod queries;
mod query;
mod sessions;
mod slow;
mod space;
mod tables;
mod tenants;
mod tokens;
mod verify;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::auth::{self, Principal};
use crate::error::{ApiError, Code};
use crate::names::{Mart, MartId, Tenant};

/// Bodies of requests other than table loads; SQL itself is limited to 256 KB by the engine, parameters may be long.
const MAX_BODY_BYTES: usize = 16 << 20;

pub use crate::app::App;
pub use crate::running::Running;
pub use metrics::open_routes as metrics_routes;

use crate::app::{no_tenant, not_found};

type Shared = Arc<App>;

/// All routes.
pub fn routes(app: Shared) -> Router {
    let forwarder = forward::Forwarder::new(app.clone());
    let of_marts = Router::new()
        .route("/v1/tenants/{tenant}/marts/{mart}/query", post(query::run))
        .route("/v1/tenants/{tenant}/marts/{mart}/queries", post(queries::submit))
        .route("/v1/tenants/{tenant}/marts/{mart}/plan", post(plan::plan))
        .route("/v1/tenants/{tenant}/marts/{mart}/sessions", post(sessions::open))
        .route("/v1/tenants/{tenant}/marts/{mart}/sessions/{session}", delete(sessions::close))
        .route("/v1/tenants/{tenant}/marts/{mart}/positions/{position}", get(positions::show))
        .route("/v1/tenants/{tenant}/marts/{mart}/catalog", get(catalog::show))
        .route("/v1/tenants/{tenant}/marts/{mart}/history", get(history::history))
        .route("/v1/tenants/{tenant}/marts/{mart}/snapshots", get(history::snapshots).post(history::snapshot))
        .route("/v1/tenants/{tenant}/marts/{mart}/snapshots/{name}", delete(history::delete_snapshot))
        .route("/v1/tenants/{tenant}/marts/{mart}/restore", post(changes::restore))
        .route("/v1/tenants/{tenant}/marts/{mart}/branches", post(changes::branch))
        .route("/v1/tenants/{tenant}/marts/{mart}/archives", post(space::archive))
        .route("/v1/tenants/{tenant}/marts/{mart}/vacuum", post(changes::vacuum))
        .route("/v1/tenants/{tenant}/marts/{mart}/persist", post(persist::run))
        .route("/v1/tenants/{tenant}/marts/{mart}/slow", get(slow::list))
        .route("/v1/tenants/{tenant}/marts/{mart}/slow/{query}/plan", get(slow::plan))
        .route("/v1/tenants/{tenant}/marts/{mart}/retention", put(space::retention))
        .route("/v1/tenants/{tenant}/marts/{mart}/sweep", post(space::sweep))
        .route_layer(from_fn_with_state(forwarder.clone(), forward::to_its_node));
    let loads = Router::new()
        .route("/v1/tenants/{tenant}/marts/{mart}/tables/{schema}/{table}", put(tables::load))
        .route_layer(from_fn_with_state(forwarder.clone(), forward::to_its_node))
        .route_layer(from_fn(drain::the_rest));
    let of_queries = Router::new()
        .route("/v1/queries/{id}", get(queries::show).delete(queries::delete))
        .route("/v1/queries/{id}/result", get(queries::result))
        .route_layer(from_fn_with_state(forwarder, peers::from_any_node));
    Router::new()
        .merge(of_marts)
        .merge(loads)
        .merge(of_queries)
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/openapi.json", get(openapi::show))
        .route("/metrics", get(metrics::show))
        .route("/v1/tenants", get(tenants::list).post(tenants::create))
        .route("/v1/tenants/{tenant}/marts", get(marts::list).post(marts::create))
        .route("/v1/tenants/{tenant}/marts/{mart}", get(marts::show).delete(marts::delete))
        .route("/v1/tenants/{tenant}/marts/{mart}/verify", post(verify::verify))
        .route("/v1/tenants/{tenant}/marts/{mart}/classify", post(plan::classify))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .fallback(|| async {
            ApiError::new(Code::NotFound, "no such path")
                .hint("a mart's calls lie under `/v1/tenants/{tenant}/marts/{mart}/`")
        })
        .method_not_allowed_fallback(|| async { ApiError::new(Code::Invalid, "this path does not take this method") })
        .layer(from_fn(with_request_id))
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// Writes the request's id into errors that do not have it yet.
async fn with_request_id(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if response.extensions().get::<forward::Answered>().is_some() {
        return response;
    }
    let own = response.extensions_mut().remove::<ApiError>();
    if own.is_none() && response.status().is_client_error() {
        // The framework's own refusals, such as a path that is not UTF-8.
        response = ApiError::new(Code::Invalid, "the request is malformed").into_response();
    }
    if let Some(error) = own.or_else(|| response.extensions_mut().remove::<ApiError>()) {
        let id =
            if error.request_id.is_empty() { crate::visit::id().to_string() } else { error.request_id.to_string() };
        let bytes = error.request_id(id).body();
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        *response.body_mut() = Body::from(bytes);
    }
    response
}

/// An authenticated principal.
struct Caller(Principal);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        auth::who(&parts.extensions).map(|principal| Caller(Principal::clone(&principal)))
    }
}

/// Names in a path, checked. A name that no mart can have is simply not found.
fn mart_id(tenant: &str, mart: &str) -> Result<MartId, ApiError> {
    let mart: Mart =
        mart.parse().map_err(|_| ApiError::new(Code::NotFound, "no such mart").hint("`tarn mart list` shows yours"))?;
    Ok(MartId { tenant: tenant_name(tenant)?, mart })
}

fn tenant_name(text: &str) -> Result<Tenant, ApiError> {
    text.parse().map_err(|_| ApiError::new(Code::NotFound, "no such tenant"))
}

/// A whole request body.
async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, MAX_BODY_BYTES).await.map_err(|error| {
        let too_large =
            std::error::Error::source(&error).is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        if too_large {
            ApiError::new(Code::TooLarge, format!("the body is over {MAX_BODY_BYTES} bytes"))
                .hint("load data with `PUT …/tables/{schema}/{table}` or from `s3://`")
        } else {
            ApiError::new(Code::Invalid, "the body ended before it was whole")
        }
    })
}

/// A JSON body.
async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = read_body(body).await?;
    parse_object(&bytes)
}

/// A JSON object. Serde would take an array as well, with the fields in the order of their declaration.
fn parse_object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    let bad = |what: String| ApiError::new(Code::Invalid, format!("the body is not the JSON that is wanted: {what}"));
    match bytes.trim_ascii_start().first() {
        Some(b'[') => Err(bad("an array where an object belongs".into())),
        _ => serde_json::from_slice(bytes).map_err(|error| bad(error.to_string())),
    }
}

/// A JSON answer.
fn json(value: serde_json::Value) -> Response {
    axum::Json(value).into_response()
}
