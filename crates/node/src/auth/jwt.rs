//! JWTs: which key may have signed one, whether it did, and whom the claims name.
//!
//! Pure: keys come from `issuer`. What a token's header says of keys (`jku`, `jwk`, `x5u`, `x5c`) is never looked at; its `alg` has
//! to be one of those that the *key* allows, so that no token chooses how it is checked.
//!
//! **Invariants:** only asymmetric algorithms; RSA keys of at least 2048 bits; issuer, audience, subject and end are there and right.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::wire::Role;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Kind, Principal, Why, unknown};
use crate::config::Oidc;
use crate::error::{ApiError, Code};
use crate::names::{Mart, Tenant};

/// Clocks of issuer and node may differ by so many seconds.
const LEEWAY: u64 = 10;
const LEAST_RSA_BITS: usize = 2048;
/// An issuer has two or three.
const MOST_KEYS: usize = 64;
/// In the audit log.
const MOST_NAME_CHARS: usize = 200;

const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

type Refusal = (ApiError, Why);

/// The keys of an issuer, by id.
#[derive(Default)]
pub struct Keys(HashMap<String, Arc<Key>>);

/// One of them.
pub struct Key {
    id: String,
    decoding: DecodingKey,
    algorithms: Vec<Algorithm>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

impl Keys {
    /// Reads a JWK set. Keys that are not for signatures, or not of a kind that is trusted, are left out.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let set: KeySet = serde_json::from_slice(bytes)?;
        let mut keys = HashMap::new();
        for key in set.keys.into_iter().take(MOST_KEYS).filter_map(|value| serde_json::from_value(value).ok()) {
            if let Some(key) = Key::of(&key) {
                // The first of a name stays, whoever comes later.
                keys.entry(key.id.clone()).or_insert_with(|| Arc::new(key));
            }
        }
        Ok(Self(keys))
    }

    /// The key of that id.
    pub fn get(&self, id: &str) -> Option<Arc<Key>> {
        self.0.get(id).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Option<Self> {
        let common = &jwk.common;
        let id = common.key_id.clone().filter(|id| !id.is_empty())?;
        let signs = common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
        let verifies = common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !signs || !verifies {
            return None;
        }
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) if rsa_bits(&key.n)? >= LEAST_RSA_BITS => RSA.to_vec(),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => vec![Algorithm::ES256],
                EllipticCurve::P384 => vec![Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
            // Shared secrets among them.
            _ => return None,
        };
        if let Some(own) = &common.key_algorithm {
            let own = own.to_string();
            algorithms.retain(|algorithm| format!("{algorithm:?}") == own);
        }
        let decoding = DecodingKey::from_jwk(jwk).ok().filter(|_| !algorithms.is_empty())?;
        Some(Self { id, decoding, algorithms })
    }
}

fn rsa_bits(modulus: &str) -> Option<usize> {
    let bytes = URL_SAFE_NO_PAD.decode(modulus.trim_end_matches('=')).ok()?;
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some((bytes.len() - first) * 8 - bytes[first].leading_zeros() as usize)
}

