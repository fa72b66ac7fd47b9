//! A thin, safe layer over DuckDB's C API: database, connection, statement, streaming result, chunk.
//!
//! Not here: settings, transactions, formats. Nothing panics on a DuckDB error, also not in mid-stream.
//! **Invariants:** one thread at a time uses a connection and what came from it (all are `Send`, none is `Sync`); only
//! [`Interrupter`] may be used from another thread at the same time. A result keeps its connection alive.

mod error;
mod pending;
mod result;

use std::{
    ffi::{CStr, CString, c_char},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use error::{DuckError, ErrorKind};
use libduckdb_sys as ffi;
use pending::Pending;
pub use result::{Chunk, ResultKind, ResultSet};

/// An open DuckDB instance.
#[derive(Clone)]
pub struct Database(Arc<RawDatabase>);

struct RawDatabase(ffi::duckdb_database);

// SAFETY: DuckDB's database handle may be used from any thread at the same time.
unsafe impl Send for RawDatabase {}
// SAFETY: as above.
unsafe impl Sync for RawDatabase {}

impl Drop for RawDatabase {
    fn drop(&mut self) {
        // SAFETY: the handle came from `duckdb_open_ext` and is closed once.
        unsafe { ffi::duckdb_close(&mut self.0) };
    }
}

impl Database {
    /// Opens an instance on `:memory:` with open-time settings.
    pub fn open_in_memory(settings: &[(&str, &str)]) -> Result<Self, DuckError> {
        let mut config: ffi::duckdb_config = ptr::null_mut();
        // SAFETY: out pointers are valid; every path below destroys the config once.
        unsafe {
            if ffi::duckdb_create_config(&mut config) != ffi::DuckDBSuccess {
                return Err(DuckError::new("Out of Memory Error: no configuration"));
            }
            for (name, value) in settings {
                let (c_name, c_value) = (c_string(name)?, c_string(value)?);
                if ffi::duckdb_set_config(config, c_name.as_ptr(), c_value.as_ptr()) != ffi::DuckDBSuccess {
                    ffi::duckdb_destroy_config(&mut config);
                    return Err(DuckError::new(&format!("Invalid Configuration Error: setting {name}")));
                }
            }
            let mut database: ffi::duckdb_database = ptr::null_mut();
            let mut message: *mut c_char = ptr::null_mut();
            let state = ffi::duckdb_open_ext(c":memory:".as_ptr(), &mut database, config, &mut message);
            ffi::duckdb_destroy_config(&mut config);
            if state != ffi::DuckDBSuccess {
                let error = DuckError::from_c(message);
                ffi::duckdb_free(message.cast());
                return Err(error);
            }
            Ok(Self(Arc::new(RawDatabase(database))))
        }
    }

    /// A new connection, with DuckDB's defaults.
    pub fn connect(&self) -> Result<Connection, DuckError> {
        let mut raw: ffi::duckdb_connection = ptr::null_mut();
        // SAFETY: the database is open; the out pointer is valid.
        if unsafe { ffi::duckdb_connect(self.0.0, &mut raw) } != ffi::DuckDBSuccess {
            return Err(DuckError::new("Connection Error: no connection"));
        }
        Ok(Connection(Arc::new(RawConnection { raw, abandoned: AtomicBool::new(false), _database: self.clone() })))
    }
}

/// The version of the library that is loaded, such as `v1.5.5`.
pub fn library_version() -> String {
    // SAFETY: returns a static string.
    unsafe { CStr::from_ptr(ffi::duckdb_library_version()) }.to_string_lossy().into_owned()
}

/// A connection: its own transaction, temporary objects and settings.
pub struct Connection(Arc<RawConnection>);

struct RawConnection {
    raw: ffi::duckdb_connection,
    /// A result was dropped before its end; DuckDB keeps its transaction until the next statement.
    abandoned: AtomicBool,
    _database: Database,
}

// SAFETY: a connection may move between threads; concurrent use is limited to `duckdb_interrupt`, which DuckDB allows.
unsafe impl Send for RawConnection {}
// SAFETY: shared only by `Interrupter` and by results that live on the connection's own thread.
unsafe impl Sync for RawConnection {}

impl Drop for RawConnection {
    fn drop(&mut self) {
        // SAFETY: the handle came from `duckdb_connect` and is closed once, after all that hold it are gone.
        unsafe { ffi::duckdb_disconnect(&mut self.raw) };
    }
}

impl Connection {
    /// The raw handle, for calls that this layer has no word for. Valid as long as `self`.
    pub fn raw(&self) -> ffi::duckdb_connection {
        self.0.raw
    }

    /// Was a result dropped before its end since this was asked last? Then its transaction is open until another statement runs.
    pub fn take_abandoned(&self) -> bool {
        self.0.abandoned.swap(false, Ordering::Relaxed)
    }

    /// A handle that interrupts this connection from any thread.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(self.0.clone())
    }

    /// Runs a text that is the engine's own and drops its rows.
    pub fn execute(&self, sql: &str) -> Result<(), DuckError> {
        for mut statement in self.extract(sql)? {
            statement.prepare()?.run()?;
        }
        Ok(())
    }

    /// The first column of a query of the engine's own, as text; NULL becomes an empty string.
    pub fn column(&self, sql: &str) -> Result<Vec<String>, DuckError> {
        self.column_with(sql, &[])
    }

    /// The same with text parameters.
    pub fn column_with(&self, sql: &str, params: &[&str]) -> Result<Vec<String>, DuckError> {
        let mut out = Vec::new();
        for mut statement in self.extract(sql)? {
            let mut prepared = statement.prepare()?;
            for (index, param) in (1..).zip(params) {
                prepared.bind_text(index, param)?;
            }
            let mut result = prepared.run()?;
            if result.kind() != ResultKind::Rows {
                continue;
            }
            while let Some(chunk) = result.next_chunk()? {
                chunk.first_column_text(&mut out);
            }
        }
        Ok(out)
    }

    /// Parses a text into DuckDB's own statements (one statement may become several: PIVOT does).
    pub fn extract(&self, sql: &str) -> Result<Extracted, DuckError> {
        let text = c_string(sql)?;
        let mut raw: ffi::duckdb_extracted_statements = ptr::null_mut();
        // SAFETY: the connection is open; `Extracted` destroys the handle, also after a failure.
        let count = unsafe { ffi::duckdb_extract_statements(self.0.raw, text.as_ptr(), &mut raw) };
        let extracted = Arc::new(RawExtracted(raw));
        if count == 0 {
            // SAFETY: the handle is valid until destroyed; the message belongs to it.
            let message = unsafe { ffi::duckdb_extract_statements_error(extracted.0) };
            if message.is_null() {
                return Ok(Extracted { extracted, connection: self.0.clone(), next: 0, count: 0 });
            }
            // SAFETY: a C string owned by the handle.
            return Err(unsafe { DuckError::from_c(message) });
        }
        Ok(Extracted { extracted, connection: self.0.clone(), next: 0, count })
    }
}

