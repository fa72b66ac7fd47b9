//! Compact copies hold the same as their source, and a copy that does not is found out.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use engine::compact::{self, CompactError, Limits};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;

use crate::support::{Home, commit, one};

/// A mart's files without an engine: base, log, bulk rows.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    /// What `before` makes is in the file, what `after` makes in the log.
    fn of(before: &[&str], after: &[&str]) -> Self {
        let home = Home::new();
        let dir = tempfile::tempdir().expect("a directory");
        let mart = home.open();
        let connection = mart.connect().expect("connects");
        for sql in before {
            commit(&mart, &connection, sql);
        }
        mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("runs");
        for sql in after {
            commit(&mart, &connection, sql);
        }
        let copy = Self { dir };
        if home.wal().exists() {
            std::fs::copy(home.wal(), copy.wal()).expect("copies the log first");
        }
        std::fs::copy(home.db(), copy.from()).expect("then the file");
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn from(&self) -> PathBuf {
        self.path("from.db")
    }

    fn wal(&self) -> PathBuf {
        self.path("from.db.wal")
    }

    fn to(&self) -> PathBuf {
        self.path("to.db")
    }

    /// Makes the compact copy and looks at what is left around it.
    fn compact(&self) -> compact::Compacted {
        let source = [self.from(), self.wal()].map(|path| std::fs::read(path).ok());
        let made =
            compact::compact(&self.from(), &self.to(), Limits::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!([self.from(), self.wal()].map(|path| std::fs::read(path).ok()), source, "the source is as it was");
        let mut names: Vec<_> =
            self.dir.path().read_dir().expect("a directory").flatten().map(|e| e.file_name()).collect();
        names.sort();
        let expected: &[&str] =
            if self.wal().exists() { &["from.db", "from.db.wal", "to.db"] } else { &["from.db", "to.db"] };
        assert_eq!(names, expected);
        assert_eq!(made.bytes_after, self.to().metadata().expect("is there").len());
        made
    }

    /// What an engine finds in the compact copy.
    fn opened(&self) -> engine::open::Mart {
        let mut config = Home::new().config();
        (config.db_path, config.temp_dir, config.home_dir) = (self.to(), self.path("tmp"), self.path("home"));
        engine::open::Mart::open(&config).expect("opens")
    }
}

const OBJECTS: &[&str] = &[
    r#"create schema s2; create schema "Odd ""Name"; create schema _tarn; create schema empty"#,
    "create type mood as enum ('a', 'b''c', 'ü'); create type s2.pair as struct(a int, b mood[]); create type numbers as int[]",
    "create sequence q start 5; create sequence s2.around minvalue 1 maxvalue 3 cycle; create sequence used_up maxvalue 3;
     create sequence down increment by -2 minvalue -100 maxvalue 10 start 10; create sequence never",
    "create macro plus(x, y := 2) as x + y + 1; create macro typed(a integer) as a + 1, (a varchar) as a || 'x';
     create macro two(a) as a, (a, b) as a + b",
    "create table parent(id int primary key, m mood default 'a', n int default nextval('mart.main.q'));
     create table child(id int primary key, p int references parent(id), self int references child(id),
        g int generated always as (id * 2 + plus(1)), r double generated always as (random()), check (id < 1000000), unique (p, id));
     create table grandchild(a int, b int, foreign key (a, b) references child(p, id));
     create table s2.parent(id varchar primary key); create table s2.child(id varchar references s2.parent(id))",
    r#"create table "Odd ""Name"."or der"("sel ect" int not null, "a""b" varchar default 'x''y', "GENERATED ALWAYS AS" int, rowid int)"#,
    "create table _tarn.idempotency(principal varchar not null, key varchar not null, made_at timestamp not null default (now() at time zone 'UTC'), primary key (principal, key));
     insert into _tarn.idempotency(principal, key) values ('ann', 'k')",
    "create macro rows_of(k) as table select * from child where id = k; create macro largest() as (select max(id) from s2.parent)",
    "create view v1 as select id, p from child; create view s2.v2(a, b) as select id, p from mart.main.v1; create view v3 as from s2.v2;
     create table short_lived(i int); create view broken as from short_lived; drop table short_lived",
    r#"create index i1 on grandchild(b); create unique index "I 2" on parent((id + 1), n)"#,
    "comment on table child is 'it''s'; comment on column child.p is 'col'; comment on view v1 is 'view'; comment on column v1.id is 'vcol';
     comment on index i1 is 'idx'; comment on sequence q is 'seq'; comment on type mood is 'typ'; comment on macro plus is 'mac';
     comment on macro table rows_of is 'tmac'",
    "create table empty.nothing(i int, s varchar); create table changed(a int, b varchar, c int); insert into changed select i, 'x' || i, i from range(5000) t(i)",
    "alter table changed drop column b; alter table changed add column d varchar default 'd'; delete from changed where a % 3 = 0",
    "use mart.s2; create macro near(a) as a + 2; create table far(i int, j int generated always as (near(i))); insert into far values (1); use mart",
];

const USES: &[&str] = &[
    "insert into parent(id) from range(1, 100)",
    "insert into child(id, p) values (1, 1), (50, 2)",
    "insert into child(id, p, self) values (40, 3, 50)",
    "insert into child(id, p, self) values (30, 4, 40), (2, 5, 1)",
    "insert into grandchild values (1, 1), (null, null), (3, 40)",
    "insert into s2.parent values (''), ('x'); insert into s2.child values (''), (null)",
    r#"insert into "Odd ""Name"."or der" values (1, null, 2, 7), (1, null, 2, 7), (2, '', 2, 7)"#,
    "select nextval('used_up'), nextval('used_up'), nextval('used_up')",
    "select nextval('s2.around'), nextval('down')",
    "select nextval('s2.around'), nextval('down')",
];

#[test]
fn every_kind_of_object_is_carried_over() {
    for split in [OBJECTS.len(), OBJECTS.len() + USES.len()] {
        let all = [OBJECTS, USES].concat();
        let copy = Copy::of(&all[..split], &all[split..]);
        let made = copy.compact();
        assert_eq!((made.tables, made.rows), (10, 99 + 5 + 3 + 2 + 2 + 3 + 1 + 3333 + 1), "{made:?}");
        let mart = copy.opened();
        let connection = mart.connect().expect("connects");
        for (sql, expected) in [
            ("select string_agg(nextval('q')::varchar, ' ') from range(2)", "104 105"),
            ("select string_agg(nextval('s2.around')::varchar, ' ') from range(2)", "3 1"),
            ("select nextval('down')::varchar", "6"),
            ("select nextval('never')::varchar", "1"),
            ("select plus(1)::varchar || typed('a') || two(1, 2)::varchar", "4ax3"),
            ("select string_agg(g::varchar, ' ' order by id) from child", "6 8 64 84 104"),
            ("select count(*)::varchar from v3", "5"),
            ("select self::varchar from rows_of(30)", "40"),
            ("select typeof(null::s2.pair)", "STRUCT(a INTEGER, b ENUM('a', 'b''c', 'ü')[])"),
            ("select comment from duckdb_columns() where table_name = 'child' and column_name = 'p'", "col"),
            ("select count(*)::varchar from changed where d = 'd'", "3333"),
        ] {
            assert_eq!(one(&connection, sql), expected, "{sql}");
        }
        for (sql, message) in [
            ("select nextval('used_up')", "reached maximum"),
            ("insert into child(id, p) values (60, 1000)", "foreign key"),
            ("insert into child(id, self) values (60, 1000)", "foreign key"),
            ("delete from parent where id = 1", "foreign key"),
            ("insert into parent(id) values (1)", "Duplicate key"),
            ("insert into parent(id, m) values (1000, 'z')", "Could not convert"),
            ("insert into child(id) values (1000000)", "CHECK"),
            (r#"insert into parent(id, n) values (1000, 1), (1000, 2)"#, "PRIMARY KEY|Duplicate key"),
            (r#"insert into "Odd ""Name"."or der"("sel ect") values (null)"#, "NOT NULL"),
        ] {
            let error = connection.execute(sql).expect_err(sql).message;
            assert!(message.split('|').any(|part| error.contains(part)), "{sql}: {error}");
        }
    }
}

/// Types, each with values that come near each other: equal for DuckDB, the same as text, or the same bytes.
fn values() -> Vec<(String, Vec<String>)> {
    serde_json::from_str(include_str!("../../testdata/near-values.json")).expect("JSON")
}

#[test]
fn every_type_is_carried_over() {
    let types = values();
    let columns: Vec<String> = types.iter().enumerate().map(|(i, (kind, _))| format!("c{i} {kind}")).collect();
    let table = format!("create table t(n bigint, {})", columns.join(", "));
    let mut rng = StdRng::seed_from_u64(7);
    let mut inserts = vec![];
    for _ in 0..50 {
        let mut row: Vec<&str> =
            types.iter().map(|(_, values)| values[rng.random_range(0..values.len())].as_str()).collect();
        if rng.random_bool(0.3) {
            let at = rng.random_range(0..row.len());
            row[at] = "null";
        }
        inserts.push(format!("insert into t values (1, {})", row.join(", ")));
    }
    inserts.push("insert into t(n) values (null)".to_owned());
    // In bulk too, which takes another way into the file.
    let first: Vec<&str> = types.iter().map(|(_, values)| values[0].as_str()).collect();
    inserts.push(format!(
        "create table bulk as select i, {} from range(125000) r(i)",
        first
            .iter()
            .zip(&types)
            .enumerate()
            .map(|(at, (value, (kind, _)))| format!("{value}::{kind} c{at}"))
            .collect::<Vec<_>>()
            .join(", ")
    ));
    let inserts: Vec<&str> = inserts.iter().map(String::as_str).collect();
    let copy = Copy::of(&[&[table.as_str()], &inserts[..25]].concat(), &inserts[25..]);
    let made = copy.compact();
    assert_eq!(made.rows, 51 + 125_000);
}

fn differ(first: &Copy, second: &Copy) -> Option<String> {
    compact::difference(&first.from(), &second.from(), Limits::default()).expect("both are read")
}

fn check(file: &Path) -> String {
    compact::check(file, Limits::default()).expect("is read").fingerprint
}

#[test]
fn what_is_not_the_same_is_found() {
    const BASE: &[&str] = &[
        "create table t(a int, b varchar); insert into t values (1, ''), (2, 'x'), (2, 'x'); create index i on t(a)",
        "create sequence q; create macro m(a, b := 1) as a; create view v as from t; create type k as struct(a int)",
        "create table p(id int primary key); create table c(id int references p(id)); comment on table t is 'x'",
    ];
    let base = Copy::of(BASE, &[]);
    assert_eq!(differ(&base, &Copy::of(BASE, &[])), None);
    for change in [
        "update t set b = 'y' where a = 1",
        "update t set b = null where a = 1",
        "insert into t values (2, 'x')",
        "delete from t where a = 1",
        "delete from t where a = 1; insert into t values (2, 'x')",
        "select nextval('q')",
        "drop index i",
        "drop index i; create unique index i on p(id)",
        "create or replace macro m(a, b := 2) as a",
        "create or replace macro m(a, b := 1) as b",
        "create or replace view v as from p",
        "drop type k; create type k as struct(a bigint)",
        "drop table c; create table c(id int)",
        "comment on table t is 'y'",
        "alter table p add column n int",
        "create table more(i int)",
        "drop view v",
        "create schema another",
        "create or replace table t(b varchar, a int); insert into t values ('', 1), ('x', 2), ('x', 2); create index i on t(a); comment on table t is 'x'",
    ] {
        let other = Copy::of(BASE, &[change]);
        let found = differ(&base, &other);
        assert!(found.is_some(), "{change}");
        assert!(differ(&other, &base).is_some(), "{change}, the other way round");
    }
    // Pairs of rows that swap a value, so that neither counts nor columns by themselves tell.
    let pair = |rows: &str| Copy::of(&["create table t(a int, b int)", &format!("insert into t values {rows}")], &[]);
    assert!(differ(&pair("(1, 2), (3, 4)"), &pair("(1, 4), (3, 2)")).is_some());
    assert!(differ(&pair("(1, 1), (1, 1)"), &pair("(2, 2), (2, 2)")).is_some());
    assert_eq!(differ(&pair("(1, 2), (3, 4)"), &pair("(3, 4), (1, 2)")), None, "an order is no difference");
}

#[test]
fn a_file_shrinks_and_its_rows_stay() {
    let copy = Copy::of(
        &[
            "create table t(id bigint primary key, h ubigint, s varchar)",
            "insert into t select i, hash(i), 'row ' || i from range(500000) r(i)",
        ],
        &[
            "delete from t where id % 10 <> 0",
            "insert into t select i, hash(i), 'late' from range(500000, 500010) r(i)",
        ],
    );
    let made = copy.compact();
    assert_eq!((made.tables, made.rows), (1, 50_010));
    println!("{made:?}");
    assert!(made.bytes_after * 3 < made.bytes_before, "{made:?}");
}

#[test]
fn a_tree_of_rows_in_any_order_and_a_long_chain_are_carried_over() {
    let mut ids: Vec<i32> = (0..300).collect();
    ids.shuffle(&mut StdRng::seed_from_u64(1));
    // Row by row, as DuckDB takes them; then parents are moved behind their children by updates of another column.
    let inserts: Vec<String> = ids
        .iter()
        .enumerate()
        .map(|(at, id)| match at {
            0 => format!("insert into tree values ({id}, null, null, 'x')"),
            _ => format!("insert into tree values ({id}, {}, {}, 'x')", ids[at - 1], ids[at / 3]),
        })
        .collect();
    let table =
        "create table tree(id int primary key, chain int references tree(id), tree int references tree(id), s varchar)";
    let mut all = vec![table];
    all.extend(inserts.iter().map(String::as_str));
    let copy = Copy::of(&all, &["update tree set s = 'y' where id < 100"]);
    assert_eq!(copy.compact().rows, 300);
}

#[test]
fn a_check_tells_content_and_not_how_it_is_stored() {
    let rows = [
        "create table t(i int, s varchar)",
        "insert into t select i, 's' || i from range(200000) r(i)",
        "delete from t where i = 7",
    ];
    let (folded, logged) = (Copy::of(&rows, &[]), Copy::of(&[], &rows));
    assert_eq!(check(&folded.from()), check(&logged.from()));
    let source = std::fs::read(logged.wal()).expect("a log");
    let checked = compact::check(&logged.from(), Limits::default()).expect("is read");
    assert_eq!((checked.tables, checked.rows, checked.fingerprint.len()), (1, 199_999, 64));
    assert_eq!(std::fs::read(logged.wal()).expect("a log"), source);
    logged.compact();
    assert_eq!(check(&logged.to()), checked.fingerprint, "a compact copy is the same");
    let again = Copy::of(&rows, &["insert into t values (7, 's7')"]);
    assert_ne!(check(&again.from()), checked.fingerprint);
}

/// DuckDB replays that only into a file that it may write.
#[test]
fn a_log_that_makes_an_index_over_rows_is_read_too() {
    let rows = ["create table t as select i, 's' || i s from range(200000) r(i)"];
    let copy = Copy::of(&rows, &["create index i on t(s)", "insert into t values (-1, 'x')"]);
    let log = std::fs::read(copy.wal()).expect("a log");
    let checked = check(&copy.from());
    compact::compact(&copy.from(), &copy.to(), Limits::default()).expect("is made");
    assert_eq!(std::fs::read(copy.wal()).expect("a log"), log);
    assert_eq!((check(&copy.from()), check(&copy.to())), (checked.clone(), checked));
    let plan = one(&copy.opened().connect().expect("connects"), "select count(*)::varchar from t where s = 's77'");
    assert_eq!(plan, "1");
}

#[test]
fn what_can_t_be_copied_leaves_nothing_behind() {
    let copy = Copy::of(&["create table t as select hash(i) h from range(500000) r(i)"], &[]);
    // A block of the table is not what was written.
    let mut bytes = std::fs::read(copy.from()).expect("a file");
    for at in (12288 + 262_144 + 1000..bytes.len()).step_by(262_144) {
        bytes[at] ^= 1;
    }
    std::fs::write(copy.from(), &bytes).expect("writes");
    assert!(compact::compact(&copy.from(), &copy.to(), Limits::default()).is_err());
    assert!(compact::check(&copy.from(), Limits::default()).is_err());
    let left: Vec<_> =
        copy.dir.path().read_dir().expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["from.db"]);
    assert_eq!(std::fs::read(copy.from()).expect("a file"), bytes, "the source is as it was");
    // What was there before is not ours to remove.
    std::fs::write(copy.to(), "mine").expect("writes");
    assert!(matches!(compact::compact(&copy.from(), &copy.to(), Limits::default()), Err(CompactError::Io(_))));
    assert_eq!(std::fs::read(copy.to()).expect("is there"), b"mine");
}

#[test]
fn this_test_is_a_tool_when_asked_to_be() {
    if let Ok(args) = std::env::var("ENGINE_TEST_TOOL") {
        let args: Vec<String> = serde_json::from_str(&args).expect("a list");
        let code = engine::process::main(args.into_iter(), || ());
        std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 2 });
    }
}

