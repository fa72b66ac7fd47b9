//! Who asks, and what they may do.
//!
//! A bearer token is either the node's admin token or one of the control store's; the store holds hashes only. It decides roles,
//! not what a role may run (the engine's gate does).

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::wire::Role;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use rand::RngCore;
use subtle::ConstantTimeEq;

use crate::clock;
use crate::control::{State, TokenEntry};
use crate::error::{ApiError, Code};
use crate::names::Tenant;

const PREFIX: &str = "tarn_";
const ADMIN_FILE: &str = "admin-token";

/// Whoever holds a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Stable for the same token; not secret.
    pub id: String,
    /// None reaches every tenant.
    pub tenant: Option<Tenant>,
    /// What it may do there.
    pub role: Role,
}

impl Principal {
    /// The role in a tenant. Another tenant is forbidden whether it exists or not.
    pub fn role_in(&self, tenant: &Tenant) -> Result<Role, ApiError> {
        match &self.tenant {
            Some(own) if own != tenant => Err(ApiError::new(Code::Forbidden, "this token is for another tenant")),
            _ => Ok(self.role),
        }
    }

    /// Refuses all but administrators of the tenant.
    pub fn require_admin_of(&self, tenant: &Tenant) -> Result<(), ApiError> {
        match self.role_in(tenant)? {
            Role::Admin => Ok(()),
            Role::Reader | Role::Writer => Err(ApiError::new(Code::Forbidden, "this takes the role `admin`")),
        }
    }

    /// Refuses all but administrators of the node.
    pub fn require_node_admin(&self) -> Result<(), ApiError> {
        if self.tenant.is_none() && self.role == Role::Admin {
            return Ok(());
        }
        Err(ApiError::new(Code::Forbidden, "this takes the node's admin token"))
    }
}

/// The admin token's hash.
pub struct Admin {
    hash: blake3::Hash,
}

impl Admin {
    /// For a known token.
    pub fn new(token: &str) -> Self {
        Self { hash: blake3::hash(token.as_bytes()) }
    }

    /// The token kept in the state directory, made if there is none; then also returned, to be shown once.
    pub fn keep_in(state_dir: &Path) -> std::io::Result<(Self, Option<String>)> {
        let path = state_dir.join(ADMIN_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok((Self::new(text.trim()), None)),
            Ok(_) => std::fs::remove_file(&path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let token = format!("{PREFIX}admin_{}", random::<32>());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(token.as_bytes())?;
        file.sync_all()?;
        Ok((Self::new(&token), Some(token)))
    }

    /// The principal of a request's bearer token.
    pub fn authenticate(&self, headers: &HeaderMap, state: &State) -> Result<Principal, ApiError> {
        self.holder(bearer(headers).ok_or_else(unknown)?, state)
    }

    /// Whoever holds the token.
    pub fn holder(&self, token: &str, state: &State) -> Result<Principal, ApiError> {
        let hash = blake3::hash(token.as_bytes());
        // blake3::Hash compares in constant time.
        if hash == self.hash {
            return Ok(Principal { id: "admin".into(), tenant: None, role: Role::Admin });
        }
        let id = token_id(token).ok_or_else(unknown)?;
        let entry = state.tokens.get(id).ok_or_else(unknown)?;
        if !bool::from(entry.hash.as_bytes().ct_eq(hash.to_hex().as_bytes())) {
            return Err(unknown());
        }
        Ok(Principal { id: id.to_owned(), tenant: entry.tenant.clone(), role: entry.role })
    }
}

/// Why a request without a known token is refused.
pub fn unknown() -> ApiError {
    ApiError::new(Code::Unauthenticated, "a valid bearer token is needed").hint("send `Authorization: Bearer TOKEN`")
}

/// A new token: its id, its text (shown once), and what the control store keeps.
pub fn new_token(tenant: Option<Tenant>, role: Role, name: String) -> (String, String, TokenEntry) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let text = format!("{PREFIX}{id}_{}", random::<32>());
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    (id, text, TokenEntry { hash, tenant, role, name, created_us: clock::now_us() })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn token_id(token: &str) -> Option<&str> {
    Some(token.strip_prefix(PREFIX)?.split_once('_')?.0)
}

fn random<const N: usize>() -> String {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().expect("a legal header"))])
    }

    #[test]
    fn only_the_whole_token_opens() {
        let tenant: Tenant = "acme".parse().expect("a legal name");
        let (id, text, entry) = new_token(Some(tenant.clone()), Role::Reader, "test".into());
        let mut state = State::default();
        state.tokens.insert(id.clone(), entry);
        let admin = Admin::new("boss");

        let principal = admin.authenticate(&headers(&format!("Bearer {text}")), &state).expect("the token is known");
        assert_eq!(principal, Principal { id: id.clone(), tenant: Some(tenant), role: Role::Reader });
        assert!(
            admin
                .authenticate(&headers("bearer boss"), &state)
                .expect("the admin is known")
                .require_node_admin()
                .is_ok()
        );

        let cut = &text[..text.len() - 1];
        for wrong in [
            format!("Bearer {cut}"),
            format!("Bearer tarn_{id}_"),
            format!("Basic {text}"),
            "Bearer ".into(),
            "Bearer bos".into(),
        ] {
            assert!(admin.authenticate(&headers(&wrong), &state).is_err(), "{wrong} passed");
        }
        assert!(admin.authenticate(&HeaderMap::new(), &state).is_err());
    }

    #[test]
    fn a_tenants_token_reaches_only_its_tenant() {
        let tenant: Tenant = "acme".parse().expect("a legal name");
        let other: Tenant = "evil".parse().expect("a legal name");
        let principal = Principal { id: "x".into(), tenant: Some(tenant.clone()), role: Role::Admin };
        assert!(principal.require_admin_of(&tenant).is_ok());
        assert!(principal.role_in(&other).is_err());
        assert!(principal.require_node_admin().is_err());
    }

    #[test]
    fn the_admin_token_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (_, shown) = Admin::keep_in(dir.path()).expect("the directory is writable");
        let token = shown.expect("the first start shows the token");
        let (admin, again) = Admin::keep_in(dir.path()).expect("the directory is readable");
        assert_eq!(again, None);
        assert!(admin.authenticate(&headers(&format!("Bearer {token}")), &State::default()).is_ok());
        let mode = std::fs::metadata(dir.path().join(ADMIN_FILE)).expect("it was written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
