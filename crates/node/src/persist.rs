//! A query's result into Postgres, in one transaction: what `POST …/persist` does.
//!
//! The engine reads, the node turns its batches into Postgres' binary COPY as they come, and commits when the last one is in. No batch
//! waits for another: what is under way is a batch and a chunk.
//!
//! **Invariant:** nothing is in Postgres unless all of it is; under an idempotency key it is there once.

pub mod columns;
pub mod copy;
mod numeric;
pub mod target;

use arrow_array::ArrayRef;
use arrow_flight::FlightData;
use arrow_flight::utils::flight_data_to_arrow_batch;
use arrow_schema::{Schema, SchemaRef};
use axum::body::Body;
use bytes::{Buf, BytesMut};
use futures::SinkExt;
use http_body_util::BodyExt;
use prost::Message;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::CopyInSink;

use crate::error::{ApiError, Code};
use columns::{Column, Found};
use copy::Sum;
use target::{Target, quote, told};

/// Tuples are sent in pieces of about so many bytes.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Before each message of the engine's stream: a flag and the length, as in gRPC.
const PREFIX_BYTES: usize = 5;

/// What becomes of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// It must not be there.
    Create,
    /// It must be there; rows are added.
    Append,
    /// A new table takes its place.
    Replace,
    /// It must be there; a row whose key is there overwrites that row.
    Upsert(Vec<String>),
}

/// A table of a connection.
#[derive(Debug, Clone)]
pub struct Destination {
    pub schema: Option<String>,
    pub table: String,
    pub mode: Mode,
}

impl Destination {
    /// From `table` or `schema.table`; a name with a point or capitals in it stands in double quotes.
    pub fn parse(text: &str, mode: Mode) -> Option<Self> {
        let mut names = Vec::new();
        let mut rest = text.trim();
        loop {
            let (name, after) = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let end = quoted.find('"')?;
                    (&quoted[..end], &quoted[end + 1..])
                }
                None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
            };
            if name.is_empty() || name.len() > 63 || name.chars().any(|c| c.is_control()) {
                return None;
            }
            names.push(name.to_owned());
            match after.strip_prefix('.') {
                Some(after) => rest = after,
                None if after.is_empty() => break,
                None => return None,
            }
        }
        match names.as_slice() {
            [table] => Some(Self { schema: None, table: table.clone(), mode }),
            [schema, table] => Some(Self { schema: Some(schema.clone()), table: table.clone(), mode }),
            _ => None,
        }
    }

    /// As SQL has it.
    fn quoted(&self) -> String {
        self.named(&self.table)
    }

    /// A table that stands for it until it is whole.
    fn beside(&self) -> String {
        // Names are cut at 63 bytes.
        let hash = blake3::hash(self.table.as_bytes()).to_hex();
        self.named(&format!("tarn_new_{}", &hash[..16]))
    }

    fn named(&self, table: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(table)),
            None => quote(table),
        }
    }
}

/// What a key was used for, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// A hash of the request.
    pub what: String,
    pub rows: u64,
    pub checksum: String,
    pub position: Option<String>,
}

/// A column of the result as DESCRIBE tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Described {
    pub name: String,
    pub duckdb_type: String,
}

/// Where each column goes. Of a table that is not there, if it has to be made, and of one that is.
pub fn plan(
    destination: &Destination,
    described: &[Described],
    found: Option<&[Found]>,
) -> Result<Vec<Column>, ApiError> {
    let mut seen = std::collections::HashSet::new();
    if let Some(twice) = described.iter().find(|column| !seen.insert(&column.name)) {
        return Err(
            ApiError::new(Code::Invalid, format!("two columns are called `{}`", twice.name)).hint("name them apart")
        );
    }
    if let Mode::Upsert(key) = &destination.mode
        && let Some(missing) = key.iter().find(|name| described.iter().all(|column| column.name != **name))
    {
        return Err(ApiError::new(Code::Invalid, format!("the key's column `{missing}` is not in the result")));
    }
    match (&destination.mode, found) {
        (Mode::Append | Mode::Upsert(_), None) => {
            Err(ApiError::new(Code::NotFound, format!("there is no table {} in Postgres", destination.quoted()))
                .hint("`create` or `replace` make it"))
        }
        (Mode::Create, Some(_)) => {
            Err(ApiError::new(Code::Conflict, format!("the table {} is there already", destination.quoted()))
                .hint("`append`, `replace` and `upsert` are for tables that are there"))
        }
        (_, None) => described.iter().map(|column| columns::of_new(&column.name, &column.duckdb_type)).collect(),
        (_, Some(found)) => described
            .iter()
            .map(|column| {
                let own = found.iter().find(|own| own.name == column.name);
                let own = own.ok_or_else(|| {
                    let names: Vec<_> = found.iter().map(|own| own.name.as_str()).collect();
                    ApiError::new(Code::Invalid, format!("the table has no column `{}`", column.name))
                        .hint(format!("it has {}", names.join(", ")))
                })?;
                columns::into_found(&column.name, &column.duckdb_type, own)
            })
            .collect(),
    }
}

