//! Which Postgres type a column of a result goes to, and how DuckDB has to hand it over. `docs/pipelines.md` has the map.
//!
//! Everything is decided here, before a byte is sent: DuckDB casts to types whose values Postgres takes in binary form as they are.

use crate::error::{ApiError, Code};

/// The form of a value in a binary COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// From a decimal, or from text where that is too narrow.
    Numeric,
    Text,
    Bytes,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Json,
    Jsonb,
}

/// Postgres' built-in types that have a form: object id, name, DuckDB's type.
const BUILT_IN: [(u32, &str, &str, Form); 20] = [
    (16, "boolean", "BOOLEAN", Form::Bool),
    (21, "smallint", "SMALLINT", Form::Int2),
    (23, "integer", "INTEGER", Form::Int4),
    (20, "bigint", "BIGINT", Form::Int8),
    (700, "real", "FLOAT", Form::Float4),
    (701, "double precision", "DOUBLE", Form::Float8),
    (1700, "numeric", "VARCHAR", Form::Numeric),
    (25, "text", "VARCHAR", Form::Text),
    (1043, "character varying", "VARCHAR", Form::Text),
    (1042, "character", "VARCHAR", Form::Text),
    (19, "name", "VARCHAR", Form::Text),
    (17, "bytea", "BLOB", Form::Bytes),
    (1082, "date", "DATE", Form::Date),
    (1083, "time", "TIME", Form::Time),
    (1114, "timestamp", "TIMESTAMP", Form::Timestamp),
    (1184, "timestamptz", "TIMESTAMPTZ", Form::Timestamptz),
    (1186, "interval", "INTERVAL", Form::Interval),
    (2950, "uuid", "VARCHAR", Form::Uuid),
    (114, "json", "VARCHAR", Form::Json),
    (3802, "jsonb", "VARCHAR", Form::Jsonb),
];

/// A column on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// In the result, and in the table.
    pub name: String,
    /// Postgres' type, as in CREATE TABLE.
    pub sql_type: String,
    pub form: Form,
    /// Object id of the elements' type, of an array.
    pub element: Option<u32>,
    /// DuckDB's expression over `$`, the column's place in the result.
    expression: String,
}

/// A column of a table that is there.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: String,
    /// Of its type, or of what its domain is made of; of its elements, if it is an array.
    pub oid: u32,
    pub is_array: bool,
    pub is_enum: bool,
    /// As Postgres writes it.
    pub sql_type: String,
    pub is_generated: bool,
}

