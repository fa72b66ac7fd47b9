//! An object store in a directory: durable, atomic, with a create-if-absent that has exactly one winner among processes.
//!
//! Not a cache and not a POSIX view: names map to keys one to one (see [`names`]), links are never followed, and a key cannot be
//! both an object and a prefix of others (S3 allows that; here the second one is refused).
//!
//! # Consistency
//! An object appears under its name whole or not at all: it is written to a temporary file, synced, then linked (create) or
//! renamed (overwrite) into place. `link(2)` fails if the name exists, which makes the one winner.
//!
//! # Crash consistency
//! The directory is synced before success is reported, and every directory made on the way. A crash leaves temporary files in
//! `.tarn-tmp`; those that nobody holds are swept when the store is opened.
//!
//! # Cancellation
//! File work runs on blocking threads to its end; a dropped put may still land, as with any store.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{
    Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rustix::fs::{AtFlags, Mode, OFlags};

mod dirs;
mod list;
mod multipart;
pub mod names;

use dirs::Root;

const STORE: &str = "file";
/// A body is read in pieces of this size.
const CHUNK_BYTES: u64 = 1 << 20;

/// An object store in a local directory.
#[derive(Clone)]
pub struct FileStore {
    root: Arc<Root>,
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileStore({})", self.root.path.display())
    }
}

impl fmt::Display for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileStore({})", self.root.path.display())
    }
}

impl FileStore {
    /// Opens a store in `dir`, which is created if it is missing. Refused on FUSE and where `link(2)` does not work: there the
    /// one winner of a create could not be promised.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let root = Root::open(dir)?;
        if let Some(kind) = crate::mount::bridge(dir)? {
            return Err(std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                format!(
                    "the store's directory is on {kind}, which does not promise atomic links; use a local file system"
                ),
            ));
        }
        root.probe_links()?;
        root.sweep_temporary()?;
        Ok(Self { root: Arc::new(root) })
    }

    /// The directory.
    pub fn path(&self) -> &PathBuf {
        &self.root.path
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Root) -> Result<T> + Send + 'static) -> Result<T> {
        let root = Arc::clone(&self.root);
        tokio::task::spawn_blocking(move || work(&root)).await.map_err(|source| Error::JoinError { source })?
    }

    fn metas(&self, prefix: Option<&Key>, after: Option<Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let listing = async move { store.run(move |root| list::recursive(root, &prefix, after.as_ref())).await };
        stream::once(listing).map_ok(|metas| stream::iter(metas.into_iter().map(Ok))).try_flatten().boxed()
    }
}

#[async_trait]
impl ObjectStore for FileStore {
    async fn put_opts(&self, location: &Key, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return Err(not_implemented("conditional update")),
        };
        let key = location.clone();
        self.run(move |root| {
            let temporary = root.temporary(&key, payload.iter().map(Bytes::as_ref))?;
            root.publish(temporary, &key, create)
        })
        .await
    }

    async fn put_multipart_opts(&self, location: &Key, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(multipart::Upload::start(self.clone(), location.clone()).await?))
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        let key = location.clone();
        self.run(move |root| {
            let file = root.open_object(&key)?;
            let meta = meta_of(&file, key)?;
            options.check_preconditions(&meta)?;
            let range = match &options.range {
                Some(range) => range.as_range(meta.size).map_err(generic)?,
                None => 0..meta.size,
            };
            let payload = if options.head { stream::empty().boxed() } else { body(file, range.clone()) };
            Ok(GetResult { payload: GetResultPayload::Stream(payload), meta, range, attributes: Attributes::default() })
        })
        .await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let store = self.clone();
        let delete = move |key: Key| {
            let store = store.clone();
            async move { store.run(move |root| root.remove(&key).map(|()| key)).await }
        };
        locations.map_ok(delete).try_buffered(8).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.metas(prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Key>, offset: &Key) -> BoxStream<'static, Result<ObjectMeta>> {
        self.metas(prefix, Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        self.run(move |root| list::one_level(root, &prefix)).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        let (from, to, create) = (from.clone(), to.clone(), matches!(options.mode, CopyMode::Create));
        self.run(move |root| {
            let mut source = root.open_object(&from)?;
            let temporary = root.temporary_from(&to, &mut source)?;
            root.publish(temporary, &to, create).map(|_| ())
        })
        .await
    }
}

/// Size, time and etag of an open object. The etag is the file's identity: contents are never changed in place.
fn meta_of(file: &File, location: Key) -> Result<ObjectMeta> {
    let meta = file.metadata().map_err(generic)?;
    Ok(meta_from(&meta, location))
}

fn meta_from(meta: &std::fs::Metadata, location: Key) -> ObjectMeta {
    let e_tag = format!("\"{:x}-{:x}-{:x}-{:x}\"", meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
    let nanos = u32::try_from(meta.mtime_nsec()).unwrap_or(0);
    let last_modified = DateTime::from_timestamp(meta.mtime(), nanos).unwrap_or_default();
    ObjectMeta { location, last_modified, size: meta.len(), e_tag: Some(e_tag), version: None }
}

/// Reads a range in pieces, each on a blocking thread. A file that became shorter is an error, never a short body.
fn body(file: File, range: std::ops::Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let file = Arc::new(file);
    stream::try_unfold(range, move |range| {
        let file = Arc::clone(&file);
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + CHUNK_BYTES);
            let read = move || {
                let mut chunk = vec![0; usize::try_from(end - range.start).unwrap_or(0)];
                file.read_exact_at(&mut chunk, range.start).map(|()| Bytes::from(chunk))
            };
            let chunk = tokio::task::spawn_blocking(read).await.map_err(|source| Error::JoinError { source })?;
            Ok(Some((chunk.map_err(generic)?, end..range.end)))
        }
    })
    .boxed()
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: STORE, source: source.into() }
}

fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.into(), implementer: STORE.into() }
}

/// What a system error means for a key.
fn key_error(key: &Key, error: rustix::io::Errno) -> Error {
    let (path, source) = (key.to_string(), Box::new(std::io::Error::from(error)));
    match error {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => Error::NotFound { path, source },
        rustix::io::Errno::EXIST => Error::AlreadyExists { path, source },
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: STORE, source },
    }
}

const NO_FLAGS: AtFlags = AtFlags::empty();
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);
const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
