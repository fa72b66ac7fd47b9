//! The one owner of servers in these tests: the real binary on a free port, with a state directory and an object directory of its own.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

pub const TOKEN: &str = "the-admin-token-of-tests";
pub const DEV: &str = "default/dev";

/// Nothing in these tests takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node that tests can kill. Its directories go with it.
pub struct TestServer {
    dir: tempfile::TempDir,
    settings: Vec<(String, String)>,
    node: Option<Child>,
    address: String,
    scheme: &'static str,
    log: watch::Sender<Vec<String>>,
    http: reqwest::Client,
}

/// An answer that was read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub position: Option<String>,
    pub durable: Option<String>,
    pub body: Value,
}

impl Answer {
    /// The rows of a successful answer.
    pub fn rows(&self) -> &Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        &self.body["rows"]
    }

    /// The code of a refusal.
    pub fn code(&self) -> &str {
        assert!(!self.status.is_success(), "not refused: {}", self.body);
        self.body["code"].as_str().expect("every refusal has a code")
    }
}

/// Requests to a node, whether it lives or not.
#[derive(Clone)]
pub struct Requests {
    http: reqwest::Client,
    base: String,
}

impl Requests {
    /// A request with the admin token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(TOKEN)
    }

    /// Sends it and reads its answer whole; fails if the node is killed meanwhile.
    pub async fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send().await?;
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (status, position, durable) = (response.status(), header("tarn-position"), header("tarn-durable"));
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, position, durable, body })
    }
}

