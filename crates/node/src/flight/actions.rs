//! `DoAction`: preparing, transactions, cancelling, session options. What is not there says so.

use std::sync::Arc;

use arrow_flight::sql::{
    ActionBeginTransactionRequest, ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionEndTransactionRequest, Any,
    EndTransaction, ProstMessageExt,
};
use arrow_flight::{Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;

use super::Flight;
use super::call::Call;
use super::options::Closed;
use super::paper::Matter;
use super::sessions::transaction_of;
use crate::error::{ApiError, Code};

/// What an action answers: messages, and metadata.
pub(super) struct Acted {
    pub messages: Vec<Bytes>,
    pub told: HeaderMap,
}

/// All that is there, with a word on each.
const ACTIONS: [(&str, &str); 9] = [
    ("CreatePreparedStatement", "Describes a statement and gives it a handle; runs nothing."),
    ("ClosePreparedStatement", "Closes a prepared statement."),
    ("BeginTransaction", "Begins a transaction."),
    ("EndTransaction", "Commits a transaction, and waits until that is durable, or rolls it back."),
    ("CancelFlightInfo", "Cancels the query of a FlightInfo, whether it runs or not yet."),
    ("CancelQuery", "The older form of CancelFlightInfo."),
    ("SetSessionOptions", "Sets `catalog` and `schema`."),
    ("GetSessionOptions", "Tells `catalog` and `schema`."),
    ("CloseSession", "Rolls back what is open and drops temporary tables."),
];

pub(super) fn list() -> Vec<ActionType> {
    let action = |(name, words): (&str, &str)| ActionType { r#type: name.into(), description: words.into() };
    ACTIONS.map(action).into()
}

impl Flight {
    pub(super) async fn act(self: &Arc<Self>, mut call: Call, action: Action) -> Result<Acted, ApiError> {
        let body = action.body;
        let message = match action.r#type.as_str() {
            "CreatePreparedStatement" => {
                let request: ActionCreatePreparedStatementRequest = packed(&body)?;
                any(&self.prepare(call, request).await?)
            }
            "ClosePreparedStatement" => {
                let request: ActionClosePreparedStatementRequest = packed(&body)?;
                self.close_prepared(call, &request.prepared_statement_handle).await?;
                return Ok(Acted { messages: Vec::new(), told: HeaderMap::new() });
            }
            "BeginTransaction" => {
                let _: ActionBeginTransactionRequest = packed(&body)?;
                let id = self.begin(&call)?;
                let transaction_id = self.seal().await?.handle(&call, Matter::Transaction(id))?;
                any(&ActionBeginTransactionResult { transaction_id })
            }
            "EndTransaction" => {
                let request: ActionEndTransactionRequest = packed(&body)?;
                let commit = match EndTransaction::try_from(request.action) {
                    Ok(EndTransaction::Commit) => true,
                    Ok(EndTransaction::Rollback) => false,
                    _ => return Err(ApiError::new(Code::Invalid, "a transaction ends with COMMIT or ROLLBACK")),
                };
                let (about, matter) = self.seal().await?.read(call, &request.transaction_id)?;
                let told = self.end(&about, transaction_of(matter)?, commit).await?;
                return Ok(Acted { messages: Vec::new(), told });
            }
            "CancelFlightInfo" => {
                let request = CancelFlightInfoRequest::decode(&*body).map_err(|_| unreadable())?;
                let info = request.info.ok_or_else(unreadable)?;
                let status = self.cancel(&call, &info).await? as i32;
                CancelFlightInfoResult { status }.encode_to_vec().into()
            }
            "CancelQuery" => {
                let request: ActionCancelQueryRequest = packed(&body)?;
                let info = FlightInfo::decode(&*request.info).map_err(|_| unreadable())?;
                // The results have the numbers of the newer form's.
                let result = self.cancel(&call, &info).await? as i32;
                any(&ActionCancelQueryResult { result })
            }
            "SetSessionOptions" => self.set_options(&call, &body).await?.encode_to_vec().into(),
            "GetSessionOptions" => self.get_options(&call).await?.encode_to_vec().into(),
            "CloseSession" => {
                // A handle of another mart may have been used under the same place.
                call.at = None;
                self.close(&call).await;
                Closed { status: CancelStatus::Cancelled as i32 }.encode_to_vec().into()
            }
            other => return Err(missing(other)),
        };
        Ok(Acted { messages: vec![message], told: HeaderMap::new() })
    }
}

/// Whether an action is one that is known and not there.
pub(super) fn unimplemented(action: &str) -> Option<&'static str> {
    Some(match action {
        "BeginSavepoint" | "EndSavepoint" => "DuckDB has no savepoints; use a transaction of its own for what may fail",
        "CreatePreparedSubstraitPlan" => "Substrait plans are not run; send SQL",
        "RenewFlightEndpoint" => "tickets count for an hour and are not renewed; ask for the query's info again",
        _ => return None,
    })
}

/// Whether an action's body can be read.
pub(super) fn is_whole(action: &Action) -> bool {
    let body = &action.body;
    match action.r#type.as_str() {
        "CreatePreparedStatement" => packed::<ActionCreatePreparedStatementRequest>(body).is_ok(),
        "ClosePreparedStatement" => packed::<ActionClosePreparedStatementRequest>(body).is_ok(),
        "EndTransaction" => packed::<ActionEndTransactionRequest>(body).is_ok(),
        "CancelQuery" => {
            packed::<ActionCancelQueryRequest>(body).is_ok_and(|query| FlightInfo::decode(&*query.info).is_ok())
        }
        _ => false,
    }
}

fn missing(action: &str) -> ApiError {
    let shown: String = action.chars().filter(|c| c.is_ascii_graphic()).take(60).collect();
    ApiError::new(Code::Invalid, format!("no action `{shown}`")).hint("ListActions tells which there are")
}

fn packed<M: ProstMessageExt>(body: &[u8]) -> Result<M, ApiError> {
    let any = Any::decode(body).map_err(|_| unreadable())?;
    any.unpack().ok().flatten().ok_or_else(unreadable)
}

fn any(message: &impl ProstMessageExt) -> Bytes {
    message.as_any().encode_to_vec().into()
}

fn unreadable() -> ApiError {
    ApiError::new(Code::Invalid, "the action's body can't be read")
}
