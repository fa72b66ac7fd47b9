//! What DuckDB calls: bind, init and the function itself.

use std::{
    ffi::{CStr, CString, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use libduckdb_sys as ffi;

use super::{FUNCTION, Group, Piece, Source, Sources, source::Exported};
use crate::duck::{Connection, DuckError};

/// Rows of a chunk.
const CHUNK_ROWS: usize = 2048;

/// What all threads of one statement share.
struct Scan {
    source: Arc<Source>,
    group: Arc<Group>,
    next_run: AtomicUsize,
}

/// What one thread works on.
#[derive(Default)]
struct Turn {
    run: usize,
    piece: usize,
    row: usize,
    begun: bool,
    /// Behind the chunk that DuckDB has just now.
    lent: Option<Exported>,
}

/// Makes the function known.
pub(super) fn register(sources: Arc<Sources>, connection: &Connection) -> Result<(), DuckError> {
    let name = CString::new(FUNCTION).expect("no NUL in it");
    // SAFETY: handles are ours and destroyed once; DuckDB copies the function and drops `extra` when its last copy goes.
    unsafe {
        let mut function = ffi::duckdb_create_table_function();
        ffi::duckdb_table_function_set_name(function, name.as_ptr());
        let mut text = ffi::duckdb_create_logical_type(ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR);
        ffi::duckdb_table_function_add_parameter(function, text);
        ffi::duckdb_destroy_logical_type(&mut text);
        let extra = Arc::into_raw(sources).cast_mut().cast();
        ffi::duckdb_table_function_set_extra_info(function, extra, Some(drop_arc::<Sources>));
        ffi::duckdb_table_function_set_bind(function, Some(bind));
        ffi::duckdb_table_function_set_init(function, Some(init));
        ffi::duckdb_table_function_set_local_init(function, Some(init_thread));
        ffi::duckdb_table_function_set_function(function, Some(scan));
        let state = ffi::duckdb_register_table_function(connection.raw(), function);
        ffi::duckdb_destroy_table_function(&mut function);
        if state != ffi::DuckDBSuccess {
            return Err(DuckError::new("INTERNAL Error: the table function of loads can't be registered"));
        }
    }
    Ok(())
}

unsafe extern "C" fn drop_arc<T>(raw: *mut c_void) {
    // SAFETY: came from `Arc::into_raw` and is dropped once.
    drop(unsafe { Arc::from_raw(raw.cast::<T>()) });
}

unsafe extern "C" fn drop_box<T>(raw: *mut c_void) {
    // SAFETY: came from `Box::into_raw` and is dropped once.
    drop(unsafe { Box::from_raw(raw.cast::<T>()) });
}

unsafe extern "C" fn bind(info: ffi::duckdb_bind_info) {
    let bound = guarded(|| {
        // SAFETY: DuckDB calls with a valid `info`; the extra info is the `Sources` of `register`.
        let (sources, token) = unsafe {
            let sources = &*ffi::duckdb_bind_get_extra_info(info).cast::<Sources>();
            let mut value = ffi::duckdb_bind_get_parameter(info, 0);
            let text = ffi::duckdb_get_varchar(value);
            ffi::duckdb_destroy_value(&mut value);
            if text.is_null() {
                return Err("no token".to_owned());
            }
            let token = CStr::from_ptr(text).to_string_lossy().into_owned();
            ffi::duckdb_free(text.cast());
            (sources, token)
        };
        let source = sources.find(&token).ok_or("no such body")?;
        let rows = source.group().map_or(0, |group| group.rows());
        // SAFETY: names and types live as long as the source; DuckDB copies them, and drops the bind data once.
        unsafe {
            for column in source.columns() {
                ffi::duckdb_bind_add_result_column(info, column.name.as_ptr(), column.ty.0);
            }
            ffi::duckdb_bind_set_cardinality(info, rows as u64, true);
            ffi::duckdb_bind_set_bind_data(info, Arc::into_raw(source).cast_mut().cast(), Some(drop_arc::<Source>));
        }
        Ok(())
    });
    if let Err(message) = bound {
        // SAFETY: `info` is valid; DuckDB copies the text.
        unsafe { ffi::duckdb_bind_set_error(info, c_text(&message).as_ptr()) };
    }
}

unsafe extern "C" fn init(info: ffi::duckdb_init_info) {
    let begun = guarded(|| {
        // SAFETY: the bind data is the `Source` of `bind`, which lives as long as the statement.
        let source = unsafe {
            let raw = ffi::duckdb_init_get_bind_data(info).cast::<Source>().cast_const();
            Arc::increment_strong_count(raw);
            Arc::from_raw(raw)
        };
        let group = source.group().ok_or("the body has nothing to read now")?;
        let threads = group.runs.len() as u64;
        let scan = Box::new(Scan { source, group, next_run: AtomicUsize::new(0) });
        // SAFETY: `info` is valid; DuckDB drops the scan once.
        unsafe {
            ffi::duckdb_init_set_max_threads(info, threads);
            ffi::duckdb_init_set_init_data(info, Box::into_raw(scan).cast(), Some(drop_box::<Scan>));
        }
        Ok(())
    });
    init_failed(info, begun);
}

unsafe extern "C" fn init_thread(info: ffi::duckdb_init_info) {
    let turn = Box::new(Turn::default());
    // SAFETY: `info` is valid; DuckDB drops the turn once.
    unsafe { ffi::duckdb_init_set_init_data(info, Box::into_raw(turn).cast(), Some(drop_box::<Turn>)) };
}

fn init_failed(info: ffi::duckdb_init_info, result: Result<(), String>) {
    if let Err(message) = result {
        // SAFETY: `info` is valid; DuckDB copies the text.
        unsafe { ffi::duckdb_init_set_error(info, c_text(&message).as_ptr()) };
    }
}

unsafe extern "C" fn scan(info: ffi::duckdb_function_info, output: ffi::duckdb_data_chunk) {
    let scanned = guarded(|| {
        // SAFETY: the init data are those of `init` and `init_thread`; the turn is this thread's alone.
        let (scan, turn) = unsafe {
            (
                &*ffi::duckdb_function_get_init_data(info).cast::<Scan>(),
                &mut *ffi::duckdb_function_get_local_init_data(info).cast::<Turn>(),
            )
        };
        match turn.next(scan) {
            // SAFETY: DuckDB gave the chunk for this.
            None => unsafe { ffi::duckdb_data_chunk_set_size(output, 0) },
            Some(piece) => {
                // DuckDB is done with the last chunk of this thread when it asks for another.
                turn.lent = None;
                // SAFETY: the chunk is of the columns that `bind` named; what it points to is kept in `lent`.
                let lent = unsafe { scan.source.fill(&scan.group, piece, output) };
                turn.lent = Some(lent.map_err(|failure| scan.source.fail(failure))?);
            }
        }
        Ok(())
    });
    if let Err(message) = scanned {
        // SAFETY: `info` is valid; DuckDB copies the text.
        unsafe { ffi::duckdb_function_set_error(info, c_text(&message).as_ptr()) };
    }
}

impl Turn {
    /// The next rows of this thread's run, or of the next run that nobody has.
    fn next(&mut self, scan: &Scan) -> Option<Piece> {
        loop {
            if !self.begun {
                self.run = scan.next_run.fetch_add(1, Ordering::Relaxed);
                (self.piece, self.row, self.begun) = (0, 0, true);
            }
            let run = scan.group.runs.get(self.run)?;
            let Some(piece) = run.get(self.piece) else {
                self.begun = false;
                continue;
            };
            let rows = CHUNK_ROWS.min(piece.rows - self.row);
            if rows == 0 {
                (self.piece, self.row) = (self.piece + 1, 0);
                continue;
            }
            self.row += rows;
            return Some(Piece { batch: piece.batch, start: piece.start + self.row - rows, rows });
        }
    }
}

/// A panic must not reach DuckDB.
fn guarded(call: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("INTERNAL Error: a load's rows can't be read".to_owned()))
}

fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).expect("no NUL is left")
}
