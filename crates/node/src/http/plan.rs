//! `POST …/plan`: how DuckDB would run a statement, or with `analyze` how it did; `POST …/classify`: what a script's statements are.
//!
//! A plan is asked of the engine as any query is: under the caller's role, in line, with a deadline. `analyze` runs the statement, and a
//! write that is analysed is a write.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use engine::sql;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::query::{self, Made, query_id};
use super::{Caller, Shared, json, mart_id, parse_object, read_body, read_json};
use crate::error::{ApiError, Code};
use crate::plan::{Format, explain};

/// As the body of `…/query`, as far as a plan depends on it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanBody<'a> {
    #[serde(borrow)]
    sql: Cow<'a, str>,
    /// Run it, and say how long each operator took.
    #[serde(default)]
    analyze: bool,
    #[serde(default)]
    format: Format,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(borrow, default)]
    at: Option<Cow<'a, str>>,
    #[serde(default)]
    session: Option<Uuid>,
}

pub(super) async fn plan(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = query_id(&headers)?;
    let planned = async {
        let mart = mart_id(&tenant, &mart)?;
        let body = read_body(body).await?;
        let asked: PlanBody = parse_object(&body)?;
        let sql = explain(&asked.sql, asked.analyze, asked.format)?;
        let PlanBody { params, timeout_ms, session, .. } = asked;
        let made = Made { sql: &sql, params, timeout_ms, at: asked.at.as_deref(), session };
        let (mut head, rows) = query::rows(&app, &caller, mart, (id, &headers), &made).await?;
        let last = rows.last().and_then(|row| row.last()?.as_str());
        let plan = last.ok_or_else(|| ApiError::internal("a plan's answer has no plan", "no rows"))?;
        let written = asked.format.write(plan.to_owned())?;
        head.headers.remove(CONTENT_LENGTH);
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(asked.format.content_type()));
        Ok(Response::from_parts(head, Body::from(written)))
    };
    planned.await.map_err(|error: ApiError| error.request_id(id))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassifyBody {
    sql: String,
}

pub(super) async fn classify(
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    caller.role_in(&mart_id(&tenant, &mart)?)?;
    let ClassifyBody { sql } = read_json(body).await?;
    let statements = sql::split(&sql).map_err(|error| ApiError::new(Code::Sql, error.to_string()))?;
    let told = statements.iter().map(|statement| {
        let sql::Statement { kind, span, .. } = statement;
        json!({"kind": kind.label(), "start": span.start, "end": span.end})
    });
    Ok(json(json!({ "statements": told.collect::<Vec<_>>() })))
}
