//! `POST /query`: from headers and body to a job, from its answer to a response.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, TRAILER},
};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, oneshot, oneshot::error::RecvError};
use uuid::Uuid;

use crate::{
    exec::{self, Answer, Failed, Head},
    failure::Failure,
    format::Format,
    params::Params,
    pipe::Pieces,
    queries::{Canceller, NotStarted, Reason, Ticket},
    wire::{Code, Point, QueryRequest, Role, exit, header},
};

use super::{
    Server, end_soon,
    respond::{Body, error, failed},
};

/// A client that takes nothing for so long while others wait loses its query's place.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a waiting request looks for one.
const LOOK: Duration = Duration::from_secs(1);

/// The headers of a request.
pub(super) struct Asked {
    pub id: Uuid,
    pub principal: String,
    pub role: Role,
    pub key: Option<String>,
    pub timeout_ms: Option<u64>,
    format: Format,
}

/// Answers a query, or describes it.
pub(super) async fn answer(server: &Server, request: Request<Incoming>, describe: bool) -> Response<Body> {
    let arrived = Instant::now();
    let asked = match asked(request.headers()) {
        Ok(asked) => asked,
        Err(failure) => return failed(&failure),
    };
    let id = asked.id;
    let mut response = match run(server, asked, request, arrived, describe).await {
        Ok(response) => response,
        Err(failure) => failed(&failure),
    };
    name(&mut response, id);
    response
}

/// Says which query it was.
pub(super) fn name(response: &mut Response<Body>, id: Uuid) {
    let value = HeaderValue::from_str(&id.to_string()).expect("a UUID is a header value");
    response.headers_mut().insert(HeaderName::from_static(header::QUERY_ID), value);
}

/// Takes a place among the running queries.
pub(super) fn start(server: &Server, asked: &Asked, deadline: Option<Instant>) -> Result<Ticket, Failure> {
    server.engine.queries.start(asked.id, asked.principal.clone(), deadline).map_err(|reason| match reason {
        NotStarted::Taken => Failure::new(Code::Conflict, "a query with this id runs already"),
        NotStarted::Closed => Reason::Shutdown.into(),
    })
}

pub(super) fn no_thread(error: std::io::Error) -> Failure {
    tracing::error!(%error, "no thread for a query");
    Failure::new(Code::Limited, "the engine can't start another thread").transient()
}

async fn run(
    server: &Server,
    asked: Asked,
    request: Request<Incoming>,
    arrived: Instant,
    describe: bool,
) -> Result<Response<Body>, Failure> {
    let body: QueryRequest = super::body(request).await?;
    let deadline = body.timeout_ms.or(asked.timeout_ms).map(|ms| arrived + Duration::from_millis(ms));
    let ticket = start(server, &asked, deadline)?;
    // Dropped with this future or with the body, whichever goes last: then the client has all or is gone.
    let canceller = ticket.canceller();
    let permit = permit(server, deadline).await?;
    let waited = arrived.elapsed();
    let rows = body.params_arrow.map(|text| rows(&text, body.params.is_some())).transpose()?;
    let job = exec::Request {
        sql: body.sql,
        params: Params::from_json(body.params)?,
        rows,
        max_rows: body.max_rows,
        format: asked.format,
        role: asked.role,
        key: asked.key,
        session: body.session,
        keep: body.keep,
        describe,
    };
    let (reply, answer) = oneshot::channel();
    let (engine, ended) = (server.engine.clone(), server.ended.clone());
    let started = server.engine.pool.run(Box::new(move |session| {
        let _permit = permit;
        if engine.run(ticket.query(), session, job, reply) {
            end_soon(&ended, exit::FATAL);
        }
    }));
    started.map_err(no_thread)?;
    let answered = answer.await;
    let took = format!("{};{}", waited.as_micros(), (arrived.elapsed() - waited).as_micros());
    let mut response = respond(answered, canceller)?;
    response.headers_mut().insert(HeaderName::from_static(header::TOOK), HeaderValue::from_str(&took).expect("digits"));
    Ok(response)
}

