//! From the Arrow types that clients send to those that DuckDB imports right.
//!
//! DuckDB 1.5.5 takes most types as they are. Some it refuses (half floats, 256-bit decimals), some it reads wrongly (day-time intervals),
//! some it trusts (list views, values outside a type's range) or handles well only at the top (dictionaries and runs inside of others):
//! these are converted or checked first. **Invariant:** what comes out holds only values that DuckDB's type can have.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, GenericListViewArray, OffsetSizeTrait, RecordBatch, RecordBatchOptions, cast::AsArray, types::*,
};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{
    ArrowError, DataType, Field, FieldRef, Fields, IntervalUnit, Schema, SchemaRef, TimeUnit, UnionMode,
};

use super::expanded::{Budget, is_shared};
use crate::{failure::Failure, wire::Code};

/// Deepest nesting of types, and most elements of a fixed-size list: DuckDB's own limit.
const MAX_DEPTH: usize = 32;
const MAX_ARRAY: i32 = 100_000;
/// Field metadata that DuckDB may see: which of Arrow's own extension types a column is.
const EXTENSION: &str = "ARROW:extension:name";
const EXTENSIONS: [&str; 3] = ["arrow.uuid", "arrow.json", "arrow.bool8"];
/// What the values of dictionaries may take in the rows that DuckDB reads at once.
const MAX_SLICE_BYTES: u64 = 128 << 20;
const DAY_SECONDS: i64 = 86_400;

/// What to do with each column.
pub struct Shape {
    /// As batches come.
    from: SchemaRef,
    /// Nested columns are as DuckDB takes them, flat ones as they come.
    staged: SchemaRef,
    to: SchemaRef,
}

impl Shape {
    /// Decides for a schema; fails if a column's type can't be loaded.
    pub fn of(schema: &SchemaRef) -> Result<Self, Failure> {
        let (mut staged, mut to) = (Vec::new(), Vec::new());
        for field in schema.fields() {
            if field.name().contains('\0') {
                return Err(Failure::new(Code::Invalid, "a column's name holds a NUL character"));
            }
            let ty = target(field.data_type(), 0).map_err(|why| {
                let message = format!("column `{}` of type {} can't be loaded: {why}", field.name(), field.data_type());
                Failure::new(Code::Invalid, message)
            })?;
            let target = Arc::new(field_of(field, ty));
            staged.push(if is_flat(field.data_type()) { field.clone() } else { target.clone() });
            to.push(target);
        }
        let schema_of = |fields: Vec<FieldRef>| Arc::new(Schema::new(fields));
        Ok(Self { from: schema.clone(), staged: schema_of(staged), to: schema_of(to) })
    }

    /// The schema that DuckDB gets.
    pub fn schema(&self) -> &SchemaRef {
        &self.to
    }

    /// How many bytes a batch gets when its runs and dictionaries are written out: those inside of nested columns, which is done for
    /// all of it at once, or `all`. Refuses more than `limit`.
    pub fn expanded(&self, batch: &RecordBatch, all: bool, limit: u64) -> Result<u64, Failure> {
        super::guarded(|| {
            let mut left = Budget(limit);
            for (column, field) in batch.columns().iter().zip(self.from.fields()) {
                let ty = column.data_type();
                if !is_shared(ty) || is_flat(ty) && !all {
                    continue;
                }
                check_views(column).map_err(|error| unloadable(field.name(), &error))?;
                left.take(column).ok_or_else(|| too_large(field.name(), limit))?;
            }
            Ok(limit - left.0)
        })
    }

    /// Brings the nested columns of a whole batch into shape: their slices share what is inside of them. What they grow to is looked at
    /// before, with [`Self::expanded`].
    pub fn stage(&self, batch: &RecordBatch) -> Result<RecordBatch, Failure> {
        super::guarded(|| self.apply(batch, &self.from, &self.staged, |ty| !is_flat(ty)))
    }

    /// Brings the flat columns of a slice of a staged batch into shape.
    pub fn finish(&self, slice: &RecordBatch) -> Result<RecordBatch, Failure> {
        let mut left = Budget(MAX_SLICE_BYTES);
        for (column, field) in slice.columns().iter().zip(self.staged.fields()) {
            if is_shared(column.data_type()) {
                left.take(column).ok_or_else(|| too_large(field.name(), MAX_SLICE_BYTES))?;
            }
        }
        self.apply(slice, &self.staged, &self.to, is_flat)
    }

