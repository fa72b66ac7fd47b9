//! A transform: a place to work → steps → checks → staged → Postgres → published.
//!
//! **Invariant:** until the first result is committed in Postgres, a run that fails or is cancelled leaves Postgres and the mart as they were.
//! From there on nobody can cancel it, and what could have stood in the way of publishing was tried before.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use temporalio_common::ActivityDefinition;
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{WorkflowCancellationToken, WorkflowContext, WorkflowResult, WorkflowTermination};

use super::{Failed, options};
use crate::activities::{
    Activities, GoBack, MakeBranch, Publish, RunIngest, RunPersist, RunQuery, STAGE_ID, Stage, TakeSnapshot, ThrowAway,
    Where,
};
use crate::definition::{Check, Limits, MartName, Persist, Place, Step, Transform};

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// By step: the rows that its last statement answered or wrote.
    pub steps: BTreeMap<String, Value>,
    pub checks: BTreeSet<String>,
    /// By name: rows, checksum, position, and whether an earlier try had done it.
    pub persisted: BTreeMap<String, Value>,
    /// Rows by table.
    pub published: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What could not be thrown away at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

/// A node may be away for long; what is left behind would stay.
const TIDYING: Limits = Limits { profile: String::new(), timeout_seconds: 24 * 3600, retry_seconds: 30 * 24 * 3600 };

#[workflow]
#[derive(Default)]
pub struct TransformWorkflow;

#[workflow_methods]
impl TransformWorkflow {
    #[run(name = "tarn_transform")]
    pub async fn run(ctx: &mut WorkflowContext<Self>, definition: Transform) -> WorkflowResult<Report> {
        // Whoever starts a workflow may write its input by hand.
        definition.check().map_err(|fault| Failed::invalid(fault.to_string()).application())?;
        let Some(mart) = definition.mart.clone() else {
            return Err(Failed::invalid("`mart` is missing: a workflow's input names it").application().into());
        };
        let run = Run {
            mart,
            id: ctx.run_id().to_owned(),
            stop: ctx.cancellation_token().child_token(),
            ctx: ctx.clone(),
            beyond: Cell::new(false),
            definition,
        };
        let mut report = Report::default();
        let done = run.work(&mut report).await;
        let tidied = run.tidy(done.is_err()).await;
        match (done, tidied) {
            (Ok(()), Ok(())) => Ok(report),
            (Ok(()), Err(left)) => {
                let all = report.left.iter().chain([&left.text]).cloned().collect::<Vec<_>>().join("; ");
                Ok(Report { left: Some(all), ..report })
            }
            (Err(failed), tidied) => {
                let asked = ctx.cancellation_token().is_cancelled();
                let failed = match tidied {
                    Ok(()) if asked && failed.cancelled => return Err(WorkflowTermination::cancelled()),
                    Ok(()) => failed,
                    Err(left) => failed.and(&left.text),
                };
                Err(failed.application().into())
            }
        }
    }
}

struct Run {
    ctx: WorkflowContext<TransformWorkflow>,
    definition: Transform,
    mart: MartName,
    id: String,
    /// Stops all activities of the run but those that tidy up.
    stop: WorkflowCancellationToken,
    /// Something is in Postgres: the run goes on to its end.
    beyond: Cell<bool>,
}

/// A name, and what was answered.
type Done = (String, Value);

