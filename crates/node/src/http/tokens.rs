//! `GET/POST /v1/tokens`, `DELETE /v1/tokens/{id}`: a token's text is shown once, when it is made.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use engine::wire::Role;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Caller, Shared, json, read_json};
use crate::auth::{Principal, new_token};
use crate::clock;
use crate::control::TokenEntry;
use crate::error::{ApiError, Code};
use crate::names::Tenant;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// None makes a token of the node itself.
    tenant: Option<Tenant>,
    role: Role,
    #[serde(default)]
    name: String,
}

pub(super) async fn list(State(app): State<Shared>, Caller(caller): Caller) -> Result<Response, ApiError> {
    let state = app.control.state();
    let tokens: Vec<_> = state
        .tokens
        .iter()
        .filter(|(_, token)| may_manage(&caller, token.tenant.as_ref()).is_ok())
        .map(|(id, token)| describe(id, token))
        .collect();
    Ok(json(json!({ "tokens": tokens })))
}

pub(super) async fn create(
    State(app): State<Shared>,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let NewToken { tenant, role, name } = read_json(body).await?;
    may_manage(&caller, tenant.as_ref())?;
    if tenant.is_none() && role != Role::Admin {
        return Err(ApiError::new(Code::Invalid, "a token without a tenant has the role `admin`"));
    }
    let (id, text, entry) = new_token(tenant, role, name);
    app.control
        .change(|state| {
            if let Some(tenant) = &entry.tenant
                && !state.tenants.contains_key(tenant)
            {
                return Err(super::no_tenant(tenant));
            }
            state.tokens.insert(id.clone(), entry.clone());
            Ok(())
        })
        .await?;
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
            may_manage(&caller, entry.tenant.as_ref()).map_err(|_| unknown())?;
            state.tokens.remove(&id);
            Ok(())
        })
        .await?;
    Ok(json(json!({"id": id, "revoked": true})))
}

fn may_manage(caller: &Principal, tenant: Option<&Tenant>) -> Result<(), ApiError> {
    match tenant {
        Some(tenant) => caller.require_admin_of(tenant),
        None => caller.require_node_admin(),
    }
}

fn describe(id: &str, token: &TokenEntry) -> Value {
    json!({"id": id, "tenant": token.tenant, "role": token.role, "name": token.name, "created": clock::rfc3339(token.created_us)})
}
