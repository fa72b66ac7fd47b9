//! Archives: a moment of a mart as one plain, compact DuckDB file in its bucket, for whoever has nothing but DuckDB.
//!
//! # Crash consistency
//! The object appears whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMultipartOptions, WriteMultipart};
use replica::names;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::clock;
use crate::error::{ApiError, Code};
use crate::marts::Ground;
use crate::names::MartId;
use crate::past::Past;
use crate::scratch::Scratch;
use crate::stores::Bucket;
use crate::supervisor::child;

const PART_BYTES: usize = 8 << 20;
const PARALLEL_PARTS: usize = 4;
const DAY_US: i64 = 24 * 3600 * 1_000_000;

/// Archives one moment.
pub async fn one(
    ground: &Ground,
    id: &MartId,
    past: &Past,
    at: &names::Past,
    class: Option<&str>,
) -> Result<Value, ApiError> {
    let bucket = bucket(ground, id)?;
    let scratch = Scratch::make(&ground.state_dir).await?;
    let file = scratch.path().join("archive.db");
    let compacted = child::compact(&scratch.copy(past, at).await?, &file).await.map_err(|error| {
        tracing::error!(mart = %id, %error, "an archive can't be made");
        ApiError::new(Code::Internal, "the compact copy could not be made").hint("the server's log says why")
    })?;
    let key = key(id, at.time_us);
    upload(&bucket, &key, &file, class).await.map_err(|error| {
        tracing::warn!(mart = %id, %error, "an archive can't be uploaded");
        ApiError::new(Code::Unavailable, "the archive could not be written to the bucket")
            .hint("try again; a storage class must be one that the bucket knows")
    })?;
    Ok(json!({
        "url": format!("s3://{}/{key}", bucket.name),
        "position": at.position,
        "time": clock::rfc3339_us(at.time_us),
        "bytes": compacted.bytes_after,
        "tables": compacted.tables,
        "rows": compacted.rows,
    }))
}

/// Archives the last moment of each day (UTC) that ended so many microseconds ago and has no archive yet.
pub async fn older_than(
    ground: &Ground,
    id: &MartId,
    past: &Past,
    age_us: i64,
    class: Option<&str>,
) -> Result<Vec<Value>, ApiError> {
    let end = clock::now_us() - age_us;
    let mut last_of_day = BTreeMap::new();
    for moment in past.moments(0..end, usize::MAX).await? {
        last_of_day.insert(moment.time_us.div_euclid(DAY_US), moment);
    }
    let there = existing(ground, id).await?;
    let mut made = Vec::new();
    for (day, moment) in last_of_day {
        let ended = (day + 1) * DAY_US <= end;
        if ended && !there.contains(&key(id, moment.time_us)) {
            let at = past.find(&crate::past::At::Position(moment.position)).await?;
            made.push(one(ground, id, past, &at, class).await?);
        }
    }
    Ok(made)
}

async fn existing(ground: &Ground, id: &MartId) -> Result<std::collections::HashSet<Key>, ApiError> {
    let prefix = Key::from(format!("duckdb/{}/archives", id.mart));
    let listed = bucket(ground, id)?.data.list(Some(&prefix)).map_ok(|object| object.location).try_collect().await;
    listed.map_err(|error| {
        tracing::warn!(mart = %id, %error, "archives can't be listed");
        ApiError::new(Code::Unavailable, "the object store is not available").hint("`tarn doctor` checks the store")
    })
}

fn bucket(ground: &Ground, id: &MartId) -> Result<Bucket, ApiError> {
    Ok(ground.stores.bucket(&ground.stores.names_of(&id.tenant).analytics)?)
}

fn key(id: &MartId, time_us: i64) -> Key {
    Key::from(format!("duckdb/{}/archives/{}.db", id.mart, clock::compact_us(time_us)))
}

async fn upload(
    bucket: &Bucket,
    key: &Key,
    file: &Path,
    class: Option<&str>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut attributes = Attributes::new();
    if let Some(class) = class {
        attributes.insert(Attribute::StorageClass, class.to_owned().into());
    }
    let mut file = tokio::fs::File::open(file).await?;
    let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
    let mut upload =
        WriteMultipart::new_with_chunk_size(bucket.data.put_multipart_opts(key, options).await?, PART_BYTES);
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        if (&mut file).take(PART_BYTES as u64).read_to_end(&mut part).await? == 0 {
            break;
        }
        upload.wait_for_capacity(PARALLEL_PARTS).await?;
        upload.put(Bytes::from(part));
    }
    upload.finish().await?;
    let written = bucket.data.head(key).await?;
    tracing::info!(%key, bytes = written.size, "archived");
    Ok(())
}
