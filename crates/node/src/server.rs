//! `tarn serve`: puts the node's parts together, serves until it is told to stop, and takes them apart in order.
//!
//! # Crash consistency
//! One node per state directory: it holds a lock there for its life. All else in the directory may be lost.

mod accept;
mod upload;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::walls::Wall;
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::app::App;
use crate::audit::Audit;
use crate::auth::issuer::Issuer;
use crate::auth::{Admin, Identity};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::control::Control;
use crate::flight::Flight;
use crate::followers::Followers;
use crate::gateway::Gateway;
use crate::http::metrics_routes;
use crate::jobs::Jobs;
use crate::marts::{Ground, Marts};
use crate::names::MartId;
use crate::pins::AllPins;
use crate::precedence;
use crate::publish;
use crate::revocation;
use crate::running::Running;
use crate::scratch;
use crate::slow::Slow;
use crate::stores::BucketStores;
use crate::supervisor::{Groups, SocketDir, Spares, child};
use crate::tls::{self, Certificate};
use crate::traces::Traces;
use crate::upkeep;
use crate::verify::Verifier;

/// Queries that nobody waits for are cancelled then, and end within this time or are cut off.
const LAST_JOBS: Duration = Duration::from_secs(5);
/// Whoever may list it may read every tenant's data.
const PRIVATE: u32 = 0o700;
const ADDRESS_FILE: &str = "address";

/// A node that serves.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    metrics: Option<TcpListener>,
    certificate: Option<Arc<Certificate>>,
    address: SocketAddr,
    background: CancellationToken,
    admin_token: Option<String>,
    _state_lock: File,
}

