//! JWTs of an issuer: which pass, which don't, and how its keys come and go.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::issuer::{AUDIENCE, Mood, Signer, TestIssuer, now, unsigned};
use super::{acme, query};
use crate::flight::client::Client;

const MART: &str = "acme/sales";

/// The claims with some of them changed; null takes one away.
fn changed(claims: &Value, changes: Value) -> Value {
    let mut claims = claims.clone();
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_of_any_asymmetric_kind_lets_its_subject_in_as_what_its_claims_say() {
    let rsa = Signer::new("r", Algorithm::RS256);
    let signers = [&rsa, &Signer::new("e", Algorithm::ES256), &Signer::new("d", Algorithm::EdDSA)];
    let issuer = TestIssuer::start(&signers).await;
    let server = issuer.node(&[]).await;
    acme(&server).await;
    query(&server, crate::server::TOKEN, MART, "CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let mut sign: Vec<_> = signers.map(|signer| signer.sign(&issuer.claims("ann", "acme", "reader"))).into();
    // For several, of which this installation is one.
    let audiences = changed(&issuer.claims("ann", "acme", "reader"), json!({"aud": ["else", AUDIENCE]}));
    sign.push(rsa.sign(&audiences));
    for token in &sign {
        assert_eq!(*query(&server, token, MART, "SELECT a FROM t").await.rows(), json!([[1]]));
        assert_eq!(query(&server, token, MART, "INSERT INTO t VALUES (2)").await.code(), "forbidden");
        assert_eq!(query(&server, token, "evil/sales", "SELECT 1").await.code(), "forbidden");
    }
    let client = Client::connect_as(server.address(), &sign[0]).await.with("tarn-mart", MART);
    let info = client.execute("SELECT a FROM t").await.expect("it may read");
    assert_eq!(client.count(&info).await.expect("it is its own ticket"), 1);
    // Another token of the same subject is the same principal; another subject is not.
    let again = rsa.sign(&changed(&issuer.claims("ann", "acme", "reader"), json!({"exp": now() + 900})));
    let same = Client::connect_as(server.address(), &again).await.with("tarn-mart", MART);
    assert_eq!(same.count(&info).await.expect("it is ann's"), 1);
    let other = rsa.sign(&issuer.claims("bob", "acme", "reader"));
    let other = Client::connect_as(server.address(), &other).await.with("tarn-mart", MART);
    assert_eq!(other.count(&info).await.expect_err("it is ann's").code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_that_is_not_wholly_right_is_refused() {
    let signer = Signer::new("r", Algorithm::RS256);
    let stranger = Signer::new("r", Algorithm::RS256);
    let issuer = TestIssuer::start(&[&signer]).await;
    let server = issuer.node(&[]).await;
    acme(&server).await;
    let claims = issuer.claims("ann", "acme", "admin");
    let good = signer.sign(&claims);
    query(&server, &good, MART, "SELECT 1").await.rows();

    let with = |changes: Value| signer.sign(&changed(&claims, changes));
    let header = |changes: Value| changed(&json!({"alg": "RS256", "typ": "JWT", "kid": "r"}), changes);
    let public = signer.public();
    let modulus = URL_SAFE_NO_PAD.decode(public["n"].as_str().expect("RSA")).expect("base64");
    let confused = |secret: &[u8]| {
        let header = Header { kid: Some("r".into()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims, &EncodingKey::from_secret(secret)).expect("it signs")
    };
    let parts: Vec<_> = good.split('.').collect();
    let tampered = URL_SAFE_NO_PAD.encode(changed(&claims, json!({"tenant": "evil"})).to_string());
    // The stranger brings its key along in every way there is.
    let brought = Header {
        jku: Some(format!("{}/other", issuer.url)),
        x5u: Some(format!("{}/other", issuer.url)),
        jwk: serde_json::from_value(stranger.public()).ok(),
        ..stranger.header()
    };
    assert!(brought.jwk.is_some());
    let cases = [
        ("another audience", with(json!({"aud": "somebody-else"}))),
        ("no audience", with(json!({"aud": null}))),
        ("another issuer", with(json!({"iss": format!("{}/", issuer.url)}))),
        ("ended", with(json!({"exp": now() - 60}))),
        ("never ends", with(json!({"exp": null}))),
        ("begins later", with(json!({"nbf": now() + 300}))),
        ("no subject", with(json!({"sub": null}))),
        ("unknown key", signer.sign_as(&Header { kid: Some("x".into()), ..signer.header() }, &claims)),
        ("no key named", signer.sign_as(&Header { kid: None, ..signer.header() }, &claims)),
        ("no algorithm", unsigned(&header(json!({"alg": "none"})), &claims, b"")),
        ("HS256 with the modulus", confused(&modulus)),
        ("HS256 with the key as it is served", confused(public.to_string().as_bytes())),
        ("an algorithm of another kind of key", unsigned(&header(json!({"alg": "ES256"})), &claims, &[7; 64])),
        ("a stranger's signature", stranger.sign(&claims)),
        ("a stranger's key brought along", stranger.sign_as(&brought, &claims)),
        ("other claims", format!("{}.{tampered}.{}", parts[0], parts[2])),
        ("something critical", unsigned(&header(json!({"crit": ["x"], "x": 1})), &claims, &[7; 256])),
        ("cut", good[..good.len() - 2].to_owned()),
    ];
    for (what, token) in &cases {
        let answer = query(&server, token, MART, "SELECT 1").await;
        assert_eq!((answer.status, answer.code()), (StatusCode::UNAUTHORIZED, "unauthenticated"), "{what}: {answer:?}");
    }
    assert!(issuer.fetched() < 6, "unknown keys made it fetch {} times", issuer.fetched());
    // Genuine, and nobody here.
    for (what, changes) in [
        ("no role of ours", json!({"role": "owner"})),
        ("no tenant", json!({"tenant": null})),
        ("a tenant that is no name", json!({"tenant": "../acme"})),
    ] {
        let answer = query(&server, &with(changes), MART, "SELECT 1").await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "forbidden"), "{what}: {answer:?}");
    }
    let client = Client::connect_as(server.address(), &cases[0].1).await.with("tarn-mart", MART);
    assert_eq!(client.execute("SELECT 1").await.expect_err("it is refused").code(), tonic::Code::Unauthenticated);
    query(&server, &good, MART, "SELECT 1").await.rows();
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_tenants_and_marts_are_where_the_settings_say() {
    let signer = Signer::new("e", Algorithm::ES256);
    let issuer = TestIssuer::start(&[&signer]).await;
    let settings = [
        ("TARN_OIDC_ROLE_CLAIM", "realm_access.roles"),
        ("TARN_OIDC_TENANT_CLAIM", "https://tarn.test/tenant"),
        ("TARN_OIDC_MART_CLAIM", "mart"),
        ("TARN_OIDC_ROLES", "analysts=reader,etl=writer"),
        ("TARN_OIDC_NODE_ADMIN_ROLE", "platform"),
    ];
    let server = issuer.node(&settings).await;
    acme(&server).await;
    let roles = |roles: Value, mart: Value| {
        let place = json!({"https://tarn.test/tenant": "acme", "realm_access": {"roles": roles}, "mart": mart});
        signer.sign(&changed(&issuer.claims("ann", "x", "admin"), place))
    };
    let writer = roles(json!(["offline", "analysts", "etl"]), json!(null));
    query(&server, &writer, MART, "CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let of_sales = roles(json!(["analysts"]), json!("sales"));
    assert_eq!(*query(&server, &of_sales, MART, "SELECT a FROM t").await.rows(), json!([[1]]));
    assert_eq!(query(&server, &of_sales, "acme/hr", "SELECT 1").await.code(), "forbidden");
    assert_eq!(query(&server, &roles(json!(["admin"]), json!(null)), MART, "SELECT 1").await.code(), "forbidden");
    let platform = roles(json!(["platform"]), json!(null));
    query(&server, &platform, "evil/sales", "SELECT 1").await.rows();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_counts_at_once_and_a_dropped_one_no_more() {
    let (old, new) = (Signer::new("old", Algorithm::ES256), Signer::new("new", Algorithm::ES256));
    let issuer = TestIssuer::start(&[&old]).await;
    let server = issuer.node(&[]).await;
    acme(&server).await;
    let by = |signer: &Signer| signer.sign(&issuer.claims("ann", "acme", "reader"));
    query(&server, &by(&old), MART, "SELECT 1").await.rows();
    assert_eq!(query(&server, &by(&new), MART, "SELECT 1").await.code(), "unauthenticated");
    issuer.rotate(&[&new]);
    query(&server, &by(&new), MART, "SELECT 1").await.rows();
    assert_eq!(query(&server, &by(&old), MART, "SELECT 1").await.code(), "unauthenticated");
    // Made-up keys are not asked for without end.
    let before = issuer.fetched();
    for index in 0..10 {
        let made_up = Header { kid: Some(format!("x{index}")), ..new.header() };
        query(&server, &new.sign_as(&made_up, &issuer.claims("ann", "acme", "reader")), MART, "SELECT 1").await;
    }
    assert!(issuer.fetched() - before <= 4, "{}", issuer.fetched() - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_leaves_its_keys_in_force_for_a_while_only() {
    let signer = Signer::new("e", Algorithm::ES256);
    let issuer = TestIssuer::start(&[&signer]).await;
    let mut server = issuer.node(&[("TARN_OIDC_REFRESH", "1s")]).await;
    acme(&server).await;
    let token = signer.sign(&issuer.claims("ann", "acme", "reader"));
    query(&server, &token, MART, "SELECT 1").await.rows();
    issuer.be(Mood::Away);
    let before = issuer.fetched();
    server.logged("the issuer's keys can't be fetched", 1).await;
    query(&server, &token, MART, "SELECT 1").await.rows();
    assert!(issuer.fetched() >= before);
    // Started while it is away, a node knows no keys, and says that it can't tell.
    server.stop().await;
    server.start_again().await;
    let answer = query(&server, &token, MART, "SELECT 1").await;
    assert_eq!((answer.code(), &answer.body["retryable"]), ("unavailable", &json!(true)));
    issuer.be(Mood::Well);
    while query(&server, &token, MART, "SELECT 1").await.status != StatusCode::OK {}
    // Kept no longer than allowed.
    server.stop().await;
    server.start_again_with(&[("TARN_OIDC_KEYS_FOR", "2s")]).await;
    while query(&server, &token, MART, "SELECT 1").await.status != StatusCode::OK {}
    issuer.be(Mood::Away);
    while query(&server, &token, MART, "SELECT 1").await.status == StatusCode::OK {}
    assert_eq!(query(&server, &token, MART, "SELECT 1").await.code(), "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_taken_from_nowhere_else_and_not_without_end() {
    let signer = Signer::new("e", Algorithm::ES256);
    let issuer = TestIssuer::start(&[&signer]).await;
    let token = signer.sign(&issuer.claims("ann", "acme", "reader"));
    for mood in [Mood::Redirects, Mood::Endless] {
        issuer.be(mood);
        let server = issuer.node(&[]).await;
        server.logged("the issuer's keys can't be fetched", 1).await;
        assert_eq!(query(&server, &token, MART, "SELECT 1").await.code(), "unavailable");
    }
    issuer.be(Mood::Well);
    let server = issuer.node(&[]).await;
    let doctor =
        server.tarn(&["doctor", "--json", "--audit", "none", "--oidc-audience", "x", "--oidc-issuer", &issuer.url]);
    let output = { doctor }.output().await.expect("the binary runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = report.as_array().expect("a list").iter().find(|finding| finding["check"] == "issuer");
    assert_eq!(found.expect("it looks")["verdict"], "ok", "{report}");
}
