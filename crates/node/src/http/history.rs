//! A mart's past: `GET …/history`, and the names of moments in it.
//!
//! Handlers find the moment and give the order; the mart's own task carries it out.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use replica::history::Moment;
use replica::names::Snapshot;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Caller, Shared, json, mart_id, read_json};
use crate::auth::Principal;
use crate::clock;
use crate::error::{ApiError, Code};
use crate::names::MartId;
use crate::orders::{Order, give};
use crate::past::{parse_at, snapshot_name};

/// Moments that one answer lists at most; ask for an earlier span to see more.
const MOST_MOMENTS: usize = 10_000;
const MOST_BUCKETS: i64 = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Span {
    from: Option<String>,
    to: Option<String>,
    buckets: Option<i64>,
    limit: Option<usize>,
}

pub(super) async fn history(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    Query(span): Query<Span>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.role_in(&id)?;
    let past = app.past(&id).await?;
    let now = clock::now_us();
    let to = span.to.as_deref().map_or(Ok(now + 1), |text| clock::parse_rfc3339(text).ok_or_else(|| bad_time("to")))?;
    let from = span.from.as_deref().map_or(Ok(0), |text| clock::parse_rfc3339(text).ok_or_else(|| bad_time("from")))?;
    if let Some(buckets) = span.buckets {
        if !(1..=MOST_BUCKETS).contains(&buckets) || span.from.is_none() {
            return Err(ApiError::new(Code::Invalid, "`buckets` wants 1 to 10000, and `from`"));
        }
        return Ok(json(counts(&past.moments(from..to, usize::MAX).await?, from..to, buckets)));
    }
    if span.limit == Some(0) {
        return Err(ApiError::new(Code::Invalid, "`limit` wants 1 at least"));
    }
    let limit = span.limit.unwrap_or(1_000).min(MOST_MOMENTS);
    let mut moments = past.moments(from..to, limit + 1).await?;
    let more = moments.len() > limit;
    moments.drain(..moments.len().saturating_sub(limit));
    let listed: Vec<Value> = moments.iter().rev().map(describe_moment).collect();
    let snapshots: Vec<Value> =
        past.names().snapshots.iter().map(|(name, snapshot)| describe(name, snapshot)).collect();
    Ok(json(json!({ "moments": listed, "truncated": more, "snapshots": snapshots })))
}

fn describe_moment(moment: &Moment) -> Value {
    json!({
        "position": moment.position, "time": clock::rfc3339_us(moment.time_us), "what": moment.what, "bytes": moment.bytes,
    })
}

/// Commits and bytes per span of equal length.
fn counts(moments: &[Moment], span: std::ops::Range<i64>, buckets: i64) -> Value {
    let width = ((span.end - span.start) / buckets).max(1);
    let mut counted = vec![(0u64, 0u64); usize::try_from(buckets).unwrap_or_default()];
    for moment in moments.iter().filter(|moment| moment.what == replica::history::What::Commit) {
        let bucket = usize::try_from((moment.time_us - span.start) / width).unwrap_or_default();
        let last = counted.len() - 1;
        let (commits, bytes) = &mut counted[bucket.min(last)];
        (*commits, *bytes) = (*commits + 1, *bytes + moment.bytes);
    }
    let listed = counted.iter().enumerate().map(|(index, (commits, bytes))| {
        let from = span.start + width * i64::try_from(index).unwrap_or_default();
        json!({"from": clock::rfc3339_us(from), "commits": commits, "bytes": bytes})
    });
    json!({ "buckets": listed.collect::<Vec<_>>() })
}

fn describe(name: &str, snapshot: &Snapshot) -> Value {
    json!({
        "name": name,
        "position": snapshot.past.position,
        "time": clock::rfc3339_us(snapshot.past.time_us),
        "created": clock::rfc3339(snapshot.created_us),
        "automatic": snapshot.automatic,
    })
}

