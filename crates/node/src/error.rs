//! What a client is told when something fails: the contract's codes, their HTTP statuses, one JSON shape.
//!
//! The only place that maps codes to statuses. Messages are written for clients: no server path, key, endpoint or other
//! tenant's name goes in; the source of a failure goes to the log where it is handled, never into a body.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use serde::{Deserialize, Serialize};

/// The contract's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is malformed.
    Invalid,
    /// No token, or none that is known.
    Unauthenticated,
    /// The token is known and may not do this.
    Forbidden,
    /// No such thing, or not for this principal.
    NotFound,
    /// It exists already, or has moved on.
    Conflict,
    /// A limit on the size of a request.
    TooLarge,
    /// DuckDB refused the SQL or failed to run it.
    Sql,
    /// A limit on what may run at once.
    Limited,
    /// Cancelled by the client or an administrator.
    Cancelled,
    /// A defect of ours.
    Internal,
    /// Stored bytes fail their checks.
    Corrupt,
    /// Another node writes this mart now.
    Fenced,
    /// Not now; nothing is known to be lost.
    Unavailable,
    /// The deadline passed.
    Timeout,
    /// Committed on the node, not yet in the object store.
    NotYetDurable,
}

impl Code {
    /// Every code, for documentation and exhaustive tests.
    pub const ALL: [Code; 15] = [
        Code::Invalid,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::NotFound,
        Code::Conflict,
        Code::TooLarge,
        Code::Sql,
        Code::Limited,
        Code::Cancelled,
        Code::Internal,
        Code::Corrupt,
        Code::Fenced,
        Code::Unavailable,
        Code::Timeout,
        Code::NotYetDurable,
    ];

    /// The HTTP status of the contract.
    pub fn status(self) -> StatusCode {
        let status = match self {
            Code::Invalid => 400,
            Code::Unauthenticated => 401,
            Code::Forbidden => 403,
            Code::NotFound => 404,
            Code::Conflict => 409,
            Code::TooLarge => 413,
            Code::Sql => 422,
            Code::Limited => 429,
            Code::Cancelled => 499,
            Code::Internal | Code::Corrupt => 500,
            Code::Fenced | Code::Unavailable => 503,
            Code::Timeout | Code::NotYetDurable => 504,
        };
        StatusCode::from_u16(status).expect("the numbers above are three digits")
    }

    /// How the contract spells it.
    pub fn word(self) -> String {
        serde_json::to_value(self).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Whether the same request may succeed later, given that nothing of it happened.
    fn passes_with_time(self) -> bool {
        matches!(self, Code::Limited | Code::Unavailable | Code::Fenced | Code::Timeout)
    }
}

/// What became of the writes of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing was written.
    None,
    /// Something was committed.
    Committed,
    /// Nobody can say yet.
    Unknown,
}

/// An error as clients see it.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure.
    pub code: Code,
    /// What happened, in lower case, names in backticks.
    pub message: Box<str>,
    /// What to do about it; may be empty.
    #[serde(default)]
    pub hint: Box<str>,
    /// True only with outcome `none`.
    #[serde(default)]
    pub retryable: bool,
    /// What became of the request's writes.
    pub outcome: Outcome,
    /// The newest commit of the request, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Box<str>>,
    /// Index of the statement of a script that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement_index: Option<u32>,
    /// How many statements of a script had committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u32>,
    /// Seconds after which it is worth trying again, for the header of that name.
    #[serde(skip)]
    pub retry_after_s: Option<u64>,
    /// The request is likely to be what went wrong, so that it is not retryable whatever became of it.
    #[serde(skip)]
    pub culprit: bool,
    /// The request, for support; filled in at the edge.
    #[serde(default)]
    pub request_id: Box<str>,
}

impl ApiError {
    /// An error with outcome `none`, retryable if time can help.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into().into(),
            hint: Box::default(),
            retryable: code.passes_with_time(),
            outcome: Outcome::None,
            position: None,
            statement_index: None,
            committed: None,
            retry_after_s: None,
            culprit: false,
            request_id: Box::default(),
        }
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into().into();
        self
    }

    /// With what became of the writes; anything but `none` makes it not retryable.
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self.retryable = self.code.passes_with_time() && outcome == Outcome::None && !self.culprit;
        self
    }

    /// It may go well the next time, though its code does not say so.
    pub fn transient(mut self) -> Self {
        self.retryable = self.outcome == Outcome::None;
        self
    }

    /// With when it is worth trying again; never less than a second.
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after_s = Some(time.as_secs() + 1);
        self
    }

    /// Not to be sent again: it is likely to be what went wrong.
    pub fn culprit(mut self) -> Self {
        (self.culprit, self.retryable) = (true, false);
        self
    }

    /// With the position of the newest commit of the request.
    pub fn position(mut self, position: impl ToString) -> Self {
        self.position = Some(position.to_string().into());
        self
    }

    /// With the id of the request.
    pub fn request_id(mut self, id: impl ToString) -> Self {
        self.request_id = id.to_string().into();
        self
    }

    /// The JSON that clients get.
    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and enums serialise")
    }

    /// A defect of ours: `what` and the cause go to the log, the client learns only that it was not its fault.
    pub fn internal(what: &str, cause: impl std::fmt::Display) -> Self {
        tracing::error!(what, cause = %cause, "internal error");
        Self::new(Code::Internal, "the server failed to handle this request").hint("the server's log has the reason")
    }
}

impl IntoResponse for ApiError {
    /// Carries itself along, so that the edge can add the request's id.
    fn into_response(self) -> Response {
        let mut response = Response::new(self.body().into());
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.code == Code::Unauthenticated {
            headers.insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // Stays when the edge takes the rest.
        response.extensions_mut().insert(self.code);
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_without_an_effect_are_retryable() {
        for code in Code::ALL {
            for outcome in [Outcome::Committed, Outcome::Unknown] {
                assert!(!ApiError::new(code, "x").outcome(outcome).retryable, "{code:?} {outcome:?}");
            }
        }
        assert!(ApiError::new(Code::Unavailable, "x").retryable);
        assert!(!ApiError::new(Code::Sql, "x").retryable);
    }

    #[test]
    fn codes_are_spelled_as_in_the_contract() {
        let spelled: Vec<_> = Code::ALL
            .iter()
            .map(|code| {
                let name = serde_json::to_value(code).expect("a code is a JSON string");
                format!("{} {}", name.as_str().expect("a string"), code.status().as_u16())
            })
            .collect();
        let contract = "invalid 400, unauthenticated 401, forbidden 403, not_found 404, conflict 409, too_large 413, sql 422, limited 429, \
            cancelled 499, internal 500, corrupt 500, fenced 503, unavailable 503, timeout 504, not_yet_durable 504";
        assert_eq!(spelled.join(", "), contract);
    }
}