fn tool(args: &[&str]) -> Output {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "compact::this_test_is_a_tool_when_asked_to_be", "--nocapture"])
        .env("ENGINE_TEST_TOOL", serde_json::to_string(args).expect("a list"))
        .output()
        .expect("runs")
}

fn json_line(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().find(|line| line.starts_with('{')).expect("a line")).expect("JSON")
}

#[test]
fn the_process_says_in_one_line_what_it_did() {
    let copy = Copy::of(&["create table t as select i from range(1000) r(i)"], &["insert into t values (1)"]);
    let (from, to) = (copy.from().display().to_string(), copy.to().display().to_string());
    let made = json_line(&tool(&["--compact", &from, &to, "--memory", "500000000", "--threads", "1"]));
    assert_eq!((&made["tables"], &made["rows"]), (&Value::from(1), &Value::from(1001)));
    assert_eq!(made["bytes_after"], Value::from(copy.to().metadata().expect("is there").len()));
    let before = [copy.from(), copy.wal()].map(|path| path.metadata().expect("is there").len()).iter().sum::<u64>();
    assert_eq!(made["bytes_before"], Value::from(before));
    let checked = json_line(&tool(&["--check", &from]));
    assert_eq!(checked, json_line(&tool(&["--check", &to])));
    assert_eq!((&checked["tables"], &checked["rows"]), (&Value::from(1), &Value::from(1001)));
    let failed = tool(&["--compact", &from, &to]);
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && text.lines().count() == 1, "{text}");
    for args in [
        &["--compact", &from][..],
        &["--check"],
        &["--check", &from, "--memory"],
        &["--check", &from, "--memory", "much"],
    ] {
        let failed = tool(args);
        assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("usage"), "{args:?}");
    }
}
