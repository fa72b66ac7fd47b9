//! Values as CSV by RFC 4180: DuckDB's own text, quoted where needed; NULL is an empty field, an empty string is `""`.

use super::{EncodeError, text::write_duckdb, types::Kind, view::View};

/// Writes one field.
pub fn write_field(view: &View<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if !view.is_valid(row) || view.ty.kind == Kind::Null {
        return Ok(());
    }
    let start = out.len();
    write_duckdb(view, row, out)?;
    quote(out, start);
    Ok(())
}

/// Writes a name of the header line.
pub fn write_name(name: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    quote(out, start);
}

/// Puts the field from `start` on into quotes if a reader would otherwise see something else.
fn quote(out: &mut Vec<u8>, start: usize) {
    let field = &out[start..];
    let special = |byte: &u8| matches!(byte, b'"' | b',' | b'\n' | b'\r');
    let padded = field.first().is_some_and(|b| *b == b' ') || field.last().is_some_and(|b| *b == b' ');
    if !field.is_empty() && !padded && !field.iter().any(special) {
        return;
    }
    let field = out.split_off(start);
    out.reserve(field.len() + 2);
    out.push(b'"');
    for byte in field {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}
