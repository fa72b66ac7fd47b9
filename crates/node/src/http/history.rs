//! A mart's past: `GET …/history`, snapshots, restore, branches, vacuum.
//!
//! Handlers find the moment and give the order; the mart's own task carries it out.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use replica::history::Moment;
use replica::names::{Branch, Snapshot};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Caller, Shared, json, mart_id, read_json};
use crate::archive;
use crate::auth::Principal;
use crate::clock;
use crate::control::{Ancestor, MartEntry};
use crate::error::{ApiError, Code};
use crate::names::{Mart, MartId};
use crate::orders::{Order, Swap, Swapped, give, refused};
use crate::past::{parse_at, snapshot_name};
use crate::scratch;

/// Moments that one answer lists at most; ask for an earlier span to see more.
const MOST_MOMENTS: usize = 10_000;
const MOST_BUCKETS: i64 = 10_000;
const DAY_US: i64 = 24 * 3600 * 1_000_000;
const MOST_DAYS: f64 = 36_500.0;

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
    caller.role_in(&id.tenant)?;
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
    let limit = span.limit.unwrap_or(1_000).clamp(1, MOST_MOMENTS);
    let mut moments = past.moments(from..to, limit).await?;
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
    caller.role_in(&id.tenant)?;
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restore {
    at: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    expected_position: Option<replica::Position>,
}

