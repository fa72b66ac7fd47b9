//! The node's configuration: flag over environment over `tarn.toml` over default.
//!
//! The only place that reads the environment. Values are parsed and checked here once; what the rest sees is typed.

mod identity;
mod postgres;
mod settings;
mod upkeep;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::walls::Wall;
use figment::providers::{Format, Toml};

pub use identity::{AuditConfig, AuditSql, AuditTo, Oidc};
pub use postgres::Connections;
pub use settings::{Flag, SETTINGS, Setting, document};
pub use upkeep::Upkeep;

use crate::cluster::{ClusterConfig, Peer};
use crate::marts::Idle;
use crate::names::MartId;
use crate::profiles::{Profiles, Size};
use crate::stores::{BucketName, BucketTemplates, S3Config, StoreConfig};
use crate::tls;

/// Read when no `--config` is given and it is there.
const FILE: &str = "tarn.toml";
/// With less DuckDB can't open a mart and answer anything but the smallest query.
const LEAST_ENGINE_BYTES: u64 = 128 << 20;
/// Heartbeats come five times as often, and each is a write to the store.
const LEAST_TAKEOVER: Duration = Duration::from_secs(1);

/// The guide's size for exploration, where the machine has it.
const NOTEBOOK: Size = Size { threads: 4, memory_bytes: 16 << 30 };
/// Most requests wait for the store or for their client, so a node takes many more than it has processors.
const PLACES_PER_PROCESSOR: u32 = 64;

/// What is wrong with the configuration, in words for whoever wrote it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn named(variable: &str, problem: &str) -> Self {
        Self(format!("`{variable}` {problem}"))
    }

    fn of(key: &str, problem: impl std::fmt::Display) -> Self {
        let setting = SETTINGS.iter().find(|s| s.key == key).expect("only known keys are asked for");
        let places = format!("flag `--{}`, {} or tarn.toml", setting.flag_name(), setting.env.join(", "));
        Self(format!("setting `{key}` (from {places}): {problem}"))
    }
}

/// Texts given on the command line, by key.
pub type Flags = BTreeMap<&'static str, String>;

/// The node's configuration.
#[derive(Clone)]
pub struct Config {
    /// Where to serve.
    pub listen: SocketAddr,
    /// What it shows there; without it, no TLS.
    pub tls: Option<tls::Files>,
    /// Whose certificates other nodes may show, if not the machine's authorities.
    pub tls_ca: Option<PathBuf>,
    /// Directory of engines' files, absolute.
    pub state_dir: PathBuf,
    /// Where buckets lie.
    pub store: StoreConfig,
    /// Where the control store lies.
    pub control: BucketName,
    /// How buckets are named.
    pub buckets: BucketTemplates,
    /// The admin token, if it was given.
    pub admin_token: Option<String>,
    /// Mixed into the key of tickets.
    pub master_key: Option<String>,
    /// Whose JWTs count, if anybody's do.
    pub oidc: Option<Oidc>,
    /// The audit log.
    pub audit: AuditConfig,
    /// Limits of every engine.
    pub engine: EngineLimits,
    /// When marts are checkpointed.
    pub checkpoints: Checkpoints,
    /// What of the past is kept, and what is done to it.
    pub upkeep: Upkeep,
    /// When engines that nobody uses are closed.
    pub idle: Idle,
    /// Processes that wait to become engines.
    pub spare_engines: usize,
    /// Engines on earlier moments at once.
    pub past_engines: usize,
    /// How long one stays when nobody uses it.
    pub past_idle: Duration,
    /// This node among others.
    pub cluster: ClusterConfig,
    /// Sizes that requests may ask for.
    pub profiles: Profiles,
    /// Places of all that runs at once.
    pub running_queries: u32,
    /// How long a request waits for its place.
    pub queue_wait: Duration,
    /// Deadline of a query that names none.
    pub query_timeout: Duration,
    /// Where traces go: an OTLP collector.
    pub otlp_endpoint: Option<String>,
    /// The part of requests that is traced, 0 to 1.
    pub trace_sample: f64,
    /// From here on a query is slow; zero for never.
    pub slow_query: Duration,
    /// How long an answer waits for durability.
    pub durable_wait: Duration,
    /// Where results may be persisted.
    pub postgres: Connections,
    /// The mart that is published as a plain file.
    pub publish: Option<MartId>,
    /// Where that file goes.
    pub publish_dir: PathBuf,
    /// Size beyond which it is not.
    pub publish_max_bytes: u64,
    /// Where to tell metrics without a token: loopback.
    pub metrics_listen: Option<SocketAddr>,
    /// Log filter.
    pub log: String,
    /// Log as JSON lines.
    pub log_json: bool,
}

