//! `GET …/slow`: the slowest queries of a mart on this node; `GET …/slow/{query}/plan`: how DuckDB ran one. And how they come there.
//!
//! They show SQL of everybody who uses the mart, so they are for its administrators.

use std::sync::{Arc, OnceLock};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query as Parameters, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::query::{self, Made};
use super::{App, Caller, Shared, json, mart_id};
use crate::audit::Record;
use crate::clock;
use crate::config::AuditSql;
use crate::error::{ApiError, Code};
use crate::plan::{Format, explain};
use crate::slow::Query;
use crate::visit;

/// A longer plan is not kept.
const MOST_PLAN_BYTES: usize = 256 << 10;

pub(super) async fn list(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id)?;
    app.known(&id).await?;
    let listed = app.slow.of(&id).into_iter().map(|query| {
        let plan = matches!(query.plan.get(), Some(Ok(_))).then(|| plan_path(&tenant, &mart, query.id));
        json!({
            "query": query.id, "sender": query.sender, "kind": query.kind, "outcome": query.outcome,
            "began": clock::rfc3339_us(query.began_us), "seconds": query.took.as_secs_f64(), "sql": query.sql, "plan": plan,
        })
    });
    Ok(json(json!({ "queries": listed.collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// SVG if none is named.
    format: Option<Format>,
}

pub(super) async fn plan(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart, query)): Path<(String, String, Uuid)>,
    wanted: Result<Parameters<Wanted>, QueryRejection>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id)?;
    app.known(&id).await?;
    let format = match wanted.map_err(|error| ApiError::new(Code::Invalid, error.body_text()))?.0.format {
        None | Some(Format::Svg) => Format::Svg,
        Some(Format::Json) => Format::Json,
        Some(_) => return Err(ApiError::new(Code::Invalid, "the plans of slow queries are there as `svg` and `json`")),
    };
    let found = app.slow.of(&id).into_iter().find(|one| one.id == query);
    let kept = found.ok_or_else(|| ApiError::new(Code::NotFound, "no such slow query").hint("`…/slow` lists them"))?;
    match kept.plan.get() {
        Some(Ok(plan)) => Ok(([(CONTENT_TYPE, format.content_type())], format.write(plan.clone())?).into_response()),
        Some(Err(why)) => Err(ApiError::new(Code::NotFound, format!("this query has no plan: {why}"))),
        None => Err(ApiError::new(Code::NotFound, "its plan is not made yet").hint("try again in a moment")),
    }
}

fn plan_path(tenant: &str, mart: &str, id: Uuid) -> String {
    format!("/v1/tenants/{tenant}/marts/{mart}/slow/{id}/plan")
}

impl App {
    /// A query has ended: if it was slow it is written down, with its plan if it is among the slowest.
    pub(crate) fn look_at(self: &Arc<Self>, record: &Record) {
        let Some((mart, kind, took)) = record.query().filter(|(_, _, took)| self.slow.is_slow(*took)) else { return };
        let noted = record.noted();
        let (Some(asked), Some(principal), Some(id)) = (noted.asked.clone(), noted.principal.clone(), noted.query)
        else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let sender = if principal.name.is_empty() { principal.id.clone() } else { principal.name.clone() };
        let query = Arc::new(Query {
            id,
            sender,
            kind,
            outcome: record.outcome.clone(),
            began_us: record.began_us(),
            took,
            sql: visit::shown(&asked.sql),
            plan: OnceLock::new(),
        });
        let kept = self.slow.keep(mart, &query);
        let (app, mart) = (self.clone(), mart.clone());
        runtime.spawn(async move {
            if kept {
                let made = async {
                    let sql = explain(&asked.sql, false, Format::Json)?;
                    let made = Made {
                        sql: &sql,
                        params: asked.params.as_deref(),
                        timeout_ms: None,
                        at: asked.at.as_deref(),
                        session: None,
                    };
                    let own = (Uuid::new_v4(), &HeaderMap::new());
                    let (_, rows) = query::rows(&app, &principal, mart.clone(), own, &made).await?;
                    let plan = rows.last().and_then(|row| row.last()?.as_str());
                    match plan.ok_or_else(|| ApiError::internal("a plan's answer has no plan", "no rows"))? {
                        plan if plan.len() > MOST_PLAN_BYTES => {
                            Err(ApiError::new(Code::TooLarge, "it is too large to keep"))
                        }
                        plan => Ok(plan.to_owned()),
                    }
                };
                let made = made.await.map_err(|error: ApiError| error.message.to_string());
                // Nobody else fills it.
                let _ = query.plan.set(made);
            }
            let plan = matches!(query.plan.get(), Some(Ok(_)))
                .then(|| plan_path(mart.tenant.as_str(), mart.mart.as_str(), query.id));
            let text = (app.config.audit.sql == AuditSql::Text).then_some(query.sql.as_str());
            tracing::warn!(
                target: "tarn::slow",
                query = %query.id, mart = %mart, sender = query.sender, kind = query.kind, outcome = query.outcome,
                seconds = query.took.as_secs_f64(), plan, sql = text, "slow query"
            );
        });
    }
}
