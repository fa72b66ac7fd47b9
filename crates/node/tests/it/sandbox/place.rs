//! Two tenants on one server: `acme`, whose SQL is hostile, and `globex`, whose rows nobody else may see.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use node::stores::{BucketStores, BucketTemplates, StoreConfig};
use object_store::{ObjectStoreExt, PutPayload, path::Path};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::corpus::Case;
use crate::flight::client::Client;
use crate::seaweed::SeaweedFs;
use crate::server::{Answer, TestServer, resident_bytes};

/// Where the corpus sends what it wants to get out.
const CANARY_PORT: u16 = 18099;
/// In everything that is globex's, and in files beside the server's.
const CANARY: &str = "CANARY-3b1f77d2";
const MART: &str = "acme/m";
/// Deadline of a statement that is to be bounded, and what may pass after it: the interrupt, the kill, the restart.
const DEADLINE_MS: u64 = 3_000;
const LATE: Duration = Duration::from_secs(8);
/// What an engine may use beside its limit of 512 MB before it is ended, with what it takes in between two looks.
const MOST_BYTES: u64 = (512 + 300 + 1200) << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Reader,
    Writer,
}

/// What a mart holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub rows: u64,
    hash: Value,
    catalog: Value,
}

pub struct Place {
    server: TestServer,
    outside: tempfile::TempDir,
    tokens: [String; 2],
    _s3: Option<SeaweedFs>,
}

impl Place {
    pub async fn on_files() -> Self {
        let server = TestServer::start_with(&SETTINGS).await;
        let stores = StoreConfig::File(server.objects_dir());
        Self::over(server, stores, None).await
    }

    pub async fn on_seaweed() -> Self {
        let templates = BucketTemplates::default();
        let mut buckets = vec!["tarn-control".parse().expect("legal")];
        for tenant in ["acme", "globex"] {
            let names = templates.names_of(&tenant.parse().expect("legal"));
            buckets.extend([names.analytics, names.processed, names.raw]);
        }
        let s3 = SeaweedFs::start(&buckets).await;
        let keys = s3.config();
        let mut settings: Vec<(&str, &str)> = SETTINGS.to_vec();
        let endpoint = keys.endpoint.clone().expect("it has one");
        settings.extend([("TARN_STORE", "s3"), ("DUCKDB_S3_ENDPOINT", &endpoint)]);
        settings.extend([
            ("DUCKDB_ACCESS_KEY_ID", keys.access_key_id.as_deref().expect("it has one")),
            ("DUCKDB_SECRET_ACCESS_KEY", keys.secret_access_key.as_deref().expect("it has one")),
        ]);
        let server = TestServer::start_with(&settings).await;
        Self::over(server, StoreConfig::S3(s3.config()), Some(s3)).await
    }

    async fn over(server: TestServer, stores: StoreConfig, s3: Option<SeaweedFs>) -> Self {
        let mut tokens = Vec::new();
        for tenant in ["acme", "globex"] {
            server.send(server.request(Method::POST, "/v1/tenants").json(&json!({ "name": tenant }))).await;
            let marts = format!("/v1/tenants/{tenant}/marts");
            let made = server.send(server.request(Method::POST, &marts).json(&json!({"name": "m"}))).await;
            assert!(made.status.is_success(), "{made:?}");
        }
        for role in ["reader", "writer"] {
            let token = json!({"tenant": "acme", "role": role, "name": role});
            let made = server.send(server.request(Method::POST, "/v1/tokens").json(&token)).await;
            tokens.push(made.body["token"].as_str().expect("a token").to_owned());
        }
        canaries();
        let tokens = tokens.try_into().expect("two");
        let outside = tempfile::tempdir().expect("a directory");
        let place = Self { server, outside, tokens, _s3: s3 };
        place.fill_marts().await;
        place.fill_buckets(&BucketStores::new(stores, BucketTemplates::default()).expect("a store")).await;
        place
    }

    async fn fill_marts(&self) {
        let rows = "create table t as select i::int i, 'v' || i v from range(10) r(i); create sequence s";
        self.server.query_in(MART, json!({ "sql": rows })).await.rows();
        let secret = format!("create table secret as select '{CANARY}' s");
        self.server.query_in("globex/m", json!({ "sql": secret })).await.rows();
    }

