//! `POST …/queries` runs a query without a client that waits; `GET /v1/queries/{id}` tells how far one is, `…/result` gives what came
//! of it, `DELETE` stops it or frees its result.
//!
//! `GET` and `DELETE` know queries that somebody waits for, too, while they run. Only its owner and the node's administrator learn that
//! a query exists.

mod work;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use engine::wire::{KEPT_TABLE, Progress, header};
use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use replica::Position;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::query::{self, query_id};
use super::{App, Caller, Shared, json, mart_id};
use crate::audit::Record;
use crate::clock;
use crate::door::Line;
use crate::error::{ApiError, Code};
use crate::jobs::{End, Job, Rows, State as JobState};
use crate::past::parse_at;
use crate::router::{self, Ask, DURABLE, Durability, POSITION};
use crate::running::unknown;
use crate::visit;
use crate::watcher::Landed;

/// A query that was asked to stop has done so within this time, as a rule.
const STOP_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

pub(super) async fn submit(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let id = query_id(&headers)?;
    let accepted = async {
        let mart = mart_id(&tenant, &mart)?;
        let checked = query::check(&app, &caller, mart.clone(), (id, &headers), body).await?;
        if checked.session.is_some() {
            return Err(ApiError::new(
                Code::Invalid,
                "a session's statements run one after another: `session` is for `…/query`",
            ));
        }
        // What is wrong with the names is said at once.
        match &checked.at {
            Some(at) => {
                parse_at(at)?;
                app.known(&mart).await?;
            }
            None => drop(app.mart(&mart).await?),
        }
        if app.running.knows(id) {
            return Err(ApiError::new(Code::Conflict, "a query with this id is running"));
        }
        let parts = app.clone();
        let line = visit::here().map(|visit| {
            // One that can't be had now will be missed: what runs was let in already.
            let place = app.audit.place().unwrap_or_default();
            Line::new(app.clone(), visit, Record::begin("query.run".into(), false), place)
        });
        app.jobs.submit(id, &caller.id, mart, move |job| async move {
            let end = work::run(parts, job, checked).await;
            if let Some(line) = line {
                line.end(outcome(&end), 0);
            }
            end
        })
    };
    let job = accepted.await.map_err(|error: ApiError| error.request_id(id))?;
    let mut answer = json(describe(&app, &job).await);
    *answer.status_mut() = StatusCode::ACCEPTED;
    let headers = answer.headers_mut();
    headers.insert(HeaderName::from_static(header::QUERY_ID), ascii(&id.to_string()));
    headers.insert(LOCATION, ascii(&format!("/v1/queries/{id}")));
    Ok(answer)
}

pub(super) async fn show(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parsed(&id)?;
    visit::runs(id);
    if let Some(job) = app.jobs.get(id, &caller) {
        return Ok(json(describe(&app, &job).await));
    }
    let Progress { progress, .. } = app.running.ask(&caller, id, Method::GET).await?;
    Ok(json(json!({"id": id, "state": "running", "progress": progress})))
}

pub(super) async fn delete(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = parsed(&id)?;
    visit::runs(id);
    let Some(job) = app.jobs.get(id, &caller) else {
        let _: serde::de::IgnoredAny = app.running.ask(&caller, id, Method::DELETE).await?;
        return Ok(json(json!({"id": id, "cancelled": true})));
    };
    if matches!(job.state(), JobState::Ended(_)) {
        app.jobs.forget(&job);
        return Ok(json(json!({"id": id, "deleted": true})));
    }
    job.cancel(STOP_WAIT).await;
    let mut told = describe(&app, &job).await;
    told["cancelled"] = json!(told["state"] == "cancelled");
    Ok(json(told))
}

/// A part of a result.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    offset: Option<u64>,
    limit: Option<u64>,
}

impl Page {
    /// The part of at most `most` rows.
    fn sql(self, most: Option<u64>) -> String {
        let from = self.offset.unwrap_or(0);
        let to = [self.limit.map(|limit| from.saturating_add(limit)), most].into_iter().flatten().min();
        // Rows are numbered as they were made.
        match (from, to) {
            (0, None) => format!("FROM {KEPT_TABLE}"),
            (_, None) => format!("FROM {KEPT_TABLE} WHERE rowid >= {from}"),
            (_, Some(to)) => format!("FROM {KEPT_TABLE} WHERE rowid >= {from} AND rowid < {to}"),
        }
    }
}

pub(super) async fn result(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = parsed(&id)?;
    let Query(page) = page.map_err(|rejection| {
        ApiError::new(Code::Invalid, format!("the query string is not what is wanted: {}", rejection.body_text()))
            .hint("`offset` and `limit` are numbers of rows")
    })?;
    let job = app.jobs.get(id, &caller).ok_or_else(unknown)?;
    visit::about(&job.mart);
    let JobState::Ended(ended) = job.state() else {
        return Err(ApiError::new(Code::Conflict, "the query is not done yet")
            .hint("ask `GET /v1/queries/{id}` until its state is `done`"));
    };
    job.touch();
    match &ended.end {
        End::Failed(error) | End::Cancelled(error) => Err(error.clone()),
        End::Answer(_) if page.offset.or(page.limit).is_some() => {
            Err(ApiError::new(Code::Invalid, "this result has no pages: only the rows of a lone query that reads have")
                .hint("leave out `offset` and `limit`"))
        }
        End::Answer(answer) => Ok((answer.headers.clone(), answer.body.clone()).into_response()),
        End::Rows(rows) => rows_of(&app, &job, rows, page, &headers).await,
    }
}

