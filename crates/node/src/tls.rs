//! TLS: the certificate that the node shows, and what it trusts when it calls another node.
//!
//! One stack: rustls with ring. The certificate's files are read again every two seconds, so whoever renews it (cert-manager, certbot,
//! `cp`) need tell nobody. **Invariant:** what is shown is always a pair that fits; files that do not fit change nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::rustls;
use tokio_util::sync::CancellationToken;

/// How soon a renewed certificate is shown.
const LOOK: Duration = Duration::from_secs(2);
/// Another node is there within this time, or it is not there.
const CONNECT: Duration = Duration::from_secs(5);

/// Makes connections to other nodes.
pub(crate) type Connector = HttpsConnector<HttpConnector>;
/// A client of other nodes.
pub(crate) type Client = hyper_util::client::legacy::Client<Connector, Body>;

/// Where the certificate lies, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The node's certificate, then those between it and the authority's.
    pub chain: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: PathBuf,
}

/// What is wrong with a certificate, a key, or certificates of authorities.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("`{path}`: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file holds no PEM of the wanted kind.
    #[error("`{path}` holds no {wanted} in PEM", path = path.display())]
    Empty {
        /// Which.
        path: PathBuf,
        /// Of what kind.
        wanted: &'static str,
    },
    /// Key and certificate do not fit, or are of a kind that is not known.
    #[error("`{chain}` and `{key}` are no pair: {source}", chain = files.chain.display(), key = files.key.display())]
    Pair {
        /// Which.
        files: Files,
        /// What rustls says.
        source: rustls::Error,
    },
    /// A certificate of an authority is not one.
    #[error("`{path}`: {source}", path = path.display())]
    Authority {
        /// Where.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| TlsError::Empty { path: path.to_owned(), wanted: "certificate" })
}

/// The bytes of both files, as they were at one look.
#[derive(PartialEq, Eq)]
struct Pems {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Pems {
    fn read(files: &Files) -> Result<Self, TlsError> {
        Ok(Self { chain: read(&files.chain)?, key: read(&files.key)? })
    }

    fn pair(&self, files: &Files) -> Result<Arc<CertifiedKey>, TlsError> {
        let chain = certificates(&files.chain, &self.chain)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| TlsError::Empty { path: files.key.clone(), wanted: "private key" })?;
        let pair = CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|source| TlsError::Pair { files: files.clone(), source })?;
        Ok(Arc::new(pair))
    }
}

/// The certificate that the node shows, renewed when its files are.
pub struct Certificate {
    files: Files,
    shown: RwLock<Arc<CertifiedKey>>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads it; the key must be the certificate's.
    pub fn load(files: &Files) -> Result<Self, TlsError> {
        let shown = RwLock::new(Pems::read(files)?.pair(files)?);
        Ok(Self { files: files.clone(), shown })
    }

    /// Looks at the files until told not to.
    pub(crate) async fn tend(&self, cancel: CancellationToken) {
        let mut renewal = Renewal::of(self);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(looks.tick()).await.is_some() {
            match renewal.look() {
                Seen::Same => {}
                Seen::Renewed => tracing::info!("the certificate was renewed"),
                Seen::Unfit(error) => {
                    tracing::warn!(%error, "the renewed certificate can't be used: the old one stays");
                }
            }
        }
    }
}

/// What a look at the files found.
enum Seen {
    /// Nothing new.
    Same,
    /// Another pair that fits, now shown.
    Renewed,
    /// No pair that fits, for two looks and told of for the first time: at one look it might have been half written.
    Unfit(TlsError),
}

/// The look before.
struct Renewal<'a> {
    certificate: &'a Certificate,
    shown: Option<Pems>,
    unfit: Option<Option<Pems>>,
    told: bool,
}

impl<'a> Renewal<'a> {
    fn of(certificate: &'a Certificate) -> Self {
        Self { certificate, shown: None, unfit: None, told: false }
    }

