//! What a statement gives and takes, without running it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use libduckdb_sys as ffi;

use crate::{
    buffer::Kept,
    duck::Prepared,
    failure::Failure,
    format::{
        Columns, Encoder, Format, Options,
        types::{Kind as TypeKind, Type, take_string},
    },
    sql::Statement,
    wire::Described,
};

use super::script::{Outcome, Run, sets};

/// Describes the statements.
pub(super) fn run(run: &mut Run<'_>, statements: &[Statement<'_>]) -> Result<Outcome, Failure> {
    let mut described = Described {
        kind: kind(statements).to_owned(),
        statements: statements.len(),
        schema: None,
        exact: true,
        parameters: None,
    };
    if let [statement] = statements
        && matches!(statement.kind.label(), "read" | "write")
    {
        // Nothing may run that could write: no statement of DuckDB's own before a write, and no read if a `nextval` may hide in it.
        let harmless = statement.kind.is_read() && !run.engine.hidden.possible();
        described.exact = harmless || !statement.kind.is_read();
        if let Some(prepared) = run.prepare_only(statement.text, harmless)? {
            let parameters = parameters(&prepared);
            described.parameters = Some(STANDARD.encode(parameters.schema_message()));
            if statement.kind.is_read() {
                let (mut columns, mut exact) = columns(&prepared);
                drop(prepared);
                if !exact && harmless {
                    (columns, exact) = (run.columns_of_nothing(statement.text)?, run.has_parameters());
                }
                // What has no form in Arrow is refused now.
                Encoder::new(Format::Flight, columns.clone(), Options::default())?;
                described.schema = Some(STANDARD.encode(columns.schema_message()));
                described.exact = exact && harmless;
            }
        } else {
            described.exact = false;
        }
    }
    let answer = serde_json::to_vec(&described).expect("a plain struct has a JSON form");
    Ok(Outcome { kept: Kept::Memory(vec![answer.into()]), content_type: "application/json".into(), replayed: false })
}

/// The strongest kind of all.
fn kind(statements: &[Statement<'_>]) -> &'static str {
    let labels = || statements.iter().map(|statement| statement.kind.label());
    ["ddl", "write", "other"].into_iter().find(|kind| labels().any(|label| label == *kind)).unwrap_or("read")
}

impl Run<'_> {
    /// Refuses a text that is no statement by itself, before it is put into another: it could end the brackets around it.
    pub(super) fn check_alone(&self, text: &str) -> Result<(), Failure> {
        let extracted = self.kept.connection.extract(text).map_err(|error| self.duck(&error))?;
        if extracted.left() > 0 { Ok(()) } else { Err(no_statement()) }
    }

    fn has_parameters(&self) -> bool {
        self.request.rows.is_some() || !self.request.params.is_empty()
    }

    /// The columns of a read whose types depend on its parameters: those of the request's first set, else NULLs.
    fn columns_of_nothing(&mut self, text: &str) -> Result<Columns, Failure> {
        let rows = self.rows()?;
        self.check_alone(text)?;
        let sql = format!("FROM (\n{text}\n) LIMIT 0");
        let mut result = match sets(self.request, rows.as_ref(), true).into_iter().next() {
            Some(set) if self.has_parameters() => self.prepare(&sql, set)?.stream(),
            _ => {
                let mut prepared = self.prepare_only(&sql, true)?.ok_or_else(no_statement)?;
                for index in 1..=prepared.parameters() {
                    prepared.bind_null(index).map_err(|error| self.duck(&error))?;
                }
                prepared.stream()
            }
        }
        .map_err(|error| self.duck(&error))?;
        // SAFETY: the result is valid and stays ours.
        let columns = unsafe { Columns::of_result(result.raw()) };
        while result.next_chunk().map_err(|error| self.duck(&error))?.is_some() {}
        Ok(columns)
    }

    /// As `prepare`, but the parameters of the last statement stay open. `None` if others would have to run before it and may not.
    pub(super) fn prepare_only(&mut self, text: &str, may_run: bool) -> Result<Option<Prepared>, Failure> {
        let mut extracted = self.kept.connection.extract(text).map_err(|error| self.duck(&error))?;
        let mut prepared = None;
        if extracted.left() > 1 && !may_run {
            return Ok(None);
        }
        while let Some(mut parsed) = extracted.next() {
            let mut next = parsed.prepare().map_err(|error| self.duck(&error))?;
            if extracted.left() > 0 {
                // It helps the last one: PIVOT makes a temporary type first.
                self.kept.used_up |= self.session.is_none();
                next.run().map_err(|error| self.duck(&error))?;
            }
            prepared = Some(next);
        }
        prepared.map(Some).ok_or_else(no_statement)
    }
}

pub(super) fn no_statement() -> Failure {
    Failure::new(crate::wire::Code::Sql, "DuckDB finds no statement in the text")
}

/// Names and types of the results' columns, and whether all are known.
pub(super) fn columns(prepared: &Prepared) -> (Columns, bool) {
    let mut exact = true;
    // SAFETY: the statement is prepared; names are ours to free, types are destroyed once.
    let columns = unsafe {
        (0..ffi::duckdb_prepared_statement_column_count(prepared.raw())).map(|i| {
            let name = take_string(ffi::duckdb_prepared_statement_column_name(prepared.raw(), i).cast_mut());
            let raw = ffi::duckdb_prepared_statement_column_logical_type(prepared.raw(), i);
            let (ty, known) = known_type(raw);
            exact &= known;
            (name, ty)
        })
    };
    let columns = columns.collect();
    (Columns::new(columns), exact)
}

/// Names and types of the parameters.
fn parameters(prepared: &Prepared) -> Columns {
    // SAFETY: as above.
    let parameters = unsafe {
        (1..=prepared.parameters()).map(|i| {
            let name = take_string(ffi::duckdb_parameter_name(prepared.raw(), i).cast_mut());
            (name, known_type(ffi::duckdb_param_logical_type(prepared.raw(), i)).0)
        })
    };
    Columns::new(parameters.collect())
}

/// A type, or text where DuckDB does not know it yet.
unsafe fn known_type(mut raw: ffi::duckdb_logical_type) -> (Type, bool) {
    if raw.is_null() {
        return (Type::text(), false);
    }
    // SAFETY: the caller's handle is valid and ours.
    let ty = unsafe {
        let ty = Type::read(raw);
        ffi::duckdb_destroy_logical_type(&mut raw);
        ty
    };
    let unknown = |kind: &TypeKind| matches!(kind, TypeKind::Unknown(_));
    match ty.find(&unknown) {
        Some(_) => (Type::text(), false),
        None => (ty, true),
    }
}
