//! Older versions of a bucket's objects: whether the store keeps any, which there are, what they hold.
//!
//! Only S3 has them. Reads; switches nothing on and deletes nothing. The gateway has none of this: no engine sees a version.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore, Result};
use replica::verify::{Version, Versions};
use serde::Deserialize;

use super::Bucket;
use super::lister::{Lister, generic, percent_encoded};

/// Whether a bucket keeps what is overwritten or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// It does.
    On,
    /// It did, and keeps what it has.
    Suspended,
    /// It does not.
    Off,
    /// The store has no such thing.
    None,
}

/// A bucket's older versions.
pub struct BucketVersions {
    lister: Arc<Lister>,
    data: Arc<dyn ObjectStore>,
}

impl std::fmt::Debug for BucketVersions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketVersions").finish_non_exhaustive()
    }
}

impl Bucket {
    /// The bucket's older versions; `None` if the store can't have any.
    pub fn versions(&self) -> Option<BucketVersions> {
        Some(BucketVersions { lister: self.pages.clone()?, data: self.data.clone() })
    }

    /// Whether it keeps older versions.
    pub async fn versioning(&self) -> Result<Versioning> {
        let Some(lister) = &self.pages else { return Ok(Versioning::None) };
        parse_status(&lister.get("versioning=").await?).map_err(generic)
    }
}

#[async_trait]
impl Versions for BucketVersions {
    async fn list(&self, prefix: &str) -> Result<Vec<Version>> {
        let mut found: Vec<(DateTime<Utc>, Version)> = Vec::new();
        let mut after: Option<(String, String)> = None;
        loop {
            let mut query = String::new();
            if let Some((key, _)) = &after {
                query.push_str(&format!("key-marker={}&", percent_encoded(key)));
            }
            query.push_str(&format!("prefix={}", percent_encoded(prefix)));
            if let Some((_, id)) = after.as_ref().filter(|(_, id)| !id.is_empty()) {
                query.push_str(&format!("&version-id-marker={}", percent_encoded(id)));
            }
            query.push_str("&versions=");
            let page = parse(&self.lister.get(&query).await?).map_err(generic)?;
            found.extend(page.versions);
            if page.next.is_none() || page.next == after {
                break;
            }
            after = page.next;
        }
        // Stable: what the store puts first among versions of one moment stays first.
        found.sort_by(|(one, a), (other, b)| a.key.cmp(&b.key).then(other.cmp(one)));
        Ok(found.into_iter().map(|(_, version)| version).collect())
    }

    async fn get(&self, key: &Key, id: &str) -> Result<Bytes> {
        let options = GetOptions { version: Some(id.to_owned()), ..GetOptions::default() };
        self.data.get_opts(key, options).await?.bytes().await
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

struct Page {
    versions: Vec<(DateTime<Utc>, Version)>,
    next: Option<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Xml {
    #[serde(default, rename = "$value")]
    entries: Vec<Element>,
}

#[derive(Deserialize)]
enum Element {
    Version(State),
    DeleteMarker(State),
    IsTruncated(bool),
    NextKeyMarker(String),
    NextVersionIdMarker(String),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    key: String,
    version_id: String,
    last_modified: DateTime<Utc>,
}

fn parse(xml: &[u8]) -> std::result::Result<Page, AnyError> {
    let xml: Xml = quick_xml::de::from_str(std::str::from_utf8(xml)?)?;
    let (mut versions, mut truncated) = (Vec::new(), false);
    let (mut key, mut id) = (None, None);
    let mut note = |state: State, deleted| {
        // Keys that no replica has are none of ours.
        if let Ok(key) = Key::parse(&state.key) {
            versions.push((state.last_modified, Version { key, id: state.version_id, deleted }));
        }
    };
    for entry in xml.entries {
        match entry {
            Element::Version(state) => note(state, false),
            Element::DeleteMarker(state) => note(state, true),
            Element::IsTruncated(more) => truncated = more,
            Element::NextKeyMarker(text) => key = Some(text),
            Element::NextVersionIdMarker(text) => id = Some(text),
            Element::Other => {}
        }
    }
    let next = key.filter(|key| truncated && !key.is_empty()).map(|key| (key, id.unwrap_or_default()));
    Ok(Page { versions, next })
}

fn parse_status(xml: &[u8]) -> std::result::Result<Versioning, AnyError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Configuration {
        status: Option<String>,
    }
    let configuration: Configuration = quick_xml::de::from_str(std::str::from_utf8(xml)?)?;
    Ok(match configuration.status.as_deref() {
        Some("Enabled") => Versioning::On,
        Some("Suspended") => Versioning::Suspended,
        _ => Versioning::Off,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_delete_markers_come_in_the_order_of_the_store() {
        let state = |name: &str, key: &str, id: &str| {
            format!(
                "<{name}><Key>{key}</Key><VersionId>{id}</VersionId><IsLatest>false</IsLatest>\
                 <LastModified>2026-01-31T12:00:00.000Z</LastModified><Owner><ID>x</ID></Owner></{name}>"
            )
        };
        let xml = format!(
            "<?xml version=\"1.0\"?><ListVersionsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix>a</Prefix>\
             <KeyMarker/><NextKeyMarker>a/2</NextKeyMarker><NextVersionIdMarker>7</NextVersionIdMarker><IsTruncated>true</IsTruncated>\
             {}{}{}{}</ListVersionsResult>",
            state("DeleteMarker", "a/1", "3"),
            state("Version", "a/1", "2"),
            state("Version", "a//1", "2"),
            state("Version", "a/2", "7"),
        );
        let page = parse(xml.as_bytes()).expect("a legal answer");
        let listed: Vec<_> = page.versions.iter().map(|(_, v)| (v.key.as_ref(), v.id.as_str(), v.deleted)).collect();
        assert_eq!(listed, [("a/1", "3", true), ("a/1", "2", false), ("a/2", "7", false)]);
        assert_eq!(page.next, Some(("a/2".into(), "7".into())));
    }

    #[test]
    fn a_bucket_that_never_had_versions_says_nothing() {
        let configuration = |inner: &str| {
            let xml = format!(
                "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{inner}</VersioningConfiguration>"
            );
            parse_status(xml.as_bytes()).expect("a legal answer")
        };
        assert_eq!(configuration(""), Versioning::Off);
        assert_eq!(configuration("<Status>Enabled</Status>"), Versioning::On);
        assert_eq!(configuration("<Status>Suspended</Status>"), Versioning::Suspended);
    }
}
