use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Decimal128Array, IntervalMonthDayNanoArray, RecordBatch, StringArray, StructArray,
    cast::AsArray,
    ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi},
    types::{Float64Type, Int32Type, Int64Type},
};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, Schema};
use arrow_select::concat::concat;
use libduckdb_sys as ffi;

use super::duck::{Duck, Rows};
use crate::format::{Format, Options};

fn read(body: &[u8]) -> Vec<RecordBatch> {
    let batches: Vec<RecordBatch> =
        StreamReader::try_new(body, None).expect("a stream").collect::<Result<_, _>>().expect("batches");
    for batch in &batches {
        for column in batch.columns() {
            column.to_data().validate_full().expect("valid buffers");
        }
    }
    batches
}

/// Column `i` of all batches as one array.
fn whole(batches: &[RecordBatch], i: usize) -> ArrayRef {
    let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(i).as_ref()).collect();
    concat(&arrays).expect("arrays of one type")
}

/// The result as DuckDB itself exports it.
fn duckdbs_own(duck: &Duck, rows: &mut Rows) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    // SAFETY: handles are valid; the exported structures are taken over once.
    unsafe {
        let mut options = std::ptr::null_mut();
        ffi::duckdb_connection_get_arrow_options(duck.connection, &mut options);
        let count = ffi::duckdb_column_count(&mut rows.raw);
        let mut types: Vec<_> = (0..count).map(|i| ffi::duckdb_column_logical_type(&mut rows.raw, i)).collect();
        let mut names: Vec<_> = (0..count).map(|i| ffi::duckdb_column_name(&mut rows.raw, i)).collect();
        let mut schema = FFI_ArrowSchema::empty();
        let error = ffi::duckdb_to_arrow_schema(
            options,
            types.as_mut_ptr(),
            names.as_mut_ptr(),
            count,
            (&raw mut schema).cast(),
        );
        assert!(error.is_null());
        rows.chunks(|chunk| {
            let mut array = FFI_ArrowArray::empty();
            let error = ffi::duckdb_data_chunk_to_arrow(options, chunk, (&raw mut array).cast());
            assert!(error.is_null());
            let data = from_ffi(array, &schema).expect("DuckDB's export");
            batches.push(RecordBatch::from(StructArray::from(data)));
        });
        types.iter_mut().for_each(|ty| ffi::duckdb_destroy_logical_type(ty));
        ffi::duckdb_destroy_arrow_options(&mut options);
    }
    batches
}

/// Ours must hold the same values as DuckDB's export, column by column. Returns how many columns were compared.
fn assert_same(duck: &Duck, sql: &str) -> usize {
    let ours = read(&duck.encode(sql, Format::Arrow));
    let theirs = duckdbs_own(duck, &mut duck.prepare(sql).result());
    let mut compared = 0;
    for i in 0..ours[0].num_columns() {
        let (ours, theirs) = (whole(&ours, i), whole(&theirs, i));
        // Field names inside nested types differ (`l`, `item`); a cast to our type evens them out and changes no value.
        if let Ok(theirs) = arrow_cast::cast(&theirs, ours.data_type())
            && theirs.data_type() == ours.data_type()
        {
            assert_eq!(&ours, &theirs, "column {i} of {sql}");
            compared += 1;
        }
    }
    compared
}

