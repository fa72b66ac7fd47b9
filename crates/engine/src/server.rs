//! The engine's HTTP/1.1 server on its unix socket.
//!
//! Paths and shapes are in `wire`. Here a request becomes a job for a DuckDB thread and its answer a response; a client that goes
//! away cancels its query. **Invariant:** no thread of the async runtime calls DuckDB.

mod commits;
mod connections;
mod load;
mod query;
mod respond;

use std::{
    convert::Infallible,
    os::unix::net::UnixListener,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Semaphore, oneshot, watch};
use uuid::Uuid;

use crate::{
    checkpoint,
    duck::library_version,
    exec::Engine,
    failure::Failure,
    orders,
    queries::Reason,
    sessions, view,
    wire::{Code, Health, Progress, ResizeRequest, SessionRequest, SessionSettings, ShutdownRequest, exit, header},
};

use connections::Connections;
use respond::{Body, failed, json};

/// Bodies are SQL and parameters; bulk data comes another way.
const MAX_BODY_BYTES: usize = 32 << 20;

/// How long interrupted queries may take to end.
const STOP: Duration = Duration::from_secs(5);
/// How often it is looked for idle sessions.
const TEND: Duration = Duration::from_millis(250);
/// How long the answers that say so may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What all requests share.
pub struct Server {
    engine: Arc<Engine>,
    permits: Arc<Semaphore>,
    connections: Connections,
    ended: watch::Sender<Option<i32>>,
}

