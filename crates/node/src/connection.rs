//! One client connection, as its requests know it.

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// In the extensions of each request that came over the connection.
#[derive(Debug, Clone)]
pub struct ConnectionId {
    /// Random.
    pub id: Uuid,
    /// Cancelled once it is closed.
    pub closed: CancellationToken,
}
