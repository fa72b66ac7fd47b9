//! `GET/POST /v1/tokens`, `DELETE /v1/tokens/{id}`: a token's text is shown once, when it is made.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use engine::wire::Role;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Caller, Shared, json, read_json};
use crate::auth::{self, Principal, new_token};
use crate::clock;
use crate::control::TokenEntry;
use crate::error::{ApiError, Code};
use crate::names::{Mart, MartId, Tenant};
use crate::visit;

const MOST_NAME_CHARS: usize = 200;
const MOST_PROFILES: usize = 32;
/// Tokens that ended so long ago are not listed any more.
const FORGOTTEN_US: i64 = 30 * 24 * 3600 * 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// None makes a token of the node itself.
    tenant: Option<Tenant>,
    /// None makes one for all marts of the tenant.
    #[serde(default)]
    mart: Option<Mart>,
    role: Role,
    #[serde(default)]
    name: String,
    /// A span such as `30d`.
    #[serde(default)]
    expires_in: Option<String>,
    /// An RFC 3339 time.
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    profiles: Option<Vec<String>>,
}

pub(super) async fn list(State(app): State<Shared>, Caller(caller): Caller) -> Result<Response, ApiError> {
    let state = app.control.state();
    let tokens: Vec<_> = state
        .tokens
        .iter()
        .filter(|(_, token)| may_manage(&caller, token.tenant.as_ref(), token.mart.as_ref()).is_ok())
        .map(|(id, token)| describe(id, token))
        .collect();
    Ok(json(json!({ "tokens": tokens })))
}

pub(super) async fn create(
    State(app): State<Shared>,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let new: NewToken = read_json(body).await?;
    may_manage(&caller, new.tenant.as_ref(), new.mart.as_ref())?;
    let (id, text, entry) = new_token(checked(&caller, new)?);
    app.control
        .change(|state| {
            if let Some(tenant) = &entry.tenant {
                let known = state.tenants.get(tenant).ok_or_else(|| super::no_tenant(tenant))?;
                if let Some(mart) = entry.mart.as_ref().filter(|mart| !known.marts.contains_key(*mart)) {
                    return Err(super::not_found(&MartId { tenant: tenant.clone(), mart: mart.clone() }));
                }
            }
            let old = clock::now_us() - FORGOTTEN_US;
            state.tokens.retain(|_, token| token.expires_us.is_none_or(|until| until > old));
            state.tokens.insert(id.clone(), entry.clone());
            Ok(())
        })
        .await?;
    visit::note(|noted| {
        noted.object = Some(id.clone());
        noted.tenant = entry.tenant.clone();
        noted.mart = entry.tenant.clone().zip(entry.mart.clone()).map(|(tenant, mart)| MartId { tenant, mart });
    });
    let mut shown = describe(&id, &entry);
    shown["token"] = json!(text);
    Ok(json(shown))
}

pub(super) async fn revoke(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    app.control
        .change(|state| {
            let unknown = || ApiError::new(Code::NotFound, "no such token");
            let entry = state.tokens.get(&id).ok_or_else(unknown)?;
            may_manage(&caller, entry.tenant.as_ref(), entry.mart.as_ref()).map_err(|_| unknown())?;
            // Only now: what is no token's id may be anything, a token's text among others.
            visit::note(|noted| (noted.object, noted.tenant) = (Some(id.clone()), entry.tenant.clone()));
            state.tokens.remove(&id);
            Ok(())
        })
        .await?;
    Ok(json(json!({"id": id, "revoked": true})))
}

/// Whoever administers a mart gives out its tokens, a tenant its own, the node all.
fn may_manage(caller: &Principal, tenant: Option<&Tenant>, mart: Option<&Mart>) -> Result<(), ApiError> {
    match (tenant, mart) {
        (Some(tenant), Some(mart)) => caller.require_admin_of(&MartId { tenant: tenant.clone(), mart: mart.clone() }),
        (Some(tenant), None) => caller.require_admin_of_all(tenant),
        (None, _) => caller.require_node_admin(),
    }
}

/// What is asked for, if it makes sense and is no more than its maker has.
fn checked(caller: &Principal, new: NewToken) -> Result<auth::NewToken, ApiError> {
    let NewToken { tenant, mart, role, name, expires_in, expires_at, profiles } = new;
    let invalid = |text: &str| ApiError::new(Code::Invalid, text);
    if tenant.is_none() && mart.is_some() {
        return Err(invalid("a mart is one of a tenant: `mart` goes with `tenant`"));
    }
    if tenant.is_none() && role != Role::Admin {
        return Err(invalid("a token without a tenant has the role `admin`"));
    }
    if name.chars().count() > MOST_NAME_CHARS {
        return Err(invalid("`name` has at most 200 characters"));
    }
    let now_us = clock::now_us();
    let expires_us = match (expires_in, expires_at) {
        (Some(_), Some(_)) => return Err(invalid("`expires_in` and `expires_at` exclude each other")),
        (Some(text), None) => {
            let span = clock::parse_span(&text).and_then(|span| i64::try_from(span.as_micros()).ok());
            let until = span.and_then(|span| now_us.checked_add(span));
            Some(until.ok_or_else(|| invalid("`expires_in` is a time such as `12h` or `30d`"))?)
        }
        (None, Some(text)) => {
            let until = clock::parse_rfc3339(&text);
            Some(until.ok_or_else(|| invalid("`expires_at` is a time such as 2027-01-31T12:00:00Z"))?)
        }
        (None, None) => None,
    };
    if expires_us.is_some_and(|until| until <= now_us) {
        return Err(invalid("the token would have ended already"));
    }
    let legal = |name: &String| {
        (1..=50).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if profiles.as_ref().is_some_and(|all| all.is_empty() || all.len() > MOST_PROFILES || !all.iter().all(legal)) {
        return Err(invalid("`profiles` lists 1 to 32 names of profiles; leave it out for any"));
    }
    let profiles = match (&caller.profiles, profiles) {
        (Some(own), Some(asked)) if asked.iter().any(|name| !own.contains(name)) => {
            return Err(ApiError::new(Code::Forbidden, "your own token may not ask for all of these profiles"));
        }
        (own, None) => own.clone(),
        (_, asked) => asked,
    };
    Ok(auth::NewToken { tenant, mart, role, name, expires_us, profiles })
}

fn describe(id: &str, token: &TokenEntry) -> Value {
    json!({
        "id": id, "tenant": token.tenant, "mart": token.mart, "role": token.role, "name": token.name,
        "profiles": token.profiles, "created": clock::rfc3339(token.created_us),
        "expires": token.expires_us.map(clock::rfc3339),
        "expired": token.expires_us.is_some_and(|until| until <= clock::now_us()),
    })
}