    async fn fill_buckets(&self, stores: &BucketStores) {
        let bucket = |name: &str| stores.bucket(&name.parse().expect("legal")).expect("opens");
        let put = async |name: &str, key: &str, bytes: Vec<u8>| {
            let path = Path::parse(key).expect("a legal key");
            bucket(name).data.put(&path, PutPayload::from(bytes)).await.expect("stored");
        };
        let parquet = "copy (select 1 a) to 's3://sm-acme-analytics/made.parquet'";
        self.server.query_in(MART, json!({ "sql": parquet })).await.rows();
        let made = bucket("sm-acme-analytics").data.get(&Path::from("made.parquet")).await.expect("was made");
        let parquet = made.bytes().await.expect("comes").to_vec();
        let secret = format!("a\n{CANARY}\n").into_bytes();
        put("sm-acme-raw", "f.parquet", parquet.clone()).await;
        put("sm-acme-raw", "d/f.csv", b"a,b\n1,2\n".to_vec()).await;
        put("sm-acme-processed", "d/f.csv", b"a,b\n3,4\n".to_vec()).await;
        put("sm-acme-analytics", "x.csv", b"a\n1\n".to_vec()).await;
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        put("sm-acme-raw", "deep100000.json", deep.into_bytes()).await;
        put("sm-acme-analytics", "evil_crash_126_SIGSEGV.duckdb", vec![7; 12_288]).await;
        put("sm-globex-raw", "f.parquet", parquet).await;
        put("sm-globex-raw", "d/f.csv", secret.clone()).await;
        put("sm-globex-analytics", "x.csv", secret).await;
        for name in ["secret.csv", "secret.json", "secret.parquet"] {
            std::fs::write(self.outside.path().join(name), CANARY).expect("writes");
        }
        std::fs::create_dir_all(self.outside.path().join("tenants").join(CANARY)).expect("makes it");
    }

    /// A case's statement with the names of this place.
    pub fn fill(&self, sql: &str) -> String {
        let marts = self.server.state_dir().join("marts");
        let path = |path: PathBuf| path.display().to_string();
        sql.replace("{outside}", &path(self.outside.path().to_owned()))
            .replace("{other_state}", &path(marts.join("globex/m")))
            .replace("{state}", &path(marts.join("acme/m")))
    }

    /// Files of the server that SQL might want.
    pub fn local_files(&self) -> Vec<String> {
        let files = self.server.files_dir(MART);
        ["mart.db", "mart.db.wal", "local.json"].map(|name| files.join(name).display().to_string()).to_vec()
    }

    fn token(&self, role: Role) -> &str {
        &self.tokens[usize::from(role == Role::Writer)]
    }

    pub async fn query(&self, role: Role, sql: &str) -> Answer {
        self.send(role, json!({ "sql": sql }), "").await
    }

    /// Sends a request and looks through its answer for more than it has `named`, in whatever disguise.
    pub async fn send(&self, role: Role, body: Value, named: &str) -> Answer {
        self.send_to(MART, role, body, named).await
    }

    async fn send_to(&self, mart: &str, role: Role, body: Value, named: &str) -> Answer {
        let (tenant, name) = mart.split_once('/').expect("TENANT/MART");
        let path = format!("/v1/tenants/{tenant}/marts/{name}/query");
        let request = self.server.request(Method::POST, &path).bearer_auth(self.token(role));
        let mut request = request.json(&body).build().expect("a request");
        // The first of the two headers is the administrator's.
        let own = format!("Bearer {}", self.token(role)).parse().expect("a header");
        request.headers_mut().insert(reqwest::header::AUTHORIZATION, own);
        let request = reqwest::RequestBuilder::from_parts(reqwest::Client::new(), request);
        let answer = self.server.send(request).await;
        self.scan(&format!("{} {named}", body["sql"].as_str().unwrap_or_default()), &answer.body.to_string());
        answer
    }

    pub async fn flight(&self, role: Role) -> Client {
        Client::connect_as(self.server.address(), self.token(role)).await.with("tarn-mart", MART)
    }

    /// Nothing that an answer says may be more than what was asked with.
    pub fn scan(&self, asked: &str, answer: &str) {
        assert!(!answer.contains(CANARY), "another's rows: {asked}\n{answer}");
        let state = self.server.state_dir().display().to_string();
        let outside = self.outside.path().display().to_string();
        for secret in
            [&*state, &*outside, "globex", "127.0.0.1:", "/dev/shm", "Stack Trace", "stack_trace", "/home/", ".so"]
        {
            assert!(!answer.contains(secret) || asked.contains(secret), "`{secret}` is told: {asked}\n{answer}");
        }
        let key =
            answer.split("TARN").skip(1).any(|rest| rest.chars().take_while(char::is_ascii_hexdigit).count() == 20);
        assert!(!key, "a key is told: {asked}\n{answer}");
    }

    pub fn engine(&self) -> u32 {
        self.server.engine_pid(MART)
    }

