//! The one door: every request, HTTP or Flight, passes here before anything of it is read. Here it is found out who sends it, it is
//! registered so that it ends when its sender has to go, and its line in the audit log is written when it has ended.
//!
//! Refusing is left to the handlers, which know how their clients want to be told: they ask `auth::who`.
//!
//! **Invariant:** authentication happens nowhere else but in Flight's handshake, whose token may come in its message.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::wire::header;
use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::percent_decode_str;
use tracing::Instrument;

use crate::app::App;
use crate::audit::action::{action, is_administration, is_flight, route};
use crate::audit::{Place, Record};
use crate::auth::{Admission, Principal, Refused, Shown};
use crate::connection::ConnectionId;
use crate::error::{ApiError, Code, Outcome};
use crate::flight;
use crate::names::{MartId, Tenant};
use crate::traces;
use crate::visit::{self, Answer, Cut, Ended, Guest, Visit};

/// Marks a request that another node has sent on.
const FORWARDED: HeaderName = HeaderName::from_static("tarn-forwarded");

/// Lets a request through, with what is known of its sender.
pub async fn enter(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    // What nobody can be asked about: there is nothing there, or it is open to all. A handler that asks gets no answer.
    let Some(route) = route(request.uri().path()) else { return next.run(request).await };
    let path = route.as_str();
    let grpc = is_flight(path);
    let place = match app.audit.place() {
        Ok(place) => place,
        Err(error) if grpc => return flight::refusal(error),
        Err(error) => return error.request_id(uuid::Uuid::new_v4()).into_response(),
    };
    let connection = request.extensions().get::<ConnectionId>();
    let peer = connection.map(|connection| connection.peer);
    let called = request.uri().path();
    let record = Record::begin(action(request.method(), path, called), is_forwarded(request.headers()));
    let id = request.headers().get(header::QUERY_ID).and_then(|id| id.to_str().ok()?.parse().ok());
    let visit = Arc::new(Visit::new(id, app.control.state(), app.audit.keeps()));
    let parent = app.traces.as_ref().and_then(|_| traces::parent(request.headers()));
    visit.note(|noted| (noted.peer, noted.parent) = (peer, parent));
    let mut line = Line::new(app.clone(), visit.clone(), record, place);
    if path.starts_with("/v1/tenants/{tenant}") {
        about(&visit, called);
    }
    let shown = if grpc { Shown::of_flight(request.headers()) } else { Shown::bearer(request.headers()) };
    // A handshake's token may come in its message; then the service asks for it.
    let asks_later = grpc && called.ends_with("/Handshake") && !request.headers().contains_key(AUTHORIZATION);
    let mut guest = None;
    if asks_later {
        // A stranger who says nothing leaves nothing behind.
        visit.note(|noted| noted.untold = true);
    } else {
        let admitted = admit(&app, shown.as_ref(), peer, &visit).await;
        let (admission, stays) = match admitted {
            // Whoever ends others' stays is not ended by that.
            Ok((principal, stays)) => (Ok(principal), Some(stays).filter(|_| !is_administration(path))),
            Err(error) => (Err(error), None),
        };
        guest = stays;
        request.extensions_mut().insert(Admission(admission));
    }
    let reads = request.method() == Method::GET;
    // What is logged on the way names the request.
    let span = tracing::info_span!("request", id = %visit.id());
    let mut response = tokio::select! {
        biased;
        why = visit.is_cut() => cut(why, grpc, reads),
        response = visit.scope(next.run(request)).instrument(span) => response,
    };
    let noted = visit.noted();
    if let Some(seconds) = noted.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    let text = |name: &'static str| response.headers().get(name).and_then(|value| value.to_str().ok());
    line.rows(text(header::CHANGED_ROWS).and_then(|rows| rows.parse().ok()));
    if let (None, Some(id)) = (noted.query, text(header::QUERY_ID).and_then(|id| id.parse().ok())) {
        visit.note(|noted| noted.query = Some(id));
    }
    let failed = failure(&response, grpc);
    let over = move |ended: Ended, bytes: u64| line.end(failed.unwrap_or_else(|| word(ended)), bytes);
    response.map(|body| Body::new(Answer::new(body, visit, grpc, guest, Box::new(over))))
}