/// Interrupts what a connection runs and tells how far it is; harmless when it runs nothing.
#[derive(Clone)]
pub struct Interrupter(Arc<RawConnection>);

impl Interrupter {
    /// How far the running statement is, from 0 to 1; `None` if nothing runs or DuckDB can't tell.
    pub fn progress(&self) -> Option<f64> {
        // SAFETY: the handle is open as long as `self` lives; DuckDB allows this from any thread.
        let progress = unsafe { ffi::duckdb_query_progress(self.0.raw) };
        (0.0..=100.0).contains(&progress.percentage).then_some(progress.percentage / 100.0)
    }

    /// Sets the connection's interrupt flag. DuckDB clears it when the next statement starts, so a caller that must win repeats it.
    pub fn interrupt(&self) {
        // SAFETY: the handle is open as long as `self` lives; DuckDB allows this from any thread.
        unsafe { ffi::duckdb_interrupt(self.0.raw) };
    }
}

struct RawExtracted(ffi::duckdb_extracted_statements);

// SAFETY: plain parsed statements, used by one thread at a time.
unsafe impl Send for RawExtracted {}
// SAFETY: never used by two threads: `Extracted` is not `Sync` in use, it only shares ownership with its statements.
unsafe impl Sync for RawExtracted {}

impl Drop for RawExtracted {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_extracted(&mut self.0) };
    }
}

