//! The gRPC service: each call is checked, handed to its part, and its error put into gRPC's words.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::Command;
use arrow_flight::{
    Action, ActionType, BasicAuth, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, SchemaResult, Ticket,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use super::Flight;
use super::call::{Call, greet};
use super::frames::schema_message;
use super::metadata;
use super::put::{PutStream, parse_command, shown};
use super::run::with_metadata;
use super::statements::{Statement, check_moment, dataset_schema};
use super::status::status;
use crate::auth::{Principal, Shown};
use crate::connection::ConnectionId;
use crate::door;
use crate::error::{ApiError, Code};
use crate::visit;

/// A handshake that brings its token in a message brings it within this time.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Flight's calls, but for `DoGet`.
pub(super) struct Service(pub Arc<Flight>);

type Answers<T> = BoxStream<'static, Result<T, Status>>;

fn answers<T: Send + 'static>(all: impl IntoIterator<Item = T, IntoIter: Send + 'static>) -> Answers<T> {
    stream::iter(all.into_iter().map(Ok)).boxed()
}

impl Service {
    fn call<T>(&self, request: &Request<T>) -> Result<Call, Status> {
        Call::of(&self.0.app, request.metadata().as_ref(), request.extensions()).map_err(status)
    }

    /// Who a handshake's message says that it is.
    async fn introduced(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Arc<Principal>, ApiError> {
        let visit = visit::here().ok_or_else(|| ApiError::internal("a handshake is a visit", "it is none"))?;
        let peer = extensions.get::<ConnectionId>().map(|connection| connection.peer);
        let admitted = door::admit(&self.0.app, Shown::of_flight(headers).as_ref(), peer, &visit).await;
        admitted.map(|(principal, _)| principal)
    }

    async fn info(&self, mut call: Call, descriptor: FlightDescriptor) -> Result<Response<FlightInfo>, ApiError> {
        let flight = &self.0;
        match parse_command(&descriptor.cmd)? {
            Command::CommandStatementQuery(query) => {
                let transaction = flight.transaction(&mut call, query.transaction_id.as_ref()).await?;
                visit::says(&query.query);
                check_moment(&call, &query.query)?;
                let statement = Statement { sql: query.query, params_arrow: None, transaction };
                flight.info(&call, statement, descriptor).await
            }
            Command::CommandPreparedStatementQuery(query) => {
                let (call, statement) = flight.prepared(call, &query.prepared_statement_handle).await?;
                flight.info(&call, statement, descriptor).await
            }
            command => flight.question(&call, &command, descriptor).await.map(Response::new),
        }
    }

    async fn schema(&self, mut call: Call, descriptor: FlightDescriptor) -> Result<SchemaResult, ApiError> {
        let flight = &self.0;
        let described = match parse_command(&descriptor.cmd)? {
            Command::CommandStatementQuery(query) => {
                let transaction = flight.transaction(&mut call, query.transaction_id.as_ref()).await?;
                let statement = Statement { sql: query.query, params_arrow: None, transaction };
                flight.describe(&call, &statement).await?
            }
            Command::CommandPreparedStatementQuery(query) => {
                let (call, statement) = flight.prepared(call, &query.prepared_statement_handle).await?;
                flight.describe(&call, &statement).await?
            }
            command => return Ok(SchemaResult { schema: schema_message(&*metadata::schema(&command)?) }),
        };
        Ok(SchemaResult { schema: dataset_schema(&described)? })
    }
}

/// A call that is known and not there.
fn not_there(command: &Command) -> Option<Status> {
    let words = match command {
        Command::CommandStatementSubstraitPlan(_) => "Substrait plans are not run; send SQL".to_owned(),
        Command::CommandStatementQuery(_) | Command::CommandPreparedStatementQuery(_) => return None,
        command if metadata::is_question(command) => return None,
        command => format!("`{}` is nothing to ask for", shown(command)),
    };
    Some(Status::unimplemented(words))
}

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = PutStream;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    /// A Basic user name and password in the metadata, or, as older clients do it, in the first message.
    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let (metadata, extensions, mut messages) = request.into_parts();
        let mut headers = metadata.into_headers();
        let principal = match headers.contains_key(AUTHORIZATION) {
            true => crate::auth::who(&extensions).map_err(status)?,
            false => {
                // Nobody knows who it is yet: it may not take its time.
                let first = tokio::time::timeout(FIRST_MESSAGE, messages.next()).await;
                let (first, broken) = match first.ok().flatten().transpose() {
                    Ok(first) => (first.unwrap_or_default(), None),
                    Err(broken) => (HandshakeRequest::default(), Some(broken)),
                };
                headers = basic(&first.payload).unwrap_or_default();
                // A message that can't be read counts as a failure as well.
                let principal = self.introduced(&headers, &extensions).await;
                principal.map_err(|error| broken.unwrap_or_else(|| status(error)))?
            }
        };
        let shown = Shown::of_flight(&headers).ok_or_else(|| status(crate::auth::unknown()))?;
        let token = greet(&principal, &shown).map_err(status)?;
        let mut told = HeaderMap::new();
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
            status(ApiError::new(Code::Unauthenticated, "the token is not one that a header can carry"))
        })?;
        bearer.set_sensitive(true);
        told.insert(AUTHORIZATION, bearer);
        let response = HandshakeResponse { protocol_version: 0, payload: token.into() };
        Ok(with_metadata(answers([response]), told))
    }

    /// There is nothing that is not asked for by a command.
    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        self.call(&request)?;
        Ok(Response::new(answers([])))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let call = self.call(&request)?;
        let descriptor = request.into_inner();
        if let Some(missing) = parse_command(&descriptor.cmd).map_err(status).map(|command| not_there(&command))? {
            return Err(missing);
        }
        self.info(call, descriptor).await.map_err(status)
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        self.call(&request)?;
        Err(Status::unimplemented("PollFlightInfo is not there; GetFlightInfo answers at once for reads"))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let call = self.call(&request)?;
        let descriptor = request.into_inner();
        if let Some(missing) = parse_command(&descriptor.cmd).map_err(status).map(|command| not_there(&command))? {
            return Err(missing);
        }
        self.schema(call, descriptor).await.map(Response::new).map_err(status)
    }

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        Err(Status::internal("DoGet has a route of its own"))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<PutStream>, Status> {
        let call = self.call(&request)?;
        self.0.put(call, request.into_inner()).await
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let call = self.call(&request)?;
        let action = request.into_inner();
        if let Some(words) = super::actions::unimplemented(&action.r#type) {
            return Err(Status::unimplemented(words));
        }
        let acted = self.0.act(call, action).await.map_err(status)?;
        let messages = acted.messages.into_iter().map(|body| arrow_flight::Result { body });
        Ok(with_metadata(answers(messages), acted.told))
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.call(&request)?;
        Ok(Response::new(answers(super::actions::list())))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.call(&request)?;
        Err(Status::unimplemented("DoExchange is not there; use DoPut and DoGet"))
    }
}

/// The `authorization` that a handshake's message stands for.
fn basic(payload: &[u8]) -> Option<HeaderMap> {
    let auth = BasicAuth::decode(payload).ok()?;
    let pair = STANDARD.encode(format!("{}:{}", auth.username, auth.password));
    let value = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
    Some(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}