impl Run {
    async fn work(&self, report: &mut Report) -> Result<(), Failed> {
        let definition = &self.definition;
        let mut digests = BTreeMap::new();
        match definition.place {
            Place::Branch => {
                let tables = definition.published().to_vec();
                let work = MakeBranch { place: self.mart(), name: self.branch_name(), at: None, tables };
                let told = self.call("branch", "branch", Activities::branch, work).await?;
                digests = serde_json::from_value(told["digests"].clone()).unwrap_or_default();
            }
            Place::Snapshot => {
                let work = TakeSnapshot { place: self.mart(), name: self.snapshot_name() };
                self.call("snapshot", "snapshot", Activities::snapshot, work).await?;
            }
        }
        report.steps = self.steps().await?;
        let checks = definition.checks.iter().map(|check| self.check(check));
        for checked in temporalio_sdk::workflows::join_all(checks).await {
            report.checks.insert(checked?);
        }
        let mut script = None;
        if !definition.published().is_empty() {
            let work = Stage { place: self.mart(), from: self.branch(), tables: digests };
            let told = self.call("publish", STAGE_ID, Activities::stage, work).await?;
            let rows = told["tables"].as_object().cloned().unwrap_or_default();
            report.published = rows.into_iter().collect();
            script = told["script"].as_str().map(str::to_owned);
        }
        for persist in &definition.persist {
            let (name, told) = self.persist(persist).await?;
            self.beyond.set(true);
            report.persisted.insert(name, told);
        }
        if let Some(script) = script {
            let work = Publish { place: self.mart(), script };
            self.call("publish", "publish", Activities::publish, work).await?;
        }
        self.name_it(report).await;
        Ok(())
    }

    /// All steps, each as soon as those that it needs are done. The first that fails stops the others.
    async fn steps(&self) -> Result<BTreeMap<String, Value>, Failed> {
        let mut waiting: Vec<&Step> = self.definition.steps.iter().collect();
        let mut running: Vec<LocalBoxFuture<'_, Result<Done, Failed>>> = Vec::new();
        let mut done = BTreeMap::new();
        let mut failed = None;
        loop {
            if failed.is_none() {
                let (ready, rest): (Vec<&Step>, _) =
                    waiting.into_iter().partition(|step| step.needs.iter().all(|needed| done.contains_key(needed)));
                waiting = rest;
                running.extend(ready.into_iter().map(|step| self.step(step).boxed_local()));
            }
            if running.is_empty() {
                let stuck = || waiting.first().map(|step| Failed::invalid(format!("step `{}` can't begin", step.name)));
                return failed.or_else(stuck).map_or(Ok(done), Err);
            }
            match first(&mut running).await {
                Ok((name, told)) => drop(done.insert(name, told)),
                Err(error) => {
                    self.stop.cancel_with_reason("a step failed");
                    failed.get_or_insert(error);
                }
            }
        }
    }

    async fn step(&self, step: &Step) -> Result<Done, Failed> {
        let (what, id) = (format!("step `{}`", step.name), format!("step {}", step.name));
        let told = match (&step.sql, &step.ingest) {
            (Some(sql), _) => {
                let work = RunQuery { place: self.workplace(), sql: sql.clone(), params: None };
                self.call(&what, &id, Activities::query, work).await?
            }
            (None, Some(ingest)) => {
                let work = RunIngest { place: self.workplace(), ingest: ingest.clone() };
                self.call(&what, &id, Activities::ingest, work).await?
            }
            (None, None) => return Err(Failed::invalid(format!("{what}: has no work"))),
        };
        Ok((step.name.clone(), json!({"row_count": told["row_count"], "position": told["position"]})))
    }

    async fn check(&self, check: &Check) -> Result<String, Failed> {
        let (what, id) = (format!("check `{}`", check.name), format!("check {}", check.name));
        let work = RunQuery { place: self.workplace(), sql: check.sql.clone(), params: None };
        let told = self.call(&what, &id, Activities::query, work).await?;
        let rows = told["rows"].as_array().cloned().unwrap_or_default();
        let good = match &check.expect {
            None => rows.is_empty(),
            Some(wanted) => {
                rows.len() == 1 && rows[0].as_array().is_some_and(|row| row.len() == 1 && same(&row[0], wanted))
            }
        };
        if good {
            return Ok(check.name.clone());
        }
        let shown: Vec<String> = rows.iter().take(3).map(Value::to_string).collect();
        let wanted = check.expect.as_ref().map_or("no rows".to_owned(), Value::to_string);
        let text = format!(
            "{what}: wants {wanted}, found {}",
            if shown.is_empty() { "no rows".into() } else { shown.join(", ") }
        );
        Err(Failed { code: "check".into(), text, cancelled: false })
    }

