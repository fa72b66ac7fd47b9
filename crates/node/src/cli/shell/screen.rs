//! What is shown: as tables that fit, by a pager where it is longer than the terminal is high.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::super::table;

/// The pager of those who name none; `less` leaves what fits, keeps colours, and shows long lines to the right.
const PAGER: &str = "less -FRSX";

pub(super) struct Screen {
    pub is_terminal: bool,
    pub timing: bool,
    /// A line for each value instead of tables.
    pub records: bool,
    /// A shell's command; none shows everything at once.
    pager: Option<String>,
}

impl Screen {
    /// That of this process. `TARN_PAGER`, or `PAGER`, names the pager; an empty one stands for none.
    pub(super) fn find() -> Self {
        let named = std::env::var("TARN_PAGER").or_else(|_| std::env::var("PAGER"));
        let pager = named.unwrap_or_else(|_| PAGER.to_owned());
        Self {
            is_terminal: std::io::stdout().is_terminal(),
            timing: false,
            records: false,
            pager: (!pager.trim().is_empty()).then_some(pager),
        }
    }

    pub(super) fn rows(&self, names: &[String], rows: &[Vec<Value>]) -> String {
        match width() {
            _ if self.records => table::records(names, rows),
            Some(width) if self.is_terminal => table::fit(names, rows, width),
            _ => table::render(names, rows),
        }
    }

    pub(super) fn show(&self, text: &str) -> anyhow::Result<()> {
        let is_long = || height().is_some_and(|height| text.lines().count() >= height);
        if self.is_terminal && is_long() && self.paged(text) {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Whether a pager has shown it.
    fn paged(&self, text: &str) -> bool {
        let Some(pager) = &self.pager else { return false };
        let started = Command::new("sh").args(["-c", pager]).stdin(Stdio::piped()).spawn();
        let Ok(mut child) = started else { return false };
        if let Some(mut to) = child.stdin.take() {
            // A reader who has seen enough leaves before the end.
            let _ = to.write_all(text.as_bytes());
        }
        // 127 is the shell's word for a program that is not there.
        child.wait().is_ok_and(|status| status.code() != Some(127))
    }
}

fn width() -> Option<usize> {
    size().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

fn height() -> Option<usize> {
    size().map(|size| usize::from(size.ws_row)).filter(|&rows| rows > 0)
}

fn size() -> Option<rustix::termios::Winsize> {
    rustix::termios::tcgetwinsize(std::io::stdout()).ok()
}