/// Why a node can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another node uses the state directory.
    #[error("another `tarn serve` uses the state directory `{0}`")]
    InUse(PathBuf),
    /// A directory, file or port can't be had.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state directory is on a mount that shows objects as files.
    #[error(
        "the state directory `{dir}` is on {kind}: a live database can't be kept there, since its writes in place, syncs and locks do not reach the \
         objects as they are; use a local disk. The store keeps every commit anyway; such a mount is good for archives and published files \
         (`publish_dir`): docs/deployment.md"
    )]
    Bridge {
        /// The directory.
        dir: PathBuf,
        /// What `mount` calls it.
        kind: String,
    },
    /// The object store is set up wrongly.
    #[error("the object store can't be used")]
    Store(#[from] crate::stores::StoreError),
    /// The certificate, or those of authorities, can't be used.
    #[error("can't serve with TLS")]
    Tls(#[from] tls::TlsError),
    /// The kernel lacks a wall that the configuration requires.
    #[error("the wall `{wall}` is required and does not stand here: {why}; docs/security.md says what it needs")]
    Wall {
        /// Which.
        wall: Wall,
        /// What the kernel said.
        why: String,
    },
    /// The control store can't be read.
    #[error("the control store can't be read; `tarn doctor` checks it")]
    Control(#[from] crate::control::ControlError),
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::System { what, source }
}

impl Server {
    /// Gets everything that can fail out of the way: directories, locks, the control store, the port.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let state_dir = config.state_dir.clone();
        std::fs::create_dir_all(&state_dir)
            .map_err(system(format!("can't make the state directory `{}`", state_dir.display())))?;
        if let Some(kind) = replica::mount::bridge(&state_dir).map_err(system("can't look at the state directory"))? {
            return Err(StartError::Bridge { dir: state_dir, kind });
        }
        let state_lock = lock(&state_dir)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(state_dir.join("marts"))
            .map_err(system("can't make the directory of marts"))?;
        look_at_walls(&state_dir.join("marts"), &config.engine.required_walls).await?;
        let certificate = config.tls.as_ref().map(Certificate::load).transpose()?.map(Arc::new);
        let trust = tls::trust(config.tls_ca.as_deref())?;
        let (admin, admin_token) = match &config.admin_token {
            Some(token) => (Admin::new(token), None),
            None => Admin::keep_in(&state_dir).map_err(system("can't keep the admin token in the state directory"))?,
        };
        let stores = Arc::new(BucketStores::new(config.store.clone(), config.buckets.clone())?);
        let bucket = stores.bucket(&config.control)?;
        let control = Control::open(bucket.clone()).await?;
        let cluster = Cluster::new(&state_dir, config.cluster.clone(), bucket)
            .map_err(system("can't keep the node's id in the state directory"))?;
        let sockets = SocketDir::create(&state_dir).map_err(system("can't make the directory of engines' sockets"))?;
        let groups = Groups::find(&state_dir);
        groups.lift_node();
        let ground = Ground {
            state_dir: state_dir.clone(),
            cluster: Arc::new(cluster),
            stores: stores.clone(),
            gateway: Gateway::new(stores),
            spares: Spares::new(sockets, config.spare_engines),
            groups,
            metrics: Arc::default(),
            limits: config.engine.clone(),
            checkpoints: config.checkpoints,
            pins: AllPins::default(),
        };
        if ground.limits.httpfs.is_none() {
            tracing::warn!(
                "httpfs.duckdb_extension not found: SQL can't read `s3://`; `tarn doctor` says where it is looked for"
            );
        }
        let listener =
            TcpListener::bind(config.listen).await.map_err(system(format!("can't listen on {}", config.listen)))?;
        let address = listener.local_addr().map_err(system("can't tell the address"))?;
        scratch::clean(&state_dir);
        let metrics = match config.metrics_listen {
            Some(place) => Some(TcpListener::bind(place).await.map_err(system(format!("can't listen on {place}")))?),
            None => None,
        };
        if let Some(place) = metrics.as_ref().and_then(|listener| listener.local_addr().ok()) {
            tracing::info!("metrics on http://{place}/metrics");
        }
        let issuer = config.oidc.clone().map(Issuer::new).transpose();
        let issuer = issuer
            .map_err(|error| system("can't prepare to fetch the keys of `oidc_issuer`")(io::Error::other(error)))?;
        let audit =
            Audit::start(&config.audit).map_err(system("can't open the audit log; the setting `audit` names it"))?;
        let (config_places, queue_wait) = (config.running_queries, config.queue_wait);
        let slow = Slow::new(config.slow_query);
        let traces = match &config.otlp_endpoint {
            Some(endpoint) => {
                Some(Traces::start(endpoint, config.trace_sample, &address.to_string()).map_err(|error| {
                    system("can't send traces; the setting `otlp_endpoint` says where")(io::Error::other(error))
                })?)
            }
            None => None,
        };
        let ground = Arc::new(ground);
        let counted = ground.metrics.clone();
        let app = Arc::new(App {
            jobs: Jobs::new(config.engine.session_idle, config.engine.max_queries),
            followers: Followers::new(ground.clone(), config.past_engines, config.past_idle),
            config,
            control,
            identity: Identity::new(admin, issuer),
            guests: Arc::default(),
            audit,
            marts: Marts::new(ground.clone()),
            admission: Admission::new(config_places, queue_wait),
            running: Running::default(),
            slow,
            traces,
            verifier: Verifier::new(ground.clone(), counted.clone()),
            metrics: counted,
            trust,
            ready: AtomicBool::new(true),
        });
        write_address(&state_dir, address).map_err(system("can't write the address into the state directory"))?;
        if let Err(error) = app.marts.ground().cluster.beat().await {
            tracing::warn!(%error, "the first heartbeat did not get through; trying again");
        }
        Ok(Self {
            app,
            listener,
            metrics,
            certificate,
            address,
            background: CancellationToken::new(),
            admin_token,
            _state_lock: state_lock,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it speaks TLS there.
    pub fn has_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// The admin token, if it was made just now: to be shown once.
    pub fn new_admin_token(&self) -> Option<&str> {
        self.admin_token.as_deref()
    }

    /// Serves until `stop`, then ends in order: no new requests, answers under way, engines, last commits, heartbeats.
    pub async fn run(self, stop: CancellationToken) {
        let Self { app, listener, metrics, certificate, background, .. } = self;
        let polling = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { app.control.poll(cancel).await }
        });
        let tending = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { app.followers.tend(cancel).await }
        });
        let closing = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { app.marts.tend(app.config.idle, cancel).await }
        });
        let preparing = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { app.marts.ground().spares.tend(cancel).await }
        });
        let weighing = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { precedence::run(&app, cancel).await }
        });
        let forgetting = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { app.jobs.tend(cancel).await }
        });
        let watching = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move { app.watch_progress(cancel).await }
        });
        let flight = Flight::new(app.clone());
        let serving = tokio::spawn({
            let (flight, cancel) = (flight.clone(), background.clone());
            async move { flight.tend(cancel).await }
        });
        let ending = tokio::spawn(revocation::watch(app.clone(), flight.clone(), background.clone()));
        let asking = tokio::spawn({
            let (app, cancel) = (app.clone(), background.clone());
            async move {
                if let Some(issuer) = &app.identity.issuer {
                    issuer.tend(cancel).await;
                }
            }
        });
        let telling = metrics.map(|listener| {
            let stopped = background.clone().cancelled_owned();
            let served = axum::serve(listener, metrics_routes(app.clone())).with_graceful_shutdown(stopped);
            tokio::spawn(async move {
                served.await.unwrap_or_else(|error| tracing::warn!(%error, "metrics are not served any more"))
            })
        });
        let keeping = tokio::spawn(upkeep::run(app.clone(), background.clone()));
        let last_beat = CancellationToken::new();
        let beating = tokio::spawn({
            let (cluster, cancel) = (app.marts.ground().cluster.clone(), last_beat.clone());
            async move { cluster.run(cancel).await }
        });
        let publishing =
            app.config.publish.clone().map(|id| tokio::spawn(publish_dev(app.clone(), id, background.clone())));
        let renewing = certificate.clone().map(|certificate| {
            let cancel = background.clone();
            tokio::spawn(async move { certificate.tend(cancel).await })
        });
        accept::accept(listener, certificate.map(tls::acceptor), app.clone(), flight, stop).await;
        app.ready.store(false, Ordering::Relaxed);
        background.cancel();
        app.jobs.shutdown(LAST_JOBS).await;
        app.marts.shutdown().await;
        app.marts.ground().gateway.shutdown().await;
        last_beat.cancel();
        for task in [
            Some(polling),
            Some(tending),
            Some(closing),
            Some(preparing),
            Some(weighing),
            Some(forgetting),
            Some(keeping),
            Some(watching),
            Some(serving),
            Some(ending),
            Some(asking),
            telling,
            publishing,
            renewing,
            Some(beating),
        ]
        .into_iter()
        .flatten()
        {
            // A task that panicked has said so already.
            let _ = task.await;
        }
        app.marts.ground().cluster.leave().await;
        app.audit.shutdown().await;
        // It waits for its own thread.
        let _ = tokio::task::spawn_blocking(move || app.traces.as_ref().map(Traces::stop)).await;
    }
}

