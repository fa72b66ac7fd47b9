//! Object stores from configuration: which bucket of whom lies where, and clients for it.
//!
//! One [`BucketStores`] per node hands out a [`Bucket`] per bucket name, cached for the node's life. It knows the naming
//! templates, the three places buckets can lie (S3, a directory, memory) and temporary credentials; it does not decide who
//! may reach a bucket (the gateway does) nor what lies in it (the replica does).
//!
//! **Invariants:** a bucket on S3 is never created here; two templates can never name the same bucket; the log client of a
//! bucket never retries, because a repeated conditional create can't be told from somebody else's.

mod bucket;
mod credentials;
mod lister;
mod listing;
mod s3;
mod sts;
mod versions;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::memory::InMemory;

pub use bucket::{Bucket, BucketName, BucketTemplates, TenantBuckets};
pub use listing::{Entry, Listing, Page, Start};
pub use s3::S3Config;
pub use versions::{BucketVersions, Versioning};

use crate::error::{ApiError, Code};
use crate::names::Tenant;

/// Where buckets lie.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// Every bucket is a directory under this one: the embedded default.
    File(PathBuf),
    /// Buckets of an S3 service.
    S3(S3Config),
    /// Buckets in this process's memory, gone with it: for tests. Uploads in parts want their parts in order there.
    Memory,
}

/// Why a store can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The configuration can't be right, whatever the store says.
    #[error("{0}")]
    Config(String),
    /// The store, or the service that hands out credentials for it, did not answer as it should.
    #[error("the object store can't be opened")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "a tenant's bucket can't be opened");
        Self::new(Code::Unavailable, "the tenant's bucket can't be reached").hint("`tarn doctor` checks it")
    }
}

/// All buckets of a node.
pub struct BucketStores {
    config: StoreConfig,
    templates: BucketTemplates,
    clients: Option<s3::Clients>,
    open: Mutex<HashMap<BucketName, Bucket>>,
}

impl BucketStores {
    /// Checks the configuration and prepares credentials; touches neither disk nor network yet.
    pub fn new(config: StoreConfig, templates: BucketTemplates) -> Result<Self, StoreError> {
        let clients = match &config {
            StoreConfig::S3(s3) => Some(s3::Clients::new(s3.clone())?),
            StoreConfig::File(_) | StoreConfig::Memory => None,
        };
        Ok(Self { config, templates, clients, open: Mutex::new(HashMap::new()) })
    }

    /// The names of a tenant's three buckets.
    pub fn names_of(&self, tenant: &Tenant) -> TenantBuckets {
        self.templates.names_of(tenant)
    }

    /// The bucket of that name. A directory store makes its directory; S3 is not asked whether the bucket exists.
    ///
    /// Call it off the async runtime's hot path: the first call for a name may touch the disk.
    pub fn bucket(&self, name: &BucketName) -> Result<Bucket, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = open.get(name) {
            return Ok(bucket.clone());
        }
        let bucket = self.connect(name)?;
        open.insert(name.clone(), bucket.clone());
        Ok(bucket)
    }

    fn connect(&self, name: &BucketName) -> Result<Bucket, StoreError> {
        match (&self.config, &self.clients) {
            (StoreConfig::S3(_), Some(clients)) => clients.bucket(name),
            (StoreConfig::File(dir), _) => {
                let path = dir.join(name.as_str());
                let store = replica::FileStore::open(&path).map_err(|e| StoreError::Open(e.into()))?;
                Ok(Bucket::of_one(name.clone(), Arc::new(store)))
            }
            (StoreConfig::Memory | StoreConfig::S3(_), _) => {
                Ok(Bucket::of_one(name.clone(), Arc::new(InMemory::new())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_opened_once() {
        let stores = BucketStores::new(StoreConfig::Memory, BucketTemplates::default()).expect("memory needs nothing");
        let tenant = "acme".parse().expect("a legal name");
        let name = stores.names_of(&tenant).raw;
        let first = stores.bucket(&name).expect("memory opens");
        let second = stores.bucket(&name).expect("memory opens");
        assert!(Arc::ptr_eq(&first.data, &second.data));
    }
}
