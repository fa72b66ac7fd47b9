//! Engines on earlier moments of marts: read-only, one per moment, started when a query asks for it and ended when nobody does.
//!
//! Nothing is restored: such an engine reads the moment's files by range through the gateway. It never meets the live engine.
//!
//! **Invariant:** at most so many at once, never all of them one tenant's; one in use is never ended for another's sake.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::config::ViewConfig;
use replica::names;
use replica::view::View;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{ApiError, Code};
use crate::gateway::{self, Grant};
use crate::marts::Ground;
use crate::names::{MartId, Tenant};
use crate::orders::refused;
use crate::past::{At, Past, parse_at};
use crate::pins::Pin;
use crate::room::Room;
use crate::supervisor::{Launch, MartLock, REPLAY, SpawnError};
use crate::watcher::Live;

/// Below the state directory.
const DIR: &str = "past";
/// How often it is looked who is idle.
const LOOK: Duration = Duration::from_secs(5);
/// After this it is looked whether a moment is still there.
const FRESH: Duration = Duration::from_secs(30);
/// Meanings remembered at most.
const REMEMBERED: usize = 4096;
/// An engine that is ended has nothing to finish.
const GRACE: Duration = Duration::from_millis(100);

/// Which moment of which life of a mart.
type Key = (Uuid, replica::Position);

/// The engines on earlier moments of a node.
pub struct Followers {
    ground: Arc<Ground>,
    most: usize,
    idle: Duration,
    running: Mutex<HashMap<Key, Arc<Slot>>>,
    /// Bytes that engines which have ended had fetched.
    fetched_before: Arc<AtomicU64>,
    meanings: Mutex<HashMap<(Uuid, At), Meaning>>,
}

struct Slot {
    tenant: Tenant,
    cell: OnceCell<Arc<Follower>>,
    used: Mutex<Instant>,
}

struct Follower {
    live: Arc<Live>,
    view: Arc<View>,
    fetched_before: Arc<AtomicU64>,
    _pin: Pin,
    _place: Place,
    _grant: Grant,
    _lock: MartLock,
}

#[derive(Clone)]
struct Meaning {
    past: names::Past,
    /// After this it is looked whether it is still there.
    until: Instant,
}

/// A directory of one engine; gone with it.
struct Place(PathBuf);

impl Place {
    fn make(state_dir: &Path) -> std::io::Result<Self> {
        let dir = state_dir.join(DIR).join(Uuid::new_v4().to_string());
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left is removed at the next start.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.fetched_before.fetch_add(self.view.fetched_bytes(), Ordering::Relaxed);
    }
}

impl Followers {
    /// None runs. Directories of earlier ones are removed.
    pub fn new(ground: Arc<Ground>, most: usize, idle: Duration) -> Self {
        let _ = std::fs::remove_dir_all(ground.state_dir.join(DIR));
        Self {
            ground,
            most: most.max(1),
            idle,
            running: Mutex::default(),
            fetched_before: Arc::default(),
            meanings: Mutex::default(),
        }
    }

    /// The engine on what `at` means in a mart.
    pub async fn at(&self, id: &MartId, incarnation: Uuid, at: &str) -> Result<Arc<Live>, ApiError> {
        let (past, known) = self.meaning(id, incarnation, &parse_at(at)?).await?;
        let slot = self.slot((incarnation, past.position), &id.tenant)?;
        let started = slot.cell.get_or_try_init(|| self.start(id, incarnation, &past, known)).await;
        match started {
            Ok(follower) if follower.live.engine.is_running() => Ok(follower.live.clone()),
            Ok(_) => {
                self.forget((incarnation, past.position), &slot);
                Err(ApiError::new(Code::Unavailable, "the engine of this moment ended").hint("send the query again"))
            }
            Err(error) => {
                self.forget((incarnation, past.position), &slot);
                Err(error)
            }
        }
    }

    /// Bytes of blocks that were read from the store for earlier moments.
    pub fn fetched_bytes(&self) -> u64 {
        let running = self.running();
        let now: u64 =
            running.values().filter_map(|slot| slot.cell.get()).map(|follower| follower.view.fetched_bytes()).sum();
        now + self.fetched_before.load(Ordering::Relaxed)
    }

