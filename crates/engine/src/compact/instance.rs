//! A DuckDB instance for files that nobody else has open, with its spill directory, which goes with it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::{CompactError, Limits};
use crate::{
    duck::{Connection, Database, DuckError},
    open::{BEFORE_ATTACH, MART, STORAGE_VERSION, is_replay, literal},
};

/// An instance and its one connection.
pub(super) struct Instance {
    pub connection: Connection,
    pub spill: Spill,
}

/// A directory that is removed when dropped.
pub(super) struct Spill(pub PathBuf);

impl Drop for Spill {
    fn drop(&mut self) {
        // What is left over is found and emptied by the next one.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Instance {
    /// With an empty spill directory at `spill`.
    pub fn open(spill: &Path, limits: Limits) -> Result<Self, CompactError> {
        if spill.exists() {
            fs::remove_dir_all(spill)?;
        }
        fs::create_dir(spill)?;
        let spill = Spill(spill.to_owned());
        let text = path_text(&spill.0)?;
        let database = Database::open_in_memory(&[
            ("allow_unsigned_extensions", "false"),
            ("allow_community_extensions", "false"),
            ("autoinstall_known_extensions", "false"),
            ("autoload_known_extensions", "false"),
            ("allow_persistent_secrets", "false"),
            ("storage_compatibility_version", STORAGE_VERSION),
            ("secret_directory", text),
            ("extension_directory", text),
            ("home_directory", text),
            ("temp_directory", text),
            ("memory_limit", &format!("{}B", limits.memory_bytes)),
            ("threads", &limits.threads.max(1).to_string()),
        ])?;
        let connection = database.connect()?;
        for statement in BEFORE_ATTACH {
            connection.execute(statement)?;
        }
        Ok(Self { connection, spill })
    }

    /// Attaches `file` as `database`, to read; its log is replayed in memory.
    ///
    /// One that makes an index over rows can only be replayed where DuckDB may write: then the index goes into free space of the file,
    /// as at every opening, and file and log stand for the same as before.
    pub fn attach(&self, file: &Path, database: &str) -> Result<(), CompactError> {
        let file = literal(path_text(file)?);
        match self.connection.execute(&format!("ATTACH {file} AS {database} (READ_ONLY)")) {
            Err(error) if is_replay(&error) => Ok(self.connection.execute(&format!("ATTACH {file} AS {database}"))?),
            attached => Ok(attached?),
        }
    }

    /// The same as the mart, and no other file may be touched from then on.
    pub fn attach_only(&self, file: &Path) -> Result<(), CompactError> {
        self.attach(file, MART)?;
        self.connection.execute(&format!("USE {MART}"))?;
        self.close_walls()
    }

    /// No file but those attached and the spill directory: the database's objects may name others.
    pub fn close_walls(&self) -> Result<(), CompactError> {
        let spill = literal(&format!("{}/", path_text(&self.spill.0)?));
        Ok(self.connection.execute(&format!(
            "SET GLOBAL allowed_directories = [{spill}]; SET GLOBAL enable_external_access = false"
        ))?)
    }

    /// The rows of a query whose one column is JSON.
    pub fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, CompactError> {
        let texts = self.connection.column(sql)?;
        let parse = |text: String| {
            serde_json::from_str(&text)
                .map_err(|error| DuckError::new(&format!("INTERNAL Error: a row is not what it should be: {error}")))
        };
        Ok(texts.into_iter().map(parse).collect::<Result<_, _>>()?)
    }

    /// The columns of a table that hold data: name and type. Generated ones hold none.
    pub fn stored_columns(&self, table: &Table) -> Result<Vec<(String, String)>, CompactError> {
        let columns = self.columns(MART, table)?;
        if !table.sql.contains("GENERATED ALWAYS AS") {
            return Ok(columns);
        }
        let mut stored = Vec::new();
        for (name, kind) in columns {
            if !self.is_generated(table, &name)? {
                stored.push((name, kind));
            }
        }
        Ok(stored)
    }

    /// No catalog function tells. An INSERT is only bound: generated columns are refused before the mart is found to be read-only.
    fn is_generated(&self, table: &Table, column: &str) -> Result<bool, CompactError> {
        let sql = format!("INSERT INTO {} ({}) SELECT NULL WHERE false", table.within(MART), name(column));
        match self.connection.extract(&sql)?.map(|mut parsed| parsed.prepare()).find_map(Result::err) {
            Some(error) if error.message.contains("generated column") => Ok(true),
            Some(error) if error.message.contains("read-only mode") => Ok(false),
            Some(error) => Err(error.into()),
            None => Ok(false),
        }
    }

    /// All tables of the mart, by schema and name.
    pub fn tables(&self) -> Result<Vec<Table>, CompactError> {
        self.tables_of(MART)
    }

    /// The same of any attached database.
    pub fn tables_of(&self, database: &str) -> Result<Vec<Table>, CompactError> {
        let rows: Vec<(String, String, String)> = self.rows(&format!(
            "SELECT to_json([schema_name, table_name, sql])::VARCHAR FROM duckdb_tables()
             WHERE database_name = '{database}' AND NOT internal ORDER BY schema_name, table_name"
        ))?;
        Ok(rows.into_iter().map(|(schema, name, sql)| Table { schema, name, sql }).collect())
    }

    /// Names and types of a table's columns; none if there is no such table.
    pub fn columns(&self, database: &str, table: &Table) -> Result<Vec<(String, String)>, CompactError> {
        self.rows(&format!(
            "SELECT to_json([column_name, data_type])::VARCHAR FROM duckdb_columns()
             WHERE database_name = '{database}' AND schema_name = {} AND table_name = {} ORDER BY column_index",
            literal(&table.schema),
            literal(&table.name)
        ))
    }

    /// The one number of a query.
    pub fn number(&self, sql: &str) -> Result<u64, CompactError> {
        let texts = self.connection.column(sql)?;
        let number = texts.first().and_then(|text| text.parse().ok());
        number.ok_or_else(|| DuckError::new("INTERNAL Error: a count is no number").into())
    }
}

/// A table of the mart.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub schema: String,
    pub name: String,
    /// As DuckDB prints it; not fit to make it again.
    pub sql: String,
}

impl Table {
    /// Whether both have the same name.
    pub fn is(&self, other: &Self) -> bool {
        (&self.schema, &self.name) == (&other.schema, &other.name)
    }

    /// Its full name in the attached database `database`.
    pub fn within(&self, database: &str) -> String {
        format!("{database}.{}.{}", name(&self.schema), name(&self.name))
    }
}

/// An identifier, quoted.
pub(super) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

pub(super) fn path_text(path: &Path) -> Result<&str, CompactError> {
    let text = path.to_str();
    text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a path is not valid UTF-8").into())
}
