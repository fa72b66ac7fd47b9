//! Rows that a commit would write past the log, into a table with an index.
//!
//! From one row group on, DuckDB 1.5.5 writes the rows of a commit into the file itself and only points to them in the log. A replay
//! keeps what it has to put into an index until the index is used, but of such rows it keeps all columns, and of others the indexed
//! ones only, in the same buffer: it crashes, or the table can't be used any more. So no commit may bring so many rows into a table
//! with an index.

use crate::{
    duck::{Connection, DuckError},
    failure::Failure,
    wire::Code,
};

/// A row group.
const MOST_ROWS: u64 = 122_880;
/// Rows of a transaction that are not committed have ids from here on (DuckDB's `MAX_ROW_ID`).
const FIRST_LOCAL_ROW: u64 = 36_028_797_018_960_000;
const INDEXED: &str = "
    SELECT DISTINCT format('\"{}\".\"{}\"', replace(schema_name, '\"', '\"\"'), replace(table_name, '\"', '\"\"'))
    FROM duckdb_indexes() WHERE database_name = 'mart' ORDER BY 1";

/// Is there one at all?
pub(crate) fn has_index(connection: &Connection) -> Result<bool, DuckError> {
    Ok(!connection.column(INDEXED)?.is_empty())
}

/// Refuses a transaction that could not be replayed, before its COMMIT.
pub(crate) fn check(connection: &Connection) -> Result<Option<Failure>, DuckError> {
    for table in connection.column(INDEXED)? {
        let ask =
            format!("SELECT (count(*) >= {MOST_ROWS})::VARCHAR FROM mart.{table} WHERE rowid >= {FIRST_LOCAL_ROW}");
        if connection.column(&ask)?.concat() == "true" {
            let message = format!(
                "{MOST_ROWS} rows or more at once can't go into table {table}: it has an index, and recovery could not repeat that"
            );
            let hint = "drop the index first and create it again afterwards, or write fewer rows in each transaction";
            return Ok(Some(Failure::new(Code::Invalid, message).hint(hint)));
        }
    }
    Ok(None)
}
