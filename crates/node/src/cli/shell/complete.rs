//! What may come next at the cursor: names of the catalog, DuckDB's keywords and functions, the shell's own commands.

use std::sync::{Arc, Mutex, PoisonError};

use engine::sql::lexer::{self, TokenKind};
use nu_ansi_term::{Color, Style};
use reedline::{CompletionResult, Span, StyledText, Suggestion};

use super::input::COMMANDS;

/// More make no menu.
const MOST: usize = 200;

/// What is known of the mart; empty until it has been asked.
#[derive(Debug, Default, Clone)]
pub(super) struct Known {
    pub schemas: Vec<String>,
    pub tables: Vec<Table>,
    /// Keywords and functions.
    pub words: Vec<String>,
    pub snapshots: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub schema: String,
    pub name: String,
    pub columns: Vec<String>,
}

/// Keywords and functions, if they were asked for already.
pub(super) fn words(known: &Shared) -> Option<Vec<String>> {
    let words = known.lock().unwrap_or_else(PoisonError::into_inner).words.clone();
    (!words.is_empty()).then_some(words)
}

/// Shared by the editor and the shell that fills it.
pub(super) type Shared = Arc<Mutex<Known>>;

pub(super) struct Completer(pub Shared);

impl reedline::Completer for Completer {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, found) = known.candidates(line, pos);
        let suggestion = |value| Suggestion { value, span: Span::new(start, pos), ..Suggestion::default() };
        CompletionResult::fresh(found.into_iter().take(MOST).map(suggestion).collect::<Vec<_>>())
    }
}

impl Known {
    /// Where the word at the cursor begins, and what may stand there.
    fn candidates(&self, line: &str, pos: usize) -> (usize, Vec<String>) {
        let before = &line[..pos];
        let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '"');
        let mut start = before.trim_end_matches(|c| part(c) || c == '.').len();
        if before.trim_start().starts_with('\\') {
            let command = before.trim_start();
            let Some((name, word)) = command.split_once(char::is_whitespace) else {
                let names = COMMANDS.iter().map(|(name, ..)| (*name).to_owned());
                return (before.len() - command.len(), names.filter(|name| name.starts_with(command)).collect());
            };
            match name {
                "\\at" => {
                    let word = word.trim_start();
                    let moments = self.snapshots.iter().cloned().chain(["now".to_owned()]);
                    return (before.len() - word.len(), moments.filter(|name| name.starts_with(word)).collect());
                }
                "\\d" if !before[start..].contains('.') => {
                    let tables = self.tables.iter().map(|table| self.called(table));
                    return (start, begin_with(tables, &before[start..]));
                }
                _ => {}
            }
        }
        if let Some(dot) = before[start..].rfind('.') {
            let owner = before[start..start + dot].replace('"', "");
            start += dot + 1;
            return (start, begin_with(self.members(line, &owner).into_iter(), &before[start..]));
        }
        let word = &before[start..];
        let mentioned = self.tables.iter().filter(|table| mentions(line, &table.name));
        let columns = mentioned.flat_map(|table| table.columns.iter().map(|name| quoted(name)));
        let tables = self.tables.iter().map(|table| self.called(table));
        let names = columns.chain(tables).chain(self.schemas.iter().map(|name| quoted(name)));
        let mut found = begin_with(names, word);
        if !word.is_empty() {
            let upper = word.chars().next().is_some_and(char::is_uppercase);
            let words = self.words.iter().map(|word| if upper { word.to_uppercase() } else { word.clone() });
            found.extend(begin_with(words, word));
        }
        let mut seen = std::collections::HashSet::new();
        found.retain(|name| seen.insert(name.clone()));
        (start, found)
    }

    /// A table's name, with its schema where it needs one.
    fn called(&self, table: &Table) -> String {
        match table.schema.as_str() {
            "main" => quoted(&table.name),
            schema => format!("{}.{}", quoted(schema), quoted(&table.name)),
        }
    }

    /// What may stand behind `owner.`: tables of a schema, columns of a table or of what stands for one in this statement.
    fn members(&self, line: &str, owner: &str) -> Vec<String> {
        let last = owner.rsplit('.').next().unwrap_or(owner);
        let of_schema = self.tables.iter().filter(|table| table.schema.eq_ignore_ascii_case(owner));
        let mut names: Vec<String> = of_schema.map(|table| quoted(&table.name)).collect();
        let words: Vec<&str> =
            line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).collect();
        let stands_for = |table: &Table| {
            words.windows(2).any(|pair| pair[0].eq_ignore_ascii_case(&table.name) && pair[1].eq_ignore_ascii_case(last))
                || words.windows(3).any(|three| {
                    three[0].eq_ignore_ascii_case(&table.name)
                        && three[1].eq_ignore_ascii_case("as")
                        && three[2].eq_ignore_ascii_case(last)
                })
        };
        for table in &self.tables {
            if table.name.eq_ignore_ascii_case(last) || stands_for(table) {
                names.extend(table.columns.iter().map(|name| quoted(name)));
            }
        }
        names
    }
}

