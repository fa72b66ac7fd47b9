//! `GET/POST /v1/tenants`: the node's administrators make tenants; a tenant's token sees its own.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::{Caller, Shared, json, read_json};
use crate::clock;
use crate::control::TenantEntry;
use crate::error::{ApiError, Code};
use crate::names::{MartId, Tenant};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    name: Tenant,
}

pub(super) async fn list(State(app): State<Shared>, Caller(caller): Caller) -> Response {
    let state = app.control.state();
    let reached = |name: &Tenant, tenant: &TenantEntry| {
        let marts = tenant.marts.keys();
        marts.filter(|mart| caller.role_in(&MartId { tenant: name.clone(), mart: (*mart).clone() }).is_ok()).count()
    };
    let tenants: Vec<_> = state
        .tenants
        .iter()
        .filter(|(name, _)| caller.enter(name).is_ok())
        .map(|(name, tenant)| {
            json!({"name": name, "created": clock::rfc3339(tenant.created_us), "marts": reached(name, tenant)})
        })
        .collect();
    json(json!({ "tenants": tenants }))
}

pub(super) async fn create(
    State(app): State<Shared>,
    Caller(caller): Caller,
    body: Body,
) -> Result<Response, ApiError> {
    caller.require_node_admin()?;
    let NewTenant { name } = read_json(body).await?;
    let created_us = clock::now_us();
    app.control
        .change(|state| {
            if state.tenants.contains_key(&name) {
                return Err(ApiError::new(Code::Conflict, format!("tenant `{name}` exists already")));
            }
            state.tenants.insert(name.clone(), TenantEntry { created_us, marts: Default::default() });
            Ok(())
        })
        .await?;
    Ok(json(json!({"name": name, "created": clock::rfc3339(created_us), "marts": 0})))
}