    fn apply(
        &self,
        batch: &RecordBatch,
        from: &Schema,
        to: &SchemaRef,
        concerns: impl Fn(&DataType) -> bool,
    ) -> Result<RecordBatch, Failure> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for ((column, from), to) in batch.columns().iter().zip(from.fields()).zip(to.fields()) {
            let mut column = column.clone();
            if concerns(from.data_type()) {
                let named = |error: ArrowError| unloadable(to.name(), &error);
                check_views(&column).map_err(named)?;
                if from.data_type() != to.data_type() {
                    column = convert(&column, to.data_type()).map_err(named)?;
                }
                check(&column).map_err(named)?;
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(to.clone(), columns, &options)
            .map_err(|error| Failure::new(Code::Invalid, format!("the body's rows don't fit its schema: {error}")))
    }
}

fn unloadable(column: &str, error: &ArrowError) -> Failure {
    Failure::new(Code::Invalid, format!("column `{column}` can't be loaded: {error}"))
}

fn too_large(column: &str, limit: u64) -> Failure {
    let mib = limit >> 20;
    let text =
        format!("column `{column}` is more than {mib} MiB in one batch when its runs and dictionaries are written out");
    Failure::new(Code::TooLarge, text).hint("send smaller batches, or the values themselves")
}

/// Does a slice of such a column share nothing with other slices?
fn is_flat(ty: &DataType) -> bool {
    match ty {
        DataType::Dictionary(_, values) => !values.is_nested(),
        DataType::RunEndEncoded(..) => false,
        ty => !ty.is_nested(),
    }
}

fn convert(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    // A value that does not fit is an error, never a NULL.
    cast_with_options(column, to, &CastOptions { safe: false, ..CastOptions::default() })
}

/// Without the metadata and nullability that nobody checked.
fn field_of(field: &Field, ty: DataType) -> Field {
    let extension = field.metadata().get(EXTENSION).filter(|name| {
        let storage = match name.as_str() {
            "arrow.uuid" => ty == DataType::FixedSizeBinary(16),
            "arrow.json" => matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
            _ => ty == DataType::Int8,
        };
        EXTENSIONS.contains(&name.as_str()) && storage
    });
    let metadata = extension.map(|name| {
        [(EXTENSION.to_owned(), name.clone()), ("ARROW:extension:metadata".to_owned(), String::new())].into()
    });
    Field::new(field.name(), ty, true).with_metadata(metadata.unwrap_or_default())
}

/// The type that DuckDB gets.
fn target(ty: &DataType, depth: usize) -> Result<DataType, String> {
    if depth > MAX_DEPTH {
        return Err(format!("it nests deeper than {MAX_DEPTH} levels"));
    }
    let inner = |field: &FieldRef| child(field, depth);
    let has_nul = |field: &FieldRef| field.name().contains('\0');
    let unreadable = match ty {
        DataType::Struct(fields) => fields.iter().any(has_nul),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_nul(field)),
        DataType::Timestamp(_, Some(zone)) => zone.contains('\0'),
        _ => false,
    };
    if unreadable {
        return Err("a name in it holds a NUL character".to_owned());
    }
    Ok(match ty {
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => {
            let precision = (*precision).min(38);
            if precision == 0 || !(0..=precision as i8).contains(scale) {
                return Err("DuckDB's decimals have 1 to 38 digits, and no more of them behind the point".to_owned());
            }
            DataType::Decimal128(precision, *scale)
        }
        DataType::Interval(IntervalUnit::DayTime) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::FixedSizeBinary(size) if *size < 1 => return Err("its values have no bytes".to_owned()),
        DataType::Dictionary(_, values) => target(values, depth + 1)?,
        DataType::RunEndEncoded(_, values) => target(values.data_type(), depth + 1)?,
        DataType::List(field) | DataType::ListView(field) => DataType::List(inner(field)?),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(inner(field)?),
        DataType::FixedSizeList(field, size) if (1..=MAX_ARRAY).contains(size) => {
            DataType::FixedSizeList(inner(field)?, *size)
        }
        DataType::FixedSizeList(..) => return Err(format!("arrays have 1 to {MAX_ARRAY} elements")),
        DataType::Struct(fields) if fields.is_empty() => return Err("a struct without fields".to_owned()),
        DataType::Struct(fields) => {
            let mut names = std::collections::HashSet::new();
            if fields.iter().any(|field| !names.insert(field.name().to_lowercase())) {
                return Err("two of its fields have the same name".to_owned());
            }
            DataType::Struct(fields.iter().map(inner).collect::<Result<Fields, _>>()?)
        }
        DataType::Map(entries, sorted) => {
            let entry = match target(entries.data_type(), depth + 1)? {
                DataType::Struct(fields) if fields.len() == 2 => {
                    let key = fields[0].as_ref().clone().with_nullable(false);
                    DataType::Struct([Arc::new(key), fields[1].clone()].into_iter().collect())
                }
                _ => return Err("a map's entries are a key and a value".to_owned()),
            };
            DataType::Map(Arc::new(Field::new("entries", entry, false)), *sorted)
        }
        DataType::Union(fields, UnionMode::Sparse) => {
            let in_order = (0..).zip(fields.iter()).all(|(index, (id, _))| index == id);
            let same = fields.iter().all(|(_, field)| child(field, depth).as_ref() == Ok(field));
            if !in_order || !same || fields.is_empty() {
                return Err("of unions only those of plain types, numbered from 0, can be loaded".to_owned());
            }
            ty.clone()
        }
        DataType::Union(..) => return Err("of unions only sparse ones can be loaded".to_owned()),
        other => other.clone(),
    })
}

