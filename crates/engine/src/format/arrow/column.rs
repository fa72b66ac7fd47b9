//! A column of the batch that is open: buffers in Arrow's layout, filled from DuckDB's vectors.
//!
//! What lies in a fixed-width buffer at a NULL is whatever DuckDB left there; lists and strings at a NULL are empty.

use std::sync::Arc;

use super::{
    bits::{Bits, Validity},
    ipc::Body,
};
use crate::format::{
    EncodeError,
    buffer::Pool,
    text::{Style, write_plain},
    types::{Kind, Type, Width},
    view::{Strings, View},
};

/// One column, or a child of one.
pub struct Column {
    rows: usize,
    validity: Validity,
    data: Data,
}

enum Data {
    Null,
    Boolean(Bits),
    /// Arrow stores the same bytes as DuckDB.
    Same {
        width: usize,
        values: Vec<u8>,
    },
    /// A DECIMAL stored in less than 16 bytes, widened.
    Decimal {
        width: Width,
        values: Vec<u8>,
    },
    /// A HUGEINT or UHUGEINT, which must fit 38 digits.
    Huge {
        values: Vec<u8>,
    },
    Interval {
        values: Vec<u8>,
    },
    /// Strings and blobs as they are.
    Bytes {
        offsets: Vec<u8>,
        bytes: Vec<u8>,
    },
    /// Values that go out as DuckDB's text.
    Text {
        offsets: Vec<u8>,
        bytes: Vec<u8>,
    },
    /// A LIST or MAP.
    List {
        offsets: Vec<u8>,
        child: Box<Column>,
    },
    Array {
        size: usize,
        child: Box<Column>,
    },
    Struct {
        children: Vec<Column>,
    },
    Union {
        tags: Vec<u8>,
        children: Vec<Column>,
    },
}

impl Column {
    /// An empty column; appends the values of ENUMs inside to `dictionaries`, depth first.
    pub fn new(ty: &Type, dictionaries: &mut Vec<Arc<[String]>>) -> Column {
        let same = |width| Data::Same { width, values: Vec::new() };
        let data = match &ty.kind {
            Kind::Null | Kind::Variant | Kind::Unknown(_) => Data::Null,
            Kind::Boolean => Data::Boolean(Bits::default()),
            Kind::TinyInt | Kind::UTinyInt => same(1),
            Kind::SmallInt | Kind::USmallInt => same(2),
            Kind::Integer | Kind::UInteger | Kind::Float | Kind::Date => same(4),
            Kind::BigInt | Kind::UBigInt | Kind::Double | Kind::Time | Kind::TimeNs => same(8),
            Kind::TimestampS | Kind::TimestampMs | Kind::Timestamp | Kind::TimestampNs | Kind::TimestampTz => same(8),
            Kind::HugeInt | Kind::UHugeInt => Data::Huge { values: Vec::new() },
            Kind::Decimal { width: 16, .. } => same(16),
            Kind::Decimal { width, .. } => Data::Decimal { width: *width, values: Vec::new() },
            Kind::Interval => Data::Interval { values: Vec::new() },
            Kind::Enum { values, width } => {
                dictionaries.push(values.clone());
                same(*width)
            }
            Kind::Varchar | Kind::Blob | Kind::Geometry => Data::Bytes { offsets: first_offset(), bytes: Vec::new() },
            Kind::Bit | Kind::Uuid | Kind::Bignum | Kind::TimeTz => {
                Data::Text { offsets: first_offset(), bytes: Vec::new() }
            }
            Kind::List(child) | Kind::Map(child) => {
                Data::List { offsets: first_offset(), child: Box::new(Column::new(child, dictionaries)) }
            }
            Kind::Array(child, size) => Data::Array { size: *size, child: Box::new(Column::new(child, dictionaries)) },
            Kind::Struct(fields) => {
                Data::Struct { children: fields.iter().map(|(_, child)| Column::new(child, dictionaries)).collect() }
            }
            Kind::Union(members) => Data::Union {
                tags: Vec::new(),
                children: members.iter().map(|(_, child)| Column::new(child, dictionaries)).collect(),
            },
        };
        Column { rows: 0, validity: Validity::default(), data }
    }