/// DuckDB's statements of one text, in order.
pub struct Extracted {
    extracted: Arc<RawExtracted>,
    connection: Arc<RawConnection>,
    next: u64,
    count: u64,
}

impl Extracted {
    /// How many statements are left.
    pub fn left(&self) -> u64 {
        self.count - self.next
    }
}

impl Iterator for Extracted {
    type Item = Parsed;

    fn next(&mut self) -> Option<Parsed> {
        if self.next == self.count {
            return None;
        }
        self.next += 1;
        Some(Parsed { extracted: self.extracted.clone(), connection: self.connection.clone(), index: self.next - 1 })
    }
}

/// A parsed statement that is not yet bound to the catalog.
pub struct Parsed {
    extracted: Arc<RawExtracted>,
    connection: Arc<RawConnection>,
    index: u64,
}

impl Parsed {
    /// Binds and plans it. Do it only when all statements before it have run.
    pub fn prepare(&mut self) -> Result<Prepared, DuckError> {
        let mut raw: ffi::duckdb_prepared_statement = ptr::null_mut();
        // SAFETY: handles are open; `Prepared` destroys the statement, also after a failure.
        let state = unsafe {
            ffi::duckdb_prepare_extracted_statement(self.connection.raw, self.extracted.0, self.index, &mut raw)
        };
        let prepared = Prepared { raw, connection: self.connection.clone() };
        if state != ffi::DuckDBSuccess {
            // SAFETY: the message belongs to the statement.
            return Err(unsafe { DuckError::from_c(ffi::duckdb_prepare_error(prepared.raw)) });
        }
        Ok(prepared)
    }
}

/// A statement that is ready to run, any number of times.
pub struct Prepared {
    raw: ffi::duckdb_prepared_statement,
    connection: Arc<RawConnection>,
}

// SAFETY: may move between threads with its connection.
unsafe impl Send for Prepared {}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_prepare(&mut self.raw) };
    }
}

impl Prepared {
    /// The raw handle, to bind parameters. Valid as long as `self`.
    pub fn raw(&self) -> ffi::duckdb_prepared_statement {
        self.raw
    }

    /// How many parameters it takes.
    pub fn parameters(&self) -> u64 {
        // SAFETY: the statement is prepared.
        unsafe { ffi::duckdb_nparams(self.raw) }
    }

    /// Gives parameter `index`, counted from 1, a text.
    pub fn bind_text(&mut self, index: u64, text: &str) -> Result<(), DuckError> {
        // SAFETY: the statement is prepared; DuckDB copies the text.
        let state =
            unsafe { ffi::duckdb_bind_varchar_length(self.raw, index, text.as_ptr().cast(), text.len() as u64) };
        if state == ffi::DuckDBSuccess {
            Ok(())
        } else {
            Err(DuckError::new("Invalid Input Error: the text can't be bound"))
        }
    }

    /// Gives parameter `index`, counted from 1, NULL.
    pub fn bind_null(&mut self, index: u64) -> Result<(), DuckError> {
        // SAFETY: the statement is prepared.
        match unsafe { ffi::duckdb_bind_null(self.raw, index) } {
            ffi::DuckDBSuccess => Ok(()),
            _ => Err(DuckError::new("Invalid Input Error: NULL can't be bound")),
        }
    }

