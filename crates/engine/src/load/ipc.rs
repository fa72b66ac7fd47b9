//! An Arrow IPC stream from bytes that nobody vouches for.
//!
//! `arrow-ipc` decodes and validates a message; here its frame is read, and whatever in it would make the decoder allocate or reach
//! beyond the message is refused first. **Invariants:** no length in the stream makes an allocation before its bytes are here; a batch
//! that comes out is valid in every offset, index and text; a stream without its end mark is an error.

use std::{collections::HashMap, io::Read, sync::Arc};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_ipc::{Message, MessageHeader, reader, root_as_message};
use arrow_schema::{ArrowError, SchemaRef};

use super::spool::Spool;
use crate::{failure::Failure, wire::Code};

/// Stands before each message.
const CONTINUATION_MARKER: [u8; 4] = [0xff; 4];
/// Longest message head: schemas of many columns are long.
const MAX_HEAD_BYTES: usize = 32 << 20;
/// Bodies above this wait in a file: many writers make one batch of a whole table.
const MEMORY_BYTES: usize = 32 << 20;
/// Read at once of a body whose length is only claimed.
const STEP_BYTES: usize = 4 << 20;

/// Reads one stream.
pub struct IpcReader<R> {
    reader: R,
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
    spool: Arc<Spool>,
    ended: bool,
}

impl<R: Read> IpcReader<R> {
    /// Reads the schema. Large batches are kept in `spool`.
    pub fn open(mut reader: R, spool: Arc<Spool>) -> Result<Self, Failure> {
        let Some(head) = head(&mut reader)? else { return Err(invalid("it has no schema")) };
        let message = message(&head)?;
        let Some(schema) = message.header_as_schema() else { return Err(invalid("it does not start with a schema")) };
        if message.bodyLength() != 0 {
            return Err(invalid("its schema has a body"));
        }
        let schema = guarded(|| Ok(arrow_ipc::convert::fb_to_schema(schema)))?;
        Ok(Self { reader, schema: Arc::new(schema), dictionaries: HashMap::new(), spool, ended: false })
    }

    /// The schema.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next batch and its bytes; `None` at the end mark.
    pub fn next_batch(&mut self) -> Result<Option<(RecordBatch, usize)>, Failure> {
        while !self.ended {
            let Some(head) = head(&mut self.reader)? else {
                self.ended = true;
                break;
            };
            let message = message(&head)?;
            let body = self.body(message.bodyLength())?;
            match message.header_type() {
                MessageHeader::RecordBatch => {
                    let Some(batch) = message.header_as_record_batch() else { return Err(invalid("a head is empty")) };
                    check(&batch, body.len())?;
                    let read = || {
                        reader::read_record_batch(
                            &body,
                            batch,
                            self.schema.clone(),
                            &self.dictionaries,
                            None,
                            &message.version(),
                        )
                    };
                    return guarded(read).map(|batch| Some((batch, body.len())));
                }
                MessageHeader::DictionaryBatch => {
                    let batch = message.header_as_dictionary_batch();
                    let Some((batch, values)) = batch.and_then(|batch| batch.data().map(|data| (batch, data))) else {
                        return Err(invalid("a dictionary is empty"));
                    };
                    check(&values, body.len())?;
                    let (schema, dictionaries) = (&self.schema, &mut self.dictionaries);
                    guarded(|| reader::read_dictionary(&body, batch, schema, dictionaries, &message.version()))?;
                }
                _ => return Err(invalid("a message is neither a batch nor a dictionary")),
            }
        }
        Ok(None)
    }

    /// What is behind the stream.
    pub fn into_rest(self) -> R {
        self.reader
    }

    fn body(&mut self, claimed: i64) -> Result<Buffer, Failure> {
        let length = usize::try_from(claimed).map_err(|_| invalid("a body's length is negative"))?;
        if length > MEMORY_BYTES {
            let mut file = self.spool.create(".batch")?;
            let mut limited = (&mut self.reader).take(length as u64);
            file.fill(&mut limited, |_| Ok(()))?;
            return match limited.limit() {
                0 => file.into_buffer(),
                _ => Err(cut()),
            };
        }
        let mut body = MutableBuffer::with_capacity(length.min(STEP_BYTES));
        while body.len() < length {
            let from = body.len();
            body.resize(length.min(from + STEP_BYTES.max(from)), 0);
            read_exact(&mut self.reader, &mut body.as_slice_mut()[from..])?;
        }
        Ok(body.into())
    }
}

/// The head of the next message; `None` at the end mark.
fn head(reader: &mut impl Read) -> Result<Option<Vec<u8>>, Failure> {
    let mut length = [0; 4];
    let mut read = |bytes: &mut [u8]| read_exact(reader, bytes);
    read(&mut length)?;
    // Streams of old writers have no marker.
    if length == CONTINUATION_MARKER {
        read(&mut length)?;
    }
    let length = u32::from_le_bytes(length) as usize;
    if length == 0 {
        return Ok(None);
    }
    if length > MAX_HEAD_BYTES {
        return Err(invalid("a message's head is too long, or this is no Arrow IPC stream"));
    }
    let mut head = Vec::new();
    while head.len() < length {
        let from = head.len();
        head.resize(length.min(from + STEP_BYTES), 0);
        read(&mut head[from..])?;
    }
    Ok(Some(head))
}

fn read_exact(reader: &mut impl Read, bytes: &mut [u8]) -> Result<(), Failure> {
    reader.read_exact(bytes).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => cut(),
        _ => super::read_failure(error),
    })
}

fn cut() -> Failure {
    invalid("it stops before its end mark")
        .hint("a writer that is closed puts the mark there; without it nobody can tell that rows are missing")
}

fn message(head: &[u8]) -> Result<Message<'_>, Failure> {
    root_as_message(head).map_err(|_| invalid("a message's head can't be read"))
}

/// Refuses numbers that the decoder would take at their word.
fn check(batch: &arrow_ipc::RecordBatch<'_>, body_bytes: usize) -> Result<(), Failure> {
    const MOST_ROWS: i64 = i32::MAX as i64;
    if batch.compression().is_some() {
        return Err(invalid("its buffers are compressed")
            .hint("write it without compression, and compress the whole body with `Content-Encoding: zstd`"));
    }
    let body_bytes = i64::try_from(body_bytes).unwrap_or(i64::MAX);
    let within = |number: i64, most: i64| (0..=most).contains(&number);
    let buffers = batch.buffers().into_iter().flatten();
    let mut places = buffers.map(|buffer| (buffer.offset(), buffer.length()));
    let nodes = batch.nodes().into_iter().flatten();
    let mut counts = nodes.flat_map(|node| [node.length(), node.null_count()]);
    let mut variadic = batch.variadicBufferCounts().into_iter().flatten();
    let buffers = batch.buffers().map_or(0, |buffers| buffers.len() as i64);
    let fine = within(batch.length(), MOST_ROWS)
        && counts.all(|count| within(count, MOST_ROWS))
        && variadic.all(|count| within(count, buffers))
        && places.all(|(offset, length)| within(offset, body_bytes) && within(length, body_bytes - offset));
    if fine { Ok(()) } else { Err(invalid("a batch's head does not fit its body")) }
}

/// The decoder's own checks end in errors or panics.
fn guarded<T>(decode: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, Failure> {
    super::guarded(|| decode().map_err(|error| invalid(&format!("it can't be decoded: {error}"))))
}

fn invalid(why: &str) -> Failure {
    Failure::new(Code::Invalid, format!("the body is not a whole Arrow IPC stream: {why}"))
}
