//! What the control store holds: tenants, their marts, the hashes of tokens. Pure data; unknown fields are kept out by a format
//! number, so that an old node never drops what a newer one wrote. Fields that came later are left out where they say nothing: then old
//! nodes read on; where they say something, such as that a token ends, an old node refuses the whole state rather than let more in.

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
    /// The profile of requests that name none; none is the node's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
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
    /// The one mart that it reaches; none means all of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mart: Option<Mart>,
    /// When it ends, microseconds since the Unix epoch; none means when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_us: Option<i64>,
    /// The profiles that it may ask for; none means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profiles: Option<Vec<String>>,
}

impl State {
    /// A mart's entry.
    pub fn mart(&self, id: &MartId) -> Option<&MartEntry> {
        self.tenants.get(&id.tenant)?.marts.get(&id.mart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first release wrote it.
    const OLD: &str = r#"{"tenants":{"acme":{"created_us":1,"marts":{"sales":{"incarnation":"7f9c24e8-3b12-4fef-9be1-0f4a4c1b2d3e","created_us":2}}}},"tokens":{"5f0c":{"hash":"ab","tenant":"acme","role":"reader","name":"bi","created_us":3}}}"#;

    #[test]
    fn what_was_written_before_tokens_could_end_is_read_and_written_alike() {
        let state: State = serde_json::from_str(OLD).expect("old states stay readable");
        let token = &state.tokens["5f0c"];
        assert_eq!((&token.mart, token.expires_us, &token.profiles), (&None, None, &None));
        assert_eq!(serde_json::to_string(&state).expect("it serialises"), OLD);
    }

    #[test]
    fn what_an_older_node_does_not_know_it_refuses() {
        let newer = OLD.replace("\"created_us\":3", "\"created_us\":3,\"only_on_sundays\":true");
        assert!(serde_json::from_str::<State>(&newer).is_err());
        let mut state: State = serde_json::from_str(OLD).expect("old states stay readable");
        let token = state.tokens.get_mut("5f0c").expect("it is there");
        (token.mart, token.expires_us) = (Some("sales".parse().expect("a legal name")), Some(7));
        let text = serde_json::to_string(&state).expect("it serialises");
        assert!(text.contains("\"mart\":\"sales\",\"expires_us\":7"), "{text}");
    }
}
