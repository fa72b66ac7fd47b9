//! Uploads in parts.
//!
//! An engine's upload ids and part tags are ours; the store's stay here, so that an engine can neither guess another's upload
//! nor name parts that it did not send. What an engine leaves unfinished is aborted when its grant is dropped; a node that
//! dies leaves that to the bucket's own rule for incomplete uploads.
//!
//! # Consistency
//! An object appears whole when its upload completes, or not at all.
//!
//! **Invariant:** what one engine uploads and the node holds in memory never exceeds [`HELD_BYTES`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::MultipartId;
use object_store::multipart::PartId;
use object_store::path::Path;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CompletedPart, CreateMultipartUploadInput, CreateMultipartUploadOutput, ETag, UploadPartInput, UploadPartOutput,
};
use s3s::{S3Error, S3ErrorCode, S3Result};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::body::Upload as Incoming;
use super::errors;
use super::grants::Session;
use super::objects::{etag, key_path};
use crate::stores::Bucket;

/// Bytes of uploads that one engine may have in the node's memory; also the largest part.
const HELD_BYTES: u32 = 256 * 1024 * 1024;
/// Uploads that one engine may have open.
const MAX_OPEN: usize = 4096;
/// S3's limit.
const MAX_PARTS: i32 = 10_000;

/// The uploads of one engine.
pub(super) struct Uploads {
    open: Mutex<HashMap<String, Arc<Upload>>>,
    room: Semaphore,
}

struct Upload {
    bucket: Bucket,
    path: Path,
    id: MultipartId,
    parts: Mutex<BTreeMap<usize, Part>>,
}

/// What an engine has sent of an upload, by its index.
struct Part {
    tag: ETag,
    id: PartId,
}

impl Default for Uploads {
    fn default() -> Self {
        Self { open: Mutex::default(), room: Semaphore::new(HELD_BYTES as usize) }
    }
}

impl Uploads {
    /// Aborts whatever was not completed.
    pub(super) async fn abort_all(&self) {
        let left: Vec<_> = self.lock().drain().map(|(_, upload)| upload).collect();
        for upload in left {
            abort_quietly(&upload.bucket, &upload.path, &upload.id).await;
        }
    }

