//! DuckDB values made from rows of vectors, to bind them as parameters.

use libduckdb_sys as ffi;

use super::{
    EncodeError,
    types::{Kind, Type},
    view::View,
};

/// A value that is destroyed when dropped.
pub struct Value(ffi::duckdb_value);

impl Value {
    /// Takes over a handle, or says that DuckDB made none.
    pub fn own(raw: ffi::duckdb_value) -> Result<Value, EncodeError> {
        if raw.is_null() { Err(EncodeError::value("DuckDB did not accept a value")) } else { Ok(Value(raw)) }
    }

    /// The handle; valid as long as `self`.
    pub fn raw(&self) -> ffi::duckdb_value {
        self.0
    }

    /// NULL without a type.
    pub fn null() -> Value {
        // SAFETY: no preconditions.
        Value(unsafe { ffi::duckdb_create_null_value() })
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned by us, destroyed once.
        unsafe { ffi::duckdb_destroy_value(&mut self.0) };
    }
}

/// A logical type that is destroyed when dropped.
struct LogicalType(ffi::duckdb_logical_type);

impl Drop for LogicalType {
    fn drop(&mut self) {
        // SAFETY: owned by us, destroyed once.
        unsafe { ffi::duckdb_destroy_logical_type(&mut self.0) };
    }
}

fn type_of(view: &View<'_>) -> LogicalType {
    // SAFETY: the view's vector is valid.
    LogicalType(unsafe { ffi::duckdb_vector_get_column_type(view.raw) })
}

/// The value at `row`.
pub fn from_row(view: &View<'_>, row: usize) -> Result<Value, EncodeError> {
    if !view.is_valid(row) {
        return Ok(Value::null());
    }
    // SAFETY: every constructor gets a value of its own type; text and blobs are copied.
    let raw = unsafe {
        match &view.ty.kind {
            Kind::Null => ffi::duckdb_create_null_value(),
            Kind::Boolean => ffi::duckdb_create_bool(view.get::<u8>(row) != 0),
            Kind::TinyInt => ffi::duckdb_create_int8(view.get(row)),
            Kind::SmallInt => ffi::duckdb_create_int16(view.get(row)),
            Kind::Integer => ffi::duckdb_create_int32(view.get(row)),
            Kind::BigInt => ffi::duckdb_create_int64(view.get(row)),
            Kind::HugeInt => ffi::duckdb_create_hugeint(hugeint(view.i128(row))),
            Kind::UTinyInt => ffi::duckdb_create_uint8(view.get(row)),
            Kind::USmallInt => ffi::duckdb_create_uint16(view.get(row)),
            Kind::UInteger => ffi::duckdb_create_uint32(view.get(row)),
            Kind::UBigInt => ffi::duckdb_create_uint64(view.get(row)),
            Kind::UHugeInt => ffi::duckdb_create_uhugeint(uhugeint(view.get(row))),
            Kind::Float => ffi::duckdb_create_float(view.get(row)),
            Kind::Double => ffi::duckdb_create_double(view.get(row)),
            Kind::Decimal { precision, scale, width } => {
                let value = hugeint(view.scaled(row, *width));
                ffi::duckdb_create_decimal(ffi::duckdb_decimal { width: *precision, scale: *scale, value })
            }
            Kind::Varchar => {
                let text = view.string(row);
                ffi::duckdb_create_varchar_length(text.as_ptr().cast(), text.len() as u64)
            }
            Kind::Blob => {
                let bytes = view.string(row);
                ffi::duckdb_create_blob(bytes.as_ptr(), bytes.len() as u64)
            }
            Kind::Bit => {
                let mut bits = view.string(row).to_vec();
                ffi::duckdb_create_bit(ffi::duckdb_bit { data: bits.as_mut_ptr(), size: bits.len() as u64 })
            }
            Kind::Bignum => return bignum(view.string(row)),
            Kind::Uuid => ffi::duckdb_create_uuid(uhugeint(view.get::<u128>(row) ^ (1 << 127))),
            Kind::Date => ffi::duckdb_create_date(ffi::duckdb_date { days: view.get(row) }),
            Kind::Time => ffi::duckdb_create_time(ffi::duckdb_time { micros: view.get(row) }),
            Kind::TimeNs => ffi::duckdb_create_time_ns(ffi::duckdb_time_ns { nanos: view.get(row) }),
            Kind::TimeTz => ffi::duckdb_create_time_tz_value(ffi::duckdb_time_tz { bits: view.get(row) }),
            Kind::TimestampS => ffi::duckdb_create_timestamp_s(ffi::duckdb_timestamp_s { seconds: view.get(row) }),
            Kind::TimestampMs => ffi::duckdb_create_timestamp_ms(ffi::duckdb_timestamp_ms { millis: view.get(row) }),
            Kind::Timestamp => ffi::duckdb_create_timestamp(ffi::duckdb_timestamp { micros: view.get(row) }),
            Kind::TimestampNs => ffi::duckdb_create_timestamp_ns(ffi::duckdb_timestamp_ns { nanos: view.get(row) }),
            Kind::TimestampTz => ffi::duckdb_create_timestamp_tz(ffi::duckdb_timestamp { micros: view.get(row) }),
            Kind::Interval => {
                let [first, micros] = view.get::<[u64; 2]>(row);
                ffi::duckdb_create_interval(ffi::duckdb_interval {
                    months: first as u32 as i32,
                    days: (first >> 32) as u32 as i32,
                    micros: micros as i64,
                })
            }
            Kind::Enum { width, .. } => {
                ffi::duckdb_create_enum_value(type_of(view).0, view.enum_index(row, *width) as u64)
            }
            Kind::List(_) => {
                let entry = view.entry(row);
                return list(view, entry.offset, entry.length, ffi::duckdb_create_list_value);
            }
            Kind::Array(_, size) => return list(view, row * size, *size, ffi::duckdb_create_array_value),
            Kind::Struct(_) => {
                let fields = values(view.children.iter().map(|child| from_row(child, row)))?;
                ffi::duckdb_create_struct_value(type_of(view).0, raws(&fields).as_mut_ptr())
            }
            Kind::Map(_) => return map(view, row),
            Kind::Union(_) => {
                let tag = view.children[0].get::<u8>(row);
                let member = from_row(&view.children[usize::from(tag) + 1], row)?;
                ffi::duckdb_create_union_value(type_of(view).0, u64::from(tag), member.raw())
            }
            Kind::Geometry | Kind::Variant | Kind::Unknown(_) => return Err(EncodeError::unsupported(view.ty)),
        }
    };
    Value::own(raw)
}

