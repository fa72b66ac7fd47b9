//! Cuts SQL text into DuckDB's tokens: words, quoted identifiers, strings, numbers, parameters, symbols.
//!
//! It decides nothing about meaning; `super` splits and classifies, `super::gate` refuses. It follows the rules of DuckDB's
//! own scanner wherever they move a token's end (nested comments, `e''` escapes, dollar quotes, `''` and `""` doubling,
//! `1e'…'` being a number and an escape string). Invariants:
//! - **Fail closed.** Whatever is unterminated, or is a spelling whose end DuckDB and we could see differently (`U&''`, a string
//!   continued on the next line, a Unicode space inside a dollar tag, NUL), is an error, never a guess.
//! - Tokens are byte ranges of the text, in order, never overlapping; every byte outside them is white space or comment.

use std::borrow::Cow;

/// What a token is; its bytes are `Token::start..Token::end` of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// An unquoted word: keyword or identifier.
    Word,
    /// `"…"`, with `""` for a quote.
    QuotedIdent,
    /// `'…'`, also after `x`, `b` or `n` (the letter is then its own word, as bytes stay bytes).
    String,
    /// `e'…'`: backslash escapes are live.
    EscapeString,
    /// `$tag$…$tag$`: nothing inside is special.
    DollarString,
    /// An integer, decimal, hexadecimal or binary literal.
    Number,
    /// `?`, `$1`, `$name`.
    Parameter,
    /// One byte of punctuation or operator.
    Symbol(u8),
}

/// One token as a byte range of the text that was lexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub start: usize,
    pub end: usize,
}

impl Token {
    /// The token as written.
    pub fn text<'a>(&self, sql: &'a str) -> &'a str {
        &sql[self.start..self.end]
    }

    /// Is this the unquoted word `word` (given in lower case)?
    pub fn is_word(&self, sql: &str, word: &str) -> bool {
        self.kind == TokenKind::Word && self.text(sql).eq_ignore_ascii_case(word)
    }

    /// Is this the symbol `byte`?
    pub fn is_symbol(&self, byte: u8) -> bool {
        self.kind == TokenKind::Symbol(byte)
    }

    /// Is this a string of any spelling?
    pub fn is_string(&self) -> bool {
        matches!(self.kind, TokenKind::String | TokenKind::EscapeString | TokenKind::DollarString)
    }

    /// The name that an identifier token stands for: unquoted, in the case it was written in. `None` for other tokens.
    pub fn name<'a>(&self, sql: &'a str) -> Option<Cow<'a, str>> {
        let text = self.text(sql);
        match self.kind {
            TokenKind::Word => Some(Cow::Borrowed(text)),
            TokenKind::QuotedIdent => Some(undouble(&text[1..text.len() - 1], '"')),
            _ => None,
        }
    }

    /// The value of a string token. `None` for other tokens, and for escapes that do not give valid UTF-8.
    pub fn string_value<'a>(&self, sql: &'a str) -> Option<Cow<'a, str>> {
        let text = self.text(sql);
        match self.kind {
            TokenKind::String => Some(undouble(&text[1..text.len() - 1], '\'')),
            TokenKind::EscapeString => unescape(&text[2..text.len() - 1]).map(Cow::Owned),
            TokenKind::DollarString => {
                let tag = text[1..].find('$')? + 2;
                Some(Cow::Borrowed(&text[tag..text.len() - tag]))
            }
            _ => None,
        }
    }
}

/// Why a text could not be cut into tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at byte {offset})")]
pub struct SqlError {
    pub message: String,
    /// Byte offset of the token that is at fault.
    pub offset: usize,
}

impl SqlError {
    fn new(message: &str, offset: usize) -> Self {
        SqlError { message: message.to_owned(), offset }
    }
}

