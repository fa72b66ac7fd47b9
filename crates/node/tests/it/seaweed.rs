//! SeaweedFS as a real S3 server on free ports of loopback, for as long as a value lives.
//!
//! The program is `TARN_TEST_WEED`, else `vendor/test/weed`. It ends with this process, however that ends: a shell holds it
//! and kills it when our end of a pipe closes.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use node::stores::{BucketName, S3Config};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequestBody};
use rand::Rng;

/// Keys that may do everything.
pub const KEY_ID: &str = "weed-admin";
const SECRET: &str = "weed-admin-secret";
/// A role that may do everything in S3 and that the keys above may take.
pub const ROLE_ARN: &str = "arn:aws:iam::role/TarnRole";

/// A running SeaweedFS with an empty directory of its own.
pub struct SeaweedFs {
    pub endpoint: String,
    shell: Child,
    dir: tempfile::TempDir,
}

impl SeaweedFs {
    /// Starts a server and makes these buckets, versioned.
    pub async fn start(buckets: &[BucketName]) -> Self {
        let program = program();
        assert!(program.exists(), "no SeaweedFS at {}: `scripts/setup` fetches it", program.display());
        let dir = tempfile::tempdir().expect("a directory for SeaweedFS");
        let write = |name: &str, json: serde_json::Value| {
            let path = dir.path().join(name);
            std::fs::write(&path, json.to_string()).expect("its configuration is written");
            path.display().to_string()
        };
        let identities = write("s3.json", identities());
        let roles = write("iam.json", roles());
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("its data directory is made");
        let log = std::fs::File::create(dir.path().join("weed.log")).expect("its log is made");
        let [master, volume, filer, s3] = free_ports();
        let shell = Command::new("sh")
            .arg("-c")
            .arg(r#""$0" "$@" </dev/null & weed=$!; cat >/dev/null; kill -9 $weed; wait"#)
            .arg(program)
            .args(["server", "-ip=127.0.0.1", "-s3", "-s3.port.lance=0", "-s3.port.iceberg=0", "-volume.max=100"])
            .args(["-master.volumeSizeLimitMB=512", &format!("-dir={}", data.display())])
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-s3.port={s3}"))
            .args([format!("-s3.config={identities}"), format!("-s3.iam.config={roles}")])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("its log is shared"))
            .stderr(log)
            .spawn()
            .expect("a shell starts");
        let server = Self { endpoint: format!("http://127.0.0.1:{s3}"), shell, dir };
        for bucket in buckets {
            server.create_bucket(bucket).await;
        }
        server
    }

    /// How a node reaches it with its own keys.
    pub fn config(&self) -> S3Config {
        S3Config {
            endpoint: Some(self.endpoint.clone()),
            access_key_id: Some(KEY_ID.into()),
            secret_access_key: Some(SECRET.into()),
            ..S3Config::default()
        }
    }

    async fn create_bucket(&self, bucket: &BucketName) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.put(bucket.as_str(), "").await {
            assert!(Instant::now() < deadline, "SeaweedFS is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let versioned = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        assert!(self.put(&format!("{bucket}?versioning="), versioned).await, "no versioning:\n{}", self.log());
    }

    /// A signed PUT of any target, as no client of ours would do it; whether it went well.
    pub async fn put(&self, target: &str, body: &'static str) -> bool {
        let keys = AwsCredential { key_id: KEY_ID.into(), secret_key: SECRET.into(), token: None };
        let mut request = http::Request::builder()
            .method(Method::PUT)
            .uri(format!("{}/{target}", self.endpoint))
            .body(HttpRequestBody::from(bytes::Bytes::from_static(body.as_bytes())))
            .expect("a legal request");
        AwsAuthorizer::new(&keys, "s3", "us-east-1").authorize(&mut request, None);
        let answer = HttpClient::new(reqwest::Client::new()).execute(request).await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("weed.log")).unwrap_or_default();
        log.lines().rev().take(30).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn program() -> PathBuf {
    let vendored = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vendor/test/weed");
    std::env::var_os("TARN_TEST_WEED").map_or_else(|| vendored.into(), PathBuf::from)
}

/// Free ports whose partner 10000 above, where gRPC listens, is free too.
fn free_ports<const N: usize>() -> [u16; N] {
    let mut held = Vec::new();
    let mut ports = [0; N];
    let mut found = 0;
    while found < N {
        // Below what the kernel gives to outgoing connections, both of them: one of those may take a port before it is listened on.
        let port = rand::rng().random_range(11_000..22_700);
        let bound = [port, port + 10_000].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        if let [Ok(port_held), Ok(partner)] = bound {
            ports[found] = port;
            found += 1;
            held.extend([port_held, partner]);
        }
    }
    ports
}

fn identities() -> serde_json::Value {
    serde_json::json!({"identities": [{
        "name": "tarn",
        "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }]})
}

fn roles() -> serde_json::Value {
    serde_json::json!({
        "sts": {
            "tokenDuration": "1h",
            "maxSessionLength": "12h",
            "issuer": "seaweedfs-sts",
            "signingKey": "dGVzdC1zaWduaW5nLWtleS0zMi1jaGFyYWN0ZXJzLWxvbmc=",
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "roles": [{
            "roleName": "TarnRole",
            "roleArn": ROLE_ARN,
            "trustPolicy": {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Principal": "*", "Action": ["sts:AssumeRole"]}],
            },
            "attachedPolicies": ["Everything"],
        }],
        "policies": [{
            "name": "Everything",
            "document": {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
                    {"Effect": "Allow", "Action": ["sts:ValidateSession", "sts:AssumeRole"], "Resource": "*"},
                ],
            },
        }],
    })
}
