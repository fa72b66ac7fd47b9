//! `POST …/restore`, `…/branches`, `…/vacuum`: other files in a mart's place, and marts that begin as another was.
//!
//! Handlers find the moment and give the order; the mart's own task carries it out.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use replica::names::Branch;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::history::{gone, nothing_yet};
use super::{Caller, Shared, json, mart_id, read_json};
use crate::clock;
use crate::control::{Ancestor, MartEntry};
use crate::error::{ApiError, Code};
use crate::names::{Mart, MartId};
use crate::orders::{Order, Swap, Swapped, give, refused};
use crate::past::parse_at;
use crate::scratch;

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
    caller.require_admin_of(&id)?;
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
    caller.require_admin_of(&id)?;
    let NewBranch { name, at } = read_json(body).await?;
    let child = MartId { tenant: id.tenant.clone(), mart: name };
    // Whoever reaches one mart only can't make another.
    caller.role_in(&child)?;
    app.may_create(&child, false)?;
    let past = app.past(&id).await?;
    let wanted = match at {
        Some(at) => Some(past.find(&parse_at(&at)?).await?),
        None => None,
    };
    let state = app.control.state();
    let parent = state.mart(&id).ok_or_else(|| super::not_found(&id))?;
    let profile = parent.profile.clone();
    let mut ancestors = parent.ancestors.clone();
    ancestors.push(Ancestor { mart: id.mart.clone(), incarnation: parent.incarnation });
    let entry = MartEntry { incarnation: Uuid::new_v4(), created_us: clock::now_us(), profile, ancestors };
    let ground = app.marts.ground();
    let replica = ground.replica(&child, entry.incarnation)?;
    let open = app.mart(&id).await?;
    // The parent holds the moment before anybody builds on it.
    let (owner, own) = (replica.owner().clone(), past.replica().owner().clone());
    let names = give(open.orders(), |reply| {
        let change = move |names: &mut replica::names::Names, here: Option<replica::names::Past>| {
            let past = wanted.or(here).ok_or_else(nothing_yet)?;
            if !names.holds(&past, &own) {
                return Err(gone());
            }
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

pub(super) async fn vacuum(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id)?;
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
