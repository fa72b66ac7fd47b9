//! How the rows of two files differ, table by table.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::instance::{Instance, Table, name};
use super::{CompactError, Limits, spill_dir};
use crate::open::MART;
use crate::sql::gate::OWN_SCHEMA;

/// The other file's name.
const OTHER: &str = "other";

/// One table in two files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDiff {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Rows that only the second file has; a row that is there twice counts twice.
    pub rows_added: u64,
    /// Rows that only the first file has.
    pub rows_removed: u64,
    /// Its columns are others, so all rows count as removed and added; or it is in one file only.
    pub changed: bool,
}

/// What would come and go if `to` took the place of `from`. Tables without a difference are left out.
pub fn diff(from: &Path, to: &Path, limits: Limits) -> Result<Vec<TableDiff>, CompactError> {
    let instance = Instance::open(&spill_dir(to), limits)?;
    instance.attach(from, MART)?;
    instance.attach(to, OTHER)?;
    instance.close_walls()?;
    let (before, after) = (instance.tables_of(MART)?, instance.tables_of(OTHER)?);
    let only_before = before.iter().filter(|table| !after.iter().any(|other| other.is(table)));
    let mut differences = Vec::new();
    for table in after.iter().chain(only_before).filter(|table| table.schema != OWN_SCHEMA) {
        let there = [MART, OTHER].map(|database| instance.columns(database, table));
        let [first, second] = there;
        let (first, second) = (first?, second?);
        let count = |database: &str, exists: bool| match exists {
            true => instance.number(&format!("SELECT count(*)::VARCHAR FROM {}", table.within(database))),
            false => Ok(0),
        };
        let changed = first != second;
        let (rows_added, rows_removed) = match changed {
            true => (count(OTHER, !second.is_empty())?, count(MART, !first.is_empty())?),
            false => {
                let columns = first.iter().map(|(column, _)| name(column)).collect::<Vec<_>>().join(", ");
                let only = |one: &str, two: &str| {
                    instance.number(&format!(
                        "SELECT count(*)::VARCHAR FROM (SELECT {columns} FROM {} EXCEPT ALL SELECT {columns} FROM {})",
                        table.within(one),
                        table.within(two)
                    ))
                };
                (only(OTHER, MART)?, only(MART, OTHER)?)
            }
        };
        if changed || rows_added + rows_removed > 0 {
            let Table { schema, name, .. } = table.clone();
            differences.push(TableDiff { schema, table: name, rows_added, rows_removed, changed });
        }
    }
    Ok(differences)
}
