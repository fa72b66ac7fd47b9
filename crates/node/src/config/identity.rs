//! Settings of who is let in and what is written down of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::wire::Role;

use super::{ConfigError, Layers};
use crate::auth::issuer::may_fetch;
use crate::clock;
use crate::names::Tenant;

/// An issuer of JWTs.
#[derive(Debug, Clone)]
pub struct Oidc {
    /// Its `iss`, exactly.
    pub issuer: String,
    /// The `aud` that is meant for this installation, exactly.
    pub audience: String,
    /// Where its keys are; none asks its discovery document.
    pub jwks_url: Option<String>,
    /// The tenant of all its tokens, if it serves one only.
    pub tenant: Option<Tenant>,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim that names roles.
    pub role_claim: String,
    /// The claim that names the one mart of a token.
    pub mart_claim: Option<String>,
    /// The claim that names the profiles of a token.
    pub profiles_claim: Option<String>,
    /// What its roles mean here.
    pub roles: BTreeMap<String, Role>,
    /// Its role that makes an administrator of the node.
    pub node_admin_role: Option<String>,
    /// Keys may come over http from beyond this machine.
    pub allow_http: bool,
    /// How often keys are fetched.
    pub refresh: Duration,
    /// How long they count when they can't be.
    pub keys_for: Duration,
}

impl Oidc {
    /// With all else as by default.
    pub fn of(issuer: &str, audience: &str) -> Self {
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            jwks_url: None,
            tenant: None,
            tenant_claim: "tenant".into(),
            role_claim: "role".into(),
            mart_claim: None,
            profiles_claim: None,
            roles: own_roles(),
            node_admin_role: None,
            allow_http: false,
            refresh: Duration::from_secs(300),
            keys_for: Duration::from_secs(12 * 3600),
        }
    }

    pub(super) fn resolve(layers: &Layers) -> Result<Option<Self>, ConfigError> {
        let Some(issuer) = layers.optional("oidc_issuer") else { return Ok(None) };
        let audience = layers.optional("oidc_audience");
        let audience = audience.ok_or_else(|| {
            ConfigError::of("oidc_audience", "an issuer's tokens are for many: say which audience is this one")
        })?;
        let allow_http = layers.parse("oidc_allow_http")?;
        let rules = Self {
            jwks_url: layers.optional("oidc_jwks_url"),
            tenant: layers.optional("oidc_tenant").map(|_| layers.parse("oidc_tenant")).transpose()?,
            tenant_claim: layers.text("oidc_tenant_claim"),
            role_claim: layers.text("oidc_role_claim"),
            mart_claim: layers.optional("oidc_mart_claim"),
            profiles_claim: layers.optional("oidc_profiles_claim"),
            roles: roles(&layers.text("oidc_roles"))?,
            node_admin_role: layers.optional("oidc_node_admin_role"),
            allow_http,
            refresh: span(layers, "oidc_refresh")?.max(Duration::from_secs(1)),
            keys_for: span(layers, "oidc_keys_for")?,
            ..Self::of(&issuer, &audience)
        };
        for (key, text) in [("oidc_issuer", Some(&rules.issuer)), ("oidc_jwks_url", rules.jwks_url.as_ref())] {
            let Some(text) = text else { continue };
            let url = reqwest::Url::parse(text).map_err(|error| ConfigError::of(key, error))?;
            if !may_fetch(&url, allow_http) {
                return Err(ConfigError::of(key, "wants https; `oidc_allow_http` allows http beyond this machine"));
            }
        }
        Ok(Some(rules))
    }
}

/// `analysts=reader,etl=writer`; nothing means our own names.
fn roles(text: &str) -> Result<BTreeMap<String, Role>, ConfigError> {
    if text.trim().is_empty() {
        return Ok(own_roles());
    }
    let own = own_roles();
    let pair = |pair: &str| {
        let (theirs, ours) = pair.rsplit_once('=')?;
        let theirs = Some(theirs.trim()).filter(|name| !name.is_empty())?;
        Some((theirs.to_owned(), *own.get(ours.trim())?))
    };
    text.split(',')
        .map(|text| pair(text).ok_or_else(|| ConfigError::of("oidc_roles", "wants `THEIRS=reader|writer|admin,…`")))
        .collect()
}

fn own_roles() -> BTreeMap<String, Role> {
    [("reader", Role::Reader), ("writer", Role::Writer), ("admin", Role::Admin)]
        .map(|(name, role)| (name.to_owned(), role))
        .into()
}

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTo {
    /// Nowhere.
    None,
    /// Standard output.
    Stdout,
    /// The end of this file.
    File(PathBuf),
}

/// What of SQL is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditSql {
    /// Nothing.
    None,
    /// Its hash: the same statement can be recognised.
    Hash,
    /// Its beginning.
    Text,
}

/// The audit log.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Where it goes.
    pub to: AuditTo,
    /// What of SQL.
    pub sql: AuditSql,
    /// Nobody is served who can't be written down.
    pub required: bool,
}

impl AuditConfig {
    pub(super) fn resolve(layers: &Layers, state_dir: &Path) -> Result<Self, ConfigError> {
        let to = match layers.text("audit").as_str() {
            "none" => AuditTo::None,
            "stdout" => AuditTo::Stdout,
            "" => AuditTo::File(state_dir.join("audit.jsonl")),
            path => AuditTo::File(std::path::absolute(path).map_err(|error| ConfigError::of("audit", error))?),
        };
        let sql = match layers.text("audit_sql").as_str() {
            "none" => AuditSql::None,
            "hash" => AuditSql::Hash,
            "text" => AuditSql::Text,
            _ => return Err(ConfigError::of("audit_sql", "wants `none`, `hash` or `text`")),
        };
        let required = layers.parse("audit_required")?;
        if required && to == AuditTo::None {
            return Err(ConfigError::of("audit_required", "there is no audit log: `audit` is `none`"));
        }
        Ok(Self { to, sql, required })
    }
}

fn span(layers: &Layers, key: &str) -> Result<Duration, ConfigError> {
    clock::parse_span(&layers.text(key))
        .ok_or_else(|| ConfigError::of(key, "wants a time as `30s`, `5m`, `12h` or `2d`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_mapped_by_name() {
        let all = roles("analysts=reader, etl = writer,a=b=admin").expect("legal");
        assert_eq!(all.len(), 3);
        assert_eq!(all.get("a=b"), Some(&Role::Admin));
        assert_eq!(roles(" ").expect("our own"), own_roles());
        for bad in ["x", "=reader", "x=owner", "a=reader,,b=writer"] {
            assert!(roles(bad).is_err(), "{bad}");
        }
    }
}
