use super::duck::Duck;
use crate::format::{Columns, Format, Options, keywords::KEYWORDS};

/// Fields of a CSV body without its header; `None` for NULL.
fn csv(body: &[u8]) -> Vec<Vec<Option<String>>> {
    let text = std::str::from_utf8(body).expect("UTF-8");
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (field, end) = if rest.starts_with('"') {
            let mut value = String::new();
            let mut at = 1;
            loop {
                let quote = at + rest[at..].find('"').expect("a closing quote");
                value.push_str(&rest[at..quote]);
                if rest[quote + 1..].starts_with('"') {
                    value.push('"');
                    at = quote + 2;
                } else {
                    break (Some(value), quote + 1);
                }
            }
        } else {
            let end = rest.find([',', '\r']).expect("a line's end");
            ((end > 0).then(|| rest[..end].to_owned()), end)
        };
        row.push(field);
        rest = &rest[end..];
        if let Some(behind) = rest.strip_prefix("\r\n") {
            rows.push(std::mem::take(&mut row));
            rest = behind;
        } else {
            rest = rest.strip_prefix(',').expect("a comma");
        }
    }
    rows.remove(0);
    rows
}

/// Every row of `query`'s first column must be, as CSV, what DuckDB's own cast to VARCHAR gives.
fn assert_text(duck: &Duck, query: &str) {
    let rows = csv(&duck.encode(&format!("SELECT x, x::VARCHAR FROM ({query}) t(x)"), Format::Csv));
    assert!(!rows.is_empty(), "{query}");
    for row in rows {
        assert_eq!(row[0], row[1], "{query}");
    }
}

#[test]
fn csv_is_duckdbs_own_text_for_every_type() {
    let duck = Duck::open();
    let columns = duck.column("SELECT column_name FROM (DESCRIBE FROM test_all_types())");
    assert!(columns.len() > 40);
    for column in columns.into_iter().filter(|column| column != "geometry") {
        // ICU shows the last moment of all a millisecond late; see `a_timestamp_at_the_end_of_time`.
        let latest = if column.starts_with("timestamp_tz") || column == "timestamptz_array" { " LIMIT 1" } else { "" };
        assert_text(&duck, &format!("SELECT \"{column}\" FROM test_all_types(){latest}"));
    }
}

#[test]
fn csv_is_duckdbs_own_text_for_many_values() {
    let duck = Duck::open();
    let random = |expression: &str| format!("SELECT {expression} FROM range(20000) t(i)");
    for expression in [
        "(random() - 0.5) * power(10, (i % 640) - 320)",
        "i / 8 - 100",
        "(i / 8)::FLOAT",
        "power(10, i % 20)::DOUBLE",
        "(hash(i) % 5000000)::INTEGER::DECIMAL(18, 3) / 7",
        "DATE '1970-01-01' + ((hash(i) % 4000000)::INTEGER - 2000000)",
        "make_timestamp((hash(i) // 2)::BIGINT - 4000000000000000000)",
        "make_timestamp_ns((hash(i) // 2)::BIGINT - 4000000000000000000)",
        "to_timestamp(i * 1000003 / 7)",
        "to_microseconds((hash(i) // 4)::BIGINT - 1000000000000) + to_months((i % 50 - 25)::INTEGER) + to_days((i % 7 - 3)::INTEGER)",
        "TIME '00:00:00' + to_microseconds((hash(i) % 86400000000)::BIGINT)",
        "hash(i)::HUGEINT * 9223372036854775807::HUGEINT // 3",
        "hash(i)::UHUGEINT * 18446744073709551615",
        "hash(i)::BIGNUM * (i - 10000)",
        "(hash(i)::VARCHAR || hash(i + 1)::VARCHAR || '000000000')::BIGNUM",
        "uuid()",
        "left(hash(i)::BIT::VARCHAR, 1 + i % 60)::BIT",
        "chr(1 + (i % 300)::INTEGER) || 'x'",
        "('\\x' || right('0' || to_hex(i % 256), 2) || 'a')::BLOB",
        "[i, NULL, i % 3]",
        "{'a': i, 'b c': chr(32 + (i % 90)::INTEGER)}",
        "map([i, i + 1], ['x', NULL])",
        "[{'d': DATE '2020-01-01' + (i % 99)::INTEGER, 'l': [NULL, 'it''s, [x]']}]",
        "union_value(k := i)",
        "array_value(i, NULL, i)",
    ] {
        assert_text(&duck, &random(expression));
    }
}

