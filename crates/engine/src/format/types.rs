//! DuckDB's types as a tree that needs no handle, and their text as DuckDB writes it.

use std::{
    ffi::{CStr, c_char},
    fmt,
    sync::Arc,
};

use libduckdb_sys as ffi;

use super::keywords::KEYWORDS;

/// A DuckDB type. `alias` is the name of a type that is only another name for `kind`, such as `JSON`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    pub kind: Kind,
    pub alias: Option<String>,
}

/// How wide a number is that DuckDB stores for a DECIMAL or an ENUM, in bytes.
pub type Width = usize;

/// What values of a type are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Null,
    Boolean,
    TinyInt,
    SmallInt,
    Integer,
    BigInt,
    HugeInt,
    UTinyInt,
    USmallInt,
    UInteger,
    UBigInt,
    UHugeInt,
    Bignum,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: u8,
        width: Width,
    },
    Varchar,
    Blob,
    Bit,
    Uuid,
    Date,
    Time,
    TimeNs,
    TimeTz,
    TimestampS,
    TimestampMs,
    Timestamp,
    TimestampNs,
    TimestampTz,
    Interval,
    Enum {
        values: Arc<[String]>,
        width: Width,
    },
    List(Box<Type>),
    Array(Box<Type>, usize),
    Struct(Vec<(String, Type)>),
    /// The entry's type: a struct of `key` and `value`.
    Map(Box<Type>),
    Union(Vec<(String, Type)>),
    Geometry,
    Variant,
    /// A type that this version does not know, by DuckDB's number.
    Unknown(u32),
}

impl Type {
    /// VARCHAR.
    pub fn text() -> Type {
        Type::plain(Kind::Varchar)
    }

    fn plain(kind: Kind) -> Type {
        Type { kind, alias: None }
    }

    /// Reads a logical type.
    ///
    /// # Safety
    /// `raw` is a valid handle; it stays the caller's.
    pub unsafe fn read(raw: ffi::duckdb_logical_type) -> Type {
        // SAFETY: all calls below get the valid handle, and children that are destroyed once, by `child`.
        unsafe {
            let alias = ffi::duckdb_logical_type_get_alias(raw);
            Type { kind: read_kind(raw), alias: (!alias.is_null()).then(|| take_string(alias)) }
        }
    }

    /// Does the vector of this type have child vectors?
    pub fn is_nested(&self) -> bool {
        matches!(self.kind, Kind::List(_) | Kind::Array(..) | Kind::Struct(_) | Kind::Map(_) | Kind::Union(_))
    }

    /// The first type inside for which `wanted` holds, itself included.
    pub fn find(&self, wanted: &dyn Fn(&Kind) -> bool) -> Option<&Type> {
        if wanted(&self.kind) {
            return Some(self);
        }
        match &self.kind {
            Kind::List(child) | Kind::Array(child, _) | Kind::Map(child) => child.find(wanted),
            Kind::Struct(fields) | Kind::Union(fields) => fields.iter().find_map(|(_, child)| child.find(wanted)),
            _ => None,
        }
    }
}

unsafe fn read_kind(raw: ffi::duckdb_logical_type) -> Kind {
    // SAFETY: the caller's handle is valid; every child handle that is made here is destroyed by `child`.
    unsafe {
        match ffi::duckdb_get_type_id(raw) {
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_SQLNULL => Kind::Null,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BOOLEAN => Kind::Boolean,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TINYINT => Kind::TinyInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT => Kind::SmallInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER => Kind::Integer,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT => Kind::BigInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_HUGEINT => Kind::HugeInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UTINYINT => Kind::UTinyInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_USMALLINT => Kind::USmallInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UINTEGER => Kind::UInteger,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UBIGINT => Kind::UBigInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UHUGEINT => Kind::UHugeInt,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGNUM => Kind::Bignum,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_FLOAT => Kind::Float,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_DOUBLE => Kind::Double,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_DECIMAL => Kind::Decimal {
                precision: ffi::duckdb_decimal_width(raw),
                scale: ffi::duckdb_decimal_scale(raw),
                width: storage_width(ffi::duckdb_decimal_internal_type(raw)),
            },
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARCHAR => Kind::Varchar,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BLOB => Kind::Blob,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIT => Kind::Bit,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UUID => Kind::Uuid,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_DATE => Kind::Date,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIME => Kind::Time,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIME_NS => Kind::TimeNs,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIME_TZ => Kind::TimeTz,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP_S => Kind::TimestampS,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP_MS => Kind::TimestampMs,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP => Kind::Timestamp,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP_NS => Kind::TimestampNs,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_TIMESTAMP_TZ => Kind::TimestampTz,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTERVAL => Kind::Interval,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_ENUM => {
                let size = ffi::duckdb_enum_dictionary_size(raw);
                let values = (0..size).map(|i| take_string(ffi::duckdb_enum_dictionary_value(raw, u64::from(i))));
                Kind::Enum { values: values.collect(), width: storage_width(ffi::duckdb_enum_internal_type(raw)) }
            }
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_LIST => Kind::List(Box::new(child(ffi::duckdb_list_type_child_type(raw)))),
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_ARRAY => {
                let size =
                    usize::try_from(ffi::duckdb_array_type_array_size(raw)).expect("an array's size fits memory");
                Kind::Array(Box::new(child(ffi::duckdb_array_type_child_type(raw))), size)
            }
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_STRUCT => {
                let fields = (0..ffi::duckdb_struct_type_child_count(raw)).map(|i| {
                    let name = take_string(ffi::duckdb_struct_type_child_name(raw, i));
                    (name, child(ffi::duckdb_struct_type_child_type(raw, i)))
                });
                Kind::Struct(fields.collect())
            }
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_MAP => {
                let key = child(ffi::duckdb_map_type_key_type(raw));
                let value = child(ffi::duckdb_map_type_value_type(raw));
                let entry = Kind::Struct(vec![("key".to_owned(), key), ("value".to_owned(), value)]);
                Kind::Map(Box::new(Type::plain(entry)))
            }
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_UNION => {
                let members = (0..ffi::duckdb_union_type_member_count(raw)).map(|i| {
                    let name = take_string(ffi::duckdb_union_type_member_name(raw, i));
                    (name, child(ffi::duckdb_union_type_member_type(raw, i)))
                });
                Kind::Union(members.collect())
            }
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_GEOMETRY => Kind::Geometry,
            ffi::DUCKDB_TYPE_DUCKDB_TYPE_VARIANT => Kind::Variant,
            other => Kind::Unknown(other),
        }
    }
}

