//! Opens the mart: an instance on `:memory:` with the mart's file attached, walls up, checkpoints ours.
//!
//! The instance runs on `:memory:` so that a full disk during a checkpoint spoils only the attached database. The order of the
//! settings matters and is that of the measurements: open-time settings, the extension, limits, secret, ATTACH, and the lock last.
//! Not here: which SQL may run (`sql::gate`), what the gateway allows.

use std::{fs, io, path::Path, sync::Arc};

use crate::{
    commit::Commits,
    config::{EngineConfig, GatewayConfig},
    duck::{Connection, Database, DuckError},
    load::{scan::Sources, spool::Spool},
    view::{self, View},
    wal,
    wire::ResizeRequest,
};

/// Name under which the mart is attached.
pub const MART: &str = "mart";

/// Settings that each connection has for itself; the gate lets nobody else set them.
const SESSION: [(&str, &str); 4] = [
    // What DuckDB may hold ready of a result that streams. It counts 16 bytes for a string of any length: at its default of a
    // megabyte, a result of long strings that nobody reads takes over 60 MB.
    ("streaming_buffer_size", "128KB"),
    // Progress is counted, from the start, and not printed.
    ("enable_progress_bar", "true"),
    ("enable_progress_bar_print", "false"),
    ("progress_bar_time", "0"),
];

/// DuckDB sets it by itself where it makes several steps of one statement: ADD COLUMN with a computed default.
const OWN_STEPS: &str = "current_transaction_invalidation_policy";

/// The node makes an engine larger or smaller while it runs, on a connection of the engine's own.
const SIZE: [&str; 2] = ["memory_limit", "threads"];

/// A load of many rows sets it, on its own connection.
const ORDER: &str = "preserve_insertion_order";

/// Files of this storage version say in their log which database and checkpoint it belongs to.
pub(crate) const STORAGE_VERSION: &str = "v1.5.0";

/// Settings that must be there before a file is attached. They give checkpoints to us alone: none by size, none instead of a log
/// write, none at commit (the last one is a PRAGMA). And what the replay of a log computes again must not depend on the machine.
pub(crate) const BEFORE_ATTACH: [&str; 5] = [
    "SET GLOBAL TimeZone = 'UTC'",
    "SET GLOBAL wal_autocheckpoint = '1TB'",
    "SET GLOBAL auto_checkpoint_skip_wal_threshold = 1000000000000000",
    "SET GLOBAL debug_skip_checkpoint_on_commit = true",
    "PRAGMA disable_checkpoint_on_shutdown",
];

/// An open mart.
pub struct Mart {
    database: Database,
    /// Its commits. Declared after the database, so that DuckDB lets go of the file before our descriptor closes.
    pub commits: Commits,
    /// What loads give their statements to read.
    pub sources: Arc<Sources>,
}

/// Why a mart does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// DuckDB refused a setting or the file.
    #[error("{0}")]
    Duck(#[from] DuckError),
    /// A file can't be read or made.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl OpenError {
    /// Did the replay of the log fail, not the file?
    pub(crate) fn is_replay(&self) -> bool {
        matches!(self, Self::Duck(error) if is_replay(error))
    }
}

/// Did the replay of a log fail, not the opening of its file?
pub(crate) fn is_replay(error: &DuckError) -> bool {
    error.message.contains("Failure while replaying WAL")
}

impl Mart {
    /// Opens or makes the mart's file and replays its log; or attaches a past moment.
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        empty_dir(&config.temp_dir)?;
        fs::create_dir_all(&config.home_dir)?;
        if config.view.is_none() {
            let cut = wal::cut_torn_tail(&crate::files::wal_path(&config.db_path))?;
            if cut > 0 {
                tracing::info!(bytes = cut, "cut a torn tail off the log");
            }
        }
        let database = open_instance(config)?;
        let setup = database.connect()?;
        for statement in BEFORE_ATTACH {
            setup.execute(statement)?;
        }
        if let (Some(httpfs), true) = (&config.httpfs_path, config.gateway.is_some() || config.view.is_some()) {
            setup.execute(&format!("LOAD {}", literal(path_text(httpfs)?)))?;
        }
        if let (Some(_), Some(gateway)) = (&config.httpfs_path, &config.gateway) {
            use_gateway(&setup, gateway, config.view.as_ref().map(|view| view::dir(&view.url)))?;
        }
        match &config.view {
            // At DuckDB's own settings a block that was read once stays in memory: no cache of files or of their heads adds to that.
            Some(view) => setup.execute(&format!("ATTACH {} AS {MART} (READ_ONLY)", literal(&view.url)))?,
            None => setup.execute(&format!("ATTACH {} AS {MART}", literal(path_text(&config.db_path)?)))?,
        }
        // The instance's own database would be a place to write that no log and no limit knows of.
        setup.execute(&format!("USE {MART}; DETACH memory"))?;
        let sources = Arc::<Sources>::default();
        sources.register(&setup)?;
        lock_down(&setup, config)?;
        let commits = match &config.view {
            Some(view) => Commits::fixed(View::new(view).point),
            None => Commits::open(&config.db_path)?,
        };
        Ok(Self { database, commits, sources })
    }

    /// Gives DuckDB more or less to work with; what no longer fits is spilled.
    pub fn resize(&self, size: ResizeRequest) -> Result<(), DuckError> {
        let connection = self.database.connect()?;
        let [memory, threads] = SIZE;
        connection.execute(&format!("SET GLOBAL {threads} = {}", size.threads.max(1)))?;
        connection.execute(&format!("SET GLOBAL {memory} = '{}B'", size.memory_limit_bytes))
    }

    /// A new connection whose names mean the mart's.
    pub fn connect(&self) -> Result<Connection, DuckError> {
        let connection = self.database.connect()?;
        connection.execute(&format!("USE {MART}"))?;
        for (name, value) in SESSION {
            connection.execute(&format!("SET SESSION {name} = '{value}'"))?;
        }
        Ok(connection)
    }
}

