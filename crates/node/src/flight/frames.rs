//! Frames: gRPC's (five bytes before each message) and Arrow's IPC stream. Pure functions on bytes; nothing of a batch is decoded.

use arrow_array::RecordBatch;
use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use arrow_schema::Schema;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::{ApiError, Code};

/// A gRPC message's prefix: a flag and the length.
pub(super) const PREFIX_BYTES: usize = 5;
/// Begins each message of an IPC stream.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Ends an IPC stream.
pub(super) const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// A message and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// The first message of a gRPC body and what follows it; none while there is too little.
pub(super) fn first_message(body: &[u8]) -> Result<Option<Split<'_>>, ApiError> {
    let Some((prefix, rest)) = body.split_at_checked(PREFIX_BYTES) else { return Ok(None) };
    if prefix[0] != 0 {
        return Err(ApiError::new(Code::Invalid, "compressed gRPC messages are not understood"));
    }
    let bytes = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    Ok(rest.split_at_checked(bytes))
}

/// The only message of a gRPC request.
pub(super) fn only_message<M: Message + Default>(body: &[u8]) -> Result<M, ApiError> {
    let bad = || ApiError::new(Code::Invalid, "the request's message can't be read");
    match first_message(body)? {
        Some((message, [])) => M::decode(message).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

/// A message as gRPC sends it.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + bytes);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    // A buffer that grows takes any message.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// The schema message of a stream that begins so, in its encapsulated form; none while there is too little of it.
pub(super) fn schema_of(stream: &[u8]) -> Result<Option<Bytes>, ApiError> {
    let Some((message, _)) = first_message(stream)? else { return Ok(None) };
    let data = FlightData::decode(message).map_err(|error| ApiError::internal("an engine's frame is read", error))?;
    Ok(Some(encapsulated(&data.data_header)))
}

/// An IPC message's metadata with its marker and length, padded to eight bytes.
pub(super) fn encapsulated(header: &[u8]) -> Bytes {
    let padded = header.len().next_multiple_of(8);
    let mut bytes = BytesMut::with_capacity(8 + padded);
    bytes.put_slice(&CONTINUATION);
    bytes.put_u32_le(u32::try_from(padded).unwrap_or(u32::MAX));
    bytes.put_slice(header);
    bytes.put_bytes(0, padded - header.len());
    bytes.freeze()
}

/// A client's message as pieces of an IPC stream. Its header is looked at only for the length that it promises: one that lies would
/// make the rest of the stream something else.
pub(super) fn ipc_pieces(data: FlightData) -> Result<Vec<Bytes>, ApiError> {
    let bad = |what: &str| ApiError::new(Code::Invalid, format!("the stream holds {what}"));
    if data.data_header.is_empty() {
        return match data.data_body.is_empty() {
            // Only metadata, which means nothing here.
            true => Ok(Vec::new()),
            false => Err(bad("a message without a header")),
        };
    }
    let header = arrow_ipc::root_as_message(&data.data_header).map_err(|_| bad("a message that is not Arrow's"))?;
    if u64::try_from(header.bodyLength()).ok() != Some(data.data_body.len() as u64) {
        return Err(bad("a message whose body is not as long as it says"));
    }
    let mut pieces = vec![encapsulated(&data.data_header)];
    if !data.data_body.is_empty() {
        pieces.push(data.data_body);
    }
    Ok(pieces)
}

/// A schema in its encapsulated form.
pub(super) fn schema_message(schema: &Schema) -> Bytes {
    encapsulated(&FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).data_header)
}

/// A small table as the frames of a stream.
pub(super) fn table(batch: &RecordBatch) -> Result<Bytes, ApiError> {
    let failed = |error| ApiError::internal("a table of metadata is encoded", error);
    let options = IpcWriteOptions::default();
    let mut all = BytesMut::new();
    all.extend_from_slice(&framed(&FlightData::from(SchemaAsIpc::new(&batch.schema(), &options))));
    if batch.num_rows() > 0 {
        let mut tracker = DictionaryTracker::new(false);
        let (dictionaries, rows) = IpcDataGenerator::default()
            .encode(batch, &mut tracker, &options, &mut Default::default())
            .map_err(failed)?;
        for part in dictionaries.into_iter().chain([rows]) {
            all.extend_from_slice(&framed(&FlightData::from(part)));
        }
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_only_when_it_is_whole() {
        let frame = framed(&FlightData { app_metadata: Bytes::from_static(b"x"), ..Default::default() });
        for cut in 0..frame.len() {
            assert!(only_message::<FlightData>(&frame[..cut]).is_err(), "cut at {cut}");
        }
        assert!(only_message::<FlightData>(&frame).is_ok());
        assert!(only_message::<FlightData>(&[1, 0, 0, 0, 0]).is_err());
        assert!(only_message::<FlightData>(&[0, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn a_header_that_lies_about_its_body_is_refused() {
        let schema = Schema::empty();
        let mut data = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()));
        assert!(ipc_pieces(data.clone()).is_ok());
        data.data_body = Bytes::from_static(b"more");
        assert!(ipc_pieces(data).is_err());
        let rubbish = FlightData { data_header: Bytes::from_static(b"rubbish!"), ..Default::default() };
        assert!(ipc_pieces(rubbish).is_err());
    }
}
