//! Statements: what `GetFlightInfo`, `GetSchema` and `DoPut` do with SQL.
//!
//! A lone read without a session runs when its ticket is presented. Everything else runs here and now, in the order of the calls, and
//! its answer is held for the ticket: stock drivers may fetch it late, often or never.
//!
//! **Invariant:** describing never runs anything; a statement runs once per call that says so.

use std::sync::Arc;

use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use engine::wire::{Described, QueryRequest};
use http::HeaderMap;
use http_body_util::BodyExt;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::frames::schema_message;
use super::get::{broken, failure, ticket_of};
use super::paper::{Matter, Read};
use super::run::{Asked, changed_rows, first_end, is_one_read, only_reads, told, with_metadata};
use super::sessions::Used;
use crate::error::{ApiError, Code};
use crate::vacuum::{is_vacuum, vacuumed};

/// A longer read is held by the node rather than carried in its ticket.
const MAX_CARRIED_BYTES: usize = 64 << 10;

/// A statement to be run.
pub(super) struct Statement {
    pub sql: String,
    /// An Arrow IPC stream in base64 whose rows are sets of parameters.
    pub params_arrow: Option<String>,
    pub transaction: Option<Uuid>,
}

impl Statement {
    fn request(&self, session: Option<Uuid>) -> QueryRequest {
        QueryRequest { sql: self.sql.clone(), params_arrow: self.params_arrow.clone(), session, ..Default::default() }
    }
}

impl Flight {
    /// The transaction that a client's id names, if there is one.
    pub(super) async fn transaction(&self, call: &mut Call, id: Option<&Bytes>) -> Result<Option<Uuid>, ApiError> {
        let Some(id) = id.filter(|id| !id.is_empty()) else { return Ok(None) };
        super::sessions::check_present(call)?;
        let (about, matter) = self.seal().await?.read(call.clone(), id)?;
        *call = about;
        super::sessions::transaction_of(matter).map(Some)
    }

    /// Where a statement's answer is; runs it unless it is a lone read.
    pub(super) async fn info(
        self: &Arc<Self>,
        call: &Call,
        statement: Statement,
        descriptor: FlightDescriptor,
    ) -> Result<tonic::Response<FlightInfo>, ApiError> {
        if let Some(schema) = self.schema_of_later_read(call, &statement).await? {
            let Statement { sql, params_arrow, .. } = statement;
            let read = Read { id: Uuid::new_v4(), sql, params_arrow, at: call.at.clone() };
            let ticket = self.seal().await?.ticket(call, Matter::Read(read))?;
            return Ok(tonic::Response::new(flight_info(schema, ticket, -1, descriptor)));
        }
        let id = Uuid::new_v4();
        let (answer, used) = self.execute(call, id, &statement).await?;
        let told = told(answer.headers());
        let changed = changed_rows(&statement.sql, answer.headers()).unwrap_or(-1);
        let outline = self.held.hold(call, id, answer, used).await?;
        let ticket = self.seal().await?.ticket(call, Matter::Held(outline.id))?;
        Ok(with_metadata(flight_info(outline.schema, ticket, changed, descriptor), told))
    }

    /// Runs it where it belongs.
    async fn execute(
        self: &Arc<Self>,
        call: &Call,
        id: Uuid,
        statement: &Statement,
    ) -> Result<(Response, Option<Used>), ApiError> {
        let Statement { sql, params_arrow, transaction } = statement;
        let sql = if transaction.is_none() { &*self.after_loss(call, sql)? } else { sql };
        if transaction.is_none() && is_vacuum(call.role, sql) {
            let mart = self.app.mart(&call.mart).await?;
            let request = QueryRequest { sql: vacuumed(mart.orders()).await?, ..Default::default() };
            return Ok((self.run(call, Asked::stream(id, &request)?).await?, None));
        }
        let build = |session| {
            let (sql, params_arrow) = (sql.to_owned(), params_arrow.clone());
            Asked::stream(id, &QueryRequest { sql, params_arrow, session, ..Default::default() })
        };
        self.run_at(call, *transaction, Some(sql), build).await
    }