    /// Upper bound of what rows add to the buffers whose size is limited: bytes of strings, elements of lists.
    pub fn weight(&self, view: &View<'_>, start: usize, rows: usize) -> usize {
        match &self.data {
            Data::Bytes { .. } => string_bytes(view, start, rows),
            Data::Text { .. } if view.ty.kind == Kind::Uuid => rows * 36,
            Data::Text { .. } => string_weight(view, start, rows),
            Data::List { child, .. } => (start..start + rows)
                .filter(|&row| view.is_valid(row))
                .map(|row| view.entry(row))
                .map(|entry| entry.length + child.weight(&view.children[0], entry.offset, entry.length))
                .sum(),
            Data::Array { size, child } => child.weight(&view.children[0], start * size, rows * size),
            Data::Struct { children } => {
                children.iter().zip(&view.children).map(|(column, child)| column.weight(child, start, rows)).sum()
            }
            Data::Union { children, .. } => {
                children.iter().zip(&view.children[1..]).map(|(column, child)| column.weight(child, start, rows)).sum()
            }
            _ => 0,
        }
    }

    /// Appends rows of a vector of this column's type.
    pub fn append(&mut self, view: &View<'_>, start: usize, rows: usize) -> Result<(), EncodeError> {
        let mask = view.mask(start + rows);
        match &mut self.data {
            Data::Null => {}
            Data::Boolean(bits) => bits.push_bools(view.bytes(start, rows, 1)),
            Data::Same { width, values } => values.extend_from_slice(view.bytes(start, rows, *width)),
            Data::Decimal { width, values } => widen(view, start, rows, *width, values),
            Data::Huge { values } => append_huge(view, start, rows, values)?,
            Data::Interval { values } => append_intervals(view, start, rows, values)?,
            Data::Bytes { offsets, bytes } => append_strings(view, start, rows, offsets, bytes)?,
            Data::Text { offsets, bytes } => {
                for row in start..start + rows {
                    if view.is_valid(row) {
                        write_plain(view, row, Style::Duckdb, bytes)?;
                    }
                    push_offset(offsets, bytes.len())?;
                }
            }
            Data::List { offsets, child } => append_lists(view, start, rows, offsets, child)?,
            Data::Array { size, child } => append_arrays(view, start, rows, *size, child)?,
            Data::Struct { children } => {
                for (column, child) in children.iter_mut().zip(&view.children) {
                    column.append(child, start, rows)?;
                }
            }
            Data::Union { tags, children } => {
                // A NULL union has no tag; the first member carries the NULL.
                tags.extend(
                    (start..start + rows)
                        .map(|row| if view.is_valid(row) { view.children[0].get::<u8>(row) } else { 0 }),
                );
                for (column, child) in children.iter_mut().zip(&view.children[1..]) {
                    column.append(child, start, rows)?;
                }
            }
        }
        self.validity.push(mask, start, rows);
        self.rows += rows;
        Ok(())
    }

    fn append_nulls(&mut self, rows: usize) -> Result<(), EncodeError> {
        match &mut self.data {
            Data::Null => {}
            Data::Boolean(bits) => bits.push_same(false, rows),
            Data::Same { width, values } => values.resize(values.len() + rows * *width, 0),
            Data::Decimal { values, .. } | Data::Huge { values } | Data::Interval { values } => {
                values.resize(values.len() + rows * 16, 0)
            }
            Data::Bytes { offsets, bytes } | Data::Text { offsets, bytes } => {
                for _ in 0..rows {
                    push_offset(offsets, bytes.len())?;
                }
            }
            Data::List { offsets, child } => {
                for _ in 0..rows {
                    push_offset(offsets, child.rows)?;
                }
            }
            Data::Array { size, child } => child.append_nulls(rows * *size)?,
            Data::Struct { children } => children.iter_mut().try_for_each(|child| child.append_nulls(rows))?,
            Data::Union { tags, children } => {
                tags.resize(tags.len() + rows, 0);
                children.iter_mut().try_for_each(|child| child.append_nulls(rows))?;
            }
        }
        self.validity.push_null(rows);
        self.rows += rows;
        Ok(())
    }

