//! File paths in SQL: where they can stand, and which are acceptable.
//!
//! A path stands as the first argument of a file function, behind FROM or JOIN in place of a table, in COPY, and in COPY's options
//! that make file names. There it must be a literal `s3://bucket/key` in plain characters; everything computed is refused, because
//! DuckDB's httpfs reads `?s3_endpoint=…` out of a path *after* it has checked the directory. Strings elsewhere are data.

use super::{Refused, tables::Role, verb_at};
use crate::sql::{
    Words,
    lexer::{Token, TokenKind},
};

/// Functions whose first argument is a path, a glob or a list of them.
const FILE_FUNCTIONS: [&str; 24] = [
    "read_parquet",
    "parquet_scan",
    "parquet_metadata",
    "parquet_schema",
    "parquet_file_metadata",
    "parquet_kv_metadata",
    "parquet_bloom_probe",
    "parquet_full_metadata",
    "read_csv",
    "read_csv_auto",
    "sniff_csv",
    "read_json",
    "read_json_auto",
    "read_json_objects",
    "read_json_objects_auto",
    "read_ndjson",
    "read_ndjson_auto",
    "read_ndjson_objects",
    "read_text",
    "read_text_auto",
    "read_blob",
    "read_blob_auto",
    "glob",
    "read_file",
];

/// Refuses the first path that is not a plain literal.
pub(super) fn check(words: Words<'_>, tables: &[Role]) -> Result<(), Refused> {
    check_file_functions(words)?;
    check_tables(words, tables)?;
    check_copy(words)
}

/// Is `path` an `s3://` URL in which DuckDB and we see the same thing?
fn check_path(path: &str) -> Result<(), Refused> {
    let refuse = |why: &str| {
        let shown: String = path.chars().filter(|c| !c.is_control()).take(80).collect();
        Err(Refused::forbidden(
            format!("the path `{shown}` is not available: {why}"),
            "write it as 's3://bucket/path/file.parquet'; `*` and `**` are fine",
        ))
    };
    let Some(rest) = path.strip_prefix("s3://") else {
        return refuse("only `s3://` can be read and written");
    };
    if let Some(bad) = rest.chars().find(|c| matches!(c, '?' | '%' | '\\' | '@' | '#') || c.is_control()) {
        return refuse(&format!("it holds {bad:?}"));
    }
    let Some((bucket, key)) = rest.split_once('/') else {
        return refuse("it names no file");
    };
    if bucket.is_empty()
        || !bucket.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
        || bucket.contains("..")
    {
        return refuse("the bucket's name is not one");
    }
    if key.contains("//") || key.starts_with('/') || key.split('/').any(|segment| matches!(segment, "." | "..")) {
        return refuse("it has an empty or dotted segment");
    }
    Ok(())
}

fn check_file_functions(words: Words<'_>) -> Result<(), Refused> {
    for (at, token) in words.tokens.iter().enumerate() {
        let Some(name) = token.name(words.sql) else { continue };
        if !words.symbol(at + 1, b'(') || !FILE_FUNCTIONS.contains(&name.to_ascii_lowercase().as_str()) {
            continue;
        }
        check_path_argument(words, at + 2, &name.to_ascii_lowercase())?;
    }
    Ok(())
}

/// `'path'` or `['path', …]`, then `,` or `)`.
fn check_path_argument(words: Words<'_>, at: usize, function: &str) -> Result<(), Refused> {
    let computed = || {
        Refused::forbidden(
            format!("`{function}` takes a literal path or a list of literal paths"),
            "write the path as 's3://bucket/path/file.parquet'",
        )
    };
    let literal = |at: usize| {
        words.tokens.get(at).filter(|token| token.is_string()).and_then(|token| token.string_value(words.sql))
    };
    let mut next = at;
    if words.symbol(at, b'[') {
        loop {
            check_path(&literal(next + 1).ok_or_else(computed)?)?;
            next += 2;
            if words.symbol(next, b']') {
                break;
            }
            if !words.symbol(next, b',') {
                return Err(computed());
            }
        }
    } else {
        check_path(&literal(at).ok_or_else(computed)?)?;
    }
    if words.symbol(next + 1, b',') || words.symbol(next + 1, b')') { Ok(()) } else { Err(computed()) }
}

