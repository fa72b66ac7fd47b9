//! Bucket names, the templates that make them, and the handle to one bucket.
//!
//! Holds no policy: a name says what a bucket is for, the gateway says who may do what there.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;

use super::StoreError;
use super::lister::Lister;
use crate::names::Tenant;

/// A legal bucket name: 3 to 63 of `a-z`, `0-9`, `-` and `.`, starting and ending with a letter or digit, never `..`.
/// Safe as a directory name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(Arc<str>);

impl BucketName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BucketName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        if (3..=63).contains(&bytes.len())
            && bytes.iter().all(|b| legal(*b))
            && edge(bytes.first())
            && edge(bytes.last())
            && !text.contains("..")
        {
            return Ok(Self(text.into()));
        }
        Err(StoreError::Config(format!("`{text}` is not a legal bucket name")))
    }
}

/// How buckets are named: each template holds `{tenant}` exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketTemplates {
    analytics: Template,
    processed: Template,
    raw: Template,
}

/// The buckets of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantBuckets {
    /// Replicas under `duckdb/`; the rest is the tenant's to read and write.
    pub analytics: BucketName,
    /// Read by the tenant's SQL.
    pub processed: BucketName,
    /// Read by the tenant's SQL.
    pub raw: BucketName,
}

impl Default for BucketTemplates {
    fn default() -> Self {
        let template = |suffix: &str| Template { before: "sm-".into(), after: suffix.into() };
        Self { analytics: template("-analytics"), processed: template("-processed"), raw: template("-raw") }
    }
}

impl BucketTemplates {
    /// Refuses templates by which two tenants, or two purposes, could end up in one bucket.
    pub fn new(analytics: &str, processed: &str, raw: &str) -> Result<Self, StoreError> {
        let all = Self { analytics: analytics.parse()?, processed: processed.parse()?, raw: raw.parse()? };
        let pairs = [(&all.analytics, &all.processed), (&all.analytics, &all.raw), (&all.processed, &all.raw)];
        for (one, other) in pairs {
            if one.may_meet(other) {
                return Err(StoreError::Config(format!(
                    "bucket templates `{one}` and `{other}` can name the same bucket; give them different endings"
                )));
            }
        }
        Ok(all)
    }

    /// The buckets of a tenant.
    pub fn names_of(&self, tenant: &Tenant) -> TenantBuckets {
        TenantBuckets {
            analytics: self.analytics.name(tenant),
            processed: self.processed.name(tenant),
            raw: self.raw.name(tenant),
        }
    }

    /// Whether some tenant's bucket could have this name: the control bucket must not.
    pub fn could_name(&self, bucket: &BucketName) -> bool {
        [&self.analytics, &self.processed, &self.raw].iter().any(|template| template.could_name(bucket.as_str()))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Template {
    before: String,
    after: String,
}

impl Template {
    fn name(&self, tenant: &Tenant) -> BucketName {
        BucketName(format!("{}{tenant}{}", self.before, self.after).into())
    }

    fn could_name(&self, bucket: &str) -> bool {
        bucket.len() > self.before.len() + self.after.len()
            && bucket.starts_with(&self.before)
            && bucket.ends_with(&self.after)
    }

    /// Whether some two tenant names make the same bucket name of both templates.
    fn may_meet(&self, other: &Self) -> bool {
        let nested = |a: &str, b: &str| a.starts_with(b) || b.starts_with(a);
        let reversed = |s: &str| s.chars().rev().collect::<String>();
        nested(&self.before, &other.before) && nested(&reversed(&self.after), &reversed(&other.after))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{{tenant}}{}", self.before, self.after)
    }
}

impl FromStr for Template {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let bad = |why: &str| StoreError::Config(format!("bucket template `{text}` {why}"));
        let (before, after) = text.split_once("{tenant}").ok_or_else(|| bad("lacks `{tenant}`"))?;
        if after.contains("{tenant}") {
            return Err(bad("has `{tenant}` twice"));
        }
        let template = Self { before: before.into(), after: after.into() };
        let longest = "a".repeat(crate::names::MAX_NAME_CHARS);
        let named: Result<BucketName, _> = format!("{before}{longest}{after}").parse();
        match named {
            Ok(_) => Ok(template),
            Err(_) => Err(bad("does not make legal bucket names of up to 63 characters for every tenant")),
        }
    }
}

/// A handle to one bucket, cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    /// The bucket's name.
    pub name: BucketName,
    /// Reads and unconditional writes; a client that retries.
    pub data: Arc<dyn ObjectStore>,
    /// The same place through a client that never retries: for names won by create-if-absent.
    pub log: Arc<dyn ObjectStore>,
    /// Uploads in parts.
    pub multipart: Arc<dyn MultipartStore>,
    /// Lists by any prefix, where the store can.
    pub(super) pages: Option<Arc<Lister>>,
}

impl Bucket {
    /// A bucket on a store that never retries by itself and lists only whole directories.
    pub(super) fn of_one<S: ObjectStore + MultipartStore>(name: BucketName, store: Arc<S>) -> Self {
        Self { name, data: store.clone(), log: store.clone(), multipart: store, pages: None }
    }

    /// The two clients as the replica wants them.
    pub fn replica(&self) -> replica::Stores {
        replica::Stores { data: self.data.clone(), log: self.log.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_names_are_those_of_the_contract() {
        let names = BucketTemplates::default().names_of(&"default".parse().expect("a legal name"));
        assert_eq!(names.analytics.as_str(), "sm-default-analytics");
        assert_eq!(names.processed.as_str(), "sm-default-processed");
        assert_eq!(names.raw.as_str(), "sm-default-raw");
    }

    #[test]
    fn templates_by_which_two_tenants_could_share_a_bucket_are_refused() {
        for (analytics, processed, raw) in [
            ("sm-{tenant}", "sm-{tenant}-processed", "sm-{tenant}-raw"),
            ("{tenant}-raw-raw", "{tenant}-p", "{tenant}-raw"),
            ("a-{tenant}", "a-{tenant}", "b-{tenant}"),
            ("sm-analytics", "sm-{tenant}-processed", "sm-{tenant}-raw"),
            ("{tenant}-{tenant}", "sm-{tenant}-processed", "sm-{tenant}-raw"),
            ("SM-{tenant}-a", "sm-{tenant}-b", "sm-{tenant}-c"),
            ("../{tenant}-a", "sm-{tenant}-b", "sm-{tenant}-c"),
        ] {
            assert!(BucketTemplates::new(analytics, processed, raw).is_err(), "{analytics} {processed} {raw}");
        }
        assert!(BucketTemplates::new("a.{tenant}", "b.{tenant}", "c.{tenant}").is_ok());
    }

    #[test]
    fn a_control_bucket_that_a_tenant_could_own_is_seen() {
        let templates = BucketTemplates::new("tarn-{tenant}", "p-{tenant}", "r-{tenant}").expect("distinct");
        assert!(templates.could_name(&"tarn-control".parse().expect("legal")));
        assert!(!BucketTemplates::default().could_name(&"tarn-control".parse().expect("legal")));
    }
}
