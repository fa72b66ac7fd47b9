//! The operations of the gateway, as s3s dispatches them: objects here, lists in [`super::listing`], multipart uploads in
//! [`super::uploads`]. The policy has passed a request before it arrives; everything not implemented is refused by s3s.

use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput, Range, Timestamp,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::body::{self, Upload};
use super::grants::session_of;
use super::policy::Access;
use super::{errors, listing, past, uploads};
use crate::stores::Bucket;

/// Larger bodies than this go to the store in pieces of this size.
const PIECE_BYTES: u32 = 8 * 1024 * 1024;

/// The operations.
pub(super) struct Objects;

#[async_trait::async_trait]
impl S3 for Objects {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let session = session_of(&request)?;
        let input = request.input;
        if let Some(view) = session.past(&input.bucket) {
            return past::get(view, &input.key, input.range, session.traffic.clone()).map(S3Response::new);
        }
        let conditions = Conditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        let options = conditions.options(input.range, false)?;
        let bucket = session.bucket(&input.bucket).await?;
        let got = get(&bucket, &key_path(&input.key)?, options).await?;
        let length = got.range.end - got.range.start;
        let partial = input.range.is_some() && length > 0;
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: i64::try_from(length).ok(),
            content_range: partial
                .then(|| format!("bytes {}-{}/{}", got.range.start, got.range.end - 1, got.meta.size)),
            content_type: Some("application/octet-stream".into()),
            e_tag: etag(got.meta.e_tag.as_deref()),
            last_modified: Some(Timestamp::from(std::time::SystemTime::from(got.meta.last_modified))),
            body: Some(body::stored(got, session.traffic.clone())),
            ..GetObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let session = session_of(&request)?;
        let input = request.input;
        if let Some(view) = session.past(&input.bucket) {
            return past::head(view, &input.key).map(S3Response::new);
        }
        let conditions = Conditions {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
            if_modified_since: input.if_modified_since,
            if_unmodified_since: input.if_unmodified_since,
        };
        let options = conditions.options(None, true)?;
        let bucket = session.bucket(&input.bucket).await?;
        let ObjectMeta { size, last_modified, e_tag, .. } = get(&bucket, &key_path(&input.key)?, options).await?.meta;
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: i64::try_from(size).ok(),
            content_type: Some("application/octet-stream".into()),
            e_tag: etag(e_tag.as_deref()),
            last_modified: Some(Timestamp::from(std::time::SystemTime::from(last_modified))),
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let session = session_of(&request)?;
        let input = request.input;
        let create = match (&input.if_match, &input.if_none_match) {
            (None, None) => false,
            (None, Some(ETagCondition::Any)) => true,
            _ => {
                return Err(S3Error::with_message(S3ErrorCode::NotImplemented, "only `If-None-Match: *` is available"));
            }
        };
        let bucket = session.bucket(&input.bucket).await?;
        let path = key_path(&input.key)?;
        // A body's next piece is read only after the last one went out, so one piece is all that is ever held.
        let _held = session.uploads.hold(PIECE_BYTES).await?;
        let mut upload = Upload::new(input.body, session.traffic.clone());
        let first = upload.piece(PIECE_BYTES as usize).await?;
        let written = if first.content_length() < PIECE_BYTES as usize {
            let mode = if create { PutMode::Create } else { PutMode::Overwrite };
            bucket.data.put_opts(&path, first, PutOptions::from(mode)).await.map_err(errors::of_store)?.e_tag
        } else if create {
            let message = "a conditional PUT takes up to 8 MiB";
            return Err(S3Error::with_message(S3ErrorCode::EntityTooLarge, message));
        } else {
            put_in_pieces(&bucket, &path, first, &mut upload).await?
        };
        Ok(S3Response::new(PutObjectOutput { e_tag: etag(written.as_deref()), ..PutObjectOutput::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let session = session_of(&request)?;
        let bucket = session.bucket(&request.input.bucket).await?;
        match bucket.data.delete(&key_path(&request.input.key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(S3Response::new(DeleteObjectOutput::default())),
            Err(error) => Err(errors::of_store(error)),
        }
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let session = session_of(&request)?;
        let input = request.input;
        let keys: Vec<String> = input.delete.objects.into_iter().map(|object| object.key).collect();
        let allowed = keys.iter().all(|key| session.policy.allows(Access::Write, &input.bucket, key));
        if !allowed || keys.is_empty() {
            return Err(errors::denied());
        }
        let paths = keys.iter().map(|key| key_path(key)).collect::<S3Result<Vec<_>>>()?;
        let bucket = session.bucket(&input.bucket).await?;
        let mut outcomes = bucket.data.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(errors::of_store(error)),
            }
        }
        let quiet = input.delete.quiet.unwrap_or(false);
        let deleted = keys.into_iter().map(|key| DeletedObject { key: Some(key), ..DeletedObject::default() });
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!quiet).then(|| deleted.collect()),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let session = session_of(&request)?;
        listing::list(&session, request.input).await.map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let session = session_of(&request)?;
        uploads::create(&session, request.input).await.map(S3Response::new)
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let session = session_of(&request)?;
        uploads::part(&session, request.input).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let session = session_of(&request)?;
        uploads::complete(&session, request.input).await.map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let session = session_of(&request)?;
        uploads::abort(&session, request.input).await.map(S3Response::new)
    }
}

