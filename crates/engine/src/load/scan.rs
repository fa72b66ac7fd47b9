//! The table function through which an INSERT reads Arrow batches: each of DuckDB's threads takes runs of rows, zero-copy where it can.
//!
//! `tarn_body('token')` gives the rows of the group that the source behind the token holds just now. All of a group is in memory before a
//! statement reads it, so no thread of DuckDB's ever waits for a client. A token is 128 random bits, known to the load alone, and the
//! gate refuses the function's name from everybody else.
//!
//! **Invariants:** a group outlives the statement that reads it, and what a slice was converted to outlives the chunk made of it:
//! DuckDB's vectors point into both. No panic crosses into DuckDB.

mod callbacks;
mod source;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arrow_array::RecordBatch;
use uuid::Uuid;

use crate::duck::{Connection, DuckError};

pub use source::{Converted, Source};

/// Name of the table function.
pub const FUNCTION: &str = "tarn_body";
/// Rows of a row group. Whole ones go straight into the file.
pub const ROW_GROUP: usize = 122_880;

/// The sources that statements may read just now, by token.
#[derive(Default)]
pub struct Sources(Mutex<HashMap<String, Arc<Source>>>);

/// A source that can be read under its token, until dropped.
pub struct Open<'a> {
    sources: &'a Sources,
    /// The source.
    pub source: Arc<Source>,
    token: String,
}

/// Batches that one statement reads, cut into runs.
pub struct Group {
    batches: Vec<RecordBatch>,
    runs: Vec<Vec<Piece>>,
    rows: usize,
}

/// Rows of one batch.
#[derive(Clone, Copy)]
struct Piece {
    batch: usize,
    start: usize,
    rows: usize,
}

impl Sources {
    /// Makes the function known to a DuckDB instance.
    pub fn register(self: &Arc<Self>, connection: &Connection) -> Result<(), DuckError> {
        callbacks::register(self.clone(), connection)
    }

    /// Makes `source` readable.
    pub fn open(&self, source: Source) -> Open<'_> {
        let (source, token) = (Arc::new(source), Uuid::new_v4().simple().to_string());
        self.lock().insert(token.clone(), source.clone());
        Open { sources: self, source, token }
    }

    fn find(&self, token: &str) -> Option<Arc<Source>> {
        self.lock().get(token).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Source>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open<'_> {
    /// The call that reads it, as SQL.
    pub fn call(&self) -> String {
        format!("{FUNCTION}('{}')", self.token)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.sources.lock().remove(&self.token);
    }
}

impl Group {
    /// All rows of `batches`, in runs of a row group.
    pub fn new(batches: Vec<RecordBatch>) -> Self {
        let mut runs = vec![Vec::new()];
        let (mut rows, mut room) = (0, ROW_GROUP);
        for (index, batch) in batches.iter().enumerate() {
            let mut start = 0;
            while start < batch.num_rows() {
                if room == 0 {
                    runs.push(Vec::new());
                    room = ROW_GROUP;
                }
                let take = room.min(batch.num_rows() - start);
                runs.last_mut().expect("never empty").push(Piece { batch: index, start, rows: take });
                (start, room, rows) = (start + take, room - take, rows + take);
            }
        }
        Self { batches, runs, rows }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int32Array, RecordBatch};

    use super::*;

    #[test]
    fn runs_are_row_groups_in_order_whatever_the_batches() {
        let batch = |rows: i32| {
            RecordBatch::try_from_iter([("a", Arc::new(Int32Array::from_iter_values(0..rows)) as _)]).expect("a batch")
        };
        let group = Group::new(vec![batch(100_000), batch(0), batch(300_000)]);
        let runs: Vec<usize> = group.runs.iter().map(|run| run.iter().map(|piece| piece.rows).sum()).collect();
        assert_eq!((group.rows(), runs), (400_000, vec![122_880, 122_880, 122_880, 31_360]));
        let places: Vec<_> = group.runs.concat().iter().map(|piece| (piece.batch, piece.start)).collect();
        assert!(places.is_sorted());
    }
}