impl TestServer {
    /// On the embedded store, with fresh directories.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With environment variables besides.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut http = reqwest::Client::builder().timeout(PATIENCE);
        if let Some((_, authority)) = settings.iter().find(|(name, _)| *name == "TARN_CA_FILE") {
            let pem = std::fs::read(authority).expect("it is readable");
            http = http.add_root_certificate(reqwest::Certificate::from_pem(&pem).expect("a certificate"));
        }
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut server = Self {
            dir,
            settings,
            node: None,
            address: String::new(),
            scheme: "http",
            log: watch::channel(Vec::new()).0,
            http: http.build().expect("a plain client"),
        };
        server.start_again().await;
        server
    }

    /// The same, with more environment variables from now on.
    pub async fn start_again_with(&mut self, settings: &[(&str, &str)]) {
        self.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.start_again().await;
    }

    /// Starts the node after it was stopped or killed, on the same directories.
    pub async fn start_again(&mut self) {
        assert!(self.node.is_none(), "it runs");
        let mut node = Command::new(env!("CARGO_BIN_EXE_tarn"))
            .arg("serve")
            .arg("--state-dir")
            .arg(self.state_dir())
            .env_clear()
            .env("TARN_STORE", format!("file:{}", self.objects_dir().display()))
            .env("TARN_LISTEN", "127.0.0.1:0")
            .env("TARN_ADMIN_TOKEN", TOKEN)
            .env("TARN_ENGINE_MEMORY", "512MB")
            .env("TARN_PUBLISH", "none")
            // One node with a store of its own, unless a test says otherwise: nobody waits for a dead one.
            .env("TARN_TAKEOVER_AFTER", "never")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary is built");
        let mut lines = BufReader::new(node.stderr.take().expect("it is piped")).lines();
        let (send, mut addresses) = mpsc::channel(1);
        let log = self.log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(place) = line.strip_prefix("tarn serves on ") {
                    let _ = send.try_send(place.to_owned());
                }
                log.send_modify(|lines| lines.push(line));
            }
        });
        let place = tokio::time::timeout(PATIENCE, addresses.recv()).await.expect("it starts in time");
        let place = place.unwrap_or_else(|| panic!("it did not start:\n{}", self.log()));
        let (scheme, address) = place.split_once("://").expect("it says where");
        self.scheme = if scheme == "https" { "https" } else { "http" };
        self.address = address.to_owned();
        self.node = Some(node);
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The directory of a mart's files.
    pub fn files_dir(&self, mart: &str) -> PathBuf {
        let entries = std::fs::read_dir(self.state_dir().join("marts").join(mart)).expect("the mart is open");
        let mut dirs =
            entries.map(|entry| entry.expect("it is readable").path()).filter(|path| path.join("local.json").exists());
        let dir = dirs.next().expect("the mart has files");
        assert_eq!(dirs.next(), None, "only one directory is in use");
        dir
    }

    pub fn objects_dir(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// What node and engines wrote to stderr so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    /// Waits until so many lines of the log hold this text.
    pub async fn logged(&self, text: &str, times: usize) {
        let mut log = self.log.subscribe();
        let there = log.wait_for(|lines| lines.iter().filter(|line| line.contains(text)).count() >= times);
        let in_time = tokio::time::timeout(PATIENCE, there).await.is_ok();
        assert!(in_time, "`{text}` is not {times} times in\n{}", self.log());
    }

    /// Kills the node's process; its engines end by themselves.
    pub async fn kill_node(&mut self) {
        let mut node = self.node.take().expect("it runs");
        node.kill().await.expect("it can be killed");
    }

    /// Asks the node to stop, and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut node = self.node.take().expect("it runs");
        signal(node.id().expect("it was not waited for"), Signal::TERM).expect("it runs");
        tokio::time::timeout(PATIENCE, node.wait()).await.expect("it stops in time").expect("it is our child")
    }

    /// Process id of a mart's engine.
    pub fn engine_pid(&self, mart: &str) -> u32 {
        let text =
            std::fs::read_to_string(self.state_dir().join("marts").join(mart).join("lock")).expect("the mart is open");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("the lock names the engine")
    }

    /// Process id of the node.
    pub fn node_pid(&self) -> u32 {
        self.node.as_ref().and_then(Child::id).expect("it runs")
    }

    /// Stops the node in the middle of what it does; its engines go on. Returns when not one of its threads runs any more.
    pub async fn freeze_node(&self) {
        signal(self.node_pid(), Signal::STOP).expect("the node runs");
        let threads = format!("/proc/{}/task", self.node_pid());
        let stopped = |thread: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(thread.expect("it is readable").path().join("status"));
            // One that has just ended does not run either.
            status.map_or(true, |status| status.lines().any(|line| line.starts_with("State:\tT")))
        };
        while !std::fs::read_dir(&threads).expect("the node runs").all(stopped) {
            tokio::task::yield_now().await;
        }
    }

    /// Lets it go on.
    pub fn thaw_node(&self) {
        signal(self.node_pid(), Signal::CONT).expect("the node runs");
    }

    /// Stops a mart's engine in the middle of what it does; it goes on never.
    pub fn freeze_engine(&self, mart: &str) {
        signal(self.engine_pid(mart), Signal::STOP).expect("the engine runs");
    }

    /// Kills a mart's engine.
    pub fn kill_engine(&self, mart: &str) {
        signal(self.engine_pid(mart), Signal::KILL).expect("the engine runs");
    }

    /// The same, if it has not just ended by itself.
    pub fn kill_engine_if_any(&self, mart: &str) {
        // It may be between two lives.
        let _ = signal(self.engine_pid(mart), Signal::KILL);
    }

    /// What the kernel says of the node's process: a node that somebody else killed is a zombie.
    fn state(&self) -> String {
        let Some(pid) = self.node.as_ref().and_then(Child::id) else { return "not running".into() };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find(|line| line.starts_with("State:")).unwrap_or("gone").to_owned()
    }

    /// Was it neither stopped nor killed?
    pub fn is_running(&self) -> bool {
        self.node.is_some()
    }

    /// The machine is lost: everything but the object store. The node must not run.
    pub fn wipe_state(&self) {
        assert!(self.node.is_none(), "the node runs");
        // An engine may be writing its last byte: what it makes in between makes the removal fail.
        while let Err(error) = std::fs::remove_dir_all(self.state_dir()) {
            assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
        }
    }

    /// A way to send requests from another task.
    pub fn requests(&self) -> Requests {
        Requests { http: self.http.clone(), base: format!("{}://{}", self.scheme, self.address) }
    }

    /// A request with the admin token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.requests().request(method, path)
    }

    /// Sends a request and reads its answer whole.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let answer = self.requests().try_send(request).await;
        answer.unwrap_or_else(|error| panic!("no answer: {error:?}; the node: {}\n{}", self.state(), self.log()))
    }

    /// Runs SQL in the dev mart.
    pub async fn query(&self, sql: &str) -> Answer {
        self.query_in(DEV, json!({ "sql": sql })).await
    }

    /// Runs a whole request body in a mart.
    pub async fn query_in(&self, mart: &str, body: Value) -> Answer {
        let (tenant, name) = mart.split_once('/').expect("TENANT/MART");
        self.send(self.request(Method::POST, &format!("/v1/tenants/{tenant}/marts/{name}/query")).json(&body)).await
    }

    /// A `tarn` command against this node.
    pub fn tarn(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tarn"));
        command
            .args(arguments)
            .env_clear()
            .env("TARN_TOKEN", TOKEN)
            .env("TARN_DSN", format!("tarn://{}/{DEV}", self.address))
            .stdin(Stdio::null());
        command
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the node\n{}\n---", self.log());
        }
    }
}

/// Is there still a process of that number that runs?
pub fn runs(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// Memory of a process that is its own, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel says");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Waits until a process has worked for a while longer than now: what it was asked for last is under way.
pub async fn works(pid: u32) {
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let fields: Vec<_> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
        fields[11].parse::<u64>().expect("a number")
    };
    let before = ticks();
    while ticks() < before + 20 {
        tokio::task::yield_now().await;
    }
}

fn signal(pid: u32, signal: Signal) -> rustix::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal)
}
