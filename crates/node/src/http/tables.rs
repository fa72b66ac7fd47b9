//! `PUT …/tables/{schema}/{table}`: checks a load and hands it to the router with its body untouched.
//!
//! What is in the body, only the engine knows. **Invariant:** no piece of a body is kept here; the engine's pace is the client's.

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use engine::wire::{Role, header};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::json;

use super::query::query_id;
use super::{Caller, Shared, mart_id};
use crate::error::{ApiError, Code};
use crate::router::{self, Ask, Durability};

const FORMATS: [&str; 4] =
    ["application/vnd.apache.arrow.stream", "application/vnd.apache.parquet", "text/csv", "application/x-ndjson"];
const ENCODINGS: [&str; 3] = ["identity", "gzip", "zstd"];

/// What the query string may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    mode: Mode,
    /// Column names, separated by commas.
    key: Option<String>,
    durability: Option<Durability>,
    timeout_ms: Option<u64>,
}

/// What a load does to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Create,
    Append,
    Replace,
    Upsert,
}

impl Mode {
    /// What becomes of a table that is missing, and of one that is there.
    fn plan(self) -> (&'static str, &'static str) {
        match self {
            Self::Create => ("create", "fail"),
            Self::Append => ("fail", "append"),
            Self::Replace => ("create", "replace"),
            Self::Upsert => ("fail", "upsert"),
        }
    }
}

pub(super) async fn load(
    State(app): State<Shared>,
    Caller(caller): Caller,
    Path((tenant, mart, schema, table)): Path<(String, String, String, String)>,
    options: Result<Query<Options>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let id = query_id(&headers)?;
    let loaded = async {
        let mart_id = mart_id(&tenant, &mart)?;
        let role = caller.role_in(&mart_id)?;
        if role == Role::Reader {
            return Err(ApiError::new(Code::Forbidden, "a reader may not load data")
                .hint("ask for a token with the role `writer`"));
        }
        let Query(options) = options.map_err(|rejection| bad_options(&rejection))?;
        let key = key(&options)?;
        let (if_missing, if_exists) = options.mode.plan();
        let request = json!({
            "schema": schema, "table": table, "if_missing": if_missing, "if_exists": if_exists, "key": key,
            "temporary": false,
        });
        let mut passed = passed_on(&headers)?;
        passed.insert(HeaderName::from_static(header::LOAD), encoded(&request.to_string()));
        let profile = app.profile(&caller, &mart_id, &headers)?;
        let usual = profile.timeout.unwrap_or(app.config.query_timeout);
        let ask = Ask {
            path: "/load",
            id,
            principal: caller.id,
            role,
            durability: options.durability.unwrap_or_default(),
            timeout: options.timeout_ms.map_or(usual, Duration::from_millis),
            profile,
            headers: passed,
            reads_only: false,
        };
        let mart = app.mart(&mart_id).await?;
        if mart.holds_writers() {
            mart.writers_may_pass().await;
        }
        let live = mart.live().await?;
        let entry = app.admit(&ask, &mart_id, &live).await?;
        let response = router::query(&mart, live, &ask, body, app.config.durable_wait).await?;
        Ok(response.map(|body| entry.until_sent(body)))
    };
    loaded.await.map_err(|error: ApiError| error.request_id(id))
}

fn bad_options(rejection: &QueryRejection) -> ApiError {
    ApiError::new(Code::Invalid, format!("the query string is not what is wanted: {}", rejection.body_text()))
        .hint("`mode` is create, append, replace or upsert; besides there are `key`, `durability` and `timeout_ms`")
}

/// The columns that tell one row from another, for an upsert and nothing else; none means the table's primary key.
fn key(options: &Options) -> Result<Vec<String>, ApiError> {
    match (&options.key, options.mode) {
        (None, _) => Ok(Vec::new()),
        (Some(_), Mode::Create | Mode::Append | Mode::Replace) => {
            Err(ApiError::new(Code::Invalid, "`key` goes with `mode=upsert` only"))
        }
        (Some(text), Mode::Upsert) => {
            names(text).ok_or_else(|| ApiError::new(Code::Invalid, "`key` is column names, separated by commas"))
        }
    }
}

