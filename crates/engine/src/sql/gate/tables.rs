//! Where in a statement a table stands: there a string is a file, and a name can be a system view or a table function.
//!
//! No parse, only clauses by bracket depth. Wrong in one direction only: a place that might be a table's counts as one.

use crate::sql::{Words, lexer::TokenKind};

/// Where the walk over the tokens stands, per open bracket.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// In a list of tables: a string or quoted name here can be a file.
    Tables,
    /// Anywhere else.
    Values,
    /// Inside `extract(… from …)`, `trim(… from …)` and their like, where FROM starts no list of tables.
    Keywords,
}

/// For each token: does the name, string or bracket of a table start there?
pub(super) fn positions(words: Words<'_>) -> Vec<bool> {
    let mut places = vec![Place::Values];
    let mut starts = Vec::with_capacity(words.tokens.len());
    for (at, token) in words.tokens.iter().enumerate() {
        let place = places.last().copied().unwrap_or(Place::Values);
        let starts_item = starts_table(words, at, place);
        starts.push(starts_item);
        match token.kind {
            TokenKind::Symbol(b'(') => places.push(inside_bracket(words, at, starts_item)),
            TokenKind::Symbol(b'[' | b'{') => places.push(Place::Values),
            TokenKind::Symbol(b')' | b']' | b'}') if places.len() > 1 => {
                places.pop();
            }
            TokenKind::Word => {
                if let Some(last) = places.last_mut() {
                    *last = behind_word(words, at, place);
                }
            }
            _ => {}
        }
    }
    starts
}

fn starts_table(words: Words<'_>, at: usize, place: Place) -> bool {
    let Some(before) = at.checked_sub(1) else { return false };
    if words.is_any(
        before,
        &[
            "join",
            "table",
            "describe",
            "desc",
            "summarize",
            "show",
            "pivot",
            "unpivot",
            "using",
            "into",
            "update",
            "lateral",
        ],
    ) {
        return true;
    }
    place == Place::Tables
        && (words.is(before, "from") || matches!(words.tokens[before].kind, TokenKind::Symbol(b',' | b'(' | b':')))
}

/// What a bracket opens: a bracketed list of tables where a table may stand, else values (a query inside brings its own FROM).
fn inside_bracket(words: Words<'_>, at: usize, starts_item: bool) -> Place {
    let keyword_call = at > 0 && words.is_any(at - 1, &["extract", "substring", "trim", "overlay", "position"]);
    match (keyword_call, starts_item) {
        (true, _) => Place::Keywords,
        (false, true) => Place::Tables,
        (false, false) => Place::Values,
    }
}

fn behind_word(words: Words<'_>, at: usize, place: Place) -> Place {
    const ENDS: [&str; 17] = [
        "select",
        "where",
        "group",
        "having",
        "qualify",
        "window",
        "order",
        "limit",
        "offset",
        "set",
        "values",
        "returning",
        "union",
        "except",
        "intersect",
        "sample",
        "tablesample",
    ];
    if words.is(at, "from") && place != Place::Keywords {
        let distinct = at >= 2 && words.is(at - 1, "distinct") && words.is_any(at - 2, &["is", "not"]);
        return if distinct { place } else { Place::Tables };
    }
    if words.is(at, "join") {
        return Place::Tables;
    }
    // ON is no end: in `from a join b on …, 'file'` the list goes on.
    if place == Place::Tables && words.is_any(at, &ENDS) {
        return Place::Values;
    }
    place
}
