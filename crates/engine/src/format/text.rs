//! Values as text, in two dialects.
//!
//! `write_duckdb` gives what `value::VARCHAR` gives (a test compares them type by type), with time zones in UTC, but for one thing: a
//! FLOAT or DOUBLE has the fewest digits that read back as the same number. DuckDB 1.5.5's own cast has more digits at times, and is
//! off by a factor of two for some powers of two (2^81). JSON takes the same pieces with ISO 8601 separators (`super::json`).

mod calendar;
mod nested;
mod number;

pub use calendar::{Style, write_date, write_interval, write_time, write_time_tz, write_timestamp};
pub use number::{write_bignum, write_decimal, write_double, write_float, write_int};

use super::{EncodeError, types::Kind, view::View};

/// Writes the value at `row`, which is not NULL, as DuckDB's own cast to VARCHAR does.
pub fn write_duckdb(view: &View<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if view.ty.is_nested() { nested::write_nested(view, row, out) } else { write_scalar(view, row, out) }
}

fn write_scalar(view: &View<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match &view.ty.kind {
        Kind::Boolean => out.extend_from_slice(if view.get::<u8>(row) != 0 { b"true" } else { b"false" }),
        Kind::Float => write_float(view.get(row), out),
        Kind::Double => write_double(view.get(row), out),
        Kind::Varchar => out.extend_from_slice(view.string(row)),
        Kind::Blob => write_blob(view.string(row), out),
        kind if is_integer(kind) => write_integer(view, row, out),
        _ => write_plain(view, row, Style::Duckdb, out)?,
    }
    Ok(())
}

/// The types whose text needs no quoting or escaping in any format; `style` decides between `2024-01-31 12:00:00` and ISO 8601.
pub fn write_plain(view: &View<'_>, row: usize, style: Style, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match &view.ty.kind {
        Kind::Bignum => write_bignum(view.string(row), out)?,
        Kind::Decimal { precision, scale, width } => {
            let leading_zero = style == Style::Iso || precision != scale;
            write_decimal(view.scaled(row, *width), *scale, leading_zero, out);
        }
        Kind::Bit => write_bits(view.string(row), out),
        Kind::Uuid => write_uuid(view.i128(row), out),
        Kind::Date => write_date(view.get(row), style, out),
        Kind::Time => write_time(view.get(row), 1_000_000, out),
        Kind::TimeNs => write_time(view.get(row), 1_000_000_000, out),
        Kind::TimeTz => write_time_tz(view.get(row), style, out),
        Kind::TimestampS => write_timestamp(view.get(row), 1, style, out),
        Kind::TimestampMs => write_timestamp(view.get(row), 1_000, style, out),
        Kind::Timestamp => write_timestamp(view.get(row), 1_000_000, style, out),
        Kind::TimestampNs => write_timestamp(view.get(row), 1_000_000_000, style, out),
        Kind::TimestampTz => {
            let micros: i64 = view.get(row);
            write_timestamp(micros, 1_000_000, style, out);
            if micros.unsigned_abs() != i64::MAX as u64 {
                out.extend_from_slice(if style == Style::Iso { b"Z" } else { b"+00" });
            }
        }
        Kind::Interval => {
            let [first, micros] = view.get::<[u64; 2]>(row);
            write_interval(first as u32 as i32, (first >> 32) as u32 as i32, micros as i64, out);
        }
        Kind::Enum { values, width } => out.extend_from_slice(values[view.enum_index(row, *width)].as_bytes()),
        kind if is_integer(kind) => write_integer(view, row, out),
        _ => return Err(EncodeError::unsupported(view.ty)),
    }
    Ok(())
}

/// Is it one of the integers that fit 128 bits?
pub fn is_integer(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::TinyInt
            | Kind::SmallInt
            | Kind::Integer
            | Kind::BigInt
            | Kind::HugeInt
            | Kind::UTinyInt
            | Kind::USmallInt
            | Kind::UInteger
            | Kind::UBigInt
            | Kind::UHugeInt
    )
}

/// Writes the integer at `row` in decimal.
pub fn write_integer(view: &View<'_>, row: usize, out: &mut Vec<u8>) {
    match view.ty.kind {
        Kind::TinyInt => write_int(i64::from(view.get::<i8>(row)), out),
        Kind::SmallInt => write_int(i64::from(view.get::<i16>(row)), out),
        Kind::Integer => write_int(i64::from(view.get::<i32>(row)), out),
        Kind::BigInt => write_int(view.get::<i64>(row), out),
        Kind::UTinyInt => write_int(i64::from(view.get::<u8>(row)), out),
        Kind::USmallInt => write_int(i64::from(view.get::<u16>(row)), out),
        Kind::UInteger => write_int(i64::from(view.get::<u32>(row)), out),
        Kind::UBigInt => number::write_u64(view.get::<u64>(row), out),
        Kind::UHugeInt => number::write_u128(view.get::<u128>(row), out),
        _ => number::write_i128(view.i128(row), out),
    }
}

/// Printable ASCII as it is, but for quotes and the backslash; all else as `\xHH`.
fn write_blob(bytes: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if (0x20..=0x7e).contains(&byte) && !matches!(byte, b'\\' | b'\'' | b'"') {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// A BIT is stored as the number of unused leading bits, then the bits.
fn write_bits(stored: &[u8], out: &mut Vec<u8>) {
    let [padding, bits @ ..] = stored else { return };
    let all = bits.iter().flat_map(|byte| (0..8).rev().map(move |bit| b'0' + (byte >> bit & 1)));
    out.extend(all.skip(usize::from(*padding)));
}

/// A UUID is stored as a number whose top bit is flipped so that it sorts.
fn write_uuid(stored: i128, out: &mut Vec<u8>) {
    let mut buffer = uuid::Uuid::encode_buffer();
    let id = uuid::Uuid::from_u128(stored as u128 ^ (1 << 127));
    out.extend_from_slice(id.hyphenated().encode_lower(&mut buffer).as_bytes());
}
