//! Read access to the vectors of a chunk: values by row, children by tree.
//!
//! Invariants: a view borrows its chunk and is used while the chunk is untouched. DuckDB flattens only the top of each column of
//! a result; the children of a nested column may still be dictionaries or constants, whose raw data would read as garbage. So a
//! nested column is copied once into a flat vector of our own (`Columns::view`), and everything below may index freely.

use std::{marker::PhantomData, slice};

use libduckdb_sys as ffi;

use super::types::{Kind, Type};

/// One vector with its type, its validity and its children.
pub struct View<'a> {
    pub ty: &'a Type,
    pub raw: ffi::duckdb_vector,
    data: *const u8,
    validity: *const u64,
    pub children: Vec<View<'a>>,
}

/// Offset and length of a list's elements in the child vector.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub offset: usize,
    pub length: usize,
}

impl<'a> View<'a> {
    /// A view of `raw`, whose type is `ty`.
    ///
    /// # Safety
    /// `raw` is a flat vector of that type, flat also in its children, and stays untouched for `'a`.
    pub unsafe fn new(ty: &'a Type, raw: ffi::duckdb_vector) -> View<'a> {
        // SAFETY: the caller's vector is valid and of the given type, so that the child calls fit.
        unsafe {
            let children = match &ty.kind {
                Kind::List(child) | Kind::Map(child) => vec![View::new(child, ffi::duckdb_list_vector_get_child(raw))],
                Kind::Array(child, _) => vec![View::new(child, ffi::duckdb_array_vector_get_child(raw))],
                Kind::Struct(fields) => (0..)
                    .zip(fields)
                    .map(|(i, (_, child))| View::new(child, ffi::duckdb_struct_vector_get_child(raw, i)))
                    .collect(),
                // The tag comes first, then the members.
                Kind::Union(members) => std::iter::once(View::new(&TAG, ffi::duckdb_struct_vector_get_child(raw, 0)))
                    .chain(
                        (1..)
                            .zip(members)
                            .map(|(i, (_, child))| View::new(child, ffi::duckdb_struct_vector_get_child(raw, i))),
                    )
                    .collect(),
                _ => Vec::new(),
            };
            let data = ffi::duckdb_vector_get_data(raw).cast::<u8>().cast_const();
            View { ty, raw, data, validity: ffi::duckdb_vector_get_validity(raw).cast_const(), children }
        }
    }

    /// Is the value at `row` not NULL?
    pub fn is_valid(&self, row: usize) -> bool {
        // SAFETY: a mask has a bit for each row of the vector; the caller's row is one of them.
        self.validity.is_null() || unsafe { *self.validity.add(row / 64) } >> (row % 64) & 1 == 1
    }

    /// The validity mask from row 0 on, one bit per row, lowest first; `None` when all rows are valid.
    pub fn mask(&self, rows: usize) -> Option<&[u64]> {
        // SAFETY: the mask covers the vector's rows.
        (!self.validity.is_null()).then(|| unsafe { slice::from_raw_parts(self.validity, rows.div_ceil(64)) })
    }

    /// The raw values of `rows` rows, each `width` bytes wide, from `start` on. What lies at a NULL is arbitrary.
    pub fn bytes(&self, start: usize, rows: usize, width: usize) -> &[u8] {
        if rows == 0 {
            return &[];
        }
        // SAFETY: the vector holds at least `start + rows` values of its storage width.
        unsafe { slice::from_raw_parts(self.data.add(start * width), rows * width) }
    }

    /// The value at `row` as `T`, the storage type of this vector.
    pub fn get<T: Plain>(&self, row: usize) -> T {
        // SAFETY: `T` is the storage type (the type tree says so) and the row is within the vector; DuckDB aligns to 8 at least,
        // 128-bit numbers are read unaligned.
        unsafe { self.data.cast::<T>().add(row).read_unaligned() }
    }

    /// The 128-bit number at `row`.
    pub fn i128(&self, row: usize) -> i128 {
        self.get::<i128>(row)
    }

    /// The elements of the list at `row`.
    pub fn entry(&self, row: usize) -> Entry {
        let [offset, length] = self.get::<[u64; 2]>(row);
        let fits = |n: u64| usize::try_from(n).expect("an offset in memory fits a usize");
        Entry { offset: fits(offset), length: fits(length) }
    }

    /// The strings (or blobs, bits, bignums) of this vector.
    pub fn strings(&self) -> Strings<'_> {
        Strings { entries: self.data.cast(), _borrow: PhantomData }
    }

    /// The bytes at `row` of a VARCHAR or of what is stored like one.
    pub fn string(&self, row: usize) -> &[u8] {
        self.strings().get(row)
    }

    /// The unscaled number of a DECIMAL, or the index of an ENUM, stored in `width` bytes. An index is never negative.
    pub fn scaled(&self, row: usize, width: usize) -> i128 {
        match width {
            2 => self.get::<i16>(row).into(),
            4 => self.get::<i32>(row).into(),
            8 => self.get::<i64>(row).into(),
            _ => self.i128(row),
        }
    }

    /// The dictionary index of an ENUM stored in `width` bytes.
    pub fn enum_index(&self, row: usize, width: usize) -> usize {
        match width {
            1 => self.get::<u8>(row).into(),
            2 => self.get::<u16>(row).into(),
            _ => self.get::<u32>(row) as usize,
        }
    }
}

