//! Nested values in DuckDB's own notation: `[1, NULL]`, `{'a': 1}`, `{k=v}`, `(1, x)`.

use super::write_scalar;
use crate::format::{EncodeError, types::Kind, view::View};

/// Writes the value at `row`, `NULL` where it is none.
pub(super) fn write_nested(view: &View<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if !view.is_valid(row) || view.ty.kind == Kind::Null {
        out.extend_from_slice(b"NULL");
        return Ok(());
    }
    match &view.ty.kind {
        Kind::List(_) => {
            let entry = view.entry(row);
            write_items(&view.children[0], entry.offset, entry.length, write_item, out)
        }
        // DuckDB quotes the elements of a LIST, but not those of an ARRAY.
        Kind::Array(_, size) => write_items(&view.children[0], row * size, *size, write_nested, out),
        Kind::Struct(fields) => {
            write_struct(fields.iter().map(|(name, _)| name.as_str()).zip(&view.children), row, out)
        }
        Kind::Map(_) => {
            let entry = view.entry(row);
            let entries = &view.children[0];
            out.push(b'{');
            for (i, row) in (entry.offset..entry.offset + entry.length).enumerate() {
                separate(i, out);
                write_item(&entries.children[0], row, out)?;
                out.push(b'=');
                write_item(&entries.children[1], row, out)?;
            }
            out.push(b'}');
            Ok(())
        }
        Kind::Union(_) => {
            let tag = usize::from(view.children[0].get::<u8>(row));
            write_nested(&view.children[tag + 1], row, out)
        }
        _ => write_scalar(view, row, out),
    }
}

type Write = fn(&View<'_>, usize, &mut Vec<u8>) -> Result<(), EncodeError>;

fn write_items(
    child: &View<'_>,
    start: usize,
    length: usize,
    write: Write,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    out.push(b'[');
    for (i, row) in (start..start + length).enumerate() {
        separate(i, out);
        write(child, row, out)?;
    }
    out.push(b']');
    Ok(())
}

fn write_struct<'a>(
    fields: impl Iterator<Item = (&'a str, &'a View<'a>)>,
    row: usize,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut closing = b'}';
    for (i, (name, child)) in fields.enumerate() {
        if i == 0 {
            closing = if name.is_empty() { b')' } else { b'}' };
            out.push(if name.is_empty() { b'(' } else { b'{' });
        }
        separate(i, out);
        if !name.is_empty() {
            let start = out.len();
            out.extend_from_slice(name.as_bytes());
            enclose(out, start);
            out.extend_from_slice(b": ");
        }
        write_item(child, row, out)?;
    }
    out.push(closing);
    Ok(())
}

/// Writes an element: nested ones and JSON as they are, text and all else in quotes where it would read as something else.
fn write_item(view: &View<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let bare = view.ty.is_nested() || view.ty.alias.as_deref() == Some("JSON");
    if bare || !view.is_valid(row) || view.ty.kind == Kind::Null {
        return write_nested(view, row, out);
    }
    let start = out.len();
    write_scalar(view, row, out)?;
    if needs_quotes(&out[start..]) {
        enclose(out, start);
    }
    Ok(())
}

fn separate(i: usize, out: &mut Vec<u8>) {
    if i > 0 {
        out.extend_from_slice(b", ");
    }
}

fn needs_quotes(text: &[u8]) -> bool {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    text.first().is_none_or(is_space)
        || text.last().is_some_and(is_space)
        || text.eq_ignore_ascii_case(b"null")
        || text
            .iter()
            .any(|byte| matches!(byte, b'"' | b'\'' | b'(' | b')' | b',' | b':' | b'=' | b'[' | b']' | b'{' | b'}'))
}

/// Puts what was written from `start` on into single quotes, with `\` before quotes and backslashes.
fn enclose(out: &mut Vec<u8>, start: usize) {
    let text = out.split_off(start);
    out.push(b'\'');
    for byte in text {
        if matches!(byte, b'\'' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'\'');
}
