//! The issuer whose JWTs count: where its keys are fetched, and how long they are believed.
//!
//! Keys are fetched at the start, every few minutes, and when a token names one that is not known (that a few times a minute at most,
//! whoever asks). What the issuer does not list any more does not count from the next fetch on. An issuer that is away leaves the known
//! keys in force for `oidc_keys_for`; after that nobody is let in by them.
//!
//! **Invariants:** nothing is fetched but from the configured addresses and the one that discovery names, over https (http on loopback,
//! or where a setting allows it), without following redirects, within a time and a size. Fetches never run side by side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::jwt::{self, Key, Keys, refuse};
use super::{Principal, Why};
use crate::config::Oidc;
use crate::error::{ApiError, Code};

const CONNECT: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(8);
const MOST_BYTES: usize = 256 << 10;
/// Fetches in a row that unknown keys may cause.
const BURST: u32 = 4;
/// One more is allowed after so long.
const REFILL: Duration = Duration::from_secs(15);
/// An issuer that did not answer is asked again after so long.
const RETRY: Duration = Duration::from_secs(10);

type Refusal = (ApiError, Why);

/// What is known of an issuer.
pub struct Issuer {
    rules: Oidc,
    client: reqwest::Client,
    known: watch::Sender<Known>,
    asking: Mutex<Allowance>,
}

#[derive(Clone, Default)]
struct Known {
    keys: Arc<Keys>,
    fetched: Option<Instant>,
    /// How many fetches have succeeded.
    number: u64,
}

