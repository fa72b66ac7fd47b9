//! The gate against what analysts write every day (`testdata/ordinary.sql`): none of it may be refused.

use super::check;
use crate::{duck::Database, sql::split, wire::Role};

#[test]
fn ordinary_sql_passes() {
    let script = include_str!("../../../testdata/ordinary.sql");
    let duck = Database::open_in_memory(&[]).expect("opens").connect().expect("connects");
    let statements = split(script).expect("splits");
    assert!(statements.len() >= 100, "{}", statements.len());
    let mut refused = Vec::new();
    for statement in statements {
        if let Err(why) = duck.extract(statement.text) {
            refused.push(format!("{}: {}", statement.text, why.message));
        } else if let Err(why) = check(statement.text, Role::Writer) {
            refused.push(format!("{}: {}", statement.text, why.message));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