/// A key as a store wants it: the very same text.
pub(super) fn key_path(key: &str) -> S3Result<Path> {
    match Path::parse(key) {
        Ok(path) if path.as_ref() == key => Ok(path),
        _ => Err(S3Error::with_message(S3ErrorCode::InvalidURI, "not a usable key")),
    }
}

/// A store's entity tag as S3 writes it, with one pair of quotes.
pub(super) fn etag(text: Option<&str>) -> Option<ETag> {
    let text = text?.trim_start_matches("W/").trim_matches('"');
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    plain.then(|| ETag::Strong(text.to_owned()))
}

struct Conditions {
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
    if_modified_since: Option<Timestamp>,
    if_unmodified_since: Option<Timestamp>,
}

impl Conditions {
    fn options(self, range: Option<Range>, head: bool) -> S3Result<GetOptions> {
        let range = range.map(|range| match range {
            Range::Int { first, last: Some(last) } => GetRange::Bounded(first..last + 1),
            Range::Int { first, last: None } => GetRange::Offset(first),
            Range::Suffix { length } => GetRange::Suffix(length),
        });
        Ok(GetOptions {
            range,
            head,
            if_match: self.if_match.as_ref().map(condition),
            if_none_match: self.if_none_match.as_ref().map(condition),
            if_modified_since: self.if_modified_since.map(moment).transpose()?,
            if_unmodified_since: self.if_unmodified_since.map(moment).transpose()?,
            ..GetOptions::default()
        })
    }
}

fn condition(condition: &ETagCondition) -> String {
    match condition {
        ETagCondition::Any => "*".into(),
        ETagCondition::ETag(tag) => format!("\"{}\"", tag.value()),
    }
}

fn moment(timestamp: Timestamp) -> S3Result<chrono::DateTime<chrono::Utc>> {
    let mut text = Vec::new();
    let formatted = timestamp.format(s3s::dto::TimestampFormat::DateTime, &mut text);
    let text = formatted.ok().and_then(|()| String::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidArgument, "not a usable time"))
}

async fn get(bucket: &Bucket, path: &Path, options: GetOptions) -> S3Result<GetResult> {
    let range = options.range.clone();
    let error = match bucket.data.get_opts(path, options).await {
        Ok(got) => return Ok(got),
        Err(error) => error,
    };
    // Stores have no common word for a range that lies outside: find out, because a client must not retry it.
    if let (Some(range), object_store::Error::Generic { .. }) = (range, &error)
        && let Ok(meta) = bucket.data.head(path).await
        && outside(&range, meta.size)
    {
        return Err(S3Error::with_message(S3ErrorCode::InvalidRange, "the range lies outside the object"));
    }
    Err(errors::of_store(error))
}

fn outside(range: &GetRange, size: u64) -> bool {
    match range {
        GetRange::Bounded(range) => range.start >= size,
        GetRange::Offset(start) => *start >= size,
        GetRange::Suffix(length) => *length == 0,
    }
}

async fn put_in_pieces(
    bucket: &Bucket,
    path: &Path,
    first: PutPayload,
    upload: &mut Upload,
) -> S3Result<Option<String>> {
    let id = bucket.multipart.create_multipart(path).await.map_err(errors::of_store)?;
    let sent = async {
        let mut parts = Vec::new();
        let mut piece = first;
        while piece.content_length() > 0 {
            let part = bucket.multipart.put_part(path, &id, parts.len(), piece).await;
            parts.push(part.map_err(errors::of_store)?);
            piece = upload.piece(PIECE_BYTES as usize).await?;
        }
        bucket.multipart.complete_multipart(path, &id, parts).await.map_err(errors::of_store)
    };
    match sent.await {
        Ok(done) => Ok(done.e_tag),
        Err(error) => {
            uploads::abort_quietly(bucket, path, &id).await;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_get_exactly_one_pair_of_quotes() {
        let tag = |text| etag(Some(text)).map(ETag::into_value);
        assert_eq!(tag("\"abc-1\"").as_deref(), Some("abc-1"));
        assert_eq!(tag("W/\"abc\"").as_deref(), Some("abc"));
        assert_eq!(tag("7").as_deref(), Some("7"));
        assert_eq!(tag("a\r\nb"), None);
    }

    #[test]
    fn a_key_is_never_rewritten_on_its_way_to_a_store() {
        for key in ["a/b c+d%25é", "x=1/y", "a*?#~[]"] {
            assert_eq!(key_path(key).expect("usable").as_ref(), key);
        }
        for key in ["a/", "/a", "a//b", "a/../b"] {
            assert!(key_path(key).is_err(), "{key}");
        }
    }
}
