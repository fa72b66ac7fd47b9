//! Everybody who is in the node just now, and whether they may be.
//!
//! Two things end a stay: what all nodes agree on (a token revoked, a mart dropped, a key that the issuer has dropped), and time. Both are
//! looked at once for all visits, when they change, not by each visit for itself.
//!
//! A JWT's holder who shows a newer one meanwhile stays: what runs ends with the last token of the same subject, reach and role.
//!
//! **Invariant:** a visit is registered before it is looked whether its principal still counts, so that no change falls in between.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::wire::Role;
use tokio::sync::Notify;

use super::{Cut, Visit};
use crate::auth::issuer::Issuer;
use crate::auth::{Kind, Principal};
use crate::control::State;
use crate::names::{Mart, Tenant};

/// Holders of JWTs that are remembered; others' sessions end by being idle.
const MOST_HOLDERS: usize = 65_536;

/// Who is in the node.
#[derive(Default)]
pub struct Guests {
    inner: Mutex<Inner>,
    sooner: Notify,
}

#[derive(Default)]
struct Inner {
    visits: HashMap<u64, Arc<Visit>>,
    next: u64,
    /// The newest JWT of each holder.
    holders: HashMap<Holder, Held>,
    /// Tokens that counted when it was last looked.
    tokens: HashSet<String>,
}

/// Somebody who is known by JWTs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Holder {
    id: String,
    tenant: Option<Tenant>,
    mart: Option<Mart>,
    role: u8,
}

#[derive(Debug, Clone)]
struct Held {
    until_us: i64,
    key: String,
}

/// What the world looks like now.
pub struct Now<'a> {
    /// What all nodes agree on.
    pub state: &'a State,
    /// Microseconds since the Unix epoch.
    pub time_us: i64,
    /// Whose keys count.
    pub keys: Option<&'a dyn HasKeys>,
}

/// Whoever knows which keys count.
pub trait HasKeys: Sync {
    /// Does that one?
    fn knows(&self, id: &str) -> bool;
}

impl HasKeys for Issuer {
    fn knows(&self, id: &str) -> bool {
        Issuer::knows(self, id)
    }
}

impl Now<'_> {
    fn has_key(&self, id: &str) -> bool {
        self.keys.is_some_and(|keys| keys.knows(id))
    }
}

/// A registered visit, until dropped.
pub struct Guest {
    guests: Arc<Guests>,
    number: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.inner().visits.remove(&self.number);
    }
}

impl Holder {
    fn of(principal: &Principal) -> Self {
        let role = match principal.role {
            Role::Reader => 0,
            Role::Writer => 1,
            Role::Admin => 2,
        };
        Self { id: principal.id.clone(), tenant: principal.tenant.clone(), mart: principal.mart.clone(), role }
    }
}

impl Guests {
    /// Lets a visit in: it is cut from now on when its principal has to go.
    pub fn enter(self: &Arc<Self>, visit: Arc<Visit>, principal: &Principal) -> Guest {
        let mut inner = self.inner();
        if let (Kind::Jwt(key), Some(until_us)) = (&principal.kind, principal.expires_us) {
            let holder = Holder::of(principal);
            let room = inner.holders.len() < MOST_HOLDERS;
            match inner.holders.get_mut(&holder) {
                // The key of an older one may go first.
                Some(held) if held.until_us <= until_us => *held = Held { until_us, key: key.clone() },
                Some(_) => {}
                None if room => {
                    inner.holders.insert(holder, Held { until_us, key: key.clone() });
                    // It may end before anybody else.
                    self.sooner.notify_one();
                }
                None => {}
            }
        }
        let number = inner.next;
        inner.next += 1;
        inner.visits.insert(number, visit);
        Guest { guests: self.clone(), number }
    }

    /// Whether a principal still counts.
    pub fn may_stay(&self, principal: &Principal, now: &Now<'_>) -> bool {
        self.inner().may_stay(principal, now)
    }