static TAG: Type = Type { kind: Kind::UTinyInt, alias: None };

/// Types whose every bit pattern is a value.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for i16 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for u64 {}
impl Plain for i64 {}
impl Plain for i128 {}
impl Plain for u128 {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for [u64; 2] {}

/// The strings of a vector. An entry is 16 bytes: length, then up to 12 bytes in place, or 4 bytes of prefix and a pointer.
#[derive(Clone, Copy)]
pub struct Strings<'a> {
    entries: *const RawString,
    _borrow: PhantomData<&'a u8>,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct RawString {
    length: u32,
    inline: [u8; 12],
}

impl<'a> Strings<'a> {
    /// The longest string that is stored in place.
    pub const INLINE: usize = 12;

    /// The length at `row`. Arbitrary where the row is NULL.
    pub fn length(&self, row: usize) -> usize {
        // SAFETY: the row is within the vector.
        unsafe { (*self.entries.add(row)).length as usize }
    }

    /// The bytes at `row`, which is not NULL.
    pub fn get(&self, row: usize) -> &'a [u8] {
        // SAFETY: the row is within the vector and not NULL, so that the entry is initialised; long strings live as long as the chunk.
        unsafe { slice::from_raw_parts(self.pointer(row), self.length(row)) }
    }

    /// Where the bytes at `row` start. For a string in place, 12 bytes can be read there whatever its length.
    pub fn pointer(&self, row: usize) -> *const u8 {
        // SAFETY: as in `get`.
        unsafe {
            let entry = self.entries.add(row);
            if (*entry).length as usize <= Self::INLINE {
                (&raw const (*entry).inline).cast()
            } else {
                (&raw const (*entry).inline).cast::<u8>().add(4).cast::<*const u8>().read_unaligned()
            }
        }
    }
}

/// A chunk's columns, ready to read.
pub struct ChunkView<'a> {
    pub rows: usize,
    pub columns: Vec<View<'a>>,
    /// Flat copies of nested columns; the views point into them.
    copies: Vec<ffi::duckdb_vector>,
}

impl<'a> ChunkView<'a> {
    /// Views of all columns of `chunk`.
    ///
    /// # Safety
    /// `chunk` is a chunk of a result with these column types, and stays untouched for `'a`.
    pub unsafe fn new(types: impl Iterator<Item = &'a Type>, chunk: ffi::duckdb_data_chunk) -> ChunkView<'a> {
        // SAFETY: as the caller says.
        unsafe { Self::copying(types, chunk, Type::is_nested) }
    }

    /// Views of all columns of a chunk that is no result's: none of them need be flat.
    ///
    /// # Safety
    /// `chunk` has these column types, and stays untouched for `'a`.
    pub unsafe fn of_any(types: impl Iterator<Item = &'a Type>, chunk: ffi::duckdb_data_chunk) -> ChunkView<'a> {
        // SAFETY: as the caller says.
        unsafe { Self::copying(types, chunk, |_| true) }
    }

    unsafe fn copying(
        types: impl Iterator<Item = &'a Type>,
        chunk: ffi::duckdb_data_chunk,
        copies_it: impl Fn(&Type) -> bool,
    ) -> ChunkView<'a> {
        // SAFETY: the caller vouches for the chunk; copies are of the same type and size.
        unsafe {
            let rows = ffi::duckdb_data_chunk_get_size(chunk) as usize;
            let mut copies = Vec::new();
            let columns = (0..)
                .zip(types)
                .map(|(i, ty)| {
                    let mut vector = ffi::duckdb_data_chunk_get_vector(chunk, i);
                    if copies_it(ty) {
                        vector = flat_copy(vector, rows);
                        copies.push(vector);
                    }
                    View::new(ty, vector)
                })
                .collect();
            ChunkView { rows, columns, copies }
        }
    }
}

impl Drop for ChunkView<'_> {
    fn drop(&mut self) {
        for vector in &mut self.copies {
            // SAFETY: made by `flat_copy`, destroyed once.
            unsafe { ffi::duckdb_destroy_vector(vector) };
        }
    }
}

/// Copies `rows` rows of a vector of any form into a new flat one, children included.
unsafe fn flat_copy(vector: ffi::duckdb_vector, rows: usize) -> ffi::duckdb_vector {
    // SAFETY: the selection has an index for each row; the copy has the same type and room for all rows.
    unsafe {
        let mut ty = ffi::duckdb_vector_get_column_type(vector);
        let capacity = (rows as u64).max(ffi::duckdb_vector_size());
        let copy = ffi::duckdb_create_vector(ty, capacity);
        ffi::duckdb_destroy_logical_type(&mut ty);
        let selection = ffi::duckdb_create_selection_vector(capacity);
        let indexes = slice::from_raw_parts_mut(ffi::duckdb_selection_vector_get_data_ptr(selection), rows);
        for (index, row) in indexes.iter_mut().zip(0..) {
            *index = row;
        }
        ffi::duckdb_vector_copy_sel(vector, copy, selection, rows as u64, 0, 0);
        ffi::duckdb_destroy_selection_vector(selection);
        copy
    }
}
