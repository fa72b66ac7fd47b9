//! Results and chunks. A streaming result is a running query: it holds its transaction until it is drained, or dropped and followed
//! by another statement on its connection.

use std::{
    ffi::CStr,
    sync::{Arc, atomic::Ordering},
};

use libduckdb_sys as ffi;

use super::{DuckError, RawConnection};

/// What a statement gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultKind {
    /// Rows.
    Rows,
    /// One row with the number of changed rows.
    Changes,
    /// Nothing.
    Nothing,
}

/// The rows of a statement, fetched chunk by chunk.
pub struct ResultSet {
    raw: ffi::duckdb_result,
    ended: bool,
    connection: Arc<RawConnection>,
}

// SAFETY: used by one thread at a time, together with its connection.
unsafe impl Send for ResultSet {}

impl Drop for ResultSet {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_result(&mut self.raw) };
        if !self.ended {
            self.connection.abandoned.store(true, Ordering::Relaxed);
        }
    }
}

impl ResultSet {
    /// Takes over what an execute call filled.
    ///
    /// # Safety
    /// `raw` was filled by an execute call on `connection` that returned `state`.
    pub(super) unsafe fn adopt(
        raw: ffi::duckdb_result,
        state: ffi::duckdb_state,
        connection: Arc<RawConnection>,
    ) -> Result<Self, DuckError> {
        let mut result = Self { raw, ended: true, connection };
        if state == ffi::DuckDBSuccess {
            // SAFETY: the result is valid; the call copies a plain struct.
            result.ended = !unsafe { ffi::duckdb_result_is_streaming(raw) };
            return Ok(result);
        }
        Err(result.error().unwrap_or_else(|| DuckError::new("INTERNAL Error: DuckDB gave no message")))
    }

    /// The raw handle, for column names and types. Valid as long as `self`.
    pub fn raw(&mut self) -> &mut ffi::duckdb_result {
        &mut self.raw
    }

    /// What the statement gives back.
    pub fn kind(&self) -> ResultKind {
        // SAFETY: the result is valid; the call copies a plain struct.
        match unsafe { ffi::duckdb_result_return_type(self.raw) } {
            ffi::duckdb_result_type_DUCKDB_RESULT_TYPE_CHANGED_ROWS => ResultKind::Changes,
            ffi::duckdb_result_type_DUCKDB_RESULT_TYPE_NOTHING => ResultKind::Nothing,
            _ => ResultKind::Rows,
        }
    }

    /// How many rows the statement changed.
    pub fn changed(&mut self) -> u64 {
        // SAFETY: the result is valid.
        unsafe { ffi::duckdb_rows_changed(&mut self.raw) }
    }

    /// The next rows; `None` only at the true end.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, DuckError> {
        loop {
            // SAFETY: the result is valid; a null chunk is an end or an error.
            let raw = unsafe { ffi::duckdb_fetch_chunk(self.raw) };
            if raw.is_null() {
                self.ended = true;
                return match self.error() {
                    Some(error) => Err(error),
                    None => Ok(None),
                };
            }
            let chunk = Chunk(raw);
            if chunk.rows() > 0 {
                return Ok(Some(chunk));
            }
        }
    }

    fn error(&mut self) -> Option<DuckError> {
        // SAFETY: the message belongs to the result.
        unsafe {
            let message = ffi::duckdb_result_error(&mut self.raw);
            if message.is_null() || CStr::from_ptr(message).is_empty() {
                return None;
            }
            Some(DuckError::from_c(message))
        }
    }
}

/// Up to 2048 rows.
pub struct Chunk(ffi::duckdb_data_chunk);

// SAFETY: owned plain memory.
unsafe impl Send for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_data_chunk(&mut self.0) };
    }
}

impl Chunk {
    /// The raw handle, for encoders. Valid as long as `self`.
    pub fn raw(&self) -> ffi::duckdb_data_chunk {
        self.0
    }

    /// How many rows.
    pub fn rows(&self) -> u64 {
        // SAFETY: the chunk is valid.
        unsafe { ffi::duckdb_data_chunk_get_size(self.0) }
    }

    /// The number in its first row and column, of a result that tells how many rows were changed.
    pub fn first_count(&self) -> u64 {
        // SAFETY: such a result has one column of BIGINT, and the chunk has a row.
        let count = unsafe { *ffi::duckdb_vector_get_data(ffi::duckdb_data_chunk_get_vector(self.0, 0)).cast::<i64>() };
        u64::try_from(count).unwrap_or(0)
    }

    /// Appends the first column, which must be text; NULL becomes an empty string.
    pub(super) fn first_column_text(&self, out: &mut Vec<String>) {
        // SAFETY: the vector belongs to the chunk, holds `rows` strings, and its validity mask covers them.
        unsafe {
            let vector = ffi::duckdb_data_chunk_get_vector(self.0, 0);
            let mut kind = ffi::duckdb_vector_get_column_type(vector);
            let is_text = ffi::duckdb_get_type_id(kind) == ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR;
            ffi::duckdb_destroy_logical_type(&mut kind);
            assert!(is_text, "the engine's own queries select text");
            let data = ffi::duckdb_vector_get_data(vector).cast::<ffi::duckdb_string_t>();
            let validity = ffi::duckdb_vector_get_validity(vector);
            for row in 0..self.rows() {
                if !validity.is_null() && !ffi::duckdb_validity_row_is_valid(validity, row) {
                    out.push(String::new());
                    continue;
                }
                let mut text = *data.add(row as usize);
                let bytes = std::slice::from_raw_parts(
                    ffi::duckdb_string_t_data(&mut text).cast::<u8>(),
                    ffi::duckdb_string_t_length(text) as usize,
                );
                out.push(String::from_utf8_lossy(bytes).into_owned());
            }
        }
    }
}
