//! The gate against random SQL: it never panics, and what it passes for a reader leaves every table as it was.
//!
//! The texts run without the read-only transaction that a reader's request really has, so that nothing but the gate is tested.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::check;
use crate::duck::{Connection, Database};
use crate::wire::Role;

/// Pieces of statements: what reads, what writes, and what may hide one in the other.
const PIECES: [&str; 64] = [
    "select",
    "from",
    "t",
    "u",
    "*",
    "1",
    "(",
    ")",
    ",",
    ";",
    "with c as",
    "as",
    "where",
    "i > 0",
    "values (7)",
    "insert into t",
    "insert into t values (7)",
    "delete from t",
    "update t set i = i + 1",
    "truncate t",
    "drop table u",
    "create table n as",
    "create or replace table t as",
    "create temp table t as",
    "alter table t add column k int",
    "merge into t using u on true when matched then delete",
    "copy t to 's3://b/x'",
    "copy t from 's3://b/x'",
    "explain",
    "explain analyze",
    "analyze",
    "describe",
    "summarize",
    "show tables",
    "begin",
    "commit",
    "rollback",
    "returning *",
    "union all",
    "except",
    "materialized",
    "recursive",
    "lateral",
    "exists",
    "in",
    "not",
    "table t",
    "nextval('s')",
    "setval('s', 9)",
    "currval('s')",
    "execute p",
    "prepare p as",
    "deallocate p",
    "call",
    "pragma",
    "query('delete from t')",
    "/* x */",
    "-- x\n",
    "\"t\"",
    "'x'",
    "$$x$$",
    "pivot t on i using count(*)",
    "vacuum",
    "checkpoint",
];

/// Whole statements to put pieces into.
const FRAMES: [&str; 14] = [
    "@",
    "select * from (@)",
    "with c as (@) select * from c",
    "with c as materialized (@) from c",
    "explain @",
    "explain analyze @",
    "explain (analyze) @",
    "explain (format json) @",
    "from t where exists (@)",
    "select (@) from t",
    "begin; @; commit",
    "select 1; @",
    "values ((@))",
    "describe @",
];

fn text() -> impl Strategy<Value = String> {
    let pieces = prop::collection::vec(prop::sample::select(&PIECES[..]), 1..7);
    let whole = (prop::sample::select(&FRAMES[..]), pieces.clone())
        .prop_map(|(frame, pieces)| frame.replace('@', &pieces.join(" ")));
    let nested = (prop::sample::select(&FRAMES[..]), prop::sample::select(&FRAMES[..]), pieces.clone())
        .prop_map(|(outer, inner, pieces)| outer.replace('@', &inner.replace('@', &pieces.join(" "))));
    let free = pieces.prop_map(|pieces| pieces.join(" "));
    prop_oneof![whole, nested, free]
}

struct Mart {
    connection: Connection,
}

impl Mart {
    fn new() -> Self {
        let connection = Database::open_in_memory(&[]).expect("opens").connect().expect("connects");
        for sql in [
            "create table t as select range::int as i from range(100)",
            "create table u as select range::int as i from range(10)",
            "create view v as from t",
            "create sequence s",
        ] {
            connection.execute(sql).expect(sql);
        }
        Self { connection }
    }

    /// Of every table's rows, and of all that there is.
    fn hash(&self) -> Vec<String> {
        let tables = self.connection.column("select table_name from duckdb_tables() order by 1").expect("lists");
        let mut hash = self.connection.column(
            "select sql from (from (select sql from duckdb_tables()) union all select sql from duckdb_views() where not internal) order by 1",
        ).expect("describes");
        for table in tables {
            let sql = format!("select concat(sum(hash(x)), ' ', count(*)) from \"{table}\" x");
            hash.extend(self.connection.column(&sql).expect("hashes"));
        }
        hash
    }

    /// Runs what parses, as far as it gets; how many statements ended well.
    fn run(&self, statements: &[crate::sql::Statement<'_>]) -> usize {
        let ran = statements.iter().filter(|statement| self.connection.execute(statement.text).is_ok()).count();
        // It may have begun a transaction.
        let _ = self.connection.execute("commit");
        ran
    }
}

#[test]
fn what_passes_for_a_reader_changes_no_table() {
    let mart = Mart::new();
    let before = mart.hash();
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let (passed, ran) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    runner
        .run(&text(), |sql| {
            // Never a panic, whoever asks.
            let _ = check(&sql, Role::Admin);
            let Ok(statements) = check(&sql, Role::Reader) else { return Ok(()) };
            passed.set(passed.get() + 1);
            let well = mart.run(&statements);
            if well > 0 {
                ran.set(ran.get() + 1);
                prop_assert_eq!(mart.hash(), before.clone(), "{}", sql);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    // Otherwise nothing was shown.
    assert!(passed.get() > 1_000 && ran.get() > 300, "{} passed, {} ran", passed.get(), ran.get());
}

#[test]
fn the_same_texts_do_change_tables_where_the_gate_lets_a_writer_pass() {
    // That the hash sees it, and that the texts are dangerous.
    let mut mart = Mart::new();
    let before = mart.hash();
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let strategy = text();
    let mut changes = 0;
    for _ in 0..2_000 {
        let sql = strategy.new_tree(&mut runner).expect("a text").current();
        if let Ok(statements) = check(&sql, Role::Writer) {
            mart.run(&statements);
            if mart.hash() != before {
                changes += 1;
                mart = Mart::new();
            }
        }
    }
    assert!(changes > 20, "{changes}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_gate_panic(sql in "\\PC{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        for text in [sql.as_str(), &String::from_utf8_lossy(&bytes)] {
            for role in [Role::Reader, Role::Writer, Role::Admin] {
                let _ = check(text, role);
            }
        }
    }
}