/// Those that begin so, whatever the case and whether quoted or not.
fn begin_with(names: impl Iterator<Item = String>, word: &str) -> Vec<String> {
    let bare = |text: &str| text.trim_start_matches('"').to_lowercase();
    let word = bare(word);
    names.filter(|name| bare(name).starts_with(&word)).collect()
}

fn mentions(line: &str, name: &str) -> bool {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word.eq_ignore_ascii_case(name))
}

/// As it has to be written in SQL.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    match name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(plain) {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// Keywords bold, strings green.
pub(super) struct Highlighter(pub Shared);

impl reedline::Highlighter for Highlighter {
    fn highlight(&self, line: &str, _: usize) -> StyledText {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = StyledText::new();
        text.push((Style::new(), line.to_owned()));
        for token in lexer::lex(line).unwrap_or_default() {
            let style = match token.kind {
                TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString => Color::Green.normal(),
                TokenKind::Word if known.words.binary_search(&token.text(line).to_lowercase()).is_ok() => {
                    Style::new().bold()
                }
                _ => continue,
            };
            text.style_range(token.start, token.end, style);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let table = |schema: &str, name: &str, columns: &[&str]| Table {
            schema: schema.into(),
            name: name.into(),
            columns: columns.iter().map(|&name| name.into()).collect(),
        };
        Known {
            schemas: vec!["main".into(), "metrics".into()],
            tables: vec![
                table("main", "flights", &["carrier", "dep delay"]),
                table("metrics", "daily", &["day", "carrier"]),
            ],
            words: vec!["from".into(), "select".into(), "sum".into()],
            snapshots: vec!["loaded".into()],
        }
    }

    #[test]
    fn the_word_at_the_cursor_is_completed() {
        let at_end = |line: &str| known().candidates(line, line.len());
        assert_eq!(at_end("select * fro"), (9, vec!["from".into()]));
        assert_eq!(at_end("SELECT * FRO"), (9, vec!["FROM".into()]));
        assert_eq!(at_end("from fl"), (5, vec!["flights".into()]));
        assert_eq!(at_end("from met"), (5, vec!["metrics.daily".into(), "metrics".into()]));
        assert_eq!(at_end("from metrics.d"), (13, vec!["daily".into()]));
        let line = "select f. from flights AS f";
        assert_eq!(known().candidates(line, 9), (9, vec!["carrier".into(), "\"dep delay\"".into()]));
        let line = "select car from flights";
        assert_eq!(known().candidates(line, 10), (7, vec!["carrier".into()]));
        assert_eq!(at_end("from flights where dep").1, vec!["\"dep delay\"".to_owned()]);
        assert_eq!(at_end("\\pl"), (0, vec!["\\plan".into()]));
        assert_eq!(at_end("\\d fl"), (3, vec!["flights".into()]));
        assert_eq!(at_end("\\at lo"), (4, vec!["loaded".into()]));
        assert_eq!(at_end("\\plan select * fro"), (15, vec!["from".into()]));
        assert_eq!(known().candidates("sélect * from fl", "sélect * from fl".len()).1, vec!["flights".to_owned()]);
    }
}