/// Opens `db` alone and folds its log into it, for a copy that is to be published as one plain file.
pub fn fold(db: &Path) -> Result<(), OpenError> {
    wal::cut_torn_tail(&crate::files::wal_path(db))?;
    let database = Database::open_in_memory(&[("threads", "1"), ("memory_limit", "256MiB")])?;
    let connection = database.connect()?;
    connection.execute("SET GLOBAL TimeZone = 'UTC'")?;
    connection.execute(&format!("ATTACH {} AS {MART}; CHECKPOINT {MART}; DETACH {MART}", literal(path_text(db)?)))?;
    Ok(())
}

fn open_instance(config: &EngineConfig) -> Result<Database, OpenError> {
    let memory_limit = format!("{}B", config.memory_limit_bytes);
    let threads = config.threads.max(1).to_string();
    let home = path_text(&config.home_dir)?;
    Ok(Database::open_in_memory(&[
        ("allow_unsigned_extensions", "false"),
        ("allow_community_extensions", "false"),
        ("autoinstall_known_extensions", "false"),
        ("autoload_known_extensions", "false"),
        ("allow_persistent_secrets", "false"),
        ("storage_compatibility_version", STORAGE_VERSION),
        ("secret_directory", home),
        ("extension_directory", home),
        ("home_directory", home),
        ("temp_directory", path_text(&config.temp_dir)?),
        ("memory_limit", &memory_limit),
        ("threads", &threads),
    ])?)
}

/// `view` is one more directory that the key is good for, though not for clients (see `lock_down`).
fn use_gateway(setup: &Connection, gateway: &GatewayConfig, view: Option<&str>) -> Result<(), DuckError> {
    let scopes = gateway.scopes.iter().map(String::as_str).chain(view).map(literal).collect::<Vec<_>>().join(", ");
    // The proxy catches what names another host than the secret's endpoint.
    setup.execute(&format!("SET GLOBAL http_proxy = {}", literal(&format!("http://{}", gateway.endpoint))))?;
    setup.execute(
        "SET GLOBAL http_timeout = 30; SET GLOBAL http_retries = 2; SET GLOBAL enable_global_s3_configuration = false",
    )?;
    setup.execute(&format!(
        "CREATE TEMPORARY SECRET tarn_gateway (TYPE s3, KEY_ID {}, SECRET {}, REGION {}, ENDPOINT {}, URL_STYLE 'path', USE_SSL false, SCOPE [{scopes}])",
        literal(&gateway.key_id),
        literal(&gateway.secret),
        literal(&gateway.region),
        literal(&gateway.endpoint),
    ))
}

fn lock_down(setup: &Connection, config: &EngineConfig) -> Result<(), OpenError> {
    let spool = format!("{}/", path_text(&Spool::dir(&config.temp_dir))?);
    let scopes = config.gateway.iter().flat_map(|gateway| &gateway.scopes).map(String::as_str);
    let allowed = scopes.chain([spool.as_str()]).map(literal).collect::<Vec<_>>().join(", ");
    let mut own: Vec<String> = SESSION.iter().map(|(name, _)| literal(name)).collect();
    own.extend([OWN_STEPS, ORDER].into_iter().chain(SIZE).map(literal));
    let own = own.join(", ");
    // As an open-time setting this one is shown but not enforced.
    setup.execute(&format!("SET GLOBAL max_temp_directory_size = '{}B'", config.max_temp_bytes))?;
    for statement in [
        // Else DuckDB's own allocator keeps what was freed until it is busy again.
        "SET GLOBAL allocator_background_threads = true",
        "SET GLOBAL max_expression_depth = 200",
        &format!("SET GLOBAL allowed_directories = [{allowed}]"),
        "SET GLOBAL enable_external_access = false",
        &format!("SET GLOBAL allowed_configs = [{own}]"),
        "SET GLOBAL lock_configuration = true",
    ] {
        setup.execute(statement)?;
    }
    Ok(())
}

/// Spill files of a process that is gone are of no use.
fn empty_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir_all(dir)
}

fn path_text(path: &Path) -> Result<&str, OpenError> {
    path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path is not valid UTF-8").into())
}

/// A text as SQL.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
