//! Upkeep of marts that nobody uses: they are opened for it, as by a request.
//!
//! A mart is its last writer's to look after. Another node that opened it would have it then, and clients that know only the first would find it
//! gone; so another one does it only when the first gives no signs of life and the mart has not been looked after for two periods.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use super::due::{Job, overdue};
use super::look_after;
use crate::app::App;
use crate::clock;
use crate::cluster::Look;
use crate::error::ApiError;
use crate::names::MartId;
use crate::orders::refused;

/// One that is another's, or could not be looked after, is looked at again after so long.
const AGAIN: Duration = Duration::from_secs(600);
/// So many are looked at in a turn, each with a few reads of the store, until one is opened.
const A_TURN: usize = 32;

/// When it is worth looking at a closed mart's log again, by the life that was looked at.
pub(super) type Known = HashMap<MartId, (Uuid, i64)>;

/// Opens at most one that is due for something, so that no turn takes long.
pub(super) async fn look(app: &App, known: &mut Known) -> Result<(), ApiError> {
    let state = app.control.state();
    let open = app.marts.open_ids();
    // What was written to one that is open is not known here.
    known.retain(|id, (life, _)| !open.contains(id) && state.mart(id).is_some_and(|entry| entry.incarnation == *life));
    let now_us = clock::now_us();
    let marts = state.tenants.iter().flat_map(|(tenant, entry)| {
        let id = |mart: &crate::names::Mart| MartId { tenant: tenant.clone(), mart: mart.clone() };
        entry.marts.iter().map(move |(mart, entry)| (id(mart), entry.incarnation))
    });
    let due: Vec<_> = marts
        .filter(|(id, _)| !open.contains(id) && known.get(id).is_none_or(|(_, due)| *due <= now_us))
        .take(A_TURN)
        .collect();
    for (id, life) in due {
        let later = now_us.saturating_add(i64::try_from(AGAIN.as_micros()).unwrap_or(i64::MAX));
        known.insert(id.clone(), (life, later));
        match due_us(app, &id, life).await {
            Ok(Some(due)) if due > now_us => drop(known.insert(id, (life, due))),
            Ok(Some(_)) => return open_for_it(app, &id).await,
            Ok(None) => {}
            Err(error) => tracing::warn!(mart = %id, %error, "a closed mart's log can't be read; tried again"),
        }
    }
    Ok(())
}

/// When the next job is due; none if it is another's, or empty.
async fn due_us(app: &App, id: &MartId, life: Uuid) -> Result<Option<i64>, ApiError> {
    let ground = app.marts.ground();
    let writer = ground.replica(id, life)?.writer().await.map_err(|error| refused(&error))?;
    let is_ours = match ground.cluster.look(&writer.node).await {
        Look::Me => true,
        Look::Gone => false,
        Look::Lives(_) | Look::Unknown(_) => return Ok(None),
    };
    let past = app.past(id).await?;
    let Ok(newest) = past.now().await else { return Ok(None) };
    let names = past.names();
    let has_name = names.snapshots.values().any(|snapshot| snapshot.past.position == newest.position);
    let jobs = Job::ALL.into_iter().filter(|job| *job != Job::Snapshot || !has_name);
    let mut jobs = jobs.filter_map(|job| Some((job, job.every(&app.config.upkeep)?)));
    if is_ours {
        return Ok(jobs.map(|(job, every)| job.due_us(names, every, id)).min());
    }
    Ok(jobs.any(|(job, every)| overdue(names, job, every, id)).then_some(0))
}

async fn open_for_it(app: &App, id: &MartId) -> Result<(), ApiError> {
    // Held, it is not idle. Another node may have taken it just now: then it is that one's to look after.
    let mart = app.mart(id).await?;
    if mart.live().await.is_err() {
        return Ok(());
    }
    look_after(app, id).await
}