#[test]
fn children_of_nested_columns_are_read_right_whatever_form_duckdb_keeps_them_in() {
    let duck = Duck::open();
    duck.run("CREATE TABLE t AS SELECT i, 'text number ' || i AS s, [i, i + 1] AS l, {'i': i, 's': 's' || i} AS r FROM range(10000) t(i)");
    for query in [
        "SELECT {'s': s, 'l': l} FROM t WHERE i % 7 = 3",
        "SELECT [s, s || 'x', s] FROM t WHERE i % 5 < 2",
        "SELECT list_filter(l, lambda x: x % 2 = 0) FROM t WHERE i % 3 = 0",
        "SELECT {'const': 'c', 'r': r, 'n': NULL} FROM t WHERE i % 3 = 1",
        "SELECT list_sort([s, 'b', 'a']) FROM t",
        "SELECT l[1:1] FROM t",
        "SELECT list_value(r, {'i': 0, 's': 'z'}) FROM t WHERE i > 9000",
        "SELECT map([s], [l]) FROM t WHERE i % 11 = 0",
        "SELECT array_value(s, 'x') FROM t WHERE i % 2 = 0",
        "SELECT list(s ORDER BY s) FROM t GROUP BY i % 100",
        "SELECT r FROM t ORDER BY s LIMIT 100",
        "SELECT {'a': unnest(l), 's': s} FROM t WHERE i % 2 = 1",
        "SELECT union_value(s := s) FROM t WHERE i % 2 = 1",
        "SELECT a.r FROM t a JOIN t b ON a.i = b.i * 2",
        "SELECT 'c'::VARCHAR FROM t",
        "SELECT [1, 2] FROM t",
        "SELECT list_reverse(l) FROM t WHERE i % 2 = 1",
        "SELECT {'l': [r, r]} FROM t WHERE i % 3 = 0",
        "SELECT [[s], [s, NULL], NULL, []] FROM t WHERE i % 3 = 0",
        "SELECT list_zip(l, [s]) FROM t",
    ] {
        assert_text(&duck, query);
    }
}

#[test]
fn csv_tells_null_from_an_empty_string_and_quotes_what_needs_it() {
    let duck = Duck::open();
    let body = duck.encode("SELECT * FROM (VALUES (NULL, '', 'a,b'), ('x', 'say \"hi\"', E'two\\nlines'), (' pad', 'NULL', 'é')) t(a, \"b,c\", d)", Format::Csv);
    let expected = "a,\"b,c\",d\r\n,\"\",\"a,b\"\r\nx,\"say \"\"hi\"\"\",\"two\nlines\"\r\n\" pad\",NULL,é\r\n";
    assert_eq!(std::str::from_utf8(&body).expect("UTF-8"), expected);
}

#[test]
fn a_types_text_is_duckdbs_own() {
    let duck = Duck::open();
    duck.run("CREATE TYPE mood AS ENUM ('sad', 'o''k')");
    let mut expressions: Vec<String> = duck
        .column("SELECT column_name FROM (DESCRIBE FROM test_all_types())")
        .iter()
        .map(|c| format!("(SELECT \"{c}\" FROM test_all_types() LIMIT 1)"))
        .collect();
    expressions.extend(
        [
            "'sad'::mood",
            "['sad'::mood]",
            "'{}'::JSON",
            "{'a b': 1, 'Select': 2, 'é': 3, 'c': '1'::JSON}",
            "row(1, 'x')",
            "map {'a': [1]}",
            "union_value(\"end\" := 1)",
            "[1, 2]::INTEGER[2]",
            "1::BIGNUM",
            "TIME_NS '12:00:00'",
            "1::DECIMAL(4, 1)",
        ]
        .map(str::to_owned),
    );
    for expression in expressions {
        let mut rows = duck.prepare(&format!("SELECT {expression}")).result();
        // SAFETY: the result is valid.
        let described = unsafe { Columns::of_result(&mut rows.raw) }.describe();
        assert_eq!(described[0].1, duck.column(&format!("SELECT typeof({expression})"))[0], "{expression}");
    }
}