/// DuckDB's type as DESCRIBE writes it.
#[derive(Debug, PartialEq)]
enum Source<'a> {
    Plain(&'a str),
    Decimal(&'a str),
    Json,
    Enum,
    /// A list or array of what is not nested itself.
    List(&'a str),
    /// STRUCT, MAP, and lists of lists.
    Nested,
    /// Has no place in Postgres.
    Without(&'static str),
}

fn source(text: &str) -> Source<'_> {
    if let Some(inner) = text.strip_suffix(']').and_then(|text| Some(&text[..text.rfind('[')?])) {
        return match source(inner) {
            Source::Without(why) => Source::Without(why),
            Source::List(_) | Source::Nested | Source::Json => Source::Nested,
            _ => Source::List(inner),
        };
    }
    match text {
        "JSON" => Source::Json,
        "BIT" => Source::Without("cast it to VARCHAR"),
        "TIME WITH TIME ZONE" => Source::Without("cast it to TIME"),
        "TIMESTAMP_NS" => Source::Without("Postgres has no nanoseconds: cast it to TIMESTAMP"),
        "TIME_NS" => Source::Without("Postgres has no nanoseconds: cast it to TIME"),
        "VARIANT" | "GEOMETRY" => Source::Without("cast it to VARCHAR or BLOB"),
        _ if text.starts_with("UNION(") => Source::Without("take the members apart"),
        _ if text.starts_with("STRUCT(") || text.starts_with("MAP(") => Source::Nested,
        _ if text.starts_with("ENUM(") => Source::Enum,
        _ if text.starts_with("DECIMAL(") => Source::Decimal(text),
        plain => Source::Plain(plain),
    }
}

/// Where a column goes if its table is made for it.
pub fn of_new(name: &str, duckdb_type: &str) -> Result<Column, ApiError> {
    let column = |sql_type: &str, form, element, expression: &str| Column {
        name: name.to_owned(),
        sql_type: sql_type.to_owned(),
        form,
        element,
        expression: expression.to_owned(),
    };
    let none = |why: &str| {
        let what = format!("column `{name}` is {duckdb_type}, which has no place in Postgres");
        Err(ApiError::new(Code::Invalid, what).hint(why.to_owned()))
    };
    let scalar = |text: &str| match source(text) {
        Source::Decimal(text) => Some((text.replacen("DECIMAL", "numeric", 1), text.to_owned(), Form::Numeric, 1700)),
        Source::Enum => Some(("text".into(), "VARCHAR".into(), Form::Text, 25)),
        Source::Plain(text) => {
            let oid = match text {
                "BOOLEAN" => 16,
                "TINYINT" | "SMALLINT" | "UTINYINT" => 21,
                "INTEGER" | "USMALLINT" => 23,
                "BIGINT" | "UINTEGER" => 20,
                "FLOAT" => 700,
                "DOUBLE" => 701,
                "UBIGINT" | "HUGEINT" | "UHUGEINT" | "BIGNUM" => 1700,
                "VARCHAR" | "\"NULL\"" | "NULL" => 25,
                "BLOB" => 17,
                "DATE" => 1082,
                "TIME" => 1083,
                "TIMESTAMP" | "TIMESTAMP_S" | "TIMESTAMP_MS" => 1114,
                "TIMESTAMP WITH TIME ZONE" => 1184,
                "INTERVAL" => 1186,
                "UUID" => 2950,
                _ => return None,
            };
            BUILT_IN
                .iter()
                .find(|known| known.0 == oid)
                .map(|(oid, name, duckdb, form)| ((*name).to_owned(), (*duckdb).to_owned(), *form, *oid))
        }
        _ => None,
    };
    match source(duckdb_type) {
        Source::Without(why) => none(why),
        Source::Json => Ok(column("jsonb", Form::Jsonb, None, "$::VARCHAR")),
        Source::Nested => Ok(column("jsonb", Form::Jsonb, None, "to_json($)::VARCHAR")),
        Source::List(inner) => match scalar(inner) {
            Some((sql_type, duckdb, form, oid)) => {
                Ok(column(&format!("{sql_type}[]"), form, Some(oid), &format!("CAST($ AS {duckdb}[])")))
            }
            None => none("cast it, or its elements, to VARCHAR"),
        },
        _ => match scalar(duckdb_type) {
            Some((sql_type, duckdb, form, _)) => Ok(column(&sql_type, form, None, &format!("CAST($ AS {duckdb})"))),
            None => none("cast it to VARCHAR"),
        },
    }
}

/// How a column goes into one that is there.
pub fn into_found(name: &str, duckdb_type: &str, found: &Found) -> Result<Column, ApiError> {
    let refuse = |what: &str| {
        let what = format!("column `{name}` is {duckdb_type} and the table's is {}: {what}", found.sql_type);
        Err(ApiError::new(Code::Invalid, what).hint("cast it in the query"))
    };
    if found.is_generated {
        return refuse("Postgres generates it");
    }
    let known = BUILT_IN.iter().find(|known| known.0 == found.oid);
    let (duckdb, form) = match known {
        Some((_, _, duckdb, form)) => (*duckdb, *form),
        None if found.is_enum => ("VARCHAR", Form::Text),
        None => return refuse("there is no binary form for it"),
    };
    let source = source(duckdb_type);
    let is_json = matches!(form, Form::Json | Form::Jsonb);
    let expression = match (&source, found.is_array) {
        (Source::Without(why), _) => return refuse(why),
        (Source::Json, false) if is_json => "$::VARCHAR".into(),
        (_, false) if is_json => "to_json($)::VARCHAR".into(),
        (Source::Nested, false) if form == Form::Text => "to_json($)::VARCHAR".into(),
        (Source::List(_), true) => format!("CAST($ AS {duckdb}[])"),
        (Source::List(_) | Source::Nested, _) | (_, true) => return refuse("one of them is a list"),
        // As it is, where Postgres' own precision may cut it.
        (Source::Decimal(_), false) if form == Form::Numeric => "$".into(),
        (_, false) if form == Form::Uuid => "CAST(CAST($ AS UUID) AS VARCHAR)".into(),
        _ => format!("CAST($ AS {duckdb})"),
    };
    let element = found.is_array.then_some(found.oid);
    Ok(Column { name: name.to_owned(), sql_type: found.sql_type.clone(), form, element, expression })
}

/// The query whose result is sent: every column in the type that its form is made from.
pub fn wrapped(sql: &str, columns: &[Column]) -> String {
    let names: Vec<String> = (0..columns.len()).map(|n| format!("c{n}")).collect();
    let cast = |(column, name): (&Column, &String)| format!("{} AS {name}", column.expression.replace('$', name));
    let casts: Vec<_> = columns.iter().zip(&names).map(cast).collect();
    // The line's end closes a comment that the text may end with.
    format!("SELECT {} FROM ({sql}\n) AS q({})", casts.join(", "), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_place_or_says_why_not() {
        for (duckdb, postgres) in [
            ("BOOLEAN", "boolean"),
            ("UTINYINT", "smallint"),
            ("UINTEGER", "bigint"),
            ("UBIGINT", "numeric"),
            ("HUGEINT", "numeric"),
            ("DECIMAL(15,2)", "numeric(15,2)"),
            ("VARCHAR", "text"),
            ("ENUM('a', 'b]')", "text"),
            ("TIMESTAMP_MS", "timestamp"),
            ("TIMESTAMP WITH TIME ZONE", "timestamptz"),
            ("INTEGER[]", "integer[]"),
            ("DECIMAL(9,3)[4]", "numeric(9,3)[]"),
            ("INTEGER[][]", "jsonb"),
            ("STRUCT(a INTEGER, b VARCHAR[])", "jsonb"),
            ("MAP(VARCHAR, INTEGER)", "jsonb"),
            ("STRUCT(a INTEGER)[]", "jsonb"),
            ("JSON", "jsonb"),
        ] {
            assert_eq!(of_new("c", duckdb).ok().map(|column| column.sql_type).as_deref(), Some(postgres), "{duckdb}");
        }
        for duckdb in ["BIT", "UNION(a INTEGER)", "TIMESTAMP_NS", "TIMESTAMP_NS[]", "TIME WITH TIME ZONE", "SOMETHING"]
        {
            let error = of_new("c", duckdb).expect_err(duckdb);
            assert!(error.message.contains(duckdb) && !error.hint.is_empty(), "{error:?}");
        }
    }

    #[test]
    fn a_table_that_is_there_decides() {
        let found = |oid, is_array, sql_type: &str| Found {
            name: "c".into(),
            oid,
            is_array,
            is_enum: false,
            sql_type: sql_type.into(),
            is_generated: false,
        };
        let of = |duckdb: &str, found: &Found| {
            into_found("c", duckdb, found).ok().map(|column| (column.form, column.expression))
        };
        assert_eq!(of("BIGINT", &found(23, false, "integer")), Some((Form::Int4, "CAST($ AS INTEGER)".into())));
        assert_eq!(of("DECIMAL(9,2)", &found(1700, false, "numeric(9,2)")), Some((Form::Numeric, "$".into())));
        assert_eq!(of("HUGEINT", &found(1700, false, "numeric")), Some((Form::Numeric, "CAST($ AS VARCHAR)".into())));
        assert_eq!(
            of("STRUCT(a INTEGER)", &found(3802, false, "jsonb")),
            Some((Form::Jsonb, "to_json($)::VARCHAR".into()))
        );
        assert_eq!(of("INTEGER[]", &found(20, true, "bigint[]")), Some((Form::Int8, "CAST($ AS BIGINT[])".into())));
        assert!(of("INTEGER", &found(23, true, "integer[]")).is_none());
        assert!(of("INTEGER", &found(869, false, "inet")).is_none());
        assert!(of("INTEGER", &Found { is_generated: true, ..found(23, false, "integer") }).is_none());
        let mood = Found { is_enum: true, ..found(40_000, false, "mood") };
        assert_eq!(of("VARCHAR", &mood), Some((Form::Text, "CAST($ AS VARCHAR)".into())));
    }

    #[test]
    fn a_query_is_wrapped_whatever_it_ends_with() {
        let columns = [of_new("a b", "INTEGER").expect("fits"), of_new("a b", "STRUCT(x INTEGER)").expect("fits")];
        assert_eq!(
            wrapped("select 1, {'x': 1} -- end", &columns),
            "SELECT CAST(c0 AS INTEGER) AS c0, to_json(c1)::VARCHAR AS c1 FROM (select 1, {'x': 1} -- end\n) AS q(c0, c1)"
        );
    }
}
