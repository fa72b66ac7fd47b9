//! Temporary credentials: kept while they last, replaced before they expire.
//!
//! [`Refreshing`] asks an [`Issuer`] for credentials, hands the same ones to every request, and asks again when a part of
//! their life is still left, so that a failing issuer has time to come back. It never logs a secret.
//!
//! **Invariant:** at most one request to the issuer is under way; expired credentials are never handed out.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

/// Credentials are replaced when less than this is left of them, or a quarter of their life if that is shorter.
const MARGIN: Duration = Duration::from_secs(300);
/// After a failed attempt, credentials that still work are used this long before the next.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Somebody who hands out temporary credentials.
#[async_trait]
pub(super) trait Issuer: fmt::Debug + Send + Sync + 'static {
    /// New credentials and how long they last from now.
    async fn issue(&self) -> Result<(AwsCredential, Duration), Box<dyn std::error::Error + Send + Sync>>;
}

/// An issuer's credentials, cached.
#[derive(Debug)]
pub(super) struct Refreshing<I> {
    issuer: I,
    held: Mutex<Option<Held>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Held {
    credential: Arc<AwsCredential>,
    renew: Instant,
    expires: Instant,
}

impl<I: Issuer> Refreshing<I> {
    pub(super) fn new(issuer: I) -> Self {
        Self { issuer, held: Mutex::new(None), asking: tokio::sync::Mutex::new(()) }
    }

    /// The credentials to use at that moment.
    async fn at(&self, now: Instant) -> object_store::Result<Arc<AwsCredential>> {
        if let Some(held) = self.held().filter(|held| now < held.renew) {
            return Ok(held.credential);
        }
        let _only_one = self.asking.lock().await;
        let held = self.held();
        if let Some(held) = held.as_ref().filter(|held| now < held.renew) {
            return Ok(held.credential.clone());
        }
        match (self.issuer.issue().await, held) {
            (Ok((credential, life)), _) => {
                let credential = Arc::new(credential);
                let renew = now + life.saturating_sub(MARGIN.min(life / 4));
                self.hold(Held { credential: credential.clone(), renew, expires: now + life });
                Ok(credential)
            }
            (Err(error), Some(held)) if now < held.expires => {
                tracing::warn!(error = %error, "temporary credentials could not be renewed; those held still work");
                let renew = (now + RETRY_AFTER).min(held.expires);
                self.hold(Held { renew, ..held.clone() });
                Ok(held.credential)
            }
            (Err(source), _) => Err(object_store::Error::Generic { store: "credentials", source }),
        }
    }

    fn held(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }
}

#[async_trait]
impl<I: Issuer> CredentialProvider for Refreshing<I> {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.at(Instant::now()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// Hands out `key-1`, `key-2`, … that last an hour, unless told to fail.
    #[derive(Debug, Default)]
    struct Counting {
        issued: AtomicUsize,
        down: AtomicBool,
    }

    #[async_trait]
    impl Issuer for Arc<Counting> {
        async fn issue(&self) -> Result<(AwsCredential, Duration), Box<dyn std::error::Error + Send + Sync>> {
            if self.down.load(Ordering::SeqCst) {
                return Err("the issuer is away".into());
            }
            tokio::task::yield_now().await;
            let n = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
            let credential =
                AwsCredential { key_id: format!("key-{n}"), secret_key: "s".into(), token: Some("t".into()) };
            Ok((credential, Duration::from_secs(3600)))
        }
    }

    async fn key(provider: &Refreshing<Arc<Counting>>, now: Instant) -> Option<String> {
        provider.at(now).await.ok().map(|c| c.key_id.clone())
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[tokio::test]
    async fn credentials_are_renewed_before_they_expire_and_not_sooner() {
        let (provider, start) = (Refreshing::new(Arc::new(Counting::default())), Instant::now());
        assert_eq!(key(&provider, start).await.as_deref(), Some("key-1"));
        assert_eq!(key(&provider, start + seconds(3299)).await.as_deref(), Some("key-1"));
        assert_eq!(key(&provider, start + seconds(3300)).await.as_deref(), Some("key-2"));
    }

    #[tokio::test]
    async fn many_requests_at_once_ask_the_issuer_once() {
        let issuer = Arc::new(Counting::default());
        let (provider, start) = (Refreshing::new(issuer.clone()), Instant::now());
        let all = futures::future::join_all((0..50).map(|_| key(&provider, start))).await;
        assert!(all.iter().all(|k| k.as_deref() == Some("key-1")));
        assert_eq!(issuer.issued.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_issuer_that_is_away_hurts_only_once_the_old_credentials_have_expired() {
        let issuer = Arc::new(Counting::default());
        let (provider, start) = (Refreshing::new(issuer.clone()), Instant::now());
        key(&provider, start).await;
        issuer.down.store(true, Ordering::SeqCst);
        assert_eq!(key(&provider, start + seconds(3500)).await.as_deref(), Some("key-1"));
        assert_eq!(key(&provider, start + seconds(3600)).await, None);
        issuer.down.store(false, Ordering::SeqCst);
        assert_eq!(key(&provider, start + seconds(3600)).await.as_deref(), Some("key-2"));
    }
}