    /// Bytes in the buffers.
    pub fn bytes(&self) -> usize {
        self.validity.bytes()
            + match &self.data {
                Data::Null => 0,
                Data::Boolean(bits) => bits.bytes.len(),
                Data::Same { values, .. }
                | Data::Decimal { values, .. }
                | Data::Huge { values }
                | Data::Interval { values } => values.len(),
                Data::Bytes { offsets, bytes } | Data::Text { offsets, bytes } => offsets.len() + bytes.len(),
                Data::List { offsets, child } => offsets.len() + child.bytes(),
                Data::Array { child, .. } => child.bytes(),
                Data::Struct { children } => children.iter().map(Column::bytes).sum(),
                Data::Union { tags, children } => tags.len() + children.iter().map(Column::bytes).sum::<usize>(),
            }
    }

    /// Moves nodes and buffers into `body`, and starts again with empty buffers of about the same size.
    pub fn finish(&mut self, body: &mut Body, pool: &Pool) {
        let rows = std::mem::take(&mut self.rows);
        let renew = |buffer: &mut Vec<u8>| {
            let room = buffer.len() + buffer.len() / 8;
            std::mem::replace(buffer, pool.take(room))
        };
        let (mask, nulls) = self.validity.take(Vec::new());
        match &mut self.data {
            Data::Null => return body.node(rows, rows),
            Data::Union { tags, children } => {
                body.node(rows, 0);
                body.buffer(renew(tags));
                return children.iter_mut().for_each(|child| child.finish(body, pool));
            }
            _ => {
                body.node(rows, nulls);
                body.buffer(mask);
            }
        }
        match &mut self.data {
            Data::Boolean(bits) => body.buffer(bits.restart(Vec::new())),
            Data::Same { values, .. }
            | Data::Decimal { values, .. }
            | Data::Huge { values }
            | Data::Interval { values } => {
                body.buffer(renew(values));
            }
            Data::Bytes { offsets, bytes } | Data::Text { offsets, bytes } => {
                body.buffer(renew(offsets));
                body.buffer(renew(bytes));
                offsets.extend_from_slice(&first_offset());
            }
            Data::List { offsets, child } => {
                body.buffer(renew(offsets));
                offsets.extend_from_slice(&first_offset());
                child.finish(body, pool);
            }
            Data::Array { child, .. } => child.finish(body, pool),
            Data::Struct { children } => children.iter_mut().for_each(|child| child.finish(body, pool)),
            Data::Null | Data::Union { .. } => {}
        }
    }
}

fn first_offset() -> Vec<u8> {
    vec![0; 4]
}

fn push_offset(offsets: &mut Vec<u8>, end: usize) -> Result<(), EncodeError> {
    let end = i32::try_from(end)
        .map_err(|_| EncodeError::value("a row has more than 2 GiB of values; select less of it at once"))?;
    offsets.extend_from_slice(&end.to_le_bytes());
    Ok(())
}

fn string_bytes(view: &View<'_>, start: usize, rows: usize) -> usize {
    let strings = view.strings();
    match view.mask(start + rows) {
        None => (start..start + rows).map(|row| strings.length(row)).sum(),
        Some(_) => (start..start + rows).filter(|&row| view.is_valid(row)).map(|row| strings.length(row)).sum(),
    }
}

/// Of values that become longer as text: a bit becomes a byte, a byte of a BIGNUM at most three digits.
fn string_weight(view: &View<'_>, start: usize, rows: usize) -> usize {
    match view.ty.kind {
        Kind::TimeTz => rows * 24,
        _ => string_bytes(view, start, rows) * 8,
    }
}

fn append_strings(
    view: &View<'_>,
    start: usize,
    rows: usize,
    offsets: &mut Vec<u8>,
    bytes: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let strings = view.strings();
    let total = string_bytes(view, start, rows);
    if bytes.len() + total > i32::MAX as usize {
        return Err(EncodeError::value("a row has more than 2 GiB of values; select less of it at once"));
    }
    bytes.reserve(total + Strings::INLINE);
    offsets.reserve(rows * 4);
    let all_valid = view.mask(start + rows).is_none();
    let mut end = bytes.len();
    let base = bytes.as_mut_ptr();
    let slots = offsets.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    for (i, row) in (start..start + rows).enumerate() {
        if all_valid || view.is_valid(row) {
            let length = strings.length(row);
            // SAFETY: `total` bytes and 12 more are reserved behind the old end, and the sum of all lengths is `total`; a string in
            // place has 12 readable bytes, a longer one `length`.
            unsafe {
                let copied = if length <= Strings::INLINE { Strings::INLINE } else { length };
                if length <= Strings::INLINE {
                    base.add(end)
                        .cast::<[u8; 12]>()
                        .write_unaligned(strings.pointer(row).cast::<[u8; 12]>().read_unaligned());
                } else {
                    std::ptr::copy_nonoverlapping(strings.pointer(row), base.add(end), copied);
                }
            }
            end += length;
        }
        // SAFETY: room for `rows` offsets of 4 bytes was reserved.
        unsafe { slots.add(i * 4).cast::<[u8; 4]>().write((end as u32).to_le_bytes()) };
    }
    // SAFETY: everything up to the new lengths was written above.
    unsafe {
        bytes.set_len(end);
        offsets.set_len(offsets.len() + rows * 4);
    }
    Ok(())
}