    /// Ends engines that nobody uses, until cancelled; then all.
    pub async fn tend(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let idle = self.idle;
            let gone: Vec<_> = self.running().extract_if(|_, slot| slot.idle_for() > Some(idle)).collect();
            for (_, slot) in gone {
                slot.end().await;
            }
        }
        let all: Vec<_> = self.running().drain().collect();
        for (_, slot) in all {
            slot.end().await;
        }
    }

    async fn meaning(&self, id: &MartId, incarnation: Uuid, at: &At) -> Result<(names::Past, Option<Past>), ApiError> {
        let key = (incarnation, at.clone());
        let known = self.meanings().get(&key).cloned();
        if let Some(known) = known.filter(|known| Instant::now() < known.until) {
            return Ok((known.past, None));
        }
        let look = Past::of(&self.ground, id, incarnation).await?;
        let past = look.find(at).await?;
        let settled = match at {
            At::Time(time_us) => *time_us < look.settled_us(),
            At::Position(_) => true,
            At::Snapshot(_) => false,
        };
        // What a name or an open moment means is asked each time; what is settled may still be swept.
        if settled {
            let mut meanings = self.meanings();
            if meanings.len() >= REMEMBERED {
                meanings.clear();
            }
            meanings.insert(key, Meaning { past: past.clone(), until: Instant::now() + FRESH });
        }
        Ok((past, Some(look)))
    }

    /// The place for one engine; makes room if there are too many. The last one is never for a tenant that has all the others.
    fn slot(&self, key: Key, tenant: &Tenant) -> Result<Arc<Slot>, ApiError> {
        let mut running = self.running();
        if let Some(slot) = running.get(&key) {
            slot.touch();
            return Ok(slot.clone());
        }
        let own = running.values().filter(|slot| slot.tenant == *tenant).count();
        let greedy = own > 0 && own + 1 >= self.most;
        if running.len() >= self.most || greedy {
            let longest = running.iter().filter(|(_, slot)| !greedy || slot.tenant == *tenant);
            let longest = longest.filter_map(|(key, slot)| Some((slot.idle_for()?, *key))).max();
            let Some((_, idle)) = longest else {
                let text = "too many earlier moments are being read at once";
                return Err(ApiError::new(Code::Limited, text)
                    .hint("try again when another query has ended, or raise `past_engines`"));
            };
            if let Some(slot) = running.remove(&idle) {
                tokio::spawn(async move { slot.end().await });
            }
        }
        let slot = Arc::new(Slot { tenant: tenant.clone(), cell: OnceCell::new(), used: Mutex::new(Instant::now()) });
        running.insert(key, slot.clone());
        Ok(slot)
    }

    fn forget(&self, key: Key, slot: &Arc<Slot>) {
        let mut running = self.running();
        if running.get(&key).is_some_and(|found| Arc::ptr_eq(found, slot)) {
            running.remove(&key);
        }
    }

    async fn start(
        &self,
        id: &MartId,
        incarnation: Uuid,
        past: &names::Past,
        look: Option<Past>,
    ) -> Result<Arc<Follower>, ApiError> {
        // What was found some time ago may be gone by now.
        let look = match look {
            Some(look) => look,
            None => Past::of(&self.ground, id, incarnation).await?,
        };
        let replica = look.replica().clone();
        if !look.names().holds(past, replica.owner()) {
            return Err(ApiError::new(Code::NotFound, "the mart has no such moment any more"));
        }
        let view = Arc::new(replica.view(past).await.map_err(|error| refused(&error))?);
        let trouble = |error: &dyn std::fmt::Display| {
            tracing::warn!(mart = %id, %error, "an engine on an earlier moment does not start");
            ApiError::new(Code::Unavailable, "the engine of this moment does not start")
                .hint("the server's log says why")
        };
        let place = Place::make(&self.ground.state_dir).map_err(|error| trouble(&error))?;
        let lock = MartLock::acquire(&place.0).await.map_err(|error| trouble(&error))?;
        let position = past.position;
        let launch = async |in_place| {
            let mut blank = self.ground.spares.take().await?;
            let grant = self.ground.gateway.grant_past(blank.door()?, id, view.clone())?;
            let gateway = Some(grant.config());
            let launch = Launch {
                id,
                dir: &place.0,
                lock: &lock,
                limits: &self.ground.limits,
                groups: &self.ground.groups,
                gateway,
                view: in_place,
            };
            Ok::<_, SpawnError>((launch.start(blank).await?, grant))
        };
        let in_place = ViewConfig {
            url: format!("s3://{}/{}", gateway::past::BUCKET, gateway::past::KEY),
            iteration: position.iteration,
            wal_bytes: position.wal_bytes,
        };
        let started = match launch(Some(in_place)).await {
            // Its log builds an index, for which DuckDB wants to write: into a copy that nobody else sees.
            Err(SpawnError::Ended(REPLAY)) => {
                replica.copy(past, &place.0).await.map_err(|error| refused(&error))?;
                launch(None).await
            }
            started => started,
        };
        let (engine, grant) = started.map_err(|error| trouble(&error))?;
        let live = Arc::new(Live {
            engine,
            epoch: position.epoch,
            dir: place.0.clone(),
            running: AtomicUsize::new(0),
            room: Room::new(self.ground.limits.size()),
        });
        Ok(Arc::new(Follower {
            live,
            view,
            fetched_before: self.fetched_before.clone(),
            _pin: look.into_pin(),
            _place: place,
            _grant: grant,
            _lock: lock,
        }))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meanings(&self) -> MutexGuard<'_, HashMap<(Uuid, At), Meaning>> {
        self.meanings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long nobody has used it; `None` while somebody does, or it starts.
    fn idle_for(&self) -> Option<Duration> {
        let follower = self.cell.get()?;
        if Arc::strong_count(&follower.live) > 1 {
            self.touch();
            return None;
        }
        Some(self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    async fn end(&self) {
        if let Some(follower) = self.cell.get() {
            follower.live.engine.shutdown(GRACE).await;
        }
    }
}
