//! Rows as a table for people to read.

use serde_json::Value;

/// Cells longer than this are cut; other formats give them whole.
const MAX_CELL_CHARS: usize = 80;

/// A table with a header line; numbers to the right.
pub(super) fn render(names: &[String], rows: &[Vec<Value>]) -> String {
    let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let width = |column: usize| {
        let longest = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        longest.unwrap_or(0).max(names[column].chars().count())
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let right: Vec<bool> = (0..names.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).all(|v| v.is_number() || v.is_null()))
        .collect();
    let line = |row: &[String]| {
        let padded = row.iter().zip(widths.iter().zip(&right)).map(|(cell, (width, right))| {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            if *right { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
    let mut text = line(&names) + &line(&rule);
    for row in &cells {
        text.push_str(&line(row));
    }
    text
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = printable(&text);
    if text.chars().count() <= MAX_CELL_CHARS {
        return text;
    }
    text.chars().take(MAX_CELL_CHARS - 1).chain(['…']).collect()
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
}
