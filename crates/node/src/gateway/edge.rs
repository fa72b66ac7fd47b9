//! The first look at a request: is it plain S3, signed in the header, for this gateway?
//!
//! Works on the head alone, before any signature is checked, and refuses by allow-list: methods, hosts, query names and
//! `x-amz-` headers that the gateway's few operations need. It does not know tenants; [`super::policy`] does.
//!
//! **Invariant:** whatever passes has a path whose decoded form holds no empty, `.` or `..` segment and no control
//! character, in a bucket's root or below.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};

/// Query names of the operations that the gateway has.
const QUERY_NAMES: &[&str] = &[
    "continuation-token",
    "delimiter",
    "encoding-type",
    "fetch-owner",
    "list-type",
    "max-keys",
    "partNumber",
    "prefix",
    "start-after",
    "uploadId",
    "uploads",
    "x-id",
];

/// `x-amz-` headers that change nothing but how a body travels and is checked.
const AMZ_HEADERS: &[&str] = &[
    "x-amz-checksum-mode",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-decoded-content-length",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-trailer",
    "x-amz-user-agent",
];

/// Why a request goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// For another host, or wanting a tunnel.
    ForeignHost,
    /// Without a signature in its header.
    Unsigned,
    /// An operation, or a variation of one, that the gateway does not have.
    Unsupported,
    /// A path that could mean different things to different readers.
    Path,
}

/// Passes what may be looked at further.
pub(super) fn admit<B>(request: &Request<B>, own: SocketAddr) -> Result<(), Refused> {
    if request.version() > Version::HTTP_11 || request.headers().contains_key(UPGRADE) {
        return Err(Refused::Unsupported);
    }
    ours(request.method(), request.uri(), request.headers(), own)?;
    method(request.method())?;
    headers(request.headers())?;
    query(request.method(), request.uri().query().unwrap_or_default())?;
    path(request.uri().path())
}

/// An absolute-form request comes from a client that takes us for its proxy; only our own address is served.
fn ours(method: &Method, uri: &Uri, headers: &HeaderMap, own: SocketAddr) -> Result<(), Refused> {
    if method == Method::CONNECT {
        return Err(Refused::ForeignHost);
    }
    let own = own.to_string();
    let plain = uri.scheme_str().is_none_or(|scheme| scheme == "http");
    let target = uri.authority().is_none_or(|authority| authority.as_str() == own);
    let mut hosts = headers.get_all(HOST).iter();
    let named = hosts.next().is_some_and(|host| host.as_bytes() == own.as_bytes());
    match plain && target && named && hosts.next().is_none() {
        true => Ok(()),
        false => Err(Refused::ForeignHost),
    }
}

fn method(method: &Method) -> Result<(), Refused> {
    match *method {
        Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::DELETE => Ok(()),
        _ => Err(Refused::Unsupported),
    }
}

fn headers(headers: &HeaderMap) -> Result<(), Refused> {
    let signed = headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"AWS4-HMAC-SHA256"));
    if !signed {
        return Err(Refused::Unsigned);
    }
    let form = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.len() >= 10 && value[..10].eq_ignore_ascii_case(b"multipart/")
    });
    if form {
        return Err(Refused::Unsupported);
    }
    for name in headers.keys().map(http::HeaderName::as_str) {
        let known = !name.starts_with("x-amz-") || AMZ_HEADERS.contains(&name) || name.starts_with("x-amz-checksum-");
        if !known {
            return Err(Refused::Unsupported);
        }
    }
    Ok(())
}

fn query(method: &Method, query: &str) -> Result<(), Refused> {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let delete_many = name == "delete" && method == Method::POST;
        if !QUERY_NAMES.contains(&name) && !delete_many {
            return Err(Refused::Unsupported);
        }
    }
    Ok(())
}

fn path(raw: &str) -> Result<(), Refused> {
    let decoded = decode(raw).ok_or(Refused::Path)?;
    let below = decoded.strip_prefix('/').ok_or(Refused::Path)?;
    if below.is_empty() {
        return Err(Refused::Unsupported);
    }
    let (bucket, key) = below.split_once('/').unwrap_or((below, ""));
    if bucket.is_empty() || decoded.chars().any(char::is_control) || (!key.is_empty() && !clean_key(key)) {
        return Err(Refused::Path);
    }
    Ok(())
}

/// Whether a decoded key has only segments that mean one thing everywhere.
pub(super) fn clean_key(key: &str) -> bool {
    !key.is_empty()
        && key.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !key.chars().any(char::is_control)
}