fn child(field: &FieldRef, depth: usize) -> Result<FieldRef, String> {
    Ok(Arc::new(Field::new(field.name().replace('\0', " "), target(field.data_type(), depth + 1)?, true)))
}

/// Refuses values that the type allows in Arrow and not in DuckDB.
fn check(array: &ArrayRef) -> Result<(), ArrowError> {
    let time = |fits: bool| {
        if fits { Ok(()) } else { Err(ArrowError::InvalidArgumentError("a time of day is outside of its day".into())) }
    };
    let day = |per_second: i64, value: i64| (0..=DAY_SECONDS * per_second).contains(&value);
    match array.data_type() {
        DataType::Decimal128(precision, _) => {
            array.as_primitive::<Decimal128Type>().validate_decimal_precision(*precision)
        }
        DataType::Time32(TimeUnit::Second) => {
            time(array.as_primitive::<Time32SecondType>().iter().flatten().all(|value| day(1, value.into())))
        }
        DataType::Time32(_) => {
            time(array.as_primitive::<Time32MillisecondType>().iter().flatten().all(|value| day(1_000, value.into())))
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            time(array.as_primitive::<Time64MicrosecondType>().iter().flatten().all(|value| day(1_000_000, value)))
        }
        DataType::Time64(_) => {
            time(array.as_primitive::<Time64NanosecondType>().iter().flatten().all(|value| day(1_000_000_000, value)))
        }
        DataType::List(_) => check(array.as_list::<i32>().values()),
        DataType::LargeList(_) => check(array.as_list::<i64>().values()),
        DataType::FixedSizeList(..) => check(array.as_fixed_size_list().values()),
        DataType::Map(..) => array.as_map().entries().columns().iter().try_for_each(check),
        DataType::Struct(_) => array.as_struct().columns().iter().try_for_each(check),
        DataType::Union(fields, _) => fields.iter().try_for_each(|(id, _)| check(array.as_union().child(id))),
        _ => Ok(()),
    }
}

/// Refuses list views whose elements are shared between rows: written out they could be endless.
fn check_views(array: &ArrayRef) -> Result<(), ArrowError> {
    fn view<O: OffsetSizeTrait>(array: &GenericListViewArray<O>) -> Result<(), ArrowError> {
        let total: usize = array.sizes().iter().map(|size| size.as_usize()).sum();
        if total > array.values().len() {
            return Err(ArrowError::InvalidArgumentError("rows of a list view share elements".into()));
        }
        check_views(array.values())
    }
    match array.data_type() {
        DataType::ListView(_) => view(array.as_list_view::<i32>()),
        DataType::LargeListView(_) => view(array.as_list_view::<i64>()),
        DataType::List(_) => check_views(array.as_list::<i32>().values()),
        DataType::LargeList(_) => check_views(array.as_list::<i64>().values()),
        DataType::FixedSizeList(..) => check_views(array.as_fixed_size_list().values()),
        DataType::Map(..) => array.as_map().entries().columns().iter().try_for_each(check_views),
        DataType::Struct(_) => array.as_struct().columns().iter().try_for_each(check_views),
        DataType::Dictionary(..) => check_views(array.as_any_dictionary().values()),
        _ => Ok(()),
    }
}
