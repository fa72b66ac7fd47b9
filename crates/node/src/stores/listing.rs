//! Listing a bucket the way S3 does: by any prefix, page by page, with what lies beyond a `/` folded up.
//!
//! S3 does this itself; other stores only walk directories, so their entries are gathered, sorted and cut here. Pages are
//! stateless: what comes next is in the token. Within a page entries are in key order; between pages they are in the
//! store's, which with SeaweedFS is that of a directory tree (`m/1` before `m-1`).
//!
//! **Invariant:** a page never names a key that its `visible` refuses, neither as an object nor as a folded prefix, nor one that
//! can't be read through a store's clients (`a//b`, or the `folder/` that consoles make); a page without entries is the last.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStore, Result};

use super::Bucket;
use super::lister::{Lister, Question};

/// Sorts after every key that goes on from the text before it.
const LAST_CHAR: char = '\u{10FFFF}';
/// The most entries that one request to S3 returns.
const MAX_PAGE: usize = 1000;

/// What to list.
pub struct Listing<'a> {
    /// Only keys that start so; need not end at a `/`.
    pub prefix: &'a str,
    /// Fold keys that have another `/` after the prefix.
    pub fold: bool,
    /// Where to start.
    pub start: Start<'a>,
    /// At most so many entries.
    pub limit: usize,
    /// Keys that may be shown.
    pub visible: &'a (dyn Fn(&str) -> bool + Send + Sync),
}

