//! Values as JSON. The choices (which number becomes a string, how a map looks) are told in `docs/types.md`.

use base64::Engine as _;

use super::{
    EncodeError,
    text::{Style, is_integer, write_integer, write_plain},
    types::Kind,
    view::View,
};

/// The largest integer that every JSON reader holds exactly, 2^53 − 1.
const MAX_SAFE_DIGITS: &[u8] = b"9007199254740991";

/// Writes the value at `row`.
pub fn write_value(view: &View<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if !view.is_valid(row) || view.ty.kind == Kind::Null {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    match &view.ty.kind {
        Kind::Boolean => out.extend_from_slice(if view.get::<u8>(row) != 0 { b"true" } else { b"false" }),
        kind if is_integer(kind) => write_safe_integer(view, row, out),
        Kind::Float => write_float(view.get::<f32>(row), f64::from(view.get::<f32>(row)), out),
        Kind::Double => write_float(view.get::<f64>(row), view.get::<f64>(row), out),
        Kind::Varchar => write_string(view.string(row), out),
        Kind::Blob => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(view.string(row));
            write_string(encoded.as_bytes(), out);
        }
        Kind::Enum { values, width } => write_string(values[view.enum_index(row, *width)].as_bytes(), out),
        Kind::List(_) => {
            let entry = view.entry(row);
            write_array(&view.children[0], entry.offset, entry.length, out)?;
        }
        Kind::Array(_, size) => write_array(&view.children[0], row * size, *size, out)?,
        Kind::Struct(fields) if fields.iter().all(|(name, _)| name.is_empty()) => {
            write_list(view.children.iter(), out, |child, out| write_value(child, row, out))?;
        }
        Kind::Struct(fields) => {
            out.push(b'{');
            for (i, ((name, _), child)) in fields.iter().zip(&view.children).enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(name.as_bytes(), out);
                out.push(b':');
                write_value(child, row, out)?;
            }
            out.push(b'}');
        }
        Kind::Map(_) => {
            let entry = view.entry(row);
            write_array(&view.children[0], entry.offset, entry.length, out)?;
        }
        Kind::Union(members) => {
            let tag = usize::from(view.children[0].get::<u8>(row));
            out.extend_from_slice(b"{\"tag\":");
            write_string(members[tag].0.as_bytes(), out);
            out.extend_from_slice(b",\"value\":");
            write_value(&view.children[tag + 1], row, out)?;
            out.push(b'}');
        }
        // All else is text of digits, letters and punctuation that needs no escape.
        _ => {
            out.push(b'"');
            write_plain(view, row, Style::Iso, out)?;
            out.push(b'"');
        }
    }
    Ok(())
}

fn write_array(child: &View<'_>, start: usize, length: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    write_list(start..start + length, out, |row, out| write_value(child, row, out))
}

fn write_list<T>(
    items: impl Iterator<Item = T>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(T, &mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    out.push(b'[');
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(item, out)?;
    }
    out.push(b']');
    Ok(())
}

/// A number where every reader can hold it, else a string of its digits.
fn write_safe_integer(view: &View<'_>, row: usize, out: &mut Vec<u8>) {
    let start = out.len();
    write_integer(view, row, out);
    let digits = if out[start] == b'-' { &out[start + 1..] } else { &out[start..] };
    let safe =
        digits.len() < MAX_SAFE_DIGITS.len() || digits.len() == MAX_SAFE_DIGITS.len() && digits <= MAX_SAFE_DIGITS;
    if !safe {
        out.insert(start, b'"');
        out.push(b'"');
    }
}

fn write_float(value: impl serde::Serialize, wide: f64, out: &mut Vec<u8>) {
    if wide.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else if wide.is_infinite() {
        out.extend_from_slice(if wide > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
    } else {
        serde_json::to_writer(out, &value).expect("a finite number is valid JSON and a vector takes all bytes");
    }
}

/// Writes a JSON string. DuckDB's strings are valid UTF-8; bytes that are not would pass through as they are.
pub fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut done = 0;
    for (at, &byte) in text.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"\\u00",
            _ => continue,
        };
        out.extend_from_slice(&text[done..at]);
        out.extend_from_slice(escape);
        if escape.len() == 4 {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        done = at + 1;
    }
    out.extend_from_slice(&text[done..]);
    out.push(b'"');
}
