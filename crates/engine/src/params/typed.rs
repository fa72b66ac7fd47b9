//! `{"type": …, "value": …}`: a value of any DuckDB type.
//!
//! DuckDB itself parses the type and casts every scalar inside the value from text, so that what a client may write is what a cast
//! in SQL takes. The value becomes one expression whose scalars are parameters; no text of the client but the checked type is in it.

use std::fmt::Write as _;

use libduckdb_sys as ffi;
use serde_json::Value as Json;

use super::{ParamError, c_string};
use crate::{
    format::{
        types::{Kind, Type},
        value::{self, Value},
        view::ChunkView,
    },
    sql::lexer::{TokenKind, lex},
};

/// Most scalars in one typed value.
const MAX_SCALARS: usize = 50_000;
/// Longest text of a type, in bytes (an ENUM lists its values).
const MAX_TYPE_BYTES: usize = 16 * 1024;
/// Names that a bracket may follow in a type.
const PARAMETRISED: [&str; 21] = [
    "decimal",
    "numeric",
    "dec",
    "varchar",
    "char",
    "bpchar",
    "text",
    "string",
    "nvarchar",
    "character",
    "bit",
    "bitstring",
    "time",
    "timestamp",
    "struct",
    "row",
    "map",
    "union",
    "enum",
    "geometry",
    "varying",
];

/// The value `json` as `ty`.
///
/// # Safety
/// The connection is valid, used by no other thread meanwhile, and has no result open.
pub(super) unsafe fn cast(connection: ffi::duckdb_connection, ty: &str, json: &Json) -> Result<Value, ParamError> {
    check_type(ty)?;
    // SAFETY: as the caller says.
    unsafe {
        let tree = Query::prepare(connection, &format!("SELECT CAST(NULL AS {ty})"))?.run()?.column_type();
        let mut expression = Expression::default();
        expression.write(json, &tree)?;
        let mut query = Query::prepare(connection, &format!("SELECT CAST({} AS {ty})", expression.sql))?;
        for (i, scalar) in (1..).zip(&expression.scalars) {
            query.bind(i, scalar.as_deref())?;
        }
        query.run()?.value()
    }
}

/// Refuses what is more than the text of a type.
fn check_type(ty: &str) -> Result<(), ParamError> {
    let refuse = || {
        ParamError::new(format!(
            "`{}` is not a DuckDB type",
            ty.chars().filter(|c| !c.is_control()).take(80).collect::<String>()
        ))
    };
    if ty.len() > MAX_TYPE_BYTES {
        return Err(ParamError::new(format!("a type's text is limited to {MAX_TYPE_BYTES} bytes")));
    }
    let tokens = lex(ty).map_err(|_| refuse())?;
    let mut groups: Vec<bool> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let name = at.checked_sub(1).and_then(|before| tokens[before].name(ty)).map(|name| name.to_ascii_lowercase());
        match token.kind {
            TokenKind::Word | TokenKind::QuotedIdent | TokenKind::Number => {}
            TokenKind::Symbol(b'.' | b'[' | b']') => {}
            TokenKind::Symbol(b',') if !groups.is_empty() => {}
            TokenKind::Symbol(b'(') => {
                let parametrised = name.as_deref().is_some_and(|name| PARAMETRISED.contains(&name));
                if !parametrised || groups.len() > 50 {
                    return Err(refuse());
                }
                groups.push(name.as_deref() == Some("enum"));
            }
            TokenKind::Symbol(b')') => {
                groups.pop().ok_or_else(refuse)?;
            }
            TokenKind::String if groups.last() == Some(&true) => {}
            _ => return Err(refuse()),
        }
    }
    if tokens.is_empty() || !groups.is_empty() { Err(refuse()) } else { Ok(()) }
}

/// An expression with `$1`, `$2` … for its scalars, which are text or NULL.
#[derive(Default)]
struct Expression {
    sql: String,
    scalars: Vec<Option<String>>,
}

