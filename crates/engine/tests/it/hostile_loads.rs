//! Bodies that somebody made to break the engine: never a crash, never a part of them committed, never a table that can't be read.
//!
//! `TARN_TEST_MUTATIONS` is how many are tried, `TARN_TEST_MUTATION_SEED` which.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Decimal128Array, DictionaryArray, Int64Array, ListArray, RecordBatch, RunArray, StringArray,
    StringViewArray, StructArray,
    types::{Int16Type, Int32Type},
};
use arrow_schema::{DataType, Field};
use base64::Engine as _;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    loads::{ARROW, batch, stream},
    support::Served,
};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A little of everything that DuckDB takes without a copy.
fn rich(rows: i64) -> RecordBatch {
    let ids = Arc::new(Int64Array::from_iter((0..rows).map(|i| (i % 7 != 0).then_some(i)))) as ArrayRef;
    let words: Vec<String> = (0..rows).map(|i| format!("text number {i} é")).collect();
    let text = Arc::new(StringArray::from(words.clone())) as ArrayRef;
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..rows).map(|i| (i % 5 != 0).then(|| (0..i as i32 % 4).map(Some).collect::<Vec<_>>())),
    );
    let dictionary: DictionaryArray<Int16Type> = (0..rows).map(|i| ["red", "green", "blue"][i as usize % 3]).collect();
    let fields = vec![Field::new("i", DataType::Int64, true), Field::new("s", DataType::Utf8, true)];
    let structs = StructArray::try_new(fields.into(), vec![ids.clone(), text.clone()], None).expect("valid");
    batch(vec![
        ("id", ids),
        ("text", text),
        ("views", Arc::new(StringViewArray::from(words))),
        ("lists", Arc::new(lists)),
        ("colour", Arc::new(dictionary)),
        ("pair", Arc::new(structs)),
        (
            "money",
            Arc::new(
                Decimal128Array::from_iter_values((0..rows).map(i128::from))
                    .with_precision_and_scale(9, 2)
                    .expect("valid"),
            ),
        ),
    ])
}

fn request() -> Value {
    json!({"table": "t", "if_missing": "create", "if_exists": "replace"})
}

