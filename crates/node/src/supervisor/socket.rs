//! The private directory in which engines' sockets have their names.
//!
//! The node binds and the engine inherits, so an engine needs no right to make sockets. The directory lies under the system's
//! temporary directory because a socket's path must be short.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Socket paths end at 108 bytes; what is added to the directory is shorter than the rest.
const LONGEST: usize = 80;

/// A 0700 directory of this node alone. Removed on drop.
pub struct SocketDir {
    path: PathBuf,
    next: AtomicU64,
}

impl SocketDir {
    /// Makes it, named after the state directory: whoever holds that one's lock may remove what a killed node left here.
    pub fn create(state_dir: &Path) -> io::Result<Self> {
        let temp = std::env::temp_dir();
        let base = if temp.as_os_str().len() < LONGEST - 30 { temp } else { PathBuf::from("/tmp") };
        let hash = blake3::hash(state_dir.as_os_str().as_encoded_bytes()).to_hex();
        let path = base.join(format!("tarn-{}", &hash[..16]));
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() => {
                std::fs::remove_dir_all(&path)?
            }
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("`{}` belongs to somebody else", path.display()),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Fails if somebody made it in between: it is ours alone or not at all.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path, next: AtomicU64::new(0) })
    }

    /// A listening socket under a name never used before.
    pub(super) fn listen(&self) -> io::Result<(UnixListener, PathBuf)> {
        let path = self.path.join(format!("{}.sock", self.next.fetch_add(1, Ordering::Relaxed)));
        Ok((UnixListener::bind(&path)?, path))
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        // Left behind, it is removed by the next start.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