fn widen(view: &View<'_>, start: usize, rows: usize, width: Width, values: &mut Vec<u8>) {
    let stored = view.bytes(start, rows, width);
    values.reserve(rows * 16);
    match width {
        2 => values
            .extend(stored.as_chunks::<2>().0.iter().flat_map(|v| i128::from(i16::from_le_bytes(*v)).to_le_bytes())),
        4 => values
            .extend(stored.as_chunks::<4>().0.iter().flat_map(|v| i128::from(i32::from_le_bytes(*v)).to_le_bytes())),
        _ => values
            .extend(stored.as_chunks::<8>().0.iter().flat_map(|v| i128::from(i64::from_le_bytes(*v)).to_le_bytes())),
    }
}

fn append_huge(view: &View<'_>, start: usize, rows: usize, values: &mut Vec<u8>) -> Result<(), EncodeError> {
    const LIMIT: u128 = 10u128.pow(38);
    let signed = view.ty.kind == Kind::HugeInt;
    for row in start..start + rows {
        let magnitude = if signed { view.i128(row).unsigned_abs() } else { view.get::<u128>(row) };
        if magnitude >= LIMIT && view.is_valid(row) {
            return Err(EncodeError::value(&format!(
                "a value of type `{}` has more than the 38 digits of an Arrow decimal; cast it to VARCHAR in the query",
                view.ty
            )));
        }
    }
    values.extend_from_slice(view.bytes(start, rows, 16));
    Ok(())
}

fn append_intervals(view: &View<'_>, start: usize, rows: usize, values: &mut Vec<u8>) -> Result<(), EncodeError> {
    for row in start..start + rows {
        let [months_and_days, micros] = if view.is_valid(row) { view.get::<[u64; 2]>(row) } else { [0, 0] };
        let nanos = (micros as i64)
            .checked_mul(1000)
            .ok_or_else(|| EncodeError::value("an INTERVAL has more than the 292 years that Arrow counts in nanoseconds; cast it to VARCHAR in the query"))?;
        values.extend_from_slice(&months_and_days.to_le_bytes());
        values.extend_from_slice(&nanos.to_le_bytes());
    }
    Ok(())
}

/// Appends lists; their elements in runs as long as they lie side by side.
fn append_lists(
    view: &View<'_>,
    start: usize,
    rows: usize,
    offsets: &mut Vec<u8>,
    child: &mut Column,
) -> Result<(), EncodeError> {
    let elements = &view.children[0];
    let (mut run_start, mut run_length) = (0, 0);
    let mut end = child.rows;
    for row in start..start + rows {
        if view.is_valid(row) {
            let entry = view.entry(row);
            if run_length > 0 && entry.length > 0 && entry.offset != run_start + run_length {
                child.append(elements, run_start, run_length)?;
                run_length = 0;
            }
            if run_length == 0 {
                run_start = entry.offset;
            }
            run_length += entry.length;
            end += entry.length;
        }
        push_offset(offsets, end)?;
    }
    child.append(elements, run_start, run_length)
}

/// Appends arrays; the elements of a NULL array are NULLs, whatever DuckDB left there.
fn append_arrays(
    view: &View<'_>,
    start: usize,
    rows: usize,
    size: usize,
    child: &mut Column,
) -> Result<(), EncodeError> {
    if view.mask(start + rows).is_none() {
        return child.append(&view.children[0], start * size, rows * size);
    }
    for row in start..start + rows {
        if view.is_valid(row) {
            child.append(&view.children[0], row * size, size)?;
        } else {
            child.append_nulls(size)?;
        }
    }
    Ok(())
}
