//! Names of tenants and marts, parsed once at the edge.
//!
//! A value of these types is safe to use in a file name, an object key, a bucket name and a log line:
//! `[a-z0-9-]`, 1 to 50 characters, no leading or trailing hyphen (bucket names made from them must be legal in S3).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name, so that `sm-{tenant}-processed` stays within S3's 63 characters.
pub const MAX_NAME_CHARS: usize = 50;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {what} name has 1 to {MAX_NAME_CHARS} of `a-z`, `0-9` and `-`, with no hyphen at either end")]
pub struct BadName {
    what: &'static str,
}

fn check(text: &str, what: &'static str) -> Result<(), BadName> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ok = (1..=MAX_NAME_CHARS).contains(&text.len())
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if ok { Ok(()) } else { Err(BadName { what }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                check(text, $what)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// An owner of marts; the unit of authorisation, of quotas and of buckets.
    Tenant,
    "tenant"
);
name!(
    /// One DuckDB database of a tenant; the unit of fencing, replication and restore.
    Mart,
    "mart"
);

/// A mart with its tenant: what a request is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MartId {
    /// The owner.
    pub tenant: Tenant,
    /// The mart, unique within its tenant.
    pub mart: Mart,
}

impl fmt::Display for MartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.mart)
    }
}

impl FromStr for MartId {
    type Err = BadName;

    /// `TENANT/MART`.
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (tenant, mart) = text.split_once('/').ok_or(BadName { what: "`TENANT/MART`" })?;
        Ok(Self { tenant: tenant.parse()?, mart: mart.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_or_bucket_are_refused() {
        let too_long = "a".repeat(MAX_NAME_CHARS + 1);
        for bad in ["", "..", "a/b", "A", "a_b", "a.b", "-a", "a-", "é", "a b", too_long.as_str()] {
            assert!(bad.parse::<Tenant>().is_err(), "{bad:?} passed");
            assert!(serde_json::from_value::<Mart>(bad.into()).is_err(), "{bad:?} passed as JSON");
        }
    }

    #[test]
    fn legal_names_survive_json() {
        let longest = "a".repeat(MAX_NAME_CHARS);
        for good in ["a", "0", "sales-2024", longest.as_str()] {
            let mart: Mart = good.parse().expect("a legal name");
            let json = serde_json::to_string(&mart).expect("a name is a JSON string");
            assert_eq!(serde_json::from_str::<Mart>(&json).expect("what was written is read"), mart);
        }
    }
}