impl Server {
    /// Serves `engine`, `max_queries` at once.
    pub fn new(engine: Engine, max_queries: usize) -> Arc<Self> {
        let engine = Arc::new(engine);
        tend_sessions(&engine);
        Arc::new(Self {
            engine,
            permits: Arc::new(Semaphore::new(max_queries.max(1))),
            connections: Connections::new(),
            ended: watch::channel(None).0,
        })
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Answers requests until the engine has to end; gives the process's exit code.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) -> std::io::Result<i32> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut ended = self.ended.subscribe();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(self.clone().connection(stream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                code = async { ended.wait_for(Option::is_some).await.ok().and_then(|code| *code) } => {
                    return Ok(code.unwrap_or(exit::OK));
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: tokio::net::UnixStream) {
        let (counted, mut closing) = self.connections.enter();
        let service = service_fn(|request: Request<Incoming>| {
            let server = self.clone();
            if matches!(request.uri().path(), "/commits" | "/shutdown") {
                counted.leave_out();
            }
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let connection = http1::Builder::new().writev(true).serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // Errors here are broken bodies and clients that went away; both were handled where they began.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = closing.changed() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        match (&method, path.as_str()) {
            (&Method::POST, "/query") => query::answer(&self, request, false).await,
            (&Method::POST, "/describe") => query::answer(&self, request, true).await,
            (&Method::POST, "/sessions") => self.session(request).await,
            (&Method::POST, "/load") => load::answer(&self, request).await,
            (&Method::GET, "/health") => self.health(),
            (&Method::GET, "/commits") => commits::follow(&self.engine.mart.commits),
            (&Method::POST, "/checkpoint") => self.checkpoint(request).await,
            (&Method::POST, "/writers") => self.writers(request).await,
            (&Method::POST, "/resize") => self.resize(request).await,
            (&Method::POST, "/shutdown") => self.shutdown(request).await,
            (method, path) if path.starts_with("/queries/") => {
                self.running(method, &path["/queries/".len()..], &request)
            }
            (&Method::POST, path) if path.starts_with("/sessions/") => {
                self.set_session(&path["/sessions/".len()..], request).await
            }
            (&Method::DELETE, path) if path.starts_with("/sessions/") => {
                self.end_session(&path["/sessions/".len()..], &request).await
            }
            (&Method::DELETE, "/principal") => self.end_principal(&request).await,
            _ => failed(&Failure::new(Code::NotFound, "no such path")),
        }
    }

    async fn resize(&self, request: Request<Incoming>) -> Response<Body> {
        match body::<ResizeRequest>(request).await {
            Ok(size) => {
                self.by_thread(move |engine| engine.resize(size).map(|()| serde_json::json!({ "resized": true }))).await
            }
            Err(failure) => failed(&failure),
        }
    }

    async fn session(&self, request: Request<Incoming>) -> Response<Body> {
        let principal = query::text_header(request.headers(), header::PRINCIPAL).to_owned();
        let opened = match body::<SessionRequest>(request).await {
            Ok(_) if self.engine.view.is_some() => Err(view::only_reads()),
            Ok(asked) => self.engine.sessions.open(asked.id, &principal).map(|()| asked.id),
            Err(failure) => Err(failure),
        };
        match opened {
            Ok(id) => json(&serde_json::json!({ "session": id })),
            Err(failure) => failed(&failure),
        }
    }

    async fn set_session(&self, id: &str, request: Request<Incoming>) -> Response<Body> {
        let principal = query::text_header(request.headers(), header::PRINCIPAL).to_owned();
        let Ok(id) = id.parse::<Uuid>() else { return failed(&sessions::gone()) };
        match body::<SessionSettings>(request).await {
            Ok(SessionSettings { schema }) => {
                let set = move |engine: &Engine| engine.use_schema(id, &principal, &schema);
                self.by_thread(move |engine| set(engine).map(|()| serde_json::json!({ "session": id }))).await
            }
            Err(failure) => failed(&failure),
        }
    }

    async fn end_session(&self, id: &str, request: &Request<Incoming>) -> Response<Body> {
        let principal = query::text_header(request.headers(), header::PRINCIPAL).to_owned();
        let Ok(id) = id.parse::<Uuid>() else { return failed(&sessions::gone()) };
        self.by_thread(move |engine| {
            if !engine.close_session(id, &principal) {
                return Err(sessions::gone());
            }
            Ok(serde_json::json!({ "ended": true }))
        })
        .await
    }

    /// Somebody may not be here any more: nothing of theirs goes on.
    async fn end_principal(&self, request: &Request<Incoming>) -> Response<Body> {
        let principal = query::text_header(request.headers(), header::PRINCIPAL).to_owned();
        self.by_thread(move |engine| {
            engine.end_principal(&principal);
            Ok(serde_json::json!({ "ended": true }))
        })
        .await
    }

    fn health(&self) -> Response<Body> {
        let (point, _) = self.engine.mart.commits.latest();
        json(&Health {
            iteration: point.iteration,
            wal_bytes: point.wal_end,
            duckdb_version: library_version(),
            pid: std::process::id(),
            queries: self.engine.queries.len(),
            sessions: self.engine.sessions.len(),
        })
    }

    /// A running query: GET says how far it is, DELETE cancels it.
    fn running(&self, method: &Method, id: &str, request: &Request<Incoming>) -> Response<Body> {
        let principal = query::text_header(request.headers(), header::PRINCIPAL);
        let queries = &self.engine.queries;
        let answer = match (id.parse::<Uuid>(), method) {
            (Ok(id), &Method::GET) => queries.progress(id, principal).map(|progress| json(&Progress { progress })),
            (Ok(id), &Method::DELETE) if queries.cancel(id, principal, Reason::Cancelled) => {
                Some(json(&serde_json::json!({ "cancelled": true })))
            }
            _ => None,
        };
        answer.unwrap_or_else(|| failed(&Failure::new(Code::NotFound, "no such query runs")))
    }

    async fn checkpoint(&self, request: Request<Incoming>) -> Response<Body> {
        match body(request).await {
            Ok(asked) => self.by_thread(move |engine| checkpoint::checkpoint(engine, asked)).await,
            Err(failure) => failed(&failure),
        }
    }

    async fn writers(&self, request: Request<Incoming>) -> Response<Body> {
        match body(request).await {
            Ok(asked) => self.by_thread(move |engine| orders::order(engine, asked)).await,
            Err(failure) => failed(&failure),
        }
    }

    /// Answers with what `work` gives on a DuckDB thread.
    async fn by_thread<T: Serialize + Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Response<Body> {
        let engine = self.engine.clone();
        let (reply, answer) = oneshot::channel();
        let started = self.engine.pool.run(Box::new(move |_| {
            let _ = reply.send(work(&engine));
        }));
        let failure = match (started, answer.await) {
            (Ok(()), Ok(Ok(answer))) => return json(&answer),
            (Ok(()), Ok(Err(failure))) => failure,
            _ => Failure::new(Code::Internal, "the order's thread ended early"),
        };
        if failure.fatal {
            let ended = self.ended.clone();
            tokio::task::spawn_blocking(move || end_soon(&ended, exit::FATAL));
        }
        failed(&failure)
    }

    async fn shutdown(&self, request: Request<Incoming>) -> Response<Body> {
        let asked: ShutdownRequest = match body(request).await {
            Ok(asked) => asked,
            Err(failure) => return failed(&failure),
        };
        let queries = self.engine.queries.clone();
        queries.close();
        let grace = Instant::now() + Duration::from_millis(asked.grace_ms);
        let idle = tokio::task::spawn_blocking(move || {
            if queries.wait_until_idle(grace) {
                return grace;
            }
            queries.cancel_all(Reason::Shutdown);
            queries.wait_until_idle(Instant::now() + STOP);
            Instant::now() + LAST_WORDS
        });
        let deadline = idle.await.unwrap_or(grace);
        self.connections.close(deadline.into()).await;
        let ended = self.ended.clone();
        tokio::task::spawn_blocking(move || end_soon(&ended, exit::OK));
        json(&serde_json::json!({ "stopped": true }))
    }
}

/// Looks after sessions as long as the engine is there.
fn tend_sessions(engine: &Arc<Engine>) {
    let engine = Arc::downgrade(engine);
    let tending = std::thread::Builder::new().name("sessions".into()).spawn(move || {
        while let Some(engine) = engine.upgrade() {
            engine.tend_sessions();
            drop(engine);
            std::thread::sleep(TEND);
        }
    });
    if let Err(error) = tending {
        tracing::error!(%error, "idle sessions will not end");
    }
}

/// Ends the process, soon enough after the answer that is on its way. Blocks.
fn end_soon(ended: &watch::Sender<Option<i32>>, code: i32) {
    std::thread::sleep(Duration::from_millis(50));
    ended.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert(code);
        first
    });
}

/// Reads a JSON object.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failure> {
    let bytes = bytes(request.into_body()).await?;
    // Serde would take an array for a struct's fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::new(Code::Invalid, "the body is not the JSON it should be: an object"));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(Code::Invalid, format!("the body is not the JSON it should be: {error}")))
}

async fn bytes(body: Incoming) -> Result<Bytes, Failure> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Failure::new(Code::TooLarge, format!("the body has more than {MAX_BODY_BYTES} bytes"))
                .hint("load data with `PUT …/tables/{schema}/{table}`"))
        }
        Err(_) => Err(Failure::new(Code::Invalid, "the body stops half way")),
    }
}
