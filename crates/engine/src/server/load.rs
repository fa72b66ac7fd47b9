//! `POST /load`: from headers to a job, and the body to its thread while it comes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{
    Request, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::{
    Server, end_soon,
    query::{self, Asked},
    respond::{Body, failed},
};
use crate::{
    exec::load::{Load, Media},
    failure::Failure,
    load::{
        body::{self, BodySender},
        reader::Coding,
    },
    wire::{Code, LoadRequest, exit, header},
};

/// How long a client may go on sending what nobody wants any more.
const DRAIN: Duration = Duration::from_secs(10);

/// Answers a load.
pub(super) async fn answer(server: &Server, request: Request<Incoming>) -> Response<Body> {
    let arrived = Instant::now();
    let (parts, mut incoming) = request.into_parts();
    let asked = match query::asked(&parts.headers) {
        Ok(asked) => asked,
        Err(failure) => return failed(&failure),
    };
    let id = asked.id;
    let mut response = match run(server, asked, &parts.headers, &mut incoming, arrived).await {
        Ok(response) => response,
        Err(failure) => failed(&failure),
    };
    if !http_body::Body::is_end_stream(&incoming) {
        // A client that is cut off while it sends does not read why.
        tokio::spawn(tokio::time::timeout(DRAIN, async move {
            while incoming.frame().await.is_some_and(|frame| frame.is_ok()) {}
        }));
    }
    query::name(&mut response, id);
    response
}

async fn run(
    server: &Server,
    asked: Asked,
    headers: &http::HeaderMap,
    incoming: &mut Incoming,
    arrived: Instant,
) -> Result<Response<Body>, Failure> {
    let request = load_request(query::text_header(headers, header::LOAD))?;
    let media = media(query::text_header(headers, CONTENT_TYPE.as_str()))?;
    let coding = Coding::from_header(query::text_header(headers, CONTENT_ENCODING.as_str())).ok_or_else(|| {
        Failure::new(Code::Invalid, "the body's content encoding is not known").hint("identity, gzip or zstd")
    })?;
    let deadline = asked.timeout_ms.map(|ms| arrived + Duration::from_millis(ms));
    let ticket = query::start(server, &asked, deadline)?;
    let canceller = ticket.canceller();
    let permit = query::permit(server, deadline).await?;
    let (sender, body) = body::body();
    let load = Load { request, media, coding, body, role: asked.role, key: asked.key };
    let (reply, answer) = oneshot::channel();
    let (engine, ended) = (server.engine.clone(), server.ended.clone());
    let started = server.engine.pool.run(Box::new(move |session| {
        let _permit = permit;
        if engine.load(ticket.query(), session, load, reply) {
            end_soon(&ended, exit::FATAL);
        }
    }));
    started.map_err(query::no_thread)?;
    let pump = pump(incoming, sender);
    tokio::pin!(pump);
    let mut answer = answer;
    let answered = tokio::select! {
        biased;
        answered = &mut answer => answered,
        () = pump => answer.await,
    };
    query::respond(answered, canceller)
}

/// Hands the body over as it comes. Dropped early, it breaks the body.
async fn pump(incoming: &mut Incoming, sender: BodySender) {
    while let Some(frame) = incoming.frame().await {
        let Ok(frame) = frame else { return };
        let Ok(piece) = frame.into_data() else { continue };
        if sender.send(piece as Bytes).await.is_err() {
            return;
        }
    }
    sender.finish();
}

fn load_request(text: &str) -> Result<LoadRequest, Failure> {
    let invalid = |why: String| Failure::new(Code::Invalid, format!("the header `tarn-load` is not a request: {why}"));
    let json = percent_encoding::percent_decode_str(text).decode_utf8().map_err(|error| invalid(error.to_string()))?;
    if !json.trim_start().starts_with('{') {
        return Err(invalid("it is no JSON object".to_owned()));
    }
    serde_json::from_str(&json).map_err(|error| invalid(error.to_string()))
}

fn media(content_type: &str) -> Result<Media, Failure> {
    Media::from_header(content_type).ok_or_else(|| {
        Failure::new(Code::Invalid, "the body's content type can't be loaded").hint(
            "application/vnd.apache.arrow.stream, application/vnd.apache.parquet, text/csv or application/x-ndjson",
        )
    })
}