/// What one engine may use.
#[derive(Debug, Clone)]
pub struct EngineLimits {
    /// DuckDB's memory limit.
    pub memory_bytes: u64,
    /// DuckDB's threads.
    pub threads: u32,
    /// Spill files.
    pub temp_bytes: u64,
    /// Queries at once.
    pub max_queries: usize,
    /// An idle session is closed after so long.
    pub session_idle: Duration,
    /// An idle session's transaction is rolled back after so long.
    pub transaction_idle: Duration,
    /// Walls without which neither the node nor an engine starts.
    pub required_walls: Vec<Wall>,
    /// The httpfs extension, if it was found.
    pub httpfs: Option<PathBuf>,
}

impl EngineLimits {
    /// How large an engine begins.
    pub fn size(&self) -> Size {
        Size { threads: self.threads, memory_bytes: self.memory_bytes }
    }
}

/// When a mart's log is folded into its file.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoints {
    /// Beyond this much log.
    pub wal_bytes: u64,
    /// Without a commit for so long.
    pub idle: Duration,
}

impl Config {
    /// Reads the configuration of this process: `flags`, then the environment, then the file.
    pub fn load(flags: &Flags, file: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match file {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|e| ConfigError(format!("`{}`: {e}", path.display())))?
            }
            None => std::fs::read_to_string(FILE).unwrap_or_default(),
        };
        let layers = Layers::new(flags, |name| std::env::var(name).ok(), &text)?;
        let texts =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Ok(Self { postgres: Connections::resolve(texts, layers.postgres.as_ref())?, ..Self::resolve(&layers)? })
    }

    fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        let listen: SocketAddr = layers.parse("listen")?;
        let tls = tls_files(layers)?;
        if tls.is_none() && !listen.ip().is_loopback() && !layers.parse::<bool>("insecure")? {
            return Err(ConfigError::of(
                "listen",
                "beyond loopback the node wants TLS: give `tls_cert` and `tls_key`, or say `--insecure` to serve without",
            ));
        }
        let state_dir = std::path::absolute(layers.text("state_dir")).map_err(|e| ConfigError::of("state_dir", e))?;
        let buckets = BucketTemplates::new(
            &layers.text("bucket_analytics"),
            &layers.text("bucket_processed"),
            &layers.text("bucket_raw"),
        )
        .map_err(|e| ConfigError::of("bucket_analytics", e))?;
        let control: BucketName = layers.parse("control")?;
        if buckets.could_name(&control) {
            return Err(ConfigError::of("control", "a tenant's bucket could have this name"));
        }
        let publish = layers.text("publish");
        let publish_dir = layers.optional("publish_dir").map_or_else(|| state_dir.clone(), PathBuf::from);
        let engine = engine(layers)?;
        Ok(Self {
            oidc: Oidc::resolve(layers)?,
            audit: AuditConfig::resolve(layers, &state_dir)?,
            listen,
            tls_ca: layers.optional("tls_ca").map(PathBuf::from),
            state_dir,
            store: store(layers)?,
            control,
            buckets,
            admin_token: layers.optional("admin_token"),
            master_key: layers.optional("master_key"),
            profiles: profiles(layers, engine.size())?,
            running_queries: match layers.parse("running_queries")? {
                0 => PLACES_PER_PROCESSOR.saturating_mul(processors()),
                places => places,
            },
            queue_wait: Duration::from_millis(layers.parse("queue_wait_ms")?),
            engine,
            checkpoints: Checkpoints {
                wal_bytes: layers.bytes("checkpoint_wal")?,
                idle: Duration::from_millis(layers.parse("checkpoint_idle_ms")?),
            },
            upkeep: Upkeep::read(layers)?,
            idle: Idle {
                after: Some(layers.spell("engine_idle_seconds", Duration::from_secs(1))?)
                    .filter(|after| !after.is_zero()),
                most: Some(layers.parse("max_engines")?).filter(|most| *most > 0),
            },
            spare_engines: layers.parse("spare_engines")?,
            past_engines: layers.parse("past_engines")?,
            past_idle: layers.spell("past_idle_seconds", Duration::from_secs(1))?,
            cluster: cluster(layers, tls.is_some())?,
            query_timeout: Duration::from_millis(layers.parse("query_timeout_ms")?),
            otlp_endpoint: layers.optional("otlp_endpoint"),
            trace_sample: trace_sample(layers)?,
            slow_query: Duration::from_millis(layers.parse("slow_query_ms")?),
            durable_wait: Duration::from_millis(layers.parse("durable_wait_ms")?),
            publish: if publish == "none" {
                None
            } else {
                Some(mart_id(&publish).ok_or_else(|| ConfigError::of("publish", "wants TENANT/MART or `none`"))?)
            },
            postgres: Connections::default(),
            publish_dir,
            publish_max_bytes: layers.bytes("publish_max")?,
            metrics_listen: metrics_listen(layers)?,
            tls,
            log: layers.text("log"),
            log_json: match layers.text("log_format").as_str() {
                "json" => true,
                "text" => false,
                _ => return Err(ConfigError::of("log_format", "wants `text` or `json`")),
            },
        })
    }
}