fn decode(raw: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl Refused {
    /// For the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::ForeignHost => "another host",
            Self::Unsigned => "no signature",
            Self::Unsupported => "not an operation of the gateway",
            Self::Path => "an ambiguous path",
        }
    }

    /// What the client reads.
    pub(super) fn answer(self) -> s3s::HttpResponse {
        let (status, code, message) = match self {
            Self::ForeignHost => {
                (StatusCode::FORBIDDEN, "AccessDenied", "only the tenant's own s3:// buckets can be reached")
            }
            Self::Unsigned => (StatusCode::FORBIDDEN, "AccessDenied", "the request is not signed"),
            Self::Unsupported => (StatusCode::NOT_IMPLEMENTED, "NotImplemented", "this operation is not available"),
            Self::Path => (
                StatusCode::BAD_REQUEST,
                "InvalidURI",
                "keys have no empty, `.` or `..` segments and no control characters",
            ),
        };
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        let mut response = Response::new(s3s::Body::from(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
        // Its body was not read: nothing more can come on this connection.
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert(http::header::CONNECTION, close);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "127.0.0.1:4000";

    fn request(method: &str, uri: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, OWN)
            .header(AUTHORIZATION, "AWS4-HMAC-SHA256 Credential=…")
    }

    fn verdict(builder: http::request::Builder) -> Result<(), Refused> {
        let own = OWN.parse().expect("an address");
        admit(&builder.body(()).expect("a legal head"), own)
    }

    #[test]
    fn plain_s3_passes_in_both_forms() {
        for uri in [
            "/sm-a-raw/x.csv",
            "http://127.0.0.1:4000/sm-a-raw/a%20b%2B%25.csv",
            "/sm-a-raw/?list-type=2&prefix=a%2F&encoding-type=url",
            "/sm-a-raw",
        ] {
            assert_eq!(verdict(request("GET", uri)), Ok(()), "{uri}");
        }
        assert_eq!(verdict(request("POST", "/sm-a-analytics/x?uploads=")), Ok(()));
        assert_eq!(verdict(request("PUT", "/sm-a-analytics/x?partNumber=1&uploadId=u")), Ok(()));
    }

    #[test]
    fn other_hosts_are_refused_however_they_are_named() {
        for uri in [
            "http://evil.example/sm-a-raw/x",
            "http://127.0.0.1:4001/sm-a-raw/x",
            "http://localhost:4000/sm-a-raw/x",
            "https://127.0.0.1:4000/sm-a-raw/x",
            "http://u@127.0.0.1:4000/sm-a-raw/x",
        ] {
            assert_eq!(verdict(request("GET", uri)), Err(Refused::ForeignHost), "{uri}");
        }
        assert_eq!(verdict(request("CONNECT", "127.0.0.1:4000")), Err(Refused::ForeignHost));
        assert_eq!(verdict(request("CONNECT", "evil.example:443")), Err(Refused::ForeignHost));
        assert_eq!(verdict(request("GET", "/sm-a-raw/x").header(HOST, "evil")), Err(Refused::ForeignHost));
        let hostless = Request::builder().uri("/sm-a-raw/x").header(AUTHORIZATION, "AWS4-HMAC-SHA256");
        assert_eq!(verdict(hostless), Err(Refused::ForeignHost));
    }

    #[test]
    fn ambiguous_paths_are_refused_on_their_decoded_form() {
        for uri in [
            "/sm-a-analytics/x/../duckdb/y",
            "/sm-a-analytics/x/%2e%2e/duckdb/y",
            "/sm-a-analytics/x/%2E./y",
            "/sm-a-analytics//duckdb/y",
            "/sm-a-analytics/%2Fduckdb/y",
            "/sm-a-analytics/x%00",
            "/sm-a-analytics/x%0a",
            "/sm-a-analytics/x%C2%85",
            "/sm-a-analytics/x%ff",
            "/sm-a-analytics/x%2",
            "/sm-a-analytics/./x",
            "/sm-a-analytics/x/",
            "//sm-a-analytics/x",
        ] {
            assert_eq!(verdict(request("GET", uri)), Err(Refused::Path), "{uri}");
        }
    }

    #[test]
    fn variations_of_operations_are_refused() {
        for (method, uri) in [
            ("GET", "/sm-a-raw/x?versionId=1"),
            ("GET", "/sm-a-raw/x?X-Amz-Signature=1"),
            ("GET", "/sm-a-raw?versions"),
            ("GET", "/sm-a-raw/x?acl"),
            ("GET", "/sm-a-analytics?delete"),
            ("POST", "/sm-a-analytics?restore"),
            ("GET", "/"),
            ("OPTIONS", "/sm-a-raw/x"),
            ("PATCH", "/sm-a-raw/x"),
        ] {
            assert_eq!(verdict(request(method, uri)), Err(Refused::Unsupported), "{method} {uri}");
        }
        for (name, value) in [
            ("x-amz-copy-source", "/sm-b-raw/x"),
            ("x-amz-acl", "public-read"),
            ("x-amz-security-token", "t"),
            ("x-amz-tagging", "a=b"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("upgrade", "h2c"),
        ] {
            let verdict = verdict(request("PUT", "/sm-a-analytics/x").header(name, value));
            assert_eq!(verdict, Err(Refused::Unsupported), "{name}");
        }
        let unsigned = Request::builder().uri("/sm-a-raw/x").header(HOST, OWN);
        assert_eq!(verdict(unsigned), Err(Refused::Unsigned));
    }
}
