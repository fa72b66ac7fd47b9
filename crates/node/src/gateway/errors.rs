//! What goes wrong at a store, told in S3's words to an engine.
//!
//! The cause goes to the log; the engine reads a code that its client understands (retry, missing, refused) and a sentence
//! that names nothing it did not name itself.

use object_store::Error as StoreFailure;
use s3s::{S3Error, S3ErrorCode};

/// The answer to a failed request to a store.
pub(super) fn of_store(error: StoreFailure) -> S3Error {
    match error {
        StoreFailure::NotFound { .. } => S3Error::with_message(S3ErrorCode::NoSuchKey, "no such object"),
        StoreFailure::NotModified { .. } => S3Error::new(S3ErrorCode::NotModified),
        StoreFailure::Precondition { .. } | StoreFailure::AlreadyExists { .. } => {
            S3Error::with_message(S3ErrorCode::PreconditionFailed, "a condition of the request does not hold")
        }
        StoreFailure::InvalidPath { .. } => S3Error::with_message(S3ErrorCode::InvalidURI, "not a usable key"),
        StoreFailure::PermissionDenied { .. } | StoreFailure::Unauthenticated { .. } => {
            tracing::warn!(%error, "the object store refused the node");
            let hint = "the object store refused the server; `tarn doctor` says more";
            S3Error::with_message(S3ErrorCode::AccessDenied, hint)
        }
        StoreFailure::NotSupported { .. } | StoreFailure::NotImplemented { .. } => {
            S3Error::with_message(S3ErrorCode::NotImplemented, "this store can't do that")
        }
        other => {
            tracing::warn!(error = %other, "the object store failed");
            unavailable()
        }
    }
}

/// A failure that a client may try again.
pub(super) fn unavailable() -> S3Error {
    S3Error::with_message(S3ErrorCode::ServiceUnavailable, "the object store did not answer; try again")
}

/// A refusal that says nothing about what exists.
pub(super) fn denied() -> S3Error {
    let message =
        "only the tenant's own buckets can be reached: -raw and -processed to read, -analytics to read and write";
    S3Error::with_message(S3ErrorCode::AccessDenied, message)
}

/// The answer when even an error could not be written.
pub(super) fn failed() -> s3s::HttpResponse {
    let mut response = http::Response::new(s3s::Body::empty());
    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    response
}