/// The line in the audit log of something that is under way. Dropped before its end, it says that it was cancelled: nobody leaves no
/// trace by hanging up.
pub struct Line {
    app: Arc<App>,
    visit: Arc<Visit>,
    open: Option<(Record, Place)>,
}

impl Line {
    /// Of what has just begun.
    pub fn new(app: Arc<App>, visit: Arc<Visit>, record: Record, place: Place) -> Self {
        Self { app, visit, open: Some((record, place)) }
    }

    /// So many rows were changed.
    pub fn rows(&mut self, rows: Option<u64>) {
        if let Some((record, _)) = &mut self.open {
            record.rows = rows;
        }
    }

    /// It has ended so, with so many bytes of an answer.
    pub fn end(mut self, outcome: String, bytes: u64) {
        self.write(outcome, bytes);
    }

    fn write(&mut self, outcome: String, bytes: u64) {
        let Some((mut record, place)) = self.open.take() else { return };
        (record.outcome, record.bytes) = (outcome, bytes);
        let told = record.end(&self.visit);
        if let Some((id, kind, took)) = record.query() {
            self.app.metrics.query_ended(id, kind, &record.outcome, took);
        }
        self.app.look_at(&record);
        if let Some(traces) = &self.app.traces {
            traces.tell(&record, &self.visit);
        }
        if told {
            self.app.audit.write(&record, place);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.write(Code::Cancelled.word(), 0);
    }
}

/// Finds out who shows this, and registers the visit as theirs. Flight's handshake asks here too.
pub async fn admit(
    app: &App,
    shown: Option<&Shown>,
    peer: Option<SocketAddr>,
    visit: &Arc<Visit>,
) -> Result<(Arc<Principal>, Guest), ApiError> {
    let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
    match app.identity.admit(shown, address, &app.control.state()).await {
        Ok(principal) => {
            visit.note(|noted| (noted.principal, noted.untold) = (Some(principal.clone()), false));
            let guest = app.guests.enter(visit.clone(), &principal);
            // Between the look and the entry it may have been revoked, which nobody would tell this visit any more.
            if app.may_stay(&principal) {
                return Ok((principal, guest));
            }
            visit.note(|noted| noted.refused = Some("revoked"));
            Err(crate::auth::unknown())
        }
        Err(Refused { error, why, failed }) => {
            visit.note(|noted| {
                (noted.refused, noted.untold, noted.repeated) = (Some(why.words()), failed.untold, failed.repeated);
                noted.retry_after = failed.retry_after.map(|after| after.as_secs().max(1));
            });
            Err(error)
        }
    }
}

/// What is asked about, by the path.
fn about(visit: &Visit, path: &str) {
    // As the router reads them.
    let mut parts = path.split('/').skip(3).map(|part| percent_decode_str(part).decode_utf8_lossy());
    let tenant: Option<Tenant> = parts.next().and_then(|name| name.parse().ok());
    let mart = parts.nth(1).and_then(|name| name.parse().ok());
    visit.note(|noted| {
        noted.mart = tenant.clone().zip(mart).map(|(tenant, mart)| MartId { tenant, mart });
        noted.tenant = tenant;
    });
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
}

/// What a client is told whose request was ended before it had an answer.
fn cut(why: Cut, grpc: bool, reads: bool) -> Response {
    let error = why.error().outcome(if reads { Outcome::None } else { Outcome::Unknown });
    if grpc { flight::refusal(error) } else { error.request_id(uuid::Uuid::new_v4()).into_response() }
}

/// The word for an answer that is a refusal from its head on.
fn failure(response: &Response, grpc: bool) -> Option<String> {
    if let Some(code) = response.extensions().get::<Code>() {
        return Some(code.word());
    }
    if grpc && let Some(word) = visit::status(response.headers()) {
        return Some(word.unwrap_or_else(|| Code::Invalid.word()));
    }
    // Another node's, whose words were passed on.
    let status = response.status();
    let of_status = Code::ALL.into_iter().find(|code| code.status() == status);
    (!status.is_success()).then(|| of_status.unwrap_or(Code::Invalid).word())
}

/// The word for how an answer ended that had begun well.
fn word(ended: Ended) -> String {
    match ended {
        Ended::Whole => "ok".into(),
        Ended::Broken(code) => code.word(),
        Ended::Status(word) => word.unwrap_or_else(|| Code::Internal.word()),
        Ended::Left => Code::Cancelled.word(),
    }
}