#[test]
fn the_keywords_are_those_of_this_duckdb() {
    let listed =
        Duck::open().column("SELECT DISTINCT keyword_name FROM duckdb_keywords() ORDER BY keyword_name COLLATE \"C\"");
    assert_eq!(listed, KEYWORDS);
}

#[test]
fn what_no_text_can_carry_is_an_error_that_says_so() {
    let duck = Duck::open();
    for (sql, format) in [
        ("SELECT {'a': 1}::VARIANT", Format::Csv),
        ("SELECT [{'a': 1}::VARIANT]", Format::Arrow),
        ("SELECT 'POINT (1 2)'::GEOMETRY", Format::Json),
    ] {
        let error = duck.try_encode(sql, format, Options::default()).expect_err("refused");
        assert!(error.message.contains("cast it to VARCHAR"), "{error}");
    }
}

#[test]
fn a_timestamp_at_the_end_of_time_is_the_same_with_and_without_a_zone() {
    let duck = Duck::open();
    let rows = csv(&duck.encode("SELECT timestamp_tz, timestamp FROM test_all_types() OFFSET 1", Format::Csv));
    assert_eq!(rows[0][0].as_deref(), Some("294247-01-10 04:00:54.775806+00"));
    assert_eq!(rows[0][1].as_deref(), Some("294247-01-10 04:00:54.775806"));
}

#[test]
fn floats_have_the_fewest_digits_that_read_back_as_the_same_number() {
    let duck = Duck::open();
    let floats = "SELECT x, x::DOUBLE FROM (SELECT ((random() - 0.5) * power(10, (i % 76) - 38))::FLOAT FROM range(50000) t(i)) t(x)";
    for row in csv(&duck.encode(floats, Format::Csv)) {
        let [Some(float), Some(double)] = &row[..] else { panic!("{row:?}") };
        let value: f32 = float.parse().expect("a number");
        assert_eq!(f64::from(value), double.parse::<f64>().expect("a number"));
        let digits =
            |text: &str| text.split('e').next().expect("digits").replace('.', "").trim_matches(['-', '0']).len();
        assert_eq!(digits(float), digits(&format!("{value:e}")), "{float}");
    }
    let powers = csv(&duck.encode("SELECT power(2, i) FROM range(-1000, 1000) t(i)", Format::Csv));
    for (row, exponent) in powers.iter().zip(-1000..) {
        assert_eq!(row[0].as_deref().map(str::parse), Some(Ok(2f64.powi(exponent))));
    }
}

#[test]
fn strings_inside_nested_values_are_quoted_as_duckdb_quotes_them() {
    let duck = Duck::open();
    duck.run(
        r#"CREATE TABLE t AS SELECT i, string_agg(['a', ' ', '''', '"', '\', ',', '{', '}', '[', ']', '(', ')', ':', '=', 'NULL', chr(10), 'é', ''][1 + (hash(i, j) % 18)::INTEGER], '') AS s
        FROM (SELECT i, unnest(range(1 + i % 4)) AS j FROM range(5000) t(i)) GROUP BY i"#,
    );
    for value in [
        "[s, NULL]",
        r"{'k''\ e': s, 'x': [s]}",
        "row(s, s)",
        "map([s], [s])",
        "union_value(u := s)",
        "[union_value(u := s)]",
        "{'u': union_value(u := [s])}",
        "[encode(s)]",
        "[to_json(s)]",
        "array_value(s, s)",
    ] {
        assert_text(&duck, &format!("SELECT {value} FROM t WHERE i % 3 <> 0"));
    }
}
