//! The line editor: several lines to a statement, history, completion.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use reedline::{
    ColumnarMenu, EditCommand, Emacs, FileBackedHistory, KeyCode, KeyModifiers, MenuBuilder, Prompt, PromptEditMode,
    PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal, ValidationResult, Validator,
    default_emacs_keybindings,
};

use super::complete::{Completer, Highlighter, Shared};
use super::input;

const HISTORY_ENTRIES: usize = 10_000;
const MENU: &str = "completion";

pub(super) struct Editor(Reedline);

pub(super) enum Typed {
    Line(String),
    /// Ctrl-C: what was typed is left.
    Nothing,
    End,
}

impl Editor {
    pub(super) fn new(known: Shared) -> anyhow::Result<Self> {
        let mut keys = default_emacs_keybindings();
        let menu = vec![ReedlineEvent::Menu(MENU.into()), ReedlineEvent::MenuNext];
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(menu));
        keys.add_binding(KeyModifiers::SHIFT, KeyCode::BackTab, ReedlineEvent::MenuPrevious);
        let newline = ReedlineEvent::Edit(vec![EditCommand::InsertNewline]);
        keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, newline);
        let mut editor = Reedline::create()
            .with_validator(Box::new(ToSemicolon))
            .with_highlighter(Box::new(Highlighter(known.clone())))
            .with_completer(Box::new(Completer(known)))
            .with_partial_completions(true)
            .with_quick_completions(true)
            .with_menu(ReedlineMenu::EngineCompleter(Box::new(ColumnarMenu::default().with_name(MENU))))
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .with_ansi_colors(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
            // As in other shells: what begins with a space is not for the history.
            .with_history_exclusion_prefix(Some(" ".into()))
            .use_bracketed_paste(true);
        if let Some(file) = history_file() {
            let history = FileBackedHistory::with_file(HISTORY_ENTRIES, file).context("can't read the history")?;
            editor = editor.with_history(Box::new(history));
        }
        Ok(Self(editor))
    }

    /// Waits for the next input; what the history has of it is on disk before it is answered.
    pub(super) fn read(&mut self, prompt: &str) -> anyhow::Result<Typed> {
        let signal = self.0.read_line(&Mark(prompt)).context("can't read from the terminal")?;
        Ok(match signal {
            Signal::Success(text) => {
                // Not worth ending a conversation for.
                let _ = self.0.sync_history();
                Typed::Line(text)
            }
            Signal::CtrlD => Typed::End,
            _ => Typed::Nothing,
        })
    }
}

/// `$XDG_STATE_HOME/tarn/history`, for its owner only: statements may hold secrets. None where there is no home.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?.join("tarn");
    std::fs::create_dir_all(&state).ok()?;
    let file = state.join("history");
    OpenOptions::new().append(true).create(true).mode(0o600).open(&file).ok()?;
    Some(file)
}

struct ToSemicolon;

impl Validator for ToSemicolon {
    fn validate(&self, line: &str) -> ValidationResult {
        if input::is_whole(line) { ValidationResult::Complete } else { ValidationResult::Incomplete }
    }
}

/// The prompt as it is given, with nothing of reedline's own.
struct Mark<'a>(&'a str);

impl Prompt for Mark<'_> {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        self.0.into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        format!("{:>width$}", "…> ", width = self.0.chars().count()).into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!("history `{}`: ", search.term).into()
    }
}
