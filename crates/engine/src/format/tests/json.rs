use serde_json::json;

use super::duck::Duck;
use crate::format::{Format, Options};

#[test]
fn every_type_has_its_json() {
    let duck = Duck::open();
    for (expression, expected) in [
        ("NULL", json!(null)),
        ("true", json!(true)),
        ("9007199254740991::BIGINT", json!(9007199254740991i64)),
        ("9007199254740992::BIGINT", json!("9007199254740992")),
        ("-9007199254740991::BIGINT", json!(-9007199254740991i64)),
        ("-9007199254740992::BIGINT", json!("-9007199254740992")),
        ("18446744073709551615::UBIGINT", json!("18446744073709551615")),
        ("(-170141183460469231731687303715884105728)::HUGEINT", json!("-170141183460469231731687303715884105728")),
        ("7::HUGEINT", json!(7)),
        ("340282366920938463463374607431768211455::UHUGEINT", json!("340282366920938463463374607431768211455")),
        ("255::UTINYINT", json!(255)),
        ("(-128)::TINYINT", json!(-128)),
        ("12345678901234567890123::BIGNUM", json!("12345678901234567890123")),
        ("1.5::DOUBLE", json!(1.5)),
        ("0.1::FLOAT", json!(0.1)),
        ("1e300::DOUBLE", json!(1e300)),
        ("'nan'::DOUBLE", json!("NaN")),
        ("'inf'::FLOAT", json!("Infinity")),
        ("'-inf'::DOUBLE", json!("-Infinity")),
        ("1.50::DECIMAL(18,3)", json!("1.500")),
        ("-0.5::DECIMAL(2,2)", json!("-0.50")),
        ("99999999999999999999999999999999999.999::DECIMAL(38,3)", json!("99999999999999999999999999999999999.999")),
        ("E'a\"b\\\\c\\n\\x01é😀'", json!("a\"b\\c\n\u{1}é😀")),
        ("'\\x00\\xFFab'::BLOB", json!("AP9hYg==")),
        ("'0101'::BIT", json!("0101")),
        ("'00112233-4455-6677-8899-AABBCCDDEEFF'::UUID", json!("00112233-4455-6677-8899-aabbccddeeff")),
        ("DATE '2024-01-31'", json!("2024-01-31")),
        ("DATE '0001-01-01' - 1", json!("0000-12-31")),
        ("DATE '0001-01-01' - 800", json!("-000002-10-24")),
        ("DATE '12345-06-07'", json!("+012345-06-07")),
        ("'-infinity'::DATE", json!("-infinity")),
        ("TIME '12:34:56.7'", json!("12:34:56.7")),
        ("TIME_NS '12:34:56.000000001'", json!("12:34:56.000000001")),
        ("TIMETZ '12:34:56+01'", json!("12:34:56+01:00")),
        ("TIMESTAMP '2024-01-31 12:00:00.123456'", json!("2024-01-31T12:00:00.123456")),
        ("TIMESTAMP_S '2024-01-31 12:00:00'", json!("2024-01-31T12:00:00")),
        ("TIMESTAMP_MS '1969-12-31 23:59:59.999'", json!("1969-12-31T23:59:59.999")),
        ("TIMESTAMP_NS '2024-01-31 12:00:00.000000001'", json!("2024-01-31T12:00:00.000000001")),
        ("TIMESTAMPTZ '2024-01-31 12:00:00+02'", json!("2024-01-31T10:00:00Z")),
        ("'infinity'::TIMESTAMPTZ", json!("infinity")),
        ("INTERVAL '1 year 2 months -3 days 04:05:06.5'", json!("1 year 2 months -3 days 04:05:06.5")),
        ("'b'::ENUM('a', 'b')", json!("b")),
        ("[1, NULL, 3]", json!([1, null, 3])),
        ("[]::INTEGER[]", json!([])),
        ("[1, 2]::INTEGER[2]", json!([1, 2])),
        ("{'a': 1, 'b c': [NULL, 'x']}", json!({"a": 1, "b c": [null, "x"]})),
        ("row(1, 'x')", json!([1, "x"])),
        ("map {'k': 1, 'l': NULL}", json!([{"key": "k", "value": 1}, {"key": "l", "value": null}])),
        ("union_value(n := 5)", json!({"tag": "n", "value": 5})),
        ("'{\"a\": 1}'::JSON", json!("{\"a\": 1}")),
    ] {
        assert_eq!(duck.json(expression), expected, "{expression}");
    }
}