pub(super) async fn snapshots(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.role_in(&id)?;
    let past = app.past(&id).await?;
    let sizes = past.sizes().await?;
    let with_sizes = past.names().snapshots.iter().map(|(name, snapshot)| {
        let mut shown = describe(name, snapshot);
        if let Some(sizes) = sizes.get(name) {
            (shown["bytes"], shown["shared_bytes"]) = (json!(sizes.bytes), json!(sizes.shared_bytes));
        }
        shown
    });
    let mut listed: Vec<Value> = with_sizes.collect();
    listed.sort_by_key(|shown| shown["time"].as_str().map(ToOwned::to_owned));
    Ok(json(json!({ "snapshots": listed })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSnapshot {
    name: String,
    #[serde(default)]
    at: Option<String>,
}

pub(super) async fn snapshot(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    may_write(&caller, &id)?;
    let NewSnapshot { name, at } = read_json(body).await?;
    snapshot_name(&name)?;
    let earlier = match at {
        Some(at) => Some(app.past(&id).await?.find(&parse_at(&at)?).await?),
        None => None,
    };
    let named = app.name_moment(&id, name.clone(), earlier, false).await?;
    Ok(json(describe(&name, &named)))
}

pub(super) async fn delete_snapshot(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart, name)): Path<(String, String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    may_write(&caller, &id)?;
    let mart = app.mart(&id).await?;
    let shown = name.clone();
    give(mart.orders(), |reply| {
        let change = move |names: &mut replica::names::Names, _| {
            let gone = names.snapshots.remove(&name);
            gone.map(drop).ok_or_else(|| ApiError::new(Code::NotFound, "no snapshot has this name"))
        };
        Order::Names(Box::new(change), reply)
    })
    .await?;
    Ok(json(json!({"name": shown, "deleted": true})))
}

impl super::App {
    /// Names a moment; the newest if none is given.
    pub(crate) async fn name_moment(
        &self,
        id: &MartId,
        name: String,
        earlier: Option<replica::names::Past>,
        automatic: bool,
    ) -> Result<Snapshot, ApiError> {
        let mart = self.mart(id).await?;
        let wanted = name.clone();
        let own = self.past(id).await?.replica().owner().clone();
        let names = give(mart.orders(), |reply| {
            let change = move |names: &mut replica::names::Names, here: Option<replica::names::Past>| {
                let past = earlier.or(here).ok_or_else(nothing_yet)?;
                if !names.holds(&past, &own) {
                    return Err(gone());
                }
                if names.snapshots.contains_key(&wanted) {
                    return Err(ApiError::new(Code::Conflict, "a snapshot has this name already")
                        .hint("choose another name, or delete that one"));
                }
                if names.snapshots.len() >= replica::names::MAX_SNAPSHOTS {
                    return Err(ApiError::new(Code::Limited, "the mart has too many snapshots").hint("delete some"));
                }
                names.snapshots.insert(wanted, Snapshot { past, created_us: clock::now_us(), automatic });
                Ok(())
            };
            Order::Names(Box::new(change), reply)
        })
        .await?;
        let named = names.snapshots.get(&name).cloned();
        if let Some(named) = &named {
            self.metrics.snapshot_taken(id, named.created_us);
        }
        named.ok_or_else(|| ApiError::internal("a snapshot was named", "it is not there"))
    }
}

pub(super) fn may_write(caller: &Principal, id: &MartId) -> Result<(), ApiError> {
    match caller.role_in(id)? {
        engine::wire::Role::Reader => Err(ApiError::new(Code::Forbidden, "a reader can't change what is named")),
        _ => Ok(()),
    }
}

/// A moment that was swept between finding and holding it.
pub(super) fn gone() -> ApiError {
    ApiError::new(Code::NotFound, "the mart has no such moment any more")
}

pub(super) fn nothing_yet() -> ApiError {
    ApiError::new(Code::NotFound, "nothing has been written to this mart yet")
}

fn bad_time(field: &str) -> ApiError {
    ApiError::new(Code::Invalid, format!("`{field}` is not a time such as 2026-01-31T12:00:00Z"))
}