#[test]
fn columns_hold_what_duckdbs_own_export_holds() {
    let duck = Duck::open();
    let random = "SELECT i, i % 2 = 0 AS b, (i % 100)::TINYINT AS t, i::FLOAT / 3 AS f, i / 7 AS d, (i % 999 / 3)::DECIMAL(4, 1) AS d2, (i % 1000 * 1000 / 3)::DECIMAL(9, 3) AS d4, (i / 3)::DECIMAL(18, 3) AS d8,
        (i / 3)::DECIMAL(38, 3) AS d16, i::HUGEINT * 1000000007 AS h, 'short' || i % 10 AS s, 'a string of more than twelve bytes ' || i AS l, if(i % 3 = 0, NULL, 'x' || i) AS n,
        if(i % 5 = 0, NULL, i) AS ni, DATE '2000-01-01' + i::INTEGER AS dt, TIMESTAMP '2000-01-01' + to_seconds(i) AS ts, TIME '00:00:00' + to_seconds(i % 86400) AS tm,
        encode('blob' || i) AS bl, if(i % 4 = 0, NULL, i % 3 = 0) AS nb, uuid_extract_version(uuid()) AS u, [i, NULL, i + 1] AS li, CASE WHEN i % 3 = 0 THEN NULL WHEN i % 3 = 1 THEN [] ELSE ['x' || i, NULL, 'yy'] END AS ls,
        {'a': i, 'b': if(i % 2 = 0, NULL, 'b' || i)} AS st, if(i % 2 = 0, NULL, {'a': [i], 'b': 'x'}) AS sn, [[i], [], NULL, [i, i]] AS ll
        FROM range(200000) t(i)";
    assert_eq!(assert_same(&duck, random), 25);
    let filtered = format!("SELECT * FROM ({random}) WHERE i % 7 IN (1, 2, 5)");
    assert_eq!(assert_same(&duck, &filtered), 25);
    let types = "SELECT bool, tinyint, smallint, int, bigint, utinyint, usmallint, uint, ubigint, date, time, timestamp, timestamp_s, timestamp_ms, timestamp_ns, float, double, dec_4_1, dec_9_4, dec_18_6, dec38_10,
        varchar, blob, int_array, double_array, date_array, timestamp_array, varchar_array, nested_int_array, struct, struct_of_arrays, array_of_structs FROM test_all_types()";
    assert_eq!(assert_same(&duck, types), 32);
}

fn first(duck: &Duck, expression: &str) -> ArrayRef {
    read(&duck.encode(&format!("SELECT {expression} AS x"), Format::Arrow))[0].column(0).clone()
}

#[test]
fn types_that_arrow_lacks_are_text() {
    let duck = Duck::open();
    for (expression, expected) in [
        ("'00112233-4455-6677-8899-AABBCCDDEEFF'::UUID", "00112233-4455-6677-8899-aabbccddeeff"),
        ("'0101'::BIT", "0101"),
        ("TIMETZ '12:00:00+01:30'", "12:00:00+01:30"),
        ("(-123456789012345678901234567890)::BIGNUM", "-123456789012345678901234567890"),
    ] {
        let array = first(&duck, expression);
        assert_eq!(array.as_any().downcast_ref::<StringArray>().expect("text").value(0), expected);
    }
}

#[test]
fn numbers_of_128_bits_are_decimals_or_an_error() {
    let duck = Duck::open();
    let array = first(&duck, "(-99999999999999999999999999999999999999)::HUGEINT");
    assert_eq!(
        array.as_any().downcast_ref::<Decimal128Array>().expect("a decimal").value_as_string(0),
        "-99999999999999999999999999999999999999"
    );
    for sql in [
        "SELECT 100000000000000000000000000000000000000::HUGEINT",
        "SELECT 340282366920938463463374607431768211455::UHUGEINT",
        "SELECT to_years(1000) - to_microseconds(9223372036854775807)",
    ] {
        assert!(duck.try_encode(sql, Format::Arrow, Options::default()).is_err(), "{sql}");
    }
}