/// How many fetches unknown keys may still cause.
struct Allowance {
    left: u32,
    since: Instant,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Why keys could not be fetched; for the log.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("`{0}` is not https")]
    Insecure(String),
    #[error("`{0}` is no address")]
    NoAddress(String),
    #[error("it does not answer: {0}")]
    Silent(#[from] reqwest::Error),
    #[error("it answers {0}")]
    Status(reqwest::StatusCode),
    #[error("its answer has more than {MOST_BYTES} bytes")]
    TooLarge,
    #[error("its answer can't be read: {0}")]
    Garbled(#[from] serde_json::Error),
    #[error("its discovery document is of the issuer `{0}`")]
    Another(String),
    #[error("it lists no key that can be used")]
    Empty,
}

impl Issuer {
    /// One whose keys are not known yet.
    pub fn new(rules: Oidc) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(DEADLINE)
            .build()?;
        let asking = Mutex::new(Allowance { left: BURST, since: Instant::now() });
        Ok(Self { rules, client, known: watch::Sender::new(Known::default()), asking })
    }

    /// Whoever holds the token.
    pub async fn verify(&self, token: &str) -> Result<Principal, Refusal> {
        let key = self.key(&jwt::key_id(token)?).await?;
        jwt::verify(token, &key, &self.rules)
    }

    /// Whether a key still counts.
    pub fn knows(&self, id: &str) -> bool {
        self.known.borrow().keys(&self.rules).is_some_and(|keys| keys.get(id).is_some())
    }

    /// Fetches the keys once; how many there are, or why there are none.
    pub async fn look(&self) -> Result<usize, String> {
        self.fetch().await.map_err(|error| error.to_string())?;
        Ok(self.known.borrow().keys.len())
    }

    /// Resolves once the keys were fetched again since this was called.
    pub fn changes(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut known = self.known.subscribe();
        async move {
            if known.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Keeps the keys fresh until cancelled.
    pub async fn tend(&self, stop: CancellationToken) {
        let mut away = false;
        let tend = async {
            loop {
                let fetched = {
                    let _one = self.asking.lock().await;
                    self.fetch().await
                };
                let wait = match fetched {
                    Ok(()) => {
                        away = false;
                        self.rules.refresh
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut away, true) {
                            tracing::warn!(issuer = self.rules.issuer, %error, "the issuer's keys can't be fetched; going on with what is known");
                        }
                        RETRY.min(self.rules.refresh)
                    }
                };
                tokio::time::sleep(wait).await;
            }
        };
        stop.run_until_cancelled(tend).await;
    }

    async fn key(&self, id: &str) -> Result<Arc<Key>, Refusal> {
        let found = || self.known.borrow().keys(&self.rules).and_then(|keys| keys.get(id));
        let before = self.known.borrow().number;
        if let Some(key) = found() {
            return Ok(key);
        }
        let mut allowance = self.asking.lock().await;
        // Somebody else may have asked meanwhile.
        if let Some(key) = found() {
            return Ok(key);
        }
        let fresh = self.known.borrow().number != before;
        if !fresh && allowance.take(Instant::now()) {
            if let Err(error) = self.fetch().await {
                tracing::debug!(issuer = self.rules.issuer, %error, "the issuer's keys can't be fetched");
                return Err(away());
            }
        } else if self.known.borrow().keys(&self.rules).is_none() {
            return Err(away());
        }
        found().ok_or_else(|| refuse("jwt: the issuer has no such key"))
    }

    async fn fetch(&self) -> Result<(), FetchError> {
        let address = match &self.rules.jwks_url {
            Some(address) => address.clone(),
            None => {
                let base = self.rules.issuer.trim_end_matches('/');
                let bytes = self.get(&format!("{base}/.well-known/openid-configuration")).await?;
                let found: Discovery = serde_json::from_slice(&bytes)?;
                if found.issuer != self.rules.issuer {
                    return Err(FetchError::Another(found.issuer));
                }
                found.jwks_uri
            }
        };
        let keys = Keys::parse(&self.get(&address).await?)?;
        if keys.is_empty() {
            return Err(FetchError::Empty);
        }
        self.known.send_modify(|known| {
            *known = Known { keys: Arc::new(keys), fetched: Some(Instant::now()), number: known.number + 1 };
        });
        Ok(())
    }

    async fn get(&self, address: &str) -> Result<Vec<u8>, FetchError> {
        let url = reqwest::Url::parse(address).map_err(|_| FetchError::NoAddress(address.into()))?;
        if !may_fetch(&url, self.rules.allow_http) {
            return Err(FetchError::Insecure(address.into()));
        }
        let mut response = self.client.get(url).header("accept", "application/json").send().await?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await? {
            if bytes.len() + piece.len() > MOST_BYTES {
                return Err(FetchError::TooLarge);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

impl Known {
    /// None once nobody has confirmed them for too long.
    fn keys(&self, rules: &Oidc) -> Option<&Keys> {
        self.fetched.filter(|at| at.elapsed() <= rules.keys_for).map(|_| &*self.keys)
    }
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let refills = u32::try_from(now.duration_since(self.since).as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if refills > 0 {
            self.left = self.left.saturating_add(refills).min(BURST);
            self.since = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// Whether keys that come from there can be believed.
pub fn may_fetch(url: &reqwest::Url, allow_http: bool) -> bool {
    let loopback = url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    });
    match url.scheme() {
        "https" => true,
        "http" => loopback || allow_http,
        _ => false,
    }
}

fn away() -> Refusal {
    let error =
        ApiError::new(Code::Unavailable, "this token can't be checked now: the keys of its issuer are not known")
            .hint("try again in a moment; `oidc_issuer` has to be reachable from the server");
    (error, Why::Jwt("jwt: the issuer does not answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_https_or_from_this_machine() {
        let may = |text: &str, allow| may_fetch(&reqwest::Url::parse(text).expect("an address"), allow);
        for fine in ["https://a.b/c", "http://127.0.0.1:1/x", "http://[::1]/x", "http://localhost/x"] {
            assert!(may(fine, false), "{fine}");
        }
        for bad in ["http://a.b/c", "http://127.0.0.1.evil.test/", "file:///etc/passwd", "ftp://localhost/"] {
            assert!(!may(bad, false), "{bad}");
        }
        assert!(may("http://a.b/c", true) && !may("file:///x", true));
    }

    #[test]
    fn unknown_keys_cause_few_fetches() {
        let start = Instant::now();
        let mut allowance = Allowance { left: BURST, since: start };
        let taken = |allowance: &mut Allowance, now| (0..100).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(&mut allowance, start), 4);
        assert_eq!(taken(&mut allowance, start + REFILL), 1);
        assert_eq!(taken(&mut allowance, start + REFILL * 100), 4);
    }
}
