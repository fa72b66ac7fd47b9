//! ListObjectsV2, in S3's words: prefixes, the `/` delimiter, tokens, and keys written so that any client reads them back.
//!
//! **Invariant:** with `encoding-type=url` every text of the answer that can hold a key is percent-encoded, space as `%20`:
//! DuckDB decodes whatever it gets, so a bare `+` or `%` would name another object.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::{
    CommonPrefix, EncodingType, ListObjectsV2Input, ListObjectsV2Output, Object, ObjectStorageClass, Timestamp,
};
use s3s::{S3Error, S3ErrorCode, S3Result};

use super::errors;
use super::grants::Session;
use super::objects::etag;
use crate::stores::{Entry, Listing, Page, Start};

/// S3's limit and default.
const MAX_KEYS: usize = 1000;

pub(super) async fn list(session: &Session, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let prefix = input.prefix.clone().unwrap_or_default();
    if !session.policy.allows_list(&input.bucket, &prefix) {
        return Err(errors::denied());
    }
    let fold = match input.delimiter.as_deref() {
        None | Some("") => false,
        Some("/") => true,
        Some(_) => return Err(S3Error::with_message(S3ErrorCode::NotImplemented, "the only delimiter is `/`")),
    };
    let encode = match input.encoding_type.as_ref().map(EncodingType::as_str) {
        None => false,
        Some("url") => true,
        Some(_) => return Err(S3Error::with_message(S3ErrorCode::InvalidArgument, "the only encoding type is `url`")),
    };
    let limit = input.max_keys.map_or(MAX_KEYS, |keys| usize::try_from(keys).unwrap_or(0).min(MAX_KEYS));
    let token = input.continuation_token.as_deref().map(open_token).transpose()?;
    let start = match (&token, input.start_after.as_deref()) {
        (Some(token), _) => Start::Token(token),
        (None, None | Some("")) => Start::First,
        (None, Some(key)) => Start::After(key),
    };
    let page = if limit == 0 {
        Page { entries: Vec::new(), next: None }
    } else {
        let bucket = session.bucket(&input.bucket).await?;
        let listing =
            Listing { prefix: &prefix, fold, start, limit, visible: &|key| session.policy.visible(&input.bucket, key) };
        bucket.list(&listing).await.map_err(errors::of_store)?
    };
    Ok(answer(input, page, limit, encode))
}

fn answer(input: ListObjectsV2Input, page: Page, limit: usize, encode: bool) -> ListObjectsV2Output {
    let write = |text: &str| if encode { percent_encoded(text) } else { text.to_owned() };
    let next_continuation_token = page.next.map(|token| URL_SAFE_NO_PAD.encode(token));
    let key_count = i32::try_from(page.entries.len()).ok();
    let (mut contents, mut folded) = (Vec::new(), Vec::new());
    for (text, entry) in page.entries {
        match entry {
            Entry::Object { size, modified, etag: tag } => contents.push(Object {
                key: Some(write(&text)),
                size: i64::try_from(size).ok(),
                last_modified: Some(Timestamp::from(std::time::SystemTime::from(modified))),
                e_tag: etag(tag.as_deref()),
                storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
                ..Object::default()
            }),
            Entry::Folded => folded.push(CommonPrefix { prefix: Some(write(&text)) }),
        }
    }
    ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(write(&input.prefix.unwrap_or_default())),
        delimiter: input.delimiter.as_deref().map(write),
        start_after: input.start_after.as_deref().map(write),
        encoding_type: input.encoding_type,
        continuation_token: input.continuation_token,
        max_keys: i32::try_from(limit).ok(),
        key_count,
        is_truncated: Some(next_continuation_token.is_some()),
        next_continuation_token,
        contents: Some(contents),
        common_prefixes: Some(folded),
        ..ListObjectsV2Output::default()
    }
}

fn open_token(token: &str) -> S3Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidArgument, "not a continuation token of this server"))
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_keys_hold_nothing_that_a_reader_could_decode_twice() {
        assert_eq!(percent_encoded("a b+c%20d/é=1"), "a%20b%2Bc%2520d/%C3%A9%3D1");
    }

    #[test]
    fn a_token_survives_the_way_there_and_back_and_garbage_is_refused() {
        let token = URL_SAFE_NO_PAD.encode("a/ü b");
        assert_eq!(open_token(&token).expect("ours"), "a/ü b");
        assert!(open_token("%%%").is_err());
    }
}
