//! Files of the engine's own for what does not fit memory: bodies that DuckDB reads by itself, batches of hundreds of megabytes.
//!
//! They lie in one directory, count together against one limit, and go when they are dropped; the directory is emptied at each start.
//! DuckDB may read there, clients' SQL may not (`sql::gate` lets no local path pass).

use std::{
    ffi::c_void,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow_buffer::Buffer;
use rustix::mm::{MapFlags, ProtFlags};
use uuid::Uuid;

use crate::{failure::Failure, wire::Code};

/// Copied at once.
const STEP_BYTES: usize = 1 << 20;

/// The directory.
pub struct Spool {
    dir: PathBuf,
    limit: u64,
    used: AtomicU64,
}

/// Bytes that count against the limit, until dropped.
pub struct Room {
    spool: Arc<Spool>,
    bytes: u64,
}

/// One of its files, gone when dropped.
pub struct SpoolFile {
    room: Room,
    path: PathBuf,
    file: File,
}

impl Spool {
    /// Where it is, below the directory for temporary files.
    pub fn dir(temp_dir: &Path) -> PathBuf {
        temp_dir.join("load")
    }

    /// In `temp_dir`, which was emptied; up to `limit` bytes at once.
    pub fn open(temp_dir: &Path, limit: u64) -> io::Result<Arc<Self>> {
        let dir = Self::dir(temp_dir);
        fs::create_dir_all(&dir)?;
        Ok(Arc::new(Self { dir, limit, used: AtomicU64::new(0) }))
    }

    /// Bytes in its files.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty file whose name ends in `suffix`.
    pub fn create(self: &Arc<Self>, suffix: &str) -> Result<SpoolFile, Failure> {
        let path = self.path(&format!("{}{suffix}", Uuid::new_v4().simple()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(full)?;
        Ok(SpoolFile { room: self.room(), path, file })
    }

    /// Where a file of this name would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Room for a file that is not one of its own; none at first.
    pub fn room(self: &Arc<Self>) -> Room {
        Room { spool: self.clone(), bytes: 0 }
    }
}

impl Room {
    /// Takes more; fails if there is no more.
    pub fn take(&mut self, bytes: u64) -> Result<(), Failure> {
        // Counted first, so that those who take at the same time don't pass the limit together.
        self.bytes += bytes;
        let used = self.spool.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used > self.spool.limit { Err(no_room()) } else { Ok(()) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.spool.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl SpoolFile {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes were written into it.
    pub fn bytes(&self) -> u64 {
        self.room.bytes
    }

    /// Copies all of `reader`, each piece seen by `check` before.
    pub fn fill(
        &mut self,
        reader: &mut impl Read,
        mut check: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut piece = vec![0; STEP_BYTES];
        loop {
            let read = reader.read(&mut piece).map_err(super::read_failure)?;
            if read == 0 {
                return Ok(());
            }
            check(&piece[..read])?;
            self.write(&piece[..read])?;
        }
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.room.take(bytes.len() as u64)?;
        self.file.write_all(bytes).map_err(full)
    }

    /// May the file, written by somebody else, have so many bytes?
    pub fn has_room(&self, bytes: u64) -> bool {
        self.room.spool.used_bytes().saturating_add(bytes) <= self.room.spool.limit
    }

    /// Counts what somebody else wrote into it, and gives it up as a file without a name.
    pub fn into_file(mut self) -> Result<(File, Room), Failure> {
        self.room.take(fs::metadata(&self.path).map_err(full)?.len())?;
        // DuckDB may have put another file under the name.
        let file = File::open(&self.path).map_err(full)?;
        let none = self.room.spool.room();
        Ok((file, std::mem::replace(&mut self.room, none)))
    }

    /// Its bytes as memory that the kernel can take back.
    pub fn into_buffer(self) -> Result<Buffer, Failure> {
        let length = self.room.bytes as usize;
        if length == 0 {
            return Ok(Buffer::from_vec(Vec::<u8>::new()));
        }
        // SAFETY: a new mapping, of a file that nobody changes any more; unmapped with `Mapping`.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &self.file, 0)
                .map_err(|error| full(error.into()))?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(no_room)?;
        let mapping = Arc::new(Mapping { start, length, _file: self });
        // SAFETY: the mapping is as long as that, and lives as long as the buffer.
        Ok(unsafe { Buffer::from_custom_allocation(start, length, mapping) })
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        // What is left is removed at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

struct Mapping {
    start: NonNull<u8>,
    length: usize,
    _file: SpoolFile,
}

// SAFETY: plain memory that nobody writes to.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl std::panic::RefUnwindSafe for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and unmapped once.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), self.length) };
    }
}

pub(crate) fn full(error: io::Error) -> Failure {
    tracing::warn!(%error, "a temporary file can't be written or read");
    no_room()
}

/// All of the space is used.
pub(crate) fn no_room() -> Failure {
    Failure::new(Code::Limited, "the server's temporary space is used up")
        .hint("send or ask for less at once, or give the mart a larger profile")
        .transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_share_a_limit_and_leave_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::open(dir.path(), 10).expect("opens");
        let mut first = spool.create(".csv").expect("is made");
        first.fill(&mut &b"abcdef"[..], |_| Ok(())).expect("has room");
        let mut second = spool.create("").expect("is made");
        assert_eq!(second.write(b"ghijk").expect_err("no room").code, Code::Limited);
        drop(second);
        let buffer = first.into_buffer().expect("maps");
        assert_eq!((buffer.as_slice(), spool.used_bytes()), (&b"abcdef"[..], 6));
        drop(buffer);
        assert_eq!((spool.used_bytes(), fs::read_dir(Spool::dir(dir.path())).expect("lists").count()), (0, 0));
    }
}
