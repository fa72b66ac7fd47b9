//! What is committed comes back from the log, the same; what would not is refused, and nothing of it happens.
//!
//! The engine's files are copied while it runs, as a kill leaves them: the log first, then the file. `TARN_TEST_REPLAYS` is how many
//! random scripts are tried, `TARN_TEST_REPLAY_SEED` which.

use std::sync::{Arc, OnceLock};

use engine::{
    duck::Connection,
    exec::{Engine, Request},
    format::Format,
    open::Mart,
    session::Session,
    wal,
    wire::{Code, ErrorBody, Outcome, Role},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{Home, commit};

const MART: &str = include_str!("../../testdata/changed-mart.sql");
const CHANGES: &str = include_str!("../../testdata/changes.sql");

/// An engine over a mart of its own.
struct Trial {
    home: Home,
    engine: Arc<Engine>,
    session: Session,
}

impl Trial {
    /// The mart of `changed-mart.sql`, folded.
    fn new() -> Self {
        static BASE: OnceLock<Home> = OnceLock::new();
        let base = BASE.get_or_init(|| {
            let home = Home::new();
            let mart = home.open();
            let connection = mart.connect().expect("connects");
            connection.execute(MART).expect("makes the mart");
            fold(&mart, &connection);
            drop((connection, mart));
            assert!(!home.wal().exists());
            home
        });
        let home = Home::new();
        std::fs::copy(base.db(), home.db()).expect("copies");
        let engine = Arc::new(Engine::open(&home.config()).expect("opens"));
        Self { home, engine, session: Session::default() }
    }

    fn ask(&mut self, sql: &str) -> Result<(), ErrorBody> {
        self.ask_as(sql, None)
    }

    fn ask_as(&mut self, sql: &str, key: Option<&str>) -> Result<(), ErrorBody> {
        let ticket = self.engine.queries.start(uuid::Uuid::new_v4(), "me".into(), None).expect("starts");
        let request = Request { key: key.map(str::to_owned), ..Request::new(sql, Format::Json, Role::Writer) };
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.engine.run(ticket.query(), &mut self.session, request, reply);
        self.session.reset();
        answer.blocking_recv().expect("answers").map(drop).map_err(|failed| failed.body)
    }

    /// The files as they are, in a place of their own.
    fn copy(&self) -> Home {
        let home = Home::new();
        if self.home.wal().exists() {
            std::fs::copy(self.home.wal(), home.wal()).expect("copies");
        }
        std::fs::copy(self.home.db(), home.db()).expect("copies");
        home
    }

    /// Does a replay give what is here now, and a checkpoint after it the same? Says what not.
    fn replays(&self) -> Result<(), String> {
        // Two, and before the behaviour is looked at: sequences go on.
        let (copy, other) = (self.copy(), self.copy());
        let connection = self.engine.mart.connect().expect("connects");
        let here = (content(&connection), behaviour(&connection));
        let open = || Mart::open(&copy.config()).map_err(|error| format!("it does not open: {error}"));
        let mart = open()?;
        let again = mart.connect().expect("connects");
        differ(&here.0, &content(&again))?;
        fold(&mart, &again);
        drop((again, mart));
        let mart = open()?;
        let again = mart.connect().expect("connects");
        differ(&here.0, &content(&again)).map_err(|why| format!("after a checkpoint: {why}"))?;
        drop((again, mart));
        let mart = Mart::open(&other.config()).map_err(|error| format!("it does not open: {error}"))?;
        differ(&here.1, &behaviour(&mart.connect().expect("connects")))
    }
}

fn fold(mart: &Mart, connection: &Connection) {
    mart.commits.checkpoint(|| connection.execute("CHECKPOINT mart")).expect("folds");
}

fn differ(here: &[String], again: &[String]) -> Result<(), String> {
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|line| !those.contains(line)).take(3).cloned().collect::<Vec<_>>().join("\n  ")
    };
    match here == again {
        true => Ok(()),
        false => Err(format!("committed:\n  {}\nrecovered:\n  {}", only(here, again), only(again, here))),
    }
}