#[test]
fn intervals_enums_maps_arrays_and_unions_arrive_whole() {
    let duck = Duck::open();
    let interval = first(&duck, "INTERVAL '14 months -3 days 00:00:01.5'");
    let interval = interval.as_any().downcast_ref::<IntervalMonthDayNanoArray>().expect("an interval").value(0);
    assert_eq!((interval.months, interval.days, interval.nanoseconds), (14, -3, 1_500_000_000));

    let sql = "SELECT if(i % 4 = 3, NULL, ['a', 'b', 'c'][1 + i % 3])::ENUM('a', 'b', 'c') AS e, [['c'::ENUM('c', 'd')]] AS n, a,
        if(i % 3 = 0, NULL, map(['k' || i], [i])) AS m, if(i % 3 = 0, union_value(n := i), union_value(s := 'x' || i)::UNION(n BIGINT, s VARCHAR)) AS u
        FROM range(5000) t(i) LEFT JOIN (SELECT i AS k, [i, 1]::INTEGER[2] AS a FROM range(1, 5000, 2) s(i)) ON k = i ORDER BY i";
    let sql = sql.replace("union_value(n := i),", "union_value(n := i)::UNION(n BIGINT, s VARCHAR),");
    let batches = read(&duck.encode(&sql, Format::Arrow));
    let text = |i: usize| {
        let array = whole(&batches, i);
        let format = arrow_cast::display::FormatOptions::default().with_null("NULL");
        let formatter = arrow_cast::display::ArrayFormatter::try_new(&array, &format).expect("a formatter");
        (0..6).map(|row| formatter.value(row).to_string()).collect::<Vec<_>>()
    };
    assert_eq!(text(0), ["a", "b", "c", "NULL", "b", "c"]);
    assert_eq!(text(1), ["[[c]]"; 6]);
    assert_eq!(text(2), ["NULL", "[1, 1]", "NULL", "[3, 1]", "NULL", "[5, 1]"]);
    assert_eq!(text(3), ["NULL", "{k1: 1}", "{k2: 2}", "NULL", "{k4: 4}", "{k5: 5}"]);
    assert_eq!(text(4), ["{n=0}", "{s=x1}", "{s=x2}", "{n=3}", "{s=x4}", "{s=x5}"]);
}

#[test]
fn each_field_says_its_duckdb_type() {
    let duck = Duck::open();
    let body = duck.encode("SELECT 1::HUGEINT AS h, uuid() AS u, {'a': [1]} AS s, 1 AS h", Format::Arrow);
    let schema: Arc<Schema> = StreamReader::try_new(&body[..], None).expect("a stream").schema();
    let told: Vec<_> =
        schema.fields().iter().map(|f| (f.name().as_str(), f.metadata()["tarn.duckdb_type"].as_str())).collect();
    assert_eq!(told, [("h", "HUGEINT"), ("u", "UUID"), ("s", "STRUCT(a INTEGER[])"), ("h_1", "INTEGER")]);
}

#[test]
fn a_large_result_leaves_in_large_batches_whose_buffers_are_not_gathered() {
    let duck = Duck::open();
    let pieces = duck
        .prepare("SELECT i, i * 2 AS j, i::DOUBLE AS d FROM range(1000000) t(i)")
        .result()
        .pieces(Format::Arrow, Options::default())
        .expect("encodes");
    let batches = read(&pieces.concat());
    assert!(
        batches.len() <= 10 && pieces.len() <= batches.len() * 4 + 2,
        "{} batches, {} pieces",
        batches.len(),
        pieces.len()
    );
    let (i, d) = (whole(&batches, 0), whole(&batches, 2));
    let (i, d) = (i.as_primitive::<Int64Type>(), d.as_primitive::<Float64Type>());
    assert!(i.len() == 1_000_000 && i.values().iter().zip(0..).all(|(a, b)| *a == b) && d.value(999_999) == 999_999.0);
}

#[test]
fn a_small_result_is_one_piece_behind_its_head_and_no_rows_are_a_whole_stream() {
    let duck = Duck::open();
    let pieces = duck.prepare("SELECT 1 AS x").result().pieces(Format::Arrow, Options::default()).expect("encodes");
    assert_eq!(pieces.len(), 2);
    assert_eq!(read(&pieces.concat())[0].column(0).as_primitive::<Int32Type>().value(0), 1);
    let empty = duck.encode("SELECT 1 AS x, 'a'::ENUM('a') AS e WHERE false", Format::Arrow);
    let reader = StreamReader::try_new(&empty[..], None).expect("a stream");
    assert!(matches!(reader.schema().field(1).data_type(), DataType::Dictionary(..)));
    assert_eq!(reader.count(), 0);
}

#[test]
fn a_geometry_is_its_wkb() {
    let duck = Duck::open();
    let batches = read(&duck.encode(
        "SELECT 'LINESTRING (1 2, 3 4)'::GEOMETRY AS g, ST_AsWKB('LINESTRING (1 2, 3 4)'::GEOMETRY) AS b",
        Format::Arrow,
    ));
    assert_eq!(batches[0].column(0), batches[0].column(1));
    assert_eq!(batches[0].schema().field(0).metadata()["ARROW:extension:name"], "geoarrow.wkb");
}