/// Strings, and names that look like paths, that stand where a table stands. DuckDB joins the parts of a dotted name before it looks
/// for a file, so they are looked at together.
fn check_tables(words: Words<'_>, tables: &[Role]) -> Result<(), Refused> {
    for (at, token) in words.tokens.iter().enumerate().filter(|(at, _)| tables[*at] != Role::Value) {
        if token.is_string() {
            let path = token.string_value(words.sql).unwrap_or_default();
            if tables[at] == Role::Table || path.is_empty() || looks_like_path(&path) {
                check_path(&path)?;
            }
        }
        let mut parts = Vec::new();
        let mut quoted = false;
        let mut next = at;
        while let Some(part) = words.tokens.get(next).and_then(|token| token.name(words.sql)) {
            quoted |= words.tokens[next].kind == TokenKind::QuotedIdent;
            parts.push(part);
            if !words.symbol(next + 1, b'.') {
                break;
            }
            next += 2;
        }
        let name = parts.join(".");
        if quoted && looks_like_path(&name) {
            check_path(&name)?;
        }
    }
    Ok(())
}

/// Would DuckDB look for a file of this name? More than it does, since what it takes for one grows with its extensions.
fn looks_like_path(name: &str) -> bool {
    const SUFFIXES: [&str; 18] = [
        ".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".parq", ".gz", ".zst", ".zstd", ".db",
        ".duckdb", ".ddb", ".sqlite", ".arrow", ".arrows", ".xlsx",
    ];
    let lower = name.to_ascii_lowercase();
    lower.contains(['/', '\\', '*', '?']) || SUFFIXES.iter().any(|suffix| lower.ends_with(suffix))
}

