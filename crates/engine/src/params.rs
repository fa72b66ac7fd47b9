//! A request's `params` as values of a prepared statement.
//!
//! Plain JSON has a plain meaning (`docs/types.md`); `{"type": "DECIMAL(18,3)", "value": "1.5"}` gives any DuckDB type. What JSON
//! can't say exactly is an error, never a near value. A type's text comes from a client and goes into SQL, so only tokens that can
//! spell a type pass (`typed`).

pub mod arrow;
mod typed;
pub(crate) mod unique;

use std::ffi::CString;

use libduckdb_sys as ffi;
use serde_json::Value as Json;

use crate::format::{
    EncodeError,
    types::{Kind, Type, take_string},
    value::{self, Value},
};

/// The `params` of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Params {
    /// None were sent.
    #[default]
    None,
    /// An array, for `?` and `$1`.
    Positional(Vec<Json>),
    /// An object, for `$name`.
    Named(serde_json::Map<String, Json>),
}

/// One set of parameters of a statement.
#[derive(Clone, Copy)]
pub enum Set<'a> {
    /// The request's `params`.
    Json(&'a Params),
    /// A row of them.
    Row(&'a arrow::Rows, usize),
}

/// Why parameters can't be bound; always the request's fault (`invalid`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParamError {
    pub message: String,
}

impl ParamError {
    fn new(message: impl Into<String>) -> ParamError {
        ParamError { message: message.into() }
    }
}

impl From<EncodeError> for ParamError {
    fn from(error: EncodeError) -> Self {
        ParamError { message: error.message }
    }
}

impl Params {
    /// Reads `params` of a request's body.
    pub fn from_json(json: Option<Json>) -> Result<Params, ParamError> {
        match json {
            None | Some(Json::Null) => Ok(Params::None),
            Some(Json::Array(values)) => Ok(Params::Positional(values)),
            Some(Json::Object(values)) => Ok(Params::Named(values)),
            Some(_) => Err(ParamError::new("`params` is an array (for `?` and `$1`) or an object (for `$name`)")),
        }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        match self {
            Params::None => 0,
            Params::Positional(values) => values.len(),
            Params::Named(values) => values.len(),
        }
    }

    /// Is there no value?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Binds `params` to `statement`: every parameter of it gets a value, and every value has a parameter.
///
/// Typed values are cast by queries on `connection`, which must have no result open.
///
/// # Safety
/// Both handles are valid, belong together, and are used by no other thread meanwhile.
pub unsafe fn bind(
    connection: ffi::duckdb_connection,
    statement: ffi::duckdb_prepared_statement,
    set: Set<'_>,
) -> Result<(), ParamError> {
    // SAFETY: as the caller says; the names are ours to free.
    unsafe {
        let params = match set {
            Set::Json(params) => params,
            Set::Row(rows, row) => return rows.bind(statement, row),
        };
        let names: Vec<String> = (1..=ffi::duckdb_nparams(statement))
            .map(|i| take_string(ffi::duckdb_parameter_name(statement, i).cast_mut()))
            .collect();
        for (index, json) in (1..).zip(assign(&names, params)?) {
            let describe = |error: ParamError| {
                ParamError::new(format!("parameter `${}`: {}", names[index as usize - 1], error.message))
            };
            let value = to_value(connection, json).map_err(describe)?;
            if ffi::duckdb_bind_value(statement, index, value.raw()) != ffi::DuckDBSuccess {
                return Err(describe(ParamError::new("the value can't be bound")));
            }
        }
    }
    Ok(())
}

/// The value for each of a statement's parameters, in order. `names` are as DuckDB gives them: `1`, `2` for `?` and `$1`.
fn assign<'a>(names: &[String], params: &'a Params) -> Result<Vec<&'a Json>, ParamError> {
    match params {
        Params::None if names.is_empty() => Ok(Vec::new()),
        Params::None => Err(ParamError::new(format!(
            "the statement takes {} parameters and the request has no `params`",
            names.len()
        ))),
        Params::Positional(values) => {
            let positions: Option<Vec<usize>> = names.iter().map(|name| name.parse().ok()).collect();
            let Some(positions) = positions else {
                return Err(ParamError::new("the statement names its parameters; send `params` as an object"));
            };
            let expected = positions.iter().copied().max().unwrap_or(0);
            if expected != values.len() {
                return Err(ParamError::new(format!(
                    "the statement takes {expected} parameters and `params` has {}",
                    values.len()
                )));
            }
            Ok(positions.iter().map(|position| &values[position - 1]).collect())
        }
        Params::Named(values) => {
            let find =
                |name: &String| values.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
            if let Some(extra) = values.keys().find(|key| !names.iter().any(|name| name.eq_ignore_ascii_case(key))) {
                return Err(ParamError::new(format!("the statement has no parameter `${extra}`")));
            }
            // DuckDB's names know no case.
            let mut keys: Vec<String> = values.keys().map(|key| key.to_ascii_lowercase()).collect();
            keys.sort_unstable();
            if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(ParamError::new(format!("`params` has two values for `${}`", twice[0])));
            }
            names
                .iter()
                .map(|name| find(name).ok_or_else(|| ParamError::new(format!("`params` has no value for `${name}`"))))
                .collect()
        }
    }
}

