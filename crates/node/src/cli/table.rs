//! Rows as text for people to read: a table, or one record after the other where a table would not fit.

use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Cells longer than this are cut; other formats give them whole.
const MAX_CELL_WIDTH: usize = 80;
/// A narrower column says too little.
const MIN_CELL_WIDTH: usize = 8;
const GAP: &str = "  ";

/// A table with a header line, numbers to the right, as wide as it comes.
pub(super) fn render(names: &[String], rows: &[Vec<Value>]) -> String {
    let cells = Cells::of(names, rows);
    cells.table(&cells.widths(MAX_CELL_WIDTH))
}

/// A table of at most `width` columns of a terminal, with cells cut where they must be; records where that can't be.
pub(super) fn fit(names: &[String], rows: &[Vec<Value>], width: usize) -> String {
    let cells = Cells::of(names, rows);
    let fits = |most: &usize| total(&cells.widths(*most)) <= width;
    match (MIN_CELL_WIDTH..=MAX_CELL_WIDTH).rev().find(fits) {
        Some(most) => cells.table(&cells.widths(most)),
        None => records(names, rows),
    }
}

/// One record after the other, a line for each value, none of them cut.
pub(super) fn records(names: &[String], rows: &[Vec<Value>]) -> String {
    let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
    let widest = names.iter().map(|name| name.width()).max().unwrap_or(0);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text.push_str(&format!("── row {}\n", number + 1));
        for (name, value) in names.iter().zip(row) {
            let line = format!("{}  {}", padded(name, widest, false), plain(value));
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

struct Cells {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Which columns hold numbers.
    right: Vec<bool>,
}

impl Cells {
    fn of(names: &[String], rows: &[Vec<Value>]) -> Self {
        let numeric = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).all(|value| value.is_number() || value.is_null())
        };
        Self {
            names: names.iter().map(|name| printable(name)).collect(),
            rows: rows.iter().map(|row| row.iter().map(plain).collect()).collect(),
            right: (0..names.len()).map(numeric).collect(),
        }
    }

    /// Of the columns, none over `most`.
    fn widths(&self, most: usize) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max();
            cells.unwrap_or(0).max(self.names[column].width()).min(most)
        };
        (0..self.names.len()).map(width).collect()
    }

    fn table(&self, widths: &[usize]) -> String {
        let line = |row: &[String]| {
            let cells = row.iter().zip(widths.iter().zip(&self.right));
            let cells: Vec<_> = cells.map(|(cell, (width, right))| padded(cell, *width, *right)).collect();
            cells.join(GAP).trim_end().to_owned() + "\n"
        };
        let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        let mut text = line(&self.names) + &line(&rule);
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

/// Exactly so wide: cut, with an ellipsis, or filled up.
fn padded(text: &str, width: usize, right: bool) -> String {
    let mut text = text.to_owned();
    if text.width() > width {
        let mut left = width.saturating_sub(1);
        text = text
            .chars()
            .take_while(|c| {
                let fits = c.width().unwrap_or(0) <= left;
                left = left.saturating_sub(c.width().unwrap_or(0));
                fits
            })
            .collect();
        text.push('…');
    }
    let fill = " ".repeat(width.saturating_sub(text.width()));
    if right { fill + &text } else { text + &fill }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_align_right_and_control_characters_do_not_reach_the_terminal() {
        let rows = [vec![json!(1), json!("a\u{1b}[31m")], vec![json!(100), json!(null)]];
        let text = render(&["n".into(), "\u{7}s".into()], &rows);
        assert_eq!(text, "  n   s\n───  ──────\n  1  a [31m\n100\n");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let rows = [vec![json!("漢字"), json!("x")], vec![json!("abc"), json!("y")]];
        assert_eq!(render(&["a".into(), "b".into()], &rows), "a     b\n────  ─\n漢字  x\nabc   y\n");
    }

    #[test]
    fn a_table_fits_the_terminal_and_becomes_records_where_it_can_t() {
        let names: Vec<String> = ["first", "second", "third"].map(Into::into).to_vec();
        let rows = [vec![json!("x".repeat(60)), json!(7), json!("漢".repeat(30))]];
        let text = fit(&names, &rows, 50);
        assert!(text.lines().all(|line| line.width() <= 50), "{text}");
        assert!(text.contains('…') && text.contains("second"));
        assert_eq!(fit(&names, &rows, 1000), render(&names, &rows));
        let narrow = fit(&names, &rows, 20);
        assert!(narrow.starts_with("── row 1\nfirst   xxx") && narrow.contains("\nsecond  7\n"), "{narrow}");
        assert_eq!(fit(&[], &[], 20), "\n\n");
    }
}
