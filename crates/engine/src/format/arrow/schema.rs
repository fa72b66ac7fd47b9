//! Which Arrow type a DuckDB type becomes.

use std::{collections::HashMap, sync::Arc};

use arrow_schema::{DataType, Field, Fields, IntervalUnit, Schema, TimeUnit, UnionFields, UnionMode};

use crate::format::{
    Columns,
    types::{Kind, Type},
};

/// The key of the field metadata that has DuckDB's text of the type.
const TYPE_KEY: &str = "tarn.duckdb_type";

/// The schema of a result, with `names` for its columns.
pub fn schema(columns: &Columns, names: &[String]) -> Schema {
    let fields = columns.types().zip(names).map(|(ty, name)| {
        let mut metadata = HashMap::from([(TYPE_KEY.to_owned(), ty.to_string())]);
        if ty.kind == Kind::Geometry {
            metadata.insert("ARROW:extension:name".to_owned(), "geoarrow.wkb".to_owned());
            metadata.insert("ARROW:extension:metadata".to_owned(), "{}".to_owned());
        }
        Field::new(name, data_type(ty), true).with_metadata(metadata)
    });
    Schema::new(fields.collect::<Fields>())
}

fn data_type(ty: &Type) -> DataType {
    match &ty.kind {
        Kind::Null => DataType::Null,
        Kind::Boolean => DataType::Boolean,
        Kind::TinyInt => DataType::Int8,
        Kind::SmallInt => DataType::Int16,
        Kind::Integer => DataType::Int32,
        Kind::BigInt => DataType::Int64,
        Kind::UTinyInt => DataType::UInt8,
        Kind::USmallInt => DataType::UInt16,
        Kind::UInteger => DataType::UInt32,
        Kind::UBigInt => DataType::UInt64,
        Kind::HugeInt | Kind::UHugeInt => DataType::Decimal128(38, 0),
        Kind::Float => DataType::Float32,
        Kind::Double => DataType::Float64,
        Kind::Decimal { precision, scale, .. } => {
            DataType::Decimal128(*precision, i8::try_from(*scale).expect("a scale is at most 38"))
        }
        Kind::Varchar | Kind::Bit | Kind::Uuid | Kind::Bignum | Kind::TimeTz => DataType::Utf8,
        Kind::Blob | Kind::Geometry => DataType::Binary,
        Kind::Date => DataType::Date32,
        Kind::Time => DataType::Time64(TimeUnit::Microsecond),
        Kind::TimeNs => DataType::Time64(TimeUnit::Nanosecond),
        Kind::TimestampS => DataType::Timestamp(TimeUnit::Second, None),
        Kind::TimestampMs => DataType::Timestamp(TimeUnit::Millisecond, None),
        Kind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        Kind::TimestampNs => DataType::Timestamp(TimeUnit::Nanosecond, None),
        Kind::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Kind::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        Kind::Enum { width, .. } => {
            let index = match width {
                1 => DataType::UInt8,
                2 => DataType::UInt16,
                _ => DataType::UInt32,
            };
            DataType::Dictionary(Box::new(index), Box::new(DataType::Utf8))
        }
        Kind::List(child) => DataType::List(field("item", child, true)),
        Kind::Array(child, size) => DataType::FixedSizeList(
            field("item", child, true),
            i32::try_from(*size).expect("an array has at most 100,000 elements"),
        ),
        Kind::Struct(fields) => {
            DataType::Struct(named(fields).map(|(name, child)| field(&name, child, true)).collect())
        }
        Kind::Map(entry) => {
            let Kind::Struct(fields) = &entry.kind else { unreachable!("a map's entry is a struct of key and value") };
            let entries = Fields::from(vec![field("key", &fields[0].1, false), field("value", &fields[1].1, true)]);
            DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
        }
        Kind::Union(members) => {
            let fields = (0..).zip(named(members)).map(|(tag, (name, child))| (tag, field(&name, child, true)));
            DataType::Union(fields.collect::<UnionFields>(), UnionMode::Sparse)
        }
        // The encoder refuses these before it comes here.
        Kind::Variant | Kind::Unknown(_) => DataType::Null,
    }
}

fn field(name: &str, ty: &Type, nullable: bool) -> Arc<Field> {
    Arc::new(Field::new(name, data_type(ty), nullable))
}

/// The fields of a struct without names are called by their number, from 1 on.
fn named(fields: &[(String, Type)]) -> impl Iterator<Item = (String, &Type)> {
    (1..).zip(fields).map(|(i, (name, ty))| (if name.is_empty() { i.to_string() } else { name.clone() }, ty))
}
