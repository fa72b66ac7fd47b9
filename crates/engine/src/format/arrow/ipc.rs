//! Messages of the Arrow IPC stream: metadata in front, then the body's buffers as they are.
//!
//! Formats: <https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc>, and for Flight the message
//! `FlightData` of <https://github.com/apache/arrow/blob/main/format/Flight.proto> behind gRPC's five bytes. Buffers of 8 KiB and
//! more leave as pieces of their own, never copied; the small ones and all metadata are gathered.

use arrow_ipc::{
    Buffer, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder,
    convert::IpcSchemaEncoder, writer::DictionaryTracker,
};
use arrow_schema::Schema;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};

use crate::format::buffer::Pool;

/// Every buffer of a body starts at a multiple of this.
const ALIGNMENT: usize = 64;
/// Buffers below this are copied together.
const SMALL_BYTES: usize = 8 * 1024;

/// The columns of one batch: nodes and buffers in the order of the schema, depth first.
#[derive(Default)]
pub struct Body {
    nodes: Vec<FieldNode>,
    buffers: Vec<Vec<u8>>,
}

impl Body {
    /// Adds a column of so many rows.
    pub fn node(&mut self, rows: usize, nulls: usize) {
        self.nodes.push(FieldNode::new(rows as i64, nulls as i64));
    }

    /// Adds a buffer of the column that was added last.
    pub fn buffer(&mut self, bytes: Vec<u8>) {
        self.buffers.push(bytes);
    }
}

/// What stands around a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The encapsulated form of a stream or file.
    Stream,
    /// `FlightData` as a gRPC message.
    Flight,
}

/// `FlightData.data_header`: field 2, bytes.
const DATA_HEADER: u64 = 2 << 3 | 2;
/// `FlightData.data_body`: field 1000, bytes.
const DATA_BODY: u64 = 1000 << 3 | 2;

/// The stream as pieces.
pub struct Output {
    pool: Pool,
    framing: Framing,
    small: Vec<u8>,
    ready: Vec<Bytes>,
}

impl Output {
    pub fn new(pool: Pool, framing: Framing) -> Output {
        Output { pool, framing, small: Vec::new(), ready: Vec::new() }
    }

    /// Writes the schema's message.
    pub fn schema(&mut self, schema: &Schema) {
        let mut builder = FlatBufferBuilder::new();
        let mut tracker = DictionaryTracker::new(true);
        let mut encoder = IpcSchemaEncoder::new().with_dictionary_tracker(&mut tracker);
        let header = encoder.schema_to_fb_offset(&mut builder, schema).as_union_value();
        let metadata = finish(builder, MessageHeader::Schema, header, 0);
        self.message(&metadata, Vec::new());
    }

    /// Writes the values of the dictionary `id`; ids count ENUM columns in the order of the schema, depth first.
    pub fn dictionary(&mut self, id: i64, values: &[String]) {
        let mut offsets = vec![0u8; 4];
        let mut text = Vec::new();
        for value in values {
            text.extend_from_slice(value.as_bytes());
            let end = i32::try_from(text.len()).expect("the names of an ENUM fit 2 GiB");
            offsets.extend_from_slice(&end.to_le_bytes());
        }
        let mut body = Body::default();
        body.node(values.len(), 0);
        body.buffer(Vec::new());
        body.buffer(offsets);
        body.buffer(text);
        let mut builder = FlatBufferBuilder::new();
        let (data, length) = record_batch(&mut builder, values.len(), &body);
        let mut dictionary = DictionaryBatchBuilder::new(&mut builder);
        dictionary.add_id(id);
        dictionary.add_data(data);
        let header = dictionary.finish().as_union_value();
        let metadata = finish(builder, MessageHeader::DictionaryBatch, header, length);
        self.message(&metadata, body.buffers);
    }

    /// Writes a batch.
    pub fn batch(&mut self, rows: usize, body: Body) {
        let mut builder = FlatBufferBuilder::new();
        let (data, length) = record_batch(&mut builder, rows, &body);
        let metadata = finish(builder, MessageHeader::RecordBatch, data.as_union_value(), length);
        self.message(&metadata, body.buffers);
    }

    /// Writes the mark that ends a whole stream; gRPC has its own.
    pub fn end(&mut self) {
        if self.framing == Framing::Stream {
            self.small.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        }
    }

    /// The pieces so far.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.close_small();
        std::mem::take(&mut self.ready)
    }

    fn message(&mut self, metadata: &[u8], buffers: Vec<Vec<u8>>) {
        let padded = metadata.len().next_multiple_of(8);
        let body: usize = buffers.iter().map(|buffer| buffer.len().next_multiple_of(ALIGNMENT)).sum();
        match self.framing {
            Framing::Stream => {
                self.small.extend_from_slice(&[0xff; 4]);
                let length = i32::try_from(padded).expect("a message's metadata is small");
                self.small.extend_from_slice(&length.to_le_bytes());
            }
            Framing::Flight => self.flight_prefix(padded, body),
        }
        self.small.extend_from_slice(metadata);
        self.small.resize(self.small.len() + padded - metadata.len(), 0);
        if self.framing == Framing::Flight && body > 0 {
            varint(DATA_BODY, &mut self.small);
            varint(body as u64, &mut self.small);
        }
        for mut buffer in buffers {
            let padded = buffer.len().next_multiple_of(ALIGNMENT);
            if buffer.len() < SMALL_BYTES {
                self.small.extend_from_slice(&buffer);
                self.small.resize(self.small.len() + padded - buffer.len(), 0);
            } else {
                buffer.resize(padded, 0);
                self.close_small();
                self.ready.push(self.pool.freeze(buffer));
            }
        }
    }

    /// Everything in front of the metadata.
    fn flight_prefix(&mut self, metadata: usize, body: usize) {
        let field = |key: u64, length: usize| varint_bytes(key) + varint_bytes(length as u64) + length;
        let message = field(DATA_HEADER, metadata) + if body > 0 { field(DATA_BODY, body) } else { 0 };
        self.small.push(0);
        let length = u32::try_from(message).expect("a batch is far below 4 GiB");
        self.small.extend_from_slice(&length.to_be_bytes());
        varint(DATA_HEADER, &mut self.small);
        varint(metadata as u64, &mut self.small);
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.ready.push(Bytes::from(std::mem::take(&mut self.small)));
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn record_batch<'a>(
    builder: &mut FlatBufferBuilder<'a>,
    rows: usize,
    body: &Body,
) -> (WIPOffset<arrow_ipc::RecordBatch<'a>>, usize) {
    let mut offset = 0;
    let mut buffers = Vec::with_capacity(body.buffers.len());
    for buffer in &body.buffers {
        buffers.push(Buffer::new(offset as i64, buffer.len() as i64));
        offset += buffer.len().next_multiple_of(ALIGNMENT);
    }
    let buffers = builder.create_vector(&buffers);
    let nodes = builder.create_vector(&body.nodes);
    let mut batch = RecordBatchBuilder::new(builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    (batch.finish(), offset)
}

fn finish(
    mut builder: FlatBufferBuilder<'_>,
    header_type: MessageHeader,
    header: WIPOffset<UnionWIPOffset>,
    body_length: usize,
) -> Vec<u8> {
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(header_type);
    message.add_bodyLength(body_length as i64);
    message.add_header(header);
    let message = message.finish();
    builder.finish(message, None);
    builder.finished_data().to_vec()
}