/// Where a page starts.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// With the first entry.
    First,
    /// After this key, which need not exist.
    After(&'a str),
    /// Where the page ended that gave this token.
    Token(&'a str),
}

/// Some entries of a listing.
pub struct Page {
    /// Object keys, or folded prefixes with their final `/`, each with the object's details.
    pub entries: Vec<(String, Entry)>,
    /// Where the next page starts, if one follows.
    pub next: Option<String>,
}

/// One line of a listing.
pub enum Entry {
    /// An object.
    Object {
        /// Its size in bytes.
        size: u64,
        /// When it was written.
        modified: DateTime<Utc>,
        /// Its entity tag, as the store gives it.
        etag: Option<String>,
    },
    /// Some keys that start with this entry's text.
    Folded,
}

impl From<ObjectMeta> for Entry {
    fn from(meta: ObjectMeta) -> Self {
        Self::Object { size: meta.size, modified: meta.last_modified, etag: meta.e_tag }
    }
}

impl Bucket {
    /// One page of a listing.
    pub async fn list(&self, listing: &Listing<'_>) -> Result<Page> {
        match &self.pages {
            Some(lister) => list_pages(lister, listing).await,
            None => list_directory(self.data.as_ref(), listing).await,
        }
    }
}

async fn list_pages(lister: &Lister, listing: &Listing<'_>) -> Result<Page> {
    let mut entries = BTreeMap::new();
    let (mut offset, mut token) = match listing.start {
        Start::First => (None, None),
        Start::After(key) => (Some(key.to_owned()), None),
        Start::Token(token) => (None, Some(token.to_owned())),
    };
    loop {
        let question = Question {
            prefix: listing.prefix,
            delimiter: listing.fold.then_some("/"),
            start_after: offset.as_deref(),
            token: token.as_deref(),
            max_keys: (listing.limit - entries.len()).min(MAX_PAGE),
        };
        let page = lister.ask(&question).await?;
        let found = page.entries.into_iter();
        entries.extend(found.filter(|(text, entry)| usable(text, entry) && (listing.visible)(text)));
        (offset, token) = (None, page.next);
        if token.is_none() || entries.len() >= listing.limit {
            return Ok(Page { entries: entries.into_iter().collect(), next: token });
        }
        if let Some(hidden) = page.last_key.filter(|last| !(listing.visible)(last)) {
            // Don't page through what may not be seen: go on behind its folder.
            let top = hidden.split('/').next().unwrap_or_default();
            offset = Some(format!("{top}/{LAST_CHAR}"));
            token = None;
        }
    }
}

/// Whether a client reads back this very key, or keys below this folded prefix.
fn usable(text: &str, entry: &Entry) -> bool {
    let key = match entry {
        Entry::Object { .. } => Some(text),
        Entry::Folded => text.strip_suffix('/'),
    };
    key.is_some_and(|key| Path::parse(key).is_ok_and(|path| path.as_ref() == key))
}

async fn list_directory(store: &dyn ObjectStore, listing: &Listing<'_>) -> Result<Page> {
    let folder = listing.prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    let folder = Path::parse(folder)?;
    let folder = (!folder.is_root()).then_some(&folder);
    let wanted = |text: &str| {
        let follows = match listing.start {
            Start::First => true,
            // A folded prefix may hold keys on both sides of the key.
            Start::After(key) => text > key || (text.ends_with('/') && key.starts_with(text)),
            Start::Token(last) => text > last,
        };
        follows && text.starts_with(listing.prefix) && (listing.visible)(text)
    };
    let mut entries = BTreeMap::new();
    if listing.fold {
        let found = store.list_with_delimiter(folder).await?;
        entries.extend(texts(found).filter(|(text, _)| wanted(text)));
    } else {
        let mut found = store.list(folder);
        while let Some(object) = found.try_next().await? {
            if wanted(object.location.as_ref()) {
                entries.insert(object.location.to_string(), Entry::from(object));
                if entries.len() > listing.limit + 1 {
                    entries.pop_last();
                }
            }
        }
    }
    let more = entries.len() > listing.limit;
    let entries: Vec<_> = entries.into_iter().take(listing.limit).collect();
    let next = more.then(|| entries.last().map(|(text, _)| text.clone())).flatten();
    Ok(Page { entries, next })
}

fn texts(found: ListResult) -> impl Iterator<Item = (String, Entry)> {
    let folded = found.common_prefixes.into_iter().map(|prefix| (format!("{prefix}/"), Entry::Folded));
    let objects = found.objects.into_iter().map(|object| (object.location.to_string(), Entry::from(object)));
    folded.chain(objects)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    async fn bucket(keys: &[&str]) -> Bucket {
        let store = Arc::new(InMemory::new());
        for key in keys {
            let path = Path::parse(key).expect("a legal key");
            store.put(&path, PutPayload::from_static(b"x")).await.expect("memory takes it");
        }
        Bucket::of_one("sm-a-raw".parse().expect("legal"), store)
    }

    async fn texts(bucket: &Bucket, prefix: &str, fold: bool, limit: usize) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let start = token.as_deref().map_or(Start::First, Start::Token);
            let listing = Listing { prefix, fold, start, limit, visible: &|key| !key.starts_with("hidden/") };
            let page = bucket.list(&listing).await.expect("memory lists");
            pages.push(page.entries.into_iter().map(|(text, _)| text).collect());
            token = page.next;
            if token.is_none() {
                return pages;
            }
        }
    }

    #[tokio::test]
    async fn pages_follow_each_other_in_key_order_without_gap_or_repeat() {
        let bucket = bucket(&["b/2", "a", "b/1", "hidden/x", "b-c", "z"]).await;
        let all = texts(&bucket, "", false, 2).await;
        assert_eq!(all, [vec!["a", "b-c"], vec!["b/1", "b/2"], vec!["z"]]);
        let folded = texts(&bucket, "", true, 2).await;
        assert_eq!(folded, [vec!["a", "b-c"], vec!["b/", "z"]]);
    }

    #[tokio::test]
    async fn a_list_may_start_after_any_key() {
        let bucket = bucket(&["a", "b/1", "b/2", "c"]).await;
        for (fold, after, expected) in [
            (false, "b/1", vec!["b/2", "c"]),
            (false, "aa", vec!["b/1", "b/2", "c"]),
            (true, "b/1", vec!["b/", "c"]),
            (true, "b0", vec!["c"]),
        ] {
            let start = Start::After(after);
            let page = bucket.list(&Listing { prefix: "", fold, start, limit: 9, visible: &|_| true }).await;
            let found: Vec<_> = page.expect("memory lists").entries.into_iter().map(|(text, _)| text).collect();
            assert_eq!(found, expected, "after {after}");
        }
    }

    #[tokio::test]
    async fn a_prefix_may_end_anywhere() {
        let bucket = bucket(&["m/part-1", "m/part-2", "m/other", "m/part/3", "m2/part-1"]).await;
        assert_eq!(texts(&bucket, "m/part", false, 9).await, [["m/part-1", "m/part-2", "m/part/3"]]);
        assert_eq!(texts(&bucket, "m/part", true, 9).await, [["m/part-1", "m/part-2", "m/part/"]]);
        assert_eq!(texts(&bucket, "m", true, 9).await, [["m/", "m2/"]]);
        assert_eq!(texts(&bucket, "n", false, 9).await, [Vec::<String>::new()]);
    }
}
