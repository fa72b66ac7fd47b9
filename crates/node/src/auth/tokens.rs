//! Tokens that the installation itself gives out: random, shown once, kept as hashes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::wire::Role;
use rand::RngCore;
use subtle::ConstantTimeEq;

use super::{Kind, Principal, Why};
use crate::clock;
use crate::control::{State, TokenEntry};
use crate::names::{Mart, Tenant};

const PREFIX: &str = "tarn_";
const ADMIN_FILE: &str = "admin-token";

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

    /// Whoever holds the token. Both kinds are compared as hashes, in constant time.
    pub fn holder(&self, token: &str, state: &State) -> Result<Principal, Why> {
        let hash = blake3::hash(token.as_bytes());
        // blake3::Hash compares in constant time.
        if hash == self.hash {
            return Ok(Principal::node_admin());
        }
        let id = token_id(token).ok_or(Why::Unknown)?;
        let entry = state.tokens.get(id).ok_or(Why::Unknown)?;
        if !bool::from(entry.hash.as_bytes().ct_eq(hash.to_hex().as_bytes())) {
            return Err(Why::Unknown);
        }
        let principal = of_entry(id, entry);
        // Said only to whoever holds it.
        if principal.is_over() { Err(Why::Expired) } else { Ok(principal) }
    }
}

/// The principal that a token of the control store stands for.
fn of_entry(id: &str, entry: &TokenEntry) -> Principal {
    Principal {
        id: id.to_owned(),
        name: entry.name.clone(),
        kind: Kind::Token,
        tenant: entry.tenant.clone(),
        mart: entry.mart.clone(),
        role: entry.role,
        profiles: entry.profiles.clone(),
        expires_us: entry.expires_us,
    }
}

/// What a new token is to be.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// None means all of the node.
    pub tenant: Option<Tenant>,
    /// None means all marts of the tenant.
    pub mart: Option<Mart>,
    /// What it may do there.
    pub role: Role,
    /// What it is for.
    pub name: String,
    /// When it ends, microseconds since the Unix epoch.
    pub expires_us: Option<i64>,
    /// The profiles that it may ask for; none means any.
    pub profiles: Option<Vec<String>>,
}

/// A new token: its id, its text (shown once), and what the control store keeps.
pub fn new_token(new: NewToken) -> (String, String, TokenEntry) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let text = format!("{PREFIX}{id}_{}", random::<32>());
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    let NewToken { tenant, mart, role, name, expires_us, profiles } = new;
    (id, text, TokenEntry { hash, tenant, mart, role, name, created_us: clock::now_us(), expires_us, profiles })
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

    fn new(expires_us: Option<i64>) -> NewToken {
        let tenant = Some("acme".parse().expect("a legal name"));
        NewToken { tenant, mart: None, role: Role::Reader, name: "test".into(), expires_us, profiles: None }
    }

    #[test]
    fn only_the_whole_token_opens() {
        let (id, text, entry) = new_token(new(None));
        let mut state = State::default();
        state.tokens.insert(id.clone(), entry);
        let admin = Admin::new("boss");

        let principal = admin.holder(&text, &state).expect("the token is known");
        assert_eq!((principal.id.as_str(), principal.role, principal.kind), (id.as_str(), Role::Reader, Kind::Token));
        assert!(admin.holder("boss", &state).expect("the admin is known").require_node_admin().is_ok());

        let cut = &text[..text.len() - 1];
        for wrong in [cut, &format!("tarn_{id}_"), &id, "", "bos"] {
            assert_eq!(admin.holder(wrong, &state).err(), Some(Why::Unknown), "{wrong} passed");
        }
    }

    #[test]
    fn a_token_ends_when_its_time_has_come() {
        let mut state = State::default();
        let mut texts = Vec::new();
        for expires_us in [clock::now_us() - 1, clock::now_us() + 60_000_000] {
            let (id, text, entry) = new_token(new(Some(expires_us)));
            state.tokens.insert(id, entry);
            texts.push(text);
        }
        let admin = Admin::new("boss");
        assert_eq!(admin.holder(&texts[0], &state).err(), Some(Why::Expired));
        assert!(admin.holder(&texts[1], &state).is_ok());
    }

    #[test]
    fn the_admin_token_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (_, shown) = Admin::keep_in(dir.path()).expect("the directory is writable");
        let token = shown.expect("the first start shows the token");
        let (admin, again) = Admin::keep_in(dir.path()).expect("the directory is readable");
        assert_eq!(again, None);
        assert!(admin.holder(&token, &State::default()).is_ok());
        let mode = std::fs::metadata(dir.path().join(ADMIN_FILE)).expect("it was written").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
