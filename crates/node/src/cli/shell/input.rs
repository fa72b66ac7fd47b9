//! What was typed: a statement, or a command of the shell's own.

use std::path::PathBuf;

use engine::sql::lexer;

/// One input.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    Nothing,
    Sql(String),
    Command(Command),
    /// Said instead of running anything.
    Wrong(String),
}

#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Help,
    Quit,
    /// All tables, or one of them.
    Describe(Option<String>),
    /// Of a statement, or of the last one.
    Plan {
        analyze: bool,
        sql: Option<String>,
    },
    /// Show how long statements take, or say whether it is shown.
    Timing(Option<bool>),
    /// An earlier moment, or now.
    At(Option<String>),
    /// The result of a statement, or of the last one, into a file.
    Export {
        file: PathBuf,
        sql: Option<String>,
    },
    /// Records instead of tables.
    Records(Option<bool>),
}

/// Each command with what it takes and does.
pub(super) const COMMANDS: &[(&str, &str, &str)] = &[
    ("\\d", "[TABLE]", "tables and views, or the columns of one"),
    ("\\plan", "[analyze] [SQL]", "how DuckDB runs a statement, the last one if none is given; with `analyze` it runs"),
    ("\\timing", "[on|off]", "show how long each statement took"),
    ("\\at", "[MOMENT|now]", "show an earlier moment from here on: a time, a snapshot's name or a position"),
    (
        "\\export",
        "FILE [SQL]",
        "write a result, the last one if no SQL is given, as .csv .json .ndjson .parquet or .arrow",
    ),
    ("\\x", "[on|off]", "show records, a line for each value, instead of tables"),
    ("\\?", "", "this"),
    ("\\q", "", "leave, as Ctrl-D does"),
];

/// What a text is.
pub(super) fn parse(text: &str) -> Input {
    let text = text.trim();
    if text.is_empty() {
        return Input::Nothing;
    }
    let Some(command) = text.strip_prefix('\\') else { return Input::Sql(text.to_owned()) };
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    match known(name, rest.trim().trim_end_matches(';').trim_end()) {
        Ok(command) => Input::Command(command),
        Err(why) => Input::Wrong(why),
    }
}

fn known(name: &str, rest: &str) -> Result<Command, String> {
    let sql = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(match name {
        "?" | "h" | "help" => Command::Help,
        "q" | "quit" => Command::Quit,
        "d" | "dt" => Command::Describe(sql(rest)),
        "plan" => match rest.split_once(char::is_whitespace).unwrap_or((rest, "")) {
            (word, rest) if word.eq_ignore_ascii_case("analyze") => {
                Command::Plan { analyze: true, sql: sql(rest.trim()) }
            }
            _ => Command::Plan { analyze: false, sql: sql(rest) },
        },
        "timing" => Command::Timing(switch(rest)?),
        "x" => Command::Records(switch(rest)?),
        "at" => Command::At((!rest.is_empty() && rest != "now").then(|| rest.trim_matches('\'').to_owned())),
        "export" => {
            let (file, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            if file.is_empty() {
                return Err("`\\export` wants a file".into());
            }
            Command::Export { file: file.into(), sql: sql(rest.trim()) }
        }
        _ => return Err(format!("there is no `\\{name}`; `\\?` lists what there is")),
    })
}

fn switch(word: &str) -> Result<Option<bool>, String> {
    match word {
        "" => Ok(None),
        "on" => Ok(Some(true)),
        "off" => Ok(Some(false)),
        _ => Err(format!("`on` or `off`, not `{word}`")),
    }
}

/// Whether it can be run as it stands: a command, or SQL to its `;`.
pub(super) fn is_whole(text: &str) -> bool {
    let text = text.trim_start();
    if text.is_empty() || text.starts_with('\\') {
        return true;
    }
    match lexer::lex(text) {
        Ok(tokens) => tokens.last().is_some_and(|token| token.is_symbol(b';')),
        // What no further line can mend is for the server to refuse.
        Err(error) => !error.message.starts_with("unterminated"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_is_whole_at_its_semicolon_and_commands_at_their_line() {
        for whole in ["", "  ", "select 1;", "select 1; -- one\n", "\\d", " \\plan select 1", "select ';'; "] {
            assert!(is_whole(whole), "{whole}");
        }
        for part in ["select 1", "select ';", "select 1 -- ;", "select /* ;", "select $$ ; ", "-- only a remark"] {
            assert!(!is_whole(part), "{part}");
        }
    }

    #[test]
    fn commands_have_their_words() {
        let command = |text: &str| match parse(text) {
            Input::Command(command) => command,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(command("\\d"), Command::Describe(None));
        assert_eq!(command(" \\d metrics.daily;"), Command::Describe(Some("metrics.daily".into())));
        assert_eq!(command("\\plan"), Command::Plan { analyze: false, sql: None });
        assert_eq!(command("\\plan ANALYZE from t;"), Command::Plan { analyze: true, sql: Some("from t".into()) });
        assert_eq!(command("\\plan analyze"), Command::Plan { analyze: true, sql: None });
        assert_eq!(command("\\at 'before the load'"), Command::At(Some("before the load".into())));
        assert_eq!((command("\\at now"), command("\\at")), (Command::At(None), Command::At(None)));
        assert_eq!(command("\\timing off"), Command::Timing(Some(false)));
        assert_eq!(
            command("\\export a.csv from t"),
            Command::Export { file: "a.csv".into(), sql: Some("from t".into()) }
        );
        for wrong in ["\\nothing", "\\timing maybe", "\\export"] {
            assert!(matches!(parse(wrong), Input::Wrong(_)), "{wrong}");
        }
        assert_eq!(parse(" select 1; "), Input::Sql("select 1;".into()));
    }

    #[test]
    fn help_names_what_is_understood() {
        for (name, words, _) in COMMANDS {
            let words = words.replace(['[', ']'], "").replace("FILE", "f.csv").replace("on|off", "on");
            assert!(matches!(parse(&format!("{name} {words}")), Input::Command(_)), "{name}");
        }
    }
}
