//! Batches of Arrow as tuples of Postgres' binary COPY.
//!
//! <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format"; values are in each type's `send` form, big-endian.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, IntervalMonthDayNanoType,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array, BinaryArray, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_schema::DataType;
use bytes::{BufMut, BytesMut};
use uuid::Uuid;

use super::columns::{Column, Form};
use super::numeric;
use crate::error::ApiError;

/// What a stream begins with: signature, flags, no extension.
pub const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub const TAIL: [u8; 2] = (-1i16).to_be_bytes();
/// From 1970, where Arrow counts from, to 2000, where Postgres does.
const DAYS: i32 = 10_957;
const MICROS: i64 = DAYS as i64 * 86_400_000_000;

/// Rows and what they add up to, whatever their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    pub rows: u64,
    hashes: u128,
}

impl Sum {
    fn add(&mut self, tuple: &[u8]) {
        self.rows += 1;
        self.hashes = self.hashes.wrapping_add(xxhash_rust::xxh3::xxh3_128(tuple));
    }

    /// As it is told.
    pub fn checksum(&self) -> String {
        format!("{:032x}", self.hashes)
    }
}

/// Values of one column.
enum Values<'a> {
    Bool(&'a BooleanArray),
    Int2(&'a PrimitiveArray<Int16Type>),
    Int4(&'a PrimitiveArray<Int32Type>),
    Int8(&'a PrimitiveArray<Int64Type>),
    Float4(&'a PrimitiveArray<Float32Type>),
    Float8(&'a PrimitiveArray<Float64Type>),
    Decimal(&'a PrimitiveArray<Decimal128Type>, u8),
    NumericText(&'a StringArray),
    Text(&'a StringArray),
    Bytes(&'a BinaryArray),
    Date(&'a PrimitiveArray<Date32Type>),
    Time(&'a PrimitiveArray<Time64MicrosecondType>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>),
    Interval(&'a PrimitiveArray<IntervalMonthDayNanoType>),
    Uuid(&'a StringArray),
    Jsonb(&'a StringArray),
    List(&'a ListArray, Box<Values<'a>>, u32),
    /// A column of NULLs only.
    Null,
}

fn unexpected(form: Form, found: &DataType) -> ApiError {
    ApiError::internal("a column comes in the type that was asked for", format!("{form:?} from {found}"))
}

impl<'a> Values<'a> {
    fn of(form: Form, element: Option<u32>, array: &'a dyn Array) -> Result<Self, ApiError> {
        let wrong = || unexpected(form, array.data_type());
        if *array.data_type() == DataType::Null {
            return Ok(Self::Null);
        }
        if let Some(oid) = element {
            let list = array.as_list_opt::<i32>().ok_or_else(wrong)?;
            return Ok(Self::List(list, Box::new(Self::of(form, None, list.values())?), oid));
        }
        let text = || array.as_string_opt::<i32>();
        let found = match form {
            Form::Bool => array.as_boolean_opt().map(Self::Bool),
            Form::Int2 => array.as_primitive_opt().map(Self::Int2),
            Form::Int4 => array.as_primitive_opt().map(Self::Int4),
            Form::Int8 => array.as_primitive_opt().map(Self::Int8),
            Form::Float4 => array.as_primitive_opt().map(Self::Float4),
            Form::Float8 => array.as_primitive_opt().map(Self::Float8),
            Form::Numeric => match array.data_type() {
                DataType::Decimal128(_, scale) => {
                    let scale = u8::try_from(*scale).map_err(|_| wrong())?;
                    array.as_primitive_opt().map(|values| Self::Decimal(values, scale))
                }
                _ => text().map(Self::NumericText),
            },
            Form::Text | Form::Json => text().map(Self::Text),
            Form::Bytes => array.as_binary_opt().map(Self::Bytes),
            Form::Date => array.as_primitive_opt().map(Self::Date),
            Form::Time => array.as_primitive_opt().map(Self::Time),
            Form::Timestamp | Form::Timestamptz => array.as_primitive_opt().map(Self::Timestamp),
            Form::Interval => array.as_primitive_opt().map(Self::Interval),
            Form::Uuid => text().map(Self::Uuid),
            Form::Jsonb => text().map(Self::Jsonb),
        };
        found.ok_or_else(wrong)
    }

    fn array(&self) -> Option<&dyn Array> {
        Some(match self {
            Self::Bool(values) => *values,
            Self::Int2(values) => *values,
            Self::Int4(values) => *values,
            Self::Int8(values) => *values,
            Self::Float4(values) => *values,
            Self::Float8(values) => *values,
            Self::Decimal(values, _) => *values,
            Self::NumericText(values) | Self::Text(values) | Self::Uuid(values) | Self::Jsonb(values) => *values,
            Self::Bytes(values) => *values,
            Self::Date(values) => *values,
            Self::Time(values) => *values,
            Self::Timestamp(values) => *values,
            Self::Interval(values) => *values,
            Self::List(values, ..) => *values,
            Self::Null => return None,
        })
    }

    /// A value with its length before it; -1 is NULL's.
    fn put(&self, row: usize, out: &mut BytesMut) -> Result<(), ApiError> {
        if self.array().is_none_or(|array| array.is_null(row)) {
            out.put_i32(-1);
            return Ok(());
        }
        match self {
            Self::Bool(values) => {
                out.put_i32(1);
                out.put_u8(values.value(row).into());
            }
            Self::Int2(values) => {
                out.put_i32(2);
                out.put_i16(values.value(row));
            }
            Self::Int4(values) => fixed4(values.value(row).cast_unsigned(), out),
            Self::Int8(values) => fixed8(values.value(row).to_be_bytes(), out),
            Self::Float4(values) => fixed4(values.value(row).to_bits(), out),
            Self::Float8(values) => fixed8(values.value(row).to_be_bytes(), out),
            Self::Decimal(values, scale) => sized(out, |out| numeric::put(values.value(row), *scale, out)),
            Self::NumericText(values) => {
                let text = values.value(row);
                let number = numeric::parse(text).ok_or_else(|| {
                    ApiError::internal("a number's text is a number", format!("{} bytes", text.len()))
                })?;
                sized(out, |out| number.put(out));
            }
            Self::Text(values) => put_bytes(values.value(row).as_bytes(), out)?,
            Self::Bytes(values) => put_bytes(values.value(row), out)?,
            Self::Date(values) => {
                let days = match values.value(row) {
                    // DuckDB's infinities, and Postgres'.
                    i32::MAX => i32::MAX,
                    days if days == -i32::MAX => i32::MIN,
                    days => days.saturating_sub(DAYS),
                };
                fixed4(days.cast_unsigned(), out);
            }
            Self::Time(values) => fixed8(values.value(row).to_be_bytes(), out),
            Self::Timestamp(values) => {
                let micros = match values.value(row) {
                    i64::MAX => i64::MAX,
                    micros if micros == -i64::MAX => i64::MIN,
                    micros => micros.saturating_sub(MICROS),
                };
                fixed8(micros.to_be_bytes(), out);
            }
            Self::Interval(values) => {
                let interval = values.value(row);
                out.put_i32(16);
                out.put_i64(interval.nanoseconds / 1000);
                out.put_i32(interval.days);
                out.put_i32(interval.months);
            }
            Self::Uuid(values) => {
                let id: Uuid =
                    values.value(row).parse().map_err(|error| ApiError::internal("a UUID's text is one", error))?;
                out.put_i32(16);
                out.put_slice(id.as_bytes());
            }
            Self::Jsonb(values) => {
                let text = values.value(row);
                out.put_i32(length(text.len() + 1)?);
                out.put_u8(1); // the only version there is
                out.put_slice(text.as_bytes());
            }
            Self::List(values, elements, oid) => {
                let offsets = values.value_offsets();
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                let start = out.len();
                out.put_i32(0);
                out.put_i32(i32::from(!range.is_empty())); // dimensions
                let has_null = elements.array().is_none_or(|array| range.clone().any(|at| array.is_null(at)));
                out.put_i32(has_null.into());
                out.put_u32(*oid);
                if !range.is_empty() {
                    out.put_i32(length(range.len())?);
                    out.put_i32(1); // the first element's index
                    for at in range {
                        elements.put(at, out)?;
                    }
                }
                let bytes = length(out.len() - start - 4)?;
                out[start..start + 4].copy_from_slice(&bytes.to_be_bytes());
            }
            Self::Null => out.put_i32(-1),
        }
        Ok(())
    }
}

/// A value of four bytes, in one write.
fn fixed4(bits: u32, out: &mut BytesMut) {
    out.put_u64(4 << 32 | u64::from(bits));
}

/// One of eight.
fn fixed8(bytes: [u8; 8], out: &mut BytesMut) {
    let mut whole = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    whole[4..].copy_from_slice(&bytes);
    out.extend_from_slice(&whole);
}

/// Writes a value and then its length before it.
fn sized(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    write(out);
    let bytes = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
    out[start..start + 4].copy_from_slice(&bytes.to_be_bytes());
}

fn put_bytes(bytes: &[u8], out: &mut BytesMut) -> Result<(), ApiError> {
    out.put_i32(length(bytes.len())?);
    out.put_slice(bytes);
    Ok(())
}

fn length(bytes: usize) -> Result<i32, ApiError> {
    i32::try_from(bytes)
        .map_err(|_| ApiError::new(crate::error::Code::TooLarge, "a value is over 2 GB, more than Postgres takes"))
}

/// Appends all rows of a batch.
pub fn encode(batch: &RecordBatch, columns: &[Column], out: &mut BytesMut, sum: &mut Sum) -> Result<(), ApiError> {
    let values: Result<Vec<_>, _> = columns
        .iter()
        .zip(batch.columns())
        .map(|(column, array)| Values::of(column.form, column.element, array))
        .collect();
    let values = values?;
    let count = i16::try_from(values.len())
        .map_err(|_| ApiError::new(crate::error::Code::Invalid, "Postgres has no tables with so many columns"))?;
    for row in 0..batch.num_rows() {
        let start = out.len();
        out.put_i16(count);
        for column in &values {
            column.put(row, out)?;
        }
        sum.add(&out[start..]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array};

    use super::*;
    use crate::persist::columns::of_new;

    #[test]
    fn a_tuple_is_as_the_documentation_has_it() {
        let columns = [of_new("a", "INTEGER").expect("fits"), of_new("b", "VARCHAR").expect("fits")];
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![Some(7), None]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["ab", ""]));
        let batch = RecordBatch::try_from_iter([("a", numbers), ("b", texts)]).expect("a batch");
        let (mut out, mut sum) = (BytesMut::new(), Sum::default());
        encode(&batch, &columns, &mut out, &mut sum).expect("encodes");
        let first = [0, 2, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 2, b'a', b'b'];
        let second = [0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(&out[..], [first.as_slice(), &second].concat());
        assert_eq!(sum.rows, 2);
        // In another order the same sum, with another value another.
        let (mut turned, mut other) = (Sum::default(), Sum::default());
        turned.add(&second);
        turned.add(&first);
        other.add(&first);
        other.add(&first);
        assert_eq!(turned, sum);
        assert_ne!(other, sum);
    }
}
