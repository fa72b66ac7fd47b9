//! Reads back and checks everything that restores need, and puts damaged objects back from older versions that the store keeps.
//!
//! Knows what is needed (the log, its names, manifests, packs); does not know how a store keeps older versions ([`Versions`]).
//!
//! # Consistency
//! A problem is something the store said: an object is not there, or its bytes fail their checks. A store that does not answer is
//! an error, never a problem. The log may grow meanwhile: what is checked is what there was at the first look.
//!
//! # Crash consistency
//! A repair writes nothing but bytes that passed the very check which failed, and deletes nothing; it may be repeated. A slot that is
//! empty is filled by create-if-absent only, so a repair never takes a slot from a writer that has just won it.
//!
//! # Cancellation
//! May be dropped at any await; what was put back stays.

mod head;
mod packs;
mod repair;
mod segments;
mod survey;
mod walk;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path as Key;
use serde::Serialize;

pub use repair::{Outcome, Repaired};

use crate::error::Result;
use crate::open::MartReplica;
use crate::position::Position;
use survey::{Depth, Survey};

/// Which moments must be restorable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The newest.
    Head,
    /// All that the log still holds, and what is named or branched from.
    Window,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is needed and not there.
    Missing,
    /// It is there, and its bytes are not those that are needed.
    Corrupt,
}

/// An object that some restore needs and can't use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its key in the bucket.
    pub key: String,
    /// What is wrong.
    pub what: What,
    /// The check that it fails.
    pub reason: String,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The newest commit in the log, as far as that can be read.
    pub position: Option<Position>,
    /// Objects that passed or failed their checks.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// One for each damaged object, by key.
    pub problems: Vec<Problem>,
}

/// An older state of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The object.
    pub key: Key,
    /// What the store calls this state.
    pub id: String,
    /// There was nothing: a delete marker.
    pub deleted: bool,
}

/// A store's older versions of objects.
#[async_trait]
pub trait Versions: std::fmt::Debug + Send + Sync {
    /// All versions of all objects whose keys begin so; those of one object newest first, the current one among them.
    async fn list(&self, prefix: &str) -> object_store::Result<Vec<Version>>;

    /// The bytes of one version.
    async fn get(&self, key: &Key, id: &str) -> object_store::Result<Bytes>;
}

impl MartReplica {
    /// Reads everything that restores need, and says what is wrong with it. Does not stop at the first problem, and does not need
    /// the log's end to be readable. With the store's older versions it also finds that the newest records are gone, which nothing
    /// else can tell.
    ///
    /// Memory grows with the number of blocks that are looked at (some hundred bytes each), not with their bytes.
    ///
    /// Errors: `NotFound` (no log, and never was), `Dropped`, `Unavailable`.
    pub async fn verify(&self, scope: Scope, versions: Option<&dyn Versions>) -> Result<Report> {
        let survey = Survey::run(&self.log, versions, scope, Depth::Packs).await?;
        Ok(survey.report())
    }
}