async fn tried(served: &Served, body: Vec<u8>, what: &str) -> bool {
    let got = served.load(request(), ARROW, body).await;
    let answer = got.json();
    if got.status == 200 {
        // Whatever it holds now, all of it can be read.
        served.rows("select sum(hash(x::varchar)), count(*) from t x").await;
        served.query("drop table t").await;
        return true;
    }
    assert!([400, 413, 422].contains(&got.status), "{what}: {answer}");
    assert_eq!(answer["outcome"], "none", "{what}: {answer}");
    assert_eq!(served.rows("select count(*) from duckdb_tables() where not internal").await, json!([[0]]), "{what}");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_any_bytes_changed_is_refused_or_whole() {
    let served = Served::start().await;
    let good = stream(&[rich(50), rich(3_000)]);
    assert!(tried(&served, good.clone(), "unchanged").await);
    let seed = number("TARN_TEST_MUTATION_SEED", 4);
    for round in 0..number("TARN_TEST_MUTATIONS", 300) {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(round));
        let mut body = good.clone();
        // Heads are small and decide most: half of the changes go there.
        let end = if random.random() { body.len().min(6_000) } else { body.len() };
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..end);
            match random.random_range(0..6) {
                0 => body[at] = random.random(),
                1 => body[at] ^= 1 << random.random_range(0..8),
                2 => body[at] = 0xff,
                3 => body[at] = 0,
                4 if at + 8 <= body.len() => {
                    body[at..at + 8].copy_from_slice(&random.random_range(-9..1_000_000_000_000i64).to_le_bytes());
                }
                _ => body.truncate(at.max(8)),
            }
            if body.len() < end {
                break;
            }
        }
        tried(&served, body, &format!("seed {seed}, round {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_lie_allocate_nothing() {
    let served = Served::start().await;
    let good = stream(&[rich(10)]);
    for length in [u32::MAX, i32::MAX as u32, 64 << 20, 1] {
        let mut body = good.clone();
        body[4..8].copy_from_slice(&length.to_le_bytes());
        assert!(!tried(&served, body, "the head's length").await);
    }
    for claimed in [i64::MAX, 1 << 40, 1 << 31, -1] {
        // Behind the schema comes a dictionary.
        let head = u32::from_le_bytes(good[4..8].try_into().expect("four")) as usize + 8;
        let next = u32::from_le_bytes(good[head + 4..head + 8].try_into().expect("four")) as usize;
        let second = head + 8..head + 8 + next;
        let real = arrow_ipc::root_as_message(&good[second.clone()]).expect("a message").bodyLength();
        let (mut body, mut changed) = (good.clone(), 0);
        for at in second.start..second.end - 7 {
            if body[at..at + 8] == real.to_le_bytes() {
                body[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
                changed += 1;
            }
        }
        assert!(changed > 0);
        assert!(!tried(&served, body, "the body's length").await, "{claimed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_utf_8_and_offsets_that_go_back_are_refused() {
    let served = Served::start().await;
    let good = stream(&[batch(vec![("a", Arc::new(StringArray::from(vec!["plain words", "and more"])) as ArrayRef)])]);
    let at = good.windows(11).position(|bytes| bytes == b"plain words").expect("is there");
    let mut body = good.clone();
    body[at] = 0xff;
    assert!(!tried(&served, body, "UTF-8").await);
    let offsets: Vec<u8> = [0i32, 11, 19].iter().flat_map(|offset| offset.to_le_bytes()).collect();
    let at = good.windows(12).position(|bytes| bytes == offsets).expect("is there");
    for (place, offset) in [(4, -1i32), (4, 20), (8, 5), (8, i32::MAX), (0, 12)] {
        let mut body = good.clone();
        body[at + place..at + place + 4].copy_from_slice(&offset.to_le_bytes());
        assert!(!tried(&served, body, "offsets").await, "{place} {offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_and_dictionaries_that_grow_without_bound_are_refused() {
    let served = Served::start().await;
    let rows = 900_000;
    let value = || Arc::new(StringArray::from(vec!["x".repeat(100_000)])) as ArrayRef;
    let runs = |rows: i32| {
        let ends = arrow_array::Int32Array::from(vec![rows]);
        Arc::new(RunArray::<Int32Type>::try_new(&ends, &value()).expect("valid")) as ArrayRef
    };
    let keys = || arrow_array::Int32Array::from(vec![0; rows]);
    let words = || Arc::new(DictionaryArray::<Int32Type>::try_new(keys(), value()).expect("valid")) as ArrayRef;
    let in_struct = |column: ArrayRef| {
        let field = Field::new("f", column.data_type().clone(), true);
        Arc::new(StructArray::try_new(vec![field].into(), vec![column], None).expect("valid")) as ArrayRef
    };
    let columns = [runs(rows as i32), in_struct(words()), words(), in_struct(runs(rows as i32))];
    for (index, column) in columns.into_iter().enumerate() {
        let body = stream(&[batch(vec![("a", column)])]);
        let got = served.load(request(), ARROW, body.clone()).await;
        assert_eq!((got.status, &got.json()["code"]), (413, &json!("too_large")), "{index}: {got:?}");
        let asked =
            json!({"sql": "select length(?)", "params_arrow": base64::engine::general_purpose::STANDARD.encode(body)});
        let got = served.ask(asked, &[]).await;
        assert_eq!(got.json()["code"], "too_large", "{index}: {got:?}");
    }
    let got = served.load(request(), ARROW, stream(&[batch(vec![("a", runs(100))])])).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(served.rows("select count(*), sum(length(a)) from t").await, json!([[100, 10_000_000]]));
}
