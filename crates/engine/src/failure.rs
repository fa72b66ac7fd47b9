//! From what went wrong inside to what a client may read.
//!
//! **Invariants:** no path, address, key or stack trace of the server passes; `retryable` is true only when nothing happened.

use crate::{
    config::EngineConfig,
    duck::{DuckError, ErrorKind},
    format::EncodeError,
    params::ParamError,
    queries::Reason,
    sql::gate::{Refused, RefusedCode},
    view,
    wire::{Code, ErrorBody, Outcome},
};

/// A request's failure, before it is known what of the request is committed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// What went wrong, for the client.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The failing statement of a script.
    pub statement_index: Option<usize>,
    /// The same request may succeed later, if nothing of it happened.
    pub transient: bool,
    /// Whether its last step happened can't be told.
    pub unknown: bool,
    /// The database must be opened anew: the engine ends after this answer.
    pub fatal: bool,
}

impl Failure {
    /// With a code and a message only.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            statement_index: None,
            transient: false,
            unknown: false,
            fatal: false,
        }
    }

    /// A write that an exchange of the mart's files does not let in, or no longer.
    pub fn exchange() -> Self {
        Self::new(Code::Unavailable, "the mart's files are being exchanged").hint("send it again").transient()
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// May be tried again as it is.
    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// At this statement of a script.
    pub fn at(mut self, index: usize) -> Self {
        self.statement_index.get_or_insert(index);
        self
    }

    /// The body of the answer, when `committed` statements are in effect and `wrote` says whether one of them changed the mart.
    pub fn body(&self, committed: usize, wrote: bool) -> ErrorBody {
        let outcome = match (self.unknown, wrote) {
            (true, _) => Outcome::Unknown,
            (false, true) => Outcome::Committed,
            (false, false) => Outcome::None,
        };
        ErrorBody {
            code: self.code,
            message: self.message.clone(),
            hint: self.hint.clone(),
            retryable: self.transient && outcome == Outcome::None,
            outcome,
            statement_index: self.statement_index,
            committed: self.statement_index.map(|_| committed),
        }
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Cancelled | Reason::Gone => Self::new(Code::Cancelled, "the query was cancelled"),
            Reason::Timeout => Self::new(Code::Timeout, "the query ran past its time")
                .hint("give a longer `timeout_ms`, or ask for less"),
            Reason::Stalled => {
                Self::new(Code::Limited, "the result was not read while others needed its memory or place")
                    .hint("read results as they come, or ask for less at once")
                    .transient()
            }
            Reason::InTheWay => Self::new(Code::Limited, "the query kept a checkpoint waiting for too long")
                .hint("read an older moment with `at`")
                .transient(),
            Reason::Spilled => Self::new(
                Code::Limited,
                "the mart's temporary files passed their quota, and this query had run longest",
            )
            .hint("ask for less at once, or give the mart a larger profile"),
            Reason::Exchange => Self::exchange(),
            Reason::Shutdown => {
                Self::new(Code::Unavailable, "the engine is going away").hint("send the request again").transient()
            }
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let code = match refused.code {
            RefusedCode::Invalid => Code::Invalid,
            RefusedCode::Forbidden => Code::Forbidden,
            RefusedCode::TooLarge => Code::TooLarge,
            RefusedCode::Sql => Code::Sql,
        };
        let mut failure = Self::new(code, refused.message).hint(refused.hint);
        failure.statement_index = refused.statement_index;
        failure
    }
}

impl From<ParamError> for Failure {
    fn from(error: ParamError) -> Self {
        Self::new(Code::Invalid, error.message)
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::new(Code::Sql, error.message)
    }
}

/// Takes out of DuckDB's texts what a client must not read.
pub struct Redactor {
    secrets: Vec<(String, &'static str)>,
}

impl Redactor {
    /// Knows what this configuration holds.
    pub fn new(config: &EngineConfig) -> Self {
        let mut secrets = Vec::new();
        let mut hide = |text: &str, name| {
            if text.len() > 1 {
                secrets.push((text.to_owned(), name));
            }
        };
        hide(&config.db_path.to_string_lossy(), "the mart");
        hide(&config.temp_dir.to_string_lossy(), "(temporary files)");
        hide(&config.home_dir.to_string_lossy(), "(home)");
        if let Some(path) = &config.httpfs_path {
            hide(&path.to_string_lossy(), "httpfs");
            if let Some(dir) = path.parent() {
                hide(&dir.to_string_lossy(), "(extensions)");
            }
        }
        if let Some(dir) = config.db_path.parent() {
            hide(&dir.to_string_lossy(), "(mart)");
        }
        if let Some(view) = &config.view {
            hide(&view.url, "the mart");
            hide(view::dir(&view.url), "(mart)");
            if let (Some(gateway), Some(key)) = (&config.gateway, view.url.strip_prefix("s3://")) {
                hide(&format!("http://{}/{key}", gateway.endpoint), "the mart");
            }
        }
        if let Some(gateway) = &config.gateway {
            hide(&gateway.secret, "(key)");
            hide(&gateway.key_id, "(key)");
            hide(&format!("http://{}/", gateway.endpoint), "s3://");
            hide(&gateway.endpoint, "the store");
        }
        // Long ones first, or a directory would be replaced inside of a path.
        secrets.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { secrets }
    }

