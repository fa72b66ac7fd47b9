//! Results as bytes: JSON, NDJSON, CSV and Arrow IPC streams, straight from DuckDB's chunks.
//!
//! An [`Encoder`] takes chunks and gives pieces of the body. It runs no query, knows no HTTP and holds at most one unfinished
//! piece (about 1 MiB of text, 4 MiB of Arrow). Invariants:
//! - A value is right or the encoder fails: what a format can't carry is an error that names the column's type, never another value.
//! - The body is whole only after [`Encoder::finish`]; an encoder that was dropped earlier leaves a body that can't be taken for whole
//!   in JSON and Arrow (no closing bracket, no end-of-stream mark). CSV and NDJSON have no such mark: the transport must break.

mod arrow;
mod buffer;
mod csv;
mod json;
mod keywords;
mod text;
pub(crate) mod types;
pub(crate) mod value;
pub(crate) mod view;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use libduckdb_sys as ffi;

use crate::wire::FLIGHT;

use buffer::Pool;
use types::{Kind, Type};
use view::{ChunkView, View};

/// The formats of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object: `{"columns":[…],"rows":[[…],…],"row_count":…,"truncated":…}`.
    Json,
    /// One object per row.
    Ndjson,
    /// RFC 4180 with a header line.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// The same messages as `FlightData`, each framed for gRPC: the data of a `DoGet` as it goes on the wire.
    Flight,
    /// A Parquet file, which DuckDB writes: no [`Encoder`] does.
    Parquet,
}

