//! A mart in a directory of its own, and what tests ask of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use engine::{
    commit::CommitError,
    config::{EngineConfig, GatewayConfig, ViewConfig},
    duck::Connection,
    exec::Engine,
    open::Mart,
    server::Server,
    wire::{CommitPoint, Point},
};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// A configuration in a fresh directory, which lives as long as this.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub httpfs: Option<PathBuf>,
    pub gateway: Option<GatewayConfig>,
    pub view: Option<ViewConfig>,
    pub threads: u32,
    pub max_temp_bytes: u64,
    pub session_idle_ms: u64,
    pub transaction_idle_ms: u64,
}

impl Home {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            httpfs: None,
            gateway: None,
            view: None,
            threads: 2,
            max_temp_bytes: 1 << 30,
            session_idle_ms: 900_000,
            transaction_idle_ms: 60_000,
        }
    }

    pub fn db(&self) -> PathBuf {
        self.dir.path().join("mart.db")
    }

    pub fn wal(&self) -> PathBuf {
        self.dir.path().join("mart.db.wal")
    }

    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            db_path: self.db(),
            temp_dir: self.dir.path().join("tmp"),
            home_dir: self.dir.path().join("home"),
            memory_limit_bytes: 512 << 20,
            threads: self.threads,
            max_temp_bytes: self.max_temp_bytes,
            view: self.view.clone(),
            httpfs_path: self.httpfs.clone(),
            gateway: self.gateway.clone(),
            required_walls: Vec::new(),
            max_queries: 16,
            deaf_ms: 5_000,
            session_idle_ms: self.session_idle_ms,
            transaction_idle_ms: self.transaction_idle_ms,
        }
    }

    pub fn open(&self) -> Mart {
        Mart::open(&self.config()).expect("opens")
    }
}

/// Runs `sql` in a transaction and commits it the engine's way.
pub fn commit(mart: &Mart, connection: &Connection, sql: &str) -> Option<CommitPoint> {
    connection.execute("BEGIN").expect("begins");
    connection.execute(sql).expect("runs");
    match mart.commits.commit(|| connection.execute("COMMIT")) {
        Ok(point) => point,
        Err(CommitError::Duck(error)) => panic!("{error}"),
        Err(CommitError::Position(error)) => panic!("{error}"),
    }
}

/// The one text that a query gives.
pub fn one(connection: &Connection, sql: &str) -> String {
    connection.column(sql).expect("runs").pop().expect("has a row")
}

/// A served engine in this process, and a client of it.
pub struct Served {
    pub home: Home,
    pub server: Arc<Server>,
    socket: PathBuf,
}

/// A response that came whole.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
}

impl Served {
    pub async fn start() -> Self {
        Self::over(Home::new()).await
    }

    pub async fn over(home: Home) -> Self {
        let config = home.config();
        let engine = Engine::open(&config).expect("opens");
        let queries = engine.queries.clone();
        std::thread::spawn(move || queries.watch(Duration::from_secs(60), || panic!("a query is deaf")));
        let server = Server::new(engine, config.max_queries);
        let socket = home.dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
        tokio::spawn(server.clone().serve(listener));
        Self { home, server, socket }
    }

    /// A writer's query.
    pub async fn query(&self, sql: &str) -> Got {
        self.ask(json!({ "sql": sql }), &[]).await
    }

    /// A writer's query that must succeed, as JSON.
    pub async fn rows(&self, sql: &str) -> Value {
        let got = self.query(sql).await;
        assert_eq!(got.status, 200, "{sql}: {got:?}");
        got.json()["rows"].clone()
    }

    /// A query with a body and headers of one's own.
    pub async fn ask(&self, body: Value, headers: &[(&str, &str)]) -> Got {
        self.send("POST", "/query", body.to_string().into(), headers).await
    }

    /// A writer's load.
    pub async fn load(&self, request: Value, content_type: &str, body: impl Into<Bytes>) -> Got {
        self.load_with(request, &[("content-type", content_type)], body).await
    }

    /// A load with headers of one's own.
    pub async fn load_with(&self, request: Value, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Got {
        let request = load_header(&request);
        let headers: Vec<(&str, &str)> = headers.iter().copied().chain([("tarn-load", request.as_str())]).collect();
        self.send("POST", "/load", body.into(), &headers).await
    }

    /// Where the engine listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub async fn send(&self, method: &str, path: &str, body: Bytes, headers: &[(&str, &str)]) -> Got {
        let response = self.begin(method, path, body, headers).await;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.expect("comes whole");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Got { status: parts.status.as_u16(), headers: parts.headers, trailers, body: collected.to_bytes() }
    }

    /// Sends a request on a connection of its own and waits for the head only.
    pub async fn begin(&self, method: &str, path: &str, body: Bytes, headers: &[(&str, &str)]) -> Response<Incoming> {
        begin(&self.socket, method, path, body, headers).await
    }
}

/// A load's request as its header has it.
pub fn load_header(request: &Value) -> String {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'%';
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    request.to_string().bytes().map(one).collect()
}

pub async fn begin(
    socket: &Path,
    method: &str,
    path: &str,
    body: Bytes,
    headers: &[(&str, &str)],
) -> Response<Incoming> {
    let stream = tokio::net::UnixStream::connect(socket).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("shakes hands");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "engine").header("te", "trailers");
    if !headers.iter().any(|(name, _)| *name == "tarn-role") {
        request = request.header("tarn-role", "writer");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Full::new(body)).expect("a request")).await.expect("answers")
}

/// A query to an engine that may end meanwhile: its answer, if there was one, with the position of its commit.
pub async fn ask_or_break(socket: &Path, sql: &str) -> Option<(Value, Option<Point>)> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(json!({ "sql": sql }).to_string()));
    let request = Request::post("/query").header("host", "engine").header("tarn-role", "writer").body(body);
    let response = sender.send_request(request.expect("a request")).await.ok()?;
    let commit = response.headers().get("tarn-commit").and_then(|commit| commit.to_str().ok()?.parse().ok());
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((serde_json::from_slice(&body).expect("JSON"), commit))
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// The position of the request's commit.
    pub fn commit(&self) -> Point {
        self.header("tarn-commit").unwrap_or_else(|| panic!("no commit: {self:?}")).parse().expect("a position")
    }
}
