//! Bodies on their way through: a stored object as a stream, an upload as pieces of bounded size.
//!
//! Never holds more than one piece of an object. A body that breaks off ends in an error, never as if it were whole.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use object_store::{GetResult, GetResultPayload, PutPayload, PutPayloadMut};
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3ErrorCode, S3Result};

use super::traffic::{Direction, Traffic};

/// How much of a file is read at once: few enough system calls, small enough to start early.
const READ_BYTES: u64 = 512 * 1024;

/// The bytes of a stored object, counted as they pass.
pub(super) fn stored(got: GetResult, traffic: Arc<Traffic>) -> StreamingBlob {
    let range = got.range.clone();
    let stream: BoxStream<'static, io::Result<Bytes>> = match got.payload {
        GetResultPayload::File(file, _) => file_pieces(file, range).boxed(),
        GetResultPayload::Stream(stream) => stream.map_err(io::Error::from).boxed(),
    };
    let frames = stream
        .inspect_ok(move |bytes| traffic.add(Direction::Read, bytes.len()))
        .map_ok(Frame::data);
    StreamingBlob::from(Body::http_body_unsync(StreamBody::new(frames)))
}

fn file_pieces(file: File, range: Range<u64>) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let file = Arc::new(file);
    futures::stream::try_unfold(range.start, move |start| {
        let (file, end) = (file.clone(), range.end.min(start + READ_BYTES));
        async move {
            if start >= end {
                return Ok(None);
            }
            let read = tokio::task::spawn_blocking(move || read_at(&file, start..end)).await;
            Ok(Some((read.map_err(io::Error::other)??, end)))
        }
    })
}

fn read_at(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut buffer = BytesMut::zeroed(length);
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(buffer.freeze())
}

/// An upload's body, taken in pieces.
pub(super) struct Upload {
    body: Option<StreamingBlob>,
    spare: Bytes,
    traffic: Arc<Traffic>,
}

impl Upload {
    pub(super) fn new(body: Option<StreamingBlob>, traffic: Arc<Traffic>) -> Self {
        Self {
            body,
            spare: Bytes::new(),
            traffic,
        }
    }

    /// The next piece, of `limit` bytes unless the body ends with it. Empty once the body has ended.
    pub(super) async fn piece(&mut self, limit: usize) -> S3Result<PutPayload> {
        let mut piece = PutPayloadMut::new();
        loop {
            let room = limit - piece.content_length();
            let head = self.spare.split_to(room.min(self.spare.len()));
            if !head.is_empty() {
                piece.push(head);
            }
            if piece.content_length() >= limit {
                return Ok(piece.freeze());
            }
            match self.next().await? {
                Some(bytes) => self.spare = bytes,
                None => return Ok(piece.freeze()),
            }
        }
    }

    async fn next(&mut self) -> S3Result<Option<Bytes>> {
        let Some(body) = &mut self.body else { return Ok(None) };
        match body.next().await {
            Some(Ok(bytes)) => {
                self.traffic.add(Direction::Write, bytes.len());
                Ok(Some(bytes))
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "an upload broke off");
                Err(S3Error::with_message(S3ErrorCode::IncompleteBody, "the body broke off or is not what was signed"))
            }
            None => {
                self.body = None;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(chunks: &[&'static str]) -> Upload {
        let chunks: Vec<_> = chunks.iter().map(|c| Ok::<_, io::Error>(Bytes::from_static(c.as_bytes()))).collect();
        Upload::new(Some(StreamingBlob::wrap(futures::stream::iter(chunks))), Arc::default())
    }

    #[tokio::test]
    async fn pieces_have_the_asked_size_whatever_the_chunks() {
        let mut upload = upload(&["a", "bcdefgh", "", "ij"]);
        let mut sizes = Vec::new();
        loop {
            let piece = upload.piece(4).await.expect("whole");
            if piece.content_length() == 0 {
                break;
            }
            sizes.push(Bytes::from(piece));
        }
        assert_eq!(sizes, ["abcd", "efgh", "ij"]);
        assert_eq!(upload.traffic.get(Direction::Write), 10);
    }

    #[tokio::test]
    async fn a_file_streams_exactly_its_range() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(&path, &bytes).expect("written");
        let file = File::open(&path).expect("open");
        let read: Vec<Bytes> = file_pieces(file, 3..1_500_001).try_collect().await.expect("read");
        assert_eq!(read.concat(), bytes[3..1_500_001]);
    }
}
