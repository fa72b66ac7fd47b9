//! What a store must be able to do for a replica, as checks that run against any store: tests run them over memory, a directory
//! and a real S3 server; `doctor` can run them against a user's bucket.
//!
//! Leaves nothing behind below the prefix it is given, unless a check fails.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store does not conform: {check}: {found}")]
pub struct Failure {
    /// What was checked, as a claim.
    pub check: &'static str,
    /// What happened instead.
    pub found: String,
}

type Outcome = Result<(), Failure>;

/// Runs every check below `prefix`, which should be empty and nobody else's.
pub async fn check(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    put_then_get(store, prefix).await?;
    create_refuses_an_existing_name(store, prefix).await?;
    one_of_many_creates_wins(store, prefix).await?;
    an_overwrite_is_seen_at_once(store, prefix).await?;
    ranges_are_exact(store, prefix).await?;
    the_absent_is_not_found(store, prefix).await?;
    etags_tell_contents_apart(store, prefix).await?;
    odd_keys_come_back_as_they_are(store, prefix).await?;
    lists_are_complete(store, prefix).await?;
    deletes_are_seen_at_once(store, prefix).await?;
    multipart_appears_whole(store, prefix).await
}

async fn put_then_get(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "what was put can be read at once";
    for size in [0, 1, 4096, 3 << 20] {
        let (key, body) = (key(prefix, "put"), pattern(size));
        ok(CLAIM, store.put(&key, body.clone().into()).await)?;
        same(CLAIM, &body, &ok(CLAIM, read(store, &key).await)?)?;
        same(CLAIM, &(size as u64), &ok(CLAIM, store.head(&key).await)?.size)?;
    }
    clean(store, prefix).await
}

async fn create_refuses_an_existing_name(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "create-if-absent refuses an existing name and leaves it as it is";
    let key = key(prefix, "create");
    ok(CLAIM, create(store, &key, pattern(10)).await)?;
    match create(store, &key, pattern(20)).await {
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
        other => return Err(Failure { check: CLAIM, found: format!("{other:?}") }),
    }
    same(CLAIM, &pattern(10), &ok(CLAIM, read(store, &key).await)?)?;
    clean(store, prefix).await
}

async fn one_of_many_creates_wins(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "of many concurrent creates of one name exactly one wins";
    for round in 0..8 {
        let key = key(prefix, &format!("race/{round}"));
        let attempts = (0..8).map(|writer| create(store, &key, pattern(1000 + writer)));
        let outcomes = join_all(attempts).await;
        let winners: Vec<usize> =
            outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).map(|(writer, _)| writer).collect();
        let [winner] = winners[..] else { return Err(Failure { check: CLAIM, found: format!("winners {winners:?}") }) };
        same(CLAIM, &pattern(1000 + winner), &ok(CLAIM, read(store, &key).await)?)?;
    }
    clean(store, prefix).await
}

async fn an_overwrite_is_seen_at_once(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "an overwrite is seen at once";
    let key = key(prefix, "over");
    for size in 1..10 {
        ok(CLAIM, store.put(&key, pattern(size).into()).await)?;
        same(CLAIM, &pattern(size), &ok(CLAIM, read(store, &key).await)?)?;
    }
    clean(store, prefix).await
}

async fn ranges_are_exact(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "a range read gives exactly those bytes";
    let (key, body) = (key(prefix, "range"), pattern(100_000));
    ok(CLAIM, store.put(&key, body.clone().into()).await)?;
    for range in [0..1, 0..100_000, 99_999..100_000, 5000..70_000] {
        let expected = body.slice(range.start as usize..range.end as usize);
        same(CLAIM, &expected, &ok(CLAIM, store.get_range(&key, range).await)?)?;
    }
    let suffix = GetOptions { range: Some(GetRange::Suffix(7)), ..GetOptions::default() };
    let tail = ok(CLAIM, ok(CLAIM, store.get_opts(&key, suffix).await)?.bytes().await)?;
    same(CLAIM, &body.slice(body.len() - 7..), &tail)?;
    if let Ok(beyond) = store.get_range(&key, 100_000..100_010).await {
        return Err(Failure { check: CLAIM, found: format!("{} bytes past the end", beyond.len()) });
    }
    clean(store, prefix).await
}

