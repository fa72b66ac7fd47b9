//! How large an array gets when its runs and dictionaries are written out, found before anything is written.
//!
//! A run of a million equal values is a few bytes in a body, and so is a dictionary's value that a million rows name.

use arrow_array::{Array, ArrayRef, GenericByteArray, RunArray, cast::AsArray, types::*};
use arrow_buffer::ArrowNativeType as _;
use arrow_schema::DataType;

/// Has the type a part whose values stand for more than one row?
pub(super) fn is_shared(ty: &DataType) -> bool {
    match ty {
        DataType::Dictionary(..) | DataType::RunEndEncoded(..) => true,
        DataType::Struct(fields) => fields.iter().any(|field| is_shared(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| is_shared(field.data_type())),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => is_shared(field.data_type()),
        _ => false,
    }
}

/// What is left of a number of bytes.
pub(super) struct Budget(pub u64);

impl Budget {
    /// Takes what `array` needs when written out; `None` if that is too much, and no more of it is looked at then.
    pub fn take(&mut self, array: &ArrayRef) -> Option<()> {
        self.rows(array, 0, array.len(), 1)
    }

    fn bytes(&mut self, bytes: usize, times: u64) -> Option<()> {
        self.0 = self.0.checked_sub((bytes as u64).checked_mul(times)?)?;
        Some(())
    }

    /// Rows `from..to`, so many times. Each row takes at least a byte, so the work is bounded as the bytes are.
    fn rows(&mut self, array: &dyn Array, from: usize, to: usize, times: u64) -> Option<()> {
        let rows = to - from;
        let each = match array.data_type() {
            DataType::Utf8View | DataType::BinaryView => 16,
            ty => ty.primitive_width().unwrap_or(1),
        };
        self.bytes(rows.checked_mul(each)?, times)?;
        match array.data_type() {
            DataType::Utf8 => self.text(array.as_string::<i32>(), from, to, times),
            DataType::LargeUtf8 => self.text(array.as_string::<i64>(), from, to, times),
            DataType::Binary => self.text(array.as_binary::<i32>(), from, to, times),
            DataType::LargeBinary => self.text(array.as_binary::<i64>(), from, to, times),
            DataType::FixedSizeBinary(size) => self.bytes(rows.checked_mul(*size as usize)?, times),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let offsets = list.value_offsets();
                self.rows(list.values(), offsets[from] as usize, offsets[to] as usize, times)
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                let offsets = list.value_offsets();
                self.rows(list.values(), offsets[from] as usize, offsets[to] as usize, times)
            }
            DataType::ListView(_) => {
                let list = array.as_list_view::<i32>();
                (from..to).try_for_each(|row| {
                    let start = list.value_offset(row) as usize;
                    self.rows(list.values(), start, start + list.value_size(row) as usize, times)
                })
            }
            DataType::LargeListView(_) => {
                let list = array.as_list_view::<i64>();
                (from..to).try_for_each(|row| {
                    let start = list.value_offset(row) as usize;
                    self.rows(list.values(), start, start + list.value_size(row) as usize, times)
                })
            }
            DataType::FixedSizeList(_, size) => {
                let (list, size) = (array.as_fixed_size_list(), *size as usize);
                self.rows(list.values(), from * size, to * size, times)
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let offsets = map.value_offsets();
                self.rows(map.entries(), offsets[from] as usize, offsets[to] as usize, times)
            }
            DataType::Struct(_) => {
                array.as_struct().columns().iter().try_for_each(|column| self.rows(column, from, to, times))
            }
            DataType::Union(fields, _) => {
                let union = array.as_union();
                fields.iter().try_for_each(|(id, _)| self.rows(union.child(id), from, to, times))
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                let (values, keys) = (dictionary.values(), dictionary.keys());
                if values.is_empty() {
                    return Some(());
                }
                let at = dictionary.slice(from, rows);
                let at = at.as_any_dictionary().normalized_keys();
                at.into_iter()
                    .zip(from..to)
                    .filter(|(_, row)| keys.is_valid(*row))
                    .try_for_each(|(key, _)| self.rows(values, key, key + 1, times))
            }
            DataType::RunEndEncoded(ends, _) => match ends.data_type() {
                DataType::Int16 => self.runs(array.as_run::<Int16Type>(), from, to, times),
                DataType::Int32 => self.runs(array.as_run::<Int32Type>(), from, to, times),
                _ => self.runs(array.as_run::<Int64Type>(), from, to, times),
            },
            _ => Some(()),
        }
    }

    fn text<T: ByteArrayType>(
        &mut self,
        array: &GenericByteArray<T>,
        from: usize,
        to: usize,
        times: u64,
    ) -> Option<()> {
        let offsets = array.value_offsets();
        self.bytes(offsets[to].as_usize() - offsets[from].as_usize(), times)
    }

    fn runs<E: RunEndIndexType>(&mut self, array: &RunArray<E>, from: usize, to: usize, times: u64) -> Option<()> {
        let ends = array.run_ends();
        let mut row = from;
        while row < to {
            let run = ends.get_physical_index(row);
            let end = (ends.values()[run].as_usize() - ends.offset()).min(to);
            self.rows(array.values(), run, run + 1, times.checked_mul((end - row) as u64)?)?;
            row = end;
        }
        Some(())
    }
}
