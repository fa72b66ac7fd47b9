//! ListObjectsV2 against an S3 service, by ourselves: `object_store` gives up a whole page for one key that it finds odd, and
//! other people's buckets have such keys.
//!
//! Asks for one page, signed, three times at most. Keys come back as they are; whether one is usable is for [`super::listing`].
//! Other queries of a bucket go the same way ([`super::versions`]).

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::StatusCode;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::{Error, Result};
use serde::Deserialize;

use super::listing::Entry;
use crate::clock::Backoff;

const ATTEMPTS: u32 = 3;
const DEADLINE: Duration = Duration::from_secs(30);

/// Lists one bucket.
pub(super) struct Lister {
    pub client: HttpClient,
    /// The bucket's own address, without a final `/`.
    pub address: String,
    pub region: String,
    pub credentials: AwsCredentialProvider,
}

/// What to ask for, in S3's words.
#[derive(Default)]
pub(super) struct Question<'a> {
    pub prefix: &'a str,
    pub delimiter: Option<&'a str>,
    pub start_after: Option<&'a str>,
    pub token: Option<&'a str>,
    pub max_keys: usize,
}

/// What S3 answers.
pub(super) struct Answer {
    /// Objects, then folded prefixes, each in the order in which they came.
    pub entries: Vec<(String, Entry)>,
    /// The last object, which need not be an entry's greatest.
    pub last_key: Option<String>,
    pub next: Option<String>,
}

impl Lister {
    /// One page.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<Answer> {
        parse(&self.get(&question.encoded()).await?).map_err(generic)
    }

    /// What the bucket itself answers to a query of ours, encoded.
    pub(super) async fn get(&self, query: &str) -> Result<Bytes> {
        let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut attempt = 1;
        loop {
            let failed = match tokio::time::timeout(DEADLINE, self.attempt(query)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failed)) => failed,
                Err(_) => Failed::Again("no answer in time".into()),
            };
            match failed {
                Failed::Again(why) if attempt < ATTEMPTS => {
                    tracing::debug!(why, "a bucket is asked again");
                    attempt += 1;
                    tokio::time::sleep(waits.after_failure()).await;
                }
                Failed::Again(why) => return Err(generic(why)),
                Failed::Final(error) => return Err(error),
            }
        }
    }

    async fn attempt(&self, query: &str) -> std::result::Result<Bytes, Failed> {
        let credential = self.credentials.get_credential().await.map_err(Failed::Final)?;
        let uri = format!("{}?{query}", self.address);
        let request = http::Request::get(uri).body(HttpRequestBody::empty());
        let mut request = request.map_err(|error| Failed::Final(generic(error)))?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let answer = self.client.execute(request).await.map_err(|error| Failed::Again(error.to_string()))?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(|error| Failed::Again(error.to_string()))?;
        if status.is_success() {
            return Ok(body);
        }
        let why = format!("the store answered {status} to a query of a bucket");
        Err(match status {
            StatusCode::NOT_FOUND => Failed::Final(Error::NotFound { path: String::new(), source: why.into() }),
            StatusCode::FORBIDDEN => Failed::Final(Error::PermissionDenied { path: String::new(), source: why.into() }),
            StatusCode::UNAUTHORIZED => {
                Failed::Final(Error::Unauthenticated { path: String::new(), source: why.into() })
            }
            StatusCode::NOT_IMPLEMENTED => Failed::Final(Error::NotImplemented {
                operation: "this query of a bucket".into(),
                implementer: "the store".into(),
            }),
            StatusCode::TOO_MANY_REQUESTS => Failed::Again(why),
            status if status.is_server_error() => Failed::Again(why),
            _ => Failed::Final(generic(why)),
        })
    }
}

enum Failed {
    Again(String),
    Final(Error),
}

impl Question<'_> {
    fn encoded(&self) -> String {
        let max_keys = self.max_keys.to_string();
        let pairs = [
            ("continuation-token", self.token),
            ("delimiter", self.delimiter),
            ("list-type", Some("2")),
            ("max-keys", Some(max_keys.as_str())),
            ("prefix", Some(self.prefix).filter(|prefix| !prefix.is_empty())),
            ("start-after", self.start_after),
        ];
        let given = pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", percent_encoded(value?))));
        given.collect::<Vec<_>>().join("&")
    }
}

/// Text as one value of a query or form: everything but letters, digits and `-_.~` escaped.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Xml {
    #[serde(default)]
    contents: Vec<Contents>,
    #[serde(default)]
    common_prefixes: Vec<CommonPrefix>,
    next_continuation_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    last_modified: DateTime<Utc>,
    #[serde(rename = "ETag")]
    e_tag: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CommonPrefix {
    prefix: String,
}

fn parse(xml: &[u8]) -> std::result::Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let xml: Xml = quick_xml::de::from_str(std::str::from_utf8(xml)?)?;
    let last_key = xml.contents.last().map(|object| object.key.clone());
    let objects = xml.contents.into_iter().map(|object| {
        let entry = Entry::Object { size: object.size, modified: object.last_modified, etag: object.e_tag };
        (object.key, entry)
    });
    let folded = xml.common_prefixes.into_iter().map(|folded| (folded.prefix, Entry::Folded));
    let next = xml.next_continuation_token.filter(|token| !token.is_empty());
    Ok(Answer { entries: objects.chain(folded).collect(), last_key, next })
}

pub(super) fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "S3", source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_come_back_as_they_are() {
        let object = |key: &str| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2024-01-31T12:00:00.000Z</LastModified>\
                 <ETag>&quot;t&quot;</ETag><Size>3</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        };
        let xml = format!(
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
             {}<CommonPrefixes><Prefix>f/</Prefix></CommonPrefixes>{}{}{}<IsTruncated>true</IsTruncated>\
             <NextContinuationToken>t/o=</NextContinuationToken></ListBucketResult>",
            object("folder/"),
            object("/a//b"),
            object("a &amp; b&#10;&lt;c&gt; "),
            object(" d+%20"),
        );
        let answer = parse(xml.as_bytes()).expect("a legal answer");
        let texts: Vec<_> = answer.entries.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["folder/", "/a//b", "a & b\n<c> ", " d+%20", "f/"]);
        assert_eq!((answer.last_key.as_deref(), answer.next.as_deref()), (Some(" d+%20"), Some("t/o=")));
        assert!(matches!(&answer.entries[1].1, Entry::Object { size: 3, etag: Some(tag), .. } if tag == "\"t\""));
    }

    #[test]
    fn an_empty_bucket_is_an_empty_answer_and_half_an_answer_is_an_error() {
        let whole = "<ListBucketResult><Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>";
        let answer = parse(whole.as_bytes()).expect("a legal answer");
        assert!(answer.entries.is_empty() && answer.next.is_none());
        assert!(parse(&whole.as_bytes()[..40]).is_err());
    }

    #[test]
    fn a_question_is_written_so_that_no_value_can_end_it() {
        let question = Question { prefix: "a b&c=+%é", token: Some("t/="), max_keys: 7, ..Question::default() };
        assert_eq!(
            question.encoded(),
            "continuation-token=t%2F%3D&list-type=2&max-keys=7&prefix=a%20b%26c%3D%2B%25%C3%A9"
        );
    }
}
