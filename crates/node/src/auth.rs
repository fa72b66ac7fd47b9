//! Who asks, and what they may do.
//!
//! A request shows a token: the node's own, one of the control store's (which holds hashes only), or a JWT of the issuer that the
//! node trusts. What it stands for is a [`Principal`]. Decided here are roles and reach, not what a role may run (the engine's gate
//! does).
//!
//! **Invariant:** whether a principal may enter a mart is asked of [`Principal::role_in`] and nowhere else.

pub mod issuer;
pub mod jwt;
pub mod shown;
pub mod throttle;
pub mod tokens;

use std::net::IpAddr;
use std::sync::Arc;

use engine::wire::Role;
use http::Extensions;

pub use shown::Shown;
pub use tokens::{Admin, NewToken, new_token};

use crate::clock;
use crate::control::State;
use crate::error::{ApiError, Code};
use crate::names::{Mart, MartId, Tenant};
use issuer::Issuer;
use throttle::{Failed, Throttle};

/// By what somebody is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The node's admin token.
    Admin,
    /// A token of the control store.
    Token,
    /// A JWT, signed with the issuer's key of this id.
    Jwt(String),
}

/// Whoever holds a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Stable for the same token, or the same subject of an issuer; not secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// By what it is known.
    pub kind: Kind,
    /// None reaches every tenant.
    pub tenant: Option<Tenant>,
    /// None reaches every mart of the tenant.
    pub mart: Option<Mart>,
    /// What it may do there.
    pub role: Role,
    /// The profiles that it may ask for; none means all that the node offers.
    pub profiles: Option<Vec<String>>,
    /// When it ends, microseconds since the Unix epoch.
    pub expires_us: Option<i64>,
}

impl Principal {
    /// The node's own administrator.
    pub fn node_admin() -> Self {
        Self {
            id: "admin".into(),
            name: "admin".into(),
            kind: Kind::Admin,
            tenant: None,
            mart: None,
            role: Role::Admin,
            profiles: None,
            expires_us: None,
        }
    }

    /// One that reaches all of a tenant and does not end.
    pub fn of_tenant(id: &str, tenant: Tenant, role: Role) -> Self {
        let kind = Kind::Token;
        Self { id: id.into(), name: String::new(), kind, tenant: Some(tenant), role, ..Self::node_admin() }
    }

    /// The role in a mart. Another's is forbidden whether it exists or not.
    pub fn role_in(&self, id: &MartId) -> Result<Role, ApiError> {
        self.enter(&id.tenant)?;
        match &self.mart {
            Some(own) if *own != id.mart => Err(ApiError::new(Code::Forbidden, "this token is for another mart")),
            _ => Ok(self.role),
        }
    }

    /// Refuses all to whom the tenant is a stranger's. What of it they may see is another question.
    pub fn enter(&self, tenant: &Tenant) -> Result<(), ApiError> {
        match &self.tenant {
            Some(own) if own != tenant => Err(ApiError::new(Code::Forbidden, "this token is for another tenant")),
            _ => Ok(()),
        }
    }

    /// Refuses all but administrators of the mart.
    pub fn require_admin_of(&self, id: &MartId) -> Result<(), ApiError> {
        self.role_in(id)?;
        self.require_admin()
    }

    /// Refuses all but administrators of the whole tenant.
    pub fn require_admin_of_all(&self, tenant: &Tenant) -> Result<(), ApiError> {
        self.enter(tenant)?;
        self.require_admin()?;
        match self.mart {
            Some(_) => Err(ApiError::new(Code::Forbidden, "this token is for one mart only")),
            None => Ok(()),
        }
    }

    /// Refuses all but administrators of the node.
    pub fn require_node_admin(&self) -> Result<(), ApiError> {
        if self.tenant.is_none() && self.mart.is_none() && self.role == Role::Admin {
            return Ok(());
        }
        Err(ApiError::new(Code::Forbidden, "this takes the node's admin token"))
    }

    /// Whether it has ended by now.
    pub fn is_over(&self) -> bool {
        self.expires_us.is_some_and(|until| until <= clock::now_us())
    }

    fn require_admin(&self) -> Result<(), ApiError> {
        match self.role {
            Role::Admin => Ok(()),
            Role::Reader | Role::Writer => Err(ApiError::new(Code::Forbidden, "this takes the role `admin`")),
        }
    }
}

