//! The Arrow IPC stream of a result, written column by column from DuckDB's vectors into the buffers that go on the wire.
//!
//! There is no record batch in between: a chunk's values are copied once, into column buffers that grow until a batch is worth
//! sending, and those buffers are the message's body. The schema is that of DuckDB's own Arrow export where it loses nothing; where
//! that would lose (the offset of a TIMETZ), a column is text. Field metadata `tarn.duckdb_type` has the DuckDB type.

mod bits;
mod column;
mod ipc;
mod schema;

use std::time::Instant;

use bytes::Bytes;

use super::{Columns, EncodeError, MAX_AGE, buffer::Pool, view::View};
use column::Column;
pub use ipc::Framing;

/// A batch is sent when it has so many rows …
const BATCH_ROWS: usize = 120 * 1024;
/// … or so many bytes, or when its rows have waited for `MAX_AGE`.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Most string bytes in a batch: offsets are 32 bits wide.
const MAX_STRING_BYTES: usize = 1 << 30;
/// The same in a Flight message: a stock client takes 16 MB unless it is told to take more.
const MAX_FLIGHT_STRING_BYTES: usize = 8 << 20;

/// Writes one stream.
pub struct Writer {
    pool: Pool,
    columns: Vec<Column>,
    rows: usize,
    opened: Instant,
    most_string_bytes: usize,
    out: ipc::Output,
}

/// The schema of a result as an encapsulated message.
pub fn schema_message(columns: &Columns) -> Vec<u8> {
    let mut out = ipc::Output::new(Pool::default(), Framing::Stream);
    out.schema(&schema::schema(columns, &columns.unique_names()));
    out.take().concat()
}

impl Writer {
    /// A writer that has the schema (and the dictionaries of ENUM columns) ready.
    pub fn new(columns: &Columns, framing: Framing) -> Result<Writer, EncodeError> {
        let pool = Pool::default();
        let mut out = ipc::Output::new(pool.clone(), framing);
        let names = columns.unique_names();
        out.schema(&schema::schema(columns, &names));
        let mut dictionaries = Vec::new();
        let built: Vec<Column> = columns.types().map(|ty| Column::new(ty, &mut dictionaries)).collect();
        for (id, values) in (0..).zip(dictionaries) {
            out.dictionary(id, &values);
        }
        let most_string_bytes = match framing {
            Framing::Stream => MAX_STRING_BYTES,
            Framing::Flight => MAX_FLIGHT_STRING_BYTES,
        };
        Ok(Writer { pool, columns: built, rows: 0, opened: Instant::now(), most_string_bytes, out })
    }

    /// Adds the first `rows` rows of a chunk.
    pub fn push(&mut self, views: &[View<'_>], rows: usize) -> Result<(), EncodeError> {
        self.push_range(views, 0, rows)?;
        if self.rows >= BATCH_ROWS || self.bytes() >= BATCH_BYTES || self.rows > 0 && self.opened.elapsed() >= MAX_AGE {
            self.flush();
        }
        Ok(())
    }

    fn push_range(&mut self, views: &[View<'_>], start: usize, rows: usize) -> Result<(), EncodeError> {
        if rows == 0 {
            return Ok(());
        }
        // Rows with gigabytes of strings are cut to fit; everything ordinary goes in at once.
        let weight: usize = self.columns.iter().zip(views).map(|(column, view)| column.weight(view, start, rows)).sum();
        if weight + self.bytes() > self.most_string_bytes {
            self.flush();
            if weight > self.most_string_bytes && rows > 1 {
                self.push_range(views, start, rows / 2)?;
                return self.push_range(views, start + rows / 2, rows - rows / 2);
            }
            if weight > i32::MAX as usize {
                return Err(EncodeError::value("a row has more than 2 GiB of text; select less of it at once"));
            }
        }
        if self.rows == 0 {
            self.opened = Instant::now();
        }
        for (column, view) in self.columns.iter_mut().zip(views) {
            column.append(view, start, rows)?;
        }
        self.rows += rows;
        Ok(())
    }

    /// Closes the batch that is open, if it has rows.
    pub fn flush(&mut self) {
        if self.rows == 0 {
            return;
        }
        let mut body = ipc::Body::default();
        for column in &mut self.columns {
            column.finish(&mut body, &self.pool);
        }
        self.out.batch(self.rows, body);
        self.rows = 0;
    }

    /// Closes the stream.
    pub fn finish(&mut self) {
        self.flush();
        self.out.end();
    }

    /// The pieces that are ready.
    pub fn take_ready(&mut self) -> Vec<Bytes> {
        self.out.take()
    }

    fn bytes(&self) -> usize {
        self.columns.iter().map(Column::bytes).sum()
    }
}
