//! This node among the nodes of one store: its name, its signs of life, and whether another node lives.
//!
//! It decides when a take-over may be *tried*, and when this node must stop answering from its disk. Who may write is decided by the
//! next slot of a mart's log alone (crate `replica`); nothing here is needed for `object` commits to be safe.
//!
//! # Consistency
//! `nodes/{id}` in the control bucket is one node's heartbeat, overwritten with plain PUTs: advisory. A node counts as dead when its
//! object has not changed for its take-over time on the clock of whoever looks; a node that stops in order removes it. Whoever finds
//! the writer of a mart dead fences right behind the head that it saw *before* it looked, so a writer that came back and won a slot
//! since is never deposed by an old look. A node whose newest heartbeat began too long ago can't prove that nobody has taken its marts
//! over, says so, and after it has come back answers for a mart only when that mart has won a slot.
//!
//! # Crash consistency
//! The id is written once, synced, before anything is done in its name.
//!
//! # Cancellation
//! A heartbeat that is dropped midway may still land, which only delays a take-over.

mod identity;
mod observer;
mod peer;
mod proof;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use identity::{NodeId, NodeName};
pub use observer::{Sight, Verdict};
pub use peer::Peer;
pub use proof::Proof;

use crate::clock;
use crate::error::{ApiError, Code};
use crate::stores::Bucket;

const FORMAT: u32 = 1;
const PREFIX: &str = "nodes";
/// So many heartbeats fit into the take-over time.
const BEATS: u32 = 5;
/// Removing the heartbeat must not hold up a stop.
const FAREWELL: Duration = Duration::from_secs(5);
/// So many heartbeats are read at once for a list.
const PARALLEL_READS: usize = 8;

/// What a node says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Of this object.
    pub format: u32,
    /// Counts from 1 in one life of the process.
    pub seq: u64,
    /// When the process started, in microseconds since 1970; for people, and to tell one life from the next.
    pub started_us: i64,
    /// The machine's name, for people.
    pub host: String,
    /// Where other nodes send its marts' requests, if they may: a [`Peer`].
    #[serde(default)]
    pub advertise: Option<String>,
    /// Unchanged for so long, it is dead. Who looks waits for as long as the node itself counts on.
    pub takeover_ms: u64,
}

impl Heartbeat {
    fn place(self) -> Elsewhere {
        Elsewhere { host: self.host, advertise: self.advertise.as_deref().and_then(Peer::parse) }
    }
}

/// How a cluster is set up.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// After how long without a sign of life a node's marts may be taken over; none in an installation of one node.
    pub takeover_after: Option<Duration>,
    /// Where other nodes reach this one.
    pub advertise: Option<Peer>,
}

/// What became of a look at a mart's writer.
#[derive(Debug)]
pub enum Look {
    /// It is this node.
    Me,
    /// It stopped, was never there, or has not been heard of for the take-over time.
    Gone,
    /// It lives.
    Lives(Box<Elsewhere>),
    /// It is not known yet; look again after so long.
    Unknown(Duration),
}

/// Where a mart is served instead.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// The machine's name.
    pub host: String,
    /// Where requests may be sent.
    pub advertise: Option<Peer>,
}

impl Elsewhere {
    /// What a client is told.
    pub fn refusal(&self) -> ApiError {
        let place = self.advertise.as_ref().map_or_else(|| self.host.clone(), Peer::to_string);
        ApiError::new(Code::Fenced, format!("another node serves this mart: `{place}`")).hint("send the request there")
    }
}

/// This node and what it knows of others.
pub struct Cluster {
    name: NodeName,
    config: ClusterConfig,
    bucket: Bucket,
    proof: Proof,
    started_us: i64,
    seq: Mutex<u64>,
    others: Mutex<HashMap<NodeId, Sight>>,
}

impl Cluster {
    /// The node whose id is kept in `state_dir`. Heartbeats begin with [`Cluster::beat`] or [`Cluster::run`].
    pub fn new(state_dir: &std::path::Path, config: ClusterConfig, bucket: Bucket) -> std::io::Result<Self> {
        Ok(Self {
            name: NodeName::keep_in(state_dir)?,
            proof: Proof::new(config.takeover_after),
            config,
            bucket,
            started_us: clock::now_us(),
            seq: Mutex::default(),
            others: Mutex::default(),
        })
    }

