//! The Postgres side of it: a connection, the table that is written to, and the key under which it was written.
//!
//! **Invariant:** everything happens in one transaction, the key's row with it. What is not committed is not there.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, CopyInSink, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::ClientConfig;

use super::columns::{Column, Found};
use super::{Destination, Mode, Recorded};
use crate::error::{ApiError, Code};

/// A server that does not answer within this time is not there.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Where keys are kept, in the connection's first schema.
const KEYS: &str = "tarn_persisted";
/// Keys are remembered for so long.
const REMEMBERED: &str = "30 days";

/// An open transaction.
pub struct Target {
    client: Client,
    destination: Destination,
}

/// Connects, and begins. `tls` is used where the connection's `sslmode` asks for it; `keyed` says that a key will be claimed.
pub async fn begin(
    config: &Config,
    tls: &ClientConfig,
    destination: Destination,
    keyed: bool,
) -> Result<Target, ApiError> {
    let client = connect(config, tls).await?;
    if keyed {
        let make = format!(
            "CREATE TABLE IF NOT EXISTS {KEYS} (key text PRIMARY KEY, what text NOT NULL, rows bigint, checksum text, position text, at timestamptz NOT NULL DEFAULT now())"
        );
        match client.batch_execute(&make).await {
            // Somebody else made it at the same moment.
            Err(error) if matches!(error.code(), Some(&SqlState::UNIQUE_VIOLATION | &SqlState::DUPLICATE_TABLE)) => {}
            made => made.map_err(told)?,
        }
    }
    client.batch_execute("BEGIN").await.map_err(told)?;
    Ok(Target { client, destination })
}

async fn connect(config: &Config, tls: &ClientConfig) -> Result<Client, ApiError> {
    let mut config = config.clone();
    config.connect_timeout(CONNECT_WAIT).application_name("tarn persist");
    let connecting = async {
        match config.get_ssl_mode() {
            tokio_postgres::config::SslMode::Disable => {
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
            _ => {
                let (client, connection) = config.connect(MakeRustlsConnect::new(tls.clone())).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        }
    };
    let late = || ApiError::new(Code::Unavailable, "Postgres did not answer in time").hint("try again in a moment");
    tokio::time::timeout(CONNECT_WAIT * 2, connecting).await.map_err(|_| late())?.map_err(told)
}

impl Target {
    /// Claims the key in this transaction. What was recorded under it before, if anything was; another transaction that has it is
    /// waited for.
    pub async fn claim(&self, key: &str, what: &str) -> Result<Option<Recorded>, ApiError> {
        let claim = format!("INSERT INTO {KEYS} (key, what) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        match self.client.execute(&claim, &[&key, &what]).await.map_err(told)? {
            0 => recorded(&self.client, key).await,
            _ => Ok(None),
        }
    }

    /// The columns of the table, if it is there.
    pub async fn columns(&self) -> Result<Option<Vec<Found>>, ApiError> {
        const SQL: &str = "
            SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '' OR a.attidentity = 'a',
                   coalesce(element.oid, base.oid), element.oid IS NOT NULL, coalesce(element.typtype, base.typtype) = 'e'
            FROM pg_attribute a
            JOIN pg_type own ON own.oid = a.atttypid
            JOIN pg_type base ON base.oid = CASE own.typtype WHEN 'd' THEN own.typbasetype ELSE own.oid END
            LEFT JOIN pg_type element ON element.oid = base.typelem AND base.typcategory = 'A'
            WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum";
        let rows = self.client.query(SQL, &[&self.destination.quoted()]).await.map_err(told)?;
        let found = rows.iter().map(|row| Found {
            name: row.get(0),
            sql_type: row.get(1),
            is_generated: row.get(2),
            oid: row.get(3),
            is_array: row.get(4),
            is_enum: row.get(5),
        });
        let found: Vec<_> = found.collect();
        Ok((!found.is_empty()).then_some(found))
    }

    /// Makes what rows are copied into; its name.
    pub async fn prepare(&self, columns: &[Column], exists: bool) -> Result<String, ApiError> {
        let table = self.destination.quoted();
        let defined: Vec<_> =
            columns.iter().map(|column| format!("{} {}", quote(&column.name), column.sql_type)).collect();
        let (into, sql) = match (&self.destination.mode, exists) {
            (Mode::Append, _) => return Ok(table),
            (Mode::Create, _) | (Mode::Replace, false) => {
                let sql = format!("CREATE TABLE {table} ({})", defined.join(", "));
                (table, sql)
            }
            (Mode::Replace, true) => {
                let fresh = self.destination.beside();
                let sql = format!("CREATE TABLE {fresh} (LIKE {table} INCLUDING ALL)");
                (fresh, sql)
            }
            (Mode::Upsert(_), _) => {
                let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
                let staging = "pg_temp.tarn_staging".to_owned();
                // The columns' types without their rules: these are the table's to keep.
                let sql = format!(
                    "CREATE TEMP TABLE tarn_staging ON COMMIT DROP AS SELECT {} FROM {table} WITH NO DATA",
                    names.join(", ")
                );
                (staging, sql)
            }
        };
        self.client.batch_execute(&sql).await.map_err(told)?;
        Ok(into)
    }

    /// Opens the stream of tuples.
    pub async fn copy(&self, into: &str, columns: &[Column]) -> Result<CopyInSink<Bytes>, ApiError> {
        let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
        let sql = format!("COPY {into} ({}) FROM STDIN (FORMAT binary)", names.join(", "));
        self.client.copy_in(&sql).await.map_err(told)
    }

    /// Puts what was copied where it belongs; how many rows of the table that touched.
    pub async fn place(&self, columns: &[Column], copied: u64, exists: bool) -> Result<u64, ApiError> {
        let table = self.destination.quoted();
        match &self.destination.mode {
            Mode::Append | Mode::Create => Ok(copied),
            Mode::Replace if !exists => Ok(copied),
            Mode::Replace => {
                let swap = format!(
                    "DROP TABLE {table}; ALTER TABLE {} RENAME TO {}",
                    self.destination.beside(),
                    quote(&self.destination.table)
                );
                self.client.batch_execute(&swap).await.map_err(told)?;
                Ok(copied)
            }
            Mode::Upsert(key) => {
                let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
                let others: Vec<_> = columns
                    .iter()
                    .filter(|column| !key.contains(&column.name))
                    .map(|column| format!("{name} = excluded.{name}", name = quote(&column.name)))
                    .collect();
                let then =
                    if others.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", others.join(", ")) };
                let keys: Vec<_> = key.iter().map(|name| quote(name)).collect();
                let sql = format!(
                    "INSERT INTO {table} ({names}) SELECT {names} FROM pg_temp.tarn_staging ON CONFLICT ({}) DO {then}",
                    keys.join(", "),
                    names = names.join(", ")
                );
                self.client.execute(&sql, &[]).await.map_err(told)
            }
        }
    }

    /// Writes down what was done under the key.
    pub async fn record(&self, key: &str, done: &Recorded) -> Result<(), ApiError> {
        let rows = i64::try_from(done.rows).unwrap_or(i64::MAX);
        let sql = format!("UPDATE {KEYS} SET rows = $2, checksum = $3, position = $4 WHERE key = $1");
        self.client.execute(&sql, &[&key, &rows, &done.checksum, &done.position]).await.map_err(told)?;
        let forget = format!("DELETE FROM {KEYS} WHERE at < now() - interval '{REMEMBERED}'");
        self.client.execute(&forget, &[]).await.map(drop).map_err(told)
    }

    /// Commits. An error says what became of it: the key's row, asked for over a new connection, tells that where the answer got lost.
    pub async fn commit(self, config: &Config, tls: &ClientConfig, key: Option<&str>) -> Result<(), ApiError> {
        let Err(error) = self.client.batch_execute("COMMIT").await else { return Ok(()) };
        if error.code().is_some() {
            // Postgres itself refuses, as deferred constraints do.
            return Err(told(error));
        }
        drop(self.client);
        let unknown = ApiError::new(Code::Unavailable, "the connection to Postgres broke while it committed")
            .hint("ask Postgres for the rows; with an `idempotency_key` it can be sent again")
            .outcome(crate::error::Outcome::Unknown);
        let Some(key) = key else { return Err(unknown) };
        let Ok(client) = connect(config, tls).await else { return Err(unknown) };
        match recorded(&client, key).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                Err(ApiError::new(Code::Unavailable, "the connection to Postgres broke, and nothing was committed")
                    .hint("try again in a moment"))
            }
            Err(_) => Err(unknown),
        }
    }
}

