//! A node whose S3 server is at the end of a wire that tests can cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::seaweed::SeaweedFs;
use crate::server::TestServer;

/// What becomes of bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They pass.
    Open,
    /// Connections are closed, new ones too.
    Cut,
    /// Connections stay, and nothing ever comes of them: the server is frozen or the network drops packets.
    Silent,
}

/// A way to a server.
pub struct Wire {
    address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Wire {
    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let (way, state) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), state.clone()));
            }
        });
        Self { address, way }
    }

    /// From now on, for connections that are and that come.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn carry(mut client: TcpStream, target: String, mut way: watch::Receiver<Way>) {
    let now = *way.borrow();
    if now == Way::Open {
        let Ok(mut server) = TcpStream::connect(target).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
            _ = way.wait_for(|way| *way != Way::Open) => {}
        }
    }
    if *way.borrow() == Way::Silent {
        // Held, and broken when the wire mends: what was sent on it is lost.
        let _ = way.wait_for(|way| *way != Way::Silent).await;
    }
}

/// A node on a SeaweedFS of its own, at the end of a wire.
pub async fn over_s3(settings: &[(&str, &str)]) -> (SeaweedFs, Wire, TestServer) {
    let buckets = ["tarn-control", "sm-default-analytics"].map(|name| name.parse().expect("a legal bucket name"));
    let weed = SeaweedFs::start(&buckets).await;
    let (wire, server) = wired_to(&weed, settings).await;
    (weed, wire, server)
}

/// A node at the end of a wire of its own to that server.
pub async fn wired_to(weed: &SeaweedFs, settings: &[(&str, &str)]) -> (Wire, TestServer) {
    let wire = Wire::to(weed.endpoint.trim_start_matches("http://").to_owned()).await;
    let config = weed.config();
    let endpoint = format!("http://{}", wire.address);
    let store = [
        ("TARN_STORE", "s3"),
        ("DUCKDB_S3_ENDPOINT", &endpoint),
        ("DUCKDB_S3_REGION", config.region.as_deref().unwrap_or("us-east-1")),
        ("DUCKDB_ACCESS_KEY_ID", config.access_key_id.as_deref().expect("it has keys")),
        ("DUCKDB_SECRET_ACCESS_KEY", config.secret_access_key.as_deref().expect("it has keys")),
    ];
    let all: Vec<_> = store.iter().chain(settings).copied().collect();
    let server = TestServer::start_with(&all).await;
    (wire, server)
}
