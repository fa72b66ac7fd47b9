//! Parameters that come as Arrow: each row is a set of them, in the order of the columns.
//!
//! DuckDB itself turns the rows into vectors of its own, as for any Arrow data; a row's values are then bound one by one.

use arrow_array::{Array, RecordBatch, StructArray, ffi::to_ffi};
use arrow_ipc::reader::StreamReader;
use libduckdb_sys as ffi;

use super::ParamError;
use crate::format::{types::Type, value, view::ChunkView};

/// Most rows of one request.
const MAX_ROWS: usize = 1_000_000;

/// Reads the batches of an IPC stream.
pub fn read(bytes: &[u8]) -> Result<Vec<RecordBatch>, ParamError> {
    let bad = |error: arrow_schema::ArrowError| ParamError::new(format!("the parameters are no Arrow stream: {error}"));
    let batches: Vec<_> = StreamReader::try_new(bytes, None).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if rows > MAX_ROWS {
        return Err(ParamError::new(format!("{rows} sets of parameters in one request; the limit is {MAX_ROWS}")));
    }
    Ok(batches)
}

/// Rows of parameters as DuckDB's own chunks.
pub struct Rows {
    types: Vec<Type>,
    chunks: Vec<Chunk>,
}

struct Chunk {
    raw: ffi::duckdb_data_chunk,
    /// The number of its first row.
    first: usize,
    rows: usize,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_data_chunk(&mut self.raw) };
    }
}

impl Rows {
    /// Converts the batches.
    ///
    /// # Safety
    /// The connection is valid and used by no other thread meanwhile.
    pub unsafe fn new(connection: ffi::duckdb_connection, batches: &[RecordBatch]) -> Result<Self, ParamError> {
        let mut rows = Rows { types: Vec::new(), chunks: Vec::new() };
        let most = 2048;
        for batch in batches {
            for start in (0..batch.num_rows()).step_by(most) {
                let part = batch.slice(start, most.min(batch.num_rows() - start));
                // SAFETY: as the caller says.
                unsafe { rows.push(connection, &part) }?;
            }
        }
        Ok(rows)
    }

    unsafe fn push(&mut self, connection: ffi::duckdb_connection, batch: &RecordBatch) -> Result<(), ParamError> {
        let bad = |text: String| ParamError::new(format!("the parameters can't be read: {text}"));
        let array: StructArray = batch.clone().into();
        let (mut array, mut schema) = to_ffi(&array.to_data()).map_err(|error| bad(error.to_string()))?;
        // SAFETY: both structs have the layout of the C data interface and outlive the calls; what DuckDB takes over it marks as
        // released; handles are destroyed once.
        unsafe {
            let mut converted = std::ptr::null_mut();
            check(ffi::duckdb_schema_from_arrow(connection, (&raw mut schema).cast(), &mut converted)).map_err(bad)?;
            let mut raw = std::ptr::null_mut();
            let made =
                check(ffi::duckdb_data_chunk_from_arrow(connection, (&raw mut array).cast(), converted, &mut raw));
            ffi::duckdb_destroy_arrow_converted_schema(&mut converted);
            made.map_err(bad)?;
            if self.types.is_empty() {
                self.types = (0..ffi::duckdb_data_chunk_get_column_count(raw))
                    .map(|i| {
                        let mut ty = ffi::duckdb_vector_get_column_type(ffi::duckdb_data_chunk_get_vector(raw, i));
                        let read = Type::read(ty);
                        ffi::duckdb_destroy_logical_type(&mut ty);
                        read
                    })
                    .collect();
            }
            let first = self.len();
            self.chunks.push(Chunk { raw, first, rows: batch.num_rows() });
        }
        Ok(())
    }

    /// How many sets there are.
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |chunk| chunk.first + chunk.rows)
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Binds set `row`.
    ///
    /// # Safety
    /// The statement is valid and used by no other thread meanwhile.
    pub(super) unsafe fn bind(&self, statement: ffi::duckdb_prepared_statement, row: usize) -> Result<(), ParamError> {
        let at = self.chunks.partition_point(|chunk| chunk.first + chunk.rows <= row);
        let chunk = &self.chunks[at];
        // SAFETY: the chunk has these types; the caller vouches for the statement.
        unsafe {
            let expected = ffi::duckdb_nparams(statement) as usize;
            if expected != self.types.len() {
                let sent = self.types.len();
                return Err(ParamError::new(format!(
                    "the statement takes {expected} parameters and {sent} were bound"
                )));
            }
            let view = ChunkView::of_any(self.types.iter(), chunk.raw);
            for (index, column) in (1..).zip(&view.columns) {
                let value = value::from_row(column, row - chunk.first)?;
                if ffi::duckdb_bind_value(statement, index, value.raw()) != ffi::DuckDBSuccess {
                    return Err(ParamError::new(format!("parameter `${index}`: the value can't be bound")));
                }
            }
        }
        Ok(())
    }
}

/// What an error of DuckDB's says, if it is one.
unsafe fn check(mut error: ffi::duckdb_error_data) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's handle is valid and ours; the message belongs to it.
    unsafe {
        let failed = ffi::duckdb_error_data_has_error(error);
        let message = ffi::duckdb_error_data_message(error);
        let text = if failed && !message.is_null() {
            Err(std::ffi::CStr::from_ptr(message).to_string_lossy().into_owned())
        } else {
            Ok(())
        };
        ffi::duckdb_destroy_error_data(&mut error);
        text
    }
}
