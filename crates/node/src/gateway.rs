//! The gateway: S3 on a listener of each engine's own, the only way from an engine to `s3://`.
//!
//! Engines speak S3 to it with keys made for one spawn; it speaks to the buckets through [`crate::stores`], with credentials
//! that engines never see. It decides who may do what where, counts bytes, and hides the replica's objects. It does not
//! parse SQL, and it is no general proxy: an engine whose `http_proxy` it is reaches its own buckets and nothing else.
//!
//! A request passes [`edge`] (is this plain S3 for us?), the signature check, [`grants`] (whose spawn is it, may it do that?)
//! and ends in [`objects`], [`listing`] or [`uploads`].
//!
//! **Invariants:** a key is good only through its engine's listener, which where the kernel allows it lies in that engine's own network
//! namespace; every decision is made on the decoded key; nothing of a refused request reaches a store; an answer names
//! no bucket, path, endpoint or key that the request did not name itself.

mod body;
mod edge;
mod errors;
mod grants;
mod listing;
mod objects;
pub mod past;
mod policy;
mod traffic;
mod uploads;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use replica::view::View;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use grants::Grant;
pub use traffic::{Bytes as TrafficBytes, Direction};

use crate::names::{Mart, MartId, Tenant};
use crate::stores::BucketStores;

/// The region that engines sign for. The gateway has no regions; the signature wants one.
pub const REGION: &str = "us-east-1";
/// Connections served at once; DuckDB opens one per thread and file.
const MAX_CONNECTIONS: usize = 4096;
/// The longest list of parts or keys that a request may carry; 10,000 parts take half of it.
const XML_BYTES: usize = 4 * 1024 * 1024;
/// A client has this long to send a request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// A running gateway. Dropping it stops it at once; [`Gateway::shutdown`] lets answers end first.
pub struct Gateway {
    grants: Arc<grants::Grants>,
    s3: S3Service,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The way in of one engine: a listener that nobody else is meant to reach, and the one key that is good there.
struct Door {
    addr: SocketAddr,
    key_id: KeyId,
    s3: S3Service,
    stop: CancellationToken,
}

/// In a request's extensions: the key whose engine it came from.
#[derive(Clone, PartialEq, Eq)]
struct KeyId(Arc<str>);

impl Gateway {
    /// Serves nobody yet: each engine gets a door of its own.
    pub fn new(stores: Arc<BucketStores>) -> Self {
        let tasks = TaskTracker::new();
        let grants = Arc::new(grants::Grants::new(stores, tasks.clone()));
        let mut builder = S3ServiceBuilder::new(objects::Objects);
        builder.set_auth(grants::Auth(grants.clone()));
        builder.set_access(grants::Auth(grants.clone()));
        let mut limits = S3Config::default();
        limits.xml_max_body_size = XML_BYTES;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(limits))));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { grants, s3: builder.build(), places, stop: CancellationToken::new(), tasks }
    }

    /// Keys for one spawn of a mart's engine, good until the grant is dropped, and only for what comes through `door`.
    pub fn grant(&self, door: TcpListener, tenant: &Tenant, mart: &Mart) -> io::Result<Grant> {
        self.open(door, MartId { tenant: tenant.clone(), mart: mart.clone() }, None)
    }

    /// The same for an engine on an earlier moment, which reads that moment's files here.
    pub fn grant_past(&self, door: TcpListener, id: &MartId, view: Arc<View>) -> io::Result<Grant> {
        self.open(door, id.clone(), Some(view))
    }

    fn open(&self, listener: TcpListener, id: MartId, view: Option<Arc<View>>) -> io::Result<Grant> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let addr = listener.local_addr()?;
        let stop = self.stop.child_token();
        let grant = self.grants.issue(&id, view, addr, stop.clone());
        let door = Door { addr, key_id: KeyId(grant.key_id.as_str().into()), s3: self.s3.clone(), stop };
        self.tasks.spawn(accept(listener, Arc::new(door), self.places.clone(), self.tasks.clone()));
        Ok(grant)
    }

    /// Bytes that passed, per tenant and direction, since the start.
    pub fn traffic(&self) -> Vec<TrafficBytes> {
        self.grants.traffic()
    }

    /// Takes no more requests, lets those under way end, and returns when all have: end the engines first, because an answer
    /// to an engine that does not read never ends by itself.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: tokio::net::TcpListener, door: Arc<Door>, places: Arc<Semaphore>, tasks: TaskTracker) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = door.stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back rather than spin.
                tracing::warn!(%error, "the gateway can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let door = door.clone();
        tasks.spawn(async move {
            serve(stream, door).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, door: Arc<Door>) {
    let _ = stream.set_nodelay(true);
    let answering = door.clone();
    let service = service_fn(move |request| {
        let door = answering.clone();
        async move { Ok::<_, Infallible>(answer(request, &door).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = door.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a gateway connection broke");
    }
}

async fn answer(mut request: http::Request<hyper::body::Incoming>, door: &Door) -> s3s::HttpResponse {
    if let Err(refused) = edge::admit(&request, door.addr) {
        tracing::debug!(method = %request.method(), reason = refused.reason(), "the gateway refused a request");
        return refused.answer();
    }
    request.extensions_mut().insert(door.key_id.clone());
    let request = request.map(s3s::Body::from);
    door.s3.call(request).await.unwrap_or_else(|error| {
        tracing::warn!(?error, "the gateway failed to answer");
        errors::failed()
    })
}
