//! What is done to marts without being asked: snapshots, archives, sweeps, vacuums, trial restores.
//!
//! When each was done last is written in the mart's own names by its one writer, so it is done once whatever the number of nodes and restarts.
//! A mart that is closed and due is opened for it, as by a request, by the node that had it last, or if that
//! one is gone and much is overdue, by any.

mod closed;
pub mod due;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use replica::names::Names;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::archive;
use crate::clock;
use crate::error::ApiError;
use crate::names::MartId;
use crate::orders::{Order, Swap, give};
use crate::verify::Task;
use due::Job;

/// How often it is looked what is due, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How much of the store a mart takes is looked at so often: all its objects are listed.
const WEIGH_EVERY: Duration = Duration::from_secs(3600);
/// Begins the names of snapshots that a schedule made.
const AUTOMATIC: &str = "auto-";

/// Looks after the open marts until cancelled.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let upkeep = app.config.upkeep;
    // A short window is no reason to hurry: what it lets go may go later.
    let hasty = Job::ALL.into_iter().filter(|job| *job != Job::Sweep);
    let shortest = hasty.filter_map(|job| job.every(&upkeep)).min().unwrap_or(LOOK.1);
    let look = shortest / 4;
    let look = look.clamp(LOOK.0, LOOK.1);
    let mut weighed = HashMap::new();
    let mut closed = closed::Known::default();
    while stop.run_until_cancelled(tokio::time::sleep(look)).await.is_some() {
        let open = app.marts.open_ids();
        weighed.retain(|id, _| open.contains(id));
        for id in open {
            if weighed.get(&id).is_none_or(|last: &Instant| last.elapsed() >= WEIGH_EVERY) {
                weighed.insert(id.clone(), Instant::now());
                if let Some(Err(error)) = stop.run_until_cancelled(weigh(&app, &id)).await {
                    tracing::warn!(mart = %id, %error, "the mart's objects could not be listed; tried again in an hour");
                }
            }
            if let Some(Err(error)) = stop.run_until_cancelled(look_after(&app, &id)).await {
                tracing::warn!(mart = %id, %error, "upkeep failed; tried again");
            }
        }
        if let Some(Err(error)) = stop.run_until_cancelled(closed::look(&app, &mut closed)).await {
            tracing::warn!(%error, "upkeep of a closed mart failed; tried again");
        }
    }
}

async fn weigh(app: &App, id: &MartId) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(mart) = app.marts.get(id) else { return Ok(()) };
    let replica = app.marts.ground().replica(id, mart.incarnation())?;
    app.metrics.objects_weighed(id, replica.stored_bytes().await?);
    Ok(())
}

async fn look_after(app: &App, id: &MartId) -> Result<(), ApiError> {
    let upkeep = app.config.upkeep;
    let Some(mart) = app.marts.get(id) else { return Ok(()) };
    if mart.watcher().progress().durable.is_none() {
        return Ok(());
    }
    let names = give(mart.orders(), |reply| Order::Names(Box::new(|_, _| Ok(())), reply)).await?;
    for job in Job::ALL {
        if let Some(last_us) = names.done.get(job.name()) {
            app.metrics.upkeep_done(id, job.name(), *last_us);
        }
        let Some(every) = job.every(&upkeep) else { continue };
        if job.due_us(&names, every, id) > clock::now_us() {
            continue;
        }
        // One that fails does not keep the others from their turn.
        match run_job(app, id, job, &names).await {
            Ok(()) => app.metrics.upkeep_done(id, job.name(), clock::now_us()),
            Err(error) => tracing::warn!(mart = %id, job = job.name(), %error, "upkeep failed; tried again"),
        }
    }
    Ok(())
}

async fn run_job(app: &App, id: &MartId, job: Job, names: &Names) -> Result<(), ApiError> {
    match job {
        Job::Snapshot => snapshot(app, id, names).await?,
        Job::Archive => archive_now(app, id).await?,
        Job::Sweep => drop(app.sweep(id, false).await?),
        Job::Vacuum => vacuum(app, id).await?,
        Job::Verify => verify(app, id).await?,
    }
    done(app, id, job).await
}

async fn done(app: &App, id: &MartId, job: Job) -> Result<(), ApiError> {
    let Some(mart) = app.marts.get(id) else { return Ok(()) };
    let change = move |names: &mut Names, _| {
        names.done.insert(job.name().to_owned(), clock::now_us());
        // So that their first time comes a period after the mart was first looked after.
        for job in Job::ALL.into_iter().filter(|job| job.can_wait()) {
            names.done.entry(job.name().to_owned()).or_insert_with(clock::now_us);
        }
        Ok(())
    };
    give(mart.orders(), |reply| Order::Names(Box::new(change), reply)).await.map(drop)
}

/// Names the present moment if it has no name, and lets go automatic ones that the window has passed.
async fn snapshot(app: &App, id: &MartId, names: &Names) -> Result<(), ApiError> {
    let Some(mart) = app.marts.get(id) else { return Ok(()) };
    let now_us = clock::now_us();
    let keep_us = names.keep_us.unwrap_or(i64::try_from(app.config.upkeep.keep.as_micros()).unwrap_or(i64::MAX));
    let change = move |names: &mut Names, _| {
        names
            .snapshots
            .retain(|_, snapshot| !snapshot.automatic || snapshot.created_us.saturating_add(keep_us) > now_us);
        Ok(())
    };
    give(mart.orders(), |reply| Order::Names(Box::new(change), reply)).await?;
    let newest = mart.watcher().progress().durable;
    let unchanged = names.snapshots.values().any(|snapshot| Some(snapshot.past.position) == newest);
    if !unchanged {
        let name = format!("{AUTOMATIC}{}", clock::compact(now_us));
        app.name_moment(id, name, None, true).await?;
    }
    Ok(())
}

/// A plain file of the newest moment into the tenant's bucket.
async fn archive_now(app: &App, id: &MartId) -> Result<(), ApiError> {
    let past = app.past(id).await?;
    let newest = past.now().await?;
    archive::one(app.marts.ground(), id, &past, &newest, None).await.map(drop)
}

/// Vacuums if it pays: a sixth of the file is free space.
async fn vacuum(app: &App, id: &MartId) -> Result<(), ApiError> {
    let Some(mart) = app.marts.get(id) else { return Ok(()) };
    let file = mart.live().await?.dir.join(replica::DB_FILE);
    let free = tokio::task::spawn_blocking(move || {
        let image = replica::image::Image::read(&std::fs::File::open(file).ok()?).ok()?;
        Some((image.free?.len() as u64, image.block_count))
    });
    let Ok(Some((free, all))) = free.await else { return Ok(()) };
    if free * 6 > all {
        let swapped = give(mart.orders(), |reply| Order::Swap(Swap::Vacuum { reply })).await?;
        tracing::info!(mart = %id, ?swapped, "vacuumed");
    }
    Ok(())
}

/// Restores the mart on trial. What is damaged is in the log; the metric of the last good one grows old.
async fn verify(app: &App, id: &MartId) -> Result<(), ApiError> {
    let task = Task { trial: true, ..Task::default() };
    let verified = app.verifier.verify(id, app.known(id).await?, task).await?;
    if !verified.report.problems.is_empty() {
        tracing::error!(mart = %id, problems = verified.report.problems.len(), "the mart's replica is damaged: `tarn verify --repair`");
    }
    Ok(())
}
