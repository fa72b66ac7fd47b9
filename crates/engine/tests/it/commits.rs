//! Positions: exact, in order, and the same after every kind of end.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use engine::wire::Point;

use crate::support::{Home, commit, one};

#[test]
fn a_commit_s_position_is_the_size_of_the_log() {
    let home = Home::new();
    let mart = home.open();
    let connection = mart.connect().expect("connects");
    for sql in [
        "create table t(i int, s varchar)",
        "insert into t values (1, 'x')",
        "insert into t select i, repeat('y', 5000) from range(3000) r(i)",
        "update t set s = 'z' where i < 100",
        "create view v as select * from t; create macro m(x) as x + 1; create sequence q",
        "select nextval('q')",
    ] {
        let point = commit(&mart, &connection, sql).unwrap_or_else(|| panic!("{sql} commits"));
        let size = std::fs::metadata(home.wal()).expect("a log").len();
        assert_eq!(point.point(), Point { iteration: 0, wal_bytes: size }, "{sql}");
    }
    assert_eq!(commit(&mart, &connection, "select * from t"), None, "a read commits nothing");
    assert_eq!(commit(&mart, &connection, "create temp table x as select 1"), None, "nothing of the mart");
}

#[test]
fn a_bulk_commit_keeps_its_rows_in_the_file_and_its_position_in_the_log() {
    let home = Home::new();
    let mart = home.open();
    let connection = mart.connect().expect("connects");
    let point =
        commit(&mart, &connection, "create table t as select hash(i) h, hash(i + 1) g from range(1000000) r(i)")
            .expect("commits");
    assert_eq!(point.wal_end, std::fs::metadata(home.wal()).expect("a log").len());
    assert!(point.wal_end < 100_000, "the log holds pointers only, not {} bytes", point.wal_end);
    assert!(std::fs::metadata(home.db()).expect("a file").len() > 1_000_000);
}

#[test]
fn a_checkpoint_counts_one_iteration_and_an_empty_one_none() {
    let home = Home::new();
    let mart = home.open();
    let connection = mart.connect().expect("connects");
    commit(&mart, &connection, "create table t(i int)");
    let point = mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("runs").expect("folds");
    assert_eq!((point.point(), home.wal().exists()), (Point { iteration: 1, wal_bytes: 0 }, false));
    assert_eq!(mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("runs"), None);
    let next = commit(&mart, &connection, "insert into t values (1)").expect("commits");
    assert_eq!(next.point(), Point { iteration: 1, wal_bytes: std::fs::metadata(home.wal()).expect("a log").len() });
}

#[test]
fn no_checkpoint_comes_by_itself_neither_by_size_nor_at_the_end() {
    let home = Home::new();
    {
        let mart = home.open();
        let connection = mart.connect().expect("connects");
        commit(&mart, &connection, "create table t(s varchar)");
        for _ in 0..3 {
            commit(&mart, &connection, "insert into t select repeat('x', 100) || i from range(100000) r(i)");
        }
        assert!(std::fs::metadata(home.wal()).expect("a log").len() > 20 << 20);
        assert_eq!(mart.commits.latest().0.iteration, 0);
    }
    let mart = home.open();
    assert_eq!(
        mart.commits.latest().0.point(),
        Point { iteration: 0, wal_bytes: std::fs::metadata(home.wal()).expect("a log").len() }
    );
    assert_eq!(one(&mart.connect().expect("connects"), "select count(*)::varchar from t"), "300000");
}

#[test]
fn a_torn_tail_goes_at_the_next_open_and_the_next_commit_follows_the_last_whole_one() {
    let home = Home::new();
    let ends = {
        let mart = home.open();
        let connection = mart.connect().expect("connects");
        ["create table t(i int)", "insert into t values (1)", "insert into t values (2)"]
            .map(|sql| commit(&mart, &connection, sql).expect("commits").wal_end)
    };
    let bytes = std::fs::read(home.wal()).expect("a log");
    let cuts = [ends[1] + 1, ends[1] + 17, ends[2] - 1].map(|cut| bytes[..cut as usize].to_vec());
    // What a file system leaves of an append that it had made room for: DuckDB would not open that.
    let zeros = [&bytes[..ends[1] as usize], &[0; 4096]].concat();
    for torn in cuts.into_iter().chain([zeros]) {
        std::fs::write(home.wal(), &torn).expect("writes");
        let mart = home.open();
        let connection = mart.connect().expect("connects");
        assert_eq!(mart.commits.latest().0.wal_end, ends[1]);
        assert_eq!(one(&connection, "select sum(i)::varchar from t"), "1");
        let next = commit(&mart, &connection, "insert into t values (3)").expect("commits");
        assert_eq!(next.wal_end, std::fs::metadata(home.wal()).expect("a log").len());
        assert_eq!(one(&connection, "select sum(i)::varchar from t"), "4");
    }
}

#[test]
fn every_reported_commit_survives_kill_9() {
    if let Ok(dir) = std::env::var("ENGINE_TEST_WRITER_DIR") {
        return write_until_killed(&dir);
    }
    let home = Home::new();
    let mut total = 0u64;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "commits::every_reported_commit_survives_kill_9", "--nocapture"])
            .env("ENGINE_TEST_WRITER_DIR", home.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut last = None;
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("acknowledged ") {
                let (rows, point) = rest.split_once(' ').expect("two words");
                last = Some((rows.parse::<u64>().expect("a number"), point.parse::<Point>().expect("a position")));
                seen += 1;
                if seen == 5 + round * 7 {
                    child.kill().expect("kills");
                }
            }
        }
        child.wait().expect("is gone");
        let (rows, point) = last.expect("acknowledged something");
        let mart = home.open();
        let latest = mart.commits.latest().0.point();
        assert!(latest >= point, "{latest} after {point} was acknowledged");
        let found: u64 =
            one(&mart.connect().expect("connects"), "select count(*)::varchar from t").parse().expect("a number");
        assert!(found >= rows && found > total, "{found} rows, {rows} acknowledged");
        total = found;
    }
}

/// Commits small and bulk rows and checkpoints in between, saying each once it has returned.
fn write_until_killed(dir: &str) {
    let home = Home::new();
    let mut config = home.config();
    config.db_path = std::path::Path::new(dir).join("mart.db");
    let mart = engine::open::Mart::open(&config).expect("opens");
    let connection = mart.connect().expect("connects");
    commit(&mart, &connection, "create table if not exists t(i bigint)");
    for turn in 0u64.. {
        let count = if turn % 10 == 9 { 200_000 } else { 1 };
        let point =
            commit(&mart, &connection, &format!("insert into t select * from range({count})")).expect("commits");
        let rows = one(&connection, "select count(*)::varchar from t");
        println!("acknowledged {rows} {}", point.point());
        if turn % 13 == 12 {
            mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("runs").expect("folds");
        }
    }
}
