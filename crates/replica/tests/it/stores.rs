//! The directory store, and what every store must do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use replica::FileStore;
use replica::store::conformance;

fn file_store(dir: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(FileStore::open(dir).expect("opens"))
}

#[tokio::test]
async fn memory_conforms() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    conformance::check(&store, &Key::from("x")).await.expect("conforms");
}

#[tokio::test]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    conformance::check(&file_store(dir.path()), &Key::from("x")).await.expect("conforms");
}

#[tokio::test]
async fn a_store_that_overwrites_on_create_does_not_conform() {
    #[derive(Debug)]
    struct Careless(InMemory);
    impl std::fmt::Display for Careless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "careless")
        }
    }
    #[async_trait::async_trait]
    impl ObjectStore for Careless {
        async fn put_opts(
            &self,
            key: &Key,
            body: object_store::PutPayload,
            _: PutOptions,
        ) -> object_store::Result<object_store::PutResult> {
            self.0.put(key, body).await
        }
        async fn put_multipart_opts(
            &self,
            key: &Key,
            options: object_store::PutMultipartOptions,
        ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
            self.0.put_multipart_opts(key, options).await
        }
        async fn get_opts(
            &self,
            key: &Key,
            options: object_store::GetOptions,
        ) -> object_store::Result<object_store::GetResult> {
            self.0.get_opts(key, options).await
        }
        fn delete_stream(
            &self,
            keys: futures::stream::BoxStream<'static, object_store::Result<Key>>,
        ) -> futures::stream::BoxStream<'static, object_store::Result<Key>> {
            self.0.delete_stream(keys)
        }
        fn list(
            &self,
            prefix: Option<&Key>,
        ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
            self.0.list(prefix)
        }
        async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<object_store::ListResult> {
            self.0.list_with_delimiter(prefix).await
        }
        async fn copy_opts(
            &self,
            from: &Key,
            to: &Key,
            options: object_store::CopyOptions,
        ) -> object_store::Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }
    let store: Arc<dyn ObjectStore> = Arc::new(Careless(InMemory::new()));
    assert!(conformance::check(&store, &Key::from("x")).await.is_err());
}

const RACE_DIR: &str = "REPLICA_TEST_RACE_DIR";
const RACE_ROUNDS: usize = 40;

/// Not a test by itself: a process of the race below.
#[tokio::test]
async fn racer() {
    let Ok(dir) = std::env::var(RACE_DIR) else { return };
    let store = file_store(dir.as_ref());
    let mut won = Vec::new();
    for round in 0..RACE_ROUNDS {
        let key = Key::from(format!("log/{round:020}"));
        let body = format!("{} {}", std::process::id(), "x".repeat(10_000));
        match store.put_opts(&key, body.into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) => won.push(round.to_string()),
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    println!("won: {}", won.join(" "));
}

#[tokio::test]
async fn among_eight_processes_every_slot_has_one_winner() {
    let dir = tempfile::tempdir().expect("a directory");
    let this = std::env::current_exe().expect("a path");
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Command::new(&this);
            command.args(["stores::racer", "--exact", "--nocapture"]).env(RACE_DIR, dir.path()).stdout(Stdio::piped());
            command.spawn().expect("starts")
        })
        .collect();
    let mut winners = vec![Vec::new(); RACE_ROUNDS];
    for racer in racers {
        let pid = racer.id();
        let output = racer.wait_with_output().expect("ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let won = text
            .lines()
            .find_map(|line| line.split_once("won: ").map(|(_, rest)| rest))
            .unwrap_or_else(|| panic!("{text}"));
        for round in won.split_whitespace() {
            winners[round.parse::<usize>().expect("a number")].push(pid);
        }
    }
    let store = file_store(dir.path());
    for (round, winners) in winners.iter().enumerate() {
        let [winner] = winners[..] else { panic!("round {round}: {winners:?}") };
        let body =
            store.get(&Key::from(format!("log/{round:020}"))).await.expect("there").bytes().await.expect("reads");
        assert!(body.starts_with(format!("{winner} ").as_bytes()), "round {round} holds another's bytes");
        assert_eq!(body.len(), format!("{winner} ").len() + 10_000, "whole");
    }
}

#[tokio::test]
async fn links_are_neither_followed_nor_listed() {
    let (dir, outside) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    std::fs::write(outside.path().join("secret"), "secret").expect("writes");
    let store = file_store(dir.path());
    std::os::unix::fs::symlink(outside.path(), dir.path().join("folder")).expect("links");
    std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("file")).expect("links");
    for key in ["folder/secret", "file"] {
        let key = Key::from(key);
        assert!(matches!(store.get(&key).await, Err(object_store::Error::NotFound { .. })), "{key}");
    }
    assert!(store.put(&Key::from("folder/new"), "x".into()).await.is_err());
    assert!(!outside.path().join("new").exists());
    let listed: Vec<_> = futures::TryStreamExt::try_collect(store.list(None)).await.expect("lists");
    assert_eq!(listed, Vec::<object_store::ObjectMeta>::new());
    store.put(&Key::from("file"), "mine".into()).await.expect("replaces the link, not its target");
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).expect("there"), "secret");
}

#[tokio::test]
async fn a_file_put_there_by_hand_is_an_object() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(dir.path().join("metrics/2024 q1")).expect("creates");
    std::fs::write(dir.path().join("metrics/2024 q1/a+b 100%.parquet"), "rows").expect("writes");
    let store = file_store(dir.path());
    let key = Key::parse("metrics/2024 q1/a+b 100%.parquet").expect("a key");
    assert_eq!(store.get(&key).await.expect("there").bytes().await.expect("reads"), "rows");
    let listed: Vec<_> = futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None)).await.expect("lists");
    assert_eq!(listed[0].location, key);
}

#[tokio::test]
async fn what_a_crash_left_is_swept_and_what_is_being_written_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(file_store(dir.path()));
    let temporary = dir.path().join(".tarn-tmp");
    let an_hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let make = |name: &str| std::fs::File::create(temporary.join(name)).expect("creates");
    let (left, busy, _fresh) = (make("left"), make("busy"), make("fresh"));
    for old in [&left, &busy] {
        old.set_modified(an_hour_ago).expect("sets");
    }
    busy.lock().expect("locks");
    drop(file_store(dir.path()));
    let there = ["left", "busy", "fresh"].map(|name| temporary.join(name).exists());
    assert_eq!(there, [false, true, true]);
}

#[tokio::test]
async fn an_object_cannot_be_a_prefix_too_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = file_store(dir.path());
    store.put(&Key::from("a"), "x".into()).await.expect("puts");
    let error = store.put(&Key::from("a/b"), "y".into()).await.expect_err("refused");
    assert!(error.to_string().contains("prefix"), "{error}");
    assert_eq!(store.get(&Key::from("a")).await.expect("there").bytes().await.expect("reads"), "x");
}
