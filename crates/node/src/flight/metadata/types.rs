//! `GetXdbcTypeInfo`: DuckDB's types in the words of ODBC and JDBC.

use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{CommandGetXdbcTypeInfo, Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};

use super::built;
use crate::error::ApiError;

static ALL: LazyLock<Option<Arc<XdbcTypeInfoData>>> = LazyLock::new(|| {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    types().into_iter().for_each(|known| builder.append(known));
    builder.build().ok().map(Arc::new)
});

pub(super) fn all() -> Result<Arc<XdbcTypeInfoData>, ApiError> {
    ALL.clone().ok_or_else(|| ApiError::internal("types are a table", "they are not"))
}

pub(super) fn answer(asked: CommandGetXdbcTypeInfo) -> Result<RecordBatch, ApiError> {
    built(all()?.record_batch(asked.data_type))
}

/// Sorted by the number of the type, then by how close the type is to it.
fn types() -> Vec<XdbcTypeInfo> {
    use XdbcDataType as T;
    let mut all = vec![
        number("TINYINT", T::XdbcTinyint, 3, false),
        number("UTINYINT", T::XdbcTinyint, 3, true),
        number("SMALLINT", T::XdbcSmallint, 5, false),
        number("USMALLINT", T::XdbcSmallint, 5, true),
        number("INTEGER", T::XdbcInteger, 10, false),
        number("UINTEGER", T::XdbcInteger, 10, true),
        number("BIGINT", T::XdbcBigint, 19, false),
        number("UBIGINT", T::XdbcBigint, 20, true),
        number("HUGEINT", T::XdbcNumeric, 39, false),
        number("UHUGEINT", T::XdbcNumeric, 39, true),
        float("FLOAT", T::XdbcReal, 24),
        float("DOUBLE", T::XdbcDouble, 53),
        XdbcTypeInfo {
            create_params: Some(vec!["precision".into(), "scale".into()]),
            minimum_scale: Some(0),
            maximum_scale: Some(38),
            ..number("DECIMAL", T::XdbcDecimal, 38, false)
        },
        XdbcTypeInfo { num_prec_radix: None, unsigned_attribute: None, ..number("BOOLEAN", T::XdbcBit, 1, false) },
        XdbcTypeInfo {
            case_sensitive: true,
            searchable: Searchable::Full,
            ..quoted("VARCHAR", T::XdbcVarchar, i32::MAX, ["'", "'"])
        },
        quoted("UUID", T::XdbcChar, 36, ["'", "'"]),
        quoted("BLOB", T::XdbcVarbinary, i32::MAX, ["'", "'::BLOB"]),
        moment("DATE", T::XdbcDate, 10, XdbcDatetimeSubcode::XdbcSubcodeYear),
        moment("TIME", T::XdbcTime, 15, XdbcDatetimeSubcode::XdbcSubcodeTime),
        moment("TIMESTAMP", T::XdbcTimestamp, 26, XdbcDatetimeSubcode::XdbcSubcodeTimestamp),
        moment("TIMESTAMP WITH TIME ZONE", T::XdbcTimestamp, 32, XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone),
        quoted("INTERVAL", T::XdbcInterval, 64, ["INTERVAL '", "'"]),
    ];
    all.sort_by_key(|known| known.data_type as i32);
    all
}

fn named(name: &str, data_type: XdbcDataType, size: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        type_name: name.into(),
        data_type,
        column_size: Some(size),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Basic,
        local_type_name: Some(name.into()),
        sql_data_type: data_type,
        ..Default::default()
    }
}

fn number(name: &str, data_type: XdbcDataType, digits: i32, unsigned: bool) -> XdbcTypeInfo {
    XdbcTypeInfo {
        unsigned_attribute: Some(unsigned),
        auto_increment: Some(false),
        minimum_scale: Some(0),
        maximum_scale: Some(0),
        num_prec_radix: Some(10),
        ..named(name, data_type, digits)
    }
}

fn float(name: &str, data_type: XdbcDataType, bits: i32) -> XdbcTypeInfo {
    XdbcTypeInfo {
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        num_prec_radix: Some(2),
        ..named(name, data_type, bits)
    }
}

fn quoted(name: &str, data_type: XdbcDataType, size: i32, [prefix, suffix]: [&str; 2]) -> XdbcTypeInfo {
    XdbcTypeInfo {
        literal_prefix: Some(prefix.into()),
        literal_suffix: Some(suffix.into()),
        ..named(name, data_type, size)
    }
}

fn moment(name: &str, data_type: XdbcDataType, size: i32, subcode: XdbcDatetimeSubcode) -> XdbcTypeInfo {
    XdbcTypeInfo {
        sql_data_type: XdbcDataType::XdbcDatetime,
        datetime_subcode: Some(subcode),
        ..quoted(name, data_type, size, [&format!("{name} '"), "'"])
    }
}
