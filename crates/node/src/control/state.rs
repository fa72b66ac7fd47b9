//! What the control store holds: tenants, their marts, the hashes of tokens. Pure data; unknown fields are kept out by a format
//! number, so that an old node never drops what a newer one wrote.

use std::collections::BTreeMap;

use engine::wire::Role;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::names::{Mart, MartId, Tenant};

/// Everything that all nodes of an installation agree on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Tenants by name.
    pub tenants: BTreeMap<Tenant, TenantEntry>,
    /// Tokens by id.
    pub tokens: BTreeMap<String, TokenEntry>,
    /// Hex of 32 random bytes, part of the key that signs Flight tickets; made when the first is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket_key: Option<String>,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantEntry {
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
    /// Its marts by name.
    pub marts: BTreeMap<Mart, MartEntry>,
}

/// A mart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MartEntry {
    /// This life of the mart: part of all its object keys, so that a mart of the same name made later never meets its objects.
    pub incarnation: Uuid,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
    /// The marts it was branched from, oldest first: it shares objects with any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
}

/// One life of a mart that another was branched from; it may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// Its name then.
    pub mart: Mart,
    /// Which life.
    pub incarnation: Uuid,
}

/// A token: what it may do, never its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// Hex of the blake3 of the token's text; the text has 256 random bits, so a fast hash is enough.
    pub hash: String,
    /// Its tenant; none means all of the node.
    pub tenant: Option<Tenant>,
    /// What it may do there.
    pub role: Role,
    /// What it is for, in its maker's words.
    pub name: String,
    /// When it was made, microseconds since the Unix epoch.
    pub created_us: i64,
}

impl State {
    /// A mart's entry.
    pub fn mart(&self, id: &MartId) -> Option<&MartEntry> {
        self.tenants.get(&id.tenant)?.marts.get(&id.mart)
    }
}
