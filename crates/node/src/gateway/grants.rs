//! Keys given to engines, and what each entitles to.
//!
//! A [`Grant`] belongs to one spawn of one mart's engine; dropping it revokes its key and aborts what it had begun to
//! upload. The s3s service asks here for a key's secret, and here again whether the signed request may go on.
//!
//! **Invariant:** a request handler only ever sees the [`Session`] whose key signed the request.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use engine::config::GatewayConfig;
use rand::RngCore;
use replica::view::View;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::policy::{Access, Policy};
use super::traffic::{Bytes, Direction, Traffic};
use super::uploads::Uploads;
use super::{KeyId, errors, past};
use crate::names::{MartId, Tenant};
use crate::stores::{Bucket, BucketStores};

/// An engine's keys. Dropping it revokes them.
pub struct Grant {
    /// Access key id.
    pub key_id: String,
    /// Its secret: give it to the engine and to nobody else.
    pub secret: String,
    /// Where its engine reaches the gateway: its S3 endpoint and its `http_proxy`.
    pub addr: SocketAddr,
    /// The prefixes that the key is for, with their final `/`: what a DuckDB secret's SCOPE wants.
    pub scopes: Vec<String>,
    grants: Arc<Grants>,
    /// Ends its listener and connections.
    stop: CancellationToken,
}

impl Grant {
    /// As the engine is told of it.
    pub fn config(&self) -> GatewayConfig {
        GatewayConfig {
            endpoint: self.addr.to_string(),
            key_id: self.key_id.clone(),
            secret: self.secret.clone(),
            scopes: self.scopes.clone(),
            region: super::REGION.into(),
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.stop.cancel();
        self.grants.revoke(&self.key_id);
    }
}

/// What a key entitles to, and what its engine is doing.
pub(super) struct Session {
    pub(super) policy: Policy,
    pub(super) uploads: Uploads,
    pub(super) traffic: Arc<Traffic>,
    /// The earlier moment that its engine reads.
    pub(super) view: Option<Arc<View>>,
    secret: String,
    stores: Arc<BucketStores>,
    label: String,
}

impl Session {
    /// The earlier moment, if that is the bucket asked for.
    pub(super) fn past(&self, bucket: &str) -> Option<&Arc<View>> {
        self.view.as_ref().filter(|_| bucket == past::BUCKET)
    }

    /// The bucket of that name, which the policy must have allowed before.
    pub(super) async fn bucket(&self, name: &str) -> S3Result<Bucket> {
        let name = name.parse().map_err(|_| errors::denied())?;
        let stores = self.stores.clone();
        let opened = tokio::task::spawn_blocking(move || stores.bucket(&name)).await;
        match opened {
            Ok(Ok(bucket)) => Ok(bucket),
            Ok(Err(error)) => {
                tracing::warn!(%error, mart = self.label, "a bucket can't be opened");
                Err(errors::unavailable())
            }
            Err(_) => Err(errors::unavailable()),
        }
    }
}

/// All keys in force, and the counts of all tenants.
pub(super) struct Grants {
    stores: Arc<BucketStores>,
    tasks: TaskTracker,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    traffic: Mutex<HashMap<Tenant, Arc<Traffic>>>,
}

impl Grants {
    pub(super) fn new(stores: Arc<BucketStores>, tasks: TaskTracker) -> Self {
        Self { stores, tasks, sessions: Mutex::default(), traffic: Mutex::default() }
    }

    pub(super) fn issue(
        self: &Arc<Self>,
        id: &MartId,
        view: Option<Arc<View>>,
        addr: SocketAddr,
        stop: CancellationToken,
    ) -> Grant {
        let buckets = self.stores.names_of(&id.tenant);
        let scopes = [&buckets.raw, &buckets.processed, &buckets.analytics];
        let grant = Grant {
            key_id: format!("TARN{}", random_hex(10).to_uppercase()),
            secret: random_hex(32),
            addr,
            stop,
            scopes: scopes.iter().map(|bucket| format!("s3://{bucket}/")).collect(),
            grants: self.clone(),
        };
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let session = Session {
            policy: Policy::new(buckets),
            uploads: Uploads::default(),
            traffic: traffic.entry(id.tenant.clone()).or_default().clone(),
            view,
            secret: grant.secret.clone(),
            stores: self.stores.clone(),
            label: id.to_string(),
        };
        self.sessions().insert(grant.key_id.clone(), Arc::new(session));
        grant
    }

    pub(super) fn traffic(&self) -> Vec<Bytes> {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = Vec::with_capacity(traffic.len() * 2);
        for (tenant, counted) in traffic.iter() {
            for direction in [Direction::Read, Direction::Write] {
                counts.push(Bytes { tenant: tenant.clone(), direction, bytes: counted.get(direction) });
            }
        }
        counts
    }

    fn revoke(&self, key_id: &str) {
        let Some(session) = self.sessions().remove(key_id) else { return };
        // An engine that died in the middle of an upload left parts behind that cost money until somebody aborts them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks.spawn_on(async move { session.uploads.abort_all().await }, &runtime);
        }
    }

    fn session(&self, key_id: &str) -> Option<Arc<Session>> {
        self.sessions().get(key_id).cloned()
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn random_hex(bytes: usize) -> String {
    let mut random = vec![0u8; bytes];
    rand::rng().fill_bytes(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The session that a checked request belongs to.
pub(super) fn session_of<T>(request: &S3Request<T>) -> S3Result<Arc<Session>> {
    request.extensions.get::<Arc<Session>>().cloned().ok_or_else(errors::denied)
}

/// The gateway's part in s3s's checks.
pub(super) struct Auth(pub(super) Arc<Grants>);

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, key_id: &str) -> S3Result<SecretKey> {
        match self.0.session(key_id) {
            Some(session) => Ok(SecretKey::from(session.secret.as_str())),
            None => Err(S3Error::with_message(S3ErrorCode::InvalidAccessKeyId, "this key is not in force")),
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Auth {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        let key_id = request.credentials().map(|credentials| credentials.access_key.clone());
        let door = request.extensions_mut().get::<KeyId>().cloned();
        // A key that came through another engine's door is as good as none.
        let key_id = key_id.filter(|key_id| door.is_some_and(|door| *door.0 == **key_id));
        let session = key_id.and_then(|key_id| self.0.session(&key_id)).ok_or_else(errors::denied)?;
        let access = match request.s3_op().name() {
            "GetObject" | "HeadObject" => Access::Read,
            "PutObject"
            | "CreateMultipartUpload"
            | "UploadPart"
            | "CompleteMultipartUpload"
            | "AbortMultipartUpload"
            | "DeleteObject" => Access::Write,
            // The prefix, or each key, is checked where it is parsed.
            "ListObjectsV2" | "DeleteObjects" if request.s3_path().as_bucket().is_some() => {
                request.extensions_mut().insert(session);
                return Ok(());
            }
            _ => {
                let message = "this operation is not available";
                return Err(S3Error::with_message(S3ErrorCode::NotImplemented, message));
            }
        };
        let (bucket, key) = request.s3_path().as_object().ok_or_else(errors::denied)?;
        let past = access == Access::Read && session.view.is_some() && past::is_here(bucket, key);
        if !past && !session.policy.allows(access, bucket, key) {
            return Err(errors::denied());
        }
        request.extensions_mut().insert(session);
        Ok(())
    }
}