    /// This node's name, as fences carry it.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Whether this node can prove that it lives.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Beats until cancelled, if there can be other nodes.
    pub async fn run(&self, cancel: CancellationToken) {
        let Some(period) = self.period() else { return };
        let mut pause = period;
        let mut failing = false;
        while cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = match self.beat().await {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("heartbeats get through again");
                    }
                    period
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "no heartbeat gets through: without one this node soon answers from its disk no more");
                    }
                    period / BEATS
                }
            };
        }
    }

    /// One heartbeat.
    pub async fn beat(&self) -> object_store::Result<()> {
        let (Some(takeover), Some(period)) = (self.config.takeover_after, self.period()) else { return Ok(()) };
        let seq = {
            let mut seq = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
            *seq += 1;
            *seq
        };
        let heartbeat = Heartbeat {
            format: FORMAT,
            seq,
            started_us: self.started_us,
            host: self.name.host().to_owned(),
            advertise: self.config.advertise.as_ref().map(Peer::to_string),
            takeover_ms: u64::try_from(takeover.as_millis()).unwrap_or(u64::MAX),
        };
        let bytes = serde_json::to_vec(&heartbeat).expect("texts and numbers serialise");
        // It proves nothing about the time after this, whenever it lands.
        let started = clock::since_boot();
        within(period, self.bucket.data.put(&key(self.name.id()), bytes.into())).await?;
        self.proof.landed(started, clock::since_boot());
        Ok(())
    }

    /// Says that this node has stopped, so that nobody waits to take its marts over. All of them must be closed.
    pub async fn leave(&self) {
        if self.config.takeover_after.is_none() {
            return;
        }
        if let Err(error) = within(FAREWELL, self.bucket.data.delete(&key(self.name.id()))).await {
            tracing::warn!(%error, "the heartbeat can't be removed: other nodes wait before they take this one's marts over");
        }
    }

    /// Whether the node of that name, which a fence carries, lives. The head of the log must have been read before.
    pub async fn look(&self, name: &str) -> Look {
        // Fences of before nodes had ids have no heartbeat either.
        let Some(owner) = NodeName::parse(name) else { return Look::Gone };
        if owner.id() == self.name.id() {
            return Look::Me;
        }
        let Some(own_takeover) = self.config.takeover_after else { return Look::Gone };
        let again = own_takeover / BEATS;
        let asked = Instant::now();
        let bytes = match within(again, self.read(owner.id())).await {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Look::Gone,
            Err(error) => {
                tracing::warn!(%error, "can't see whether another node lives");
                return Look::Unknown(again);
            }
        };
        // One of another format counts by whether it changes, too.
        let heartbeat: Option<Heartbeat> = serde_json::from_slice(&bytes).ok();
        let takeover =
            heartbeat.as_ref().map_or(own_takeover, |h| own_takeover.max(Duration::from_millis(h.takeover_ms)));
        let mark = *blake3::hash(&bytes).as_bytes();
        let verdict = {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            others.entry(owner.id()).or_default().seen(mark, takeover, asked..Instant::now())
        };
        match verdict {
            Verdict::Dead => Look::Gone,
            Verdict::Unknown(rest) => Look::Unknown(rest.min(again)),
            Verdict::Alive => Look::Lives(Box::new(match heartbeat {
                Some(heartbeat) => heartbeat.place(),
                None => Elsewhere { host: owner.host().to_owned(), advertise: None },
            })),
        }
    }

    /// Other nodes whose newest sign of life is not older than their take-over time by the store's clock, against this machine's: good
    /// enough to know whom to ask, never to decide anything by.
    pub async fn others(&self) -> object_store::Result<Vec<Elsewhere>> {
        let Some(takeover) = self.config.takeover_after else { return Ok(Vec::new()) };
        let (own, now_us) = (self.name.id().to_string(), clock::now_us());
        let all = within(takeover, heartbeats(&self.bucket)).await?;
        let fresh = |at_us: i64, beat: &Heartbeat| {
            now_us.saturating_sub(at_us) < i64::try_from(beat.takeover_ms.saturating_mul(1000)).unwrap_or(i64::MAX)
        };
        Ok(all
            .into_iter()
            .filter(|(name, ..)| *name != own)
            .filter_map(|(_, at_us, beat)| beat.filter(|beat| fresh(at_us, beat)))
            .map(Heartbeat::place)
            .collect())
    }

    async fn read(&self, id: NodeId) -> object_store::Result<Bytes> {
        self.bucket.data.get(&key(id)).await?.bytes().await
    }

    fn period(&self) -> Option<Duration> {
        self.config.takeover_after.map(|takeover| takeover / BEATS)
    }
}

