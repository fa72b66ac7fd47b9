//! A mart's files as of an earlier moment, as two objects that only the engine made for it sees.

use std::ops;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use replica::view::View;
use s3s::dto::{GetObjectOutput, HeadObjectOutput, Range, StreamingBlob, Timestamp};
use s3s::{Body, S3Error, S3ErrorCode, S3Result};

use super::errors;
use super::objects::etag;
use super::traffic::{Direction, Traffic};

/// The bucket's name; no tenant has one like it, since a bucket's template needs the tenant's name.
pub const BUCKET: &str = "tarn-past";
/// The database's key; its WAL is this with `.wal` appended.
pub const KEY: &str = "mart.db";
const WAL_KEY: &str = "mart.db.wal";
/// Bytes of one piece of an answer.
const PIECE: u64 = 1 << 20;

/// Whether that is one of the two.
pub(super) fn is_here(bucket: &str, key: &str) -> bool {
    bucket == BUCKET && matches!(key, KEY | WAL_KEY)
}

#[derive(Clone, Copy)]
enum File {
    Database,
    Wal,
}

fn file(view: &View, key: &str) -> S3Result<(File, u64)> {
    match key {
        KEY => Ok((File::Database, view.db_bytes())),
        WAL_KEY if view.wal_bytes() > 0 => Ok((File::Wal, view.wal_bytes())),
        _ => Err(S3Error::with_message(S3ErrorCode::NoSuchKey, "no such key")),
    }
}

pub(super) fn head(view: &View, key: &str) -> S3Result<HeadObjectOutput> {
    let (_, size) = file(view, key)?;
    Ok(HeadObjectOutput {
        accept_ranges: Some("bytes".into()),
        content_length: i64::try_from(size).ok(),
        content_type: Some("application/octet-stream".into()),
        e_tag: etag(Some(&view.position().to_string())),
        last_modified: Some(Timestamp::from(SystemTime::UNIX_EPOCH)),
        ..HeadObjectOutput::default()
    })
}

pub(super) fn get(
    view: &Arc<View>,
    key: &str,
    range: Option<Range>,
    traffic: Arc<Traffic>,
) -> S3Result<GetObjectOutput> {
    let (file, size) = file(view, key)?;
    let wanted = match range {
        None => 0..size,
        Some(Range::Int { first, last }) => first..last.map_or(size, |last| size.min(last.saturating_add(1))),
        Some(Range::Suffix { length }) => size.saturating_sub(length)..size,
    };
    if wanted.start >= size || wanted.is_empty() {
        return Err(S3Error::with_message(S3ErrorCode::InvalidRange, "the range lies outside the object"));
    }
    let head = head(view, key)?;
    Ok(GetObjectOutput {
        accept_ranges: head.accept_ranges,
        content_length: i64::try_from(wanted.end - wanted.start).ok(),
        content_range: range.is_some().then(|| format!("bytes {}-{}/{size}", wanted.start, wanted.end - 1)),
        content_type: head.content_type,
        e_tag: head.e_tag,
        last_modified: head.last_modified,
        body: Some(body(view.clone(), file, wanted, traffic)),
        ..GetObjectOutput::default()
    })
}

fn body(view: Arc<View>, file: File, wanted: ops::Range<u64>, traffic: Arc<Traffic>) -> StreamingBlob {
    let pieces = stream::try_unfold(wanted, move |left| {
        let (view, traffic) = (view.clone(), traffic.clone());
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let piece = left.start..left.end.min(left.start + PIECE);
            let read = match file {
                File::Database => view.read_db(piece.clone()).await,
                File::Wal => view.read_wal(piece.clone()).await,
            };
            let bytes = read.map_err(|error| {
                tracing::warn!(%error, position = %view.position(), "an earlier moment can't be read");
                errors::unavailable()
            })?;
            traffic.add(Direction::Read, bytes.len());
            Ok::<_, S3Error>(Some((Frame::data(bytes), piece.end..left.end)))
        }
    });
    StreamingBlob::from(Body::http_body_unsync(StreamBody::new(pieces)))
}
