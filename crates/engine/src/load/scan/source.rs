//! One load's columns as DuckDB sees them, and the conversion of slices into its vectors.

use std::{
    ffi::CString,
    mem::ManuallyDrop,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use arrow_array::{
    Array, RecordBatch, StructArray,
    ffi::{FFI_ArrowArray, FFI_ArrowSchema},
};
use arrow_schema::SchemaRef;
use libduckdb_sys as ffi;

use super::{Group, Piece};
use crate::{duck::Connection, failure::Failure, format::types::Type, load::shape::Shape, wire::Code};

/// Where a statement finds the rows of a load.
pub struct Source {
    shape: Shape,
    columns: Vec<Column>,
    converted: ConvertedSchema,
    connection: RawConnection,
    group: Mutex<Option<Arc<Group>>>,
    failed: Mutex<Option<Failure>>,
}

/// A column of the function's result.
pub(super) struct Column {
    pub name: CString,
    pub ty: LogicalType,
}

/// A type handle of our own.
pub(super) struct LogicalType(pub ffi::duckdb_logical_type);

struct ConvertedSchema(ffi::duckdb_arrow_converted_schema);

/// The connection on which the load's statements run; DuckDB looks up its settings from all threads of a statement.
struct RawConnection(ffi::duckdb_connection);

// SAFETY: a type handle is a plain object that nobody changes.
unsafe impl Send for LogicalType {}
// SAFETY: as above.
unsafe impl Sync for LogicalType {}
// SAFETY: made once and only read afterwards.
unsafe impl Send for ConvertedSchema {}
// SAFETY: as above.
unsafe impl Sync for ConvertedSchema {}
// SAFETY: used while a statement of the same connection runs, which keeps it open; DuckDB only reads its settings.
unsafe impl Send for RawConnection {}
// SAFETY: as above.
unsafe impl Sync for RawConnection {}

impl Drop for LogicalType {
    fn drop(&mut self) {
        // SAFETY: made for us and destroyed once.
        unsafe { ffi::duckdb_destroy_logical_type(&mut self.0) };
    }
}

impl Drop for ConvertedSchema {
    fn drop(&mut self) {
        // SAFETY: made for us and destroyed once.
        unsafe { ffi::duckdb_destroy_arrow_converted_schema(&mut self.0) };
    }
}

/// A slice under conversion: DuckDB's vectors point into it.
pub(super) struct Exported(#[expect(dead_code, reason = "kept alive for DuckDB's vectors")] FFI_ArrowArray);

impl Source {
    /// For batches of `schema`, read by statements on `connection`, which outlives the source.
    pub fn new(connection: &Connection, schema: &SchemaRef) -> Result<Self, Failure> {
        crate::load::guarded(|| Self::of(connection, schema))
    }

    fn of(connection: &Connection, schema: &SchemaRef) -> Result<Self, Failure> {
        let shape = Shape::of(schema)?;
        let schema = shape.schema().clone();
        let mut exported = FFI_ArrowSchema::try_from(schema.as_ref())
            .map_err(|error| Failure::new(Code::Invalid, format!("the body's schema can't be used: {error}")))?;
        let mut converted = ConvertedSchema(ptr::null_mut());
        // SAFETY: both structs have the layout of Arrow's C data interface; DuckDB reads the schema and keeps nothing of it.
        unsafe {
            let raw = (&raw mut exported).cast::<ffi::ArrowSchema>();
            said(ffi::duckdb_schema_from_arrow(connection.raw(), raw, &mut converted.0))?;
        }
        let mut source = Self {
            shape,
            columns: Vec::new(),
            converted,
            connection: RawConnection(connection.raw()),
            group: Mutex::default(),
            failed: Mutex::default(),
        };
        // What DuckDB makes of no rows has the types that it makes of any.
        let (chunk, _empty) = source.convert(RecordBatch::new_empty(schema.clone()))?;
        for (index, field) in (0..).zip(schema.fields()) {
            // SAFETY: the chunk has a vector for each field; the type is ours.
            let ty = unsafe {
                LogicalType(ffi::duckdb_vector_get_column_type(ffi::duckdb_data_chunk_get_vector(chunk.0, index)))
            };
            let name = CString::new(field.name().as_str())
                .map_err(|_| Failure::new(Code::Invalid, "a column's name holds a NUL character"))?;
            source.columns.push(Column { name, ty });
        }
        Ok(source)
    }

    /// Name and type of each column.
    pub fn describe(&self) -> Vec<(String, Type)> {
        // SAFETY: the handles are valid.
        let ty = |column: &Column| unsafe { Type::read(column.ty.0) };
        self.columns.iter().map(|column| (column.name.to_string_lossy().into_owned(), ty(column))).collect()
    }

    /// What the next statement reads.
    pub fn put(&self, group: Option<Arc<Group>>) {
        *self.group.lock().unwrap_or_else(PoisonError::into_inner) = group;
    }

    /// The shape that batches are to be in.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Why a statement could not read, in our own words.
    pub fn take_failure(&self) -> Option<Failure> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn fail(&self, failure: Failure) -> String {
        let message = failure.message.clone();
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        message
    }

    pub(super) fn group(&self) -> Option<Arc<Group>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Puts rows of a batch into `output`, which may be used as long as the second value lives.
    ///
    /// # Safety
    /// `output` is a chunk of the function's result.
    pub(super) unsafe fn fill(
        &self,
        group: &Group,
        piece: Piece,
        output: ffi::duckdb_data_chunk,
    ) -> Result<Exported, Failure> {
        let batch = self.shape.finish(&group.batches[piece.batch].slice(piece.start, piece.rows))?;
        let (chunk, exported) = self.convert(batch)?;
        // SAFETY: both chunks have the same columns.
        unsafe {
            for index in 0..self.columns.len() as u64 {
                ffi::duckdb_vector_reference_vector(
                    ffi::duckdb_data_chunk_get_vector(output, index),
                    ffi::duckdb_data_chunk_get_vector(chunk.0, index),
                );
            }
            ffi::duckdb_data_chunk_set_size(output, piece.rows as u64);
        }
        Ok(exported)
    }

    /// Rows of a batch as a chunk of their own.
    pub fn chunk(&self, batch: &RecordBatch) -> Result<Converted, Failure> {
        let (chunk, exported) = self.convert(self.shape.finish(batch)?)?;
        Ok(Converted { chunk, _exported: exported })
    }

    fn convert(&self, batch: RecordBatch) -> Result<(Chunk, Exported), Failure> {
        let mut exported = FFI_ArrowArray::new(&StructArray::from(batch).to_data());
        let mut chunk = Chunk(ptr::null_mut());
        // SAFETY: both structs have the layout of Arrow's C data interface. DuckDB gets a copy that it can't release: it would let go
        // of all columns with the first one that it is done with. Ours goes with `Exported`.
        unsafe {
            let mut lent = ManuallyDrop::new(ptr::read((&raw mut exported).cast::<ffi::ArrowArray>()));
            lent.release = None;
            said(ffi::duckdb_data_chunk_from_arrow(self.connection.0, &mut *lent, self.converted.0, &mut chunk.0))?;
        }
        Ok((chunk, Exported(exported)))
    }
}

/// A chunk that points into Arrow's buffers, with them.
pub struct Converted {
    chunk: Chunk,
    _exported: Exported,
}

impl Converted {
    /// The handle; valid as long as `self`.
    pub fn raw(&self) -> ffi::duckdb_data_chunk {
        self.chunk.0
    }
}

struct Chunk(ffi::duckdb_data_chunk);

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: made for us and destroyed once; vectors that refer to its vectors share their buffers.
        unsafe { ffi::duckdb_destroy_data_chunk(&mut self.0) };
    }
}

/// DuckDB's own refusal.
///
/// # Safety
/// `error` is null or an error of ours.
unsafe fn said(mut error: ffi::duckdb_error_data) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: valid until destroyed, which happens once.
    let text = unsafe {
        let text = std::ffi::CStr::from_ptr(ffi::duckdb_error_data_message(error)).to_string_lossy().into_owned();
        ffi::duckdb_destroy_error_data(&mut error);
        text
    };
    Err(Failure::new(Code::Invalid, format!("DuckDB can't take the body's columns: {}", plain(&text))))
}

/// DuckDB's text, which may be a JSON object.
fn plain(text: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let message = json.as_ref().and_then(|json| json["exception_message"].as_str()).unwrap_or(text);
    message.split("\nStack Trace").next().unwrap_or(message).trim().to_owned()
}
