//! One client connection, as its requests know it.

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// In the extensions of each request that came over the connection.
#[derive(Debug, Clone)]
pub struct ConnectionId {
    /// Random.
    pub id: Uuid,
    /// The client's end: what is next to this node on the way to the client.
    pub peer: SocketAddr,
    /// Cancelled once it is closed.
    pub closed: CancellationToken,
}