    /// Waits until so many bytes may be held, for as long as the answer lives. At most [`HELD_BYTES`].
    pub(super) async fn hold(&self, bytes: u32) -> S3Result<SemaphorePermit<'_>> {
        self.room.acquire_many(bytes).await.map_err(|_| errors::unavailable())
    }

    fn find(&self, id: &str, bucket: &str, key: &str) -> S3Result<Arc<Upload>> {
        let found = self.lock().get(id).cloned();
        found
            .filter(|upload| upload.bucket.name.as_str() == bucket && upload.path.as_ref() == key)
            .ok_or_else(|| S3Error::with_message(S3ErrorCode::NoSuchUpload, "no such upload"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's parts in order, for the parts that the client names: 1, 2, … without a gap.
    fn named(&self, wanted: &[CompletedPart]) -> S3Result<Vec<PartId>> {
        let held = self.parts();
        let mut parts = Vec::with_capacity(wanted.len());
        for part in wanted {
            let index = parts.len();
            let expected = i32::try_from(index + 1).ok();
            let known = held.get(&index).filter(|_| part.part_number == expected);
            match known.filter(|known| part.e_tag.as_ref().is_none_or(|tag| *tag == known.tag)) {
                Some(known) => parts.push(known.id.clone()),
                None => {
                    let message = "the parts are not those that were uploaded, 1, 2, … in order";
                    return Err(S3Error::with_message(S3ErrorCode::InvalidPart, message));
                }
            }
        }
        Ok(parts)
    }
}

pub(super) async fn create(
    session: &Session,
    input: CreateMultipartUploadInput,
) -> S3Result<CreateMultipartUploadOutput> {
    let path = key_path(&input.key)?;
    if session.uploads.lock().len() >= MAX_OPEN {
        return Err(S3Error::with_message(S3ErrorCode::SlowDown, "too many open uploads"));
    }
    let bucket = session.bucket(&input.bucket).await?;
    let id = bucket.multipart.create_multipart(&path).await.map_err(errors::of_store)?;
    let name = uuid::Uuid::new_v4().simple().to_string();
    let upload = Upload { bucket, path, id, parts: Mutex::default() };
    session.uploads.lock().insert(name.clone(), Arc::new(upload));
    Ok(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(name),
        ..CreateMultipartUploadOutput::default()
    })
}

pub(super) async fn part(session: &Session, input: UploadPartInput) -> S3Result<UploadPartOutput> {
    let upload = session.uploads.find(&input.upload_id, &input.bucket, &input.key)?;
    let index = (1..=MAX_PARTS)
        .contains(&input.part_number)
        .then(|| usize::try_from(input.part_number - 1).ok())
        .flatten()
        .ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidArgument, "part numbers go from 1 to 10000"))?;
    let length = input
        .content_length
        .ok_or_else(|| S3Error::with_message(S3ErrorCode::MissingContentLength, "a part needs its length"))?;
    let length = u32::try_from(length)
        .ok()
        .filter(|length| *length <= HELD_BYTES)
        .ok_or_else(|| S3Error::with_message(S3ErrorCode::EntityTooLarge, "a part takes up to 256 MiB"))?;
    let _held = session.uploads.hold(length).await?;
    let mut body = Incoming::new(input.body, session.traffic.clone());
    let payload = body.piece(length as usize).await?;
    let whole = payload.content_length() == length as usize && body.piece(1).await?.content_length() == 0;
    if !whole {
        return Err(S3Error::with_message(S3ErrorCode::IncompleteBody, "the part is not as long as it said"));
    }
    let id = upload.bucket.multipart.put_part(&upload.path, &upload.id, index, payload).await;
    let id = id.map_err(errors::of_store)?;
    let tag = ETag::Strong(uuid::Uuid::new_v4().simple().to_string());
    upload.parts().insert(index, Part { tag: tag.clone(), id });
    Ok(UploadPartOutput { e_tag: Some(tag), ..UploadPartOutput::default() })
}

pub(super) async fn complete(
    session: &Session,
    input: CompleteMultipartUploadInput,
) -> S3Result<CompleteMultipartUploadOutput> {
    let upload = session.uploads.find(&input.upload_id, &input.bucket, &input.key)?;
    if input.if_match.is_some() || input.if_none_match.is_some() {
        let message = "an upload in parts takes no condition";
        return Err(S3Error::with_message(S3ErrorCode::NotImplemented, message));
    }
    let wanted = input.multipart_upload.and_then(|list| list.parts).unwrap_or_default();
    let parts = upload.named(&wanted)?;
    if parts.is_empty() {
        return Err(S3Error::with_message(S3ErrorCode::MalformedXML, "an upload has at least one part"));
    }
    let done = upload.bucket.multipart.complete_multipart(&upload.path, &upload.id, parts).await;
    let done = done.map_err(errors::of_store)?;
    session.uploads.lock().remove(&input.upload_id);
    Ok(CompleteMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: etag(done.e_tag.as_deref()),
        ..CompleteMultipartUploadOutput::default()
    })
}

pub(super) async fn abort(session: &Session, input: AbortMultipartUploadInput) -> S3Result<AbortMultipartUploadOutput> {
    let upload = session.uploads.find(&input.upload_id, &input.bucket, &input.key)?;
    session.uploads.lock().remove(&input.upload_id);
    let aborted = upload.bucket.multipart.abort_multipart(&upload.path, &upload.id).await;
    aborted.map_err(errors::of_store)?;
    Ok(AbortMultipartUploadOutput::default())
}

/// Aborts an upload that nobody waits for any more.
pub(super) async fn abort_quietly(bucket: &Bucket, path: &Path, id: &MultipartId) {
    if let Err(error) = bucket.multipart.abort_multipart(path, id).await {
        tracing::warn!(%error, bucket = %bucket.name, "an unfinished upload could not be aborted");
    }
}