/// Rows from the engine's session, in the form that is asked for now.
async fn rows_of(app: &App, job: &Job, rows: &Rows, page: Page, headers: &HeaderMap) -> Result<Response, ApiError> {
    let gone = || {
        ApiError::new(Code::NotFound, "the result is gone: it ends with the mart's engine, or when nobody asks for it")
            .hint("run the query again")
    };
    let live = rows.engine().ok_or_else(gone)?;
    let mart = app.mart(&job.mart).await?;
    let profile = rows.profile.clone();
    let ask = Ask {
        path: "/query",
        id: query_id(headers)?,
        principal: rows.who.principal.clone(),
        role: rows.who.role,
        durability: Durability::Local,
        profile,
        timeout: app.config.query_timeout,
        headers: query::accept(headers)?.into_iter().collect(),
        reads_only: true,
    };
    // Without a page the answer says whether it is cut off, as it would have at once.
    let body = match (page.offset.or(page.limit), rows.most) {
        (None, Some(most)) => json!({"sql": page.sql(None), "max_rows": most, "session": rows.session}),
        (_, most) => json!({"sql": page.sql(most), "session": rows.session}),
    };
    let entry = app.admit(&ask, &job.mart, &live).await?;
    let mut answer = router::query(&mart, live, &ask, body.to_string().into(), app.config.durable_wait).await?;
    if answer.extensions().get::<ApiError>().is_some_and(|error| error.code == Code::NotFound) {
        return Err(gone());
    }
    if answer.status().is_success() {
        tell_moment(app, job, rows, answer.headers_mut());
    }
    Ok(answer.map(|body| entry.until_sent(body)))
}

/// The moment that the rows are of, not the one at which they are read again.
fn tell_moment(app: &App, job: &Job, rows: &Rows, headers: &mut HeaderMap) {
    for name in [POSITION, DURABLE] {
        headers.remove(&name);
    }
    if let Some(position) = rows.position {
        headers.insert(POSITION, ascii(&position.to_string()));
        headers.insert(DURABLE, HeaderValue::from_static(durable(app, job, rows.durable, position)));
    }
}

/// Where a position is by now.
fn durable(app: &App, job: &Job, before: bool, position: Position) -> &'static str {
    let now = || app.marts.get(&job.mart).is_some_and(|mart| mart.landed_now(Some(position)) == Landed::Durable);
    if before || now() { "object" } else { "local" }
}

async fn describe(app: &App, job: &Job) -> Value {
    let (mut state, mut progress, mut rows) = ("queued", Some(0.0), None);
    let mut more = Vec::new();
    match job.state() {
        JobState::Queued => {}
        JobState::Running(_) if let Some(position) = app.admission.position(&job.mart.tenant, job.id) => {
            more.push(("queue_position", json!(position)));
        }
        JobState::Running(since) => {
            state = "running";
            // Before it has reached its engine it is at its beginning; for all that can be told, otherwise, too.
            progress = app.running.progress(job.id).await.flatten().or(Some(0.0));
            more.push(("started", json!(clock::rfc3339(since))));
        }
        JobState::Ended(ended) => {
            (state, progress) = ("done", Some(1.0));
            more.extend(ended.started_us.map(|started| ("started", json!(clock::rfc3339(started)))));
            more.push(("finished", json!(clock::rfc3339(ended.finished_us))));
            match &ended.end {
                End::Rows(kept) => {
                    rows = Some(kept.rows);
                    if let Some(position) = kept.position {
                        more.push(("position", json!(position)));
                        more.push(("durable", json!(durable(app, job, kept.durable, position))));
                    }
                }
                End::Answer(answer) => {
                    let text = |name: &str| answer.headers.get(name)?.to_str().ok();
                    rows = text(header::CHANGED_ROWS).and_then(|text| text.parse().ok());
                    more.extend(text(POSITION.as_str()).map(|position| ("position", json!(position))));
                    more.extend(text(DURABLE.as_str()).map(|durable| ("durable", json!(durable))));
                }
                End::Failed(error) => {
                    (state, progress) = ("failed", None);
                    more.push(("error", json!(error)));
                }
                End::Cancelled(error) => {
                    (state, progress) = ("cancelled", None);
                    more.push(("error", json!(error)));
                }
            }
        }
    }
    let mut told = json!({
        "id": job.id, "state": state, "progress": progress, "rows": rows, "submitted": clock::rfc3339(job.submitted_us),
    });
    for (name, value) in more {
        told[name] = value;
    }
    told
}

/// The audit log's word for it.
fn outcome(end: &End) -> String {
    match end {
        End::Rows(_) | End::Answer(_) => "ok".into(),
        End::Failed(error) | End::Cancelled(error) => error.code.word(),
    }
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("ids and positions are visible ASCII")
}

fn parsed(id: &str) -> Result<Uuid, ApiError> {
    id.parse().map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_range_of_rows() {
        let sql = |offset, limit, most| Page { offset, limit }.sql(most).replace(KEPT_TABLE, "t");
        assert_eq!(sql(None, None, None), "FROM t");
        assert_eq!(sql(Some(7), None, None), "FROM t WHERE rowid >= 7");
        assert_eq!(sql(None, Some(5), None), "FROM t WHERE rowid >= 0 AND rowid < 5");
        assert_eq!(sql(Some(7), Some(0), None), "FROM t WHERE rowid >= 7 AND rowid < 7");
        assert_eq!(sql(Some(7), Some(5), Some(9)), "FROM t WHERE rowid >= 7 AND rowid < 9");
        assert_eq!(sql(Some(1), Some(u64::MAX), None), format!("FROM t WHERE rowid >= 1 AND rowid < {}", u64::MAX));
    }
}
