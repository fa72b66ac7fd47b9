//! SQL's VACUUM, which DuckDB has and which gives no space back there: an administrator's runs the node's own.

use engine::sql::{Kind, Statement, split};
use engine::wire::Role;
use tokio::sync::mpsc;

use crate::error::ApiError;
use crate::orders::{Order, Swap, give};

/// Whether an administrator asks for one in SQL.
pub fn is_vacuum(role: Role, sql: &str) -> bool {
    let alone = |statements: Vec<Statement<'_>>| matches!(statements.as_slice(), [one] if one.kind == Kind::Vacuum && one.first == "vacuum" && one.text.split_whitespace().count() == 1);
    role == Role::Admin && split(sql).is_ok_and(alone)
}

/// Vacuums; the query that tells what came of it, in whatever form was asked for.
pub async fn vacuumed(orders: &mpsc::Sender<Order>) -> Result<String, ApiError> {
    let swapped = give(orders, |reply| Order::Swap(Swap::Vacuum { reply })).await?;
    let done = swapped.compacted.ok_or_else(|| ApiError::internal("a vacuum has figures", "none"))?;
    Ok(format!(
        "SELECT {}::UBIGINT AS bytes_before, {}::UBIGINT AS bytes_after, {}::UBIGINT AS tables, {}::UBIGINT AS rows",
        done.bytes_before, done.bytes_after, done.tables, done.rows
    ))
}
