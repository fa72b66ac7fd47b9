//! Postgres' `numeric` in its binary form: groups of four decimal digits around the point.

use bytes::{BufMut, BytesMut};

const BASE: u128 = 10_000;
const POWERS: [u128; 4] = [1, 10, 100, 1000];
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITE: u16 = 0xD000;
const MINUS_INFINITE: u16 = 0xF000;

/// A number, or one of what is none.
#[derive(Debug, PartialEq)]
pub struct Numeric {
    groups: Vec<i16>,
    /// Of the first group: how many groups stand before the point, less one.
    weight: i16,
    sign: u16,
    /// Digits behind the point.
    scale: u16,
}

impl Numeric {
    pub fn put(&self, out: &mut BytesMut) {
        out.put_i16(i16::try_from(self.groups.len()).unwrap_or(i16::MAX));
        out.put_i16(self.weight);
        out.put_u16(self.sign);
        out.put_u16(self.scale);
        self.groups.iter().for_each(|group| out.put_i16(*group));
    }
}

/// Appends a decimal of `scale` digits behind its point.
pub fn put(value: i128, scale: u8, out: &mut BytesMut) {
    // So that the point stands between two groups.
    let filled = (4 - scale % 4) % 4;
    let Some(mut rest) = value.unsigned_abs().checked_mul(POWERS[usize::from(filled)]) else {
        // Too wide to be shifted: digit by digit.
        let digits = value.unsigned_abs().to_string();
        return of_digits(value < 0, &digits, i64::from(scale)).put(out);
    };
    // 39 digits are 10 groups.
    let (mut groups, mut count) = ([0i16; 11], 0);
    // Division of 128 bits is a call and slow; few numbers need it, and none for long.
    let mut short = loop {
        if let Ok(short) = u64::try_from(rest) {
            break short;
        }
        groups[count] = i16::try_from(rest % BASE).unwrap_or(0);
        rest /= BASE;
        count += 1;
    };
    while short > 0 {
        groups[count] = i16::try_from(short % BASE as u64).unwrap_or(0);
        short /= BASE as u64;
        count += 1;
    }
    let behind = i16::from((scale + filled) / 4);
    let count_i16 = i16::try_from(count).unwrap_or(0);
    out.put_i16(count_i16);
    out.put_i16(count_i16 - behind - 1);
    out.put_u16(if value < 0 { NEGATIVE } else { 0 });
    out.put_u16(scale.into());
    groups[..count].iter().rev().for_each(|group| out.put_i16(*group));
}

/// Of digits with `scale` of them behind the point (fewer than none: zeros follow).
fn of_digits(negative: bool, digits: &str, scale: i64) -> Numeric {
    let mut digits = digits.trim_start_matches('0').to_owned();
    let mut scale = scale;
    if scale < 0 {
        digits.extend(std::iter::repeat_n('0', usize::try_from(-scale).unwrap_or(0)));
        scale = 0;
    }
    let filled = usize::try_from((4 - scale % 4) % 4).unwrap_or(0);
    digits.extend(std::iter::repeat_n('0', filled));
    let ahead = (4 - digits.len() % 4) % 4;
    let digits: String = std::iter::repeat_n('0', ahead).chain(digits.chars()).collect();
    let groups: Vec<i16> = digits
        .as_bytes()
        .chunks(4)
        .map(|four| four.iter().fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0')))
        .collect();
    let behind = (scale + i64::try_from(filled).unwrap_or(0)) / 4;
    let weight = i64::try_from(groups.len()).unwrap_or(0) - behind - 1;
    Numeric {
        groups,
        weight: i16::try_from(weight).unwrap_or(i16::MAX),
        sign: if negative { NEGATIVE } else { 0 },
        scale: u16::try_from(scale).unwrap_or(u16::MAX),
    }
}

/// Of a number's text, as DuckDB writes it: digits, perhaps a point, perhaps an exponent; or `nan`, `inf`.
pub fn parse(text: &str) -> Option<Numeric> {
    let special = |sign| Some(Numeric { groups: Vec::new(), weight: 0, sign, scale: 0 });
    match text.to_ascii_lowercase().as_str() {
        "nan" | "-nan" => return special(NAN),
        "inf" | "infinity" | "+inf" => return special(INFINITE),
        "-inf" | "-infinity" => return special(MINUS_INFINITE),
        _ => {}
    }
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{part}");
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) || exponent.abs() > 10_000 {
        return None;
    }
    let scale = i64::try_from(part.len()).ok()?.checked_sub(exponent)?;
    Some(of_digits(negative, &digits, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: i128, scale: u8) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(value, scale, &mut out);
        out.to_vec()
    }

    fn bytes(parts: &[i32]) -> Vec<u8> {
        parts.iter().flat_map(|part| (*part as u16).to_be_bytes()).collect()
    }

    #[test]
    fn decimals_are_cut_into_groups_around_the_point() {
        assert_eq!(written(0, 2), bytes(&[0, -2, 0, 2]));
        assert_eq!(written(123_456_789, 3), bytes(&[3, 1, 0, 3, 12, 3456, 7890]));
        assert_eq!(written(-5, 1), bytes(&[1, -1, 0x4000, 1, 5000]));
        assert_eq!(written(1, 8), bytes(&[1, -2, 0, 8, 1]));
        assert_eq!(written(10_000, 0), bytes(&[2, 1, 0, 0, 1, 0]));
    }

    #[test]
    fn a_number_and_its_text_are_the_same() {
        let groups = |bytes: &[u8]| {
            // Zeros at either end say nothing, and Postgres drops them.
            let word = |at: usize| i16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]);
            let digits: Vec<i16> = (4..bytes.len() / 2).map(word).collect();
            let ahead = digits.iter().take_while(|group| **group == 0).count();
            let weight = word(1) - i16::try_from(ahead).expect("few");
            let rest: Vec<i16> = digits[ahead..].to_vec();
            let end = rest.iter().rposition(|group| *group != 0).map_or(0, |at| at + 1);
            (if end == 0 { 0 } else { weight }, word(2), word(3), rest[..end].to_vec())
        };
        for (value, scale, text) in [
            (0, 0, "0"),
            (7, 0, "7"),
            (-1_234_567, 2, "-12345.67"),
            (5, 9, "0.000000005"),
            (i128::MAX, 0, "170141183460469231731687303715884105727"),
            (-10i128.pow(38) + 1, 38, "-0.99999999999999999999999999999999999999"),
            (99_999_999_999_999_999_999_999_999_999_999_999_999, 1, "9999999999999999999999999999999999999.9"),
        ] {
            let mut out = BytesMut::new();
            parse(text).expect(text).put(&mut out);
            assert_eq!(groups(&out), groups(&written(value, scale)), "{text}");
        }
        assert_eq!(parse("1.5e3"), parse("1500"));
        assert_eq!(parse("25e-2"), parse("0.25"));
        assert_eq!(parse("NaN").map(|number| number.sign), Some(NAN));
        assert_eq!(parse("-inf").map(|number| number.sign), Some(MINUS_INFINITE));
        for none in ["", "-", "1.2.3", "1e", "x", "1e99999999"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
