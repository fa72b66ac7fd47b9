//! Bulk loads: a client's stream of batches goes to the engine as an Arrow IPC stream, message by message, and is decoded only there.
//!
//! **Invariant:** a stream that does not come to its end breaks the engine's body; it never looks like the end of one. All of it is
//! loaded or nothing.

use std::sync::{Arc, Mutex, PoisonError};

use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::frames::{END_OF_STREAM, ipc_pieces};
use super::put::{Upload, cut};
use super::run::{Asked, told};
use super::sessions::is_gone;
use crate::error::{ApiError, Code};

/// The mart, as clients know it.
pub(super) const CATALOG: &str = "mart";
const LOAD: HeaderName = HeaderName::from_static(engine::wire::header::LOAD);

/// The engine's answer.
#[derive(Deserialize)]
struct Loaded {
    rows: i64,
}

/// What to do with the table.
#[derive(Debug, PartialEq)]
struct Modes {
    if_missing: &'static str,
    if_exists: &'static str,
}

impl Flight {
    /// Loads a stream into a table: how many rows, and what the answer tells.
    pub(super) async fn ingest(
        self: &Arc<Self>,
        mut call: Call,
        ingest: CommandStatementIngest,
        upload: Upload,
    ) -> Result<(i64, HeaderMap), ApiError> {
        // ADBC names no transaction in a load, and means the one that its connection has open.
        let transaction = match self.transaction(&mut call, ingest.transaction_id.as_ref()).await? {
            Some(named) => Some(named),
            None => self.current_transaction(&call),
        };
        if call.at.is_some() {
            return Err(ApiError::new(Code::Invalid, "an earlier moment can't be loaded into"));
        }
        let modes = modes(ingest.table_definition_options.as_ref())?;
        if ingest.table.is_empty() {
            return Err(ApiError::new(Code::Invalid, "the load names no table"));
        }
        let catalog = ingest.catalog.as_deref().filter(|name| !name.is_empty());
        if let Some(catalog) = catalog.filter(|name| *name != CATALOG && !(ingest.temporary && *name == "temp")) {
            return Err(ApiError::new(Code::NotFound, format!("no catalog `{catalog}`"))
                .hint(format!("a mart's only catalog is `{CATALOG}`")));
        }
        let used = self.session(&call, transaction, ingest.temporary).await?;
        // Drivers send the schema of an earlier load along; a temporary table has none of its own.
        let schema = ingest.schema.filter(|name| !name.is_empty() && !ingest.temporary);
        let request = json!({
            "schema": schema,
            "table": ingest.table,
            "if_missing": modes.if_missing,
            "if_exists": modes.if_exists,
            "key": [],
            "temporary": ingest.temporary,
            "session": used.as_ref().map(|used| used.id()),
        });
        let mut headers = HeaderMap::new();
        let request = percent_encoded(&request.to_string());
        let request = HeaderValue::from_str(&request).map_err(|error| ApiError::internal("a load is ASCII", error))?;
        headers.insert(LOAD, request);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.apache.arrow.stream"));
        let fault = Fault::default();
        let body = Body::from_stream(stream_of(upload, fault.clone()));
        let asked =
            Asked { id: Uuid::new_v4(), path: "/load", headers, reads_only: false, in_session: used.is_some(), body };
        let answer = self.run(&call, asked).await;
        // The engine knows only that its body broke.
        if let Some(error) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        if let (Err(error), Some(used)) = (&answer, &used)
            && is_gone(error)
        {
            // The next one gets another; the stream of this one is spent.
            self.replace(&call, used)?;
        }
        if let Some(used) = &used {
            used.touch();
        }
        let answer = answer?;
        let told = told(answer.headers());
        let loaded: Loaded = super::run::small(answer).await?;
        Ok((loaded.rows, told))
    }
}

/// What was wrong with a client's stream.
type Fault = Arc<Mutex<Option<ApiError>>>;

/// The client's messages as an IPC stream. What is wrong with them breaks it, and is told beside it.
fn stream_of(upload: Upload, fault: Fault) -> impl futures::Stream<Item = Result<Bytes, ApiError>> + Send {
    let pieces = stream::unfold(Some(upload), move |upload| {
        let fault = fault.clone();
        async move {
            let mut upload = upload?;
            let pieces = match upload.next().await {
                None => return Some((vec![Ok(Bytes::from_static(&END_OF_STREAM))], None)),
                Some(data) => data.map_err(cut).and_then(ipc_pieces),
            };
            match pieces {
                Ok(pieces) => Some((pieces.into_iter().map(Ok).collect(), Some(upload))),
                Err(error) => {
                    *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                    Some((vec![Err(error)], None))
                }
            }
        }
    });
    pieces.flat_map(stream::iter)
}

fn modes(options: Option<&TableDefinitionOptions>) -> Result<Modes, ApiError> {
    let bad = || ApiError::new(Code::Invalid, "the load does not say what to do with the table");
    let options = options.ok_or_else(bad)?;
    let if_missing = match TableNotExistOption::try_from(options.if_not_exist).map_err(|_| bad())? {
        TableNotExistOption::Create => "create",
        TableNotExistOption::Fail => "fail",
        TableNotExistOption::Unspecified => return Err(bad()),
    };
    let if_exists = match TableExistsOption::try_from(options.if_exists).map_err(|_| bad())? {
        TableExistsOption::Fail => "fail",
        TableExistsOption::Append => "append",
        TableExistsOption::Replace => "replace",
        TableExistsOption::Unspecified => return Err(bad()),
    };
    Ok(Modes { if_missing, if_exists })
}

/// All but visible ASCII, and `%` itself, as `%XX`.
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'%';
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_says_what_it_does_with_its_table() {
        let append = TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail.into(),
            if_exists: TableExistsOption::Append.into(),
        };
        assert_eq!(modes(Some(&append)).ok(), Some(Modes { if_missing: "fail", if_exists: "append" }));
        assert!(modes(None).is_err());
        assert!(modes(Some(&TableDefinitionOptions { if_not_exist: 77, if_exists: 1 })).is_err());
    }

    #[test]
    fn a_header_holds_any_name() {
        assert_eq!(percent_encoded("é%\n"), "%C3%A9%25%0A");
    }
}
