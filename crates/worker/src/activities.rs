//! Activities: one call of a node's API each. Their inputs and outputs are JSON, for workflows in any language.
//!
//! **Invariant:** what writes has an idempotency key made of the workflow's run and the activity's id, or is harmless to do twice. What can't
//! succeed is not tried again; its type is the API's code.

mod watch;

use std::sync::Arc;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use temporalio_sdk::ApplicationFailure;
use temporalio_sdk::activities::{ActivityContext, ActivityError, activities};

use crate::definition::{self, MartName, Mode, table_name};
use crate::tarn::{Load, Query, Refusal, Tarn, mart_path};
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

/// Tables of one mart that take the place of another's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CarryOver {
    #[serde(flatten)]
    pub place: Where,
    /// The mart that has them, of the same tenant.
    pub from: MartName,
    pub tables: Vec<String>,
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
    /// Tables that were to be carried over: their staging tables go.
    #[serde(default)]
    pub tables: Vec<String>,
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

    async fn load(
        &self,
        (sql, from): (&str, &MartName),
        table: (&str, &str),
        how: (&str, &[String]),
        once: &str,
    ) -> Answer {
        let body = json!({"sql": sql, "timeout_ms": self.watch.timeout_ms()});
        self.watch
            .over(async |id| {
                let profile = ("tarn-profile", self.profile.as_str());
                let read = Query { mart: from, body: body.clone(), headers: &[profile, ("tarn-query-id", id)] };
                let (mode, key) = how;
                let load = Load { mart: &self.mart, table, mode, key, once, headers: &[profile] };
                self.tarn.copy(read, load).await
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
        let table = table_name(&work.ingest.table).ok_or_else(|| no_table(&work.ingest.table))?;
        let sql = match (&work.ingest.from, &work.ingest.sql) {
            (Some(files), None) => format!("FROM '{}'", files.replace('\'', "''")),
            (None, Some(sql)) => sql.clone(),
            _ => return Err(failed(Refusal::new("invalid", "wants either `from` or `sql`"))),
        };
        call.load((&sql, &call.mart), table, (work.ingest.mode.word(), &work.ingest.key), &call.once).await
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
        let made = call.post("/branches", json!({"name": work.name, "at": work.at})).await;
        let made = unless(made, "conflict", json!({"name": work.name}));
        let empty = work.at.is_none() && matches!(&made, Err(error) if code_of(error) == Some("not_found"));
        if !empty {
            return made;
        }
        let shown = call.ask(Method::GET, "", None, &[]).await?;
        if !shown["position"].is_null() {
            return made;
        }
        let tenant = call.mart.0.split('/').next().unwrap_or_default();
        let path = format!("/v1/tenants/{tenant}/marts");
        let body = json!({"name": work.name});
        let made = call.watch.over(async |_| self.tarn.call(Method::POST, &path, Some(&body), &[]).await).await;
        unless(made, "conflict", body.clone())
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

    /// Puts tables of one mart in the place of another's, all in one transaction: they are loaded beside them first.
    #[activity(name = "tarn_publish")]
    pub async fn publish(self: Arc<Self>, ctx: ActivityContext, work: CarryOver) -> Result<Value, ActivityError> {
        let call = self.call(&ctx, &work.place)?;
        let mut script = String::from("BEGIN;\n");
        let mut rows = serde_json::Map::new();
        for (index, name) in work.tables.iter().enumerate() {
            let (schema, table) = table_name(name).ok_or_else(|| no_table(name))?;
            let staging = staging(&call.once, index);
            let sql = format!("FROM \"{schema}\".\"{table}\"");
            let once = format!("{}/{index}", call.once);
            let loaded = call.load((&sql, &work.from), ("main", &staging), ("replace", &[]), &once).await?;
            rows.insert(name.clone(), loaded["rows"].clone());
            if schema != "main" {
                script += &format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\";\n");
            }
            script += &format!(
                "CREATE OR REPLACE TABLE \"{schema}\".\"{table}\" AS FROM main.\"{staging}\";\nDROP TABLE main.\"{staging}\";\n"
            );
        }
        let done = call.query(&(script + "COMMIT"), None, &call.once).await?;
        Ok(json!({"tables": rows, "position": done["position"]}))
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
        if !work.tables.is_empty() {
            let run = ctx.info().workflow_run_id.clone().unwrap_or_default();
            let of_publish = format!("{run}/{PUBLISH_ID}");
            let drops = (0..work.tables.len())
                .map(|index| format!("DROP TABLE IF EXISTS main.\"{}\"", staging(&of_publish, index)));
            call.query(&drops.collect::<Vec<_>>().join(";\n"), None, &call.once).await?;
        }
        Ok(json!({}))
    }
}

/// The id of a transform's activity that publishes.
pub const PUBLISH_ID: &str = "publish";

/// The table that one is loaded into first.
fn staging(once: &str, index: usize) -> String {
    format!("tarn_staging_{}_{index}", &blake3::hash(once.as_bytes()).to_hex()[..16])
}

fn no_table(name: &str) -> ActivityError {
    failed(Refusal::new("invalid", format!("`{name}` is not `table` or `schema.table`")))
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
