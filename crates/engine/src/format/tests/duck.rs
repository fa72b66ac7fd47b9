//! A DuckDB of the tests' own, and whole results through an encoder.

use std::ffi::{CStr, CString};

use libduckdb_sys as ffi;

use crate::format::{Columns, EncodeError, Encoder, Format, Options};

/// An in-memory database with one connection, in UTC.
pub(crate) struct Duck {
    database: ffi::duckdb_database,
    pub(crate) connection: ffi::duckdb_connection,
}

impl Duck {
    pub(crate) fn open() -> Duck {
        let mut duck = Duck { database: std::ptr::null_mut(), connection: std::ptr::null_mut() };
        // SAFETY: out pointers are valid.
        unsafe {
            assert_eq!(ffi::duckdb_open(c":memory:".as_ptr(), &mut duck.database), ffi::DuckDBSuccess);
            assert_eq!(ffi::duckdb_connect(duck.database, &mut duck.connection), ffi::DuckDBSuccess);
        }
        duck.run("SET TimeZone = 'UTC'");
        duck
    }

    pub(crate) fn run(&self, sql: &str) {
        self.prepare(sql).result();
    }

    pub(crate) fn prepare(&self, sql: &str) -> Statement {
        let text = CString::new(sql).expect("no NUL");
        let mut statement = Statement { raw: std::ptr::null_mut() };
        // SAFETY: the connection is open.
        unsafe {
            if ffi::duckdb_prepare(self.connection, text.as_ptr(), &mut statement.raw) != ffi::DuckDBSuccess {
                panic!("{sql}: {}", CStr::from_ptr(ffi::duckdb_prepare_error(statement.raw)).to_string_lossy());
            }
        }
        statement
    }

    /// The whole body of a query's result.
    pub(crate) fn encode(&self, sql: &str, format: Format) -> Vec<u8> {
        self.try_encode(sql, format, Options::default()).expect("encodes")
    }

    pub(crate) fn try_encode(&self, sql: &str, format: Format, options: Options) -> Result<Vec<u8>, EncodeError> {
        let mut body = Vec::new();
        for piece in self.prepare(sql).result().pieces(format, options)? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// One JSON value: the first column of the first row.
    pub(crate) fn json(&self, expression: &str) -> serde_json::Value {
        let body = self.encode(&format!("SELECT {expression}"), Format::Json);
        let mut parsed: serde_json::Value = serde_json::from_slice(&body).expect("valid JSON");
        parsed["rows"][0][0].take()
    }

    /// The first column as text, row by row; an empty string for NULL.
    pub(crate) fn column(&self, sql: &str) -> Vec<String> {
        let body = self.encode(sql, Format::Json);
        let parsed: serde_json::Value = serde_json::from_slice(&body).expect("valid JSON");
        parsed["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| row[0].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

impl Drop for Duck {
    fn drop(&mut self) {
        // SAFETY: closed once.
        unsafe {
            ffi::duckdb_disconnect(&mut self.connection);
            ffi::duckdb_close(&mut self.database);
        }
    }
}

pub(crate) struct Statement {
    pub(crate) raw: ffi::duckdb_prepared_statement,
}

impl Statement {
    pub(crate) fn result(&self) -> Rows {
        let mut rows = Rows { raw: unsafe { std::mem::zeroed() } };
        // SAFETY: the statement is prepared.
        unsafe {
            if ffi::duckdb_execute_prepared_streaming(self.raw, &mut rows.raw) != ffi::DuckDBSuccess {
                panic!("{}", CStr::from_ptr(ffi::duckdb_result_error(&mut rows.raw)).to_string_lossy());
            }
        }
        rows
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_prepare(&mut self.raw) };
    }
}

pub(crate) struct Rows {
    pub(crate) raw: ffi::duckdb_result,
}

impl Rows {
    pub(crate) fn pieces(&mut self, format: Format, options: Options) -> Result<Vec<bytes::Bytes>, EncodeError> {
        // SAFETY: result and chunks are valid and of one query.
        unsafe {
            let mut encoder = Encoder::new(format, Columns::of_result(&mut self.raw), options)?;
            let mut pieces = encoder.head();
            let mut error = None;
            self.chunks(|chunk| {
                if error.is_none() && !encoder.is_full() {
                    error = encoder.push(chunk).err();
                    pieces.extend(encoder.take_ready());
                }
            });
            if let Some(error) = error {
                return Err(error);
            }
            pieces.extend(encoder.finish());
            Ok(pieces)
        }
    }

    pub(crate) fn chunks(&mut self, mut f: impl FnMut(ffi::duckdb_data_chunk)) {
        // SAFETY: each chunk is destroyed once, after its use.
        unsafe {
            loop {
                let mut chunk = ffi::duckdb_fetch_chunk(self.raw);
                if chunk.is_null() {
                    let error = ffi::duckdb_result_error(&mut self.raw);
                    assert!(
                        error.is_null() || CStr::from_ptr(error).is_empty(),
                        "{}",
                        CStr::from_ptr(error).to_string_lossy()
                    );
                    return;
                }
                f(chunk);
                ffi::duckdb_destroy_data_chunk(&mut chunk);
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_result(&mut self.raw) };
    }
}