/// Keeps the dev mart open and its plain file fresh.
async fn publish_dev(app: Arc<App>, id: MartId, stop: CancellationToken) {
    let name = format!("duckdb-{}.db", id.mart);
    let work = app.config.state_dir.join(&name).with_extension("publishing");
    let path = app.config.publish_dir.join(name);
    let target = publish::Target { path, work, max_bytes: app.config.publish_max_bytes };
    // On a new installation the dev mart is there from the start; one that was dropped comes back when it is used.
    if app.control.version() == 0
        && let Err(error) = app.create_mart(&id, None, true).await
    {
        tracing::warn!(%error, mart = %id, "the dev mart can't be made yet");
    }
    let open = || async {
        match app.control.state().mart(&id) {
            Some(_) => app.mart(&id).await.map(Some),
            None => Ok(None),
        }
    };
    publish::run(target, open, stop).await;
}

/// Says what the kernel lacks for engines' walls, and refuses to go on without what is required.
async fn look_at_walls(dir: &Path, required: &[Wall]) -> Result<(), StartError> {
    let report = child::walls(dir).await.map_err(system("can't build the walls around an engine"))?;
    for (wall, why) in report.lacking() {
        if required.contains(&wall) {
            return Err(StartError::Wall { wall, why: why.to_owned() });
        }
        tracing::warn!(why, "the wall `{wall}` around engines does not stand here: {}", wall.gap());
    }
    if report.lacking().next().is_none() {
        tracing::info!("all walls around engines stand");
    }
    Ok(())
}

fn lock(state_dir: &Path) -> Result<File, StartError> {
    let path = state_dir.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(system("can't open the state directory's lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse(state_dir.to_owned())),
        Err(error) => Err(system("can't lock the state directory")(error.into())),
    }
}

/// Whole or not at all, as others wait for it.
fn write_address(state_dir: &Path, address: SocketAddr) -> io::Result<()> {
    let new = state_dir.join(".address");
    std::fs::write(&new, format!("{address}\n"))?;
    std::fs::rename(new, state_dir.join(ADDRESS_FILE))
}
