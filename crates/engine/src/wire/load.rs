//! `POST /load`: a body of rows for one table.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Header `tarn-load`, as percent-encoded JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// The table's schema; `main` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// The table.
    pub table: String,
    /// What to do if there is no such table.
    #[serde(default)]
    pub if_missing: IfMissing,
    /// What to do if there is.
    #[serde(default)]
    pub if_exists: IfExists,
    /// For an upsert: the columns that tell rows apart; the table's primary key if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    /// A temporary table, which belongs to `session` and is in no schema.
    #[serde(default)]
    pub temporary: bool,
    /// Runs in this session, in its transaction if one is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Uuid>,
}

/// What to do if there is no such table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfMissing {
    /// Fails.
    #[default]
    Fail,
    /// Makes it, with the columns of the body.
    Create,
}

/// What to do if there is a table of this name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    /// Fails.
    #[default]
    Fail,
    /// Adds the body's rows. Columns go by their names; those that the body lacks get their default.
    Append,
    /// Makes a new table with the columns of the body in its place.
    Replace,
    /// Adds rows with a new key, and overwrites the body's columns where the key is there already.
    Upsert,
}

/// Answer of `POST /load`, with `tarn-commit` like a query's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Rows of the body.
    pub rows: u64,
    /// A new table was made.
    pub created: bool,
}