fn trace_sample(layers: &Layers) -> Result<f64, ConfigError> {
    let part: f64 = layers.parse("trace_sample")?;
    let why = "is a part of all requests, from 0 to 1";
    if (0.0..=1.0).contains(&part) { Ok(part) } else { Err(ConfigError::of("trace_sample", why)) }
}

fn metrics_listen(layers: &Layers) -> Result<Option<SocketAddr>, ConfigError> {
    if layers.optional("metrics_listen").is_none() {
        return Ok(None);
    }
    let place: SocketAddr = layers.parse("metrics_listen")?;
    if place.ip().is_loopback() || layers.parse::<bool>("insecure")? {
        return Ok(Some(place));
    }
    let why = "names tenants and marts and asks no token: it wants an address of loopback, or an explicit `--insecure`";
    Err(ConfigError::of("metrics_listen", why))
}

fn mart_id(text: &str) -> Option<MartId> {
    let (tenant, mart) = text.split_once('/')?;
    Some(MartId { tenant: tenant.parse().ok()?, mart: mart.parse().ok()? })
}

fn store(layers: &Layers) -> Result<StoreConfig, ConfigError> {
    let text = layers.text("store");
    if let Some(dir) = text.strip_prefix("file:").filter(|dir| !dir.is_empty()) {
        return Ok(StoreConfig::File(std::path::absolute(dir).map_err(|e| ConfigError::of("store", e))?));
    }
    if text != "s3" {
        return Err(ConfigError::of("store", "wants `file:DIR` or `s3`"));
    }
    let path_style = match layers.optional("s3_path_style") {
        Some(text) => Some(text.parse().map_err(|e| ConfigError::of("s3_path_style", e))?),
        None => None,
    };
    Ok(StoreConfig::S3(S3Config {
        endpoint: layers.optional("s3_endpoint"),
        region: layers.optional("s3_region"),
        access_key_id: layers.optional("s3_access_key_id"),
        secret_access_key: layers.optional("s3_secret_access_key"),
        session_token: layers.optional("s3_session_token"),
        role_arn: layers.optional("s3_role_arn"),
        web_identity_token_file: layers.optional("s3_web_identity_token_file").map(PathBuf::from),
        sts_endpoint: layers.optional("s3_sts_endpoint"),
        path_style,
    }))
}

