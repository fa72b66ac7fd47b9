//! The gate against DuckDB itself: whatever DuckDB would bind as reading a source, in any shape of a FROM clause and under any
//! alias, must be refused.
//!
//! That a text reads a source is seen from outside: binding ends otherwise with a source that is there than with one that is not.

use super::check;
use crate::{
    duck::{Connection, Database},
    wire::Role,
};

/// Around a list of tables.
const STATEMENTS: [&str; 18] = [
    "select * from {}",
    "from {}",
    "select 1 from t where exists (from {})",
    "select (select count(*) from {})",
    "with c as (select * from {}) from c",
    "with trim as materialized (from {}) from trim",
    "select 1 union all by name select * from {}",
    "select 1 order by (select count(*) from {})",
    "values ((select count(*) from {}))",
    "create view v as select * from {}",
    "create table n as from {}",
    "create macro m() as table from {}",
    "copy (select * from {}) to 's3://b/x'",
    "insert into t select 1 from {}",
    "insert into trim (select 1 from {})",
    "update t set i = 1 from {}",
    "delete from t using {}",
    "explain analyze select * from {}",
];

/// Lists of tables that read X; `@` is an alias.
const LISTS: [&str; 34] = [
    "X",
    "X as @",
    "range(1) as @, X",
    "range(1) @, X",
    "range(1) as @(a), X",
    "range(1) @ (a), X",
    "t as @, X as b",
    "t @, X as b",
    "(t as @ cross join u), X",
    "(t as @ cross join X)",
    "((t as @ cross join u) cross join X)",
    "t as @ cross join u, X",
    "t as @ join u on @.i = u.j, X",
    "t as x join u on x.i = u.j and x.\"@\" = 1, X",
    "s as @ join u on @.where = u.j, X",
    "s as @ join u on @.select = 1 and @.order = 2, X",
    "t as @ left join X on true",
    "t as @ natural join u, X",
    "t as @ join u using (i), X",
    "(select 1) as @, X",
    "(values (1)) as @, X",
    "(values (1), (2)) @(a), X",
    "(values (1)) @, (values (2)) b, X",
    "t as @ tablesample 100%, X",
    "t as @ tablesample reservoir(10 rows), X",
    "t tablesample 100 percent (bernoulli), X",
    "t as @, lateral (select * from X) l",
    "unnest([1]) with ordinality as @, X",
    "only t as @, X",
    "only X",
    "@: t, X",
    "t as @, b: X",
    "(pivot t on i using count(*)) as @, X",
    "t as @ pivot (count(*) for i in (1)), X",
];

/// Whole statements that read X.
const WHOLE: [&str; 36] = [
    "table X",
    "describe X",
    "summarize X",
    "from (table X)",
    "from (describe X)",
    "from (summarize X)",
    "pivot X on 1 using count(*)",
    "pivot_wider X on i using count(*)",
    "unpivot X on columns(*)",
    "pivot_longer X on columns(*)",
    "from (pivot_longer X on columns(*))",
    "insert into trim (from X select 1)",
    "insert into trim (from X select 1) returning *",
    "insert into t as trim (select 1 from X)",
    "insert into main.trim (select 1 from X)",
    "insert into \"trim\" (select 1 from X)",
    "insert into position (select 1 from X)",
    "insert into extract (select 1 from X)",
    "insert into substring (select 1 from X)",
    "insert into overlay (select 1 from X)",
    "insert into overlay ((select 1) union all select 1 from X)",
    "insert into trim (with c as (select 1) select 1 from c, X)",
    "insert into trim (values (1) union all select 1 from X)",
    "update t as set set i = 1 from range(1) as set, X",
    "delete from t as using_ using range(1) as sample, X",
    "merge into t using X on false when matched then delete",
    "merge into t as values using (select 1) as set join X on true on false when matched then delete",
    "select extract(year from (select date '2020-01-01' from X))",
    "select trim((select 'x' from X) from 'y')",
    "select substring('x' from (select 1 from X))",
    "copy X to 's3://b/x'",
    "create index on_ on X (i)",
    "select * from t where i is distinct from (select 1 from X)",
    "select 1 from t group by i having (select true from X)",
    "select [x for x in (select [1] from X)]",
    "select {'a': (select 1 from X)}",
];