unsafe fn to_value(connection: ffi::duckdb_connection, json: &Json) -> Result<Value, ParamError> {
    if let Json::Object(object) = json {
        let (Some(Json::String(ty)), Some(value), 2) = (object.get("type"), object.get("value"), object.len()) else {
            return Err(ParamError::new(
                r#"an object is `{"type": …, "value": …}`, such as `{"type": "STRUCT(a INTEGER)", "value": {"a": 1}}`"#,
            ));
        };
        // SAFETY: as the caller of `bind` says.
        return unsafe { typed::cast(connection, ty, value) };
    }
    plain_value(json, &plain_type(json)?)
}

/// The type that plain JSON has.
fn plain_type(json: &Json) -> Result<Type, ParamError> {
    let kind = match json {
        Json::Null => Kind::Null,
        Json::Bool(_) => Kind::Boolean,
        Json::Number(number) if number.is_i64() => Kind::BigInt,
        Json::Number(number) if number.is_u64() => Kind::HugeInt,
        Json::Number(_) => Kind::Double,
        Json::String(_) => Kind::Varchar,
        Json::Array(items) => {
            let mut common = Kind::Null;
            for item in items {
                common = unify(common, plain_type(item)?.kind)?;
            }
            Kind::List(Box::new(Type { kind: common, alias: None }))
        }
        Json::Object(_) => {
            return Err(ParamError::new(
                "a list with objects inside needs the form `{\"type\": …, \"value\": …}` around the whole list",
            ));
        }
    };
    Ok(Type { kind, alias: None })
}

/// The type that holds values of both types without loss.
fn unify(a: Kind, b: Kind) -> Result<Kind, ParamError> {
    match (a, b) {
        (a, b) if a == b => Ok(a),
        (Kind::Null, other) | (other, Kind::Null) => Ok(other),
        (Kind::BigInt, Kind::HugeInt) | (Kind::HugeInt, Kind::BigInt) => Ok(Kind::HugeInt),
        (Kind::Double, Kind::BigInt | Kind::HugeInt) | (Kind::BigInt | Kind::HugeInt, Kind::Double) => Ok(Kind::Double),
        (Kind::List(a), Kind::List(b)) => Ok(Kind::List(Box::new(Type { kind: unify(a.kind, b.kind)?, alias: None }))),
        _ => Err(ParamError::new("a list has values of different types; use the form `{\"type\": …, \"value\": …}`")),
    }
}

fn plain_value(json: &Json, ty: &Type) -> Result<Value, ParamError> {
    // SAFETY: constructors of plain values have no preconditions.
    let raw = unsafe {
        match (json, &ty.kind) {
            (Json::Null, _) => return Ok(Value::null()),
            (Json::Bool(value), _) => ffi::duckdb_create_bool(*value),
            (Json::Number(number), Kind::Double) => ffi::duckdb_create_double(exact_double(number)?),
            (Json::Number(number), Kind::HugeInt) => {
                let value = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
                ffi::duckdb_create_hugeint(value::hugeint(value.ok_or_else(|| ParamError::new("not an integer"))?))
            }
            (Json::Number(number), _) => {
                ffi::duckdb_create_int64(number.as_i64().ok_or_else(|| ParamError::new("not a 64-bit integer"))?)
            }
            (Json::String(text), _) => return Ok(value::varchar(text)?),
            (Json::Array(items), Kind::List(child)) => {
                let items = items.iter().map(|item| plain_value(item, child)).collect::<Result<Vec<_>, _>>()?;
                return Ok(value::list_of(child, &items)?);
            }
            _ => return Err(ParamError::new("the value has no plain DuckDB type")),
        }
    };
    Ok(Value::own(raw)?)
}

/// The number as a DOUBLE; an integer among floats must be one that a DOUBLE holds exactly.
fn exact_double(number: &serde_json::Number) -> Result<f64, ParamError> {
    let value = number.as_f64().ok_or_else(|| ParamError::new("not a number"))?;
    let integer = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    if integer.is_some_and(|integer| value as i128 != integer) {
        return Err(ParamError::new(
            "an integer among floats is too large for a DOUBLE; use the form `{\"type\": …, \"value\": …}`",
        ));
    }
    Ok(value)
}

fn c_string(text: String) -> Result<CString, ParamError> {
    CString::new(text).map_err(|_| ParamError::new("a type's text holds a NUL character"))
}

#[cfg(test)]
mod tests;
