//! Directory work: every step is relative to a descriptor of the store's root and never follows a link.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use object_store::path::Path as Key;
use object_store::{Error, PutResult, Result};
use rustix::fs::{AtFlags, FlockOperation, OFlags, linkat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use uuid::Uuid;

use super::{DIR_FLAGS, DIR_MODE, FILE_MODE, NO_FLAGS, generic, key_error, meta_of, names};

/// Where files are written before they get their names. Not a key: `.tarn` names are escaped.
pub(super) const TEMPORARY: &str = ".tarn-tmp";
/// A delete may take a directory away while a put is about to use it; the put then makes it again.
const RACES: usize = 20;
/// A file this young may not have been locked yet.
const FRESH_FILE: Duration = Duration::from_secs(60);
/// S3 users expect uploads in parts to stay for about this long.
const ABANDONED_UPLOAD: Duration = Duration::from_secs(7 * 24 * 3600);

/// The store's root.
pub(super) struct Root {
    pub path: PathBuf,
    pub dir: OwnedFd,
    pub temporary: OwnedFd,
}

/// A written, synced file without an object's name yet. Removed when dropped.
pub(super) struct Temporary<'a> {
    root: &'a Root,
    name: String,
    pub file: File,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(&self.root.temporary, self.name.as_str(), NO_FLAGS);
    }
}

impl Root {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        let dir = rustix::fs::open(&path, DIR_FLAGS, rustix::fs::Mode::empty())?;
        match mkdirat(&dir, TEMPORARY, DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let temporary = openat(&dir, TEMPORARY, DIR_FLAGS, rustix::fs::Mode::empty())?;
        Ok(Self { path, dir, temporary })
    }