/// COPY's target, and the options that become part of a file's name.
fn check_copy(words: Words<'_>) -> Result<(), Refused> {
    let copy = verb_at(words);
    if !words.is(copy, "copy") {
        return Ok(());
    }
    let mut at = copy + 1;
    while at < words.tokens.len() && !words.is_any(at, &["to", "from"]) {
        at = if words.symbol(at, b'(') { words.behind_group(at) } else { at + 1 };
    }
    let literal = |token: Option<&Token>| {
        token
            .filter(|token| token.is_string())
            .and_then(|token| token.string_value(words.sql))
            .map(|value| value.into_owned())
    };
    let Some(path) = literal(words.tokens.get(at + 1)) else {
        return Err(Refused::forbidden("COPY takes a literal path", "write it as 's3://bucket/path/file.parquet'"));
    };
    let ends =
        words.tokens.get(at + 2).is_none_or(|next| matches!(next.kind, TokenKind::Word | TokenKind::Symbol(b'(')));
    if !ends {
        return Err(Refused::forbidden("COPY takes a literal path", "write it as 's3://bucket/path/file.parquet'"));
    }
    check_path(&path)?;
    for option in at + 2..words.tokens.len() {
        let Some(name) = words.tokens[option].name(words.sql).map(|name| name.to_ascii_lowercase()) else {
            continue;
        };
        if !matches!(name.as_str(), "filename_pattern" | "file_extension") {
            continue;
        }
        let value = literal(words.tokens.get(option + if words.symbol(option + 1, b'=') { 2 } else { 1 }));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '{' | '}' | ' ');
        if !value.is_some_and(|value| value.chars().all(plain) && !value.contains("..")) {
            return Err(Refused::forbidden(
                format!("COPY's `{name}` takes letters, digits, `_`, `-`, `.` and `{{i}}`, `{{uuid}}`"),
                "",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{sql::gate::check, wire::Role};

    #[test]
    fn a_computed_or_dressed_up_path_is_refused_everywhere() {
        for sql in [
            "from read_text('s3://b/x' || chr(63))",
            "from read_csv(getvariable('x'))",
            "from read_csv(['s3://b/x', y])",
            "from read_csv(list_value('s3://b/x'))",
            "from read_csv($1)",
            "from read_csv(?)",
            "from \"READ_csv\"('/etc/passwd')",
            "from read_text(e's3://b/x\\x3fs3_endpoint=h')",
            "from read_text($$s3://b/x?y$$)",
            "from read_blob('s3://b/../c/x')",
            "from read_blob('s3://b//x')",
            "from read_blob('s3://b')",
            "from read_blob('s3://B_/x')",
            "from read_blob('S3://b/x')",
            "from glob('/*')",
            "from 's3://b/x?y'",
            "select * from t, '/etc/passwd'",
            "select * from (t join '/etc/passwd' on true)",
            "from t join u on t.i = u.i, '/etc/passwd'",
            "from x: '/etc/passwd'",
            "from \"/etc/passwd\"",
            "from \"a.csv\"",
            "summarize '/etc/passwd'",
            "describe '/x.csv'",
            "pivot '/x.csv' on a using sum(b)",
            "merge into t using '/x.csv' s on true when matched then delete",
            "select 1 where exists (from '/x.csv')",
            "select extract(year from (from '/x.csv'))",
            "copy t to 's3://b/x?y'",
            "copy t to 's3://b/' || 'x'",
            "copy t to x",
            "copy t to (getvariable('x'))",
            "copy t from '/etc/passwd'",
            "copy t to stdout",
            "copy t to 's3://b/x' (filename_pattern '../{i}')",
            "copy t to 's3://b/x' (\"FILE_EXTENSION\" 'x?y')",
            "copy t to 's3://b/x' (filename_pattern x)",
            "from histogram_values('/x.csv', a)",
            "select * from main.histogram('s3://b/x?y', a)",
            "from \"s3://b/a\".\"x?s3_endpoint=h.csv\"",
            "from s3.\"//b/x.csv\"",
            "select count(*) from (table '/x.csv')",
            "show '/x.csv'",
            "select * from (describe '/x.csv')",
            "select * from (summarize '/x.csv')",
            "select a in (from '/x.csv' select a) from t",
            "from t semi join '/x.csv' using (a)",
            "from t positional join '/x.csv'",
            "from (pivot '/x.csv' on a using sum(b))",
            "from (unpivot '/x.csv' on a, b)",
            "with t as materialized (from '/x.csv') from t",
            "select exists(table '/x.csv')",
            "from e'/x.csv'",
            "from $$/x.csv$$",
            "from (select 1), ('/x.csv' cross join (select 2))",
            "select 1 union from '/x.csv' select a",
            "select 1 order by (from '/x.csv' select a limit 1)",
            "from unnest([1]), '/x.csv' x",
            "create view v as table '/x.csv'",
            "create macro m() as table from '/x.csv'",
            "select 1 having 1 in (from '/x.csv' select a)",
            "select 1 limit (from '/x.csv' select a)",
            "select distinct from '/x.csv'",
            "select 1, from '/x.csv'",
            "select substring((from '/x.csv' select a) from 1)",
            "select 1 union select * from (select 1) x, '/x.csv'",
            "from t join u on (t.a = u.a), '/x.csv'",
            "from t where exists (select 1 from u, '/x.csv')",
            "explain analyze copy t to '/x'",
            "from range(1) as set, 's3://b/f.parquet?s3_endpoint=h'",
            "from range(1) values (a), 's3://b/f.parquet?s3_endpoint=h'",
            "from range(1) as x join t on x.where = 1, 's3://b/f.parquet?s3_endpoint=h'",
            "pivot_wider 's3://b/f.parquet?s3_endpoint=h' on a",
            "insert into trim (select 1 from 's3://b/f.parquet?s3_endpoint=h')",
            "delete from t using range(1) as set, 's3://b/f.parquet?s3_endpoint=h'",
            "copy \"/etc/passwd\" to 's3://b/x'",
            "create index i on \"s3://b/f.parquet?s3_endpoint=h\" (a)",
            "explain (analyze) copy t to '/x'",
        ] {
            assert!(check(sql, Role::Writer).is_err(), "{sql} should be refused");
        }
    }
}
