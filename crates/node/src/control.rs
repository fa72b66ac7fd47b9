//! The control store: what must outlive every machine and is known to every node. Tenants, marts, token hashes.
//!
//! It knows object names and how one version follows another, not what the entries mean to requests.
//!
//! # Consistency
//! `control/{n}` holds the whole state as of version `n`; versions are numbered from 1 without gaps and never change. A change
//! reads the newest version, applies itself, and creates the next name if it is absent; a loser reads on and applies itself again.
//! Every node polls for the next name, so it knows a change within the poll interval. Each object carries the hash of its state.
//!
//! # Crash consistency
//! One object per version, created whole or not at all. A create with an unknown outcome is settled by reading the name: ours is
//! known by its nonce.
//!
//! # Cancellation
//! A change that is dropped midway may or may not have happened, like one whose answer was lost.

mod state;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use state::{Ancestor, MartEntry, State, TenantEntry, TokenEntry};

use crate::error::{ApiError, Code};
use crate::stores::Bucket;

/// A node knows a change of another at most so late (the contract says 2 s).
const POLL: Duration = Duration::from_millis(1500);
const FORMAT: u32 = 1;
/// Attempts to settle one create before giving up on the store.
const ATTEMPTS: u32 = 5;

/// Why the control store can't be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The store does not answer.
    #[error("the control store is not available")]
    Unavailable(#[source] object_store::Error),
    /// A version does not pass its checks.
    #[error("control object `{object}` is corrupt: {reason}")]
    Corrupt {
        /// Its name.
        object: Path,
        /// What is wrong.
        reason: String,
    },
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Unavailable(source) => {
                tracing::warn!(error = %source, "control store not available");
                ApiError::new(Code::Unavailable, "the control store is not available")
                    .hint("try again; `tarn doctor` checks the store")
            }
            ControlError::Corrupt { object, reason } => {
                tracing::error!(%object, reason, "control store corrupt");
                ApiError::new(Code::Corrupt, "the control store is corrupt").hint("the server's log names the object")
            }
        }
    }
}

/// A version of the state.
#[derive(Debug, Clone)]
struct Version {
    number: u64,
    state: Arc<State>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    format: u32,
    version: u64,
    nonce: Uuid,
    blake3: String,
    state: Box<RawValue>,
}

/// A handle to the control store, with the newest known state.
pub struct Control {
    bucket: Bucket,
    current: watch::Sender<Version>,
    /// One change at a time from this node, so that it does not race against itself.
    changing: Mutex<()>,
}

impl Control {
    /// Finds and reads the newest version; an empty store is version 0 with nothing in it.
    pub async fn open(bucket: Bucket) -> Result<Self, ControlError> {
        let (current, _) = watch::channel(Version { number: 0, state: Arc::default() });
        let control = Self { bucket, current, changing: Mutex::new(()) };
        if let Some(number) = control.newest().await? {
            control.advance_to(number).await?;
            control.refresh().await?;
        }
        Ok(control)
    }

    /// The newest known state.
    pub fn state(&self) -> Arc<State> {
        self.current.borrow().state.clone()
    }

    /// The number of the newest known version; 0 for an empty store.
    pub fn version(&self) -> u64 {
        self.current.borrow().number
    }

    /// Resolves once there is another version than when this was called.
    pub fn changes(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut current = self.current.subscribe();
        async move {
            // A control store that is gone changes no more.
            if current.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Reads on until there is no newer version.
    pub async fn refresh(&self) -> Result<(), ControlError> {
        while self.advance_to(self.version() + 1).await? {}
        Ok(())
    }

    /// Refreshes until cancelled; a store that is away is logged once per outage.
    pub async fn poll(&self, cancel: CancellationToken) {
        let mut away = false;
        while cancel.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            match self.refresh().await {
                Ok(()) => away = false,
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(%error, "control store not readable; going on with what is known");
                }
                Err(_) => {}
            }
        }
    }

    /// Applies `change` to the newest state and makes the result the next version. `change` may run several times, each time on
    /// a newer state; what it refuses is not written.
    pub async fn change<T>(&self, mut change: impl FnMut(&mut State) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let _one = self.changing.lock().await;
        self.refresh().await?;
        loop {
            let base = self.current.borrow().clone();
            let mut state = State::clone(&base.state);
            let answer = change(&mut state)?;
            if state == *base.state {
                return Ok(answer);
            }
            if self.append(base.number + 1, state).await? {
                return Ok(answer);
            }
            self.refresh().await?;
        }
    }

    /// Creates a version; false if another node took the number.
    async fn append(&self, number: u64, state: State) -> Result<bool, ControlError> {
        let nonce = Uuid::new_v4();
        let text = serde_json::to_string(&state).expect("names, texts and numbers serialise");
        let envelope = Envelope {
            format: FORMAT,
            version: number,
            nonce,
            blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
            state: RawValue::from_string(text).expect("it was just serialised"),
        };
        let bytes = Bytes::from(serde_json::to_vec(&envelope).expect("names, texts and numbers serialise"));
        for attempt in 1.. {
            let error =
                match self.bucket.log.put_opts(&name(number), bytes.clone().into(), PutMode::Create.into()).await {
                    Ok(_) => break,
                    Err(error) => error,
                };
            match self.read(number).await {
                Ok(Some((_, found))) if found == nonce => break,
                Ok(Some(_)) => return Ok(false),
                Ok(None) | Err(ControlError::Unavailable(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(50) * attempt).await;
                }
                Ok(None) => return Err(ControlError::Unavailable(error)),
                Err(error) => return Err(error),
            }
        }
        self.current.send_replace(Version { number, state: Arc::new(state) });
        Ok(true)
    }