    /// Starts it; rows are made as they are fetched, so that a result of any size needs little memory.
    pub fn stream(&mut self) -> Result<ResultSet, DuckError> {
        let mut pending = Pending(ptr::null_mut());
        // SAFETY: the statement is prepared; `Pending` destroys the handle, also after a failure.
        let state = unsafe { ffi::duckdb_pending_prepared_streaming(self.raw, &mut pending.0) };
        pending.finish(state, self.connection.clone())
    }

    /// Runs it to its end and keeps all rows.
    pub fn run(&mut self) -> Result<ResultSet, DuckError> {
        let mut pending = Pending(ptr::null_mut());
        // SAFETY: as in `stream`.
        let state = unsafe { ffi::duckdb_pending_prepared(self.raw, &mut pending.0) };
        pending.finish(state, self.connection.clone())
    }
}

fn c_string(text: &str) -> Result<CString, DuckError> {
    CString::new(text).map_err(|_| DuckError::new("Parser Error: the text holds a NUL character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Database::open_in_memory(&[("threads", "1")]).expect("opens").connect().expect("connects")
    }

    #[test]
    fn a_query_gives_its_column() {
        assert_eq!(
            connection().column("select 'x' || i::varchar from range(3) t(i)").expect("runs"),
            ["x0", "x1", "x2"]
        );
    }

    #[test]
    fn an_error_in_mid_stream_is_an_error_and_not_an_end() {
        let connection = connection();
        let mut parsed =
            connection.extract("select if(i < 3000000, 1, error('late')) from range(6000000) t(i)").expect("parses");
        let mut prepared = parsed.next().expect("one").prepare().expect("binds");
        let mut result = prepared.stream().expect("starts");
        let mut rows = 0;
        let error = loop {
            match result.next_chunk() {
                Ok(Some(chunk)) => rows += chunk.rows(),
                Ok(None) => panic!("ended as if whole after {rows} rows"),
                Err(error) => break error,
            }
        };
        assert!(rows > 0 && rows < 3_000_000 && error.message.contains("late"), "{rows} {error}");
    }

    #[test]
    fn an_interrupt_from_another_thread_stops_a_query() {
        let connection = connection();
        let interrupter = connection.interrupter();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(std::time::Duration::from_millis(5)).is_err() {
                interrupter.interrupt();
            }
        });
        let error = connection.column("select count(*) from range(1000000000000) a").expect_err("interrupted");
        stop.send(()).expect("the thread waits");
        thread.join().expect("ends");
        assert_eq!(error.kind, ErrorKind::Interrupt);
    }

    /// Why no plan is kept between requests. Should this fail with a newer DuckDB, that can be thought over.
    #[test]
    fn a_plan_that_was_kept_misses_values_that_came_later() {
        let connection = connection();
        connection.execute("create table t(i int); insert into t select range from range(100)").expect("runs");
        let mut parsed = connection.extract("select count(*)::varchar from t where i > 5000").expect("parses");
        let mut kept = parsed.next().expect("one").prepare().expect("binds");
        connection.execute("insert into t values (10000)").expect("runs");
        let mut texts = Vec::new();
        let mut result = kept.run().expect("runs");
        while let Some(chunk) = result.next_chunk().expect("runs") {
            chunk.first_column_text(&mut texts);
        }
        assert_eq!(texts, ["0"], "this DuckDB plans again");
        assert_eq!(connection.column("select count(*)::varchar from t where i > 5000").expect("runs"), ["1"]);
    }

    #[test]
    fn a_text_of_several_statements_runs_them_in_order() {
        let connection = connection();
        connection
            .execute("create table t(i int); insert into t values (1); insert into t select i + 1 from t")
            .expect("runs");
        assert_eq!(connection.column("select i::varchar from t order by 1").expect("runs"), ["1", "2"]);
    }
}
