//! Where another node is reached, as its heartbeat says: `HOST:PORT`, or `https://HOST:PORT` if with TLS.

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

const HTTPS: &str = "https://";

/// Another node's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    scheme: Scheme,
    authority: Authority,
}

impl Peer {
    /// None if it is not such an address.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, place) = match text.strip_prefix(HTTPS) {
            Some(place) => (Scheme::HTTPS, place),
            None => (Scheme::HTTP, text),
        };
        let authority: Authority = place.parse().ok()?;
        let whole = authority.port_u16().is_some_and(|port| port > 0) && !authority.host().is_empty();
        (whole && !place.contains('@')).then_some(Self { scheme, authority })
    }

    /// The same with TLS.
    pub fn with_tls(self) -> Self {
        Self { scheme: Scheme::HTTPS, ..self }
    }

    /// A request's address there.
    pub fn uri(&self, path: Option<PathAndQuery>) -> Uri {
        let mut uri = Uri::default().into_parts();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(path.unwrap_or(PathAndQuery::from_static("/")));
        Uri::from_parts(uri).expect("a scheme, a host and a path are a whole address")
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefix = if self.scheme == Scheme::HTTPS { HTTPS } else { "" };
        write!(f, "{prefix}{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["node-2:8642", "https://node-2:8642", "[::1]:1"] {
            assert_eq!(Peer::parse(text).expect("a legal address").to_string(), text);
        }
        let plain = Peer::parse("node-2:8642").expect("a legal address");
        assert_eq!(plain.with_tls().uri(None).to_string(), "https://node-2:8642/");
        for bad in ["here", "here:0", "http://here:1", "a@here:1", "https://here", "https://a@here:1", "here:1/x"] {
            assert_eq!(Peer::parse(bad), None, "{bad}");
        }
    }
}