/// Cuts `sql` into tokens.
pub fn lex(sql: &str) -> Result<Vec<Token>, SqlError> {
    let mut lexer = Lexer { sql: sql.as_bytes(), text: sql, at: 0 };
    let mut tokens: Vec<Token> = Vec::with_capacity(sql.len() / 5 + 4);
    loop {
        let newline = lexer.skip_space()?;
        let start = lexer.at;
        let Some(kind) = lexer.token()? else { return Ok(tokens) };
        if newline
            && kind == TokenKind::String
            && tokens.last().is_some_and(|t| matches!(t.kind, TokenKind::String | TokenKind::EscapeString))
        {
            return Err(SqlError::new(
                "a string continued on the next line is not supported; join the parts with `||`",
                start,
            ));
        }
        tokens.push(Token { kind, start, end: lexer.at });
    }
}

struct Lexer<'a> {
    sql: &'a [u8],
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Passes white space and comments; says whether a line ended among them.
    fn skip_space(&mut self) -> Result<bool, SqlError> {
        let mut newline = false;
        while self.at < self.sql.len() {
            match self.sql[self.at] {
                b'\n' | b'\r' => {
                    newline = true;
                    self.at += 1;
                }
                b' ' | b'\t' | 0x0b | 0x0c => self.at += 1,
                b'-' if self.peek(1) == b'-' => {
                    while self.at < self.sql.len() && !matches!(self.sql[self.at], b'\n' | b'\r') {
                        self.at += 1;
                    }
                }
                b'/' if self.peek(1) == b'*' => self.skip_block_comment()?,
                byte if byte >= 0x80 => match unicode_space(&self.sql[self.at..]) {
                    Some(width) => self.at += width,
                    None => break,
                },
                _ => break,
            }
        }
        Ok(newline)
    }

    fn skip_block_comment(&mut self) -> Result<(), SqlError> {
        let start = self.at;
        let mut depth = 0usize;
        while self.at < self.sql.len() {
            match (self.sql[self.at], self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Err(SqlError::new("unterminated `/*` comment", start))
    }

    fn token(&mut self) -> Result<Option<TokenKind>, SqlError> {
        if self.at >= self.sql.len() {
            return Ok(None);
        }
        let start = self.at;
        let kind = match self.sql[start] {
            0 => return Err(SqlError::new("NUL byte in the SQL text", start)),
            b'\'' => self.quoted(b'\'', "unterminated string")?,
            b'"' => {
                let kind = self.quoted(b'"', "unterminated quoted identifier")?;
                if self.at - start == 2 {
                    return Err(SqlError::new("empty quoted identifier", start));
                }
                kind
            }
            b'e' | b'E' if self.peek(1) == b'\'' => self.escape_string()?,
            b'u' | b'U' if self.peek(1) == b'&' && matches!(self.peek(2), b'\'' | b'"') => {
                return Err(SqlError::new(
                    "`U&` strings and identifiers are not supported; write the character itself",
                    start,
                ));
            }
            b'$' => self.dollar()?,
            b'?' => {
                self.at += 1;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
                TokenKind::Parameter
            }
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_ascii_digit() => self.number(),
            byte if is_word_start(byte) => {
                self.word();
                TokenKind::Word
            }
            byte if byte.is_ascii_graphic() => {
                self.at += 1;
                TokenKind::Symbol(byte)
            }
            _ => return Err(SqlError::new("control character in the SQL text", start)),
        };
        Ok(Some(kind))
    }

    fn word(&mut self) {
        while self.at < self.sql.len() && is_word_part(self.sql[self.at]) {
            if self.sql[self.at] >= 0x80 && unicode_space(&self.sql[self.at..]).is_some() {
                break;
            }
            self.at += 1;
        }
    }

    /// `'…'` or `"…"`, where the doubled quote stands for itself.
    fn quoted(&mut self, quote: u8, unterminated: &str) -> Result<TokenKind, SqlError> {
        let start = self.at;
        self.at += 1;
        while self.at < self.sql.len() {
            match self.sql[self.at] {
                0 => return Err(SqlError::new("NUL byte in the SQL text", self.at)),
                byte if byte == quote && self.peek(1) == quote => self.at += 2,
                byte if byte == quote => {
                    self.at += 1;
                    return Ok(if quote == b'"' { TokenKind::QuotedIdent } else { TokenKind::String });
                }
                _ => self.at += 1,
            }
        }
        Err(SqlError::new(unterminated, start))
    }

    fn escape_string(&mut self) -> Result<TokenKind, SqlError> {
        let start = self.at;
        self.at += 2;
        while self.at < self.sql.len() {
            match (self.sql[self.at], self.peek(1)) {
                (0, _) => return Err(SqlError::new("NUL byte in the SQL text", self.at)),
                (b'\\', _) | (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    return Ok(TokenKind::EscapeString);
                }
                _ => self.at += 1,
            }
        }
        Err(SqlError::new("unterminated string", start))
    }

    /// A dollar-quoted string, or a parameter `$1`, `$name`.
    fn dollar(&mut self) -> Result<TokenKind, SqlError> {
        let start = self.at;
        self.at += 1;
        if self.peek(0).is_ascii_digit() {
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return Ok(TokenKind::Parameter);
        }
        if is_word_start(self.peek(0)) {
            while self.at < self.sql.len() && is_word_part(self.sql[self.at]) && self.sql[self.at] != b'$' {
                if unicode_space(&self.sql[self.at..]).is_some() {
                    return Err(SqlError::new("a Unicode space inside a `$` name", start));
                }
                self.at += 1;
            }
        }
        if self.peek(0) != b'$' {
            if self.at == start + 1 {
                return Err(SqlError::new("a lone `$`", start));
            }
            return Ok(TokenKind::Parameter);
        }
        self.at += 1;
        let tag = &self.text[start..self.at];
        match self.text[self.at..].find(tag) {
            Some(length) if self.sql[self.at..self.at + length].contains(&0) => {
                Err(SqlError::new("NUL byte in the SQL text", start))
            }
            Some(length) => {
                self.at += length + tag.len();
                Ok(TokenKind::DollarString)
            }
            None => Err(SqlError::new("unterminated dollar-quoted string", start)),
        }
    }

    /// A number ends where DuckDB ends it: an exponent or a radix without digits is not part of it.
    fn number(&mut self) -> TokenKind {
        let radix: Option<fn(u8) -> bool> = match (self.peek(0), self.peek(1)) {
            (b'0', b'x' | b'X') => Some(|b| b.is_ascii_hexdigit()),
            (b'0', b'b' | b'B') => Some(|b| matches!(b, b'0' | b'1')),
            (b'0', b'o' | b'O') => Some(|b| matches!(b, b'0'..=b'7')),
            _ => None,
        };
        if let Some(is_digit) = radix
            && is_digit(self.peek(2))
        {
            self.at += 2;
            self.digits(is_digit);
            return TokenKind::Number;
        }
        let is_digit = |b: u8| b.is_ascii_digit();
        self.digits(is_digit);
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            self.digits(is_digit);
        }
        if matches!(self.peek(0), b'e' | b'E') {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                self.digits(is_digit);
            }
        }
        TokenKind::Number
    }

    /// Digits with single underscores between them.
    fn digits(&mut self, is_digit: fn(u8) -> bool) {
        while is_digit(self.peek(0)) || (self.peek(0) == b'_' && is_digit(self.peek(1))) {
            self.at += 1;
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word_part(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// The width of the character at the start of `bytes` if DuckDB turns it into a plain space before it parses.
fn unicode_space(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [0xC2, 0xA0, ..] => Some(2),
        [0xE2, 0x80, 0x80..=0x8D | 0xAF, ..] | [0xE2, 0x81, 0x9F | 0xA0, ..] => Some(3),
        [0xE3, 0x80, 0x80, ..] | [0xEF, 0xBB, 0xBF, ..] => Some(3),
        _ => None,
    }
}

fn undouble(inner: &str, quote: char) -> Cow<'_, str> {
    if !inner.contains(quote) {
        return Cow::Borrowed(inner);
    }
    let doubled: String = [quote, quote].iter().collect();
    Cow::Owned(inner.replace(&doubled, &quote.to_string()))
}

/// The value of an `e''` string's inside, or `None` if the escapes do not make UTF-8.
fn unescape(inner: &str) -> Option<String> {
    let bytes = inner.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\'' => {
                out.push(b'\'');
                at += 2;
            }
            b'\\' => {
                at += 1;
                at = unescape_one(bytes, at, &mut out)?;
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// Decodes the escape whose letter is at `at`; returns the offset behind it.
fn unescape_one(bytes: &[u8], at: usize, out: &mut Vec<u8>) -> Option<usize> {
    let run = |from: usize, most: usize, radix: u32| {
        let end = (from..bytes.len().min(from + most))
            .find(|&i| !(bytes[i] as char).is_digit(radix))
            .unwrap_or(bytes.len().min(from + most));
        let value = bytes[from..end].iter().fold(0u32, |v, &b| v * radix + (b as char).to_digit(radix).unwrap_or(0));
        (end, value)
    };
    let letter = *bytes.get(at)?;
    let end = match letter {
        b'n' | b't' | b'r' | b'b' | b'f' | b'v' => {
            out.push(match letter {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'b' => 0x08,
                b'f' => 0x0c,
                _ => 0x0b,
            });
            at + 1
        }
        b'x' | b'X' => {
            let (end, value) = run(at + 1, 2, 16);
            if end == at + 1 {
                out.push(letter);
            } else {
                out.push(value as u8);
            }
            end
        }
        b'0'..=b'7' => {
            let (end, value) = run(at, 3, 8);
            out.push(value as u8);
            end
        }
        b'u' | b'U' => {
            let width = if letter == b'u' { 4 } else { 8 };
            let (end, value) = run(at + 1, width, 16);
            if end != at + 1 + width {
                return None;
            }
            let mut buffer = [0; 4];
            out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut buffer).as_bytes());
            end
        }
        other => {
            out.push(other);
            at + 1
        }
    };
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        lex(sql).expect("lexes").iter().map(|t| t.text(sql)).collect()
    }

    fn value(sql: &str) -> String {
        lex(sql).expect("lexes")[0].string_value(sql).expect("is a string").into_owned()
    }

    #[test]
    fn comments_nest_and_hide_quotes() {
        assert_eq!(texts("a /* ' /* \" */ ; */ b -- ' ; \n c"), ["a", "b", "c"]);
        assert_eq!(texts("1+-- x\n2*/*y*/3"), ["1", "+", "2", "*", "3"]);
    }

    #[test]
    fn a_number_does_not_swallow_the_letter_of_an_escape_string() {
        assert_eq!(texts(r"1e'\' ; '"), ["1", r"e'\' ; '"]);
        assert_eq!(
            texts("1e5 1.5e-3 .5 1_000 0x1F 0x 1..2"),
            ["1e5", "1.5e-3", ".5", "1_000", "0x1F", "0", "x", "1", ".", ".2"]
        );
    }

    #[test]
    fn dollar_quotes_hide_everything_and_names_are_parameters() {
        assert_eq!(
            texts("$$ ' ; $$ $a$ $$ ; $a$ $1 $name ? a$b$c"),
            ["$$ ' ; $$", "$a$ $$ ; $a$", "$1", "$name", "?", "a$b$c"]
        );
        assert_eq!(value("$tag$it's$tag$"), "it's");
    }

    #[test]
    fn strings_decode_as_duckdb_decodes_them() {
        assert_eq!(value("'it''s'"), "it's");
        assert_eq!(value(r"e'a\x3fb\'c\n\u0041\101'"), "a?b'c\nAA");
        let name = lex("\"a\"\"b\"").expect("lexes")[0];
        assert_eq!(name.name("\"a\"\"b\"").as_deref(), Some("a\"b"));
    }

    #[test]
    fn what_has_no_end_or_two_readings_is_refused() {
        for sql in [
            "'a",
            "\"a",
            "e'a\\'",
            "$$a",
            "$t$ a $$",
            "/* /* */",
            "\"\"",
            "a\0b",
            "'a\0'",
            "U&'a'",
            "'a'\n'b'",
            "e'a' -- x\n 'b'",
            "$t\u{a0}x$ $t\u{a0}x$",
            "$",
            "a \u{1} b",
        ] {
            assert!(lex(sql).is_err(), "{sql:?} should be refused");
        }
    }

    #[test]
    fn unicode_spaces_separate_words() {
        assert_eq!(texts("select\u{a0}1\u{3000}\u{feff}as\u{2003}x"), ["select", "1", "as", "x"]);
    }
}
