//! What a request shows to say who it is: its `authorization`, taken apart. Nothing is believed here.
//!
//! **Invariant:** a token is never printed; there is no `Debug` and no `Display`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Parts a token from what a Flight handshake adds to it.
pub const MARK: char = '~';
/// Longer ones are nobody's.
const MOST_BYTES: usize = 16 << 10;

/// A token and what came with it.
#[derive(Clone)]
pub struct Shown {
    whole: String,
    /// The token's length, if a greeting follows it.
    mark: Option<usize>,
    /// The user name of a Basic login.
    pub user: Option<String>,
}

impl Shown {
    /// The bearer token of a request, as HTTP clients send it.
    pub fn bearer(headers: &HeaderMap) -> Option<Self> {
        let (scheme, value) = authorization(headers)?;
        scheme.eq_ignore_ascii_case("bearer").then(|| Self { whole: value.into(), mark: None, user: None })
    }

    /// The token of a Flight call: a bearer, which a handshake may have added to, or the password of a Basic login.
    pub fn of_flight(headers: &HeaderMap) -> Option<Self> {
        let (scheme, value) = authorization(headers)?;
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
            let (user, token) = pair.split_once(':')?;
            return Some(Self { whole: token.into(), mark: None, user: Some(user.into()) });
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Some(Self { whole: value.into(), mark: value.rfind(MARK), user: None })
    }

    /// What may be the token: up to the mark, or all of it. A token of somebody's own choice may hold a mark.
    pub fn candidates(&self) -> impl Iterator<Item = &str> {
        [self.mark.map(|mark| &self.whole[..mark]), Some(self.whole.as_str())].into_iter().flatten()
    }

    /// The token, without a greeting.
    pub fn token(&self) -> &str {
        self.mark.map_or(&self.whole, |mark| &self.whole[..mark])
    }

    /// What a handshake added to it.
    pub fn greeting(&self) -> Option<&str> {
        self.mark.map(|mark| &self.whole[mark + MARK.len_utf8()..])
    }
}

fn authorization(headers: &HeaderMap) -> Option<(&str, &str)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, value) = value.split_once(' ')?;
    Some((scheme, value.trim())).filter(|(_, value)| !value.is_empty() && value.len() <= MOST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().expect("a legal header"))])
    }

    #[test]
    fn each_way_in_has_its_schemes() {
        let basic = format!("Basic {}", STANDARD.encode("acme/sales:secret:x"));
        assert!(Shown::bearer(&headers(&basic)).is_none());
        let shown = Shown::of_flight(&headers(&basic)).expect("a Basic login");
        assert_eq!((shown.token(), shown.user.as_deref()), ("secret:x", Some("acme/sales")));
        assert_eq!(Shown::bearer(&headers("bEARER a~b")).expect("a bearer").token(), "a~b");
        let shown = Shown::of_flight(&headers("Bearer a~b~c")).expect("a bearer");
        assert_eq!((shown.token(), shown.greeting()), ("a~b", Some("c")));
        assert_eq!(shown.candidates().collect::<Vec<_>>(), ["a~b", "a~b~c"]);
        for bad in ["Bearer", "Bearer ", "Digest x", "Basic %%%", &format!("Bearer {}", "x".repeat(MOST_BYTES + 1))] {
            assert!(Shown::of_flight(&headers(bad)).is_none(), "{bad}");
        }
    }
}
