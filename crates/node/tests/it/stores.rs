//! The stores against a real S3 server: plain keys, a role's temporary credentials, and lists in pages.

use std::sync::Arc;

use node::stores::{Bucket, BucketName, BucketStores, BucketTemplates, Listing, S3Config, Start, StoreConfig};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutPayload};

use crate::seaweed::{ROLE_ARN, SeaweedFs};

fn name(text: &str) -> BucketName {
    text.parse().expect("a legal bucket name")
}

fn stores(config: S3Config) -> BucketStores {
    BucketStores::new(StoreConfig::S3(config), BucketTemplates::default()).expect("a good configuration")
}

async fn put(bucket: &Bucket, key: &str) {
    let path = Path::parse(key).expect("a legal key");
    bucket.data.put(&path, PutPayload::from_static(b"x")).await.expect("the store takes it");
}

/// All entries of a listing, in key order.
async fn keys(bucket: &Bucket, prefix: &str, fold: bool, limit: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let start = token.as_deref().map_or(Start::First, Start::Token);
        let listing = Listing { prefix, fold, start, limit, visible: &|key| !key.starts_with("hidden/") };
        let page = bucket.list(&listing).await.expect("the store lists");
        assert!(page.entries.len() <= limit);
        assert!(!page.entries.is_empty() || page.next.is_none(), "an empty page is the last");
        all.extend(page.entries.into_iter().map(|(text, _)| text));
        token = page.next;
        if token.is_none() {
            all.sort();
            return all;
        }
    }
}

/// S8 of docs/seed-coverage.md.
#[tokio::test]
async fn a_role_is_assumed_and_its_temporary_credentials_work() {
    let server = SeaweedFs::start(&[name("sm-a-analytics")]).await;
    let with_role = S3Config { role_arn: Some(ROLE_ARN.into()), ..server.config() };
    let bucket = stores(with_role).bucket(&name("sm-a-analytics")).expect("opens");
    put(&bucket, "k").await;
    let create = async |key: &str| {
        bucket.log.put_opts(&Path::from(key), PutPayload::from_static(b"y"), PutMode::Create.into()).await
    };
    assert!(matches!(create("k").await, Err(object_store::Error::AlreadyExists { .. })));
    create("new").await.expect("a new name is won");

    let with_other = S3Config { role_arn: Some("arn:aws:iam::role/Nobody".into()), ..server.config() };
    let bucket = stores(with_other).bucket(&name("sm-a-analytics")).expect("opens");
    let refused = bucket.data.head(&"k".into()).await.expect_err("a role that does not exist");
    assert!(refused.to_string().contains("Nobody"), "{refused}");
}

#[tokio::test]
async fn s3_does_all_that_the_replica_asks_of_a_store_with_keys_and_with_a_role() {
    let server = SeaweedFs::start(&[name("sm-a-analytics")]).await;
    let with_role = S3Config { role_arn: Some(ROLE_ARN.into()), ..server.config() };
    let open = |config| stores(config).bucket(&name("sm-a-analytics")).expect("opens");
    let (by_keys, by_role) = (open(server.config()), open(with_role));
    let (retrying, once) = (Path::from("retrying"), Path::from("once"));
    let checked = tokio::join!(
        replica::store::conformance::check(&by_keys.data, &retrying),
        replica::store::conformance::check(&by_role.log, &once),
    );
    assert_eq!(checked, (Ok(()), Ok(())));
}

#[tokio::test]
async fn s3_lists_like_a_directory_page_by_page_and_skips_what_is_hidden() {
    let server = SeaweedFs::start(&[name("sm-a-raw")]).await;
    let bucket = stores(server.config()).bucket(&name("sm-a-raw")).expect("opens");
    let mut expected: Vec<String> = (0..7).map(|n| format!("m/part-{n}")).collect();
    expected.extend(["a b+c%20d", "m/p/1", "m/p/2", "m-1", "z/é=1", "hidden-not"].map(str::to_owned));
    for key in &expected {
        put(&bucket, key).await;
    }
    for n in 0..9 {
        put(&bucket, &format!("hidden/{n}")).await;
    }
    expected.sort();
    for limit in [1, 2, 3, 5, 100] {
        assert_eq!(keys(&bucket, "", false, limit).await, expected, "limit {limit}");
        let folded = ["a b+c%20d", "hidden-not", "m-1", "m/", "z/"];
        assert_eq!(keys(&bucket, "", true, limit).await, folded, "limit {limit}");
        let below = ["m/p/", "m/part-0", "m/part-1", "m/part-2", "m/part-3", "m/part-4", "m/part-5", "m/part-6"];
        assert_eq!(keys(&bucket, "m/p", true, limit).await, below, "limit {limit}");
    }
    assert_eq!(keys(&bucket, "none", false, 5).await, [""; 0]);
}

#[tokio::test]
async fn folders_that_consoles_make_do_not_show_as_objects() {
    let server = SeaweedFs::start(&[name("sm-a-raw")]).await;
    let bucket = stores(server.config()).bucket(&name("sm-a-raw")).expect("opens");
    assert!(server.put("sm-a-raw/folder/", "").await, "SeaweedFS takes a folder");
    put(&bucket, "folder/x").await;
    assert_eq!(keys(&bucket, "", false, 10).await, ["folder/x"]);
    assert_eq!(keys(&bucket, "", true, 10).await, ["folder/"]);
    assert_eq!(keys(&bucket, "folder/", true, 10).await, ["folder/x"]);
}

#[tokio::test]
async fn a_store_that_is_away_is_an_error_and_not_an_empty_list() {
    let nowhere = S3Config {
        endpoint: Some("http://127.0.0.1:1".into()),
        access_key_id: Some("k".into()),
        secret_access_key: Some("s".into()),
        ..S3Config::default()
    };
    let stores = Arc::new(stores(nowhere));
    let bucket = stores.bucket(&name("sm-a-raw")).expect("opening asks nobody");
    assert!(bucket.log.put(&Path::from("k"), PutPayload::from_static(b"x")).await.is_err());
    let listing = Listing { prefix: "", fold: false, start: Start::First, limit: 5, visible: &|_| true };
    assert!(bucket.list(&listing).await.is_err());
}
