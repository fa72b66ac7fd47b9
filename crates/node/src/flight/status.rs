//! What a gRPC client is told when something fails: the contract's codes as gRPC's.
//!
//! The message is ours with its hint; code, outcome, retryability and position travel beside it as metadata, so that nothing has to
//! be read out of words.

use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::{Code as Grpc, Status};

use crate::error::{ApiError, Code, Outcome};
use crate::router;

const CODE: HeaderName = HeaderName::from_static("tarn-code");
const OUTCOME: HeaderName = HeaderName::from_static("tarn-outcome");
const RETRYABLE: HeaderName = HeaderName::from_static("tarn-retryable");

/// The gRPC code of one of ours.
fn grpc(code: Code) -> Grpc {
    match code {
        Code::Invalid | Code::Sql => Grpc::InvalidArgument,
        Code::Unauthenticated => Grpc::Unauthenticated,
        Code::Forbidden => Grpc::PermissionDenied,
        Code::NotFound => Grpc::NotFound,
        Code::Conflict => Grpc::Aborted,
        Code::TooLarge | Code::Limited => Grpc::ResourceExhausted,
        Code::Cancelled => Grpc::Cancelled,
        Code::Internal => Grpc::Internal,
        Code::Corrupt => Grpc::DataLoss,
        Code::Fenced | Code::Unavailable => Grpc::Unavailable,
        Code::Timeout | Code::NotYetDurable => Grpc::DeadlineExceeded,
    }
}

/// An error as gRPC tells it.
pub(super) fn status(error: ApiError) -> Status {
    with_code(grpc(error.code), error)
}

/// The same for something that was to be made and is there already.
pub(super) fn exists(error: ApiError) -> Status {
    match error.code {
        Code::Conflict if !error.retryable => with_code(Grpc::AlreadyExists, error),
        _ => status(error),
    }
}

fn with_code(code: Grpc, error: ApiError) -> Status {
    let message = match &*error.hint {
        "" => error.message.to_string(),
        hint => format!("{} ({hint})", error.message),
    };
    let word = serde_json::to_value(error.code).ok();
    let outcome = match error.outcome {
        Outcome::None => "none",
        Outcome::Committed => "committed",
        Outcome::Unknown => "unknown",
    };
    let mut headers = HeaderMap::new();
    let mut tell = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    tell(CODE, word.as_ref().and_then(|word| word.as_str()).unwrap_or_default());
    tell(OUTCOME, outcome);
    tell(RETRYABLE, if error.retryable { "true" } else { "false" });
    if let Some(position) = &error.position {
        tell(router::POSITION, position);
    }
    Status::with_metadata(code, message, MetadataMap::from_headers(headers))
}

/// An answer that consists of the error alone.
pub(crate) fn refusal(error: ApiError) -> Response {
    status(error).into_http()
}

/// The trailers that end a stream with an error.
pub(crate) fn trailers(error: ApiError) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status(error).add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_status_that_is_no_success() {
        for code in Code::ALL {
            let told = status(ApiError::new(code, "x").hint("y"));
            assert_ne!(told.code(), Grpc::Ok, "{code:?}");
            assert_eq!(told.message(), "x (y)");
            assert!(told.metadata().get("tarn-code").is_some());
        }
        assert_eq!(exists(ApiError::new(Code::Conflict, "x")).code(), Grpc::AlreadyExists);
    }
}
