//! `PUT …/retention`, `POST …/sweep`, `…/archives`: how long a mart's past is kept, letting go of it, and keeping some of it elsewhere.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::history::may_write;
use super::{App, Caller, Shared, json, mart_id, read_json};
use crate::archive;
use crate::clock;
use crate::error::{ApiError, Code};
use crate::names::MartId;
use crate::orders::{Order, give, refused};
use crate::past::parse_at;

const DAY_US: i64 = 24 * 3600 * 1_000_000;
const MOST_DAYS: f64 = 36_500.0;

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retention {
    // Null is said, not left out.
    #[serde(deserialize_with = "Option::deserialize")]
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
    caller.require_admin_of(&id)?;
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
    caller.require_admin_of(&id)?;
    let SweepRequest { dry_run } = read_json(body).await?;
    app.sweep(&id, dry_run).await.map(json)
}

impl App {
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
        let lives: HashSet<_> = lives.collect();
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
