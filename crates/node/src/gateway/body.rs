//! Bodies on their way through: a stored object as a stream, an upload as pieces of bounded size.
//!
//! Never holds more than one piece of an object. A body that breaks off ends in an error, never as if it were whole.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use object_store::{GetResult, PutPayload, PutPayloadMut};
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3ErrorCode, S3Result};

use super::traffic::{Direction, Traffic};

/// The bytes of a stored object, counted as they pass.
pub(super) fn stored(got: GetResult, traffic: Arc<Traffic>) -> StreamingBlob {
    let frames = got
        .into_stream()
        .inspect_ok(move |bytes| traffic.add(Direction::Read, bytes.len()))
        .map_ok(Frame::data)
        .map_err(io::Error::from);
    StreamingBlob::from(Body::http_body_unsync(StreamBody::new(frames)))
}

/// An upload's body, taken in pieces.
pub(super) struct Upload {
    body: Option<StreamingBlob>,
    spare: Bytes,
    traffic: Arc<Traffic>,
}

impl Upload {
    pub(super) fn new(body: Option<StreamingBlob>, traffic: Arc<Traffic>) -> Self {
        Self { body, spare: Bytes::new(), traffic }
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
}
