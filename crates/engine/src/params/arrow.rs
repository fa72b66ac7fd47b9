//! Parameters that come as Arrow: each row is a set of them, in the order of the columns.
//!
//! They are read and turned into DuckDB's vectors as the rows of a load are; a row's values are then bound one by one.

use std::sync::Arc;

use libduckdb_sys as ffi;

use super::ParamError;
use crate::{
    duck::Connection,
    failure::Failure,
    format::{types::Type, value, view::ChunkView},
    load::{
        ipc::IpcReader,
        scan::{Converted, Source},
        spool::Spool,
    },
    wire::Code,
};

/// Most rows of one request.
const MAX_ROWS: usize = 1_000_000;
/// Most bytes of their columns with runs and dictionaries.
const MAX_EXPANDED: u64 = 48 << 20;
/// Rows that are turned into vectors at once.
const STEP: usize = 2048;

/// Rows of parameters as DuckDB's own chunks.
pub struct Rows {
    types: Vec<Type>,
    chunks: Vec<Chunk>,
}

struct Chunk {
    converted: Converted,
    /// The number of its first row.
    first: usize,
    rows: usize,
}

impl Rows {
    /// Reads an IPC stream. Large batches pass through `spool`.
    pub fn read(connection: &Connection, stream: &[u8], spool: Arc<Spool>) -> Result<Self, Failure> {
        let mut reader = IpcReader::open(stream, spool)?;
        let source = Source::new(connection, reader.schema())?;
        let types = source.describe().into_iter().map(|(_, ty)| ty).collect();
        let mut rows = Self { types, chunks: Vec::new() };
        let mut left = MAX_EXPANDED;
        while let Some((batch, _)) = reader.next_batch()? {
            if rows.len() + batch.num_rows() > MAX_ROWS {
                return Err(Failure::new(
                    Code::TooLarge,
                    format!("more than {MAX_ROWS} sets of parameters in one request"),
                )
                .hint("load them into a table, and use that"));
            }
            // All of them are kept written out.
            left -= source.shape().expanded(&batch, true, left)?;
            let batch = source.shape().stage(&batch)?;
            for start in (0..batch.num_rows()).step_by(STEP) {
                let part = batch.slice(start, STEP.min(batch.num_rows() - start));
                let first = rows.len();
                rows.chunks.push(Chunk { converted: source.chunk(&part)?, first, rows: part.num_rows() });
            }
        }
        Ok(rows)
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
            let view = ChunkView::of_any(self.types.iter(), chunk.converted.raw());
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
