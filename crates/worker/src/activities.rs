//! Activities: one call of a node's API each. Their inputs and outputs are JSON, for workflows in any language.
//!
//! **Invariant:** what writes has an idempotency key made of the workflow's run and the activity's id, or is harmless to do twice. What can't
//! succeed is not tried again; its type is the API's code.

mod ingest;
mod swap;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use temporalio_sdk::ApplicationFailure;
use temporalio_sdk::activities::{ActivityContext, ActivityError, activities};

use crate::definition::{self, MartName, Mode};
use crate::tarn::{Refusal, Tarn, mart_path};
use swap::Table;
use watch::Watch;

/// Rows of a query that its answer has at most: it goes into the workflow's history.
const MOST_ROWS: u64 = 100;

/// The activities of a worker, all on one node.
pub struct Activities {
    tarn: Tarn,
}

impl Activities {
    pub fn new(tarn: Tarn) -> Self {
        Self { tarn }
    }
}

type Answer = Result<Value, ActivityError>;

/// Which mart, and as what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Where {
    /// `tenant/mart`; without it that of the worker's DSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mart: Option<MartName>,
    /// `batch` unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunQuery {
    #[serde(flatten)]
    pub place: Where,
    pub sql: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunIngest {
    #[serde(flatten)]
    pub place: Where,
    #[serde(flatten)]
    pub ingest: definition::Ingest,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPersist {
    #[serde(flatten)]
    pub place: Where,
    pub sql: String,
    pub connection: String,
    pub table: String,
    pub mode: Mode,
    #[serde(default)]
    pub key: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TakeSnapshot {
    #[serde(flatten)]
    pub place: Where,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakeBranch {
    #[serde(flatten)]
    pub place: Where,
    /// The new mart's name, within the tenant.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Tables to be told the digests of, as the branch begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoBack {
    #[serde(flatten)]
    pub place: Where,
    /// A time, a snapshot's name or a position.
    pub at: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakeArchive {
    #[serde(flatten)]
    pub place: Where,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than_days: Option<f64>,
}

/// Tables of one mart that are to take the place of another's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    #[serde(flatten)]
    pub place: Where,
    /// The mart that has them, of the same tenant.
    pub from: MartName,
    /// Each with the digest that the other mart's must still have; none if it must not be there.
    pub tables: BTreeMap<String, Option<String>>,
}

/// What [`Stage`] has made ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    #[serde(flatten)]
    pub place: Where,
    pub script: String,
}

/// What is left of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThrowAway {
    #[serde(flatten)]
    pub place: Where,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<MartName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// How many tables were to be published: their staging tables go.
    #[serde(default)]
    pub staged: usize,
}

/// A call: what is asked, of which mart, under which key.
struct Call<'a> {
    tarn: &'a Tarn,
    watch: Watch,
    mart: MartName,
    profile: String,
    once: String,
}

impl Call<'_> {
    fn path(&self, rest: &str) -> String {
        format!("{}{rest}", mart_path(&self.mart))
    }

    async fn post(&self, rest: &str, body: Value) -> Result<Value, ActivityError> {
        self.ask(Method::POST, rest, Some(body), &[]).await
    }

    async fn ask(&self, method: Method, rest: &str, body: Option<Value>, more: &[(&str, &str)]) -> Answer {
        let path = self.path(rest);
        self.watch
            .over(async |id| {
                let mut headers = vec![("tarn-query-id", id), ("tarn-profile", self.profile.as_str())];
                headers.extend_from_slice(more);
                self.tarn.call(method.clone(), &path, body.as_ref(), &headers).await
            })
            .await
    }

    async fn query(&self, sql: &str, params: Option<&Value>, once: &str) -> Answer {
        let body = json!({"sql": sql, "params": params, "max_rows": MOST_ROWS, "timeout_ms": self.watch.timeout_ms()});
        self.ask(Method::POST, "/query", Some(body), &[("idempotency-key", once)]).await
    }

    /// Rows of a query of our own, of any mart.
    async fn rows(&self, mart: &MartName, sql: &str) -> Result<Vec<Vec<Value>>, ActivityError> {
        let path = format!("{}/query", mart_path(mart));
        let body = json!({"sql": sql, "timeout_ms": self.watch.timeout_ms()});
        let asked = async |id: &str| {
            let headers = [("tarn-query-id", id), ("tarn-profile", self.profile.as_str())];
            self.tarn.call(Method::POST, &path, Some(&body), &headers).await
        };
        let told = self.watch.over(asked).await?;
        serde_json::from_value(told["rows"].clone())
            .map_err(|error| failed(Refusal::new("internal", error.to_string())))
    }

    /// A table of one mart into a staging table of another, again from the start each time.
    async fn copy(&self, (sql, from): (&str, &MartName), staging: &str) -> Answer {
        let body = json!({"sql": sql, "timeout_ms": self.watch.timeout_ms()});
        self.watch
            .over(async |id| {
                let profile = ("tarn-profile", self.profile.as_str());
                self.tarn
                    .copy((from, &body, &[profile, ("tarn-query-id", id)]), (&self.mart, staging, &[profile]))
                    .await
            })
            .await
    }
}

