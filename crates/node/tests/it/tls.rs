//! TLS on the node's port: for HTTP and Flight, renewed while it serves, between nodes, and wanted beyond loopback.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::flight::client::Client;
use crate::server::{DEV, TOKEN, TestServer};

/// An authority of the test's own, and a certificate for loopback.
struct Paper {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Paper {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).expect("it signs itself");
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("it is writable");
        let paper = Self { dir, issuer: Issuer::new(authority, key) };
        paper.renew();
        paper
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// Writes a new certificate with a new key over the old ones, in steps that a look may fall between.
    fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("legal names");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs");
        std::fs::write(self.file("node.pem"), certificate.pem()).expect("it is writable");
        std::fs::write(self.file("node.key"), key.serialize_pem()).expect("it is writable");
        certificate.der().clone()
    }

    fn settings(&self) -> [(&'static str, String); 3] {
        [
            ("TARN_TLS_CERT", self.text("node.pem")),
            ("TARN_TLS_KEY", self.text("node.key")),
            ("TARN_CA_FILE", self.text("ca.pem")),
        ]
    }

    async fn serve(&self, more: &[(&str, &str)]) -> TestServer {
        let own = self.settings();
        let settings: Vec<_> =
            own.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect();
        TestServer::start_with(&settings).await
    }

    /// A connection of a client that trusts this authority.
    async fn connect(&self, address: &str, version: &'static rustls::SupportedProtocolVersion) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(self.file("ca.pem")).expect("it is a certificate");
        roots.add(authority).expect("it is an authority's");
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("ring has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await.expect("the node listens");
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("they shake hands")
    }

    /// The certificate that the node shows just now.
    async fn shown(&self, address: &str) -> CertificateDer<'static> {
        let stream = self.connect(address, &rustls::version::TLS13).await;
        stream.get_ref().1.peer_certificates().expect("it showed one")[0].clone().into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_and_the_command_line_speak_tls() {
    let paper = Paper::new();
    let server = paper.serve(&[]).await;
    server.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = paper.connect(server.address(), version).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let client = Client::over(stream, server.address(), TOKEN).await;
        let many = client.execute("SELECT i, 'some bytes ' || i FROM range(300000) r(i)").await.expect("it runs");
        assert_eq!(client.count(&many).await.expect("it streams"), 300_000);
    }
    let dsn = format!("tarn://{}/{DEV}?tls=true", server.address());
    let ask = |authority: Option<String>| {
        let mut command = server.tarn(&["query", &dsn, "FROM t"]);
        command.envs(authority.map(|path| ("TARN_CA_FILE", path)));
        command
    };
    let output = ask(Some(paper.text("ca.pem"))).output().await.expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = ask(None).output().await.expect("the binary runs");
    assert!(!output.status.success(), "nobody else's authority is trusted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tls_is_told_and_one_that_stalls_holds_up_nobody() {
    let paper = Paper::new();
    let server = paper.serve(&[]).await;
    let stalled = TcpStream::connect(server.address()).await.expect("the node listens");
    let plain = format!("http://{}/v1/tenants/default/marts/dev/query", server.address());
    let long = "x".repeat(30_000);
    let answer = reqwest::Client::new().post(plain).body(long).send().await.expect("it is answered");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let body: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(body["code"], "invalid");
    assert!(body["message"].as_str().expect("a text").contains("TLS"), "{body}");
    let mut garbage = TcpStream::connect(server.address()).await.expect("the node listens");
    garbage.write_all(&[0x16, 3, 1, 0, 1, 0xff]).await.expect("it takes bytes");
    let mut rest = Vec::new();
    // It hangs up, with an alert or without.
    let _ = garbage.read_to_end(&mut rest).await;
    server.query("SELECT 1").await.rows();
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_request_lost() {
    let paper = Paper::new();
    let server = paper.serve(&[]).await;
    let old = paper.shown(server.address()).await;
    let client =
        Client::over(paper.connect(server.address(), &rustls::version::TLS13).await, server.address(), TOKEN).await;
    let new = paper.renew();
    assert_ne!(old, new);
    // Whatever the moment, each connection gets through with one of the two.
    loop {
        server.query("SELECT 1").await.rows();
        let found = paper.shown(server.address()).await;
        if found == new {
            break;
        }
        assert_eq!(found, old);
    }
    let info = client.execute("SELECT 1").await.expect("a connection of before goes on");
    assert_eq!(client.count(&info).await.expect("it is answered"), 1);
    std::fs::write(paper.file("node.key"), "no key").expect("it is writable");
    server.logged("the renewed certificate can't be used: the old one stays", 1).await;
    assert_eq!(paper.shown(server.address()).await, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_speak_tls_with_each_other_and_trust_only_their_authority() {
    let paper = Paper::new();
    let free = || {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        port.local_addr().expect("it is bound").to_string()
    };
    let (place, short) = (free(), ("TARN_TAKEOVER_AFTER", "5s"));
    let first = paper.serve(&[short, ("TARN_ADVERTISE", &place), ("TARN_LISTEN", &place)]).await;
    first.query("CREATE TABLE t AS SELECT 1 AS a").await.rows();
    let store = format!("file:{}", first.objects_dir().display());
    let second = paper.serve(&[short, ("TARN_STORE", &store)]).await;
    second.query("INSERT INTO t VALUES (2)").await.rows();
    let stream = paper.connect(second.address(), &rustls::version::TLS13).await;
    let client = Client::over(stream, second.address(), TOKEN).await;
    let both = client.execute("FROM t").await.expect("it is sent on");
    assert_eq!(client.count(&both).await.expect("it is answered"), 2);

    // One that trusts somebody else sends nothing to a node that it does not know, and is no worse off than without an address.
    let other = Paper::new();
    let strange = other.text("ca.pem");
    let stranger = TestServer::start_with(&[short, ("TARN_STORE", &store), ("TARN_CA_FILE", &strange)]).await;
    let answer = stranger.query("FROM t").await;
    assert_eq!(answer.code(), "fenced", "{answer:?}");
    assert!(answer.body["message"].as_str().expect("a text").contains(&format!("https://{place}")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_beyond_loopback_in_the_clear_unless_asked_for() {
    let paper = Paper::new();
    let refused = async |settings: &[(&str, &str)]| {
        let state = tempfile::tempdir().expect("a temporary directory");
        let output = Command::new(env!("CARGO_BIN_EXE_tarn"))
            .args(["serve", "--state-dir"])
            .arg(state.path())
            .env_clear()
            .env("TARN_STORE", format!("file:{}", state.path().join("objects").display()))
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .output()
            .await
            .expect("the binary runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let open = ("TARN_LISTEN", "0.0.0.0:0");
    assert!(refused(&[open]).await.contains("--insecure"));
    let (chain, key, authority) = (paper.text("node.pem"), paper.text("node.key"), paper.text("ca.pem"));
    let half = refused(&[open, ("TARN_TLS_CERT", &chain)]).await;
    assert!(half.contains("TARN_TLS_KEY"), "{half}");
    let odd = refused(&[open, ("TARN_TLS_CERT", &authority), ("TARN_TLS_KEY", &key)]).await;
    assert!(odd.contains("no pair"), "{odd}");
    let gone = refused(&[open, ("TARN_TLS_CERT", "/nowhere"), ("TARN_TLS_KEY", &key)]).await;
    assert!(gone.contains("/nowhere"), "{gone}");

    let server = paper.serve(&[open]).await;
    let port = server.address().rsplit_once(':').expect("a port").1;
    let local = format!("127.0.0.1:{port}");
    assert_eq!(paper.shown(&local).await, CertificateDer::from_pem_file(Path::new(&chain)).expect("it is there"));
    let mut doctor = server.tarn(&["doctor", "--json"]);
    doctor.env("TARN_TLS_CERT", &chain).env("TARN_TLS_KEY", &chain).current_dir(paper.dir.path());
    let text = String::from_utf8(doctor.output().await.expect("it runs").stdout).expect("text");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let finding = report.as_array().expect("a list").iter().find(|line| line["check"] == "certificate");
    assert_eq!(finding.expect("it is checked")["verdict"], "fail", "{text}");
}