impl Format {
    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Ndjson => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8; header=present",
            Format::Arrow => "application/vnd.apache.arrow.stream",
            Format::Flight => FLIGHT,
            Format::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// The format that an `Accept` header asks for: the one with the highest weight, the first among equals; JSON where anything goes.
    /// `None` when none of ours is acceptable.
    pub fn from_accept(accept: &str) -> Option<Format> {
        if accept.trim().is_empty() {
            return Some(Format::Json);
        }
        let mut best: Option<(f32, Format)> = None;
        for part in accept.split(',') {
            let mut pieces = part.split(';').map(str::trim);
            let format = match pieces.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" | "*/*" | "application/*" => Format::Json,
                "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Format::Ndjson,
                "text/csv" | "text/*" => Format::Csv,
                "application/vnd.apache.arrow.stream" => Format::Arrow,
                FLIGHT => Format::Flight,
                "application/vnd.apache.parquet" => Format::Parquet,
                _ => continue,
            };
            let weight = pieces.find_map(|piece| piece.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            if weight > 0.0 && best.is_none_or(|(most, _)| weight > most) {
                best = Some((weight, format));
            }
        }
        best.map(|(_, format)| format)
    }
}

/// Names and types of a result's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    columns: Vec<(String, Type)>,
}

impl Columns {
    /// Reads the columns of a result.
    ///
    /// # Safety
    /// `result` points to a valid result, which stays the caller's.
    pub unsafe fn of_result(result: *mut ffi::duckdb_result) -> Columns {
        // SAFETY: the caller vouches for the result; names belong to it, type handles are ours and destroyed once.
        unsafe {
            let columns = (0..ffi::duckdb_column_count(result)).map(|i| {
                let name = std::ffi::CStr::from_ptr(ffi::duckdb_column_name(result, i)).to_string_lossy().into_owned();
                let mut raw = ffi::duckdb_column_logical_type(result, i);
                let ty = Type::read(raw);
                ffi::duckdb_destroy_logical_type(&mut raw);
                (name, ty)
            });
            Columns { columns: columns.collect() }
        }
    }

    /// Of these names and types.
    pub(crate) fn new(columns: Vec<(String, Type)>) -> Columns {
        Columns { columns }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Name and DuckDB's text of the type, column by column.
    pub fn describe(&self) -> Vec<(String, String)> {
        self.columns.iter().map(|(name, ty)| (name.clone(), ty.to_string())).collect()
    }

    /// An encapsulated Arrow IPC message with the schema that results of these columns have.
    pub fn schema_message(&self) -> Vec<u8> {
        arrow::schema_message(self)
    }

    /// Name and type, column by column.
    pub(crate) fn into_pairs(self) -> Vec<(String, Type)> {
        self.columns
    }

    fn types(&self) -> impl Iterator<Item = &Type> {
        self.columns.iter().map(|(_, ty)| ty)
    }

    /// The names, made different where they are the same: `a`, `a_1`, `a_2`.
    pub(crate) fn unique_names(&self) -> Vec<String> {
        let mut taken: HashSet<String> = HashSet::new();
        let all: HashSet<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        self.columns
            .iter()
            .map(|(name, _)| {
                let mut unique = name.clone();
                for n in 1.. {
                    if !taken.contains(&unique) {
                        break;
                    }
                    let candidate = format!("{name}_{n}");
                    unique = if all.contains(candidate.as_str()) { continue } else { candidate };
                }
                taken.insert(unique.clone());
                unique
            })
            .collect()
    }
}

/// What a client may ask of an encoder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Rows behind so many are left out, and the result counts as truncated.
    pub max_rows: Option<u64>,
}

/// Why a result can't be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EncodeError {
    /// Lower case, and says what to do.
    pub message: String,
}

impl EncodeError {
    pub(crate) fn value(message: &str) -> EncodeError {
        EncodeError { message: message.to_owned() }
    }

    pub(crate) fn unsupported(ty: &Type) -> EncodeError {
        EncodeError {
            message: format!("a value of type `{ty}` has no form in this format; cast it to VARCHAR in the query"),
        }
    }
}

/// Turns chunks of one result into pieces of a body.
pub struct Encoder {
    format: Format,
    columns: Columns,
    options: Options,
    rows: u64,
    truncated: bool,
    body: Body,
}

enum Body {
    Text(TextBody),
    Arrow(Box<arrow::Writer>),
}

/// Text that is being written, and pieces that are ready.
struct TextBody {
    pool: Pool,
    open: Vec<u8>,
    ready: Vec<Bytes>,
    /// For NDJSON: `{"a":`, `,"b":` … as bytes.
    keys: Vec<Vec<u8>>,
    /// When the last piece was cut.
    cut: Instant,
}

/// Text pieces are cut at about this size …
const TEXT_PIECE_BYTES: usize = 1024 * 1024;
/// … and rows of a slow query wait no longer than this for the next chunk.
const MAX_AGE: Duration = Duration::from_millis(200);

impl Encoder {
    /// An encoder for a result with these columns. Fails if a column's type has no form in `format`.
    pub fn new(format: Format, columns: Columns, options: Options) -> Result<Encoder, EncodeError> {
        let unsupported = |kind: &Kind| match kind {
            Kind::Variant | Kind::Unknown(_) => true,
            Kind::Geometry => !matches!(format, Format::Arrow | Format::Flight),
            _ => false,
        };
        if let Some(ty) = columns.types().find_map(|ty| ty.find(&unsupported)) {
            return Err(EncodeError::unsupported(ty));
        }
        let body = match format {
            Format::Parquet => return Err(EncodeError::value("only the rows of a query can be a Parquet file")),
            Format::Arrow => Body::Arrow(Box::new(arrow::Writer::new(&columns, arrow::Framing::Stream)?)),
            Format::Flight => Body::Arrow(Box::new(arrow::Writer::new(&columns, arrow::Framing::Flight)?)),
            _ => Body::Text(TextBody::new(format, &columns)),
        };
        Ok(Encoder { format, columns, options, rows: 0, truncated: false, body })
    }

    /// The beginning of the body, ready before the first row. Later calls give what became ready since.
    pub fn head(&mut self) -> Vec<Bytes> {
        self.flush();
        self.take_ready()
    }

    /// Encodes a chunk. After an error the encoder is of no more use.
    ///
    /// # Safety
    /// `chunk` is a chunk of the result that the columns were read from; it stays the caller's.
    pub unsafe fn push(&mut self, chunk: ffi::duckdb_data_chunk) -> Result<(), EncodeError> {
        // SAFETY: as the caller says.
        let view = unsafe { ChunkView::new(self.columns.columns.iter().map(|(_, ty)| ty), chunk) };
        let left = self.options.max_rows.map_or(u64::MAX, |most| most - self.rows);
        let rows = usize::try_from(left).unwrap_or(usize::MAX).min(view.rows);
        self.truncated |= rows < view.rows;
        match &mut self.body {
            Body::Arrow(writer) => writer.push(&view.columns, rows)?,
            Body::Text(body) => body.push(self.format, &view.columns, rows, self.rows == 0)?,
        }
        self.rows += rows as u64;
        Ok(())
    }

    /// Would every further row be left out? (`max_rows` is reached and a row beyond it was seen.)
    pub fn is_full(&self) -> bool {
        self.truncated
    }

    /// Rows that were encoded.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Were rows left out?
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// The pieces that are ready, in order.
    pub fn take_ready(&mut self) -> Vec<Bytes> {
        match &mut self.body {
            Body::Text(body) => std::mem::take(&mut body.ready),
            Body::Arrow(writer) => writer.take_ready(),
        }
    }

    /// Makes everything so far ready, however little it is. `push` does so by itself when rows have waited for 200 ms, but nothing
    /// is pushed while a query is silent.
    pub fn flush(&mut self) {
        match &mut self.body {
            Body::Text(body) => body.flush(),
            Body::Arrow(writer) => writer.flush(),
        }
    }

    /// The rest of the body.
    pub fn finish(mut self) -> Vec<Bytes> {
        match &mut self.body {
            Body::Text(body) => {
                if self.format == Format::Json {
                    let end = format!("],\"row_count\":{},\"truncated\":{}}}", self.rows, self.truncated);
                    body.open.extend_from_slice(end.as_bytes());
                }
                body.flush();
            }
            Body::Arrow(writer) => writer.finish(),
        }
        self.take_ready()
    }
}

impl TextBody {
    fn new(format: Format, columns: &Columns) -> TextBody {
        let mut open = Vec::with_capacity(1024);
        let mut keys = Vec::new();
        match format {
            Format::Json => {
                open.extend_from_slice(b"{\"columns\":[");
                for (i, (name, ty)) in columns.columns.iter().enumerate() {
                    open.extend_from_slice(if i == 0 { b"{\"name\":" } else { b",{\"name\":" });
                    json::write_string(name.as_bytes(), &mut open);
                    open.extend_from_slice(b",\"type\":");
                    json::write_string(ty.to_string().as_bytes(), &mut open);
                    open.push(b'}');
                }
                open.extend_from_slice(b"],\"rows\":[");
            }
            Format::Csv => {
                for (i, (name, _)) in columns.columns.iter().enumerate() {
                    if i > 0 {
                        open.push(b',');
                    }
                    csv::write_name(name, &mut open);
                }
                open.extend_from_slice(b"\r\n");
            }
            _ => {
                for (i, name) in columns.unique_names().iter().enumerate() {
                    let mut key = vec![if i == 0 { b'{' } else { b',' }];
                    json::write_string(name.as_bytes(), &mut key);
                    key.push(b':');
                    keys.push(key);
                }
            }
        }
        TextBody { pool: Pool::default(), open, ready: Vec::new(), keys, cut: Instant::now() }
    }

    fn push(&mut self, format: Format, columns: &[View<'_>], rows: usize, first: bool) -> Result<(), EncodeError> {
        for row in 0..rows {
            match format {
                Format::Json => self.json_row(columns, row, first && row == 0)?,
                Format::Csv => self.csv_row(columns, row)?,
                _ => self.ndjson_row(columns, row)?,
            }
            if self.open.len() >= TEXT_PIECE_BYTES {
                self.flush();
            }
        }
        if self.cut.elapsed() >= MAX_AGE {
            self.flush();
        }
        Ok(())
    }

    fn json_row(&mut self, columns: &[View<'_>], row: usize, first: bool) -> Result<(), EncodeError> {
        self.open.extend_from_slice(if first { b"[" } else { b",[" });
        for (i, view) in columns.iter().enumerate() {
            if i > 0 {
                self.open.push(b',');
            }
            json::write_value(view, row, &mut self.open)?;
        }
        self.open.push(b']');
        Ok(())
    }

    fn ndjson_row(&mut self, columns: &[View<'_>], row: usize) -> Result<(), EncodeError> {
        for (view, key) in columns.iter().zip(&self.keys) {
            self.open.extend_from_slice(key);
            json::write_value(view, row, &mut self.open)?;
        }
        self.open.extend_from_slice(if columns.is_empty() { b"{}\n" } else { b"}\n" });
        Ok(())
    }

    fn csv_row(&mut self, columns: &[View<'_>], row: usize) -> Result<(), EncodeError> {
        for (i, view) in columns.iter().enumerate() {
            if i > 0 {
                self.open.push(b',');
            }
            csv::write_field(view, row, &mut self.open)?;
        }
        self.open.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn flush(&mut self) {
        self.cut = Instant::now();
        if self.open.is_empty() {
            return;
        }
        let next = if self.ready.is_empty() && self.open.len() < TEXT_PIECE_BYTES {
            1024
        } else {
            TEXT_PIECE_BYTES + 64 * 1024
        };
        let piece = std::mem::replace(&mut self.open, self.pool.take(next));
        self.ready.push(self.pool.freeze(piece));
    }
}
