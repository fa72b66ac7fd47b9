//! An OIDC issuer on loopback, with keys made on the spot.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::server::TestServer;

pub const AUDIENCE: &str = "tarn-of-tests";

/// A key pair.
pub struct Signer {
    pub id: String,
    pub algorithm: Algorithm,
    pub key: EncodingKey,
}

impl Signer {
    pub fn new(id: &str, algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let key = match algorithm {
            Algorithm::ES256 => {
                let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
                EncodingKey::from_ec_der(document.expect("a new key").as_ref())
            }
            Algorithm::EdDSA => {
                let document = Ed25519KeyPair::generate_pkcs8v1(&random).expect("a new key");
                EncodingKey::from_ed_der(document.as_ref())
            }
            _ => Self::rsa(KeySize::Rsa2048),
        };
        Self { id: id.into(), algorithm, key }
    }

    /// What is inside of PKCS#8 is what is wanted: 26 bytes of a head say that it is RSA.
    fn rsa(size: KeySize) -> EncodingKey {
        let pair = KeyPair::generate(size).expect("a new key");
        let der: Pkcs8V1Der<'_> = pair.as_der().expect("a key has a form");
        EncodingKey::from_rsa_der(&der.as_ref()[26..])
    }

    pub fn public(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("it has a public half");
        let mut jwk = serde_json::to_value(jwk).expect("it serialises");
        jwk["kid"] = self.id.clone().into();
        jwk["use"] = "sig".into();
        jwk
    }

    pub fn header(&self) -> Header {
        Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) }
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.header(), claims)
    }

    pub fn sign_as(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).expect("it signs")
    }
}

/// Header and claims with whatever stands for a signature.
pub fn unsigned(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs()
}

/// How it answers.
#[derive(Clone, Copy)]
pub enum Mood {
    Well,
    /// Nothing useful.
    Away,
    /// Its keys have moved.
    Redirects,
    /// With its keys comes far more.
    Endless,
}

/// Serves discovery and keys.
pub struct TestIssuer {
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    url: Mutex<String>,
    keys: Mutex<Vec<Value>>,
    mood: AtomicUsize,
    fetched: AtomicUsize,
}

impl TestIssuer {
    pub async fn start(signers: &[&Signer]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let shared = Arc::new(Shared {
            url: Mutex::new(url.clone()),
            keys: Mutex::default(),
            mood: AtomicUsize::new(Mood::Well as usize),
            fetched: AtomicUsize::new(0),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/keys", get(keys))
            .route("/elsewhere", get(elsewhere))
            .with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        let issuer = Self { url, shared, task };
        issuer.rotate(signers);
        issuer
    }

    /// Only these keys from now on.
    pub fn rotate(&self, signers: &[&Signer]) {
        *self.shared.keys.lock().expect("nobody panics") = signers.iter().map(|signer| signer.public()).collect();
    }

    /// It answers so from now on.
    pub fn be(&self, mood: Mood) {
        self.shared.mood.store(mood as usize, Ordering::Relaxed);
    }

    /// How often somebody asked for its keys.
    pub fn fetched(&self) -> usize {
        self.shared.fetched.load(Ordering::Relaxed)
    }

    /// Claims as they should be.
    pub fn claims(&self, subject: &str, tenant: &str, role: &str) -> Value {
        json!({
            "iss": self.url, "aud": AUDIENCE, "sub": subject, "exp": now() + 600, "iat": now(), "tenant": tenant, "role": role,
        })
    }

    /// A node that trusts it.
    pub async fn node(&self, settings: &[(&str, &str)]) -> TestServer {
        let mut all = vec![("TARN_OIDC_ISSUER", self.url.as_str()), ("TARN_OIDC_AUDIENCE", AUDIENCE)];
        all.extend_from_slice(settings);
        TestServer::start_with(&all).await
    }
}

impl Drop for TestIssuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    let url = shared.url.lock().expect("nobody panics").clone();
    // Found where it should be: what is wrong is with its keys.
    let well = shared.mood.load(Ordering::Relaxed) != Mood::Away as usize;
    answer(
        if well { Mood::Well as usize } else { Mood::Away as usize },
        &shared,
        json!({"issuer": url, "jwks_uri": format!("{url}/keys"), "other": [1, 2]}),
    )
}

async fn keys(State(shared): State<Arc<Shared>>) -> Response {
    shared.fetched.fetch_add(1, Ordering::Relaxed);
    let keys = shared.keys.lock().expect("nobody panics").clone();
    answer(shared.mood.load(Ordering::Relaxed), &shared, json!({ "keys": keys }))
}

fn answer(mood: usize, shared: &Shared, body: Value) -> Response {
    if mood == Mood::Away as usize {
        return http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if mood == Mood::Redirects as usize {
        let there = format!("{}/elsewhere", shared.url.lock().expect("nobody panics"));
        return (http::StatusCode::TEMPORARY_REDIRECT, [("location", there)], "").into_response();
    }
    if mood == Mood::Endless as usize {
        let filler = "x".repeat(1 << 20);
        return axum::Json(json!({"keys": body["keys"], "filler": filler})).into_response();
    }
    axum::Json(body).into_response()
}

async fn elsewhere(State(shared): State<Arc<Shared>>) -> Response {
    let keys = shared.keys.lock().expect("nobody panics").clone();
    axum::Json(json!({ "keys": keys })).into_response()
}
