//! Listings, in the order of keys as S3 gives them.

use std::os::fd::OwnedFd;

use chrono::DateTime;
use object_store::path::Path as Key;
use object_store::{ListResult, ObjectMeta, Result};
use rustix::fs::{AtFlags, Dir, FileType, openat, statat};
use rustix::io::Errno;

use super::dirs::Root;
use super::{DIR_FLAGS, generic, key_error, names};

/// Every object below a prefix (whole parts), after `after` if given.
pub(super) fn recursive(root: &Root, prefix: &Key, after: Option<&Key>) -> Result<Vec<ObjectMeta>> {
    let mut found = Vec::new();
    if let Some(dir) = root.open_prefix(prefix)? {
        collect(&dir, prefix, &mut found)?;
    }
    if let Some(after) = after {
        found.retain(|meta| meta.location.as_ref() > after.as_ref());
    }
    found.sort_unstable_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
    Ok(found)
}

/// Objects directly below a prefix, and the prefixes below it that hold objects.
pub(super) fn one_level(root: &Root, prefix: &Key) -> Result<ListResult> {
    let mut result = ListResult { common_prefixes: Vec::new(), objects: Vec::new() };
    let Some(dir) = root.open_prefix(prefix)? else { return Ok(result) };
    for entry in entries(&dir, prefix)? {
        match entry {
            Entry::Object(meta) => result.objects.push(meta),
            Entry::Folder(key, folder) => {
                if holds_object(&folder, &key)? {
                    result.common_prefixes.push(key);
                }
            }
        }
    }
    result.objects.sort_unstable_by(|a, b| a.location.as_ref().cmp(b.location.as_ref()));
    result.common_prefixes.sort_unstable();
    Ok(result)
}

enum Entry {
    Object(ObjectMeta),
    Folder(Key, OwnedFd),
}

fn collect(dir: &OwnedFd, prefix: &Key, found: &mut Vec<ObjectMeta>) -> Result<()> {
    for entry in entries(dir, prefix)? {
        match entry {
            Entry::Object(meta) => found.push(meta),
            Entry::Folder(key, folder) => collect(&folder, &key, found)?,
        }
    }
    Ok(())
}

fn holds_object(dir: &OwnedFd, prefix: &Key) -> Result<bool> {
    for entry in entries(dir, prefix)? {
        match entry {
            Entry::Object(_) => return Ok(true),
            Entry::Folder(key, folder) if holds_object(&folder, &key)? => return Ok(true),
            Entry::Folder(..) => {}
        }
    }
    Ok(false)
}

/// What a directory holds. Links, sockets and names that are nobody's are left out, and so is what vanishes meanwhile.
fn entries(dir: &OwnedFd, prefix: &Key) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir).map_err(|error| key_error(prefix, error))? {
        let entry = entry.map_err(|error| key_error(prefix, error))?;
        let Some(component) = entry.file_name().to_str().ok().and_then(names::decode) else { continue };
        let text = if prefix.as_ref().is_empty() { component } else { format!("{prefix}/{component}") };
        let Ok(key) = Key::parse(&text) else { continue };
        let stat = match statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(key_error(&key, error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => found.push(Entry::Object(meta(key, &stat))),
            FileType::Directory => match openat(dir, entry.file_name(), DIR_FLAGS, rustix::fs::Mode::empty()) {
                Ok(folder) => found.push(Entry::Folder(key, folder)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(generic(std::io::Error::from(error))),
            },
            _ => {}
        }
    }
    Ok(found)
}

/// The same as for an open object.
#[allow(clippy::unnecessary_cast, reason = "the fields' widths differ between architectures")]
fn meta(location: Key, stat: &rustix::fs::Stat) -> ObjectMeta {
    let (ino, size, seconds, nanos) =
        (stat.st_ino as u64, stat.st_size as u64, stat.st_mtime as i64, stat.st_mtime_nsec as i64);
    let e_tag = format!("\"{ino:x}-{seconds:x}-{nanos:x}-{size:x}\"");
    let last_modified = DateTime::from_timestamp(seconds, u32::try_from(nanos).unwrap_or(0)).unwrap_or_default();
    ObjectMeta { location, last_modified, size, e_tag: Some(e_tag), version: None }
}
