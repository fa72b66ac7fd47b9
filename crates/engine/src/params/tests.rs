use std::ffi::CStr;

use libduckdb_sys as ffi;
use serde_json::{Value as Json, json};

use super::{ParamError, Params, bind};
use crate::format::{Format, Options, tests::duck::Duck};

/// The rows of `sql` with `params`, as JSON.
fn query(duck: &Duck, sql: &str, params: Json) -> Result<Json, ParamError> {
    let statement = duck.prepare(sql);
    // SAFETY: handles are valid and of one connection.
    unsafe { bind(duck.connection, statement.raw, super::Set::Json(&Params::from_json(Some(params))?))? };
    let pieces = statement.result().pieces(Format::Json, Options::default()).expect("encodes");
    let mut parsed: Json = serde_json::from_slice(&pieces.concat()).expect("valid JSON");
    Ok(parsed["rows"].take())
}

#[test]
fn plain_json_has_plain_types() {
    let duck = Duck::open();
    for (value, ty, expected) in [
        (json!(5), "BIGINT", json!(5)),
        (json!(-9223372036854775808i64), "BIGINT", json!("-9223372036854775808")),
        (json!(18446744073709551615u64), "HUGEINT", json!("18446744073709551615")),
        (json!(1.5), "DOUBLE", json!(1.5)),
        (json!("it's; --"), "VARCHAR", json!("it's; --")),
        (json!(true), "BOOLEAN", json!(true)),
        (json!([1, null, 3]), "BIGINT[]", json!([1, null, 3])),
        (json!([1, 2.5]), "DOUBLE[]", json!([1.0, 2.5])),
        (json!([["a"], [], null]), "VARCHAR[][]", json!([["a"], [], null])),
    ] {
        let rows = query(&duck, "SELECT typeof($1), $1", json!([value])).expect("binds");
        assert_eq!(rows, json!([[ty, expected]]), "{value}");
    }
    assert_eq!(query(&duck, "SELECT ? IS NULL, ?", json!([null, "x"])).expect("binds"), json!([[true, "x"]]));
}

#[test]
fn a_typed_value_comes_back_as_it_went_in_for_every_type() {
    let duck = Duck::open();
    duck.run("CREATE TYPE mood AS ENUM ('sad', 'ok')");
    for (ty, value) in [
        ("TINYINT", json!(-128)),
        ("UBIGINT", json!("18446744073709551615")),
        ("HUGEINT", json!("-170141183460469231731687303715884105728")),
        ("UHUGEINT", json!("340282366920938463463374607431768211455")),
        ("BIGNUM", json!("-123456789012345678901234567890123456789012345678901")),
        ("BIGNUM", json!("98765432109876543210987654321")),
        ("FLOAT", json!(0.1)),
        ("DOUBLE", json!("NaN")),
        ("DOUBLE", json!("-Infinity")),
        ("DECIMAL(18,3)", json!("1.500")),
        ("DECIMAL(38,10)", json!("-1234567890123456789012345678.0123456789")),
        ("DECIMAL(4,4)", json!("0.5000")),
        ("VARCHAR", json!("é\u{1}")),
        ("BLOB", json!("AP9hYg==")),
        ("BIT", json!("0101100")),
        ("UUID", json!("00112233-4455-6677-8899-aabbccddeeff")),
        ("DATE", json!("2024-01-31")),
        ("DATE", json!("-infinity")),
        ("DATE", json!("+010000-01-01")),
        ("DATE", json!("+5881580-07-10")),
        ("DATE", json!("-000043-03-15")),
        ("DATE", json!("-5877641-06-25")),
        ("TIMESTAMP", json!("+294247-01-10T04:00:54.775806")),
        ("TIMESTAMP", json!("-290308-12-22T00:00:00")),
        ("TIMESTAMP_S", json!("+012345-06-07T08:09:10")),
        ("TIMESTAMP_MS", json!("+012345-06-07T08:09:10.5")),
        ("TIMESTAMP WITH TIME ZONE", json!("+012345-06-07T08:09:10Z")),
        ("TIMESTAMP WITH TIME ZONE", json!("-000043-03-15T08:09:10Z")),
        ("STRUCT(d DATE[])", json!({"d": ["+010000-01-01"]})),
        ("TIME", json!("12:34:56.7")),
        ("TIME_NS", json!("12:34:56.000000001")),
        ("TIMETZ", json!("12:34:56+01:30")),
        ("TIMESTAMP", json!("2024-01-31T12:00:00.123456")),
        ("TIMESTAMP_S", json!("2024-01-31T12:00:00")),
        ("TIMESTAMP_MS", json!("2024-01-31T12:00:00.25")),
        ("TIMESTAMP_NS", json!("2024-01-31T12:00:00.000000001")),
        ("TIMESTAMP WITH TIME ZONE", json!("2024-01-31T10:00:00Z")),
        ("INTERVAL", json!("1 year 2 months -3 days 04:05:06.5")),
        ("mood", json!("ok")),
        ("ENUM('a', 'b')", json!("b")),
        ("JSON", json!("{\"a\": 1}")),
        ("INTEGER[]", json!([1, null, 3])),
        ("VARCHAR[][]", json!([["a,b", "NULL"], [], null])),
        ("INTEGER[2]", json!([1, 2])),
        ("BLOB[]", json!(["AP8="])),
        ("STRUCT(a INTEGER, \"b c\" DECIMAL(4,1)[])", json!({"a": 1, "b c": ["1.5", null]})),
        ("STRUCT(d DATE, s STRUCT(x TIMESTAMP))", json!({"d": "2020-01-01", "s": {"x": null}})),
        ("MAP(VARCHAR, INTEGER[])", json!([{"key": "k", "value": [1]}, {"key": "l", "value": null}])),
        ("UNION(n INTEGER, s VARCHAR)", json!({"tag": "s", "value": "x"})),
        ("UNION(n INTEGER, s VARCHAR)", json!({"tag": "n", "value": 7})),
        ("STRUCT(u UNION(n INTEGER, l INTEGER[]))[]", json!([{"u": {"tag": "l", "value": [1, 2]}}, null])),
        ("INTEGER", json!(null)),
        ("mood[]", json!(["sad", null])),
    ] {
        let rows = query(&duck, "SELECT $v", json!({"v": {"type": ty, "value": value}}))
            .unwrap_or_else(|e| panic!("{ty} {value}: {e}"));
        assert_eq!(rows, json!([[value]]), "{ty}");
        // A JSON value is bound as its text.
        if !value.is_null() && ty != "JSON" {
            let told = query(
                &duck,
                &format!("SELECT typeof($v) = typeof(NULL::{ty})"),
                json!({"v": {"type": ty, "value": value}}),
            )
            .expect("binds");
            assert_eq!(told, json!([[true]]), "{ty}");
        }
    }
}

