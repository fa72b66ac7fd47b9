//! `GET/POST/DELETE …/marts[/{mart}]`: making, listing and dropping marts.
//!
//! Dropping ends the mart's life for good: its log gets a tombstone, its local files go. Its objects stay until they are swept.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Caller, Shared, json, mart_id, not_found, read_json, tenant_name};
use crate::clock;
use crate::control::MartEntry;
use crate::error::ApiError;
use crate::names::{Mart, MartId};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMart {
    name: Mart,
    /// Of requests that name none.
    #[serde(default)]
    profile: Option<String>,
}

pub(super) async fn list(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(tenant): Path<String>,
) -> Result<Response, ApiError> {
    let tenant = tenant_name(&tenant)?;
    caller.enter(&tenant)?;
    let state = app.control.state();
    let entry = state.tenants.get(&tenant).ok_or_else(|| super::no_tenant(&tenant))?;
    let may_see = |name: &Mart| caller.role_in(&MartId { tenant: tenant.clone(), mart: name.clone() }).is_ok();
    let marts: Vec<_> =
        entry.marts.iter().filter(|(name, _)| may_see(name)).map(|(name, mart)| describe(name, mart)).collect();
    Ok(json(json!({ "marts": marts })))
}

pub(super) async fn create(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path(tenant): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    let tenant = tenant_name(&tenant)?;
    caller.require_admin_of_all(&tenant)?;
    let NewMart { name: mart, profile } = read_json(body).await?;
    let id = MartId { tenant, mart };
    // The node's administrator may make the tenant along with its first mart.
    let entry = app.create_mart(&id, profile, caller.require_node_admin().is_ok()).await?;
    Ok(json(describe(&id.mart, &entry)))
}

pub(super) async fn show(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.role_in(&id)?;
    let state = app.control.state();
    let entry = state.mart(&id).ok_or_else(|| not_found(&id))?;
    let mut shown = describe(&id.mart, entry);
    let progress = app.marts.get(&id).map(|open| open.watcher().progress());
    shown["open"] = json!(progress.is_some_and(|progress| !progress.closed));
    shown["position"] = json!(progress.and_then(|progress| progress.newest));
    shown["durable_position"] = json!(progress.and_then(|progress| progress.durable));
    Ok(json(shown))
}

pub(super) async fn delete(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let id = mart_id(&tenant, &mart)?;
    caller.require_admin_of(&id)?;
    let entry = app
        .control
        .change(|state| {
            let tenant = state.tenants.get_mut(&id.tenant).ok_or_else(|| not_found(&id))?;
            let entry = tenant.marts.remove(&id.mart).ok_or_else(|| not_found(&id))?;
            // They were for this one, not for what may be called so later.
            state
                .tokens
                .retain(|_, token| (token.tenant.as_ref(), token.mart.as_ref()) != (Some(&id.tenant), Some(&id.mart)));
            Ok(entry)
        })
        .await?;
    // From here on nobody opens it; what follows may be cut short by a crash and costs only space.
    app.marts.close(&id, entry.incarnation).await;
    app.metrics.mart_dropped(&id);
    app.slow.forget(&id);
    let ground = app.marts.ground();
    let tombstone = async {
        let replica = ground.replica(&id, entry.incarnation).map_err(|error| error.to_string())?;
        replica.drop_mart().await.map_err(|error| error.to_string())
    };
    if let Err(error) = tombstone.await {
        tracing::warn!(mart = %id, error, "a dropped mart's log has no tombstone yet");
    }
    let (ground, mart) = (ground.clone(), id.clone());
    match tokio::task::spawn_blocking(move || ground.remove_files(&mart, entry.incarnation)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(ApiError::internal("a dropped mart's files can't be removed", error)),
        Err(error) => return Err(ApiError::internal("removing a dropped mart's files failed", error)),
    }
    Ok(json(json!({"name": id.mart, "dropped": true})))
}

fn describe(name: &Mart, mart: &MartEntry) -> Value {
    json!({"name": name, "created": clock::rfc3339(mart.created_us), "profile": mart.profile})
}