/// Names between commas. One that holds a comma stands in double quotes, a double quote in there is doubled.
fn names(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text;
    loop {
        let (name, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_name(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (Cow::Borrowed(&rest[..end]), &rest[end..])
            }
        };
        if name.is_empty() {
            return None;
        }
        names.push(name.into_owned());
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None => return behind.is_empty().then_some(names),
        }
    }
}

/// A name up to its closing quote, and what is behind that.
fn quoted_name(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut from = 0;
    loop {
        let end = from + text[from..].find('"')?;
        match text[end + 1..].starts_with('"') {
            true => from = end + 2,
            false => return Some((Cow::Owned(text[..end].replace("\"\"", "\"")), &text[end + 1..])),
        }
    }
}

/// What goes along with the body; a type or an encoding that nobody reads is refused here.
fn passed_on(headers: &HeaderMap) -> Result<HeaderMap, ApiError> {
    let mut passed = HeaderMap::new();
    let text = |name: &HeaderName| -> Result<Option<&str>, ApiError> {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value
                .to_str()
                .map(|text| Some(text.trim()))
                .map_err(|_| ApiError::new(Code::Invalid, format!("the header `{name}` is not plain text"))),
            (Some(_), Some(_)) => Err(ApiError::new(Code::Invalid, format!("the header `{name}` comes twice"))),
        }
    };
    let formats = || format!("one of {}", FORMATS.join(", "));
    let kind = text(&CONTENT_TYPE)?
        .ok_or_else(|| ApiError::new(Code::Invalid, "the header `content-type` is missing").hint(formats()))?;
    let essence = kind.split(';').next().unwrap_or_default().trim_end();
    if !FORMATS.iter().any(|format| format.eq_ignore_ascii_case(essence)) {
        return Err(ApiError::new(Code::Invalid, "a table can't be loaded from this `content-type`").hint(formats()));
    }
    let encoding = text(&CONTENT_ENCODING)?.unwrap_or("identity");
    if !ENCODINGS.iter().any(|known| known.eq_ignore_ascii_case(encoding)) {
        return Err(ApiError::new(Code::Invalid, "this `content-encoding` is not understood")
            .hint(format!("one of {}", ENCODINGS.join(", "))));
    }
    for name in [CONTENT_TYPE, CONTENT_ENCODING, HeaderName::from_static(header::IDEMPOTENCY_KEY)] {
        if let Some(value) = headers.get(&name) {
            passed.insert(name, value.clone());
        }
    }
    Ok(passed)
}

/// Percent-encoded, so that any name fits into a header.
fn encoded(text: &str) -> HeaderValue {
    let mut header = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => header.push(char::from(byte)),
            _ => header.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&header).expect("letters, digits and percent signs are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_names_between_commas() {
        let list = |text: &str| names(text).map(|names| names.join("|"));
        assert_eq!(list("a").as_deref(), Some("a"));
        assert_eq!(list("a,b c").as_deref(), Some("a|b c"));
        assert_eq!(list(r#""a,b","c""d",e"#).as_deref(), Some("a,b|c\"d|e"));
        for bad in ["", ",", "a,", ",a", "a,,b", "\"a", "\"a\"b", "\"\""] {
            assert_eq!(list(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_what_can_be_read_is_passed_on() {
        let check = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            passed_on(&headers).map(|passed| passed.len()).map_err(|error| error.message)
        };
        assert_eq!(check(&[("content-type", "Text/CSV; charset=utf-8; header=absent")]), Ok(1));
        let all =
            [("content-type", "text/csv"), ("content-encoding", "gzip"), ("idempotency-key", "k"), ("cookie", "x")];
        assert_eq!(check(&all), Ok(3));
        for bad in [
            &[][..],
            &[("content-type", "image/png")],
            &[("content-type", "text/csv"), ("content-type", "text/csv")],
            &[("content-type", "text/csv"), ("content-encoding", "br")],
            &[("content-type", "text/csv"), ("content-encoding", "gzip, zstd")],
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_name_fits_into_a_header() {
        assert_eq!(encoded("{\"a\": \"é\n\"}"), "%7B%22a%22%3A%20%22%C3%A9%0A%22%7D");
    }
}
