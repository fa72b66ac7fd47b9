//! The DuckDB type that a column of Arrow had before: our own results say so in its metadata, and a table made of them gets it back.

use crate::{
    format::types::{Kind, Type},
    sql::{Words, lexer},
};

/// The key of the field metadata.
pub(super) const KEY: &str = "tarn.duckdb_type";
const MAX_BYTES: usize = 64 << 10;
/// Types that Arrow has no form for, and the casts of what stands for them lose nothing.
const OF_TEXT: [&str; 5] = ["UUID", "BIT", "BIGNUM", "JSON", "TIME WITH TIME ZONE"];
const OF_NUMBERS: [&str; 2] = ["HUGEINT", "UHUGEINT"];

/// The type that a new column is to have, if it is one that `ty` can be cast to. The text is a client's, so only what is understood
/// here passes.
pub(super) fn wanted(text: &str, ty: &Type) -> Option<String> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let plain: &[&str] = match ty.kind {
        Kind::Varchar if is_enum(text) => return Some(text.to_owned()),
        Kind::Varchar => &OF_TEXT,
        Kind::Decimal { precision: 38, scale: 0, .. } => &OF_NUMBERS,
        _ => return None,
    };
    plain.iter().find(|name| **name == text).map(|name| (*name).to_owned())
}

/// `ENUM('a', 'b')`, and nothing else.
fn is_enum(text: &str) -> bool {
    let Ok(tokens) = lexer::lex(text) else { return false };
    let words = Words { sql: text, tokens: &tokens };
    let [_, _, values @ .., _] = tokens.as_slice() else { return false };
    words.is(0, "enum")
        && words.symbol(1, b'(')
        && words.symbol(tokens.len() - 1, b')')
        && values.len() % 2 == 1
        && values.iter().enumerate().all(|(at, token)| match at % 2 {
            0 => token.is_string(),
            _ => token.is_symbol(b','),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_understood_passes() {
        let decimal = Type { kind: Kind::Decimal { precision: 38, scale: 0, width: 16 }, alias: None };
        assert_eq!(wanted("UUID", &Type::text()).as_deref(), Some("UUID"));
        assert_eq!(wanted("HUGEINT", &decimal).as_deref(), Some("HUGEINT"));
        let letters = "ENUM('a', 'it''s')";
        assert_eq!(wanted(letters, &Type::text()).as_deref(), Some(letters));
        for text in [
            "uuid); drop table t; --",
            "HUGEINT",
            "ENUM('a') , (select 1)",
            "ENUM()",
            "ENUM('a', b)",
            "ENUM('a'",
            "mood",
            "ENUM('a') CHECK ('b')",
        ] {
            assert_eq!(wanted(text, &Type::text()), None, "{text}");
        }
    }
}