async fn the_absent_is_not_found(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "an absent object is `NotFound`, for get and head";
    let key = key(prefix, "absent/deeper");
    let answers = [read(store, &key).await.map(|_| ()), store.head(&key).await.map(|_| ())];
    for answer in answers {
        if !matches!(answer, Err(Error::NotFound { .. })) {
            return Err(Failure { check: CLAIM, found: format!("{answer:?}") });
        }
    }
    Ok(())
}

async fn etags_tell_contents_apart(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "an etag holds until the content changes";
    let key = key(prefix, "etag");
    ok(CLAIM, store.put(&key, pattern(100).into()).await)?;
    let first = ok(CLAIM, store.head(&key).await)?.e_tag;
    same(CLAIM, &first, &ok(CLAIM, store.get(&key).await)?.meta.e_tag)?;
    let unchanged = GetOptions { if_none_match: first.clone(), ..GetOptions::default() };
    if !matches!(store.get_opts(&key, unchanged).await, Err(Error::NotModified { .. })) {
        return Err(Failure { check: CLAIM, found: "If-None-Match of the current etag gave a body".into() });
    }
    ok(CLAIM, store.put(&key, pattern(101).into()).await)?;
    if first.is_none() || ok(CLAIM, store.head(&key).await)?.e_tag == first {
        return Err(Failure { check: CLAIM, found: format!("{first:?} before and after") });
    }
    let changed = GetOptions { if_match: first, ..GetOptions::default() };
    if !matches!(store.get_opts(&key, changed).await, Err(Error::Precondition { .. })) {
        return Err(Failure { check: CLAIM, found: "If-Match of an old etag gave a body".into() });
    }
    clean(store, prefix).await
}

async fn odd_keys_come_back_as_they_are(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "odd keys are stored and listed as they are";
    let names = ["a b", "a+b", "100%", "%41", "k=v/x", "größe", "a&b?c#d", "~t", "a'b\"c"];
    let keys: BTreeSet<Key> =
        names.iter().map(|name| Key::parse(format!("{prefix}/odd/{name}")).expect("a legal key")).collect();
    for odd in &keys {
        ok(CLAIM, store.put(odd, pattern(5).into()).await)?;
        same(CLAIM, &pattern(5), &ok(CLAIM, read(store, odd).await)?)?;
    }
    same(CLAIM, &keys, &ok(CLAIM, listed(store, &key(prefix, "odd")).await)?)?;
    clean(store, prefix).await
}

async fn lists_are_complete(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "a list has every object once, by whole parts of the prefix";
    let wanted: BTreeSet<Key> = (0..1050).map(|n| key(prefix, &format!("list/{:02}/{n:04}", n % 3))).collect();
    let decoy = key(prefix, "list2/x");
    let puts =
        wanted.iter().chain([&decoy]).cloned().map(|key| async move { store.put(&key, pattern(1).into()).await });
    ok(CLAIM, stream::iter(puts).buffer_unordered(16).try_collect::<Vec<_>>().await)?;
    let root = key(prefix, "list");
    same(CLAIM, &wanted, &ok(CLAIM, listed(store, &root).await)?)?;
    let level = ok(CLAIM, store.list_with_delimiter(Some(&root)).await)?;
    let folders: BTreeSet<Key> = level.common_prefixes.into_iter().collect();
    same(CLAIM, &(0..3).map(|n| key(prefix, &format!("list/{n:02}"))).collect(), &folders)?;
    same(CLAIM, &0, &level.objects.len())?;
    let offset = key(prefix, "list/01/0500");
    let after: BTreeSet<Key> =
        ok(CLAIM, store.list_with_offset(Some(&root), &offset).map_ok(|meta| meta.location).try_collect().await)?;
    same(CLAIM, &wanted.iter().filter(|key| **key > offset).cloned().collect(), &after)?;
    clean(store, prefix).await
}