    /// The schema of a read that can wait for its ticket: one that depends on no session, whose types are known before it runs.
    async fn schema_of_later_read(
        self: &Arc<Self>,
        call: &Call,
        statement: &Statement,
    ) -> Result<Option<Bytes>, ApiError> {
        let bytes = statement.sql.len() + statement.params_arrow.as_ref().map_or(0, String::len);
        let later = statement.transaction.is_none()
            && bytes <= MAX_CARRIED_BYTES
            && is_one_read(&statement.sql)
            && self.session(call, None, false).await?.is_none();
        if !later {
            return Ok(None);
        }
        let described = self.describe(call, statement).await?;
        if described.exact { decoded(described.schema) } else { Ok(None) }
    }

    /// What a statement is and returns; nothing runs.
    pub(super) async fn describe(self: &Arc<Self>, call: &Call, statement: &Statement) -> Result<Described, ApiError> {
        let build = |session| {
            let asked = Asked::query(Uuid::new_v4(), &statement.request(session), "application/json")?;
            Ok(Asked { path: "/describe", reads_only: true, ..asked })
        };
        if statement.transaction.is_none() && first_end(&statement.sql).is_some() {
            // It is the same everywhere, also where a transaction was lost.
            return super::run::small(self.run(call, build(None)?).await?).await;
        }
        let (answer, _) = self.run_at(call, statement.transaction, None, build).await?;
        super::run::small(answer).await
    }

    /// Runs a statement for its effect: how many rows it changed, 0 if it is not that kind, and what its answer tells.
    pub(super) async fn update(
        self: &Arc<Self>,
        call: &Call,
        statement: &Statement,
    ) -> Result<(i64, HeaderMap), ApiError> {
        let (answer, _used) = self.execute(call, Uuid::new_v4(), statement).await?;
        let changed = changed_rows(&statement.sql, answer.headers()).unwrap_or(0);
        let told = told(answer.headers());
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(broken)?;
            if let Some(error) = frame.trailers_ref().and_then(failure) {
                return Err(error);
            }
        }
        Ok((changed, told))
    }
}

/// The info of one answer.
pub(super) fn flight_info(schema: Bytes, ticket: Bytes, rows: i64, descriptor: FlightDescriptor) -> FlightInfo {
    let endpoint = FlightEndpoint { ticket: Some(ticket_of(ticket)), ..Default::default() };
    FlightInfo {
        schema,
        flight_descriptor: Some(descriptor),
        endpoint: vec![endpoint],
        total_records: rows,
        total_bytes: -1,
        ordered: true,
        app_metadata: Bytes::new(),
    }
}

/// An engine's schema message.
pub(super) fn decoded(schema: Option<String>) -> Result<Option<Bytes>, ApiError> {
    let decode = |text: String| STANDARD.decode(text).map(Bytes::from);
    schema.map(decode).transpose().map_err(|error| ApiError::internal("an engine's schema is base64", error))
}

/// What a statement returns, as preparing tells it: nothing for all that is not a lone read.
pub(super) fn dataset_schema(described: &Described) -> Result<Bytes, ApiError> {
    let schema = decoded(described.schema.clone())?.filter(|_| described.kind == "read");
    Ok(schema.unwrap_or_else(|| schema_message(&arrow_schema::Schema::empty())))
}

/// Refuses what can't be done at an earlier moment before anything is prepared for it.
pub(super) fn check_moment(call: &Call, sql: &str) -> Result<(), ApiError> {
    if call.at.is_some() && !only_reads(sql) {
        return Err(ApiError::new(Code::Invalid, "only reads can run at an earlier moment")
            .hint("branch the mart there, or restore it, to write"));
    }
    Ok(())
}