fn duck(file: &str) -> Connection {
    std::fs::write(file, "i,j\n1,2\n").expect("writes");
    let connection = Database::open_in_memory(&[]).expect("opens").connect().expect("connects");
    for table in ["t (i int)", "u (i int, j int)", "trim (i int)", "position (i int)", "extract (i int)"] {
        connection.execute(&format!("create table {table}")).expect("creates");
    }
    for table in ["substring (i int)", "overlay (i int)", "s (\"where\" int, \"select\" int, \"order\" int)"] {
        connection.execute(&format!("create table {table}")).expect("creates");
    }
    connection
}

/// What binding `text` with `source` in place of X ends with, but for the source's name.
fn outcome(duck: &Connection, text: &str, source: &str) -> Result<(), String> {
    let bound = duck.extract(&text.replace('X', source)).and_then(|statements| {
        for mut statement in statements {
            statement.prepare()?;
        }
        Ok(())
    });
    // The first line: others show the text, and a caret below it.
    bound.map_err(|error| error.message.lines().next().unwrap_or_default().replace(source, "X"))
}

/// How many of `texts` read their source; those that the gate lets pass as well go to `missed`.
fn try_all(duck: &Connection, texts: &[String], source: &(String, String), missed: &mut Vec<String>) -> usize {
    let mut reading = 0;
    for text in texts {
        let sql = text.replace('X', &source.0);
        let refused = check(&sql, Role::Writer).is_err();
        // Asking DuckDB takes long. That these texts do read is known by then, and only what passes can be wrong.
        if refused && reading > 100 {
            continue;
        }
        if outcome(duck, text, &source.0) != outcome(duck, text, &source.1) {
            reading += 1;
            if !refused {
                missed.push(sql);
            }
        }
    }
    reading
}

fn texts(statements: &[&str], aliases: &[String]) -> Vec<String> {
    let mut texts: Vec<String> = WHOLE.map(str::to_owned).into();
    for list in LISTS {
        for statement in statements {
            let text = statement.replace("{}", list);
            match list.contains('@') {
                true => texts.extend(aliases.iter().map(|alias| text.replace('@', alias))),
                false => texts.push(text),
            }
        }
    }
    texts
}

#[test]
fn what_duckdb_would_read_is_refused_under_every_alias() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (there, missing) = (path("there.csv"), path("gone.csv"));
    let duck = duck(&there);
    let mut aliases = duck.column("select keyword_name from duckdb_keywords()").expect("runs");
    assert!(aliases.len() > 400, "{}", aliases.len());
    aliases.splice(0..0, ["plain".to_owned(), "\"quo,ted\"".to_owned(), "'text'".to_owned()]);
    let sources = [
        (format!("'{there}'"), format!("'{missing}'")),
        (format!("\"{there}\""), format!("\"{missing}\"")),
        (format!("e'{there}'"), format!("e'{missing}'")),
        (format!("$${there}$$"), format!("$${missing}$$")),
        ("duckdb_databases".to_owned(), "duckdb_databasez".to_owned()),
        ("main.\"DuckDB_Logs\"".to_owned(), "main.\"DuckDB_Logz\"".to_owned()),
        ("pg_settings".to_owned(), "pg_settingz".to_owned()),
        ("pragma_database_list".to_owned(), "pragma_database_lizt".to_owned()),
        ("duckdb_settings()".to_owned(), "duckdb_settingz()".to_owned()),
        (format!("histogram('{there}', i)"), format!("histogram('{missing}', i)")),
    ];
    let every = texts(&["from {}", "delete from t using {}", "insert into trim (select 1 from {})"], &aliases);
    let few = texts(&STATEMENTS, &["plain", "set", "values", "sample", "using_", "'text'"].map(str::to_owned));
    let mut missed = Vec::new();
    for (n, source) in sources.iter().enumerate() {
        // Every alias for one file and one view; the walk treats the others alike.
        let texts = if matches!(n, 0 | 4) { &every } else { &few };
        let reading = try_all(&duck, texts, source, &mut missed);
        assert!(reading > 100, "{}: DuckDB reads only {reading}", source.0);
    }
    assert!(missed.is_empty(), "{} pass the gate:\n{}", missed.len(), missed[..missed.len().min(40)].join("\n"));
}
