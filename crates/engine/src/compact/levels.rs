//! Rows of a table that refers to itself: DuckDB takes a row only when those it refers to are there from an earlier statement, so they
//! go in level by level, parents first.

use std::{collections::HashMap, fmt::Write};

use super::{
    CompactError,
    copy::{ForeignKey, SOURCE},
    instance::{Instance, Table, name},
};

/// Rows of the helping table that one statement makes.
const BATCH: usize = 10_000;
const LEVELS: &str = "temp.main.tarn_levels";

/// Runs `insert`, which copies all rows of `table`, for one level after another.
pub(super) fn rows(instance: &Instance, table: &Table, keys: &[&ForeignKey], insert: &str) -> Result<(), CompactError> {
    let connection = &instance.connection;
    let mut references = Vec::new();
    for key in keys {
        references.extend(instance.rows::<(u64, u64)>(&pairs(table, key))?);
    }
    let levels = levels(&references).ok_or_else(|| {
        CompactError::Unsupported(format!("rows of `{}` refer to each other in a circle", table.name))
    })?;
    connection.execute("CREATE TEMP TABLE tarn_levels (id BIGINT, level BIGINT)")?;
    for batch in levels.chunks(BATCH) {
        let mut sql = format!("INSERT INTO {LEVELS} VALUES ");
        for (at, (row, level)) in batch.iter().enumerate() {
            let _ = write!(sql, "{}({row}, {level})", if at == 0 { "" } else { ", " });
        }
        connection.execute(&sql)?;
    }
    connection.execute(&format!("{insert} WHERE rowid NOT IN (SELECT id FROM {LEVELS})"))?;
    for level in 1..=levels.last().map_or(0, |(_, level)| *level) {
        connection.execute(&format!("{insert} WHERE rowid IN (SELECT id FROM {LEVELS} WHERE level = {level})"))?;
    }
    Ok(connection.execute(&format!("DROP TABLE {LEVELS}"))?)
}

/// Each row that refers to another by `key`, with that one.
fn pairs(table: &Table, key: &ForeignKey) -> String {
    let columns = key.columns.iter().zip(&key.referenced_columns);
    let on = columns.map(|(own, other)| format!("child.{} = parent.{}", name(own), name(other)));
    let on = on.collect::<Vec<_>>().join(" AND ");
    let full = table.within(SOURCE);
    format!("SELECT to_json([child.rowid, parent.rowid])::VARCHAR FROM {full} child JOIN {full} parent ON {on}")
}

/// How far each row that refers to others is from one that does not, in order; `None` if there is a circle.
fn levels(references: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
    let mut waits_for: HashMap<u64, usize> = HashMap::new();
    let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
    for (child, parent) in references {
        *waits_for.entry(*child).or_default() += 1;
        children.entry(*parent).or_default().push(*child);
    }
    let mut found = Vec::with_capacity(waits_for.len());
    let mut ready: Vec<u64> = children.keys().filter(|row| !waits_for.contains_key(row)).copied().collect();
    for level in 1.. {
        let mut next = Vec::new();
        for child in ready.iter().filter_map(|row| children.get(row)).flatten() {
            let waits = waits_for.get_mut(child).expect("counted above");
            *waits -= 1;
            if *waits == 0 {
                next.push(*child);
            }
        }
        if next.is_empty() {
            break;
        }
        found.extend(next.iter().map(|row| (*row, level)));
        ready = next;
    }
    (found.len() == waits_for.len()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_after_all_that_it_refers_to() {
        let mut found = levels(&[(1, 0), (2, 1), (3, 0), (3, 2)]).expect("no circle");
        found.sort_unstable();
        assert_eq!(found, [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(levels(&[]), Some(vec![]));
        assert_eq!(levels(&[(1, 2), (2, 1)]), None);
        assert_eq!(levels(&[(1, 1)]), None);
    }
}