#[test]
fn a_wrong_count_or_name_says_so() {
    let duck = Duck::open();
    for (sql, params, expected) in [
        ("SELECT ?", json!([]), "takes 1 parameters and `params` has 0"),
        ("SELECT ?", json!([1, 2]), "takes 1 parameters and `params` has 2"),
        ("SELECT 1", json!([1]), "takes 0 parameters and `params` has 1"),
        ("SELECT $a", json!([1]), "send `params` as an object"),
        ("SELECT $a", json!({"b": 1}), "has no parameter `$b`"),
        ("SELECT $a + $b", json!({"b": 1}), "has no value for `$a`"),
        ("SELECT $a", json!({"a": 1, "A": 2}), "two values for `$a`"),
        ("SELECT ?", json!(null), "the request has no `params`"),
        ("SELECT ?", json!(7), "is an array"),
        ("SELECT ?", json!([{"a": 1}]), "an object is"),
        ("SELECT ?", json!([[1, "x"]]), "different types"),
        ("SELECT ?", json!([[9007199254740993i64, 0.5]]), "too large for a DOUBLE"),
        ("SELECT ?", json!([{"type": "INTEGER", "value": "x"}]), "Could not convert string 'x' to INT32"),
        ("SELECT ?", json!([{"type": "TINYINT", "value": 300}]), "parameter `$1`"),
        ("SELECT ?", json!([{"type": "INTEGER) , (SELECT 1", "value": 1}]), "is not a DuckDB type"),
        ("SELECT ?", json!([{"type": "NOSUCH", "value": 1}]), "NOSUCH"),
        ("SELECT ?", json!([{"type": "STRUCT(a INTEGER)", "value": {"b": 1}}]), "no field `b`"),
        ("SELECT ?", json!([{"type": "STRUCT(a INTEGER)", "value": {}}]), "`a` has no value"),
        ("SELECT ?", json!([{"type": "INTEGER[]", "value": 1}]), "is an array"),
        ("SELECT ?", json!([{"type": "UNION(n INTEGER)", "value": {"tag": "x", "value": 1}}]), "one of its tags"),
        ("SELECT ?", json!([{"type": "STRUCT(INTEGER, VARCHAR)", "value": [1, "x"]}]), "syntax error"),
        ("SELECT ?", json!([{"type": "VARIANT", "value": "x"}]), "VARIANT"),
    ] {
        let error = query(&duck, sql, params.clone()).expect_err(sql);
        assert!(error.message.contains(expected), "{sql} {params}: {error}");
    }
}

#[test]
fn named_and_numbered_parameters_bind_by_name_and_number() {
    let duck = Duck::open();
    assert_eq!(query(&duck, "SELECT $2 - $1, $2", json!([1, 5])).expect("binds"), json!([[4, 5]]));
    assert_eq!(query(&duck, "SELECT $B || $a || $b", json!({"a": "x", "b": "y"})).expect("binds"), json!([["yxy"]]));
}

#[test]
fn a_value_casts_inside_the_transaction_that_made_its_type() {
    let duck = Duck::open();
    duck.run("BEGIN");
    duck.run("CREATE TYPE colour AS ENUM ('red')");
    assert_eq!(query(&duck, "SELECT ?", json!([{"type": "colour", "value": "red"}])).expect("binds"), json!([["red"]]));
    duck.run("COMMIT");
}

#[test]
fn this_is_the_duckdb_that_the_types_were_checked_against() {
    // SAFETY: a static string.
    let version = unsafe { CStr::from_ptr(ffi::duckdb_library_version()) };
    assert_eq!(version.to_str(), Ok("v1.5.5"));
}