fn quoted(connection: &Connection, sql: &str) -> Vec<String> {
    connection.column(sql).expect("reads the catalog")
}

/// All objects but what DuckDB shows otherwise after a checkpoint (a view's columns, a sequence's start), and all rows.
fn content(connection: &Connection) -> Vec<String> {
    const OBJECTS: [&str; 9] = [
        "SELECT 'schema', schema_name FROM duckdb_schemas() WHERE NOT internal",
        "SELECT 'table', schema_name, table_name, comment, tags, sql, has_primary_key, column_count, index_count, check_constraint_count FROM duckdb_tables() WHERE NOT internal",
        "SELECT 'column', c.schema_name, c.table_name, column_name, column_index, c.comment, column_default, is_nullable, data_type FROM duckdb_columns() c JOIN duckdb_tables() USING (table_oid) WHERE NOT c.internal",
        "SELECT 'view', schema_name, view_name, comment, tags, sql FROM duckdb_views() WHERE NOT internal",
        "SELECT 'sequence', schema_name, sequence_name, comment, tags, min_value, max_value, increment_by, cycle FROM duckdb_sequences()",
        "SELECT 'index', schema_name, index_name, table_name, comment, tags, is_unique, is_primary, expressions, sql FROM duckdb_indexes()",
        "SELECT 'constraint', schema_name, table_name, constraint_index, constraint_type, constraint_text, expression, constraint_column_names, constraint_name, referenced_table, referenced_column_names FROM duckdb_constraints()",
        "SELECT 'type', schema_name, type_name, logical_type, comment, tags, labels FROM duckdb_types() WHERE NOT internal",
        "SELECT 'macro', schema_name, function_name, function_type, parameters, parameter_types, macro_definition, comment, tags FROM duckdb_functions() WHERE NOT internal",
    ];
    let mut lines: Vec<String> = OBJECTS
        .iter()
        .flat_map(|sql| quoted(connection, &format!("SELECT x::VARCHAR FROM ({sql}) x ORDER BY 1")))
        .collect();
    for name in quoted(
        connection,
        "SELECT format('\"{}\".\"{}\"', replace(schema_name, '\"', '\"\"'), replace(name, '\"', '\"\"')) FROM (
             SELECT schema_name, table_name AS name FROM duckdb_tables() WHERE NOT internal
             UNION ALL SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal) ORDER BY 1",
    ) {
        let sql = format!("SELECT count(*) || ' ' || coalesce(sum(hash(x::VARCHAR))::VARCHAR, '') FROM mart.{name} x");
        let rows = connection.column(&sql).map(|rows| rows.concat()).unwrap_or_else(|error| first_line(&error.message));
        lines.push(format!("rows of {name}: {rows}"));
    }
    lines
}