fn cluster(layers: &Layers, with_tls: bool) -> Result<ClusterConfig, ConfigError> {
    let text = layers.text("takeover_after");
    let takeover_after = match text.trim() {
        "never" => None,
        text => {
            let time = parse_duration(text)
                .ok_or_else(|| ConfigError::of("takeover_after", "wants a time as `25s` or `2500ms`, or `never`"))?;
            Some(time)
        }
    };
    if takeover_after.is_some_and(|time| time < LEAST_TAKEOVER) {
        return Err(ConfigError::of("takeover_after", "wants at least 1s"));
    }
    let advertise = match layers.optional("advertise") {
        Some(text) => {
            let place = Peer::parse(&text);
            Some(place.ok_or_else(|| ConfigError::of("advertise", "wants HOST:PORT, or https://HOST:PORT"))?)
        }
        None => None,
    };
    let advertise = if with_tls { advertise.map(Peer::with_tls) } else { advertise };
    Ok(ClusterConfig { takeover_after, advertise })
}

fn tls_files(layers: &Layers) -> Result<Option<tls::Files>, ConfigError> {
    match (layers.optional("tls_cert"), layers.optional("tls_key")) {
        (Some(chain), Some(key)) => Ok(Some(tls::Files { chain: chain.into(), key: key.into() })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::of("tls_key", "is missing: `tls_cert` wants its key")),
        (None, Some(_)) => Err(ConfigError::of("tls_cert", "is missing: `tls_key` wants its certificate")),
    }
}

fn engine(layers: &Layers) -> Result<EngineLimits, ConfigError> {
    let memory_bytes = match layers.optional("engine_memory") {
        Some(_) => layers.bytes("engine_memory")?,
        None => (machine_memory_bytes() / 4).clamp(512 << 20, NOTEBOOK.memory_bytes),
    };
    if memory_bytes < LEAST_ENGINE_BYTES {
        return Err(ConfigError::of("engine_memory", format!("wants at least {}MB", LEAST_ENGINE_BYTES >> 20)));
    }
    let threads = match layers.optional("engine_threads") {
        Some(_) => layers.parse("engine_threads")?,
        None => processors().min(NOTEBOOK.threads),
    };
    if threads == 0 {
        return Err(ConfigError::of("engine_threads", "wants at least 1"));
    }
    let max_queries: usize = layers.parse("max_queries")?;
    if max_queries == 0 {
        return Err(ConfigError::of("max_queries", "wants at least 1"));
    }
    Ok(EngineLimits {
        memory_bytes,
        threads,
        temp_bytes: layers.bytes("engine_temp")?,
        max_queries,
        session_idle: Duration::from_millis(layers.parse("session_idle_ms")?),
        transaction_idle: Duration::from_millis(layers.parse("transaction_idle_ms")?),
        required_walls: required_walls(&layers.text("require_walls"))?,
        httpfs: httpfs(layers),
    })
}

/// Nothing is larger than three quarters of the machine's memory.
fn profiles(layers: &Layers, least: Size) -> Result<Profiles, ConfigError> {
    let most = Size {
        threads: processors().max(least.threads),
        memory_bytes: (machine_memory_bytes() / 4 * 3).max(least.memory_bytes),
    };
    Profiles::parse(&layers.text("profiles"), least, most).map_err(|error| ConfigError::of("profiles", error))
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn required_walls(text: &str) -> Result<Vec<Wall>, ConfigError> {
    match text.trim() {
        "none" => Ok(Vec::new()),
        "all" => Ok(Wall::ALL.to_vec()),
        names => names
            .split(',')
            .map(|name| name.trim().parse().map_err(|error| ConfigError::of("require_walls", error)))
            .collect(),
    }
}

/// The httpfs extension: where the setting says, beside the binary, or where the build found DuckDB.
fn httpfs(layers: &Layers) -> Option<PathBuf> {
    const NAME: &str = "httpfs.duckdb_extension";
    if let Some(dir) = layers.optional("extension_dir") {
        return Some(Path::new(&dir).join(NAME)).filter(|path| path.is_file());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("ext")));
    let built = Some(Path::new(env!("TARN_BUILD_DUCKDB_DIR")).join("ext"));
    [beside, built].into_iter().flatten().map(|dir| dir.join(NAME)).find(|path| path.is_file())
}

