//! A node's id, kept with its disk: a node that restarts on its disk is the same node, one that lost it is another.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use uuid::Uuid;

const FILE: &str = "node-id";

/// Which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(Uuid);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `id@host`, as logs of marts carry it. Only the id counts; the host is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    id: NodeId,
    host: String,
}

impl NodeName {
    /// The name of the node whose disk this is, made at its first start.
    pub fn keep_in(state_dir: &Path) -> io::Result<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let path = state_dir.join(FILE);
        let id = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the node's id can't be read; remove the file to be a new node",
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(state_dir, &path)?,
            Err(error) => return Err(error),
        };
        Ok(Self { id: NodeId(id), host })
    }

    /// Reads what [`NodeName`] prints.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, host) = text.split_once('@')?;
        Some(Self { id: NodeId(id.parse().ok()?), host: host.to_owned() })
    }

    /// Which node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The machine's name.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.host)
    }
}

fn make(state_dir: &Path, path: &Path) -> io::Result<Uuid> {
    let id = Uuid::new_v4();
    let new = state_dir.join(".node-id");
    let mut file = File::create(&new)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    std::fs::rename(new, path)?;
    File::open(state_dir)?.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_keeps_its_id_and_another_disk_has_another() {
        let (one, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let name = NodeName::keep_in(one.path()).expect("it is writable");
        assert_eq!(NodeName::keep_in(one.path()).expect("it is readable"), name);
        assert_ne!(NodeName::keep_in(other.path()).expect("it is writable").id(), name.id());
        assert_eq!(NodeName::parse(&name.to_string()), Some(name));
        assert_eq!(NodeName::parse("host/17"), None);
        std::fs::write(one.path().join(FILE), "torn").expect("it is writable");
        assert!(NodeName::keep_in(one.path()).is_err(), "a damaged id is not silently replaced");
    }
}