/// A response of what the query's thread said.
pub(super) fn respond(
    answered: Result<Result<Answer, Failed>, RecvError>,
    canceller: Canceller,
) -> Result<Response<Body>, Failure> {
    match answered {
        Ok(Ok(Answer::Whole(head, pieces))) => Ok(response(head, Body::Pieces(Pieces::new(pieces)))),
        Ok(Ok(Answer::Stream(head, pipe))) => Ok(response(head, Body::Pipe(pipe, canceller))),
        Ok(Err(failure)) => {
            let mut response = error(&failure.body);
            if let Some(commit) = failure.commit {
                response.headers_mut().insert(HeaderName::from_static(header::COMMIT), position(commit));
            }
            Ok(response)
        }
        Err(_) => {
            let mut failure = Failure::new(Code::Internal, "the query's thread ended early");
            failure.unknown = true;
            Err(failure)
        }
    }
}

/// Rows of parameters from a request's text.
fn rows(text: &str, beside_params: bool) -> Result<Vec<u8>, Failure> {
    if beside_params {
        return Err(Failure::new(Code::Invalid, "`params` and `params_arrow` don't go together"));
    }
    STANDARD.decode(text).map_err(|_| Failure::new(Code::Invalid, "`params_arrow` is not base64"))
}

/// Waits for a place to run. Who has one and does not read for long loses it meanwhile.
pub(super) async fn permit(server: &Server, deadline: Option<Instant>) -> Result<OwnedSemaphorePermit, Failure> {
    let waiting = server.permits.clone().acquire_owned();
    tokio::pin!(waiting);
    loop {
        let look = Instant::now() + LOOK;
        let until = deadline.map_or(look, |deadline| deadline.min(look));
        if let Ok(permit) = tokio::time::timeout_at(until.into(), waiting.as_mut()).await {
            return permit.map_err(|_| Reason::Shutdown.into());
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Failure::new(Code::Timeout, "the query found no place to run in its time")
                .hint("other queries are running; try again later")
                .transient());
        }
        server.engine.queries.stop_stalled(PATIENCE, 1);
    }
}

fn response(head: Head, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&head.content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    match head.commit {
        Some(commit) => {
            headers.insert(HeaderName::from_static(header::COMMIT), position(commit));
        }
        None => {
            headers.insert(HeaderName::from_static(header::AT), position(head.at.0));
            if head.at.1 {
                headers.insert(HeaderName::from_static(header::AT_MOVING), HeaderValue::from_static("1"));
            }
        }
    }
    if head.replayed {
        headers.insert(HeaderName::from_static(header::REPLAYED), HeaderValue::from_static("true"));
    }
    if let Some(changed) = head.changed {
        headers.insert(HeaderName::from_static(header::CHANGED_ROWS), HeaderValue::from(changed));
    }
    if let Some(Ok(names)) = head.trailer_names().map(|names| HeaderValue::from_str(&names)) {
        headers.insert(TRAILER, names);
    }
    response
}

fn position(point: Point) -> HeaderValue {
    HeaderValue::from_str(&point.to_string()).expect("digits and a dot")
}

pub(super) fn asked(headers: &HeaderMap) -> Result<Asked, Failure> {
    let id = match text_header(headers, header::QUERY_ID) {
        "" => Uuid::new_v4(),
        text => text.parse().map_err(|_| Failure::new(Code::Invalid, "`tarn-query-id` is not a UUID"))?,
    };
    // Without a role there is the least that a caller may do.
    let role = match text_header(headers, header::ROLE) {
        "" => Role::Reader,
        text => text.parse().map_err(|()| Failure::new(Code::Invalid, "`tarn-role` is reader, writer or admin"))?,
    };
    let key = headers.get(header::IDEMPOTENCY_KEY).map(|key| key.to_str().map(str::to_owned));
    let key = key.transpose().map_err(|_| Failure::new(Code::Invalid, "an idempotency key is plain ASCII"))?;
    let timeout_ms = match text_header(headers, header::TIMEOUT_MS) {
        "" => None,
        text => Some(text.parse().map_err(|_| Failure::new(Code::Invalid, "`tarn-timeout-ms` is not a number"))?),
    };
    let accept = text_header(headers, ACCEPT.as_str());
    let format = Format::from_accept(accept).ok_or_else(|| {
        Failure::new(Code::Invalid, "no format that `Accept` names can be given").hint(
            "application/json, application/x-ndjson, text/csv, application/vnd.apache.arrow.stream or \
                 application/vnd.apache.parquet",
        )
    })?;
    Ok(Asked { id, principal: text_header(headers, header::PRINCIPAL).to_owned(), role, key, timeout_ms, format })
}

/// A header's text, empty if it is missing or no text.
pub(super) fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