unsafe fn child(mut raw: ffi::duckdb_logical_type) -> Type {
    // SAFETY: the handle was just made for us; it is read, then destroyed once.
    unsafe {
        let read = Type::read(raw);
        ffi::duckdb_destroy_logical_type(&mut raw);
        read
    }
}

/// Copies and frees a string that DuckDB allocated for us.
pub(crate) unsafe fn take_string(raw: *mut c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: a NUL-terminated string from `duckdb_malloc`, freed once.
    unsafe {
        let text = CStr::from_ptr(raw).to_string_lossy().into_owned();
        ffi::duckdb_free(raw.cast());
        text
    }
}

fn storage_width(storage: ffi::duckdb_type) -> Width {
    match storage {
        ffi::DUCKDB_TYPE_DUCKDB_TYPE_UTINYINT | ffi::DUCKDB_TYPE_DUCKDB_TYPE_TINYINT => 1,
        ffi::DUCKDB_TYPE_DUCKDB_TYPE_USMALLINT | ffi::DUCKDB_TYPE_DUCKDB_TYPE_SMALLINT => 2,
        ffi::DUCKDB_TYPE_DUCKDB_TYPE_UINTEGER | ffi::DUCKDB_TYPE_DUCKDB_TYPE_INTEGER => 4,
        ffi::DUCKDB_TYPE_DUCKDB_TYPE_BIGINT => 8,
        _ => 16,
    }
}

/// DuckDB's own text of the type, as `typeof` gives it: it can be parsed back.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(alias) = &self.alias {
            return f.write_str(alias);
        }
        let name = match &self.kind {
            Kind::Null => "\"NULL\"",
            Kind::Boolean => "BOOLEAN",
            Kind::TinyInt => "TINYINT",
            Kind::SmallInt => "SMALLINT",
            Kind::Integer => "INTEGER",
            Kind::BigInt => "BIGINT",
            Kind::HugeInt => "HUGEINT",
            Kind::UTinyInt => "UTINYINT",
            Kind::USmallInt => "USMALLINT",
            Kind::UInteger => "UINTEGER",
            Kind::UBigInt => "UBIGINT",
            Kind::UHugeInt => "UHUGEINT",
            Kind::Bignum => "BIGNUM",
            Kind::Float => "FLOAT",
            Kind::Double => "DOUBLE",
            Kind::Decimal { precision, scale, .. } => return write!(f, "DECIMAL({precision},{scale})"),
            Kind::Varchar => "VARCHAR",
            Kind::Blob => "BLOB",
            Kind::Bit => "BIT",
            Kind::Uuid => "UUID",
            Kind::Date => "DATE",
            Kind::Time => "TIME",
            Kind::TimeNs => "TIME_NS",
            Kind::TimeTz => "TIME WITH TIME ZONE",
            Kind::TimestampS => "TIMESTAMP_S",
            Kind::TimestampMs => "TIMESTAMP_MS",
            Kind::Timestamp => "TIMESTAMP",
            Kind::TimestampNs => "TIMESTAMP_NS",
            Kind::TimestampTz => "TIMESTAMP WITH TIME ZONE",
            Kind::Interval => "INTERVAL",
            Kind::Enum { values, .. } => {
                let quoted: Vec<String> = values.iter().map(|v| format!("'{}'", v.replace('\'', "''"))).collect();
                return write!(f, "ENUM({})", quoted.join(", "));
            }
            Kind::List(child) => return write!(f, "{child}[]"),
            Kind::Array(child, size) => return write!(f, "{child}[{size}]"),
            Kind::Struct(fields) => return write_fields(f, "STRUCT", fields),
            Kind::Map(entry) => {
                let Kind::Struct(fields) = &entry.kind else { return f.write_str("MAP") };
                return write!(f, "MAP({}, {})", fields[0].1, fields[1].1);
            }
            Kind::Union(members) => return write_fields(f, "UNION", members),
            Kind::Geometry => "GEOMETRY",
            Kind::Variant => "VARIANT",
            Kind::Unknown(number) => return write!(f, "UNKNOWN({number})"),
        };
        f.write_str(name)
    }
}

fn write_fields(f: &mut fmt::Formatter<'_>, name: &str, fields: &[(String, Type)]) -> fmt::Result {
    write!(f, "{name}(")?;
    for (i, (field, child)) in fields.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        match field.as_str() {
            "" => write!(f, "{comma}{child}")?,
            field if needs_quotes(field) => write!(f, "{comma}\"{}\" {child}", field.replace('"', "\"\""))?,
            field => write!(f, "{comma}{field} {child}")?,
        }
    }
    f.write_str(")")
}

/// Would the name not read back as itself without quotes?
fn needs_quotes(name: &str) -> bool {
    let mut bytes = name.bytes();
    let plain = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
    !plain || KEYWORDS.binary_search(&name.to_ascii_lowercase().as_str()).is_ok()
}
