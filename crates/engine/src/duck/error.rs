//! What DuckDB says went wrong, reduced to the kinds that a caller treats differently.

use std::{
    ffi::{CStr, c_char},
    fmt,
};

/// The kinds of failure that lead to different answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The statement is at fault: syntax, names, types, constraints, data.
    Statement,
    /// Another transaction was in the way, or the transaction's state does not allow it.
    Transaction,
    /// It was interrupted.
    Interrupt,
    /// Memory or disk ran out.
    Resources,
    /// A setting or a wall forbids it.
    Permission,
    /// A file or a remote object could not be read or written.
    Io,
    /// The database is no longer usable until it is opened again.
    Fatal,
    /// A defect of DuckDB.
    Internal,
}

/// An error of DuckDB with its text as DuckDB wrote it: it may hold paths and addresses and must not reach a client as it is.
#[derive(Clone, Debug)]
pub struct DuckError {
    /// What kind.
    pub kind: ErrorKind,
    /// DuckDB's text.
    pub message: String,
}

impl DuckError {
    /// From DuckDB's text, whose first words name the kind.
    pub fn new(message: &str) -> Self {
        Self { kind: kind_of(message), message: message.to_owned() }
    }

    /// From a C string that DuckDB owns; null means that there was no text.
    ///
    /// # Safety
    /// `message` is null or a valid C string.
    pub(super) unsafe fn from_c(message: *const c_char) -> Self {
        if message.is_null() {
            return Self::new("INTERNAL Error: DuckDB gave no message");
        }
        // SAFETY: the caller's promise.
        Self::new(&unsafe { CStr::from_ptr(message) }.to_string_lossy())
    }
}

impl fmt::Display for DuckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DuckError {}

fn kind_of(message: &str) -> ErrorKind {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| message.starts_with(prefix));
    if message.contains("database has been invalidated") || starts(&["FATAL Error"]) {
        ErrorKind::Fatal
    } else if starts(&["INTERRUPT Error"]) {
        ErrorKind::Interrupt
    } else if starts(&["Out of Memory Error"]) || message.contains("No space left on device") {
        // Also when it was a COMMIT that found the disk full.
        ErrorKind::Resources
    } else if starts(&["TransactionContext Error", "Transaction Error", "TransactionManager Error"]) {
        ErrorKind::Transaction
    } else if starts(&["Permission Error"]) {
        ErrorKind::Permission
    } else if starts(&["IO Error", "HTTP Error", "Network Error"]) {
        ErrorKind::Io
    } else if starts(&["INTERNAL Error"]) {
        ErrorKind::Internal
    } else {
        ErrorKind::Statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_name_the_kind() {
        for (text, kind) in [
            ("Parser Error: syntax error", ErrorKind::Statement),
            ("TransactionContext Error: Conflict on update!", ErrorKind::Transaction),
            ("INTERRUPT Error: Interrupted!", ErrorKind::Interrupt),
            ("Out of Memory Error: could not allocate", ErrorKind::Resources),
            ("IO Error: write failed: No space left on device", ErrorKind::Resources),
            ("IO Error: cannot open", ErrorKind::Io),
            ("Invalid Error: database has been invalidated because of", ErrorKind::Fatal),
            ("INTERNAL Error: x", ErrorKind::Internal),
        ] {
            assert_eq!(DuckError::new(text).kind, kind, "{text}");
        }
    }
}
