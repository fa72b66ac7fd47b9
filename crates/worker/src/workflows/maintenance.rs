//! Maintenance: tasks on marts, in turn.

use std::collections::BTreeMap;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use serde_json::Value;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{ActivityExecutionError, WorkflowContext, WorkflowResult, WorkflowTermination};

use super::{Failed, options};
use crate::activities::{Activities, MakeArchive, TakeSnapshot, Where};
use crate::definition::{Maintenance, MartName, Task, TaskOptions};

/// By mart and task, what it answered.
pub type Report = BTreeMap<String, BTreeMap<Task, Value>>;

#[workflow]
#[derive(Default)]
pub struct MaintenanceWorkflow;

struct Turn<'a> {
    mart: &'a MartName,
    task: Task,
}

#[workflow_methods]
impl MaintenanceWorkflow {
    #[run(name = "tarn_maintenance")]
    pub async fn run(ctx: &mut WorkflowContext<Self>, definition: Maintenance) -> WorkflowResult<Report> {
        definition.check().map_err(|fault| Failed::invalid(fault.to_string()).application())?;
        let mut report = Report::new();
        let mut failures = Vec::new();
        for mart in &definition.marts {
            for (task, how) in &definition.tasks {
                match Self::turn(ctx, &definition, Turn { mart, task: *task }, how).await {
                    Ok(told) => drop(report.entry(mart.0.clone()).or_default().insert(*task, told)),
                    Err(ActivityExecutionError::Cancelled(_)) => return Err(WorkflowTermination::cancelled()),
                    Err(error) => failures.push(Failed::new(&format!("{} of {mart}", task.word()), &error)),
                }
            }
        }
        let Some(first) = failures.first() else { return Ok(report) };
        let (code, cancelled) = (first.code.clone(), false);
        let text = failures.into_iter().map(|failed| failed.text).collect::<Vec<_>>().join("; ");
        Err(Failed { code, text, cancelled }.application().into())
    }

    async fn turn(
        ctx: &WorkflowContext<Self>,
        definition: &Maintenance,
        turn: Turn<'_>,
        how: &TaskOptions,
    ) -> Result<Value, ActivityExecutionError> {
        let Turn { mart, task } = turn;
        let place = Where { mart: Some(mart.clone()), profile: Some(definition.limits.profile.clone()) };
        let options = options(format!("{} {mart}", task.word()), &definition.limits, ctx.cancellation_token());
        match task {
            Task::Snapshot => {
                let name = format!("{}-{}", definition.name, stamp(ctx.workflow_time()));
                ctx.execute_activity(Activities::snapshot, TakeSnapshot { place, name }, options).await
            }
            Task::Archive => {
                let (storage_class, older_than_days) = (how.storage_class.clone(), how.older_than_days);
                let work = MakeArchive { place, at: None, storage_class, older_than_days };
                ctx.execute_activity(Activities::archive, work, options).await
            }
            Task::Sweep => ctx.execute_activity(Activities::sweep, place, options).await,
            Task::Verify => ctx.execute_activity(Activities::verify, place, options).await,
            Task::Vacuum => ctx.execute_activity(Activities::vacuum, place, options).await,
        }
    }
}

/// The workflow's own time, as part of a name.
pub(super) fn stamp(time: Option<SystemTime>) -> String {
    DateTime::<Utc>::from(time.unwrap_or(SystemTime::UNIX_EPOCH)).format("%Y%m%d-%H%M%S").to_string()
}