    async fn persist(&self, persist: &Persist) -> Result<Done, Failed> {
        let (what, id) = (format!("persist `{}`", persist.name), format!("persist {}", persist.name));
        let work = RunPersist {
            place: self.workplace(),
            sql: persist.sql.clone(),
            connection: persist.connection.clone(),
            table: persist.table.clone(),
            mode: persist.mode,
            key: persist.key.clone(),
        };
        Ok((persist.name.clone(), self.call(&what, &id, Activities::persist, work).await?))
    }

    /// A name for what was done. Without it nothing is wrong with that.
    async fn name_it(&self, report: &mut Report) {
        let Some(name) = self.definition.publish.as_ref().and_then(|publish| publish.snapshot.as_ref()) else { return };
        let name = format!("{name}-{}", super::maintenance::stamp(self.ctx.workflow_time()));
        let work = TakeSnapshot { place: self.mart(), name: name.clone() };
        match self.call("snapshot", "publish snapshot", Activities::snapshot, work).await {
            Ok(_) => report.snapshot = Some(name),
            Err(failed) => report.left = Some(failed.text),
        }
    }

    /// Throws away what others should not see; also when the workflow was cancelled.
    async fn tidy(&self, failed: bool) -> Result<(), Failed> {
        let mut left = ThrowAway { place: self.mart(), branch: None, snapshot: None, staged: 0 };
        match self.definition.place {
            Place::Branch => {
                left.branch = Some(self.branch());
                if failed {
                    left.staged = self.definition.published().len();
                }
            }
            Place::Snapshot => {
                if failed {
                    let work = GoBack { place: self.mart(), at: self.snapshot_name() };
                    self.tidy_by("going back", "restore", Activities::restore, work).await?;
                }
                left.snapshot = Some(self.snapshot_name());
            }
        }
        self.tidy_by("tidying up", "discard", Activities::discard, left).await.map(drop)
    }

    async fn call<A>(&self, what: &str, id: &str, activity: A, input: A::Input) -> Result<Value, Failed>
    where
        A: ActivityDefinition<Output = Value>,
    {
        let stop = if self.beyond.get() { WorkflowCancellationToken::new() } else { self.stop.clone() };
        let options = options(id, &self.definition.limits, stop);
        self.ctx.execute_activity(activity, input, options).await.map_err(|error| Failed::new(what, &error))
    }

    /// However short the limits of the work are, and whoever cancels it.
    async fn tidy_by<A>(&self, what: &str, id: &str, activity: A, input: A::Input) -> Result<Value, Failed>
    where
        A: ActivityDefinition<Output = Value>,
    {
        let options = options(id, &TIDYING, WorkflowCancellationToken::new());
        self.ctx.execute_activity(activity, input, options).await.map_err(|error| Failed::new(what, &error))
    }

    fn mart(&self) -> Where {
        Where { mart: Some(self.mart.clone()), profile: Some(self.definition.limits.profile.clone()) }
    }

    fn workplace(&self) -> Where {
        match self.definition.place {
            Place::Branch => Where { mart: Some(self.branch()), ..self.mart() },
            Place::Snapshot => self.mart(),
        }
    }

    fn branch_name(&self) -> String {
        format!("run-{}", self.id.replace('-', ""))
    }

    fn branch(&self) -> MartName {
        let tenant = self.mart.0.split('/').next().unwrap_or_default();
        MartName(format!("{tenant}/{}", self.branch_name()))
    }

    fn snapshot_name(&self) -> String {
        format!("before-{}", self.id.replace('-', ""))
    }
}

/// The outcome of the first that is done, in order; it leaves the list.
async fn first<T>(running: &mut Vec<LocalBoxFuture<'_, T>>) -> T {
    let (index, outcome) = poll_fn(|cx| {
        let done = running.iter_mut().enumerate().find_map(|(index, future)| match future.as_mut().poll(cx) {
            Poll::Ready(outcome) => Some((index, outcome)),
            Poll::Pending => None,
        });
        done.map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    drop(running.remove(index));
    outcome
}

/// Numbers by value: an answer of 0.0 is what `expect: 0` wants; large ones come as text.
fn same(found: &Value, wanted: &Value) -> bool {
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    found == wanted || (wanted.is_number() && number(found) == number(wanted))
}
