//! A tree of operators as boxes: each above the middle of what feeds it, as wide as its words, side by side without touching.

use std::fmt::Write;

use super::Operator;

/// Of a monospaced font of 12 pixels.
const CHAR: f64 = 7.3;
const LINE: f64 = 16.0;
const PAD: f64 = 8.0;
const GAP_ACROSS: f64 = 24.0;
const GAP_DOWN: f64 = 36.0;
/// Longer lines are cut; the whole is in the box's title.
const MOST_CHARS: usize = 56;
const MOST_LINES: usize = 14;

/// A box with its place.
struct Placed<'a> {
    operator: &'a Operator,
    lines: Vec<String>,
    middle: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// An SVG document of these trees, side by side.
pub(super) fn draw(roots: &[Operator]) -> String {
    let (mut boxes, mut lines) = (Vec::new(), String::new());
    let mut left = PAD;
    for root in roots {
        let (_, right) = place(root, left, PAD, &mut boxes, &mut lines);
        left = right + GAP_ACROSS;
    }
    let width = boxes.iter().map(|one| one.middle + one.width / 2.0).fold(0.0, f64::max) + PAD;
    let height = boxes.iter().map(|one| one.top + one.height).fold(0.0, f64::max) + PAD;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"monospace\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<g stroke=\"#8a94a6\" fill=\"none\">\n{lines}</g>\n"
    );
    for one in &boxes {
        write_box(one, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

/// Places a tree from `left` on; the middle of its root and where the tree ends.
fn place<'a>(
    operator: &'a Operator,
    left: f64,
    top: f64,
    boxes: &mut Vec<Placed<'a>>,
    lines: &mut String,
) -> (f64, f64) {
    let text = shown(operator);
    let chars = text.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let width = chars as f64 * CHAR + 2.0 * PAD;
    let height = text.len() as f64 * LINE + 2.0 * PAD;
    let bottom = top + height;
    let (mut next, mut middles) = (left, Vec::new());
    for input in &operator.inputs {
        let (middle, right) = place(input, next, bottom + GAP_DOWN, boxes, lines);
        middles.push(middle);
        next = right + GAP_ACROSS;
    }
    let middle = match (middles.first(), middles.last()) {
        (Some(first), Some(last)) => ((first + last) / 2.0).max(left + width / 2.0),
        _ => left + width / 2.0,
    };
    for below in middles {
        let (from, to) = (bottom, bottom + GAP_DOWN);
        let half = f64::midpoint(from, to);
        // Writing to a string does not fail.
        let _ = writeln!(lines, "<path d=\"M{middle:.1} {from:.1}V{half:.1}H{below:.1}V{to:.1}\"/>");
    }
    boxes.push(Placed { operator, lines: text, middle, top, width, height });
    let right = (middle + width / 2.0).max(if operator.inputs.is_empty() { left } else { next - GAP_ACROSS });
    (middle, right)
}

fn shown(operator: &Operator) -> Vec<String> {
    let mut lines: Vec<_> = std::iter::once(&operator.name).chain(&operator.details).map(|line| cut(line)).collect();
    if lines.len() > MOST_LINES {
        lines.truncate(MOST_LINES - 1);
        lines.push("…".into());
    }
    lines
}

fn cut(line: &str) -> String {
    if line.chars().count() <= MOST_CHARS {
        return line.to_owned();
    }
    line.chars().take(MOST_CHARS - 1).chain(['…']).collect()
}

fn write_box(one: &Placed<'_>, out: &mut String) {
    let (x, y) = (one.middle - one.width / 2.0, one.top);
    let whole = std::iter::once(&one.operator.name).chain(&one.operator.details).map(|line| escaped(line));
    let title = whole.collect::<Vec<_>>().join("\n");
    let _ = writeln!(
        out,
        "<g><title>{title}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"4\" fill=\"#eef3fb\" stroke=\"#3b5b92\"/>",
        one.width, one.height
    );
    for (line, text) in one.lines.iter().enumerate() {
        let weight = if line == 0 { " font-weight=\"bold\"" } else { "" };
        let baseline = y + PAD + LINE * (line as f64 + 0.75);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{baseline:.1}\" xml:space=\"preserve\"{weight}>{}</text>",
            x + PAD,
            escaped(text)
        );
    }
    out.push_str("</g>\n");
}

/// As text of XML, which has no place for control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(name: &str, inputs: Vec<Operator>) -> Operator {
        Operator { name: name.to_owned(), details: vec!["a < 'b' & \u{1}".into(), "x".repeat(200)], inputs }
    }

    #[test]
    fn boxes_stand_apart_and_inside_and_their_words_are_words() {
        let leaf = || operator("SEQ_SCAN", Vec::new());
        let join = operator("HASH_JOIN", vec![leaf(), operator("FILTER", vec![leaf()]), leaf()]);
        let (mut boxes, mut lines) = (Vec::new(), String::new());
        place(&join, PAD, PAD, &mut boxes, &mut lines);
        assert_eq!((boxes.len(), lines.lines().count()), (5, 4));
        for (i, a) in boxes.iter().enumerate() {
            assert!(a.middle - a.width / 2.0 >= PAD - 0.01);
            for b in &boxes[i + 1..] {
                let apart = (a.middle - b.middle).abs() >= (a.width + b.width) / 2.0
                    || a.top + a.height <= b.top
                    || b.top + b.height <= a.top;
                assert!(apart, "{} covers {}", a.operator.name, b.operator.name);
            }
        }
        let drawing = draw(&[join]);
        assert!(drawing.contains("a &lt; 'b' &amp; \u{fffd}") && !drawing.contains('\u{1}'));
        assert_eq!(drawing.matches("<g>").count(), 5);
    }

    #[test]
    fn nothing_is_an_empty_drawing() {
        assert!(draw(&[]).starts_with("<svg "));
    }
}