pub(super) async fn restore(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id.tenant)?;
    let Restore { at, dry_run, expected_position } = read_json(body).await?;
    let at = parse_at(&at)?;
    let past = app.past(&id).await?;
    let target = past.find(&at).await?;
    if dry_run {
        let now = past.now().await?;
        if expected_position.is_some_and(|expected| expected != now.position) {
            return Err(ApiError::new(Code::Conflict, format!("the mart is at {}", now.position)));
        }
        let tables = scratch::compare(&app.config.state_dir, &past, &now, &target).await?;
        return Ok(json(json!({"restores": target.position, "position": now.position, "tables": tables})));
    }
    let mart = app.mart(&id).await?;
    // Another node may have it: then nothing is fetched here.
    mart.live().await?;
    let root = app.marts.ground().mart_dir(&id);
    let moment = target.position;
    let prepared = past.replica().prepare(&root, target).await.map_err(|error| refused(&error))?;
    let swap = |reply| Order::Swap(Swap::Back { prepared: Box::new(prepared), expected: expected_position, reply });
    let done = give(mart.orders(), swap).await?;
    Ok(json(json!({"restored": moment, "before": done.before, "position": done.after})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBranch {
    name: Mart,
    #[serde(default)]
    at: Option<String>,
}

pub(super) async fn branch(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id.tenant)?;
    let NewBranch { name, at } = read_json(body).await?;
    let child = MartId { tenant: id.tenant.clone(), mart: name };
    app.may_create(&child, false)?;
    let past = app.past(&id).await?;
    let wanted = match at {
        Some(at) => Some(past.find(&parse_at(&at)?).await?),
        None => None,
    };
    let state = app.control.state();
    let parent = state.mart(&id).ok_or_else(|| super::not_found(&id))?;
    let mut ancestors = parent.ancestors.clone();
    ancestors.push(Ancestor { mart: id.mart.clone(), incarnation: parent.incarnation });
    let entry = MartEntry { incarnation: Uuid::new_v4(), created_us: clock::now_us(), ancestors };
    let ground = app.marts.ground();
    let replica = ground.replica(&child, entry.incarnation)?;
    let open = app.mart(&id).await?;
    // The parent holds the moment before anybody builds on it.
    let owner = replica.owner().clone();
    let names = give(open.orders(), |reply| {
        let change = move |names: &mut replica::names::Names, here: Option<replica::names::Past>| {
            let past = wanted.or(here).ok_or_else(nothing_yet)?;
            past_is_kept(names, &past)?;
            names.branches.push(Branch { child: owner, created_us: clock::now_us(), past });
            Ok(())
        };
        Order::Names(Box::new(change), reply)
    })
    .await?;
    let held = names.branches.iter().find(|branch| branch.child == *replica.owner());
    let held = held.ok_or_else(|| ApiError::internal("a branch was noted", "it is not there"))?;
    let node = app.marts.ground().cluster.name().to_string();
    let position = past.replica().branch(&held.past, &replica, &node).await.map_err(|error| refused(&error))?;
    app.add_mart(&child, entry, false).await?;
    Ok(json(json!({"name": child.mart, "parent": id.mart, "from": held.past.position, "position": position})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewArchive {
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    storage_class: Option<String>,
    #[serde(default)]
    older_than_days: Option<f64>,
}

pub(super) async fn archive(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    may_write(&caller, &id)?;
    let NewArchive { at, storage_class, older_than_days } = read_json(body).await?;
    let class = storage_class.as_deref();
    if class.is_some_and(|class| class.is_empty() || !class.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')) {
        return Err(ApiError::new(Code::Invalid, "`storage_class` is a name such as STANDARD_IA"));
    }
    let past = app.past(&id).await?;
    let ground = app.marts.ground();
    let made = match (at, older_than_days) {
        (Some(_), Some(_)) => {
            return Err(ApiError::new(Code::Invalid, "`at` and `older_than_days` exclude each other"));
        }
        (None, Some(days)) if days.is_finite() && days >= 0.0 => {
            archive::older_than(ground, &id, &past, (days * DAY_US as f64) as i64, class).await?
        }
        (None, Some(_)) => return Err(ApiError::new(Code::Invalid, "`older_than_days` is a number of days")),
        (at, None) => {
            let moment = match at {
                Some(at) => past.find(&parse_at(&at)?).await?,
                None => past.now().await?,
            };
            vec![archive::one(ground, &id, &past, &moment, class).await?]
        }
    };
    Ok(json(json!({ "archives": made })))
}

pub(super) async fn vacuum(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id.tenant)?;
    let mart = app.mart(&id).await?;
    let Swapped { before, after, compacted } = give(mart.orders(), |reply| Order::Swap(Swap::Vacuum { reply })).await?;
    let compacted = compacted.ok_or_else(|| ApiError::internal("a vacuum has figures", "none"))?;
    Ok(json(json!({
        "before": before,
        "position": after,
        "bytes_before": compacted.bytes_before,
        "bytes_after": compacted.bytes_after,
        "tables": compacted.tables,
        "rows": compacted.rows,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retention {
    days: Option<f64>,
}

/// `PUT …/retention`: how long every moment of this mart is kept; null is as everywhere.
pub(super) async fn retention(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id.tenant)?;
    let Retention { days } = read_json(body).await?;
    if days.is_some_and(|days| !days.is_finite() || !(0.0..=MOST_DAYS).contains(&days)) {
        return Err(ApiError::new(Code::Invalid, "`days` is a number from 0 to 36500, or null"));
    }
    let keep_us = days.map(|days| (days * DAY_US as f64) as i64);
    let mart = app.mart(&id).await?;
    give(mart.orders(), |reply| {
        let change = move |names: &mut replica::names::Names, _| {
            names.keep_us = keep_us;
            Ok(())
        };
        Order::Names(Box::new(change), reply)
    })
    .await?;
    let everywhere = app.config.upkeep.keep.as_secs_f64() / 86_400.0;
    Ok(json(json!({"days": days.unwrap_or(everywhere), "own": days.is_some()})))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct SweepRequest {
    #[serde(default)]
    dry_run: bool,
}

/// `POST …/sweep`: lets go what retention allows, or says what that would be.
pub(super) async fn sweep(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id.tenant)?;
    let SweepRequest { dry_run } = read_json(body).await?;
    app.sweep(&id, dry_run).await.map(json)
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
        let names = give(mart.orders(), |reply| {
            let change = move |names: &mut replica::names::Names, here: Option<replica::names::Past>| {
                let past = earlier.or(here).ok_or_else(nothing_yet)?;
                past_is_kept(names, &past)?;
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

    /// Lets go what retention allows, or plans it.
    pub(crate) async fn sweep(&self, id: &MartId, dry_run: bool) -> Result<Value, ApiError> {
        let past = self.past(id).await?;
        let ledger = past.ledger().await.map_err(|error| refused(&error))?;
        let us = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let terms = replica::ship::Terms {
            now_us: clock::now_us(),
            keep_us: us(self.config.upkeep.keep),
            grace_us: us(self.config.upkeep.grace),
        };
        let names = past.names();
        if dry_run {
            let horizon = terms.now_us - names.keep_us.unwrap_or(terms.keep_us);
            let plan = replica::retention::plan(&ledger, names, past.replica().owner(), horizon);
            return Ok(json!({
                "horizon": clock::rfc3339(horizon), "floor": plan.floor, "kept": plan.kept, "packs": plan.packs,
                "bytes": plan.bytes, "objects": plan.doomed, "unknown": past.unknown(&ledger).await.map_err(|e| refused(&e))?,
            }));
        }
        // Its own look reads nothing more.
        drop(past);
        self.release_branches(id).await?;
        let mart = self.mart(id).await?;
        let pins = self.marts.ground().pins.of(mart.incarnation());
        let swept = give(mart.orders(), |reply| Order::Sweep(ledger, terms, pins, reply)).await?;
        Ok(json!({
            "floor": swept.plan.floor, "let_go": swept.plan.doomed.len(), "packs": swept.plan.packs,
            "bytes": swept.plan.bytes, "deleted": swept.deleted,
        }))
    }

    /// Lets go moments that were held for marts that are gone, with all that descend from them.
    async fn release_branches(&self, id: &MartId) -> Result<(), ApiError> {
        self.control.refresh().await?;
        let state = self.control.state();
        let Some(tenant) = state.tenants.get(&id.tenant) else { return Ok(()) };
        let lives = tenant.marts.iter().flat_map(|(name, entry)| {
            let itself = (name.to_string(), entry.incarnation);
            entry.ancestors.iter().map(|a| (a.mart.to_string(), a.incarnation)).chain([itself])
        });
        let lives: std::collections::HashSet<_> = lives.collect();
        let mart = self.mart(id).await?;
        give(mart.orders(), |reply| {
            let change = move |names: &mut replica::names::Names, _| {
                // A branch that is being made is not known to the control store yet.
                let young = clock::now_us() - DAY_US;
                names.branches.retain(|branch| {
                    let child = (branch.child.mart.clone(), branch.child.incarnation);
                    branch.created_us > young || lives.contains(&child)
                });
                Ok(())
            };
            Order::Names(Box::new(change), reply)
        })
        .await?;
        Ok(())
    }
}

/// A moment may have been swept between finding and naming it.
fn past_is_kept(names: &replica::names::Names, past: &replica::names::Past) -> Result<(), ApiError> {
    let there = |slot: u64| slot >= names.floor || names.kept.iter().any(|(from, to)| (*from..=*to).contains(&slot));
    let own = past.route.iter().filter(|stretch| stretch.owner.is_none());
    match own.into_iter().all(|stretch| there(stretch.first) && there(stretch.last)) {
        true => Ok(()),
        false => Err(ApiError::new(Code::NotFound, "the mart has no such moment any more")),
    }
}

fn may_write(caller: &Principal, id: &MartId) -> Result<(), ApiError> {
    match caller.role_in(&id.tenant)? {
        engine::wire::Role::Reader => Err(ApiError::new(Code::Forbidden, "a reader can't change what is named")),
        _ => Ok(()),
    }
}

fn nothing_yet() -> ApiError {
    ApiError::new(Code::NotFound, "nothing has been written to this mart yet")
}

fn bad_time(field: &str) -> ApiError {
    ApiError::new(Code::Invalid, format!("`{field}` is not a time such as 2026-01-31T12:00:00Z"))
}
