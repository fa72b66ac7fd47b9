//! `DoPut`: updates, parameters and bulk loads. The command is in the stream's first message, which may already carry the schema.

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::sql::{Any, Command, DoPutPreparedStatementResult, DoPutUpdateResult};
use arrow_flight::{FlightData, PutResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::{self, Peekable};
use http::HeaderMap;
use prost::Message;
use tonic::{Response, Status, Streaming};

use super::call::Call;
use super::frames::{END_OF_STREAM, ipc_pieces};
use super::run::with_metadata;
use super::statements::{Statement, check_moment};
use super::status::{exists, status};
use super::{Flight, MAX_MESSAGE_BYTES};
use crate::error::{ApiError, Code};
use crate::visit;

/// What a client sends.
pub(super) type Upload = Pin<Box<Peekable<Streaming<FlightData>>>>;
/// What it gets.
pub(super) type PutStream = stream::Iter<std::iter::Once<Result<PutResult, Status>>>;

/// Sets of parameters of one call; more rows than fit are a load.
const MAX_PARAMS_BYTES: usize = 12 << 20;

impl Flight {
    pub(super) async fn put(
        self: &Arc<Self>,
        mut call: Call,
        upload: Streaming<FlightData>,
    ) -> Result<Response<PutStream>, Status> {
        let mut upload: Upload = Box::pin(upload.peekable());
        let command = match upload.as_mut().peek().await {
            Some(Ok(first)) => first.flight_descriptor.as_ref().map(|descriptor| descriptor.cmd.clone()),
            Some(Err(error)) => return Err(status(cut(error.clone()))),
            None => None,
        };
        let wanted = || ApiError::new(Code::Invalid, "the first message of the stream names no command");
        let command = parse_command(&command.ok_or_else(wanted).map_err(status)?).map_err(status)?;
        match command {
            Command::CommandStatementUpdate(update) => {
                let transaction = self.transaction(&mut call, update.transaction_id.as_ref()).await.map_err(status)?;
                visit::says(&update.query);
                check_moment(&call, &update.query).map_err(status)?;
                let statement = Statement { sql: update.query, params_arrow: None, transaction };
                self.update(&call, &statement).await.map(counted).map_err(status)
            }
            Command::CommandPreparedStatementUpdate(update) => {
                let params = params(upload).await.map_err(status)?;
                let run = async {
                    let (call, statement) = self.prepared(call, &update.prepared_statement_handle).await?;
                    let params_arrow = params.or(statement.params_arrow);
                    self.update(&call, &Statement { params_arrow, ..statement }).await
                };
                run.await.map(counted).map_err(status)
            }
            Command::CommandPreparedStatementQuery(query) => {
                let params = params(upload).await.map_err(status)?;
                if let Some(params) = params {
                    self.bind(call, &query.prepared_statement_handle, params).await.map_err(status)?;
                }
                let handle = Some(query.prepared_statement_handle);
                let result = DoPutPreparedStatementResult { prepared_statement_handle: handle };
                Ok(with_metadata(answer(&result), HeaderMap::new()))
            }
            Command::CommandStatementIngest(ingest) => {
                self.ingest(call, ingest, upload).await.map(counted).map_err(exists)
            }
            Command::CommandStatementSubstraitPlan(_) => {
                Err(Status::unimplemented("Substrait plans are not run; send SQL"))
            }
            other => Err(Status::unimplemented(format!("DoPut does not take `{}`", shown(&other)))),
        }
    }
}

/// The command in a descriptor or ticket.
pub(super) fn parse_command(bytes: &[u8]) -> Result<Command, ApiError> {
    let bad = || ApiError::new(Code::Invalid, "the descriptor holds no Flight SQL command");
    let any = Any::decode(bytes).map_err(|_| bad())?;
    if any.type_url.is_empty() {
        return Err(bad());
    }
    Command::try_from(any).map_err(|_| ApiError::new(Code::Invalid, "the Flight SQL command can't be read"))
}

/// A command's name, as far as it is one.
pub(super) fn shown(command: &Command) -> String {
    let name = command.type_url().rsplit('.').next().unwrap_or_default();
    name.chars().filter(|c| c.is_ascii_alphanumeric()).take(60).collect()
}

fn counted((record_count, told): (i64, HeaderMap)) -> Response<PutStream> {
    with_metadata(answer(&DoPutUpdateResult { record_count }), told)
}

fn answer(result: &impl Message) -> PutStream {
    stream::iter(std::iter::once(Ok(PutResult { app_metadata: result.encode_to_vec().into() })))
}

/// The parameters in a stream as an Arrow IPC stream in base64; none if there is not even a schema.
async fn params(mut upload: Upload) -> Result<Option<String>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(data) = upload.next().await {
        for piece in ipc_pieces(data.map_err(cut)?)? {
            if bytes.len() + piece.len() > MAX_PARAMS_BYTES {
                return Err(ApiError::new(Code::TooLarge, format!("the parameters are over {MAX_PARAMS_BYTES} bytes"))
                    .hint("send them in parts, or load them into a table (`adbc_ingest`) and use that"));
            }
            bytes.extend_from_slice(&piece);
        }
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.extend_from_slice(&END_OF_STREAM);
    Ok(Some(STANDARD.encode(bytes)))
}

/// Why a client's stream did not come to its end.
pub(super) fn cut(error: Status) -> ApiError {
    let code = match error.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            return ApiError::new(Code::TooLarge, format!("a message of the stream is over {MAX_MESSAGE_BYTES} bytes"))
                .hint(
                    "send smaller batches: `max_chunksize` in pyarrow, `with_max_msg_size` in ADBC's Flight SQL driver",
                );
        }
        tonic::Code::Cancelled => Code::Cancelled,
        _ => Code::Invalid,
    };
    ApiError::new(code, format!("the stream was not sent whole: {}", error.message()))
}
