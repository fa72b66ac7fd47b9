//! Numbers as text.

use super::super::EncodeError;

/// Writes an integer in decimal.
pub fn write_int(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_u64(value.unsigned_abs(), out);
}

/// Writes an integer in decimal.
pub(super) fn write_u64(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let start = fill(value, &mut digits);
    out.extend_from_slice(&digits[start..]);
}

pub(super) fn write_u128(value: u128, out: &mut Vec<u8>) {
    const GROUP: u128 = 10_000_000_000_000_000_000;
    if let Ok(small) = u64::try_from(value) {
        return write_u64(small, out);
    }
    write_u128(value / GROUP, out);
    write_padded((value % GROUP) as u64, 19, out);
}

pub(super) fn write_i128(value: i128, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_u128(value.unsigned_abs(), out);
}

/// Writes `value` with zeros in front, `width` (at most 20) digits at least.
pub(super) fn write_padded(value: u64, width: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let start = fill(value, &mut digits).min(20 - width);
    out.extend_from_slice(&digits[start..]);
}

/// Fills `digits` from the end; returns where the first digit is.
fn fill(mut value: u64, digits: &mut [u8; 20]) -> usize {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return at;
        }
    }
}

/// Writes an unscaled decimal. Without `leading_zero` a number below one starts with its point, as DuckDB prints a DECIMAL all of
/// whose digits are behind it.
pub fn write_decimal(unscaled: i128, scale: u8, leading_zero: bool, out: &mut Vec<u8>) {
    if scale == 0 {
        return write_i128(unscaled, out);
    }
    if unscaled < 0 {
        out.push(b'-');
    }
    let scale = usize::from(scale);
    let mut digits = Vec::with_capacity(40);
    write_u128(unscaled.unsigned_abs(), &mut digits);
    if digits.len() > scale {
        out.extend_from_slice(&digits[..digits.len() - scale]);
    } else if leading_zero {
        out.push(b'0');
    }
    out.push(b'.');
    out.resize(out.len() + scale.saturating_sub(digits.len()), b'0');
    out.extend_from_slice(&digits[digits.len().saturating_sub(scale)..]);
}

/// Writes a DOUBLE with the fewest digits that read back as the same number.
pub fn write_double(value: f64, out: &mut Vec<u8>) {
    write_shortest(zmij::Buffer::new().format(value), out);
}

/// Writes a FLOAT with the fewest digits that read back as the same number.
pub fn write_float(value: f32, out: &mut Vec<u8>) {
    write_shortest(zmij::Buffer::new().format(value), out);
}

/// Takes the digits of `shortest` (`-1.5e-7`, `120.0`, `NaN`) and writes them as DuckDB does: `1.0`, `0.0001`, `1e-05`, `1e+16`; plain
/// from 1e-4 up to below 1e16, else with an exponent of two digits or more.
fn write_shortest(shortest: &str, out: &mut Vec<u8>) {
    let magnitude = shortest.trim_start_matches('-');
    match magnitude {
        "NaN" => return out.extend_from_slice(b"nan"),
        _ if magnitude.len() < shortest.len() => out.push(b'-'),
        _ => {}
    }
    if magnitude == "inf" {
        return out.extend_from_slice(b"inf");
    }
    let (mantissa, exponent) = magnitude.split_once('e').unwrap_or((magnitude, "0"));
    let exponent: i32 = exponent.parse().expect("an exponent is a small number");
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = [0u8; 40];
    let all = whole.bytes().chain(fraction.bytes());
    let count = digits.iter_mut().zip(all).map(|(digit, byte)| *digit = byte).count();
    let leading = digits[..count].iter().take_while(|digit| **digit == b'0').count();
    if leading == count {
        return out.extend_from_slice(b"0.0");
    }
    let trailing = digits[..count].iter().rev().take_while(|digit| **digit == b'0').count();
    let exponent = exponent + whole.len() as i32 - 1 - leading as i32;
    write_digits(&digits[leading..count - trailing], exponent, out);
}

/// `digits`, without zeros at either end, times ten to the `exponent` of the first.
fn write_digits(digits: &[u8], exponent: i32, out: &mut Vec<u8>) {
    let count = digits.len() as i32;
    if !(-4..16).contains(&exponent) {
        out.push(digits[0]);
        if count > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        return write_padded(u64::from(exponent.unsigned_abs()), 2, out);
    }
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + exponent.unsigned_abs() as usize - 1, b'0');
        out.extend_from_slice(digits);
    } else if count > exponent + 1 {
        let point = exponent as usize + 1;
        out.extend_from_slice(&digits[..point]);
        out.push(b'.');
        out.extend_from_slice(&digits[point..]);
    } else {
        out.extend_from_slice(digits);
        out.resize(out.len() + (exponent + 1 - count) as usize, b'0');
        out.extend_from_slice(b".0");
    }
}

/// Longest BIGNUM that is turned into text, in stored bytes: the conversion takes quadratic time.
const MAX_BIGNUM_BYTES: usize = 64 * 1024;

/// Writes a BIGNUM: three bytes of header, whose top bit is set for a positive number, then the magnitude, highest byte first; of a
/// negative number all bits are flipped.
pub fn write_bignum(stored: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    const GROUP: u64 = 1_000_000_000;
    let [first, _, _, magnitude @ ..] = stored else {
        return Err(EncodeError::value("a BIGNUM is shorter than its header"));
    };
    if stored.len() > MAX_BIGNUM_BYTES {
        return Err(EncodeError::value("a BIGNUM has too many digits; cast it to VARCHAR in the query"));
    }
    let negative = first & 0x80 == 0;
    let flip = if negative { 0xff } else { 0 };
    // Little-endian words in base 2^32, divided again and again by 10^9.
    let mut words: Vec<u32> = magnitude
        .rchunks(4)
        .map(|chunk| chunk.iter().fold(0, |word, byte| word << 8 | u32::from(byte ^ flip)))
        .collect();
    let mut groups = Vec::new();
    loop {
        while words.last() == Some(&0) {
            words.pop();
        }
        if words.is_empty() {
            break;
        }
        let mut remainder = 0u64;
        for word in words.iter_mut().rev() {
            let value = remainder << 32 | u64::from(*word);
            *word = (value / GROUP) as u32;
            remainder = value % GROUP;
        }
        groups.push(remainder);
    }
    let Some(highest) = groups.pop() else {
        out.push(b'0');
        return Ok(());
    };
    if negative {
        out.push(b'-');
    }
    write_u64(highest, out);
    for group in groups.into_iter().rev() {
        write_padded(group, 9, out);
    }
    Ok(())
}