/// Whether a token has a JWT's three parts. None of ours does.
pub fn looks_like_one(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// The id of the key that is said to have signed it.
pub fn key_id(token: &str) -> Result<String, Refusal> {
    let header =
        decode_header(token).map_err(|_| refuse("jwt: its header is not one, or names no algorithm of ours"))?;
    if header.crit.is_some() {
        return Err(refuse("jwt: it wants something understood that is not"));
    }
    header.kid.filter(|id| !id.is_empty()).ok_or_else(|| refuse("jwt: it names no key"))
}

/// The principal of a token that this key has to have signed.
pub fn verify(token: &str, key: &Key, rules: &Oidc) -> Result<Principal, Refusal> {
    let mut validation = Validation::new(key.algorithms[0]);
    validation.algorithms = key.algorithms.clone();
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_audience(&[&rules.audience]);
    validation.set_issuer(&[&rules.issuer]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims: Map<String, Value> =
        decode(token, &key.decoding, &validation).map_err(|error| refuse(words(error.kind())))?.claims;
    if claims.get("nbf").is_some_and(|time| !time.is_number()) {
        return Err(refuse("jwt: its beginning is no time"));
    }
    let subject = claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty());
    let subject = subject.ok_or_else(|| refuse("jwt: no subject"))?;
    let end = claims.get("exp").and_then(Value::as_f64).ok_or_else(|| refuse("jwt: no end"))?;
    let (tenant, role) = place(&claims, rules)?;
    let mart = match (&rules.mart_claim, &tenant) {
        (Some(claim), Some(_)) => found(&claims, claim).map(named::<Mart>).transpose()?,
        _ => None,
    };
    let profiles = rules.profiles_claim.as_ref().and_then(|claim| found(&claims, claim)).map(texts);
    let mut hash = blake3::Hasher::new();
    hash.update(rules.issuer.as_bytes()).update(&[0]).update(subject.as_bytes());
    Ok(Principal {
        id: format!("jwt_{}", &hash.finalize().to_hex()[..32]),
        name: subject.chars().filter(|c| !c.is_control()).take(MOST_NAME_CHARS).collect(),
        kind: Kind::Jwt(key.id.clone()),
        tenant,
        mart,
        role,
        profiles: profiles.map(|all| all.into_iter().map(str::to_owned).collect()),
        expires_us: Some(((end + LEEWAY as f64) * 1e6) as i64),
    })
}

/// Where the claims let somebody in, and as what: no tenant is the whole node.
fn place(claims: &Map<String, Value>, rules: &Oidc) -> Result<(Option<Tenant>, Role), Refusal> {
    let named_roles = found(claims, &rules.role_claim).map(texts).unwrap_or_default();
    if rules.node_admin_role.as_ref().is_some_and(|role| named_roles.contains(&role.as_str())) {
        return Ok((None, Role::Admin));
    }
    let rank = |role: &Role| match role {
        Role::Reader => 0,
        Role::Writer => 1,
        Role::Admin => 2,
    };
    let role = named_roles.iter().filter_map(|name| rules.roles.get(*name).copied()).max_by_key(rank);
    let role = role.ok_or_else(|| nowhere("jwt: no role of its is known here"))?;
    let tenant = match &rules.tenant {
        Some(tenant) => tenant.clone(),
        None => {
            let claim = found(claims, &rules.tenant_claim).ok_or_else(|| nowhere("jwt: it names no tenant"))?;
            named(claim)?
        }
    };
    Ok((Some(tenant), role))
}

/// A claim: by its whole name, which may be a URL with dots, else by the path that the dots part.
fn found<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let mut parts = name.split('.');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// One text or several.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn named<N: std::str::FromStr>(value: &Value) -> Result<N, Refusal> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| nowhere("jwt: a name in it is none"))
}

/// It is nobody's.
pub(super) fn refuse(words: &'static str) -> Refusal {
    (unknown(), Why::Jwt(words))
}

/// It is genuine, and its holder has no place here.
fn nowhere(words: &'static str) -> Refusal {
    let error = ApiError::new(Code::Forbidden, "this token is genuine, but gives no role in a tenant of this server")
        .hint("its issuer has to put tenant and role into it; the server's `oidc_…` settings say where");
    (error, Why::Jwt(words))
}

