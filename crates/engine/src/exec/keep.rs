//! A read whose rows are kept in its session: run to its end now, fetched later, page by page and in any format.
//!
//! The rows go into a temporary table, so that their types stay exact and DuckDB spills them as it spills everything. Nothing of it
//! goes into the mart's log.

use crate::{
    buffer::Kept,
    failure::Failure,
    params::Set,
    sql::{Kind, Statement},
    wire::{self, Code, KEPT_TABLE},
};

use super::script::{Outcome, Run, takes_parameters};

/// Runs the only statement and keeps its rows.
pub(super) fn run(run: &mut Run<'_>, statements: &[Statement<'_>]) -> Result<Outcome, Failure> {
    let [statement] = statements else {
        return Err(Failure::new(Code::Invalid, "only a single statement's rows can be kept"));
    };
    if statement.kind != Kind::Read {
        return Err(Failure::new(Code::Invalid, "only the rows of a statement that reads can be kept"));
    }
    if run.session.is_none() || run.request.rows.is_some() {
        return Err(Failure::new(Code::Invalid, "rows are kept in a session, of one set of parameters"));
    }
    if !run.enter_transaction()? {
        return Err(Failure::new(Code::Invalid, "no rows can be kept while a transaction is open"));
    }
    if run.engine.hidden.possible() {
        return Err(Failure::new(
            Code::Invalid,
            "a view or macro of this mart may write (`nextval`): its reads can't be kept",
        )
        .hint("run the query as it is and read its answer at once"));
    }
    run.check_alone(statement.text)?;
    // The closing bracket on a line of its own: the statement may end in a comment.
    let sql = format!("CREATE OR REPLACE TEMPORARY TABLE {KEPT_TABLE} AS FROM (\n{}\n)", statement.text);
    let set = takes_parameters(statement).then_some(Set::Json(&run.request.params));
    let mut prepared = run.prepare(&sql, set)?;
    let mut result = prepared.stream().map_err(|error| run.duck(&error))?;
    let mut rows = 0;
    while let Some(chunk) = result.next_chunk().map_err(|error| run.duck(&error))? {
        rows += chunk.first_count();
    }
    run.progress.committed += 1;
    let answer = serde_json::to_vec(&wire::Kept { rows }).expect("a plain struct has a JSON form");
    Ok(Outcome { kept: Kept::Memory(vec![answer.into()]), content_type: "application/json".into(), replayed: false })
}
