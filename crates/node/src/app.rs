//! The node's parts in one place, and what every way in needs of them: who asks, and the mart that is asked about.
//!
//! It knows neither HTTP's paths nor Flight's commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::audit::Audit;
use http::HeaderMap;
use tokio_rustls::rustls::ClientConfig;

use crate::admission::Admission;
use crate::auth::{Identity, Principal};
use crate::clock;
use crate::config::Config;
use crate::control::{Control, MartEntry, State, TenantEntry};
use crate::error::{ApiError, Code};
use crate::followers::Followers;
use crate::jobs::Jobs;
use crate::marts::{Marts, OpenMart};
use crate::metrics::Metrics;
use crate::names::{MartId, Tenant};
use crate::past::Past;
use crate::profiles::{self, Profile};
use crate::room::Room;
use crate::router::Ask;
use crate::running::{Entry, Owned, Running};
use crate::slow::Slow;
use crate::traces::Traces;
use crate::verify::Verifier;
use crate::visit;
use crate::visit::guests::{Guests, HasKeys, Now};
use crate::watcher::Live;

/// Names the profile of a request, over HTTP and Flight alike.
pub(crate) const PROFILE: &str = "tarn-profile";

/// The node's parts, as handlers see them.
pub struct App {
    /// Settings.
    pub config: Config,
    /// Tenants, marts, tokens.
    pub control: Control,
    /// Who is known here.
    pub identity: Identity,
    /// Who is here just now.
    pub guests: Arc<Guests>,
    /// What is written down of it.
    pub audit: Audit,
    /// Open marts.
    pub marts: Marts,
    /// Who runs and who waits.
    pub admission: Arc<Admission>,
    /// Queries that can be cancelled.
    pub running: Running,
    /// Queries that nobody waits for, and what they leave.
    pub jobs: Jobs,
    /// Engines on earlier moments.
    pub followers: Followers,
    /// Reads replicas back.
    pub verifier: Verifier,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where traces go, if they go anywhere.
    pub traces: Option<Traces>,
    /// Queries that took long.
    pub slow: Slow,
    /// Whose certificates other nodes may show.
    pub trust: Arc<ClientConfig>,
    /// False once the node shuts down.
    pub ready: AtomicBool,
}

impl App {
    /// Whether somebody who was let in may still be here.
    pub(crate) fn may_stay(&self, principal: &Principal) -> bool {
        self.guests.may_stay(principal, &self.now(&self.control.state()))
    }

    /// What decides who may be here.
    pub(crate) fn now<'a>(&'a self, state: &'a State) -> Now<'a> {
        Now {
            state,
            time_us: clock::now_us(),
            keys: self.identity.issuer.as_ref().map(|issuer| issuer as &dyn HasKeys),
        }
    }

    /// The mart, open. The dev mart is made when it is asked for and not there.
    pub async fn mart(&self, id: &MartId) -> Result<Arc<OpenMart>, ApiError> {
        if !self.ready.load(Ordering::Relaxed) {
            return Err(ApiError::new(Code::Unavailable, "the server is shutting down").hint("try again in a moment"));
        }
        let known = self.control.state().mart(id).map(|entry| entry.incarnation);
        let incarnation = match known {
            Some(incarnation) => incarnation,
            None if self.is_dev(id) => match self.create_mart(id, None, true).await {
                Ok(entry) => entry.incarnation,
                // Somebody else was faster.
                Err(error) if error.code == Code::Conflict => self.incarnation(id)?,
                Err(error) => return Err(error),
            },
            None => {
                // Another node may have made it just now.
                self.control.refresh().await?;
                self.incarnation(id)?
            }
        };
        self.marts.open(id, incarnation)
    }

    /// The profile that a request asks for in the header of that name, else its mart's, within what its token allows.
    pub(crate) fn profile(&self, caller: &Principal, mart: &MartId, headers: &HeaderMap) -> Result<Profile, ApiError> {
        let asked = match headers.get(PROFILE) {
            Some(value) => Some(value.to_str().map_err(|_| unknown_profile("?"))?),
            None => None,
        };
        let state = self.control.state();
        let of_mart = state.mart(mart).and_then(|entry| entry.profile.as_deref());
        let name = asked.or(of_mart).unwrap_or(profiles::DEFAULT);
        let known = &self.config.profiles;
        let allowed = |name: &str| caller.profiles.as_ref().is_none_or(|all| all.iter().any(|one| one == name));
        if allowed(name) {
            // A mart may name one that this node does not have.
            let fallback = known.get(profiles::DEFAULT).filter(|_| asked.is_none());
            return known.get(name).or(fallback).cloned().ok_or_else(|| unknown_profile(name));
        }
        let own = caller.profiles.iter().flatten().filter_map(|name| known.get(name)).min_by_key(|one| one.places);
        match own {
            Some(profile) if asked.is_none() => Ok(profile.clone()),
            _ => Err(ApiError::new(Code::Forbidden, format!("this token may not ask for the profile `{name}`"))),
        }
    }