/// The container's memory limit if there is one, else the machine's memory.
fn machine_memory_bytes() -> u64 {
    // Of version 2, and of version 1; an unlimited one is a word, or larger than any machine.
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = files.iter().find_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    let total = || {
        let info = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    let total = total().unwrap_or(2 << 30);
    limit.map_or(total, |limit: u64| limit.min(total))
}

/// The texts of all settings, resolved.
struct Layers {
    texts: BTreeMap<&'static str, String>,
    /// Connections by name, of the file.
    postgres: Option<figment::value::Value>,
}

impl Layers {
    fn new(flags: &Flags, env: impl Fn(&str) -> Option<String>, toml: &str) -> Result<Self, ConfigError> {
        let mut file: BTreeMap<String, figment::value::Value> =
            figment::Figment::from(Toml::string(toml)).extract().map_err(|e| ConfigError(format!("`{FILE}`: {e}")))?;
        let postgres = file.remove("postgres");
        if let Some(unknown) = file.keys().find(|key| SETTINGS.iter().all(|s| s.key != **key)) {
            return Err(ConfigError(format!(
                "`{FILE}`: unknown setting `{unknown}`; docs/configuration.md lists them"
            )));
        }
        let mut texts = BTreeMap::new();
        for setting in SETTINGS {
            let variable = || setting.env.iter().find_map(|name| env(name).filter(|text| !text.is_empty()));
            let given = match flags.get(setting.key).cloned().or_else(variable) {
                Some(text) => text,
                None => match file.get(setting.key) {
                    Some(value) => scalar(value)
                        .ok_or_else(|| ConfigError::of(setting.key, "wants a text, a number or a boolean"))?,
                    None => setting.default.to_owned(),
                },
            };
            texts.insert(setting.key, given);
        }
        Ok(Self { texts, postgres })
    }

    fn text(&self, key: &str) -> String {
        self.texts.get(key).cloned().expect("every key of the table has a text")
    }

    fn optional(&self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<T, ConfigError> {
        self.text(key).trim().parse().map_err(|e| ConfigError::of(key, e))
    }

    /// A number of units of time, fractions allowed.
    fn spell(&self, key: &str, unit: Duration) -> Result<Duration, ConfigError> {
        let wrong = || ConfigError::of(key, "wants a number that is not negative");
        let number: f64 = self.text(key).parse().map_err(|_| wrong())?;
        Duration::try_from_secs_f64(number * unit.as_secs_f64()).map_err(|_| wrong())
    }

    fn bytes(&self, key: &str) -> Result<u64, ConfigError> {
        parse_bytes(&self.text(key))
            .ok_or_else(|| ConfigError::of(key, "wants bytes, or a number with KB, MB, GB or TB"))
    }
}

fn scalar(value: &figment::value::Value) -> Option<String> {
    use figment::value::Value;
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, flag) => Some(flag.to_string()),
        Value::Num(_, number) => {
            number.to_i128().map(|n| n.to_string()).or_else(|| number.to_u128().map(|n| n.to_string()))
        }
        _ => None,
    }
}

