//! Whether the columns of a body go into those of a table, said for all of them at once.

use crate::{
    failure::Failure,
    format::types::{Kind, Type},
    wire::Code,
};

/// Differences that a message names; more are counted.
const MOST: usize = 20;

/// Where each column of the body goes, by name; refuses if one goes nowhere.
pub(super) fn fit(table: &str, body: &[(String, Type)], target: &[(String, Type)]) -> Result<Vec<usize>, Failure> {
    let mut places = Vec::with_capacity(body.len());
    let mut differences = Vec::new();
    for (name, ty) in body {
        // A name that is the same in every letter comes first, though DuckDB has no two that differ in case only.
        let same = target.iter().position(|(column, _)| column == name);
        let place = same.or_else(|| target.iter().position(|(column, _)| column.to_lowercase() == name.to_lowercase()));
        match place {
            None => differences.push(format!("column `{name}` ({ty}) is not in the table")),
            Some(at) if !castable(ty, &target[at].1) => {
                let column = &target[at];
                differences.push(format!("column `{}` is {ty} in the body and {} in the table", column.0, column.1));
            }
            Some(at) => places.push(at),
        }
    }
    if differences.is_empty() {
        return Ok(places);
    }
    let rest = differences.len().saturating_sub(MOST);
    differences.truncate(MOST);
    if rest > 0 {
        differences.push(format!("and {rest} more"));
    }
    let columns: Vec<String> = target.iter().take(MOST).map(|(name, ty)| format!("{name} {ty}")).collect();
    let more = if target.len() > MOST { ", …" } else { "" };
    Err(Failure::new(Code::Invalid, format!("the body does not fit table `{table}`: {}", differences.join("; ")))
        .hint(format!("the table has {}{more}", columns.join(", "))))
}

/// Refuses two columns of the same name, and a body without any.
pub(super) fn check_names(body: &[(String, Type)]) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::new(Code::Invalid, "the body has no columns"));
    }
    let mut seen = std::collections::HashSet::new();
    match body.iter().find(|(name, _)| name.is_empty() || !seen.insert(name.to_lowercase())) {
        Some((name, _)) if name.is_empty() => {
            Err(Failure::new(Code::Invalid, "a column of the body has no name").hint("give each column a name"))
        }
        Some((name, _)) => Err(Failure::new(Code::Invalid, format!("the body has more than one column `{name}`"))
            .hint("names are the same whatever their case")),
        None => Ok(()),
    }
}

/// Has DuckDB a cast from one to the other that makes sense? Whether each value can be cast, only the values show.
fn castable(from: &Type, to: &Type) -> bool {
    let text = |ty: &Type| matches!(ty.kind, Kind::Varchar | Kind::Null | Kind::Variant);
    if from == to || text(from) || text(to) {
        return true;
    }
    match (&from.kind, &to.kind) {
        (Kind::List(from) | Kind::Array(from, _), Kind::List(to)) | (Kind::List(from), Kind::Array(to, _)) => {
            castable(from, to)
        }
        (Kind::Array(from, from_size), Kind::Array(to, to_size)) => from_size == to_size && castable(from, to),
        (Kind::Map(from), Kind::Map(to)) => castable(from, to),
        (Kind::Struct(from), Kind::Struct(to)) | (Kind::Union(from), Kind::Union(to)) => {
            let field = |name: &str| to.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
            from.len() == to.len() && from.iter().all(|(name, ty)| field(name).is_some_and(|(_, to)| castable(ty, to)))
        }
        (from, to) => family(from).is_some() && family(from) == family(to),
    }
}

#[derive(PartialEq)]
enum Family {
    Number,
    Moment,
    Time,
    Interval,
    Bytes,
    Uuid,
    Enum,
    Geometry,
}

fn family(kind: &Kind) -> Option<Family> {
    Some(match kind {
        Kind::Boolean | Kind::TinyInt | Kind::SmallInt | Kind::Integer | Kind::BigInt | Kind::HugeInt => Family::Number,
        Kind::UTinyInt | Kind::USmallInt | Kind::UInteger | Kind::UBigInt | Kind::UHugeInt => Family::Number,
        Kind::Bignum | Kind::Float | Kind::Double | Kind::Decimal { .. } => Family::Number,
        Kind::Date | Kind::TimestampS | Kind::TimestampMs | Kind::Timestamp | Kind::TimestampNs => Family::Moment,
        Kind::TimestampTz => Family::Moment,
        Kind::Time | Kind::TimeNs | Kind::TimeTz => Family::Time,
        Kind::Interval => Family::Interval,
        Kind::Blob | Kind::Bit => Family::Bytes,
        Kind::Uuid => Family::Uuid,
        Kind::Enum { .. } => Family::Enum,
        Kind::Geometry => Family::Geometry,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(kind: Kind) -> Type {
        Type { kind, alias: None }
    }

    #[test]
    fn columns_go_by_name_in_any_order_and_case() {
        let target = [("a".to_owned(), ty(Kind::Integer)), ("B".to_owned(), ty(Kind::Date))];
        let body = [("b".to_owned(), Type::text()), ("a".to_owned(), ty(Kind::Double))];
        assert_eq!(fit("t", &body, &target).expect("fits"), [1, 0]);
    }

    #[test]
    fn all_differences_are_named() {
        let target = [("a".to_owned(), ty(Kind::Integer)), ("b".to_owned(), ty(Kind::Date))];
        let body = [
            ("a".to_owned(), ty(Kind::List(Box::new(ty(Kind::Integer))))),
            ("b".to_owned(), ty(Kind::BigInt)),
            ("c".to_owned(), ty(Kind::Uuid)),
        ];
        let failure = fit("main.t", &body, &target).expect_err("does not fit");
        assert_eq!(
            failure.message,
            "the body does not fit table `main.t`: column `a` is INTEGER[] in the body and INTEGER in the table; \
             column `b` is BIGINT in the body and DATE in the table; column `c` (UUID) is not in the table"
        );
        assert_eq!(failure.hint.as_deref(), Some("the table has a INTEGER, b DATE"));
    }
}
