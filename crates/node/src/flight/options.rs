//! Session options and the end of a session: Flight's messages, which arrow-flight does not have, and what they do.

use std::collections::HashMap;
use std::sync::Arc;

use engine::wire::SessionSettings;
use http::Method;
use prost::Message;
use serde::Deserialize;
use uuid::Uuid;

use super::Flight;
use super::call::Call;
use super::ingest::CATALOG;
use super::run::Asked;
use super::sessions::{in_session, is_gone};
use crate::error::{ApiError, Code};

/// A value of an option: `Flight.proto`'s `SessionOptionValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OptionValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    pub value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Value {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Int64(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    Strings(Strings),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Strings {
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// `SetSessionOptionsRequest` and `GetSessionOptionsResult`, which are alike.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Options {
    #[prost(map = "string, message", tag = "1")]
    pub options: HashMap<String, OptionValue>,
}

/// `SetSessionOptionsResult`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Errors {
    #[prost(map = "string, message", tag = "1")]
    pub errors: HashMap<String, OptionError>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OptionError {
    /// 1: no such option; 2: not this value; 3: it failed.
    #[prost(int32, tag = "1")]
    pub value: i32,
}

/// `CloseSessionResult`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Closed {
    /// 1: closed.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Vec<String>>,
}

impl Flight {
    /// Sets what can be set: the schema that names are looked up in, and a catalog, of which there is one.
    pub(super) async fn set_options(self: &Arc<Self>, call: &Call, body: &[u8]) -> Result<Errors, ApiError> {
        let asked = parsed(body)?;
        let mut errors = HashMap::new();
        for (name, option) in asked.options {
            let refused = match (name.as_str(), option.value) {
                ("catalog" | "schema", None) => None,
                ("catalog", Some(Value::String(catalog))) => {
                    (!catalog.is_empty() && catalog != CATALOG).then_some(INVALID_VALUE)
                }
                ("schema", Some(Value::String(schema))) => match self.use_schema(call, &schema).await {
                    Ok(()) => None,
                    Err(error) if matches!(error.code, Code::Sql | Code::Invalid) => Some(INVALID_VALUE),
                    Err(error) => return Err(error),
                },
                ("catalog" | "schema", Some(_)) => Some(INVALID_VALUE),
                _ => Some(INVALID_NAME),
            };
            if let Some(value) = refused {
                errors.insert(name, OptionError { value });
            }
        }
        Ok(Errors { errors })
    }

    async fn use_schema(self: &Arc<Self>, call: &Call, schema: &str) -> Result<(), ApiError> {
        let settings = SessionSettings { schema: schema.to_owned() };
        for again in [true, false] {
            let Some(used) = self.session(call, self.current_transaction(call), true).await? else { break };
            match self.tell(call, Method::POST, &format!("/sessions/{}", used.id()), &settings).await {
                Err(error) if is_gone(&error) && again && self.replace(call, &used)? => {}
                set => return set,
            }
        }
        Err(ApiError::internal("a session that is needed is there", "it is not"))
    }

    /// What is set.
    pub(super) async fn get_options(self: &Arc<Self>, call: &Call) -> Result<Options, ApiError> {
        let schema = match self.session_if_any(call) {
            Some(used) => {
                let request = in_session("SELECT current_schema()", used.id());
                let answer: Result<Rows, _> =
                    self.run_json(call, Asked::query(Uuid::new_v4(), &request, "application/json")?).await;
                answer.ok().and_then(|answer| answer.rows.into_iter().flatten().next())
            }
            None => None,
        };
        let known = [("catalog", CATALOG.to_owned()), ("schema", schema.unwrap_or_else(|| "main".to_owned()))];
        let options = known.map(|(name, value)| (name.to_owned(), OptionValue { value: Some(Value::String(value)) }));
        Ok(Options { options: options.into() })
    }
}

fn parsed(body: &[u8]) -> Result<Options, ApiError> {
    Options::decode(body).map_err(|_| ApiError::new(Code::Invalid, "the session options can't be read"))
}