    fn look(&mut self) -> Seen {
        let files = &self.certificate.files;
        let (found, pair) = match Pems::read(files) {
            Ok(found) if self.shown.as_ref() == Some(&found) => {
                (self.unfit, self.told) = (None, false);
                return Seen::Same;
            }
            Ok(found) => {
                let pair = found.pair(files);
                (Some(found), pair)
            }
            Err(error) => (None, Err(error)),
        };
        match pair {
            Ok(pair) => {
                let mut shown = self.certificate.shown.write().unwrap_or_else(PoisonError::into_inner);
                let renewed = shown.cert != pair.cert;
                *shown = pair;
                (self.shown, self.unfit, self.told) = (found, None, false);
                if renewed { Seen::Renewed } else { Seen::Same }
            }
            Err(error) => {
                let again = self.unfit.as_ref() == Some(&found);
                let tell = again && !self.told;
                (self.unfit, self.told) = (Some(found), again);
                if tell { Seen::Unfit(error) } else { Seen::Same }
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What connections are served with: TLS 1.2 and 1.3, HTTP/2 or HTTP/1.1 as the client likes.
pub(crate) fn acceptor(certificate: Arc<Certificate>) -> tokio_rustls::TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

/// Whose certificates other nodes may show: those of `authorities`, or of the machine's authorities without.
pub(crate) fn trust(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            for certificate in certificates(path, &read(path)?)? {
                roots.add(certificate).map_err(|source| TlsError::Authority { path: path.to_owned(), source })?;
            }
        }
        // Some of a machine's are always odd; without any, no call with TLS gets through, and says so.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// How other nodes speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Connects to other nodes, with TLS to those that say so.
pub(crate) fn connector(trust: &ClientConfig, spoken: Spoken) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.enforce_http(false);
    let builder = HttpsConnectorBuilder::new().with_tls_config(trust.clone()).https_or_http();
    match spoken {
        Spoken::Http1 => builder.enable_http1().wrap_connector(tcp),
        Spoken::Http2 => builder.enable_http2().wrap_connector(tcp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str) -> (Files, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a plain certificate");
        let files = Files { chain: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        std::fs::write(&files.chain, made.cert.pem()).expect("it is writable");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("it is writable");
        (files, made.cert.der().clone())
    }

    fn shown(certificate: &Certificate) -> CertificateDer<'static> {
        certificate.shown.read().expect("nobody panicked").cert[0].clone()
    }

    #[test]
    fn only_a_pair_that_fits_is_loaded() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ((one, _), (other, _)) = (write(dir.path(), "one"), write(dir.path(), "other"));
        assert!(Certificate::load(&one).is_ok());
        let load = |chain: &Path, key: &Path| {
            Certificate::load(&Files { chain: chain.to_owned(), key: key.to_owned() }).expect_err("it is no pair")
        };
        assert!(matches!(load(&one.chain, &other.key), TlsError::Pair { .. }));
        assert!(matches!(load(&one.key, &one.key), TlsError::Empty { wanted: "certificate", .. }));
        assert!(matches!(load(&one.chain, &one.chain), TlsError::Empty { wanted: "private key", .. }));
        assert!(matches!(load(&one.chain, &dir.path().join("none")), TlsError::Read { .. }));
    }

    #[test]
    fn a_renewed_pair_is_shown_and_one_that_does_not_fit_is_told_of_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ((files, old), (next, new)) = (write(dir.path(), "one"), write(dir.path(), "next"));
        let certificate = Certificate::load(&files).expect("it is a pair");
        let mut renewal = Renewal::of(&certificate);
        assert!(matches!(renewal.look(), Seen::Same));
        std::fs::copy(&next.chain, &files.chain).expect("it is writable");
        assert!(matches!(renewal.look(), Seen::Same), "it may be half written");
        assert!(matches!(renewal.look(), Seen::Unfit(TlsError::Pair { .. })));
        assert!(matches!(renewal.look(), Seen::Same), "it was told");
        assert_eq!(shown(&certificate), old);
        std::fs::copy(&next.key, &files.key).expect("it is writable");
        assert!(matches!(renewal.look(), Seen::Renewed));
        assert!(matches!(renewal.look(), Seen::Same));
        assert_eq!(shown(&certificate), new);
        std::fs::remove_file(&files.key).expect("it is there");
        assert!(matches!(renewal.look(), Seen::Same));
        assert!(matches!(renewal.look(), Seen::Unfit(TlsError::Read { .. })));
        assert_eq!(shown(&certificate), new, "a file that is gone changes nothing");
    }
}
