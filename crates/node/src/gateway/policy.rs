//! Who may do what where, as pure decisions on decoded names.
//!
//! An engine reads its tenant's `-raw` and `-processed` buckets, reads and writes its `-analytics` bucket, and sees nothing
//! of `duckdb/` there, which is the replica's. Everything else, other buckets included, is refused in one way whether it
//! exists or not.

use crate::stores::TenantBuckets;

use super::edge::clean_key;

/// What a request wants to do with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// See it or its bytes.
    Read,
    /// Make, replace or remove it.
    Write,
}

/// The rules for one tenant.
pub(super) struct Policy {
    buckets: TenantBuckets,
}

impl Policy {
    pub(super) fn new(buckets: TenantBuckets) -> Self {
        Self { buckets }
    }

    /// Whether the key may be read or written.
    pub(super) fn allows(&self, access: Access, bucket: &str, key: &str) -> bool {
        let place = match access {
            Access::Read => self.readable(bucket),
            Access::Write => bucket == self.buckets.analytics.as_str(),
        };
        place && clean_key(key) && self.visible(bucket, key)
    }

    /// Whether keys that start with the prefix may be listed; what is not visible is left out of the list.
    pub(super) fn allows_list(&self, bucket: &str, prefix: &str) -> bool {
        let segments = prefix.strip_suffix('/').unwrap_or(prefix);
        // A prefix without a `/` names no folder yet: `duckdb` also starts `duckdb-exports/`.
        let place = !prefix.contains('/') || self.visible(bucket, prefix);
        self.readable(bucket) && (prefix.is_empty() || clean_key(segments)) && place
    }

    /// Whether a key, or a folded prefix, may be named in a list.
    pub(super) fn visible(&self, bucket: &str, key: &str) -> bool {
        // Lower case, because a directory store may lie on a file system that does not tell the cases apart.
        let own = || key.split('/').next().unwrap_or_default().to_lowercase() == "duckdb";
        bucket != self.buckets.analytics.as_str() || !own()
    }

    fn readable(&self, bucket: &str) -> bool {
        let own = [&self.buckets.analytics, &self.buckets.processed, &self.buckets.raw];
        own.iter().any(|name| name.as_str() == bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::BucketTemplates;

    fn acme() -> Policy {
        Policy::new(BucketTemplates::default().names_of(&"acme".parse().expect("a legal name")))
    }

    #[test]
    fn raw_and_processed_are_read_only_and_analytics_is_not() {
        let policy = acme();
        for bucket in ["sm-acme-raw", "sm-acme-processed"] {
            assert!(policy.allows(Access::Read, bucket, "x"));
            assert!(!policy.allows(Access::Write, bucket, "x"));
        }
        assert!(policy.allows(Access::Read, "sm-acme-analytics", "out/x"));
        assert!(policy.allows(Access::Write, "sm-acme-analytics", "out/x"));
    }

    #[test]
    fn other_buckets_are_out_of_reach() {
        for bucket in ["sm-acme-analytics-evil", "sm-other-raw", "tarn-control", "", "sm-acme-raw/"] {
            assert!(!acme().allows(Access::Read, bucket, "x"), "{bucket}");
            assert!(!acme().allows_list(bucket, ""), "{bucket}");
        }
    }

    #[test]
    fn the_replica_is_out_of_reach_and_its_neighbours_are_not() {
        let policy = acme();
        for key in
            ["duckdb", "duckdb/m/log/1", "DuckDB/m", "duc\u{212a}db/m", "x//duckdb", "./duckdb/m", "x/../duckdb/m"]
        {
            for access in [Access::Read, Access::Write] {
                assert!(!policy.allows(access, "sm-acme-analytics", key), "{key}");
            }
        }
        for prefix in ["duckdb/", "DUCKDB/m", "../duckdb", "/duckdb", "duckdb//"] {
            assert!(!policy.allows_list("sm-acme-analytics", prefix), "{prefix}");
        }
        for key in ["duckdb-exports/x", "duckdbx", "out/duckdb/x", "duck"] {
            assert!(policy.allows(Access::Write, "sm-acme-analytics", key), "{key}");
        }
        assert!(policy.allows_list("sm-acme-analytics", "duckdb"));
        assert!(!policy.visible("sm-acme-analytics", "duckdb/"));
        assert!(policy.allows(Access::Read, "sm-acme-raw", "duckdb/x"));
    }
}