#[test]
fn the_object_has_columns_rows_and_counts() {
    let body = Duck::open().encode("SELECT i, i::VARCHAR AS \"a\"\"b\" FROM range(3) t(i) WHERE i <> 1", Format::Json);
    let expected = r#"{"columns":[{"name":"i","type":"BIGINT"},{"name":"a\"b","type":"VARCHAR"}],"rows":[[0,"0"],[2,"2"]],"row_count":2,"truncated":false}"#;
    assert_eq!(std::str::from_utf8(&body).expect("UTF-8"), expected);
}

#[test]
fn no_rows_are_a_whole_result() {
    let duck = Duck::open();
    assert_eq!(
        duck.encode("SELECT 1 AS x WHERE false", Format::Json),
        br#"{"columns":[{"name":"x","type":"INTEGER"}],"rows":[],"row_count":0,"truncated":false}"#
    );
    assert_eq!(duck.encode("SELECT 1 AS x WHERE false", Format::Csv), b"x\r\n");
    assert_eq!(duck.encode("SELECT 1 AS x WHERE false", Format::Ndjson), b"");
}

#[test]
fn ndjson_keeps_columns_of_the_same_name_apart() {
    let body = Duck::open().encode("SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a", Format::Ndjson);
    assert_eq!(body, b"{\"a\":1,\"a_2\":2,\"a_1\":3,\"a_3\":4}\n");
}

#[test]
fn max_rows_cuts_and_says_so_only_when_rows_are_left_out() {
    let duck = Duck::open();
    let rows = |n: u64, most: u64| {
        let body = duck
            .try_encode(&format!("SELECT i FROM range({n}) t(i)"), Format::Json, Options { max_rows: Some(most) })
            .expect("encodes");
        let parsed: serde_json::Value = serde_json::from_slice(&body).expect("valid JSON");
        (
            parsed["rows"].as_array().expect("rows").len() as u64,
            parsed["row_count"].as_u64().expect("a count"),
            parsed["truncated"] == json!(true),
        )
    };
    assert_eq!(rows(10_000, 5_000), (5_000, 5_000, true));
    assert_eq!(rows(5_000, 5_000), (5_000, 5_000, false));
    assert_eq!(rows(4_096, 2_048), (2_048, 2_048, true));
    assert_eq!(rows(10, 0), (0, 0, true));
}

#[test]
fn a_large_result_leaves_in_pieces_of_about_a_megabyte() {
    let duck = Duck::open();
    let pieces = duck
        .prepare("SELECT i, 'some text ' || i FROM range(500000) t(i)")
        .result()
        .pieces(Format::Ndjson, Options::default())
        .expect("encodes");
    assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() < 1_200_000));
    let body: Vec<u8> = pieces.concat();
    assert!(body.ends_with(b"\"some text 499999\"}\n"), "{}", String::from_utf8_lossy(&body[body.len() - 60..]));
}

#[test]
fn an_accept_header_picks_the_heaviest_format_that_we_have() {
    for (accept, expected) in [
        ("", Some(Format::Json)),
        ("*/*", Some(Format::Json)),
        ("text/html, text/csv;q=0.5, application/vnd.apache.arrow.stream;q=0.9", Some(Format::Arrow)),
        ("application/x-ndjson", Some(Format::Ndjson)),
        ("Application/JSON;q=0", None),
        ("image/png", None),
    ] {
        assert_eq!(Format::from_accept(accept), expected, "{accept}");
    }
}