    /// Proves that `link(2)` works and refuses an existing name.
    pub fn probe_links(&self) -> std::io::Result<()> {
        let (first, second) =
            (format!("probe-{}", Uuid::new_v4().simple()), format!("probe-{}", Uuid::new_v4().simple()));
        let file = openat(
            &self.temporary,
            first.as_str(),
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            FILE_MODE,
        )?;
        drop(file);
        let linked = linkat(&self.temporary, first.as_str(), &self.temporary, second.as_str(), NO_FLAGS);
        let again = linkat(&self.temporary, first.as_str(), &self.temporary, second.as_str(), NO_FLAGS);
        let _ = unlinkat(&self.temporary, first.as_str(), NO_FLAGS);
        let _ = unlinkat(&self.temporary, second.as_str(), NO_FLAGS);
        if linked.is_ok() && again == Err(Errno::EXIST) {
            return Ok(());
        }
        Err(std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "the store's file system has no hard links; use a local file system such as ext4 or xfs",
        ))
    }

    /// Removes temporary files whose writer is gone (a writer holds a lock on its own, soon after it made it) and uploads in parts
    /// that nobody went on with.
    pub fn sweep_temporary(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(self.path.join(TEMPORARY))? {
            let entry = entry?;
            let Ok(meta) = entry.metadata() else { continue };
            let age = meta.modified()?.elapsed().unwrap_or_default();
            if meta.is_dir() && age > ABANDONED_UPLOAD {
                let _ = std::fs::remove_dir_all(entry.path());
            }
            if !meta.is_file() || age < FRESH_FILE {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Writes and syncs a temporary file.
    pub fn temporary<'a, 'b>(&'a self, key: &Key, pieces: impl Iterator<Item = &'b [u8]>) -> Result<Temporary<'a>> {
        let mut temporary = self.new_temporary(key)?;
        for piece in pieces {
            temporary.file.write_all(piece).map_err(generic)?;
        }
        temporary.file.sync_all().map_err(generic)?;
        Ok(temporary)
    }

    /// The same, from a reader.
    pub fn temporary_from(&self, key: &Key, source: &mut impl Read) -> Result<Temporary<'_>> {
        let mut temporary = self.new_temporary(key)?;
        std::io::copy(source, &mut temporary.file).map_err(generic)?;
        temporary.file.sync_all().map_err(generic)?;
        Ok(temporary)
    }

    fn new_temporary(&self, key: &Key) -> Result<Temporary<'_>> {
        let name = Uuid::new_v4().simple().to_string();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.temporary, name.as_str(), flags, FILE_MODE).map_err(|error| key_error(key, error))?;
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(Temporary { root: self, name, file: file.into() })
    }

    /// Gives a temporary file its name: only if nobody has it (`create`), or in place of what has it.
    pub fn publish(&self, temporary: Temporary<'_>, key: &Key, create: bool) -> Result<PutResult> {
        let mut raced = 0;
        loop {
            let (dir, name) = self.parent(key)?;
            let placed = if create {
                linkat(&self.temporary, temporary.name.as_str(), &dir, name.as_str(), NO_FLAGS)
            } else {
                renameat(&self.temporary, temporary.name.as_str(), &dir, name.as_str())
            };
            match placed {
                Ok(()) => {
                    rustix::fs::fsync(&dir).map_err(|error| key_error(key, error))?;
                    let meta = meta_of(&temporary.file, key.clone())?;
                    return Ok(PutResult { e_tag: meta.e_tag, version: None });
                }
                Err(Errno::NOENT) if raced < RACES => raced += 1,
                Err(Errno::ISDIR | Errno::NOTEMPTY) => {
                    return Err(generic(format!(
                        "`{key}` is a prefix of other objects; in a directory it cannot be an object too"
                    )));
                }
                Err(error) => return Err(key_error(key, error)),
            }
        }
    }

    /// Opens an object for reading.
    pub fn open_object(&self, key: &Key) -> Result<File> {
        let (dir, name) = self.walk(key, false)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let not_found = || key_error(key, Errno::NOENT);
        let file: File = match openat(&dir, name.as_str(), flags, rustix::fs::Mode::empty()) {
            Ok(file) => file.into(),
            Err(Errno::LOOP) => return Err(not_found()),
            Err(error) => return Err(key_error(key, error)),
        };
        let meta = file.metadata().map_err(generic)?;
        if meta.is_file() { Ok(file) } else { Err(not_found()) }
    }

    /// Removes an object; one that is not there is removed already. Directories left empty go too.
    pub fn remove(&self, key: &Key) -> Result<()> {
        let (dir, name) = match self.walk(key, false) {
            Err(Error::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        match unlinkat(&dir, name.as_str(), NO_FLAGS) {
            Ok(()) => rustix::fs::fsync(&dir).map_err(|error| key_error(key, error))?,
            // A directory is not an object.
            Err(Errno::NOENT | Errno::ISDIR | Errno::PERM) => return Ok(()),
            Err(error) => return Err(key_error(key, error)),
        }
        self.prune(key);
        Ok(())
    }

    /// Removes empty directories above a key, innermost first; the first that is not empty ends it.
    fn prune(&self, key: &Key) {
        let mut prefix: Vec<_> = key.parts().collect();
        prefix.pop();
        while !prefix.is_empty() {
            let directory: Key = prefix.iter().cloned().collect();
            let Ok((dir, name)) = self.walk(&directory, false) else { return };
            if unlinkat(&dir, name.as_str(), AtFlags::REMOVEDIR).is_err() {
                return;
            }
            let _ = rustix::fs::fsync(&dir);
            prefix.pop();
        }
    }

    /// The directory of a key, made if it is missing, and the key's file name in it.
    fn parent(&self, key: &Key) -> Result<(OwnedFd, String)> {
        let mut raced = 0;
        loop {
            match self.walk(key, true) {
                Err(Error::NotFound { .. }) if raced < RACES => raced += 1,
                other => return other,
            }
        }
    }

    fn walk(&self, key: &Key, make: bool) -> Result<(OwnedFd, String)> {
        let mut names = key
            .as_ref()
            .split('/')
            .map(|component| {
                names::encode(component)
                    .ok_or_else(|| generic(format!("`{key}` has a part that is too long for a file name")))
            })
            .collect::<Result<Vec<_>>>()?;
        let last = names.pop().ok_or_else(|| generic("the empty key is no object"))?;
        let mut dir = self.dir.try_clone().map_err(generic)?;
        for name in &names {
            dir = match openat(&dir, name.as_str(), DIR_FLAGS, rustix::fs::Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) if make => {
                    match mkdirat(&dir, name.as_str(), DIR_MODE) {
                        Ok(()) => rustix::fs::fsync(&dir).map_err(|error| key_error(key, error))?,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(key_error(key, error)),
                    }
                    openat(&dir, name.as_str(), DIR_FLAGS, rustix::fs::Mode::empty())
                        .map_err(|error| key_error(key, error))?
                }
                Err(Errno::NOTDIR | Errno::LOOP) if make => {
                    return Err(generic(format!(
                        "a part of `{key}` is an object; in a directory it cannot be a prefix too"
                    )));
                }
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(key_error(key, Errno::NOENT)),
                Err(error) => return Err(key_error(key, error)),
            };
        }
        Ok((dir, last))
    }

    /// Opens the directory of a prefix for listing; `None` if there is no such directory.
    pub fn open_prefix(&self, prefix: &Key) -> Result<Option<OwnedFd>> {
        let mut dir = self.dir.try_clone().map_err(generic)?;
        for part in prefix.parts() {
            let Some(name) = names::encode(part.as_ref()) else { return Ok(None) };
            dir = match openat(&dir, name.as_str(), DIR_FLAGS, rustix::fs::Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(key_error(prefix, error)),
            };
        }
        Ok(Some(dir))
    }
}