impl Expression {
    fn write(&mut self, json: &Json, ty: &Type) -> Result<(), ParamError> {
        let mismatch = |form: &str| Err(ParamError::new(format!("a value of type `{ty}` is {form}")));
        match (&ty.kind, json) {
            (_, Json::Null) => {
                self.sql.push_str("NULL");
                Ok(())
            }
            (Kind::List(child) | Kind::Array(child, _), Json::Array(items)) => self.list(items.iter(), child),
            (Kind::List(_) | Kind::Array(..), Json::String(_)) => self.scalar(json, ty),
            (Kind::List(_) | Kind::Array(..), _) => mismatch("an array"),
            (Kind::Struct(fields), Json::Object(object)) => self.fields(object, fields),
            (Kind::Struct(fields), Json::Array(items))
                if fields.len() == items.len() && fields.iter().all(|(name, _)| name.is_empty()) =>
            {
                self.sql.push_str("row(");
                for (i, (item, (_, field))) in items.iter().zip(fields).enumerate() {
                    self.comma(i);
                    self.write(item, field)?;
                }
                self.sql.push(')');
                Ok(())
            }
            (Kind::Struct(_), Json::String(_)) => self.scalar(json, ty),
            (Kind::Struct(_), _) => mismatch("an object with its fields"),
            (Kind::Map(entry), Json::Array(items)) => self.map(items, entry),
            (Kind::Map(_), Json::String(_)) => self.scalar(json, ty),
            (Kind::Map(_), _) => mismatch(r#"an array of `{"key": …, "value": …}`"#),
            (Kind::Union(members), Json::Object(object)) => {
                let member = object
                    .get("tag")
                    .and_then(Json::as_str)
                    .and_then(|tag| members.iter().find(|(name, _)| name == tag));
                let (Some((tag, member)), Some(value), 2) = (member, object.get("value"), object.len()) else {
                    return mismatch(r#"`{"tag": …, "value": …}` with one of its tags"#);
                };
                let _ = write!(self.sql, "union_value({} := ", quoted(tag));
                self.scalar_cast(value, member)?;
                self.sql.push(')');
                Ok(())
            }
            (Kind::Union(_), _) => mismatch(r#"`{"tag": …, "value": …}`"#),
            _ => self.scalar(json, ty),
        }
    }

    /// `CAST(… AS type)` around a part whose own type would be too loose.
    fn scalar_cast(&mut self, json: &Json, ty: &Type) -> Result<(), ParamError> {
        self.sql.push_str("CAST(");
        self.write(json, ty)?;
        let _ = write!(self.sql, " AS {ty})");
        Ok(())
    }

    fn list<'a>(&mut self, items: impl Iterator<Item = &'a Json>, child: &Type) -> Result<(), ParamError> {
        self.sql.push('[');
        for (i, item) in items.enumerate() {
            self.comma(i);
            self.scalar_cast(item, child)?;
        }
        self.sql.push(']');
        Ok(())
    }

    fn fields(&mut self, object: &serde_json::Map<String, Json>, fields: &[(String, Type)]) -> Result<(), ParamError> {
        if let Some(extra) = object.keys().find(|key| !fields.iter().any(|(name, _)| name == *key)) {
            return Err(ParamError::new(format!("the STRUCT has no field `{extra}`")));
        }
        self.sql.push_str("struct_pack(");
        for (i, (name, field)) in fields.iter().enumerate() {
            self.comma(i);
            let _ = write!(self.sql, "{} := ", quoted(name));
            let value = object
                .get(name)
                .ok_or_else(|| ParamError::new(format!("the STRUCT's field `{name}` has no value; write null")))?;
            self.scalar_cast(value, field)?;
        }
        self.sql.push(')');
        Ok(())
    }

    fn map(&mut self, items: &[Json], entry: &Type) -> Result<(), ParamError> {
        let Kind::Struct(types) = &entry.kind else { return Err(ParamError::new("a MAP without types")) };
        let part = |item: &'_ Json, name: &str| match item {
            Json::Object(object) if object.len() == 2 => object.get(name).cloned(),
            _ => None,
        };
        let parts = |name: &str| items.iter().map(|item| part(item, name)).collect::<Option<Vec<Json>>>();
        let (Some(keys), Some(values)) = (parts("key"), parts("value")) else {
            return Err(ParamError::new(r#"a MAP is an array of `{"key": …, "value": …}`"#));
        };
        self.sql.push_str("map(");
        self.list(keys.iter(), &types[0].1)?;
        self.sql.push_str(", ");
        self.list(values.iter(), &types[1].1)?;
        self.sql.push(')');
        Ok(())
    }

    fn scalar(&mut self, json: &Json, ty: &Type) -> Result<(), ParamError> {
        let is_json = ty.alias.as_deref() == Some("JSON");
        let text = match json {
            // ISO 8601 has a sign before a year of more than four digits, and DuckDB reads no `+`.
            Json::String(text) if has_year(&ty.kind) => text.strip_prefix('+').unwrap_or(text).to_owned(),
            Json::String(text) => text.clone(),
            Json::Bool(_) | Json::Number(_) => json.to_string(),
            Json::Array(_) | Json::Object(_) if is_json => json.to_string(),
            _ => return Err(ParamError::new(format!("a value of type `{ty}` is a string, number or boolean"))),
        };
        if self.scalars.len() >= MAX_SCALARS {
            return Err(ParamError::new(format!("a typed value is limited to {MAX_SCALARS} scalars")));
        }
        self.scalars.push(Some(text));
        let n = self.scalars.len();
        // Base64 in, as base64 goes out.
        let _ = if ty.kind == Kind::Blob { write!(self.sql, "from_base64(${n})") } else { write!(self.sql, "${n}") };
        Ok(())
    }

    fn comma(&mut self, i: usize) {
        if i > 0 {
            self.sql.push_str(", ");
        }
    }
}

fn has_year(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Date | Kind::Timestamp | Kind::TimestampS | Kind::TimestampMs | Kind::TimestampNs | Kind::TimestampTz
    )
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A query of ours, destroyed when dropped.
struct Query {
    statement: ffi::duckdb_prepared_statement,
}

impl Query {
    unsafe fn prepare(connection: ffi::duckdb_connection, sql: &str) -> Result<Query, ParamError> {
        let sql = c_string(sql.to_owned())?;
        let mut query = Query { statement: std::ptr::null_mut() };
        // SAFETY: the connection is valid, as the caller of `cast` says; the message belongs to the statement.
        unsafe {
            if ffi::duckdb_prepare(connection, sql.as_ptr(), &mut query.statement) != ffi::DuckDBSuccess {
                return Err(duckdb_error(ffi::duckdb_prepare_error(query.statement)));
            }
        }
        Ok(query)
    }

    fn bind(&mut self, index: u64, text: Option<&str>) -> Result<(), ParamError> {
        let value = match text {
            Some(text) => value::varchar(text)?,
            None => Value::null(),
        };
        // SAFETY: statement and value are valid.
        match unsafe { ffi::duckdb_bind_value(self.statement, index, value.raw()) } {
            ffi::DuckDBSuccess => Ok(()),
            _ => Err(ParamError::new("the value can't be bound")),
        }
    }

    fn run(&mut self) -> Result<Row, ParamError> {
        // SAFETY: the statement is prepared; `Row` destroys the result, also after a failure.
        unsafe {
            let mut row = Row { result: std::mem::zeroed() };
            if ffi::duckdb_execute_prepared(self.statement, &mut row.result) != ffi::DuckDBSuccess {
                return Err(duckdb_error(ffi::duckdb_result_error(&mut row.result)));
            }
            Ok(row)
        }
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_prepare(&mut self.statement) };
    }
}

/// A result of one row and one column.
struct Row {
    result: ffi::duckdb_result,
}

impl Row {
    fn column_type(&mut self) -> Type {
        // SAFETY: the result has a column; the handle is ours and destroyed once.
        unsafe {
            let mut raw = ffi::duckdb_column_logical_type(&mut self.result, 0);
            let ty = Type::read(raw);
            ffi::duckdb_destroy_logical_type(&mut raw);
            ty
        }
    }

    fn value(&mut self) -> Result<Value, ParamError> {
        let ty = self.column_type();
        // SAFETY: the chunk belongs to this result and is destroyed after its views.
        unsafe {
            let mut chunk = ffi::duckdb_fetch_chunk(self.result);
            if chunk.is_null() {
                return Err(ParamError::new("the cast gave no value"));
            }
            let value = {
                let view = ChunkView::new(std::iter::once(&ty), chunk);
                value::from_row(&view.columns[0], 0)
            };
            ffi::duckdb_destroy_data_chunk(&mut chunk);
            Ok(value?)
        }
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe { ffi::duckdb_destroy_result(&mut self.result) };
    }
}

/// The first line of a message that DuckDB keeps.
unsafe fn duckdb_error(message: *const std::ffi::c_char) -> ParamError {
    if message.is_null() {
        return ParamError::new("DuckDB did not accept the value");
    }
    // SAFETY: a C string that lives as long as its owner.
    let text = unsafe { std::ffi::CStr::from_ptr(message) }.to_string_lossy();
    ParamError::new(text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::check_type;

    #[test]
    fn the_text_of_a_type_can_be_nothing_else() {
        for ty in [
            "INTEGER",
            "DECIMAL(18,3)",
            "timestamp with time zone",
            "STRUCT(a INTEGER, \"b c\" DECIMAL(4,1)[])[3]",
            "MAP(VARCHAR, INTEGER[])",
            "ENUM('a', 'b)''; --')",
            "UNION(n INTEGER, s VARCHAR)",
            "mart.main.mood",
            "VARCHAR[][2]",
        ] {
            assert!(check_type(ty).is_ok(), "{ty}");
        }
        for ty in [
            "",
            "INTEGER) , (SELECT 1",
            "INTEGER, 1",
            "INTEGER)",
            "(INTEGER",
            "VARCHAR('x')",
            "DECIMAL(getenv('x'))",
            "INTEGER; SELECT 1",
            "INTEGER -- x\n + 1",
            "ENUM((SELECT 1))",
            "x(1)",
            "1 + 1",
            "$1",
            "STRUCT(a INTEGER",
            "'x'",
        ] {
            assert!(check_type(ty).is_err(), "{ty}");
        }
    }
}
