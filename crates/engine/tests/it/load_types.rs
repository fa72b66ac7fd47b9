//! Types through a load: what comes out of a mart goes into another the same, and what Arrow has beside is taken, or refused by name.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Decimal32Array, Decimal64Array, Decimal128Array, Decimal256Array,
    DictionaryArray, DurationMillisecondArray, FixedSizeBinaryArray, FixedSizeListArray, Float16Array, Int32Array,
    IntervalDayTimeArray, LargeListArray, LargeStringArray, ListArray, ListViewArray, MapArray, NullArray, RecordBatch,
    RunArray, StringArray, StringViewArray, StructArray, Time32SecondArray, Time64MicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, UnionArray,
    types::{Int8Type, Int32Type, IntervalDayTime},
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer, i256};
use arrow_schema::{DataType, Field, Schema, UnionFields};
use serde_json::{Value, json};

use crate::{
    loads::{ARROW, batch, stream},
    support::{Got, Served},
};

fn replace() -> Value {
    json!({"table": "t", "if_missing": "create", "if_exists": "replace"})
}

async fn load(served: &Served, column: ArrayRef) -> Got {
    served.load(replace(), ARROW, stream(&[batch(vec![("x", column)])])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_out_of_a_mart_goes_into_another_the_same() {
    let served = Served::start().await;
    served
        .query(
            "create table a as select * exclude (large_enum, hugeint, uhugeint, geometry) from test_all_types();
             insert into a select * exclude (large_enum, hugeint, uhugeint, geometry) from test_all_types()",
        )
        .await;
    let got = served.ask(json!({"sql": "from a"}), &[("accept", ARROW)]).await;
    assert_eq!(got.status, 200, "{got:?}");
    let got = served.load(replace(), ARROW, got.body).await;
    assert_eq!(got.json(), json!({"rows": 6, "created": true}));
    let columns = served.rows("select column_name, data_type from duckdb_columns() where table_name = 'a'").await;
    let mut same_types = 0;
    for column in columns.as_array().expect("rows") {
        let name = column[0].as_str().expect("a name");
        let ask = |table: &str| format!("select \"{name}\"::varchar from {table} order by rowid");
        assert_eq!(served.rows(&ask("t")).await, served.rows(&ask("a")).await, "{column}");
        let ty = format!("select data_type from duckdb_columns() where table_name = 't' and column_name = '{name}'");
        same_types += usize::from(served.rows(&ty).await[0][0] == column[1]);
    }
    assert!(same_types + 3 >= columns.as_array().expect("rows").len(), "{same_types} of {columns}");
    served.query("create or replace table a as select 7::hugeint h, uuid() u, '1'::bit b, '{}'::json j, timetz '12:00:00+01' z, 'a'::enum('a', 'it''s') e").await;
    let got = served.ask(json!({"sql": "from a"}), &[("accept", ARROW)]).await;
    assert_eq!(served.load(replace(), ARROW, got.body).await.status, 200);
    let types = |table: &str| {
        format!("select list(data_type order by column_index) from duckdb_columns() where table_name = '{table}'")
    };
    assert_eq!(served.rows(&types("t")).await, served.rows(&types("a")).await);
    assert_eq!(served.rows("from t").await, served.rows("from a").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_arrow_is_taken() {
    let served = Served::start().await;
    let ints = |values: &[Option<i32>]| Arc::new(Int32Array::from(values.to_vec())) as ArrayRef;
    let item = |ty: DataType| Arc::new(Field::new("item", ty, true));
    let words = Arc::new(StringArray::from(vec![Some("a"), None, Some("a long enough text to be apart")])) as ArrayRef;
    let dictionary = DictionaryArray::<Int8Type>::try_new(vec![Some(2), Some(0), None].into(), words.clone());
    let dictionary: ArrayRef = Arc::new(dictionary.expect("valid"));
    let runs = RunArray::<Int32Type>::try_new(&vec![2, 3].into(), &StringArray::from(vec![Some("r"), None]));
    let views = ListViewArray::try_new(
        item(DataType::Int32),
        vec![3, 0, 2].into(),
        vec![1, 2, 0].into(),
        ints(&[Some(1), Some(2), None, Some(4)]),
        None,
    );
    let lists = ListArray::try_new(
        item(dictionary.data_type().clone()),
        OffsetBuffer::new(vec![0, 2, 2, 3].into()),
        dictionary.clone(),
        Some(vec![true, false, true].into()),
    );
    let large = LargeListArray::try_new(
        item(DataType::Utf8),
        OffsetBuffer::new(vec![0i64, 1, 1, 3].into()),
        words.clone(),
        None,
    );
    let fixed = FixedSizeListArray::try_new(
        item(DataType::Int32),
        2,
        ints(&[Some(1), None, Some(3), Some(4), None, None]),
        Some(vec![true, true, false].into()),
    );
    let structs = StructArray::try_new(
        vec![Field::new("w", dictionary.data_type().clone(), true), Field::new("n", DataType::Int32, true)].into(),
        vec![dictionary.clone(), ints(&[Some(1), None, Some(3)])],
        Some(vec![true, false, true].into()),
    );
    let entries = StructArray::try_new(
        vec![Field::new("keys", DataType::Utf8, false), Field::new("values", DataType::Int32, true)].into(),
        vec![Arc::new(StringArray::from(vec!["k", "l", "m"])), ints(&[Some(1), None, Some(3)])],
        None,
    )
    .expect("valid");
    let entry = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let map = MapArray::try_new(entry, OffsetBuffer::new(vec![0, 2, 2, 3].into()), entries, None, false);
    let members =
        UnionFields::try_new([0, 1], [Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8, true)]);
    let members = [ints(&[Some(1), None, None]), words.clone()]
        .to_vec()
        .into_iter()
        .collect::<Vec<_>>()
        .into_iter()
        .zip(members.expect("valid").iter().map(|(_, f)| f.clone()).collect::<Vec<_>>())
        .collect::<Vec<_>>();
    let union = UnionArray::try_new(
        (0..).zip(members.iter().map(|(_, field)| field.clone())).collect(),
        ScalarBuffer::from(vec![0i8, 1, 1]),
        None,
        members.iter().map(|(array, _)| array.clone()).collect(),
    );
    let cases: Vec<(ArrayRef, &str, Value)> = vec![
        (dictionary, "VARCHAR", json!(["a long enough text to be apart", "a", null])),
        (Arc::new(runs.expect("valid")), "VARCHAR", json!(["r", "r", null])),
        (Arc::new(views.expect("valid")), "INTEGER[]", json!(["[4]", "[1, 2]", "[]"])),
        (Arc::new(lists.expect("valid")), "VARCHAR[]", json!(["[a long enough text to be apart, a]", null, "[NULL]"])),
        (Arc::new(large.expect("valid")), "VARCHAR[]", json!(["[a]", "[]", "[NULL, a long enough text to be apart]"])),
        (Arc::new(fixed.expect("valid")), "INTEGER[2]", json!(["[1, NULL]", "[3, 4]", null])),
        (
            Arc::new(structs.expect("valid")),
            "STRUCT(w VARCHAR, n INTEGER)",
            json!(["{'w': a long enough text to be apart, 'n': 1}", null, "{'w': NULL, 'n': 3}"]),
        ),
        (Arc::new(map.expect("valid")), "MAP(VARCHAR, INTEGER)", json!(["{k=1, l=NULL}", "{}", "{m=3}"])),
        (
            Arc::new(union.expect("valid")),
            "UNION(i INTEGER, s VARCHAR)",
            json!(["1", null, "a long enough text to be apart"]),
        ),
        (Arc::new(LargeStringArray::from(vec![Some("x"), None])), "VARCHAR", json!(["x", null])),
        (
            Arc::new(StringViewArray::from(vec![Some("short"), None, Some("longer than twelve bytes")])),
            "VARCHAR",
            json!(["short", null, "longer than twelve bytes"]),
        ),
        (Arc::new(BinaryViewArray::from(vec![Some(&b"\xff"[..]), None])), "BLOB", json!(["\\xFF", null])),
        (
            Arc::new(FixedSizeBinaryArray::try_from_iter([b"ab", b"c\0"].into_iter()).expect("valid")),
            "BLOB",
            json!(["ab", "c\\x00"]),
        ),
        (Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])), "BOOLEAN", json!(["true", null, "false"])),
        (Arc::new(NullArray::new(2)), "INTEGER", json!([null, null])),
        (Arc::new(Float16Array::from_iter_values([half::f16::from_f32(1.5)])), "FLOAT", json!(["1.5"])),
        (
            Arc::new(Decimal32Array::from(vec![Some(-125), None]).with_precision_and_scale(5, 2).expect("valid")),
            "DECIMAL(5,2)",
            json!(["-1.25", null]),
        ),
        (
            Arc::new(Decimal64Array::from(vec![125]).with_precision_and_scale(18, 3).expect("valid")),
            "DECIMAL(18,3)",
            json!(["0.125"]),
        ),
        (
            Arc::new(Decimal128Array::from(vec![7]).with_precision_and_scale(2, 0).expect("valid")),
            "DECIMAL(2,0)",
            json!(["7"]),
        ),
        (
            Arc::new(
                Decimal256Array::from(vec![i256::from_i128(10).wrapping_pow(30)])
                    .with_precision_and_scale(60, 2)
                    .expect("valid"),
            ),
            "DECIMAL(38,2)",
            json!(["10000000000000000000000000000.00"]),
        ),
        (
            Arc::new(IntervalDayTimeArray::from(vec![IntervalDayTime::new(3, 1_500)])),
            "INTERVAL",
            json!(["3 days 00:00:01.5"]),
        ),
        (Arc::new(DurationMillisecondArray::from(vec![Some(90_000), None])), "INTERVAL", json!(["00:01:30", null])),
        (Arc::new(Time32SecondArray::from(vec![86_399])), "TIME", json!(["23:59:59"])),
        (Arc::new(TimestampNanosecondArray::from(vec![1])), "TIMESTAMP_NS", json!(["1970-01-01 00:00:00.000000001"])),
        (
            Arc::new(TimestampMillisecondArray::from(vec![1_500]).with_timezone("+02:00")),
            "TIMESTAMP WITH TIME ZONE",
            json!(["1970-01-01 00:00:01.5+00"]),
        ),
    ];
    for (column, ty, values) in cases {
        let shown = format!("{}", column.data_type());
        let got = load(&served, column).await;
        assert_eq!(got.status, 200, "{shown}: {got:?}");
        let rows = served.rows("select x::varchar from t order by rowid").await;
        let rows: Vec<Value> = rows.as_array().expect("rows").iter().map(|row| row[0].clone()).collect();
        assert_eq!(Value::from(rows), values, "{shown}");
        assert_eq!(served.rows("select data_type from duckdb_columns() where table_name = 't'").await, json!([[ty]]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_types_that_are_known_are_followed_and_others_are_plain() {
    let served = Served::start().await;
    let with = |name: &str, column: ArrayRef| {
        let metadata = [("ARROW:extension:name".to_owned(), name.to_owned())].into();
        let field = Field::new("x", column.data_type().clone(), true).with_metadata(metadata);
        stream(&[RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).expect("a batch")])
    };
    let bytes: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter([[0x4au8; 16]].into_iter()).expect("valid"));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["{\"a\": 1}"]));
    for (name, column, ty) in [
        ("arrow.uuid", bytes.clone(), "UUID"),
        ("arrow.json", text.clone(), "JSON"),
        ("arrow.uuid", text.clone(), "VARCHAR"),
        ("duckdb.bit", bytes.clone(), "BLOB"),
        ("geoarrow.wkb", bytes.clone(), "BLOB"),
        ("nobody.knows", text, "VARCHAR"),
    ] {
        let got = served.load(replace(), ARROW, with(name, column)).await;
        assert_eq!(got.status, 200, "{name}: {got:?}");
        assert_eq!(
            served.rows("select data_type from duckdb_columns() where table_name = 't'").await,
            json!([[ty]]),
            "{name}"
        );
        served.rows("select x::varchar from t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_t_be_taken_is_refused_by_its_column_s_name() {
    let served = Served::start().await;
    let dense = UnionFields::try_new([0], [Field::new("i", DataType::Int32, true)]).expect("valid");
    let dense = UnionArray::try_new(
        dense,
        ScalarBuffer::from(vec![0i8]),
        Some(ScalarBuffer::from(vec![0])),
        vec![Arc::new(Int32Array::from(vec![1]))],
    );
    let shared = ListViewArray::try_new(
        Arc::new(Field::new("item", DataType::Int32, true)),
        vec![0; 3].into(),
        vec![2; 3].into(),
        Arc::new(Int32Array::from(vec![1, 2])),
        None,
    );
    let mut deep: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    for _ in 0..25 {
        let field = Arc::new(Field::new("item", deep.data_type().clone(), true));
        deep = Arc::new(ListArray::try_new(field, OffsetBuffer::new(vec![0, 1].into()), deep, None).expect("valid"));
    }
    let got = load(&served, deep).await;
    assert_eq!(got.status, 200, "twenty-five levels are fine: {got:?}");
    let cases: Vec<(ArrayRef, &str)> = vec![
        (Arc::new(dense.expect("valid")), "sparse"),
        (Arc::new(shared.expect("valid")), "share elements"),
        (Arc::new(StructArray::new_empty_fields(1, None)), "without fields"),
        (Arc::new(Decimal128Array::from(vec![1]).with_precision_and_scale(5, -2).expect("valid")), "decimals"),
        (Arc::new(Decimal128Array::from(vec![100_000]).with_precision_and_scale(4, 0).expect("valid")), "100000"),
        (Arc::new(Decimal256Array::from(vec![i256::MAX]).with_precision_and_scale(76, 0).expect("valid")), "decimal"),
        (Arc::new(Time64MicrosecondArray::from(vec![-1])), "time of day"),
        (Arc::new(Time32SecondArray::from(vec![86_401])), "time of day"),
    ];
    for (column, part) in cases {
        let shown = format!("{}", column.data_type());
        let got = load(&served, column).await;
        let answer = got.json();
        assert_eq!((got.status, &answer["code"]), (400, &json!("invalid")), "{shown}: {answer}");
        let message = answer["message"].as_str().expect("text");
        assert!(message.contains("column `x`") && message.to_lowercase().contains(part), "{shown}: {message}");
    }
    let twice =
        batch(vec![("a", Arc::new(Int32Array::from(vec![1])) as ArrayRef), ("A", Arc::new(Int32Array::from(vec![1])))]);
    let got = served.load(replace(), ARROW, stream(&[twice])).await;
    assert!(got.json()["message"].as_str().expect("text").contains("more than one column `A`"), "{got:?}");
}