/// Every heartbeat there is, with its node and the store's time of it in microseconds since 1970.
pub async fn heartbeats(bucket: &Bucket) -> object_store::Result<Vec<(String, i64, Option<Heartbeat>)>> {
    let prefix = Key::from(PREFIX);
    let mut all: Vec<_> = bucket
        .data
        .list(Some(&prefix))
        .map_ok(|meta| async move {
            let name = meta.location.filename().unwrap_or_default().to_owned();
            let bytes = bucket.data.get(&meta.location).await?.bytes().await?;
            Ok((name, meta.last_modified.timestamp_micros(), serde_json::from_slice(&bytes).ok()))
        })
        .try_buffer_unordered(PARALLEL_READS)
        // One may be removed between the list and the look.
        .filter(|found| std::future::ready(!matches!(found, Err(object_store::Error::NotFound { .. }))))
        .try_collect()
        .await?;
    all.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    Ok(all)
}

fn key(id: NodeId) -> Key {
    Key::from(PREFIX).join(id.to_string())
}

async fn within<T>(limit: Duration, call: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(object_store::Error::Generic { store: "any", source: elapsed.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::{BucketStores, BucketTemplates, StoreConfig};

    const TAKEOVER: Duration = Duration::from_secs(25);

    fn node(bucket: &Bucket, takeover_after: Option<Duration>) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = ClusterConfig { takeover_after, advertise: Peer::parse("there:1") };
        Cluster::new(dir.path(), config, bucket.clone()).expect("it is writable")
    }

    fn bucket() -> Bucket {
        let stores = BucketStores::new(StoreConfig::Memory, BucketTemplates::default()).expect("memory needs nothing");
        stores.bucket(&"tarn-control".parse().expect("a legal name")).expect("memory opens")
    }

    #[tokio::test]
    async fn a_node_that_beats_lives_and_one_that_left_is_gone_at_once() {
        let bucket = bucket();
        let (one, other) = (node(&bucket, Some(TAKEOVER)), node(&bucket, Some(TAKEOVER)));
        let name = other.name().to_string();
        assert!(matches!(one.look(&name).await, Look::Gone), "it never was there");
        other.beat().await.expect("memory does not fail");
        assert!(matches!(one.look(&name).await, Look::Unknown(wait) if wait <= TAKEOVER / BEATS));
        other.beat().await.expect("memory does not fail");
        let Look::Lives(place) = one.look(&name).await else { panic!("it has just changed") };
        assert_eq!(place.advertise, Peer::parse("there:1"));
        assert!(matches!(other.look(&name).await, Look::Me));
        assert_eq!(heartbeats(&bucket).await.expect("memory does not fail").len(), 1);
        let others = |node| async move { Cluster::others(node).await.expect("memory does not fail").len() };
        assert_eq!((others(&one).await, others(&other).await), (1, 0), "nobody is another to itself");
        other.leave().await;
        assert_eq!(others(&one).await, 0);
        assert!(matches!(one.look(&name).await, Look::Gone));
    }

    #[tokio::test]
    async fn a_heartbeat_of_another_format_counts_by_its_changes() {
        let bucket = bucket();
        let one = node(&bucket, Some(TAKEOVER));
        let name = node(&bucket, None).name().clone();
        for text in ["one", "two"] {
            bucket.data.put(&key(name.id()), text.into()).await.expect("memory does not fail");
            let found = one.look(&name.to_string()).await;
            assert_eq!(matches!(found, Look::Lives(_)), text == "two", "{found:?}");
        }
    }

    #[tokio::test]
    async fn an_installation_of_one_node_asks_nobody_and_writes_nothing() {
        let bucket = bucket();
        let (alone, other) = (node(&bucket, None), node(&bucket, Some(TAKEOVER)));
        other.beat().await.expect("memory does not fail");
        assert!(matches!(alone.look(&other.name().to_string()).await, Look::Gone));
        assert!(matches!(alone.look(&alone.name().to_string()).await, Look::Me));
        alone.beat().await.expect("it does nothing");
        assert_eq!(heartbeats(&bucket).await.expect("memory does not fail").len(), 1, "only the other's");
        assert_eq!(alone.proof().streak(clock::since_boot()), Some(0));
    }
}