fn words(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "jwt: expired",
        ErrorKind::ImmatureSignature => "jwt: not valid yet",
        ErrorKind::InvalidAudience => "jwt: another audience",
        ErrorKind::InvalidIssuer => "jwt: another issuer",
        ErrorKind::InvalidSignature => "jwt: its signature is not the key's",
        ErrorKind::InvalidAlgorithm => "jwt: not an algorithm of its key",
        ErrorKind::MissingRequiredClaim(_) => "jwt: a claim is missing",
        _ => "jwt: it can't be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules() -> Oidc {
        Oidc::of("https://issuer.test", "tarn")
    }

    fn claims(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).expect("an object")
    }

    #[test]
    fn a_claim_is_found_by_its_name_or_by_a_path() {
        let claims = claims(json!({"https://a.b/role": "x", "realm": {"roles": ["y"]}, "a.b": 1, "a": {"b": 2}}));
        assert_eq!(found(&claims, "https://a.b/role"), Some(&json!("x")));
        assert_eq!(found(&claims, "realm.roles"), Some(&json!(["y"])));
        assert_eq!(found(&claims, "a.b"), Some(&json!(1)));
        assert_eq!(found(&claims, "realm.roles.x"), None);
    }

    #[test]
    fn the_highest_role_that_is_mapped_counts_and_none_is_made_up() {
        let mut rules = rules();
        rules.roles = [("dbas".to_owned(), Role::Admin), ("all".to_owned(), Role::Reader)].into();
        let given = |role: Value| {
            place(&claims(json!({"tenant": "acme", "role": role})), &rules)
                .map(|(_, role)| role)
                .map_err(|(error, _)| error.code)
        };
        assert_eq!(given(json!("all")), Ok(Role::Reader));
        assert_eq!(given(json!(["all", "dbas", 7])), Ok(Role::Admin));
        for nothing in [json!("admin"), json!(null), json!({"all": true}), json!(["ALL"])] {
            assert_eq!(given(nothing.clone()), Err(Code::Forbidden), "{nothing}");
        }
    }

    #[test]
    fn nobody_gets_the_node_or_a_tenant_unasked() {
        let mut rules = rules();
        let given = |rules: &Oidc, value: Value| place(&claims(value), rules).map_err(|(error, _)| error.code);
        assert_eq!(given(&rules, json!({"role": "admin"})), Err(Code::Forbidden));
        for bad in [json!(["acme"]), json!("../x"), json!(""), json!(7)] {
            assert_eq!(given(&rules, json!({"role": "admin", "tenant": bad})), Err(Code::Forbidden), "{bad}");
        }
        rules.tenant = Some("only".parse().expect("a legal name"));
        let (tenant, _) = given(&rules, json!({"role": "reader", "tenant": "acme"})).expect("it has a role");
        assert_eq!(tenant, rules.tenant);
        rules.node_admin_role = Some("root".into());
        assert_eq!(given(&rules, json!({"role": ["root"]})), Ok((None, Role::Admin)));
    }

    #[test]
    fn a_token_with_any_character_changed_is_refused() {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let pair =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &aws_lc_rs::rand::SystemRandom::new());
        let private = jsonwebtoken::EncodingKey::from_ec_der(pair.expect("a new key").as_ref());
        let mut public =
            serde_json::to_value(Jwk::from_encoding_key(&private, Algorithm::ES256).expect("a public half"))
                .expect("it serialises");
        public["kid"] = "k".into();
        let keys = Keys::parse(json!({ "keys": [public] }).to_string().as_bytes()).expect("a set");
        let rules = rules();
        let claims = json!({"iss": rules.issuer, "aud": "tarn", "sub": "ann", "exp": 4e9 as u64, "tenant": "acme", "role": "reader"});
        let header = jsonwebtoken::Header { kid: Some("k".into()), ..jsonwebtoken::Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &private).expect("it signs");
        let passes = |token: &str| {
            let key = key_id(token).ok().and_then(|id| keys.get(&id));
            key.is_some_and(|key| verify(token, &key, &rules).is_ok())
        };
        assert!(passes(&token));
        for at in 0..token.len() {
            let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
            let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
            assert!(!passes(&changed), "character {at}");
            assert!(!passes(&token[..at]), "cut at {at}");
        }
    }

    #[test]
    fn keys_that_are_no_public_signing_keys_are_left_out() {
        let small = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let large = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let padded = URL_SAFE_NO_PAD.encode([vec![0; 128], vec![0xff; 128]].concat());
        let set = json!({"keys": [
            {"kid": "secret", "kty": "oct", "k": "c2VjcmV0"},
            {"kid": "small", "kty": "RSA", "n": small, "e": "AQAB"},
            {"kid": "padded", "kty": "RSA", "n": padded, "e": "AQAB"},
            {"kid": "encrypts", "kty": "RSA", "use": "enc", "n": large, "e": "AQAB"},
            {"kid": "hs", "kty": "RSA", "alg": "HS256", "n": large, "e": "AQAB"},
            {"kty": "RSA", "n": large, "e": "AQAB"},
            {"kid": "odd", "kty": "something"}, 7, "x",
            {"kid": "good", "kty": "RSA", "use": "sig", "n": large, "e": "AQAB"},
        ]});
        let keys = Keys::parse(set.to_string().as_bytes()).expect("a set");
        assert_eq!(keys.0.keys().collect::<Vec<_>>(), ["good"]);
        assert!(Keys::parse(b"{}").is_err());
    }
}
