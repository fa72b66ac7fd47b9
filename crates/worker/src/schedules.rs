//! Schedules on Temporal, as definitions have them: a transform has one, a maintenance one per task.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use temporalio_client::Client;
use temporalio_client::schedules::{
    CreateScheduleOptions, ListSchedulesOptions, ScheduleAction, ScheduleError, ScheduleOverlapPolicy, ScheduleSpec,
};

use crate::definition::{Definition, Maintenance, Overlap, Schedule, Task};
use crate::workflows::maintenance::MaintenanceWorkflow;
use crate::workflows::transform::TransformWorkflow;

/// Begins the ids of schedules that are ours.
const OURS: &str = "tarn-";
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;

/// A schedule to be had: its id, when, and what it starts.
struct Wanted<'a> {
    id: String,
    schedule: &'a Schedule,
    action: ScheduleAction,
}

/// Makes or changes the schedules of a definition, and removes those that it had and has no more. Answers with their ids.
///
/// # Errors
/// A cron expression that Temporal can't read; a server that does not answer.
pub async fn apply(client: &Client, queue: &str, definition: &Definition) -> anyhow::Result<Vec<String>> {
    let wanted = wanted(queue, definition);
    for id in possible(definition) {
        if !wanted.iter().any(|wanted| wanted.id == id) {
            remove(client, &id).await?;
        }
    }
    let mut ids = Vec::new();
    for one in wanted {
        put(client, &one).await.with_context(|| format!("schedule `{}`", one.id))?;
        ids.push(one.id);
    }
    Ok(ids)
}

/// Ids of our schedules, those of other tools left out.
pub async fn list(client: &Client) -> anyhow::Result<Vec<(String, bool)>> {
    let mut stream = client.list_schedules(ListSchedulesOptions::default());
    let mut found = Vec::new();
    while let Some(entry) = stream.next().await {
        let entry = entry?;
        if entry.schedule_id().starts_with(OURS) {
            found.push((entry.schedule_id().to_owned(), entry.paused()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether there was one.
pub async fn remove(client: &Client, id: &str) -> anyhow::Result<bool> {
    match client.get_schedule_handle(id).delete(Default::default()).await {
        Ok(()) => Ok(true),
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("schedule `{id}`")),
    }
}

async fn put(client: &Client, wanted: &Wanted<'_>) -> Result<(), ScheduleError> {
    let Wanted { id, schedule, action } = wanted;
    let spec = ScheduleSpec::builder()
        .cron_strings(vec![schedule.cron.clone()])
        .timezone_name(schedule.timezone.clone())
        .jitter(Duration::from_secs(schedule.jitter_seconds))
        .build();
    let overlap = match schedule.overlap {
        Overlap::Skip => ScheduleOverlapPolicy::Skip,
        Overlap::Wait => ScheduleOverlapPolicy::BufferOne,
    };
    let options =
        CreateScheduleOptions::builder().action(action.clone()).spec(spec.clone()).overlap_policy(overlap).build();
    match client.create_schedule(id, options).await {
        Err(error) if code(&error) != Some(ALREADY_EXISTS) => return Err(error),
        // What can be said only of a schedule that is there is said in both cases. Whether it is paused stays as people left it.
        _ => {}
    }
    let (action, catchup) = (action.clone(), Duration::from_secs(schedule.catchup_seconds));
    let change = move |update: &mut temporalio_client::schedules::ScheduleUpdate| {
        update.set_spec(spec).set_action(action).set_overlap_policy(overlap).set_catchup_window(catchup);
    };
    client.get_schedule_handle(id).update(change, Default::default()).await
}

fn wanted<'a>(queue: &str, definition: &'a Definition) -> Vec<Wanted<'a>> {
    match definition {
        Definition::Transform(transform) => {
            let id = format!("{OURS}{}", transform.name);
            let input = transform.clone();
            let action = ScheduleAction::start_workflow(TransformWorkflow::run, input, queue, &transform.name);
            transform
                .schedule
                .iter()
                .map(|schedule| Wanted { id: id.clone(), schedule, action: action.clone() })
                .collect()
        }
        Definition::Maintenance(maintenance) => {
            let one = |(task, options): (&Task, &'a crate::definition::TaskOptions)| {
                let only = Maintenance { tasks: [(*task, options.clone())].into(), ..maintenance.clone() };
                let workflow = task_id(maintenance, *task);
                let id = format!("{OURS}{workflow}");
                let action = ScheduleAction::start_workflow(MaintenanceWorkflow::run, only, queue, workflow);
                Wanted { id, schedule: &options.schedule, action }
            };
            maintenance.tasks.iter().map(one).collect()
        }
    }
}

/// All ids that schedules of a definition of this name can have.
fn possible(definition: &Definition) -> Vec<String> {
    match definition {
        Definition::Transform(transform) => vec![format!("{OURS}{}", transform.name)],
        Definition::Maintenance(maintenance) => {
            Task::ALL.iter().map(|task| format!("{OURS}{}", task_id(maintenance, *task))).collect()
        }
    }
}

/// With what no name has in it: it is no other definition's.
fn task_id(maintenance: &Maintenance, task: Task) -> String {
    format!("{}.{}", maintenance.name, task.word())
}

fn code(error: &ScheduleError) -> Option<i32> {
    match error {
        ScheduleError::Rpc(status) => Some(status.code() as i32),
        _ => None,
    }
}
