//! A mart at a past moment: its file is attached read-only over HTTP and its position never changes.
//!
//! DuckDB replays the log beside the file (`{url}.wal`) by itself and writes nothing. Not here: who serves the files, and how they come to
//! be the files of that moment. **Invariant:** only statements that are proved to read reach DuckDB; behind that, the attach is
//! read-only, so what a macro or view hides can't write either.

use crate::{
    config::ViewConfig,
    failure::Failure,
    sql::{Kind, Statement},
    wire::{Code, Point},
};

/// What the engine knows of its moment.
pub struct View {
    /// The moment.
    pub point: Point,
    /// The URL up to its last slash.
    dir: String,
}

impl View {
    /// From the configuration.
    pub fn new(config: &ViewConfig) -> Self {
        let point = Point { iteration: config.iteration, wal_bytes: config.wal_bytes };
        Self { point, dir: dir(&config.url).to_owned() }
    }

    /// Lets only reads pass, and none of the mart's own files: DuckDB allows the path of what is attached.
    pub fn check(&self, script: &str, statements: &[Statement<'_>]) -> Result<(), Failure> {
        for (index, statement) in statements.iter().enumerate() {
            // An extension that is there already is not loaded again.
            if !statement.kind.is_read() && !matches!(statement.kind, Kind::InstallLoad(_)) {
                return Err(only_reads().at(index));
            }
            let names_a_file = statement.tokens.iter().any(|token| {
                token.string_value(script).is_some_and(|text| text.contains(&self.dir))
                    || token.name(script).is_some_and(|name| name.contains(&self.dir))
            });
            if names_a_file {
                return Err(Failure::new(Code::Forbidden, "the mart's own files can't be read as files").at(index));
            }
        }
        Ok(())
    }
}

/// A statement that would change something.
pub fn only_reads() -> Failure {
    Failure::new(Code::Invalid, "only reads can run at a past moment").hint("leave out `at` to write")
}

/// What does not go together with a past moment: checkpoints, orders for writers.
pub fn nobody_writes() -> Failure {
    Failure::new(Code::Conflict, "the engine shows a past moment, in which nobody writes")
}

/// A URL up to its last slash.
pub fn dir(url: &str) -> &str {
    url.rfind('/').map_or(url, |slash| &url[..=slash])
}
