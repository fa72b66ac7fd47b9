//! Batches of a stream, collected into groups that one INSERT takes.
//!
//! A group has whole row groups where memory allows: then each of DuckDB's threads gets one, and writes it into the file as it is.

use std::{io::Read, sync::Arc};

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;

use super::{
    ipc::IpcReader,
    scan::{Group, ROW_GROUP, Source},
};
use crate::failure::Failure;

/// Batches below this are put together: DuckDB works on 2,048 rows at once.
const SMALL_ROWS: usize = 8_192;

/// How large a group may get.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows, but for the last batch that does not fit.
    pub rows: usize,
    /// Bytes; a group has at least one batch.
    pub bytes: usize,
}

/// Groups beside DuckDB's own memory: one that is inserted and one that is read, of each load that runs.
const MAX_BYTES: u64 = 48 << 20;
const MIN_BYTES: u64 = 8 << 20;

impl Limits {
    /// For an engine with this much memory and so many threads.
    pub fn of(memory_limit_bytes: u64, threads: u32) -> Self {
        let bytes = (memory_limit_bytes / 12).clamp(MIN_BYTES, MAX_BYTES);
        Self { rows: ROW_GROUP * threads.clamp(1, 16) as usize, bytes: bytes as usize }
    }
}

/// Makes groups of a stream.
pub struct Groups<R> {
    reader: IpcReader<R>,
    source: Arc<Source>,
    limits: Limits,
    left: Option<(RecordBatch, usize)>,
    ended: bool,
}

impl<R: Read> Groups<R> {
    /// Of the batches that `reader` gives.
    pub fn new(reader: IpcReader<R>, source: Arc<Source>, limits: Limits) -> Self {
        Self { reader, source, limits, left: None, ended: false }
    }

    /// The next group, and whether it is the last; `None` behind that. The first group is never missing, but may have no rows.
    pub fn next_group(&mut self) -> Result<Option<(Group, bool)>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0);
        let mut small = Vec::new();
        let last = loop {
            let Some((batch, size)) = self.next_batch()? else { break true };
            let room = self.limits.rows - rows;
            let (batch, size) = match batch.num_rows() > room {
                true => {
                    let rest = size - size / batch.num_rows() * room;
                    self.left = Some((batch.slice(room, batch.num_rows() - room), rest));
                    (batch.slice(0, room), size - rest)
                }
                false => (batch, size),
            };
            (rows, bytes) = (rows + batch.num_rows(), bytes + size);
            match batch.num_rows() < SMALL_ROWS {
                true => small.push(batch),
                false => {
                    join(&mut small, &mut batches)?;
                    batches.push(batch);
                }
            }
            if rows >= self.limits.rows || bytes >= self.limits.bytes {
                break false;
            }
        };
        join(&mut small, &mut batches)?;
        self.ended = last;
        Ok(Some((Group::new(batches), last)))
    }

    /// The reader, at the end of the stream.
    pub fn into_reader(self) -> IpcReader<R> {
        self.reader
    }

    fn next_batch(&mut self) -> Result<Option<(RecordBatch, usize)>, Failure> {
        if let Some(left) = self.left.take() {
            return Ok(Some(left));
        }
        match self.reader.next_batch()? {
            Some((batch, size)) => {
                let shape = self.source.shape();
                let more = shape.expanded(&batch, false, self.limits.bytes as u64)?;
                Ok(Some((shape.stage(&batch)?, size + more as usize)))
            }
            None => Ok(None),
        }
    }
}

fn join(small: &mut Vec<RecordBatch>, batches: &mut Vec<RecordBatch>) -> Result<(), Failure> {
    match small.as_slice() {
        [] => {}
        [one] => batches.push(one.clone()),
        [first, ..] => {
            let joined = concat_batches(first.schema_ref(), small.iter());
            batches.push(joined.map_err(|error| {
                Failure::new(crate::wire::Code::Invalid, format!("the body's batches don't go together: {error}"))
            })?);
        }
    }
    small.clear();
    Ok(())
}