/// Why nobody is known by what was shown. For the audit log; the client learns only that it is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing was shown.
    Nothing,
    /// No such token, or not any more.
    Unknown,
    /// It has ended.
    Expired,
    /// A JWT that is refused, and why.
    Jwt(&'static str),
}

impl Why {
    /// In a word or a few.
    pub fn words(self) -> &'static str {
        match self {
            Self::Nothing => "no token",
            Self::Unknown => "unknown token",
            Self::Expired => "expired",
            Self::Jwt(words) => words,
        }
    }
}

/// A refused login.
#[derive(Debug, Clone)]
pub struct Refused {
    /// What the client is told.
    pub error: ApiError,
    /// Why, for the audit log.
    pub why: Why,
    /// How often this address has failed, and what follows from that.
    pub failed: Failed,
}

/// In the extensions of each request to a path that asks who it is.
#[derive(Clone)]
pub struct Admission(pub Result<Arc<Principal>, ApiError>);

/// Who sends the request, as its extensions tell.
pub fn who(extensions: &Extensions) -> Result<Arc<Principal>, ApiError> {
    extensions.get::<Admission>().map_or_else(|| Err(unknown()), |admission| admission.0.clone())
}

/// All that a node knows people by.
pub struct Identity {
    /// The admin token.
    pub admin: Admin,
    /// Whose JWTs count, if anybody's do.
    pub issuer: Option<Issuer>,
    throttle: Throttle,
}

impl Identity {
    /// Nobody has failed yet.
    pub fn new(admin: Admin, issuer: Option<Issuer>) -> Self {
        Self { admin, issuer, throttle: Throttle::new() }
    }

    /// Whoever shows this. A valid token counts however often its address has failed; a failure costs the address.
    pub async fn admit(&self, shown: Option<&Shown>, peer: IpAddr, state: &State) -> Result<Arc<Principal>, Refused> {
        let held = match shown {
            Some(shown) => self.holder(shown, state).await,
            None => Err((unknown(), Why::Nothing)),
        };
        held.map(Arc::new).map_err(|(error, why)| {
            // What can't be decided now, and who is known and may do nothing, is not guessing.
            let failed = match error.code {
                Code::Unauthenticated => self.throttle.failed(peer),
                _ => Failed::default(),
            };
            let error = match failed.retry_after {
                Some(after) => too_often(after.as_secs().max(1)),
                None => error,
            };
            Refused { error, why, failed }
        })
    }

    async fn holder(&self, shown: &Shown, state: &State) -> Result<Principal, (ApiError, Why)> {
        let mut reason = Why::Unknown;
        for text in shown.candidates() {
            match self.admin.holder(text, state) {
                Ok(principal) => return Ok(principal),
                Err(Why::Unknown) => {}
                Err(why) => reason = why,
            }
        }
        match (&self.issuer, shown.candidates().find(|text| jwt::looks_like_one(text))) {
            (Some(issuer), Some(text)) => issuer.verify(text).await,
            _ => Err((unknown(), reason)),
        }
    }
}

/// Why a request without a known token is refused.
pub fn unknown() -> ApiError {
    ApiError::new(Code::Unauthenticated, "a valid bearer token is needed").hint("send `Authorization: Bearer TOKEN`")
}

fn too_often(seconds: u64) -> ApiError {
    ApiError::new(Code::Limited, "too many requests without a valid token came from this address")
        .hint(format!("a valid token passes at once; else try again in {seconds} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MartId {
        text.parse().expect("a legal name")
    }

    #[test]
    fn a_tenants_token_reaches_only_its_tenant() {
        let principal = Principal::of_tenant("x", id("acme/a").tenant, Role::Admin);
        assert!(principal.require_admin_of(&id("acme/a")).is_ok());
        assert!(principal.require_admin_of_all(&id("acme/a").tenant).is_ok());
        assert!(principal.role_in(&id("evil/a")).is_err());
        assert!(principal.require_node_admin().is_err());
    }

    #[test]
    fn a_marts_token_reaches_only_its_mart() {
        let mart = Some(id("acme/a").mart);
        let principal = Principal { mart, ..Principal::of_tenant("x", id("acme/a").tenant, Role::Admin) };
        assert!(principal.require_admin_of(&id("acme/a")).is_ok());
        for other in ["acme/b", "evil/a"] {
            assert_eq!(principal.role_in(&id(other)).err().map(|error| error.code), Some(Code::Forbidden));
        }
        assert!(principal.require_admin_of_all(&id("acme/a").tenant).is_err());
        assert!(principal.require_node_admin().is_err());
    }
}