async fn recorded(client: &Client, key: &str) -> Result<Option<Recorded>, ApiError> {
    let sql = format!("SELECT what, rows, checksum, position FROM {KEYS} WHERE key = $1");
    let row = client.query_opt(&sql, &[&key]).await.map_err(told)?;
    Ok(row.map(|row| Recorded {
        what: row.get(0),
        rows: u64::try_from(row.get::<_, Option<i64>>(1).unwrap_or(0)).unwrap_or(0),
        checksum: row.get::<_, Option<String>>(2).unwrap_or_default(),
        position: row.get(3),
    }))
}

/// A chunk that grows until it is worth sending.
pub fn chunk() -> BytesMut {
    BytesMut::with_capacity(super::CHUNK_BYTES + super::CHUNK_BYTES / 4)
}

/// A name as SQL has it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An error of Postgres' in our words; its own are kept where they are about the data. No address, user or password is in them.
pub fn told(error: tokio_postgres::Error) -> ApiError {
    let Some(db) = error.as_db_error() else {
        tracing::warn!(%error, "Postgres can't be reached");
        let config = error.to_string().contains("invalid configuration");
        let what =
            if config { "the Postgres connection's settings can't be used" } else { "Postgres can't be reached" };
        return ApiError::new(Code::Unavailable, what).hint("the node's log has the reason; try again in a moment");
    };
    let message = format!("Postgres: {}", db.message());
    let code = db.code();
    let class = &code.code()[..2];
    match (class, code) {
        ("28" | "3D", _) => {
            tracing::warn!(message = db.message(), "Postgres does not let this node in");
            ApiError::new(Code::Forbidden, "Postgres does not let this node in")
                .hint("the connection's user, password or database is wrong; the node's log has the reason")
        }
        (_, &SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => ApiError::new(Code::NotFound, message),
        (_, &SqlState::INSUFFICIENT_PRIVILEGE) => ApiError::new(Code::Forbidden, message),
        (_, &SqlState::DUPLICATE_TABLE) => ApiError::new(Code::Conflict, message)
            .hint("`append`, `replace` and `upsert` are for tables that are there"),
        ("40", _) => {
            ApiError::new(Code::Conflict, message).hint("try again").outcome(crate::error::Outcome::None).transient()
        }
        ("23", _) => ApiError::new(Code::Conflict, message),
        ("08" | "53" | "57", _) => ApiError::new(Code::Unavailable, message).hint("try again in a moment"),
        _ => ApiError::new(Code::Sql, message),
    }
}
