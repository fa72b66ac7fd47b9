//! Listing a bucket the way S3 does: by any prefix, in key order, page by page, with what lies beyond a `/` folded up.
//!
//! S3 does this itself; other stores only walk directories, so their entries are gathered, sorted and cut here. Pages are
//! stateless: a page starts after a key, and nothing is remembered between two of them.
//!
//! **Invariant:** a page never names a key that its `visible` refuses, neither as an object nor as a folded prefix, and an
//! empty page means that nothing follows.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, Result};

use super::Bucket;

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
    /// Only entries that sort after this one.
    pub after: Option<&'a str>,
    /// At most so many entries.
    pub limit: usize,
    /// Keys that may be shown.
    pub visible: &'a (dyn Fn(&str) -> bool + Send + Sync),
}

/// Entries in key order.
pub struct Page {
    /// Object keys, or folded prefixes with their final `/`, each with the object's details.
    pub entries: Vec<(String, Entry)>,
    /// Whether entries follow after the last of these.
    pub more: bool,
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
        Self::Object {
            size: meta.size,
            modified: meta.last_modified,
            etag: meta.e_tag,
        }
    }
}

impl Listing<'_> {
    /// Whether an entry of this text belongs into the listing.
    fn wants(&self, text: &str) -> bool {
        let follows = match self.after {
            None => true,
            // A folded prefix may hold keys on both sides of the starting point.
            Some(after) => text > after || (text.ends_with('/') && text != after && after.starts_with(text)),
        };
        follows && text.starts_with(self.prefix) && (self.visible)(text)
    }
}

impl Bucket {
    /// One page of a listing.
    pub async fn list(&self, listing: &Listing<'_>) -> Result<Page> {
        match &self.pages {
            Some(store) => list_pages(store.as_ref(), listing).await,
            None => list_directory(self.data.as_ref(), listing).await,
        }
    }
}

async fn list_pages(store: &dyn PaginatedListStore, listing: &Listing<'_>) -> Result<Page> {
    let mut entries = BTreeMap::new();
    let mut start = listing.after.map(|after| match listing.fold && after.ends_with('/') {
        true => format!("{after}{LAST_CHAR}"),
        false => after.to_owned(),
    });
    let mut token = None;
    loop {
        let wanted = (listing.limit - entries.len()).min(MAX_PAGE);
        let options = PaginatedListOptions {
            offset: start.take(),
            delimiter: listing.fold.then_some(Cow::Borrowed("/")),
            max_keys: Some(wanted),
            page_token: token.take(),
            ..PaginatedListOptions::default()
        };
        let prefix = (!listing.prefix.is_empty()).then_some(listing.prefix);
        let page = store.list_paginated(prefix, options).await?;
        let mut last = String::new();
        let folded = page.result.common_prefixes.into_iter().map(|p| (format!("{p}/"), Entry::Folded));
        let objects = page.result.objects.into_iter().map(|o| (o.location.to_string(), Entry::from(o)));
        for (text, entry) in folded.chain(objects) {
            if text > last {
                last.clone_from(&text);
            }
            if listing.wants(&text) {
                entries.insert(text, entry);
            }
        }
        token = page.page_token;
        let more = token.is_some();
        if !more || entries.len() >= listing.limit {
            let entries = entries.into_iter().collect();
            return Ok(Page { entries, more });
        }
        if !(listing.visible)(&last) {
            // Don't page through what may not be seen: go on behind its folder.
            let top = last.split('/').next().unwrap_or_default();
            start = Some(format!("{top}/{LAST_CHAR}"));
            token = None;
        }
    }
}

async fn list_directory(store: &dyn ObjectStore, listing: &Listing<'_>) -> Result<Page> {
    let folder = listing.prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    let folder = Path::parse(folder)?;
    let folder = (!folder.is_root()).then_some(&folder);
    let mut entries = BTreeMap::new();
    if listing.fold {
        let found = store.list_with_delimiter(folder).await?;
        let folded = found.common_prefixes.into_iter().map(|p| (format!("{p}/"), Entry::Folded));
        let objects = found.objects.into_iter().map(|o| (o.location.to_string(), Entry::from(o)));
        entries.extend(folded.chain(objects).filter(|(text, _)| listing.wants(text)));
    } else {
        let mut found = store.list(folder);
        while let Some(object) = found.try_next().await? {
            if listing.wants(object.location.as_ref()) {
                entries.insert(object.location.to_string(), Entry::from(object));
                if entries.len() > listing.limit + 1 {
                    entries.pop_last();
                }
            }
        }
    }
    let more = entries.len() > listing.limit;
    let entries = entries.into_iter().take(listing.limit).collect();
    Ok(Page { entries, more })
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
        let mut after: Option<String> = None;
        loop {
            let listing = Listing {
                prefix,
                fold,
                after: after.as_deref(),
                limit,
                visible: &|key| !key.starts_with("hidden/"),
            };
            let page = bucket.list(&listing).await.expect("memory lists");
            let keys: Vec<_> = page.entries.into_iter().map(|(text, _)| text).collect();
            after = keys.last().cloned();
            pages.push(keys);
            if !page.more {
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
    async fn a_prefix_may_end_anywhere() {
        let bucket = bucket(&["m/part-1", "m/part-2", "m/other", "m/part/3", "m2/part-1"]).await;
        assert_eq!(texts(&bucket, "m/part", false, 9).await, [["m/part-1", "m/part-2", "m/part/3"]]);
        assert_eq!(texts(&bucket, "m/part", true, 9).await, [["m/part-1", "m/part-2", "m/part/"]]);
        assert_eq!(texts(&bucket, "m", true, 9).await, [["m/", "m2/"]]);
        assert_eq!(texts(&bucket, "n", false, 9).await, [Vec::<String>::new()]);
    }
}