    /// Waits for the query's turn and makes its engine large enough. The entry keeps both until the answer has ended.
    pub(crate) async fn admit(&self, ask: &Ask, mart: &MartId, live: &Arc<Live>) -> Result<Entry, ApiError> {
        let entered = self.admission.enter(&mart.tenant, ask.id, ask.profile.places, ask.timeout);
        let place = visit::step("wait for a place", entered).await?;
        let room = visit::step("make room", Room::ask(live, ask.profile.size)).await;
        let since = Instant::now();
        let owned = Owned { principal: ask.principal.clone(), mart: mart.clone(), live: live.clone(), since };
        self.running.add(ask.id, owned, (place, room))
    }

    /// Which life of the mart there is; it may not have been used since it was made elsewhere.
    pub async fn known(&self, id: &MartId) -> Result<uuid::Uuid, ApiError> {
        if self.control.state().mart(id).is_none() {
            self.control.refresh().await?;
        }
        self.incarnation(id)
    }

    /// One look at a mart's history.
    pub(crate) async fn past(&self, id: &MartId) -> Result<Past, ApiError> {
        Past::of(self.marts.ground(), id, self.known(id).await?).await
    }

    fn incarnation(&self, id: &MartId) -> Result<uuid::Uuid, ApiError> {
        self.control.state().mart(id).map(|entry| entry.incarnation).ok_or_else(|| not_found(id))
    }

    /// Makes a mart: its log first, so that a mart that is known always has one.
    pub async fn create_mart(
        &self,
        id: &MartId,
        profile: Option<String>,
        with_tenant: bool,
    ) -> Result<MartEntry, ApiError> {
        if let Some(name) = profile.as_deref().filter(|name| self.config.profiles.get(name).is_none()) {
            return Err(unknown_profile(name));
        }
        let entry = MartEntry {
            incarnation: uuid::Uuid::new_v4(),
            created_us: clock::now_us(),
            profile,
            ancestors: Vec::new(),
        };
        let ground = self.marts.ground();
        let replica = ground.replica(id, entry.incarnation)?;
        // Refused names must not leave a log behind.
        self.may_create(id, with_tenant)?;
        replica.create(&ground.cluster.name().to_string()).await.map_err(|error| {
            tracing::warn!(mart = %id, %error, "a new mart's log can't be started");
            ApiError::new(Code::Unavailable, "the tenant's bucket can't be written").hint("`tarn doctor` checks it")
        })?;
        self.add_mart(id, entry.clone(), with_tenant).await?;
        Ok(entry)
    }

    /// Makes a mart known whose log is there.
    pub(crate) async fn add_mart(&self, id: &MartId, entry: MartEntry, with_tenant: bool) -> Result<(), ApiError> {
        self.control
            .change(|state| {
                let tenant = match state.tenants.get_mut(&id.tenant) {
                    Some(tenant) => tenant,
                    None if with_tenant => state
                        .tenants
                        .entry(id.tenant.clone())
                        .or_insert(TenantEntry { created_us: entry.created_us, marts: Default::default() }),
                    None => return Err(no_tenant(&id.tenant)),
                };
                if tenant.marts.contains_key(&id.mart) {
                    return Err(ApiError::new(Code::Conflict, format!("mart `{}` exists already", id.mart)));
                }
                tenant.marts.insert(id.mart.clone(), entry.clone());
                Ok(())
            })
            .await
    }

    pub(crate) fn may_create(&self, id: &MartId, with_tenant: bool) -> Result<(), ApiError> {
        let state = self.control.state();
        if state.mart(id).is_some() {
            return Err(ApiError::new(Code::Conflict, format!("mart `{}` exists already", id.mart)));
        }
        if !with_tenant && !state.tenants.contains_key(&id.tenant) {
            return Err(no_tenant(&id.tenant));
        }
        Ok(())
    }

    fn is_dev(&self, id: &MartId) -> bool {
        self.config.publish.as_ref() == Some(id) || (id.tenant.as_str() == "default" && id.mart.as_str() == "dev")
    }
}

fn unknown_profile(name: &str) -> ApiError {
    ApiError::new(Code::Invalid, format!("there is no profile `{name}`"))
        .hint("`notebook`, `batch`, `heavy`, or one of the setting `profiles`")
}

pub(crate) fn not_found(id: &MartId) -> ApiError {
    ApiError::new(Code::NotFound, format!("mart `{}` not found", id.mart)).hint("`tarn mart list` shows yours")
}

pub(crate) fn no_tenant(tenant: &Tenant) -> ApiError {
    ApiError::new(Code::NotFound, format!("tenant `{tenant}` not found"))
        .hint("an administrator makes it with POST /v1/tenants")
}
