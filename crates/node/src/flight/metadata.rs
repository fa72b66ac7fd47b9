//! Questions about a mart: catalogs, schemas, tables, keys, types, what the server can do. Names are asked of the mart's own catalog, as
//! the caller, with names as parameters; a caller's session shows its temporary tables too.
//!
//! **Invariant:** the schema in a question's info is the schema of its stream.

mod info;
mod keys;
mod tables;
mod types;

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::FlightDescriptor;
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::sql::Command;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use engine::wire::QueryRequest;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::frames::{schema_message, table};
use super::paper::{Base64, Matter};
use super::put::{parse_command, shown};
use super::run::Asked;
use super::sessions::Used;
use super::statements::flight_info;
use crate::error::{ApiError, Code};

/// One row of the mart's catalog.
type Row = Vec<Value>;

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

impl Flight {
    /// Where the answer to a question is.
    pub(super) async fn question(
        &self,
        call: &Call,
        command: &Command,
        descriptor: FlightDescriptor,
    ) -> Result<FlightInfo, ApiError> {
        let schema = schema_message(&*schema(command)?);
        let ticket = self.seal().await?.ticket(call, Matter::Meta(Base64(descriptor.cmd.clone())))?;
        Ok(flight_info(schema, ticket, -1, descriptor))
    }

    /// Rows of the mart's catalog, as the caller sees it.
    async fn rows(self: &Arc<Self>, call: &Call, sql: &str, params: &[Option<&str>]) -> Result<Vec<Row>, ApiError> {
        let ask = |session: Option<Uuid>| {
            let params = (!params.is_empty()).then(|| Value::from(params.to_vec()));
            let request = QueryRequest { sql: sql.to_owned(), params, session, ..Default::default() };
            Asked::query(Uuid::new_v4(), &request, "application/json")
        };
        if let Some(used) = self.session_of(call)
            && let Ok(found) = self.run_json::<Rows>(call, ask(Some(used.id()))?).await
        {
            return Ok(found.rows);
        }
        // Without a session, or when its transaction has failed and answers nothing.
        Ok(self.run_json::<Rows>(call, ask(None)?).await?.rows)
    }

    fn session_of(&self, call: &Call) -> Option<Used> {
        if call.at.is_some() { None } else { self.session_if_any(call) }
    }
}

/// The answer to a question, as the frames of a stream.
pub(super) async fn answer(flight: &Arc<Flight>, call: &Call, command: &[u8]) -> Result<Bytes, ApiError> {
    let batch = match parse_command(command)? {
        Command::CommandGetCatalogs(_) => tables::catalogs(flight, call).await?,
        Command::CommandGetDbSchemas(asked) => tables::schemas(flight, call, asked).await?,
        Command::CommandGetTables(asked) => tables::tables(flight, call, asked).await?,
        Command::CommandGetTableTypes(asked) => tables::table_types(asked)?,
        Command::CommandGetPrimaryKeys(asked) => keys::primary(flight, call, asked).await?,
        Command::CommandGetExportedKeys(asked) => keys::exported(flight, call, asked).await?,
        Command::CommandGetImportedKeys(asked) => keys::imported(flight, call, asked).await?,
        Command::CommandGetCrossReference(asked) => keys::between(flight, call, asked).await?,
        Command::CommandGetSqlInfo(asked) => info::answer(asked)?,
        Command::CommandGetXdbcTypeInfo(asked) => types::answer(asked)?,
        other => return Err(unknown(&other)),
    };
    table(&batch)
}

/// What a question's answer looks like.
pub(super) fn schema(command: &Command) -> Result<SchemaRef, ApiError> {
    Ok(match command.clone() {
        Command::CommandGetCatalogs(asked) => asked.into_builder().schema(),
        Command::CommandGetDbSchemas(asked) => asked.into_builder().schema(),
        Command::CommandGetTables(asked) => asked.into_builder().schema(),
        Command::CommandGetTableTypes(asked) => asked.into_builder().schema(),
        Command::CommandGetPrimaryKeys(_) => keys::primary_schema(),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => keys::foreign_schema(),
        Command::CommandGetSqlInfo(_) => info::all()?.schema(),
        Command::CommandGetXdbcTypeInfo(_) => types::all()?.schema(),
        other => return Err(unknown(&other)),
    })
}

/// Whether a command is a question about the mart.
pub(super) fn is_question(command: &Command) -> bool {
    matches!(
        command,
        Command::CommandGetCatalogs(_)
            | Command::CommandGetDbSchemas(_)
            | Command::CommandGetTables(_)
            | Command::CommandGetTableTypes(_)
            | Command::CommandGetPrimaryKeys(_)
            | Command::CommandGetExportedKeys(_)
            | Command::CommandGetImportedKeys(_)
            | Command::CommandGetCrossReference(_)
            | Command::CommandGetSqlInfo(_)
            | Command::CommandGetXdbcTypeInfo(_)
    )
}

fn unknown(command: &Command) -> ApiError {
    ApiError::new(Code::Invalid, format!("`{}` asks nothing that has an answer", shown(command)))
}

fn built(batch: Result<RecordBatch, FlightError>) -> Result<RecordBatch, ApiError> {
    batch.map_err(|error| ApiError::internal("a table of metadata is built", error))
}

/// A text of a row; empty if it is none.
fn text(row: &Row, at: usize) -> &str {
    row.get(at).and_then(Value::as_str).unwrap_or_default()
}