    /// Cuts the visits of all who have to go, and of marts that are gone; gives the principals of whom nothing may go on.
    pub fn look(&self, now: &Now<'_>) -> HashSet<String> {
        let mut inner = self.inner();
        let doomed: Vec<_> =
            inner.visits.values().filter_map(|visit| Some((visit.clone(), inner.why(visit, now)?))).collect();
        let gone = inner.gone(now);
        drop(inner);
        for (visit, why) in doomed {
            visit.cut(why);
        }
        gone
    }

    /// Those of them who have not come back meanwhile with a newer JWT.
    pub fn away(&self, gone: &HashSet<String>) -> HashSet<String> {
        let inner = self.inner();
        let back: HashSet<_> = inner.holders.keys().map(|holder| &holder.id).collect();
        gone.iter().filter(|id| !back.contains(id)).cloned().collect()
    }

    /// When the next of those ends who are known to, in microseconds since the Unix epoch.
    pub fn next_end_us(&self, now: &Now<'_>) -> Option<i64> {
        let inner = self.inner();
        let tokens = now.state.tokens.values().filter_map(|token| token.expires_us);
        let all = tokens.chain(inner.holders.values().map(|held| held.until_us));
        all.filter(|until| *until > now.time_us).min()
    }

    /// Resolves when somebody came who may end sooner than all that were known.
    pub async fn sooner(&self) {
        self.sooner.notified().await;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn why(&self, visit: &Visit, now: &Now<'_>) -> Option<Cut> {
        let principal = super::lock(&visit.noted).principal.clone()?;
        if !self.may_stay(&principal, now) {
            return Some(Cut::Over);
        }
        let (id, life) = visit.life()?;
        (now.state.mart(&id).map(|entry| entry.incarnation) != Some(life)).then_some(Cut::Dropped)
    }

    fn may_stay(&self, principal: &Principal, now: &Now<'_>) -> bool {
        match &principal.kind {
            Kind::Admin => true,
            Kind::Token => counts(now, &principal.id),
            Kind::Jwt(key) => {
                let own = principal.expires_us.is_some_and(|until| until > now.time_us) && now.has_key(key);
                own || self.holders.get(&Holder::of(principal)).is_some_and(|held| held.counts(now))
            }
        }
    }

    /// Those who counted before and do not any more.
    fn gone(&mut self, now: &Now<'_>) -> HashSet<String> {
        let tokens: HashSet<_> = now.state.tokens.keys().filter(|id| counts(now, id)).cloned().collect();
        let mut gone: HashSet<_> = self.tokens.difference(&tokens).cloned().collect();
        self.tokens = tokens;
        gone.extend(self.holders.extract_if(|_, held| !held.counts(now)).map(|(holder, _)| holder.id));
        // Somebody may be here in another role or tenant.
        for holder in self.holders.keys() {
            gone.remove(&holder.id);
        }
        gone
    }
}

impl Held {
    fn counts(&self, now: &Now<'_>) -> bool {
        self.until_us > now.time_us && now.has_key(&self.key)
    }
}

fn counts(now: &Now<'_>, token: &str) -> bool {
    let found = now.state.tokens.get(token);
    found.is_some_and(|token| token.expires_us.is_none_or(|until| until > now.time_us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{NewToken, new_token};
    use crate::control::{MartEntry, TenantEntry};
    use crate::visit::Keeps;

    struct Key(&'static str);

    impl HasKeys for Key {
        fn knows(&self, id: &str) -> bool {
            id == self.0
        }
    }

    fn acme() -> Tenant {
        "acme".parse().expect("a legal name")
    }

    fn with_token(expires_us: Option<i64>) -> (State, String) {
        let mut state = State::default();
        let marts = [(
            "sales".parse().expect("a legal name"),
            MartEntry { incarnation: uuid::Uuid::new_v4(), created_us: 1, profile: None, ancestors: Vec::new() },
        )];
        state.tenants.insert(acme(), TenantEntry { created_us: 1, marts: marts.into() });
        let new = NewToken {
            tenant: Some(acme()),
            mart: None,
            role: Role::Reader,
            name: String::new(),
            expires_us,
            profiles: None,
        };
        let (id, _, entry) = new_token(new);
        state.tokens.insert(id.clone(), entry);
        (state, id)
    }

    fn enter(guests: &Arc<Guests>, state: &State, principal: Principal) -> (Arc<Visit>, Guest) {
        let visit = Arc::new(Visit::new(None, Arc::new(state.clone()), Keeps::Kind));
        let guest = guests.enter(visit.clone(), &principal);
        visit.note(|noted| {
            noted.principal = Some(Arc::new(principal));
            noted.mart = Some("acme/sales".parse().expect("a legal name"));
        });
        (visit, guest)
    }

    fn now(state: &State, time_us: i64) -> Now<'_> {
        Now { state, time_us, keys: Some(&Key("k")) }
    }

    fn jwt(role: Role, until_us: i64) -> Principal {
        let kind = Kind::Jwt("k".into());
        Principal { kind, expires_us: Some(until_us), ..Principal::of_tenant("jwt_ann", acme(), role) }
    }

    #[test]
    fn a_visit_is_cut_when_its_token_is_revoked_or_has_ended() {
        let guests = Arc::new(Guests::default());
        let (mut state, id) = with_token(Some(100));
        let principal = Principal { expires_us: Some(100), ..Principal::of_tenant(&id, acme(), Role::Reader) };
        let (first, _guest) = enter(&guests, &state, principal.clone());
        assert!(guests.look(&now(&state, 50)).is_empty() && first.why_cut().is_none());
        assert_eq!(guests.next_end_us(&now(&state, 50)), Some(100));
        assert_eq!(guests.look(&now(&state, 100)), HashSet::from([id.clone()]));
        assert_eq!(first.why_cut(), Some(Cut::Over));
        let (second, _guest) = enter(&guests, &state, principal);
        guests.look(&now(&state, 50));
        state.tokens.clear();
        assert_eq!(guests.look(&now(&state, 60)), HashSet::from([id]));
        assert_eq!(second.why_cut(), Some(Cut::Over));
    }

    #[test]
    fn a_visit_ends_with_the_life_of_its_mart() {
        let guests = Arc::new(Guests::default());
        let (mut state, id) = with_token(None);
        let (visit, _guest) = enter(&guests, &state, Principal::of_tenant(&id, acme(), Role::Reader));
        guests.look(&now(&state, 1));
        assert_eq!(visit.why_cut(), None);
        let marts = &mut state.tenants.get_mut(&acme()).expect("it is there").marts;
        marts.values_mut().for_each(|entry| entry.incarnation = uuid::Uuid::new_v4());
        assert!(guests.look(&now(&state, 2)).is_empty());
        assert_eq!(visit.why_cut(), Some(Cut::Dropped));
    }

    #[test]
    fn a_newer_jwt_of_the_same_holder_keeps_what_runs() {
        let guests = Arc::new(Guests::default());
        let state = State::default();
        let (reads, _first) = enter(&guests, &state, jwt(Role::Reader, 100));
        let (writes, _second) = enter(&guests, &state, jwt(Role::Writer, 100));
        let (_, _third) = enter(&guests, &state, jwt(Role::Reader, 200));
        assert!(guests.look(&now(&state, 150)).is_empty(), "somebody of that name is here still");
        assert_eq!((reads.why_cut(), writes.why_cut()), (None, Some(Cut::Over)));
        assert_eq!(guests.look(&now(&state, 200)), HashSet::from(["jwt_ann".to_owned()]));
        assert_eq!(reads.why_cut(), Some(Cut::Over));
    }

    #[test]
    fn a_jwt_ends_with_its_key() {
        let guests = Arc::new(Guests::default());
        let state = State::default();
        let (visit, _guest) = enter(&guests, &state, jwt(Role::Reader, 100));
        let without = Now { keys: Some(&Key("other")), ..now(&state, 1) };
        assert_eq!(guests.look(&without), HashSet::from(["jwt_ann".to_owned()]));
        assert_eq!(visit.why_cut(), Some(Cut::Over));
    }
}