    pub async fn content(&self) -> Content {
        let hash = "select count(*), sum(hash(i, v))::varchar from t";
        let answer = self.server.query_in(MART, json!({ "sql": hash })).await;
        let rows = answer.rows()[0].clone();
        let catalog = "select database_name, schema_name, table_name, sql from duckdb_tables() union all \
             select database_name, schema_name, view_name, sql from duckdb_views() where not internal union all \
             select database_name, schema_name, function_name, macro_definition from duckdb_functions() where not internal union all \
             select database_name, schema_name, sequence_name, coalesce(last_value, -1)::varchar from duckdb_sequences() order by all";
        let catalog = self.server.query_in(MART, json!({ "sql": catalog })).await.rows().clone();
        let count = rows[0].as_u64().or_else(|| rows[0].as_str()?.parse().ok()).expect("a count");
        Content { rows: count, hash: rows[1].clone(), catalog }
    }

    /// Runs a statement that takes an engine to its limits, in a mart of its own, with a bystander in the other tenant's mart.
    pub async fn bounded(&self, case: &Case) {
        let name = format!("b-{}", case.id.to_lowercase());
        let marts = "/v1/tenants/acme/marts";
        self.server.send(self.server.request(Method::POST, marts).json(&json!({ "name": name }))).await;
        let mart = format!("acme/{name}");
        let kept = self.server.query_in(&mart, json!({"sql": "create table kept as select 42 a"})).await;
        assert_eq!(kept.status, StatusCode::OK, "{kept:?}");
        let watch = Memory::watch(self.server.engine_pid(&mart));
        let started = Instant::now();
        let body = json!({"sql": self.fill(&case.sql), "timeout_ms": DEADLINE_MS});
        let (answer, beside) = tokio::join!(self.send_to(&mart, case.role, body, ""), async {
            self.server.query_in("globex/m", json!({"sql": "select count(*) from secret"})).await
        });
        let took = started.elapsed();
        assert!(took < Duration::from_millis(DEADLINE_MS) + LATE, "{}: {took:?} {answer:?}", case.id);
        assert!(!answer.status.is_success() || took < Duration::from_millis(DEADLINE_MS), "{}: {answer:?}", case.id);
        assert_eq!(*beside.rows(), json!([[1]]), "another tenant noticed {}", case.id);
        let most = watch.most();
        assert!(most < MOST_BYTES, "{}: {} MB", case.id, most >> 20);
        // Nothing that was acknowledged is lost, and the mart answers again: at once, or when its engine is up again.
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.server.query_in(&mart, json!({"sql": "from kept"})).await;
            if answer.status.is_success() {
                assert_eq!(*answer.rows(), json!([[42]]), "{}", case.id);
                break;
            }
            assert_eq!(answer.body["retryable"], true, "{}: {answer:?}", case.id);
            assert!(Instant::now() < patience, "{}: {answer:?}", case.id);
        }
        let path = format!("{marts}/{name}");
        self.server.send(self.server.request(Method::DELETE, &path)).await;
    }

    /// Nobody was reached.
    pub async fn finish(self) {
        for canary in canaries() {
            match canary.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => panic!("the canary was reached: {other:?}"),
            }
        }
        let beside = self.server.query_in("globex/m", json!({"sql": "select count(*) from secret"})).await;
        assert_eq!(*beside.rows(), json!([[1]]));
    }
}

const SETTINGS: [(&str, &str); 3] =
    [("TARN_ENGINE_MEMORY", "512MB"), ("TARN_ENGINE_TEMP", "256MB"), ("TARN_ENGINE_THREADS", "2")];

/// Listeners where the corpus sends things, for all tests of this process.
fn canaries() -> &'static [TcpListener] {
    static CANARIES: OnceLock<Vec<TcpListener>> = OnceLock::new();
    CANARIES.get_or_init(|| {
        let places = [format!("127.0.0.1:{CANARY_PORT}"), format!("[::1]:{CANARY_PORT}")];
        // A machine may have no IPv6.
        let listeners: Vec<_> = places.iter().filter_map(|place| TcpListener::bind(place).ok()).collect();
        assert!(!listeners.is_empty(), "port {CANARY_PORT} is taken");
        for listener in &listeners {
            listener.set_nonblocking(true).expect("can be set");
        }
        listeners
    })
}

/// Watches how much memory a process takes.
struct Memory {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Memory {
    fn watch(pid: u32) -> Self {
        let (most, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (seen, stopped) = (most.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) && crate::server::runs(pid) {
                let bytes = std::panic::catch_unwind(|| resident_bytes(pid)).unwrap_or_default();
                seen.fetch_max(bytes, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { most, stop }
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