impl Activities {
    fn call(&self, ctx: &ActivityContext, place: &Where) -> Result<Call<'_>, ActivityError> {
        let info = ctx.info();
        let run = info.workflow_run_id.as_deref().or(info.activity_run_id.as_deref()).unwrap_or_default();
        Ok(Call {
            tarn: &self.tarn,
            watch: Watch::new(ctx.clone(), self.tarn.clone()),
            mart: self.tarn.mart(place.mart.as_ref()).map_err(failed)?,
            profile: place.profile.clone().unwrap_or_else(|| "batch".into()),
            once: format!("{run}/{}", info.activity_id),
        })
    }
}

#[activities]
impl Activities {
    /// Runs a statement or a script; answers with the last result, at most 100 rows of it.
    #[activity(name = "tarn_query")]
    pub async fn query(self: Arc<Self>, ctx: ActivityContext, work: RunQuery) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        call.query(&work.sql, work.params.as_ref(), &call.once).await
    }

    /// Loads files or a query's result into a table.
    #[activity(name = "tarn_ingest")]
    pub async fn ingest(self: Arc<Self>, ctx: ActivityContext, work: RunIngest) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        call.query(&ingest::statement(&work.ingest).map_err(failed)?, None, &call.once).await
    }

    /// Sends a query's result into a table of Postgres.
    #[activity(name = "tarn_persist")]
    pub async fn persist(self: Arc<Self>, ctx: ActivityContext, work: RunPersist) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        let to = json!({"connection": work.connection, "table": work.table, "mode": work.mode, "key": work.key});
        let body = json!({
            "sql": work.sql, "postgres": to, "idempotency_key": call.once, "timeout_ms": call.watch.timeout_ms(),
        });
        call.post("/persist", body).await
    }

    /// Names the present moment; a name that is there already stands.
    #[activity(name = "tarn_snapshot")]
    pub async fn snapshot(self: Arc<Self>, ctx: ActivityContext, work: TakeSnapshot) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        let taken = call.post("/snapshots", json!({"name": work.name})).await;
        unless(taken, "conflict", json!({"name": work.name}))
    }

    /// A mart that begins as this one is, or was; one that has the name already is taken for it. Of an empty mart it is an empty one.
    #[activity(name = "tarn_branch")]
    pub async fn branch(self: Arc<Self>, ctx: ActivityContext, work: MakeBranch) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        let mut made = call.post("/branches", json!({"name": work.name, "at": work.at})).await;
        let tenant = call.mart.0.split('/').next().unwrap_or_default().to_owned();
        let missing = matches!(&made, Err(error) if code_of(error) == Some("not_found"));
        if missing && work.at.is_none() && call.ask(Method::GET, "", None, &[]).await?["position"].is_null() {
            let (path, body) = (format!("/v1/tenants/{tenant}/marts"), json!({"name": work.name}));
            made = call.watch.over(async |_| self.tarn.call(Method::POST, &path, Some(&body), &[]).await).await;
        }
        let mut told = unless(made, "conflict", json!({"name": work.name}))?;
        let branch = MartName(format!("{tenant}/{}", work.name));
        let mut digests = BTreeMap::new();
        for name in &work.tables {
            let table = Table::named(name).map_err(failed)?;
            let there = !table.columns(&call, &branch).await?.is_empty();
            let digest = if there { Some(table.digest(&call, &branch).await?) } else { None };
            digests.insert(name, digest);
        }
        told["digests"] = json!(digests);
        Ok(told)
    }

    /// Puts the mart back to a moment.
    #[activity(name = "tarn_restore")]
    pub async fn restore(self: Arc<Self>, ctx: ActivityContext, work: GoBack) -> Result<Value, ActivityError> {
        self.call(&ctx, &work.place)?.post("/restore", json!({"at": work.at})).await
    }

    /// Rewrites the mart without its free space.
    #[activity(name = "tarn_vacuum")]
    pub async fn vacuum(self: Arc<Self>, ctx: ActivityContext, work: Where) -> Result<Value, ActivityError> {
        self.call(&ctx, &work)?.post("/vacuum", json!({})).await
    }

    /// A plain DuckDB file of the mart into its tenant's bucket.
    #[activity(name = "tarn_archive")]
    pub async fn archive(self: Arc<Self>, ctx: ActivityContext, work: MakeArchive) -> Result<Value, ActivityError> {
        let options = [
            ("at", json!(work.at)),
            ("storage_class", json!(work.storage_class)),
            ("older_than_days", json!(work.older_than_days)),
        ];
        let body: serde_json::Map<_, _> = options
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.into(), value))
            .collect();
        self.call(&ctx, &work.place)?.post("/archives", body.into()).await
    }

    /// Restores the newest moment on trial; damage is an error.
    #[activity(name = "tarn_verify")]
    pub async fn verify(self: Arc<Self>, ctx: ActivityContext, work: Where) -> Result<Value, ActivityError> {
        let told = self.call(&ctx, &work)?.post("/verify", json!({"trial": true})).await?;
        match told["problems"].as_array() {
            Some(problems) if problems.is_empty() => Ok(told),
            Some(problems) => {
                let text = format!("the replica has {} problems: `tarn verify --repair`", problems.len());
                Err(failed(Refusal::new("corrupt", text)))
            }
            None => Err(failed(Refusal::new("internal", "the answer has no list of problems"))),
        }
    }

    /// Lets go what retention allows.
    #[activity(name = "tarn_sweep")]
    pub async fn sweep(self: Arc<Self>, ctx: ActivityContext, work: Where) -> Result<Value, ActivityError> {
        self.call(&ctx, &work)?.post("/sweep", json!({})).await
    }

    /// Loads tables of one mart beside another's and makes the script that puts them in their place. The script is tried and rolled back:
    /// what stands in its way is told now.
    #[activity(name = "tarn_stage")]
    pub async fn stage(self: Arc<Self>, ctx: ActivityContext, work: Stage) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        let (mut script, mut rows) = (String::new(), serde_json::Map::new());
        for (index, (name, digest)) in work.tables.iter().enumerate() {
            let (table, staging) = (Table::named(name).map_err(failed)?, staging(&call.once, index));
            let wanted = table.columns(&call, &work.from).await?;
            if wanted.is_empty() {
                return Err(failed(Refusal::new("not_found", format!("the branch has no table `{name}`"))));
            }
            let loaded = call.copy((&format!("FROM {}", table.quoted()), &work.from), &staging).await?;
            rows.insert(name.clone(), loaded["rows"].clone());
            let found = table.columns(&call, &call.mart).await?;
            script += &table.swap(&staging, &wanted, &found, digest.as_deref());
        }
        let tried = call.ask(Method::POST, "/query", Some(json!({"sql": format!("BEGIN;\n{script}ROLLBACK")})), &[]);
        tried.await.map_err(swap::conflict)?;
        Ok(json!({"tables": rows, "script": format!("BEGIN;\n{script}COMMIT")}))
    }

    /// Runs the script that [`Activities::stage`] has made.
    #[activity(name = "tarn_publish")]
    pub async fn publish(self: Arc<Self>, ctx: ActivityContext, work: Publish) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        call.query(&work.script, None, &call.once).await.map_err(swap::conflict)
    }

    /// Drops a branch and a snapshot that a run had made, and what it had begun to publish.
    #[activity(name = "tarn_discard")]
    pub async fn discard(self: Arc<Self>, ctx: ActivityContext, work: ThrowAway) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        if let Some(branch) = &work.branch {
            let path = mart_path(branch);
            let dropped = call.watch.over(async |_| self.tarn.call(Method::DELETE, &path, None, &[]).await).await;
            unless(dropped, "not_found", Value::Null)?;
        }
        if let Some(snapshot) = &work.snapshot {
            let deleted = call.ask(Method::DELETE, &format!("/snapshots/{snapshot}"), None, &[]).await;
            unless(deleted, "not_found", Value::Null)?;
        }
        if work.staged > 0 {
            let run = ctx.info().workflow_run_id.clone().unwrap_or_default();
            let of_stage = format!("{run}/{STAGE_ID}");
            let drops =
                (0..work.staged).map(|index| format!("DROP TABLE IF EXISTS main.\"{}\"", staging(&of_stage, index)));
            call.query(&drops.collect::<Vec<_>>().join(";\n"), None, &call.once).await?;
        }
        Ok(json!({}))
    }
}

/// The id of a transform's activity that stages.
pub const STAGE_ID: &str = "stage";

/// The table that one is loaded into first.
fn staging(once: &str, index: usize) -> String {
    format!("tarn_staging_{}_{index}", &blake3::hash(once.as_bytes()).to_hex()[..16])
}

/// That error counts as done.
fn unless(answer: Answer, code: &str, value: Value) -> Answer {
    match answer {
        Err(error) if code_of(&error) == Some(code) => Ok(value),
        other => other,
    }
}

fn code_of(error: &ActivityError) -> Option<&str> {
    match error {
        ActivityError::Application(failure) => failure.type_name(),
        _ => None,
    }
}

fn failed(refusal: Refusal) -> ActivityError {
    let text = refusal.to_string();
    let failure = ApplicationFailure::builder(text).type_name(refusal.code).non_retryable(!refusal.passing);
    ActivityError::application(failure.build())
}
