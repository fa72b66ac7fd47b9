//! Definitions of workflows, as people write them in YAML, workers get them as input, and schedules keep them.

mod check;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::Fault;

/// A file's content: one workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Definition {
    /// SQL in dependent steps, checked, then shown to others.
    Transform(Transform),
    /// What keeps marts in order.
    Maintenance(Maintenance),
}

/// `tenant/mart`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct MartName(#[schemars(regex(pattern = r"^[a-z0-9-]{1,50}/[a-z0-9-]{1,50}$"))] pub String);

impl fmt::Display for MartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Steps of SQL, run where their work can be thrown away, then checks, then Postgres, then the mart itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// The workflow's id on Temporal, and of its schedule.
    #[schemars(regex(pattern = "^[a-z][a-z0-9-]{0,47}$"))]
    pub name: String,
    /// The mart; by default that of the worker's DSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mart: Option<MartName>,
    /// Where the steps run.
    #[serde(default)]
    pub place: Place,
    pub steps: Vec<Step>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub persist: Vec<Persist>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

impl Transform {
    /// Tables that take the mart's place.
    pub fn published(&self) -> &[String] {
        self.publish.as_ref().map_or(&[], |publish| &publish.tables)
    }
}

/// Where the steps of a transform run, and so how their work is undone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In a branch of the mart, which is dropped at the end; `publish.tables` are carried over in one transaction.
    #[default]
    Branch,
    /// In the mart itself, which goes back to a snapshot if anything fails: for marts that nobody else writes to.
    Snapshot,
}

/// A piece of work in the mart; all steps whose `needs` are done run at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9 _.-]{0,59}$"))]
    pub name: String,
    /// Steps that must be done before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// A statement or a script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// Files or a query, loaded into a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest: Option<Ingest>,
}

/// A load of a table, all or nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// What files: `s3://bucket/path/*.parquet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Or a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// `table` or `schema.table`.
    pub table: String,
    pub mode: Mode,
    /// Columns that tell one row from another, for `upsert`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
}

/// What becomes of a table and of the rows in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Create,
    Append,
    Replace,
    Upsert,
}

impl Mode {
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Append => "append",
            Self::Replace => "replace",
            Self::Upsert => "upsert",
        }
    }
}

/// A query whose answer decides whether the work is good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9 _.-]{0,59}$"))]
    pub name: String,
    pub sql: String,
    /// The one value that it must answer. Without it the query must answer no rows: it looks for bad ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<serde_json::Value>,
}

/// A query's result, into a table of Postgres in one transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Persist {
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9 _.-]{0,59}$"))]
    pub name: String,
    pub sql: String,
    /// The node's name for the Postgres server.
    pub connection: String,
    pub table: String,
    pub mode: Mode,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
}

/// What others see at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Tables whose rows the branch's take the place of in the mart, all at once, if nobody else has changed them meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// Names the mart's state then; a date and time are added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[a-z][a-z0-9-]{0,47}$"))]
    pub snapshot: Option<String>,
}

/// How long work may take, and what it may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// CPU and memory that queries ask for.
    pub profile: String,
    /// Of one try of a step, in seconds.
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: u64,
    /// Of all tries of a step, in seconds: so long errors that time can heal are tried again.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub retry_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { profile: "batch".into(), timeout_seconds: 3600, retry_seconds: 6 * 3600 }
    }
}

impl Limits {
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    pub fn retry(&self) -> Duration {
        Duration::from_secs(self.retry_seconds)
    }
}

/// When a workflow runs by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Minute, hour, day of month, month, day of week.
    pub cron: String,
    /// Name of a time zone.
    #[serde(default = "utc")]
    pub timezone: String,
    /// Each run begins so much later at most, in seconds.
    #[serde(default)]
    pub jitter_seconds: u64,
    /// What happens if the last run is not over.
    #[serde(default)]
    pub overlap: Overlap,
    /// Runs that were missed by up to so many seconds are caught up with.
    #[serde(default = "a_day")]
    #[schemars(range(min = 10))]
    pub catchup_seconds: u64,
}

fn utc() -> String {
    "UTC".into()
}

fn a_day() -> u64 {
    86_400
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// The new run is left out.
    #[default]
    Skip,
    /// The new run waits; only one does.
    Wait,
}

/// Tasks on marts, one after the other; a mart that fails does not keep the others from their turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    #[schemars(regex(pattern = "^[a-z][a-z0-9-]{0,47}$"))]
    pub name: String,
    pub marts: Vec<MartName>,
    /// By default daily snapshot, archive and sweep, a weekly verification, a monthly vacuum.
    #[serde(default = "usual_tasks")]
    pub tasks: BTreeMap<Task, TaskOptions>,
    #[serde(default)]
    pub limits: Limits,
}

/// In the order in which they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Names the present moment.
    Snapshot,
    /// A plain DuckDB file into the tenant's bucket.
    Archive,
    /// Lets go what retention allows.
    Sweep,
    /// A trial restore of the replica.
    Verify,
    /// Rewrites the database without its free space.
    Vacuum,
}

impl Task {
    pub const ALL: [Self; 5] = [Self::Snapshot, Self::Archive, Self::Sweep, Self::Verify, Self::Vacuum];

    pub fn word(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Archive => "archive",
            Self::Sweep => "sweep",
            Self::Verify => "verify",
            Self::Vacuum => "vacuum",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskOptions {
    #[serde(flatten)]
    pub schedule: Schedule,
    /// The store's class for archives, such as `STANDARD_IA`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Archives snapshots of so many days instead of the present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than_days: Option<f64>,
}

fn usual_tasks() -> BTreeMap<Task, TaskOptions> {
    let at = |cron: &str| TaskOptions {
        schedule: Schedule {
            cron: cron.into(),
            timezone: utc(),
            jitter_seconds: 600,
            overlap: Overlap::Skip,
            catchup_seconds: a_day(),
        },
        storage_class: None,
        older_than_days: None,
    };
    BTreeMap::from([
        (Task::Snapshot, at("0 1 * * *")),
        (Task::Archive, at("0 2 * * *")),
        (Task::Sweep, at("0 3 * * *")),
        (Task::Verify, at("0 4 * * 0")),
        (Task::Vacuum, at("0 5 1 * *")),
    ])
}

impl Definition {
    /// What the text defines; errors name the place in it.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let definition: Self = serde_yaml_ng::from_str(text).map_err(|error| Fault::new(error.to_string()))?;
        definition.check()?;
        Ok(definition)
    }

    /// The workflow's id, and the beginning of its schedules'.
    pub fn name(&self) -> &str {
        match self {
            Self::Transform(transform) => &transform.name,
            Self::Maintenance(maintenance) => &maintenance.name,
        }
    }

    /// The JSON schema of definitions, for editors.
    pub fn schema() -> serde_json::Value {
        let mut schema = schemars::schema_for!(Self).to_value();
        schema["title"] = "A workflow of tarn-worker".into();
        schema
    }
}

/// `schema.table` or `table`, split; a name with other than letters, digits and `_` is not meant here.
pub fn table_name(text: &str) -> Option<(&str, &str)> {
    let (schema, table) = text.split_once('.').unwrap_or(("main", text));
    let plain = |name: &str| {
        name.len() <= 100
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    (plain(schema) && plain(table)).then_some((schema, table))
}