    /// A failure from DuckDB's error; `reason` is why the query had to stop, if it had to.
    pub fn failure(&self, error: &DuckError, reason: Option<Reason>) -> Failure {
        match (error.kind, reason) {
            (ErrorKind::Interrupt, Some(reason)) => return reason.into(),
            // One of its threads failed and stopped the others, and DuckDB tells what happened to one of these.
            (ErrorKind::Interrupt, None) => {
                return Failure::new(Code::Sql, "the query failed while it ran, and DuckDB kept the reason to itself")
                    .hint("run it again: most of the time the reason is told");
            }
            _ => {}
        }
        let text = self.clean(&error.message);
        if text.contains("attached in read-only mode") {
            return view::only_reads().hint("a sequence's `nextval` writes too; leave out `at` to write");
        }
        match error.kind {
            ErrorKind::Statement => Failure::new(Code::Sql, text),
            ErrorKind::Transaction => {
                if text.contains("launched in read-only mode") {
                    return Failure::new(Code::Forbidden, "a reader may not use what writes (a sequence's `nextval`)")
                        .hint("ask for a token with the role `writer`");
                }
                let conflict = is_conflict(&text);
                let failure = Failure::new(if conflict { Code::Conflict } else { Code::Sql }, text);
                if conflict {
                    failure.hint("another transaction changed the same rows; send the request again").transient()
                } else {
                    failure
                }
            }
            ErrorKind::Resources => {
                Failure::new(Code::Limited, text).hint("ask for less at once, or give the mart a larger profile")
            }
            ErrorKind::Permission => Failure::new(Code::Forbidden, text),
            ErrorKind::Io => Failure::new(Code::Sql, text),
            ErrorKind::Interrupt => unreachable!("returned above"),
            ErrorKind::Internal => Failure::new(Code::Internal, "DuckDB failed in a way it should not")
                .hint("the server's log has the details"),
            ErrorKind::Fatal => {
                let mut failure = Failure::new(Code::Unavailable, "the mart has to be opened anew")
                    .hint("send the request again")
                    .transient();
                failure.fatal = true;
                failure
            }
        }
    }

    fn clean(&self, text: &str) -> String {
        let text = text.split("\nStack Trace").next().unwrap_or(text);
        let mut text = text.trim().to_owned();
        for (secret, name) in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), name);
            }
        }
        text
    }
}

/// Whether a transaction failed because of another one. What its own statements did wrong, they have said before its COMMIT.
fn is_conflict(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("conflict")
        || text.contains("failed to commit")
            && ["constraint violation", "could not commit creation of dependency"]
                .iter()
                .any(|what| text.contains(what))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::GatewayConfig;

    fn redactor() -> Redactor {
        Redactor::new(&EngineConfig {
            db_path: PathBuf::from("/srv/marts/acme/dev/1/mart.db"),
            temp_dir: PathBuf::from("/srv/tmp"),
            home_dir: PathBuf::from("/srv/home"),
            memory_limit_bytes: 1,
            threads: 1,
            max_temp_bytes: 1,
            view: None,
            httpfs_path: None,
            gateway: Some(GatewayConfig {
                endpoint: "127.0.0.1:4711".into(),
                key_id: "KEYID".into(),
                secret: "SECRET".into(),
                scopes: vec![],
                region: "r".into(),
            }),
            required_walls: Vec::new(),
            max_queries: 1,
            deaf_ms: 1,
            session_idle_ms: 1,
            transaction_idle_ms: 1,
        })
    }

    #[test]
    fn no_path_address_or_key_passes() {
        let error = DuckError::new(
            "IO Error: /srv/marts/acme/dev/1/mart.db.wal and /srv/tmp/x, GET http://127.0.0.1:4711/b/k with KEYID:SECRET\nStack Trace:\n/usr/lib/x",
        );
        let message = redactor().failure(&error, None).message;
        for secret in ["/srv", "4711", "KEYID", "SECRET", "/usr"] {
            assert!(!message.contains(secret), "{message}");
        }
        assert!(message.contains("s3://b/k"), "{message}");
    }

    #[test]
    fn a_defect_s_text_stays_inside() {
        assert!(!redactor().failure(&DuckError::new("INTERNAL Error: vector at 0x7f"), None).message.contains("0x7f"));
    }

    #[test]
    fn what_only_another_transaction_can_have_caused_is_a_conflict() {
        for text in [
            "TransactionContext Error: Conflict on update!",
            "TransactionContext Error: Catalog write-write conflict on create with \"t\"",
            "TransactionContext Error: Failed to commit: PRIMARY KEY or UNIQUE constraint violation: duplicate key \"1\"",
        ] {
            let body = redactor().failure(&DuckError::new(text), None).body(0, false);
            assert_eq!((body.code, body.retryable), (Code::Conflict, true), "{text}");
        }
        let own = redactor().failure(&DuckError::new("Constraint Error: Duplicate key \"id: 1\""), None);
        assert_eq!((own.code, own.transient), (Code::Sql, false));
    }

    #[test]
    fn only_what_did_not_happen_is_retryable() {
        let failure =
            redactor().failure(&DuckError::new("TransactionContext Error: Conflict on tuple deletion!"), None);
        assert!(failure.body(0, false).retryable);
        assert!(!failure.body(1, true).retryable);
        assert_eq!(failure.body(1, true).outcome, Outcome::Committed);
        let unknown = Failure { unknown: true, ..failure };
        assert_eq!((unknown.body(0, false).outcome, unknown.body(0, false).retryable), (Outcome::Unknown, false));
    }
}
