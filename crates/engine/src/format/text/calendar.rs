//! Dates, times and intervals as text.

use super::number::{write_int, write_padded, write_u64};

/// How dates and times look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// DuckDB's own: `2024-01-31 12:00:00`, `0044-03-15 (BC)`.
    Duckdb,
    /// ISO 8601: `2024-01-31T12:00:00`; years outside 0–9999 with a sign and six digits or more, year 0 being 1 BC.
    Iso,
}

/// Days since 1970-01-01; the outermost values are the infinities.
pub fn write_date(days: i32, style: Style, out: &mut Vec<u8>) {
    if write_infinity(i64::from(days), i64::from(i32::MAX), out) {
        return;
    }
    let before_christ = write_day(i64::from(days), style, out);
    if before_christ {
        out.extend_from_slice(b" (BC)");
    }
}

/// Units since midnight, `per_second` of them each second; the fraction without trailing zeros.
pub fn write_time(units: i64, per_second: i64, out: &mut Vec<u8>) {
    let seconds = units / per_second;
    write_padded(seconds as u64 / 3600, 2, out);
    out.push(b':');
    write_padded(seconds as u64 / 60 % 60, 2, out);
    out.push(b':');
    write_padded(seconds as u64 % 60, 2, out);
    let mut fraction = (units % per_second) as u64;
    if fraction == 0 {
        return;
    }
    let mut digits = per_second.ilog10() as usize;
    while fraction.is_multiple_of(10) {
        fraction /= 10;
        digits -= 1;
    }
    out.push(b'.');
    write_padded(fraction, digits, out);
}

/// A TIMETZ: 40 bits of microseconds, then 24 bits of `15:59:59 − offset` in seconds.
pub fn write_time_tz(bits: u64, style: Style, out: &mut Vec<u8>) {
    const MAX_OFFSET: i64 = 16 * 3600 - 1;
    write_time((bits >> 24) as i64, 1_000_000, out);
    let offset = MAX_OFFSET - (bits & 0xff_ffff) as i64;
    out.push(if offset < 0 { b'-' } else { b'+' });
    let offset = offset.unsigned_abs();
    write_padded(offset / 3600, 2, out);
    if !offset.is_multiple_of(3600) || style == Style::Iso {
        out.push(b':');
        write_padded(offset / 60 % 60, 2, out);
    }
    if !offset.is_multiple_of(60) {
        out.push(b':');
        write_padded(offset % 60, 2, out);
    }
}

/// Units since 1970-01-01 00:00:00, `per_second` of them each second; the outermost values are the infinities.
pub fn write_timestamp(units: i64, per_second: i64, style: Style, out: &mut Vec<u8>) {
    if write_infinity(units, i64::MAX, out) {
        return;
    }
    let per_day = per_second * 86_400;
    let before_christ = write_day(units.div_euclid(per_day), style, out);
    if before_christ {
        out.extend_from_slice(b" (BC)");
    }
    out.push(if style == Style::Iso { b'T' } else { b' ' });
    write_time(units.rem_euclid(per_day), per_second, out);
}

/// DuckDB's text of an interval: `1 year 2 months 3 days 04:05:06.789`.
pub fn write_interval(months: i32, days: i32, micros: i64, out: &mut Vec<u8>) {
    let start = out.len();
    let part = |value: i32, unit: &str, out: &mut Vec<u8>| {
        if value == 0 {
            return;
        }
        if out.len() > start {
            out.push(b' ');
        }
        write_int(i64::from(value), out);
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if value.unsigned_abs() != 1 {
            out.push(b's');
        }
    };
    part(months / 12, "year", out);
    part(months % 12, "month", out);
    part(days, "day", out);
    if micros == 0 && out.len() > start {
        return;
    }
    if out.len() > start {
        out.push(b' ');
    }
    if micros < 0 {
        out.push(b'-');
    }
    let micros = micros.unsigned_abs();
    let hours = micros / 3_600_000_000;
    if hours < 100 {
        write_padded(hours, 2, out);
    } else {
        write_u64(hours, out);
    }
    let mut rest = Vec::with_capacity(16);
    write_time((micros % 3_600_000_000) as i64, 1_000_000, &mut rest);
    out.extend_from_slice(&rest[2..]);
}

fn write_infinity(value: i64, infinity: i64, out: &mut Vec<u8>) -> bool {
    if value == infinity {
        out.extend_from_slice(b"infinity");
    } else if value == -infinity {
        out.extend_from_slice(b"-infinity");
    }
    value == infinity || value == -infinity
}

/// Writes year, month and day; says whether ` (BC)` belongs behind them.
fn write_day(days: i64, style: Style, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil(days);
    let before_christ = style == Style::Duckdb && year <= 0;
    match style {
        Style::Duckdb => write_padded(if before_christ { 1 - year } else { year } as u64, 4, out),
        Style::Iso if (0..=9999).contains(&year) => write_padded(year as u64, 4, out),
        Style::Iso => {
            out.push(if year < 0 { b'-' } else { b'+' });
            write_padded(year.unsigned_abs(), 6, out);
        }
    }
    out.push(b'-');
    write_padded(month, 2, out);
    out.push(b'-');
    write_padded(day, 2, out);
    before_christ
}

/// Year (astronomical), month and day of a day since 1970-01-01 in the proleptic Gregorian calendar, as in Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms".
fn civil(days: i64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u64, day as u64)
}
