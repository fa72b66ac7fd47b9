//! What outlives nodes: the object store. Starts nodes on it.

use crate::seaweed::SeaweedFs;
use crate::server::TestServer;
use crate::wire::{Wire, wired_to};

/// An object store.
pub enum Ground {
    Directory(tempfile::TempDir),
    S3(SeaweedFs, Vec<Wire>),
}

impl Ground {
    pub fn directory() -> Self {
        Self::Directory(tempfile::tempdir().expect("a temporary directory"))
    }

    pub async fn s3() -> Self {
        let buckets = ["tarn-control", "sm-default-analytics"].map(|name| name.parse().expect("a legal bucket name"));
        Self::S3(SeaweedFs::start(&buckets).await, Vec::new())
    }

    /// A node with an empty disk.
    pub async fn node(&mut self, settings: &[(&str, &str)]) -> TestServer {
        match self {
            Self::Directory(dir) => {
                let store = format!("file:{}", dir.path().display());
                let all: Vec<_> = settings.iter().copied().chain([("TARN_STORE", store.as_str())]).collect();
                TestServer::start_with(&all).await
            }
            Self::S3(weed, wires) => {
                let (wire, server) = wired_to(weed, settings).await;
                // It carries as long as it is held.
                wires.push(wire);
                server
            }
        }
    }
}