/// What an object does when it is used: its dependents, keys and next value.
fn behaviour(connection: &Connection) -> Vec<String> {
    const STEPS: &str = "
        WITH o AS (SELECT 'TABLE' k, schema_name s, table_name n FROM duckdb_tables() WHERE NOT internal
            UNION ALL SELECT 'VIEW', schema_name, view_name FROM duckdb_views() WHERE NOT internal
            UNION ALL SELECT 'SEQUENCE', schema_name, sequence_name FROM duckdb_sequences()
            UNION ALL SELECT 'TYPE', schema_name, type_name FROM duckdb_types() WHERE NOT internal
            UNION ALL SELECT DISTINCT CASE function_type WHEN 'macro' THEN 'MACRO' ELSE 'MACRO TABLE' END, schema_name, function_name FROM duckdb_functions() WHERE NOT internal
            UNION ALL SELECT 'INDEX', schema_name, index_name FROM duckdb_indexes()),
        p AS (SELECT k, format('\"{}\".\"{}\"', replace(s, '\"', '\"\"'), replace(n, '\"', '\"\"')) AS n FROM o)
        SELECT 'DROP ' || k || ' ' || n FROM p
        UNION ALL SELECT unnest(['DELETE FROM ' || n, 'INSERT INTO ' || n || ' FROM ' || n || ' LIMIT 1',
            'ALTER TABLE ' || n || ' ADD COLUMN zzz INT']) FROM p WHERE k = 'TABLE'
        UNION ALL SELECT 'DROP SCHEMA \"' || replace(schema_name, '\"', '\"\"') || '\"' FROM duckdb_schemas() WHERE NOT internal AND schema_name <> 'main'
        ORDER BY 1";
    let mut lines = Vec::new();
    for step in quoted(connection, STEPS) {
        connection.execute("BEGIN").expect("begins");
        let told = connection.execute(&step).map_or_else(|error| first_line(&error.message), |()| "fine".to_owned());
        connection.execute("ROLLBACK").expect("rolls back");
        lines.push(format!("{step}: {told}"));
    }
    // What an index finds.
    const FIRST: &str = "
        SELECT format('SELECT ''SELECT count(*)::VARCHAR FROM {} WHERE {} = '''''' || replace(max({})::VARCHAR, '''''''', '''''''''''') || '''''''' FROM {}', t, e, e, t)
        FROM (SELECT format('\"{}\".\"{}\"', replace(schema_name, '\"', '\"\"'), replace(table_name, '\"', '\"\"')) t, (expressions::VARCHAR[])[1] e
              FROM duckdb_indexes() WHERE len(expressions::VARCHAR[]) = 1) ORDER BY 1";
    for first in quoted(connection, FIRST) {
        let found = connection.column(&first).and_then(|sql| connection.column(&sql.concat()));
        lines.push(format!("{first}: {:?}", found.map_err(|error| first_line(&error.message))));
    }
    let next = "SELECT 'nextval(''\"' || replace(schema_name, '\"', '\"\"') || '\".\"' || replace(sequence_name, '\"', '\"\"') || '\"'')' FROM duckdb_sequences() ORDER BY 1";
    for call in quoted(connection, next) {
        let value = connection.column(&format!("SELECT {call}::VARCHAR"));
        lines.push(format!("{call}: {:?}", value.map_err(|error| first_line(&error.message))));
    }
    lines
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn changes() -> Vec<&'static str> {
    CHANGES.lines().filter(|line| !line.starts_with("--")).collect()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// DuckDB commits each of these, and its log never opens again, or with something else in it.
const REFUSED: [&str; 50] = [
    // A type in a schema that the log makes too, or dropped.
    "CREATE SCHEMA n; CREATE TYPE n.x AS ENUM ('p')",
    "CREATE SCHEMA IF NOT EXISTS n; CREATE TYPE N.x AS INTEGER",
    "CREATE SCHEMA \"N n\"; CREATE TYPE IF NOT EXISTS mart.\"n N\".x AS STRUCT(a INT)",
    "BEGIN; CREATE SCHEMA n; CREATE TYPE n.x AS ENUM ('p'); COMMIT",
    "DROP SCHEMA old; CREATE SCHEMA old; CREATE TYPE old.x AS ENUM ('p')",
    "BEGIN; DROP SCHEMA old; CREATE OR REPLACE SCHEMA old; CREATE OR REPLACE TYPE old.x AS ENUM ('p'); COMMIT",
    // A type made of one that the log drops.
    "DROP TYPE spare; CREATE TYPE spare AS INT; CREATE TYPE d AS STRUCT(a spare)",
    "CREATE OR REPLACE TYPE spare AS INT; CREATE TYPE d AS \"SPARE\"",
    "BEGIN; CREATE OR REPLACE TYPE spare AS INT; CREATE TYPE d AS spare[]; COMMIT",
    "BEGIN; DROP TYPE spare CASCADE; CREATE TYPE d AS INT; COMMIT",
    // A column's type.
    "ALTER TABLE h2 ALTER c TYPE alias",
    "ALTER TABLE IF EXISTS main.h2 ALTER COLUMN c SET DATA TYPE \"Alias\"",
    "ALTER TABLE h2 ALTER c SET TYPE main.alias USING c",
    "ALTER TABLE h2 ALTER c TYPE VARCHAR USING c::alias",
    "ALTER TABLE h2 ALTER i TYPE BIGINT USING m(i)",
    "ALTER TABLE h2 ALTER i TYPE BIGINT USING i.m()",
    "ALTER TABLE h2 ALTER i TYPE BIGINT USING \"s\".\"SM\"(i)",
    "ALTER TABLE h2 ALTER i TYPE BIGINT USING nextval('q')",
    "ALTER TABLE h2 ALTER i TYPE DOUBLE USING random()",
    "ALTER TABLE h2 ALTER i TYPE VARCHAR USING uuid()::VARCHAR",
    "ALTER TABLE h2 ALTER i TYPE TIMESTAMPTZ USING now()",
    "ALTER TABLE h2 ALTER i TYPE INTERVAL USING age(TIMESTAMP '2020-01-01')",
    "ALTER TABLE h2 ALTER c TYPE VARCHAR USING current_database()",
    "ALTER TABLE h2 ALTER c TYPE VARCHAR USING current_setting('threads')",
    "ALTER TABLE b6 ADD COLUMN s.k INT DEFAULT m(1)",
    "ALTER TABLE b6 ADD COLUMN s.k VARCHAR DEFAULT 'q'::alias",
    // Any change of a table whose checks or generated columns use what is the mart's own.
    "ALTER TABLE a6 ADD COLUMN z INT",
    "ALTER TABLE \"A6\" RENAME i TO k",
    "ALTER TABLE mart.main.a6 ALTER i SET DEFAULT 4",
    "ALTER TABLE a6 ALTER i SET NOT NULL",
    "ALTER TABLE a7 ADD COLUMN z INT",
    "ALTER TABLE a8 ADD COLUMN z INT",
    "ALTER TABLE a9 RENAME i TO k",
    "ALTER TABLE b2 ALTER i SET NOT NULL",
    "ALTER TABLE e5 ADD COLUMN z INT",
    "ALTER TABLE e6 ADD COLUMN z INT",
    "COMMENT ON COLUMN a6.i IS 'x'",
    "COMMENT ON COLUMN main.a9.i IS 'x'",
    "CREATE TABLE w(a INT, b INT, CHECK (nextval('q') > 0)); ALTER TABLE w DROP b",
    "CREATE TABLE w(a INT, b INT AS (nextval('q'))); ALTER TABLE w ADD COLUMN c INT",
    "CREATE TABLE w(i INT REFERENCES a6k(i))",
    "CREATE TABLE w(i INT, FOREIGN KEY (i) REFERENCES \"A6K\"(i))",
    // Rows that go past the log, into a table with an index.
    "INSERT INTO h SELECT i, 'x' FROM range(122880) r(i)",
    "BEGIN; INSERT INTO h VALUES (5, 'q'); INSERT INTO h SELECT i, 'x' FROM range(122879) r(i); COMMIT",
    "BEGIN; CREATE TABLE w(i INT, c VARCHAR); INSERT INTO w SELECT i, 'x' FROM range(130000) r(i); CREATE INDEX y ON w(c); COMMIT",
    "BEGIN; CREATE TABLE \"W w\"(i INT, c VARCHAR); CREATE UNIQUE INDEX y ON \"W w\"(i); INSERT INTO \"W w\" SELECT i, 'x' FROM range(130000) r(i); COMMIT",
    "CREATE TABLE w AS SELECT i, 'x' c FROM range(130000) r(i); CREATE INDEX y ON w(c); UPDATE w SET c = c || i",
    "CREATE TABLE w(i INT, c VARCHAR); CREATE INDEX y ON w(c); INSERT INTO w VALUES (5, 'q'); INSERT INTO w SELECT i, 'x' || i FROM range(130000) r(i) RETURNING i",
    // What a log does not keep, and what would get round all of this.
    "ALTER SEQUENCE q OWNED BY t",
    "EXPLAIN ANALYZE ALTER TABLE h2 ADD COLUMN z INT",
];

/// Neighbours of those that come back as they were.
const ACCEPTED: [&str; 31] = [
    "CREATE TYPE x AS ENUM ('p'); CREATE SCHEMA n; CREATE TABLE n.t(x x)",
    "CREATE TYPE s.x AS ENUM ('p'); CREATE TABLE s.w(x s.x); INSERT INTO s.w VALUES ('p')",
    "BEGIN; CREATE TYPE s.x AS ENUM ('p'); CREATE TABLE w(x s.x); COMMIT",
    "CREATE TYPE s.x AS ENUM ('p'); DROP SCHEMA s CASCADE; CREATE SCHEMA s; CREATE TABLE s.t(i INT)",
    "DROP TYPE spare; CREATE TYPE spare AS INT; CREATE TABLE w(a spare); INSERT INTO w VALUES (4)",
    "CREATE OR REPLACE TYPE spare AS ENUM ('z'); CREATE TABLE w(a spare)",
    "ALTER TABLE h2 ALTER i TYPE VARCHAR USING 'n' || i",
    "ALTER TABLE h2 ALTER c TYPE ENUM ('0', '1', '2')",
    "ALTER TABLE h2 ALTER i TYPE TIMESTAMPTZ USING (TIMESTAMP '2020-01-01' + to_hours(i))::TIMESTAMPTZ",
    "ALTER TABLE h2 ADD COLUMN x mood; UPDATE h2 SET x = 'b'; ALTER TABLE h2 DROP c; ALTER TABLE h2 RENAME x TO c",
    "ALTER TABLE h2 ADD COLUMN x TIMESTAMP DEFAULT now(); ALTER TABLE h2 ADD COLUMN y UUID DEFAULT uuid()",
    "ALTER TABLE h2 ADD COLUMN x INT DEFAULT m(3); ALTER TABLE h2 ADD COLUMN y INT DEFAULT nextval('q')",
    "ALTER TABLE h2 ADD COLUMN x VARCHAR DEFAULT random()::VARCHAR::alias",
    "ALTER TABLE h2 ALTER i SET DEFAULT m(9); ALTER TABLE h2 ALTER c SET DEFAULT 'a'::mood; INSERT INTO h2 DEFAULT VALUES",
    "ALTER TABLE h2 ALTER i SET DEFAULT nextval('s.q'); INSERT INTO h2(c) VALUES ('x'); ALTER TABLE h2 RENAME c TO \"T y\"",
    "ALTER TABLE b6 ADD COLUMN s.k mood; ALTER TABLE b6 RENAME s.a TO aa; ALTER TABLE b6 DROP COLUMN s.b",
    "ALTER TABLE a6 RENAME TO a66; INSERT INTO a66(i) VALUES (9); COMMENT ON TABLE a66 IS 'x'; DROP TABLE a66",
    "ALTER TABLE b5 ADD COLUMN z INT; ALTER TABLE b5 RENAME i TO k; COMMENT ON COLUMN b5.k IS 'it''s'",
    "ALTER TABLE s.u ADD COLUMN z INT; ALTER TABLE s.u ALTER e TYPE VARCHAR; INSERT INTO s.u(e) VALUES ('q')",
    "CREATE TABLE w(i INT REFERENCES t(i)); INSERT INTO w VALUES (3); DROP TABLE w; DELETE FROM t",
    "CREATE OR REPLACE MACRO m2(x) AS x::mood; COMMENT ON MACRO m2 IS 'x'; DROP MACRO m2",
    "COMMENT ON TYPE alias IS 'k'; CREATE TYPE d AS STRUCT(a alias)",
    "CREATE INDEX i1 ON t((m(i))); INSERT INTO t VALUES (1000, 'a', 1); UPDATE t SET c = 'x' WHERE i < 9",
    "CREATE TABLE w AS SELECT i, i % 7 k FROM range(300000) r(i); DELETE FROM w WHERE k = 3; UPDATE w SET k = 99 WHERE i < 1000",
    "INSERT INTO h2 SELECT i, 'x' FROM range(130000) r(i); ALTER TABLE h2 ADD COLUMN z INT DEFAULT 4; UPDATE h2 SET z = i WHERE i % 7 = 0",
    "CREATE TABLE w(i INT PRIMARY KEY, k INT); INSERT INTO w SELECT i, 1 FROM range(200000) r(i); DELETE FROM w WHERE i % 2 = 0; INSERT INTO w SELECT i * 2, 5 FROM range(50) r(i)",
    "INSERT INTO h VALUES (5, 'q'); INSERT INTO h SELECT i, 'x' FROM range(122879) r(i); INSERT INTO h VALUES (6, 'q')",
    "DROP INDEX ix; INSERT INTO h SELECT i, 'x' FROM range(130000) r(i); CREATE INDEX ix ON h(c); INSERT INTO h VALUES (5, 'q')",
    "CREATE TABLE w(i INT, c VARCHAR PRIMARY KEY, d INT UNIQUE); INSERT INTO w VALUES (5, 'q', -1); INSERT INTO w SELECT i, i, i FROM range(130000) r(i); INSERT INTO w VALUES (5, 'z', -2)",
    "ALTER TABLE h2 ADD PRIMARY KEY (i); INSERT INTO h2 VALUES (1000, 'x'); ALTER TABLE h2 DROP c",
    "DROP VIEW v; DROP TABLE b3; DROP TABLE e7; DROP TABLE t; CREATE TABLE t(i mood); CREATE VIEW v AS FROM t; INSERT INTO t VALUES ('a')",
];

#[test]
fn what_could_not_be_recovered_is_refused_and_the_rest_is() {
    for sql in REFUSED {
        let mut trial = Trial::new();
        let error = trial.ask(sql).expect_err(sql);
        assert_eq!((error.code, error.retryable), (Code::Invalid, false), "{sql}: {error:?}");
        assert!(error.hint.is_some(), "{sql}: {error:?}");
        let alone = !sql.contains("; ") || sql.starts_with("BEGIN");
        assert_eq!(error.outcome, if alone { Outcome::None } else { Outcome::Committed }, "{sql}: {error:?}");
        assert_eq!(alone, !trial.home.wal().exists(), "{sql}: a refused statement leaves nothing in the log");
        trial.ask("INSERT INTO h VALUES (77, 'after')").unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        trial.replays().unwrap_or_else(|why| panic!("{sql}: {why}"));
    }
}

#[test]
fn what_looks_like_it_is_accepted_and_recovered() {
    for sql in ACCEPTED {
        let mut trial = Trial::new();
        trial.ask(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        trial.replays().unwrap_or_else(|why| panic!("{sql}: {why}"));
    }
}

#[test]
fn under_an_idempotency_key_too() {
    let mut trial = Trial::new();
    let error = trial.ask_as("CREATE SCHEMA n; CREATE TYPE n.x AS ENUM ('p')", Some("k")).expect_err("is refused");
    assert_eq!((error.code, error.outcome), (Code::Invalid, Outcome::None), "{error:?}");
    trial.ask_as("CREATE SCHEMA n; CREATE TABLE n.x(i INT)", Some("k")).expect("runs");
    trial.replays().expect("is the same");
}

#[test]
fn names_in_the_log_outlive_the_engine_and_end_with_a_checkpoint() {
    let mut trial = Trial::new();
    trial.ask("CREATE SCHEMA n; DROP TYPE spare").expect("runs");
    let copy = trial.copy();
    let engine = Arc::new(Engine::open(&copy.config()).expect("opens"));
    let mut again = Trial { home: copy, engine, session: Session::default() };
    for trial in [&mut trial, &mut again] {
        let error = trial.ask("CREATE TYPE n.x AS ENUM ('p')").expect_err("is refused");
        assert!(error.message.contains("`n` is too new"), "{error:?}");
        trial.ask("CREATE TYPE spare AS INT").expect("stands for itself");
        trial.ask("CREATE TYPE d AS STRUCT(a spare)").expect_err("stands for another");
        trial.replays().expect("is the same");
    }
    let mart = &again.engine.mart;
    again.session = Session::default();
    fold(mart, &mart.connect().expect("connects"));
    again.ask("CREATE TYPE n.x AS STRUCT(a spare)").expect("the schema and the type are old now");
    again.replays().expect("is the same");
}

/// DuckDB would make the type, although its commit never ended.
#[test]
fn types_of_a_commit_that_did_not_end_are_cut_off() {
    let home = Home::new();
    let mart = home.open();
    let connection = mart.connect().expect("connects");
    let whole = commit(&mart, &connection, "create table t(i int)").expect("commits").wal_end;
    commit(&mart, &connection, "create type x as enum ('a')").expect("commits");
    let copy = Home::new();
    let log = std::fs::read(home.wal()).expect("a log");
    // Without its FLUSH, the last frame.
    const FLUSH_BYTES: usize = 16 + 5;
    std::fs::copy(home.db(), copy.db()).expect("copies");
    std::fs::write(copy.wal(), &log[..log.len() - FLUSH_BYTES]).expect("writes");
    let mart = copy.open();
    assert_eq!(mart.commits.latest().0.wal_end, whole);
    let types = mart.connect().expect("connects").column("select type_name from duckdb_types() where not internal");
    assert_eq!(types.expect("runs"), Vec::<String>::new());
    assert_eq!(wal::cut_torn_tail(&copy.wal()).expect("looks"), 0);
}

#[test]
fn every_known_change_is_recovered_or_refused() {
    let (changes, mut accepted) = (changes(), 0);
    // Opening and comparing takes longest, so a few share a mart; neighbours in the list are of one kind and would stand in each
    // other's way.
    let marts = changes.len().div_ceil(8);
    for mart in 0..marts {
        let few: Vec<&str> = changes.iter().skip(mart).step_by(marts).copied().collect();
        let mut trial = Trial::new();
        let done = few.iter().map(|sql| trial.ask(sql).is_ok()).collect::<Vec<_>>();
        accepted += done.iter().filter(|done| **done).count();
        trial.replays().unwrap_or_else(|why| panic!("{few:#?} {done:?}: {why}"));
    }
    assert!(accepted > changes.len() / 2, "only {accepted} of {} changes were accepted", changes.len());
}

#[test]
fn random_changes_are_recovered_or_refused() {
    let seed = number("TARN_TEST_REPLAY_SEED", 20_240_229);
    let changes: Vec<&str> = changes().into_iter().filter(|sql| !sql.contains("0000)")).collect();
    for turn in 0..number("TARN_TEST_REPLAYS", 20) {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(turn));
        let mut trial = Trial::new();
        let mut said = Vec::new();
        for _ in 0..random.random_range(2..12) {
            let mut sql = changes.choose(&mut random).expect("there are some").to_string();
            if random.random_bool(0.3) {
                let more = changes.choose(&mut random).expect("there are some");
                sql = format!("BEGIN; {sql}; {more}; COMMIT");
            }
            if random.random_bool(0.05) {
                let mart = &trial.engine.mart;
                fold(mart, &mart.connect().expect("connects"));
                said.push("-- folded".to_owned());
            }
            let done = trial.ask(&sql);
            said.push(format!("{sql} -- {}", done.map_or_else(|error| first_line(&error.message), |()| "done".into())));
        }
        trial.replays().unwrap_or_else(|why| panic!("seed {}: {why}\n{}", seed.wrapping_add(turn), said.join("\n")));
    }
}