type CreateList =
    unsafe extern "C" fn(ffi::duckdb_logical_type, *mut ffi::duckdb_value, ffi::idx_t) -> ffi::duckdb_value;

fn list(view: &View<'_>, start: usize, length: usize, create: CreateList) -> Result<Value, EncodeError> {
    let child = &view.children[0];
    let items = values((start..start + length).map(|row| from_row(child, row)))?;
    // SAFETY: the items have the child's type, or are NULL.
    Value::own(unsafe { create(type_of(child).0, raws(&items).as_mut_ptr(), items.len() as u64) })
}

fn map(view: &View<'_>, row: usize) -> Result<Value, EncodeError> {
    let entry = view.entry(row);
    let [keys, items] = &view.children[0].children[..] else {
        return Err(EncodeError::value("a MAP without keys or values"));
    };
    let rows = entry.offset..entry.offset + entry.length;
    let keys = values(rows.clone().map(|row| from_row(keys, row)))?;
    let items = values(rows.map(|row| from_row(items, row)))?;
    // SAFETY: as many keys as values, of the map's types.
    Value::own(unsafe {
        ffi::duckdb_create_map_value(
            type_of(view).0,
            raws(&keys).as_mut_ptr(),
            raws(&items).as_mut_ptr(),
            keys.len() as u64,
        )
    })
}

fn values(items: impl Iterator<Item = Result<Value, EncodeError>>) -> Result<Vec<Value>, EncodeError> {
    items.collect()
}

fn raws(values: &[Value]) -> Vec<ffi::duckdb_value> {
    values.iter().map(Value::raw).collect()
}

/// DuckDB makes a BIGNUM from magnitude and sign; the stored form has a header, and flips the bits of a negative one.
fn bignum(stored: &[u8]) -> Result<Value, EncodeError> {
    let [first, _, _, magnitude @ ..] = stored else {
        return Err(EncodeError::value("a BIGNUM is shorter than its header"));
    };
    let is_negative = first & 0x80 == 0;
    let mut data: Vec<u8> = magnitude.iter().map(|byte| if is_negative { !byte } else { *byte }).collect();
    // SAFETY: the bytes are copied.
    Value::own(unsafe {
        ffi::duckdb_create_bignum(ffi::duckdb_bignum { data: data.as_mut_ptr(), size: data.len() as u64, is_negative })
    })
}

/// A number in DuckDB's two halves.
pub fn hugeint(value: i128) -> ffi::duckdb_hugeint {
    ffi::duckdb_hugeint { lower: value as u64, upper: (value >> 64) as i64 }
}

fn uhugeint(value: u128) -> ffi::duckdb_uhugeint {
    ffi::duckdb_uhugeint { lower: value as u64, upper: (value >> 64) as u64 }
}

/// A VARCHAR value.
pub fn varchar(text: &str) -> Result<Value, EncodeError> {
    // SAFETY: the bytes are copied.
    Value::own(unsafe { ffi::duckdb_create_varchar_length(text.as_ptr().cast(), text.len() as u64) })
}

/// A LIST of `items`, all of type `child` or NULL.
pub fn list_of(child: &Type, items: &[Value]) -> Result<Value, EncodeError> {
    let child = plain_type(child)?;
    // SAFETY: the items have the child's type, or are NULL.
    Value::own(unsafe { ffi::duckdb_create_list_value(child.0, raws(items).as_mut_ptr(), items.len() as u64) })
}

/// A handle for one of the types that plain JSON gives.
fn plain_type(ty: &Type) -> Result<LogicalType, EncodeError> {
    let id = match &ty.kind {
        Kind::Null => ffi::DUCKDB_TYPE_DUCKDB_TYPE_SQLNULL,
        Kind::Boolean => ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN,
        Kind::BigInt => ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT,
        Kind::HugeInt => ffi::DUCKDB_TYPE_DUCKDB_TYPE_HUGEINT,
        Kind::Double => ffi::DUCKDB_TYPE_DUCKDB_TYPE_DOUBLE,
        Kind::Varchar => ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR,
        // SAFETY: the child's handle lives until the list type is made.
        Kind::List(child) => return Ok(LogicalType(unsafe { ffi::duckdb_create_list_type(plain_type(child)?.0) })),
        _ => return Err(EncodeError::unsupported(ty)),
    };
    // SAFETY: a plain type's number.
    Ok(LogicalType(unsafe { ffi::duckdb_create_logical_type(id) }))
}
