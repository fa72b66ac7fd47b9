//! A result as a Parquet file: DuckDB writes it into a file of the engine's own, and the file is the body.
//!
//! A Parquet file has its directory at its end, so nothing leaves before the query is done; then its length is known, and a failure is an
//! error and no broken body. Values that DuckDB's writer would change (HUGEINT becomes a float) are cast first; what has no form at all is
//! an error, as in the other formats.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::{
    Done, describe,
    script::{Run, answering, takes_parameters},
};
use crate::{
    buffer::Kept,
    failure::Failure,
    format::{
        EncodeError, Format,
        types::{Kind as TypeKind, Type},
    },
    load::spool::{SpoolFile, no_room},
    open::literal,
    params::Set,
    sql::{Kind, Statement},
    wire::Code,
};

/// How often it is looked how large the file is.
const LOOK: Duration = Duration::from_millis(50);

/// Refuses what has no result that can be written, before anything runs.
pub(super) fn check(run: &Run<'_>, statements: &[Statement<'_>]) -> Result<(), Failure> {
    if run.request.format != Format::Parquet || run.request.describe || run.request.keep {
        return Ok(());
    }
    let last = statements.len().saturating_sub(1);
    if answering(statements) != Some(last) || statements[last].kind != Kind::Read {
        return Err(Failure::new(Code::Invalid, "only the rows of a query can be a Parquet file")
            .hint("end with a SELECT, or ask for another format with `Accept`"));
    }
    if run.request.key.is_some() && statements.len() > 1 || run.request.rows.is_some() {
        return Err(Failure::new(
            Code::Invalid,
            "a Parquet file holds the rows of one query, without an idempotency key and with one set of parameters",
        ));
    }
    Ok(())
}

/// Runs the last statement.
pub(super) fn run(run: &mut Run<'_>, statement: &Statement<'_>) -> Result<Done, Failure> {
    let alone = run.enter_transaction()?;
    let hidden = alone && run.engine.hidden.possible();
    if hidden {
        run.begin()?;
    }
    let written = write(run, statement).and_then(|file| {
        if hidden {
            run.statement_ran();
            run.commit()?;
        }
        file.into_file()
    });
    match written {
        Ok((file, room)) => Ok(Done::Whole(run.outcome(Kept::File(file, room)))),
        Err(failure) => {
            if hidden && run.kept.in_transaction() {
                let _ = run.kept.rollback();
                run.kept.close(&run.engine.hidden);
            }
            Err(failure)
        }
    }
}

fn write(run: &mut Run<'_>, statement: &Statement<'_>) -> Result<SpoolFile, Failure> {
    let set = takes_parameters(statement).then_some(Set::Json(&run.request.params));
    let columns = describe::columns(&run.prepare_only(statement.text, true)?.ok_or_else(describe::no_statement)?).0;
    let names = columns.unique_names();
    let mut values = Vec::new();
    for (index, ((_, ty), name)) in (1..).zip(columns.into_pairs().iter().zip(names)) {
        let name = name.replace('"', "\"\"");
        values.push(match stored(ty)? {
            same if same == *ty => format!("#{index} AS \"{name}\""),
            other => format!("CAST(#{index} AS {other}) AS \"{name}\""),
        });
    }
    let limit = run.request.max_rows.map(|most| format!(" LIMIT {most}")).unwrap_or_default();
    let file = run.engine.spool.create(".parquet")?;
    // The closing bracket on a line of its own: the statement may end in a comment.
    let sql = format!(
        "COPY (SELECT {} FROM (\n{}\n){limit}) TO {} (FORMAT parquet, USE_TMP_FILE false)",
        values.join(", "),
        statement.text,
        literal(&file.path().to_string_lossy())
    );
    let mut prepared = run.prepare(&sql, set)?;
    let interrupter = run.kept.connection.interrupter();
    let (done, too_large) = (AtomicBool::new(false), AtomicBool::new(false));
    let wrote = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::metadata(file.path()).map_or(0, |meta| meta.len());
                if !file.has_room(bytes) {
                    too_large.store(true, Ordering::Relaxed);
                    interrupter.interrupt();
                }
                thread::park_timeout(LOOK);
            }
        });
        let wrote = prepared.run();
        done.store(true, Ordering::Relaxed);
        wrote.map(drop)
    });
    match wrote {
        Err(_) if too_large.load(Ordering::Relaxed) => Err(no_room()),
        wrote => wrote.map(|()| file).map_err(|error| run.duck(&error)),
    }
}

/// The type that a column is written with.
fn stored(ty: &Type) -> Result<Type, EncodeError> {
    let plain = |kind: TypeKind| Type { kind, alias: ty.alias.clone() };
    let children = |fields: &[(String, Type)]| -> Result<Vec<(String, Type)>, EncodeError> {
        fields.iter().map(|(name, ty)| Ok((name.clone(), stored(ty)?))).collect()
    };
    Ok(match &ty.kind {
        TypeKind::HugeInt | TypeKind::UHugeInt => plain(TypeKind::Decimal { precision: 38, scale: 0, width: 16 }),
        // Parquet's times have no zone of their own, and its intervals end at milliseconds.
        TypeKind::TimeTz | TypeKind::Interval => plain(TypeKind::Varchar),
        TypeKind::List(child) => plain(TypeKind::List(Box::new(stored(child)?))),
        TypeKind::Array(child, size) => plain(TypeKind::Array(Box::new(stored(child)?), *size)),
        TypeKind::Struct(fields) => plain(TypeKind::Struct(children(fields)?)),
        TypeKind::Map(entry) => plain(TypeKind::Map(Box::new(stored(entry)?))),
        TypeKind::Union(_) | TypeKind::Unknown(_) => return Err(EncodeError::unsupported(ty)),
        _ => ty.clone(),
    })
}