async fn deletes_are_seen_at_once(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "a delete is seen at once, and deleting again is no error";
    let key = key(prefix, "delete/x");
    ok(CLAIM, store.put(&key, pattern(1).into()).await)?;
    for _ in 0..2 {
        match store.delete(&key).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(Failure { check: CLAIM, found: error.to_string() }),
        }
        if !matches!(store.head(&key).await, Err(Error::NotFound { .. })) {
            return Err(Failure { check: CLAIM, found: "it is still there".into() });
        }
    }
    ok(CLAIM, create(store, &key, pattern(2)).await)?;
    clean(store, prefix).await
}

async fn multipart_appears_whole(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "a multipart upload appears whole, and not before it is completed";
    let (key, body) = (key(prefix, "parts"), pattern(11 << 20));
    let mut upload = ok(CLAIM, store.put_multipart(&key).await)?;
    for part in [0..5 << 20, 5 << 20..10 << 20, 10 << 20..11 << 20] {
        ok(CLAIM, upload.put_part(body.slice(part).into()).await)?;
    }
    if !matches!(store.head(&key).await, Err(Error::NotFound { .. })) {
        return Err(Failure { check: CLAIM, found: "visible before completion".into() });
    }
    ok(CLAIM, upload.complete().await)?;
    same(CLAIM, &body, &ok(CLAIM, read(store, &key).await)?)?;
    let mut aborted = ok(CLAIM, store.put_multipart(&self::key(prefix, "aborted")).await)?;
    ok(CLAIM, aborted.put_part(pattern(5 << 20).into()).await)?;
    ok(CLAIM, aborted.abort().await)?;
    same(CLAIM, &BTreeSet::from([key]), &ok(CLAIM, listed(store, prefix).await)?)?;
    clean(store, prefix).await
}

fn key(prefix: &Key, rest: &str) -> Key {
    Key::parse(format!("{prefix}/{rest}")).expect("the checks use legal keys")
}

/// Bytes that differ by length and place.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ length) as u8).collect::<Vec<u8>>().into()
}

async fn create(store: &Arc<dyn ObjectStore>, key: &Key, body: Bytes) -> object_store::Result<()> {
    store.put_opts(key, body.into(), PutOptions::from(PutMode::Create)).await.map(|_| ())
}

async fn read(store: &Arc<dyn ObjectStore>, key: &Key) -> object_store::Result<Bytes> {
    store.get(key).await?.bytes().await
}

async fn listed(store: &Arc<dyn ObjectStore>, prefix: &Key) -> object_store::Result<BTreeSet<Key>> {
    store.list(Some(prefix)).map_ok(|meta| meta.location).try_collect().await
}

async fn clean(store: &Arc<dyn ObjectStore>, prefix: &Key) -> Outcome {
    const CLAIM: &str = "everything listed can be deleted";
    let keys = store.list(Some(prefix)).map_ok(|meta| meta.location).boxed();
    ok(CLAIM, store.delete_stream(keys).try_collect::<Vec<_>>().await)?;
    same(CLAIM, &BTreeSet::new(), &ok(CLAIM, listed(store, prefix).await)?)
}

fn ok<T>(check: &'static str, result: object_store::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure { check, found: error.to_string() })
}

fn same<T: PartialEq + std::fmt::Debug>(check: &'static str, expected: &T, found: &T) -> Outcome {
    if expected == found {
        return Ok(());
    }
    let short = |value: &T| format!("{value:?}").chars().take(200).collect::<String>();
    Err(Failure { check, found: format!("expected {}, found {}", short(expected), short(found)) })
}
