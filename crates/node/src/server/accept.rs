//! Connections of clients: taken from the port, through TLS where there is a certificate, to the routes.
//!
//! A handshake is a task of its own with a deadline, so a client that stalls holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;

use super::upload;
use crate::app::App;
use crate::connection::ConnectionId;
use crate::door;
use crate::error::{ApiError, Code};
use crate::flight::{self, Flight};
use crate::http::routes;

/// Answers under way have this long to end at a shutdown.
const DRAIN: Duration = Duration::from_secs(20);
/// A client has this long for its side of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client has this long to send the head of its next request; an idle connection is closed after it.
const HEAD_DEADLINE: Duration = Duration::from_secs(120);
/// What a client may send of one upload before the node has taken it: enough that it never waits on a fast network, little enough
/// that many uploads to a busy mart stay small.
const UPLOAD_WINDOW: u32 = 2 << 20;
/// The same of all uploads of one connection.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Larger frames from clients mean fewer of them to take apart; how large ours are is the client's to say.
const MAX_FRAME: u32 = 1 << 20;
/// What is taken from an engine ahead of a client that reads slowly, besides the piece that was being taken.
const SEND_BUFFER: usize = 512 << 10;
/// A client that does not answer a ping for so long is gone: its session and queries end.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How every TLS connection begins: a record of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// What is read of a request that came without TLS, so that its refusal arrives.
const MAX_PLAIN_BYTES: u64 = 64 << 10;

/// Takes connections until `stop`; returns when their answers have ended, or after a while.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Arc<App>,
    flight: Arc<Flight>,
    stop: CancellationToken,
) {
    let routes = routes(app.clone())
        .merge(flight::routes(flight))
        .layer(axum::middleware::from_fn_with_state(app.clone(), door::enter))
        .layer(axum::middleware::map_request(upload::whole));
    let builder = Arc::new(builder());
    let connections = GracefulShutdown::new();
    loop {
        let (stream, peer): (TcpStream, SocketAddr) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to come back rather than spin.
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        // Without it small answers wait for acknowledgements; a socket that refuses is about to fail anyway.
        let _ = stream.set_nodelay(true);
        let place = ConnectionId { id: uuid::Uuid::new_v4(), peer, closed: CancellationToken::new() };
        let closed = place.closed.clone().drop_guard();
        let service = TowerToHyperService::new(axum::Extension(place).layer(routes.clone()));
        let (builder, watcher, tls, stop) = (builder.clone(), connections.watcher(), tls.clone(), stop.clone());
        tokio::spawn(async move {
            let _closed = closed;
            let Some(opened) = stop.run_until_cancelled(open(stream, tls)).await else { return };
            let stream = match opened {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(%error, "a connection did not get through TLS"),
            };
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    drop(listener);
    app.ready.store(false, Ordering::Relaxed);
    if tokio::time::timeout(DRAIN, connections.shutdown()).await.is_err() {
        tracing::warn!("some answers did not end in time and are cut off");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(UPLOAD_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// The stream that requests come on.
async fn open(stream: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Either<TcpStream, TlsStream<TcpStream>>> {
    match tls {
        None => Ok(Either::Left(stream)),
        Some(tls) => Ok(Either::Right(tokio::time::timeout(HANDSHAKE, shake_hands(stream, tls)).await??)),
    }
}

async fn shake_hands(stream: TcpStream, tls: TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        refuse_plain(stream).await?;
        return Err(io::Error::other("it came without"));
    }
    tls.accept(stream).await
}

/// Whoever forgot the `s` of `https` is told.
async fn refuse_plain(mut stream: TcpStream) -> io::Result<()> {
    let error =
        ApiError::new(Code::Invalid, "this port speaks TLS only").hint("use `https://`, or `?tls=true` in a DSN");
    let body = error.request_id(uuid::Uuid::new_v4()).body();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).await?;
    stream.shutdown().await?;
    // Closed with something unread, the connection would be reset under the answer.
    tokio::io::copy(&mut stream.take(MAX_PLAIN_BYTES), &mut tokio::io::sink()).await.map(drop)
}
