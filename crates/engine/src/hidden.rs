//! Whether a statement that reads by its text may write all the same: `nextval` inside a view, a macro or a generated column.
//!
//! **Invariant:** the flag is up from before such an object can be seen until after the catalog was asked and had none. Only DDL
//! whose own text says `nextval` can make one, so other DDL costs nothing.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::duck::{Connection, DuckError};

/// A default of a plain column is not hidden: only an INSERT runs it.
const ASK: &str = "
    SELECT 'view' FROM duckdb_views() WHERE NOT internal AND sql ILIKE '%nextval%'
    UNION ALL SELECT 'macro' FROM duckdb_functions() WHERE NOT internal AND macro_definition ILIKE '%nextval%'
    UNION ALL SELECT 'generated column' FROM duckdb_tables() WHERE sql ILIKE '%nextval%' AND sql ILIKE '%GENERATED ALWAYS AS%'
    LIMIT 1";

/// What is known about one mart.
pub struct HiddenWrites {
    possible: AtomicBool,
    ddl: Mutex<Ddl>,
}

#[derive(Default)]
struct Ddl {
    /// Statements that may make one, in transactions that are still open: the catalog does not show them yet.
    open: usize,
    /// All of them so far, so that an answer of the catalog that is older does not lower the flag.
    made: u64,
}

impl HiddenWrites {
    /// Asks the catalog.
    pub fn open(connection: &Connection) -> Result<Self, DuckError> {
        let possible = !connection.column(ASK)?.is_empty();
        Ok(Self { possible: AtomicBool::new(possible), ddl: Mutex::default() })
    }

    /// Where nothing can write.
    pub fn none() -> Self {
        Self { possible: AtomicBool::new(false), ddl: Mutex::default() }
    }

    /// Must a read be treated as a write?
    pub fn possible(&self) -> bool {
        self.possible.load(Ordering::SeqCst)
    }

    /// Before DDL with this text runs; how many to name in [`Self::after_ddl`] when its transaction is over.
    pub fn before_ddl(&self, text: &str) -> usize {
        if !text.to_ascii_lowercase().contains("nextval") {
            return 0;
        }
        let mut ddl = self.lock();
        ddl.open += 1;
        ddl.made += 1;
        self.possible.store(true, Ordering::SeqCst);
        1
    }

    /// After a transaction with DDL was committed or given up; keeps the flag up when the catalog can't be asked.
    pub fn after_ddl(&self, connection: &Connection, counted: usize) {
        let made = {
            let mut ddl = self.lock();
            ddl.open -= counted;
            ddl.made
        };
        if !self.possible() {
            return;
        }
        let Ok(found) = connection.column(ASK) else { return };
        let ddl = self.lock();
        if found.is_empty() && ddl.open == 0 && ddl.made == made {
            self.possible.store(false, Ordering::SeqCst);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ddl> {
        self.ddl.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
