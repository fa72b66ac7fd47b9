//! The table of settings: the one source of flags, environment variables, `tarn.toml` keys, defaults and their documentation.
//!
//! Holds no parsing: `config.rs` turns the texts into values.

/// Where a setting may be given besides `tarn.toml` and the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// `--its-name VALUE`.
    Value,
    /// `--its-name`, meaning `true`.
    Switch,
    /// No flag: command lines are seen by everybody on the machine.
    Secret,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in `tarn.toml`; with hyphens, its flag.
    pub key: &'static str,
    /// Its environment variables; the first that is set and not empty counts.
    pub env: &'static [&'static str],
    /// Whether it has a flag.
    pub flag: Flag,
    /// Its default as text, with its unit.
    pub default: &'static str,
    /// What it does and what it trades.
    pub help: &'static str,
}

impl Setting {
    /// The flag's name.
    pub fn flag_name(&self) -> String {
        self.key.replace('_', "-")
    }
}

const fn value(key: &'static str, env: &'static [&'static str], default: &'static str, help: &'static str) -> Setting {
    Setting { key, env, flag: Flag::Value, default, help }
}

const fn secret(key: &'static str, env: &'static [&'static str], help: &'static str) -> Setting {
    Setting { key, env, flag: Flag::Secret, default: "", help }
}

/// Every setting, in the order of the documentation. An empty default means "none" or "found out", as the help says.
pub const SETTINGS: &[Setting] = &[
    value(
        "listen",
        &["TARN_LISTEN"],
        "127.0.0.1:8642",
        "Address and port to serve on; port 0 takes a free one and writes it to `address` in the state directory.",
    ),
    Setting {
        key: "insecure",
        env: &["TARN_INSECURE"],
        flag: Flag::Switch,
        default: "false",
        help: "Serve beyond loopback without TLS: tokens and data then cross the network in the clear. For use behind a proxy that adds TLS.",
    },
    value(
        "tls_cert",
        &["TARN_TLS_CERT"],
        "",
        "PEM file of the certificate to show, followed by those between it and its authority. With it and `tls_key` the port speaks TLS 1.2 and 1.3 only, HTTP and Flight alike. Read again every 2 s: a renewed pair is used for new connections, one that does not fit is not.",
    ),
    value("tls_key", &["TARN_TLS_KEY"], "", "PEM file of the certificate's private key, not encrypted."),
    value(
        "tls_ca",
        &["TARN_CA_FILE"],
        "",
        "PEM file of the authorities whose certificates are trusted when the node sends requests on to another node. Empty means those of the machine. The command line reads the same variable.",
    ),
    value(
        "state_dir",
        &["TARN_STATE_DIR"],
        "volumes/duckdb",
        "Directory of the engines' files. Losing it costs a restore, no data.",
    ),
    value("store", &["TARN_STORE"], "file:volumes/objects", "`file:DIR` (a bucket is a directory under DIR) or `s3`."),
    value(
        "control",
        &["TARN_CONTROL"],
        "tarn-control",
        "Bucket that holds tenants, marts and token hashes. On S3 it must exist, like every bucket.",
    ),
    secret(
        "admin_token",
        &["TARN_ADMIN_TOKEN"],
        "The node's admin token. Without it one is made at first start, printed once, and kept with mode 0600 in the state directory.",
    ),
    secret(
        "master_key",
        &["TARN_MASTER_KEY"],
        "A secret of the installation, any long random text, the same on all nodes: who reads only the control store then can't sign tickets. Changing it makes tickets and handles that are out void.",
    ),
    value(
        "oidc_issuer",
        &["TARN_OIDC_ISSUER"],
        "",
        "An OIDC issuer whose JWTs are bearer tokens here: its `iss`, exactly. None means that only the installation's own tokens count. `docs/access.md` has examples.",
    ),
    value(
        "oidc_audience",
        &["TARN_OIDC_AUDIENCE"],
        "",
        "The `aud` that its tokens for this installation have, exactly; goes with `oidc_issuer`.",
    ),
    value(
        "oidc_jwks_url",
        &["TARN_OIDC_JWKS_URL"],
        "",
        "Where the issuer's keys are; none asks `{oidc_issuer}/.well-known/openid-configuration`.",
    ),
    value(
        "oidc_tenant",
        &["TARN_OIDC_TENANT"],
        "",
        "The tenant of all the issuer's tokens; none means that a claim names it.",
    ),
    value(
        "oidc_tenant_claim",
        &["TARN_OIDC_TENANT_CLAIM"],
        "tenant",
        "The claim that names the tenant; dots lead into nested claims.",
    ),
    value(
        "oidc_role_claim",
        &["TARN_OIDC_ROLE_CLAIM"],
        "role",
        "The claim that names one role or a list of them, as in `realm_access.roles`; the highest that is known here counts.",
    ),
    value(
        "oidc_roles",
        &["TARN_OIDC_ROLES"],
        "",
        "What the issuer's roles mean here, as `analysts=reader,etl=writer,platform=admin`; none means that they are called `reader`, `writer` and `admin`.",
    ),
    value(
        "oidc_mart_claim",
        &["TARN_OIDC_MART_CLAIM"],
        "",
        "The claim that names the one mart that a token reaches, where it is there; none means all of the tenant.",
    ),
    value(
        "oidc_profiles_claim",
        &["TARN_OIDC_PROFILES_CLAIM"],
        "",
        "The claim that lists the profiles that a token may ask for, where it is there; none means any.",
    ),
    value(
        "oidc_node_admin_role",
        &["TARN_OIDC_NODE_ADMIN_ROLE"],
        "",
        "The issuer's role that makes an administrator of the whole installation. None means that no JWT does.",
    ),
    value(
        "oidc_allow_http",
        &["TARN_OIDC_ALLOW_HTTP"],
        "false",
        "Fetch the issuer's keys over http from beyond this machine: whoever is on the way can then make tokens.",
    ),
    value(
        "oidc_refresh",
        &["TARN_OIDC_REFRESH"],
        "5m",
        "How often the issuer's keys are fetched; a key that it has dropped counts that much longer.",
    ),
    value(
        "oidc_keys_for",
        &["TARN_OIDC_KEYS_FOR"],
        "12h",
        "How long the issuer's keys count when it does not answer. Longer outages lock its users out.",
    ),
    value(
        "audit",
        &["TARN_AUDIT"],
        "",
        "Where the audit log goes: a file, `stdout` or `none`; none given means `audit.jsonl` in the state directory.",
    ),
    value(
        "audit_sql",
        &["TARN_AUDIT_SQL"],
        "none",
        "What of SQL is in it: `none`, `hash` (the same text can be recognised), or `text` (its first 4096 bytes; it may hold data).",
    ),
    value(
        "audit_required",
        &["TARN_AUDIT_REQUIRED"],
        "false",
        "Refuse requests while the audit log can't be written. `false` serves on, counts what is missing, and says so once.",
    ),
    value(
        "s3_endpoint",
        &["DUCKDB_S3_ENDPOINT"],
        "",
        "S3 endpoint; none, or AWS's global one, means AWS. A custom endpoint uses path style.",
    ),
    value("s3_region", &["DUCKDB_S3_REGION"], "us-east-1", "S3 region."),
    secret(
        "s3_access_key_id",
        &["DUCKDB_ACCESS_KEY_ID"],
        "S3 key id. Without keys and role: what the machine's metadata service gives (not that of containers: name the role there).",
    ),
    secret("s3_secret_access_key", &["DUCKDB_SECRET_ACCESS_KEY"], "S3 secret key."),
    secret(
        "s3_session_token",
        &["DUCKDB_SESSION_TOKEN"],
        "Session token that goes with temporary keys; these are not refreshed.",
    ),
    value(
        "s3_role_arn",
        &["DUCKDB_S3_ROLE_ARN"],
        "",
        "Role to assume, with the keys or the web identity token; its credentials are refreshed before they expire.",
    ),
    value(
        "s3_web_identity_token_file",
        &["TARN_S3_WEB_IDENTITY_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"],
        "",
        "File with the web identity token to assume the role with; read again at every refresh.",
    ),
    value(
        "s3_sts_endpoint",
        &["TARN_S3_STS_ENDPOINT"],
        "",
        "Token service; none means AWS's regional one, or the custom S3 endpoint.",
    ),
    value(
        "s3_path_style",
        &["TARN_S3_PATH_STYLE"],
        "",
        "`true` or `false` forces `host/bucket` or `bucket.host`; none means path style for custom endpoints only.",
    ),
    value(
        "bucket_analytics",
        &["TARN_BUCKET_ANALYTICS"],
        "sm-{tenant}-analytics",
        "Name of a tenant's bucket for replicas (under `duckdb/`) and results.",
    ),
    value(
        "bucket_processed",
        &["TARN_BUCKET_PROCESSED"],
        "sm-{tenant}-processed",
        "Name of a tenant's bucket of processed data; its SQL may read it.",
    ),
    value(
        "bucket_raw",
        &["TARN_BUCKET_RAW"],
        "sm-{tenant}-raw",
        "Name of a tenant's bucket of raw data; its SQL may read it.",
    ),
    value(
        "engine_memory",
        &["TARN_ENGINE_MEMORY"],
        "",
        "DuckDB's memory limit per open mart (`4GB`, `512MB`): the size of the profile `notebook`. None means a quarter of the machine's, at least 512MB and at most 16GB. More spills less.",
    ),
    value(
        "engine_threads",
        &["TARN_ENGINE_THREADS"],
        "",
        "DuckDB's threads per open mart, for the profile `notebook`; none means one per processor, at most 4.",
    ),
    value(
        "engine_temp",
        &["TARN_ENGINE_TEMP"],
        "32GB",
        "Spill files of one mart at most; a query that needs more fails.",
    ),
    value(
        "profiles",
        &["TARN_PROFILES"],
        "",
        "More sizes that requests and marts may ask for, and other values for those built in (`batch`, `heavy`): `NAME=CPUS/MEMORY[/SECONDS]` separated by commas, as `etl=6/24GB/3600`. What the machine has not got is cut to what it has (docs/sizes.md).",
    ),
    value(
        "running_queries",
        &["TARN_RUNNING_QUERIES"],
        "0",
        "Places of all requests that run at once on this node; `notebook` takes one, `batch` two, `heavy` four. More wait in line, fairly by tenant. 0 means 64 per processor.",
    ),
    value(
        "queue_wait_ms",
        &["TARN_QUEUE_WAIT_MS"],
        "30000",
        "How long a request waits for its place before it is refused as `limited`.",
    ),
    value(
        "require_walls",
        &["TARN_REQUIRE_WALLS"],
        "none",
        "Walls around engines that must stand: `none`, `all`, or names out of `namespace,files,ports,seccomp,privileges,core_dumps,limits`. Where the kernel lacks one of them, the node does not start; without this it starts and says what is missing (docs/security.md).",
    ),
    value("max_queries", &["TARN_MAX_QUERIES"], "64", "Queries of one mart that run at once; more wait."),
    value(
        "query_timeout_ms",
        &["TARN_QUERY_TIMEOUT_MS"],
        "600000",
        "Deadline in milliseconds of a query that names none.",
    ),
    value(
        "otlp_endpoint",
        &["TARN_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"],
        "",
        "Where traces go: an OTLP collector that takes gRPC, such as `http://collector:4317`; none means nowhere.",
    ),
    value(
        "trace_sample",
        &["TARN_TRACE_SAMPLE"],
        "1",
        "The part of requests, 0 to 1, that is traced of those whose sender says nothing about it (`traceparent`).",
    ),
    value(
        "slow_query_ms",
        &["TARN_SLOW_QUERY_MS"],
        "5000",
        "Milliseconds from which on a query is written into the log as slow; `0` for never.",
    ),
    value(
        "session_idle_ms",
        &["TARN_SESSION_IDLE_MS"],
        "900000",
        "A session that nobody has used for so many milliseconds is closed; the result of an asynchronous query is kept as long.",
    ),
    value(
        "transaction_idle_ms",
        &["TARN_TRANSACTION_IDLE_MS"],
        "60000",
        "A session's transaction that nobody has used for so many milliseconds is rolled back: it stands in the way of checkpoints.",
    ),
    value(
        "durable_wait_ms",
        &["TARN_DURABLE_WAIT_MS"],
        "30000",
        "How long, in milliseconds, an answer waits for its commit to be in the object store before it says `not_yet_durable`.",
    ),
    value(
        "takeover_after",
        &["TARN_TAKEOVER_AFTER"],
        "25s",
        "A node without a sign of life in the object store for so long is dead: other nodes take its marts over. A node that can't give one (the store is \
         away) answers no reads and takes no `local` writes after three fifths of it. `never` is for an installation of one node: nobody waits, nobody \
         stops answering, and a second node on the same store would take marts away from the first. Same value on all nodes.",
    ),
    value(
        "advertise",
        &["TARN_ADVERTISE"],
        "",
        "`HOST:PORT` at which other nodes reach this one: they use TLS if it has a certificate, or if it is given as `https://HOST:PORT`, for a proxy that adds TLS. They send requests for its marts there. None means that they tell clients to. Tokens must be the same on all nodes.",
    ),
    value(
        "checkpoint_wal",
        &["TARN_CHECKPOINT_WAL"],
        "64MB",
        "A mart's log is folded into its file beyond this size. More makes fewer pauses of writers, and longer restores and starts.",
    ),
    value(
        "checkpoint_idle_ms",
        &["TARN_CHECKPOINT_IDLE_MS"],
        "5000",
        "A mart without a commit for so many milliseconds is checkpointed if its log is over 1MB (or over `checkpoint_wal`).",
    ),
    value(
        "retention_days",
        &["TARN_RETENTION_DAYS"],
        "30",
        "Every position of the last so many days can be queried, restored and branched from. Fractions are allowed.",
    ),
    value(
        "retention_grace_hours",
        &["TARN_RETENTION_GRACE_HOURS"],
        "24",
        "What retention lets go is deleted so many hours later. Longer than any restore or query of an earlier moment takes.",
    ),
    value(
        "snapshot_every_hours",
        &["TARN_SNAPSHOT_EVERY_HOURS"],
        "24",
        "A mart is snapshotted so often, if it has changed; 0 means never. Such snapshots go with the retention window. This and the following come a little later, by up to a tenth of the period and an hour, each mart at its own time; what was missed is done once. A mart that nobody uses is opened for it, by the node that had it last.",
    ),
    value(
        "archive_every_days",
        &["TARN_ARCHIVE_EVERY_DAYS"],
        "0",
        "A mart is archived so often as a plain DuckDB file in its tenant's bucket; 0 means never.",
    ),
    value(
        "verify_every_days",
        &["TARN_VERIFY_EVERY_DAYS"],
        "7",
        "A mart is restored on trial and read whole so often; 0 means never.",
    ),
    value(
        "vacuum_every_days",
        &["TARN_VACUUM_EVERY_DAYS"],
        "30",
        "A mart that holds much free space is vacuumed so often, 0 means never. Writers wait meanwhile.",
    ),
    value(
        "engine_idle_seconds",
        &["TARN_ENGINE_IDLE_SECONDS"],
        "900",
        "A mart's engine is closed when nobody has used it for so many seconds: no request, no session. The next request opens it again, which takes about a tenth of a second while its files are still here. 0 means never.",
    ),
    value(
        "max_engines",
        &["TARN_MAX_ENGINES"],
        "0",
        "When more marts than this are open, those idle longest are closed at once. One that is used is never closed, so there may be more. 0 means however many.",
    ),
    value(
        "spare_engines",
        &["TARN_SPARE_ENGINES"],
        "1",
        "Processes that wait to become engines; each takes a few megabytes and makes the opening of a mart that much faster.",
    ),
    value(
        "past_engines",
        &["TARN_PAST_ENGINES"],
        "4",
        "Engines on earlier moments that run at once; each has its own `engine_memory`. Of more than one, the last is never for a tenant that has all the others.",
    ),
    value(
        "past_idle_seconds",
        &["TARN_PAST_IDLE_SECONDS"],
        "60",
        "An engine on an earlier moment ends when nobody has used it for so many seconds.",
    ),
    value(
        "extension_dir",
        &["TARN_EXTENSION_DIR"],
        "",
        "Directory with `httpfs.duckdb_extension`; none means `ext` beside the binary, else where `scripts/setup` put it.",
    ),
    value(
        "publish",
        &["TARN_PUBLISH"],
        "default/dev",
        "The mart that is published as a plain file `duckdb-{mart}.db` in the state directory, or `none`. Costs one copy per change.",
    ),
    value(
        "publish_dir",
        &["TARN_PUBLISH_DIR"],
        "",
        "Where that file goes instead of the state directory; may be on a mount of a bucket, such as s3fs.",
    ),
    value("publish_max", &["TARN_PUBLISH_MAX"], "2GB", "A bigger mart is not published."),
    value(
        "metrics_listen",
        &["TARN_METRICS_LISTEN"],
        "",
        "Address at which `/metrics` is told without a token, beyond loopback only with `insecure`; none means only on the main address, to the admin token.",
    ),
    value(
        "log",
        &["TARN_LOG"],
        "info,s3s=off",
        "Log filter: `error`, `warn`, `info`, `debug`, or per module as in `node=debug,info`.",
    ),
    value("log_format", &["TARN_LOG_FORMAT"], "text", "`text` or `json`."),
];

/// The page `docs/configuration.md`.
pub fn document() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         A flag wins over its environment variable, that over `tarn.toml` (in the working directory, or `--config FILE`), that over the default.\n\
         Made from the table in `crates/node/src/config/settings.rs`; a test keeps the two alike.\n\n\
         | `tarn.toml` | flag | environment | default | what it does |\n|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let flag = match setting.flag {
            Flag::Value | Flag::Switch => format!("`--{}`", setting.flag_name()),
            Flag::Secret => "–".into(),
        };
        let env: Vec<_> = setting.env.iter().map(|name| format!("`{name}`")).collect();
        let default = if setting.default.is_empty() { "none".into() } else { format!("`{}`", setting.default) };
        page.push_str(&format!("| `{}` | {flag} | {} | {default} | {} |\n", setting.key, env.join(", "), setting.help));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TARN_WRITE_DOCS=1 cargo test -p node` writes the page anew.
    #[test]
    fn the_configuration_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        if std::env::var_os("TARN_WRITE_DOCS").is_some() {
            std::fs::write(path, document()).expect("the page can be written");
        }
        let page = std::fs::read_to_string(path).expect("docs/configuration.md exists");
        assert!(page == document(), "docs/configuration.md is stale: run `TARN_WRITE_DOCS=1 cargo test -p node`");
    }

    #[test]
    fn keys_and_variables_are_unique() {
        let mut keys: Vec<_> = SETTINGS.iter().map(|s| s.key).collect();
        let mut variables: Vec<_> = SETTINGS.iter().flat_map(|s| s.env).collect();
        keys.sort_unstable();
        variables.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(variables.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