    /// Makes version `number` the current one if it exists.
    async fn advance_to(&self, number: u64) -> Result<bool, ControlError> {
        let Some((state, _)) = self.read(number).await? else { return Ok(false) };
        let state = Arc::new(state);
        self.current.send_if_modified(|current| {
            let newer = number > current.number;
            if newer {
                *current = Version { number, state };
            }
            newer
        });
        Ok(true)
    }

    async fn read(&self, number: u64) -> Result<Option<(State, Uuid)>, ControlError> {
        let object = name(number);
        let bytes = match self.bucket.data.get(&object).await {
            Ok(found) => found.bytes().await.map_err(ControlError::Unavailable)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(ControlError::Unavailable(error)),
        };
        decode(&bytes, number).map(Some).map_err(|reason| ControlError::Corrupt { object, reason })
    }

    /// The newest version there is, found with a number of reads that grows with its logarithm: versions have no gaps.
    async fn newest(&self) -> Result<Option<u64>, ControlError> {
        if !self.exists(1).await? {
            return Ok(None);
        }
        let (mut there, mut absent) = (1, 2);
        while self.exists(absent).await? {
            there = absent;
            absent *= 2;
        }
        while absent - there > 1 {
            let middle = there + (absent - there) / 2;
            if self.exists(middle).await? { there = middle } else { absent = middle }
        }
        Ok(Some(there))
    }

    async fn exists(&self, number: u64) -> Result<bool, ControlError> {
        match self.bucket.data.head(&name(number)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(ControlError::Unavailable(error)),
        }
    }
}

fn name(number: u64) -> Path {
    Path::from(format!("control/{number:020}"))
}

fn decode(bytes: &[u8], number: u64) -> Result<(State, Uuid), String> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if envelope.format != FORMAT {
        return Err(format!("format {} is not known to this version of tarn", envelope.format));
    }
    if envelope.version != number {
        return Err(format!("it says it is version {}", envelope.version));
    }
    if blake3::hash(envelope.state.get().as_bytes()).to_hex().as_str() != envelope.blake3 {
        return Err("its hash does not match".into());
    }
    let state = serde_json::from_str(envelope.state.get()).map_err(|e| e.to_string())?;
    Ok((state, envelope.nonce))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::{BucketStores, BucketTemplates, StoreConfig};

    fn bucket() -> Bucket {
        let stores = BucketStores::new(StoreConfig::Memory, BucketTemplates::default()).expect("memory needs nothing");
        stores.bucket(&"tarn-control".parse().expect("a legal name")).expect("memory opens")
    }

    fn add_tenant(state: &mut State, name: &str) {
        let entry = TenantEntry { created_us: 1, marts: Default::default() };
        state.tenants.insert(name.parse().expect("a legal name"), entry);
    }

    #[tokio::test]
    async fn racing_nodes_lose_no_change() {
        let bucket = bucket();
        let nodes = [0, 1].map(|_| Control::open(bucket.clone()));
        let nodes = futures::future::try_join_all(nodes).await.expect("an empty store opens");
        let changes = (0..40).map(|i| {
            let node = &nodes[i % 2];
            node.change(move |state| {
                add_tenant(state, &format!("t{i}"));
                Ok(())
            })
        });
        futures::future::try_join_all(changes).await.expect("memory does not fail");
        let fresh = Control::open(bucket).await.expect("the store opens");
        assert_eq!(fresh.state().tenants.len(), 40);
        assert_eq!(fresh.version(), 40);
    }

    #[tokio::test]
    async fn a_refused_change_writes_nothing() {
        let control = Control::open(bucket()).await.expect("an empty store opens");
        let refused: Result<(), _> = control
            .change(|state| {
                add_tenant(state, "t");
                Err(ApiError::new(Code::Conflict, "no"))
            })
            .await;
        assert!(refused.is_err());
        assert_eq!((control.version(), control.state().tenants.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_flipped_bit_is_corrupt_and_not_an_empty_state() {
        let bucket = bucket();
        let control = Control::open(bucket.clone()).await.expect("an empty store opens");
        let add = |state: &mut State| {
            add_tenant(state, "abc");
            Ok(())
        };
        control.change(add).await.expect("memory does not fail");
        let text = bucket.data.get(&name(1)).await.expect("it was written").bytes().await.expect("it is read");
        let flipped = String::from_utf8(text.to_vec()).expect("JSON").replace("abc", "abd");
        bucket.data.put(&name(1), flipped.into()).await.expect("memory does not fail");
        assert!(matches!(Control::open(bucket).await.err(), Some(ControlError::Corrupt { .. })));
    }
}