/// Sends the batches of an engine's answer, in its framing for Flight, as tuples; what they add up to.
pub async fn send(
    mut body: Body,
    columns: &[Column],
    mut sink: std::pin::Pin<&mut CopyInSink<bytes::Bytes>>,
    failure: impl Fn(&http::HeaderMap) -> Option<ApiError>,
    broken: impl Fn(axum::Error) -> ApiError,
) -> Result<Sum, ApiError> {
    let (mut sum, mut waiting, mut out) = (Sum::default(), BytesMut::new(), target::chunk());
    let mut schema: Option<SchemaRef> = None;
    let dictionaries: HashMap<i64, ArrayRef> = HashMap::new();
    out.extend_from_slice(copy::HEAD);
    while let Some(frame) = body.frame().await {
        let frame = match frame.map_err(&broken)?.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Some(error) = frame.trailers_ref().and_then(&failure) {
                    return Err(error);
                }
                continue;
            }
        };
        waiting.extend_from_slice(&frame);
        while let Some(message) = next_message(&mut waiting) {
            let data =
                FlightData::decode(message).map_err(|error| ApiError::internal("an engine's frame is read", error))?;
            let Some(schema) = &schema else {
                let found =
                    Schema::try_from(&data).map_err(|error| ApiError::internal("a schema comes first", error))?;
                schema = Some(Arc::new(found));
                continue;
            };
            let batch = flight_data_to_arrow_batch(&data, schema.clone(), &dictionaries)
                .map_err(|error| ApiError::internal("an engine's batch is read", error))?;
            copy::encode(&batch, columns, &mut out, &mut sum)?;
            if out.len() >= CHUNK_BYTES {
                sink.send(std::mem::replace(&mut out, target::chunk()).freeze()).await.map_err(told)?;
            }
        }
    }
    out.extend_from_slice(&copy::TAIL);
    sink.send(out.freeze()).await.map_err(told)?;
    Ok(sum)
}

/// A whole message off the front.
fn next_message(waiting: &mut BytesMut) -> Option<bytes::Bytes> {
    let prefix = waiting.get(..PREFIX_BYTES)?;
    let bytes = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if waiting.len() < PREFIX_BYTES + bytes {
        return None;
    }
    waiting.advance(PREFIX_BYTES);
    Some(waiting.split_to(bytes).freeze())
}

/// Everything after the connection is there and before the result is asked for: claims the key, looks at the table, makes what is to
/// be copied into.
pub struct Prepared {
    pub columns: Vec<Column>,
    pub into: String,
    pub exists: bool,
}

/// See [`Prepared`]; a key that was used for the same before gives what was recorded.
pub async fn prepare(
    target: &Target,
    destination: &Destination,
    described: &[Described],
) -> Result<Prepared, ApiError> {
    let found = target.columns().await?;
    let columns = plan(destination, described, found.as_deref())?;
    let exists = found.is_some();
    let into = target.prepare(&columns, exists).await?;
    Ok(Prepared { columns, into, exists })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_with_or_without_its_schema() {
        let parse = |text: &str| Destination::parse(text, Mode::Append);
        assert_eq!(parse("daily").expect("legal").quoted(), "\"daily\"");
        assert_eq!(parse(" reports.daily ").expect("legal").quoted(), "\"reports\".\"daily\"");
        assert_eq!(parse("\"my.schema\".\"Daily\"").expect("legal").quoted(), "\"my.schema\".\"Daily\"");
        for wrong in ["", "a.", ".a", "a.b.c", "\"a", "\"a\"b", "a\nb", &"x".repeat(64)] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_message_is_taken_when_it_is_whole() {
        let mut waiting = BytesMut::from(&[0, 0, 0, 0, 2, b'a'][..]);
        assert_eq!(next_message(&mut waiting), None);
        waiting.extend_from_slice(b"bc");
        assert_eq!(next_message(&mut waiting).as_deref(), Some(b"ab".as_slice()));
        assert_eq!(&waiting[..], b"c");
    }
}