/// `512MB`, `2 GB`, `1048576`; units are powers of 1024, as DuckDB's `MiB` and not its `MB`.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_uppercase();
    let units = [("KB", 10), ("MB", 20), ("GB", 30), ("TB", 40), ("B", 0)];
    let (number, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((&text, 0));
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `25s`, `2500ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(number) = text.strip_suffix("ms") {
        return number.trim().parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[(&'static str, &str)], env: &[(&str, &str)], toml: &str) -> Result<Config, ConfigError> {
        let flags = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        Config::resolve(&Layers::new(&flags, env, toml)?)
    }

    #[test]
    fn flag_wins_over_environment_over_file_over_default() {
        let port = |flags: &[(&'static str, &str)], env: &[(&str, &str)], toml: &str| {
            resolve(flags, env, toml).expect("legal settings").listen.port()
        };
        let (flag, env, toml) =
            ([("listen", "127.0.0.1:1")], [("TARN_LISTEN", "127.0.0.1:2")], "listen = '127.0.0.1:3'");
        assert_eq!(port(&flag, &env, toml), 1);
        assert_eq!(port(&[], &env, toml), 2);
        assert_eq!(port(&[], &[("TARN_LISTEN", "")], toml), 3);
        assert_eq!(port(&[], &[], ""), 8642);
    }

    #[test]
    fn the_seeds_variables_reach_the_s3_client() {
        let env = [
            ("DUCKDB_S3_ENDPOINT", "http://127.0.0.1:9000"),
            ("DUCKDB_S3_REGION", "eu-west-1"),
            ("DUCKDB_ACCESS_KEY_ID", "key"),
            ("DUCKDB_SECRET_ACCESS_KEY", "hush"),
        ];
        let config = resolve(&[("store", "s3")], &env, "").expect("legal settings");
        let StoreConfig::S3(s3) = config.store else { panic!("not S3") };
        assert_eq!(s3.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(s3.region.as_deref(), Some("eu-west-1"));
        assert_eq!((s3.access_key_id.as_deref(), s3.secret_access_key.as_deref()), (Some("key"), Some("hush")));
    }

    #[test]
    fn mistakes_are_named() {
        let problem = |flags: &[(&'static str, &str)], toml: &str| match resolve(flags, &[], toml) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert!(problem(&[], "lisen = 'x'").contains("unknown setting `lisen`"));
        assert!(problem(&[("listen", "0.0.0.0:1")], "").contains("--insecure"));
        assert!(problem(&[("store", "gs://x")], "").contains("file:DIR"));
        assert!(problem(&[("engine_memory", "lots")], "").contains("TARN_ENGINE_MEMORY"));
        assert!(problem(&[("engine_memory", "5")], "").contains("at least 128MB"));
        assert!(problem(&[("control", "sm-a-raw")], "").contains("tenant"));
        assert_eq!(problem(&[("listen", "0.0.0.0:1"), ("insecure", "true")], ""), "");
        let pair = [("tls_cert", "c.pem"), ("tls_key", "k.pem")];
        assert_eq!(problem(&[("listen", "0.0.0.0:1"), pair[0], pair[1]], ""), "");
        assert!(problem(&pair[..1], "").contains("`tls_key`"));
        assert!(problem(&pair[1..], "").contains("`tls_cert`"));
        assert!(problem(&[("metrics_listen", "0.0.0.0:9")], "").contains("loopback"));
        assert_eq!(problem(&[("metrics_listen", "0.0.0.0:9"), ("insecure", "true")], ""), "");
        assert!(problem(&[("takeover_after", "25")], "").contains("TARN_TAKEOVER_AFTER"));
        assert!(problem(&[("takeover_after", "900ms")], "").contains("at least 1s"));
        for bad in ["here", "here:0", "http://here:1", "a@here:1"] {
            assert!(problem(&[("advertise", bad)], "").contains("HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn a_node_may_be_one_of_many_or_the_only_one() {
        let cluster = |flags: &[(&'static str, &str)]| resolve(flags, &[], "").expect("legal settings").cluster;
        assert_eq!(cluster(&[]).takeover_after, Some(Duration::from_secs(25)));
        assert_eq!(cluster(&[("takeover_after", "1500ms")]).takeover_after, Some(Duration::from_millis(1500)));
        assert_eq!(cluster(&[("takeover_after", "never")]).takeover_after, None);
        let given = [("advertise", "node-2:8642")];
        let advertised = |flags| cluster(flags).advertise.expect("it was given").to_string();
        assert_eq!(advertised(&given), "node-2:8642");
        let with_tls = [given[0], ("tls_cert", "c.pem"), ("tls_key", "k.pem")];
        assert_eq!(advertised(&with_tls), "https://node-2:8642");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("512MB"), Some(512 << 20));
        assert_eq!(parse_bytes("2 gb"), Some(2 << 30));
        assert_eq!(parse_bytes("7"), Some(7));
        assert_eq!(parse_bytes("99999999999TB"), None);
        assert_eq!(parse_bytes("x"), None);
    }
}
