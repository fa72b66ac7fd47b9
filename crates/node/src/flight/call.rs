//! Who calls, about which mart, and how: read from the metadata of each call before anything of the call itself.
//!
//! Nothing of a token is kept or logged. **Invariant:** a [`Call`] exists only for a principal that may enter its mart.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use engine::wire::{Role, header};
use http::header::{AUTHORIZATION, COOKIE};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{self, Principal};
use crate::connection::ConnectionId;
use crate::error::{ApiError, Code};
use crate::names::{MartId, Tenant};
use crate::router::Durability;

/// Request metadata: `TENANT/MART`.
pub(super) const MART: HeaderName = HeaderName::from_static("tarn-mart");
/// Request metadata and cookie: what keeps calls together that come over several connections.
pub(super) const SESSION: HeaderName = HeaderName::from_static("tarn-session");
const DURABILITY: HeaderName = HeaderName::from_static("tarn-durability");
const TIMEOUT: HeaderName = HeaderName::from_static("tarn-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const AT: HeaderName = HeaderName::from_static("tarn-at");
/// Parts a token from what a handshake adds to it.
const MARK: char = '~';

/// One call.
#[derive(Clone)]
pub(super) struct Call {
    pub principal: Principal,
    pub mart: MartId,
    pub role: Role,
    pub place: Place,
    pub durability: Durability,
    pub timeout: Duration,
    /// An earlier moment.
    pub at: Option<String>,
    pub idempotency_key: Option<HeaderValue>,
}

/// What calls have in common that belong to one client: its cookie, else its handshake, else its connection.
#[derive(Clone)]
pub(super) struct Place {
    pub id: Uuid,
    /// Ends the place, if it is a connection.
    pub closed: Option<CancellationToken>,
}

/// What a handshake adds to the token.
#[derive(Serialize, Deserialize)]
struct Greeting {
    /// The client's place.
    s: Uuid,
    /// The mart of its user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    m: Option<String>,
}

/// Who calls, as the `authorization` says.
struct Credentials {
    principal: Principal,
    token: String,
    mart: Option<String>,
    place: Option<Uuid>,
}

impl Call {
    /// The call that brings this metadata.
    pub(super) fn of(app: &App, headers: &HeaderMap, extensions: &Extensions) -> Result<Self, ApiError> {
        let who = credentials(app, headers)?;
        let mart = match text(headers, &MART)?.or(who.mart.as_deref()) {
            Some(name) => named(name, &who.principal)?,
            None => default_mart(app, &who.principal)?,
        };
        let role = who.principal.role_in(&mart.tenant)?;
        Ok(Self {
            mart,
            role,
            place: place(headers, extensions, who.place)?,
            durability: durability(headers)?,
            timeout: timeout(headers, app.config.query_timeout)?,
            at: text(headers, &AT)?.map(str::to_owned),
            idempotency_key: headers.get(header::IDEMPOTENCY_KEY).cloned(),
            principal: who.principal,
        })
    }

    /// The same call about a mart that a ticket names.
    pub(super) fn about(mut self, mart: &MartId) -> Result<Self, ApiError> {
        self.role = self.principal.role_in(&mart.tenant)?;
        self.mart = mart.clone();
        Ok(self)
    }
}

/// The bearer that a handshake answers with: the token, a place of its own, and the mart of the user name.
pub(super) fn greet(app: &App, headers: &HeaderMap) -> Result<String, ApiError> {
    let who = credentials(app, headers)?;
    if let Some(name) = &who.mart {
        who.principal.role_in(&named(name, &who.principal)?.tenant)?;
    }
    let greeting = Greeting { s: Uuid::new_v4(), m: who.mart };
    let json = serde_json::to_vec(&greeting).map_err(|error| ApiError::internal("a greeting is JSON", error))?;
    Ok(format!("{}{MARK}{}", who.token, URL_SAFE_NO_PAD.encode(json)))
}

fn credentials(app: &App, headers: &HeaderMap) -> Result<Credentials, ApiError> {
    let state = app.control.state();
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(auth::unknown)?;
    let (scheme, value) = value.split_once(' ').ok_or_else(auth::unknown)?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = STANDARD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.ok_or_else(auth::unknown)?;
        let (user, token) = pair.split_once(':').ok_or_else(auth::unknown)?;
        let principal = app.admin.holder(token, &state)?;
        let mart = user.contains('/').then(|| user.to_owned());
        return Ok(Credentials { principal, token: token.to_owned(), mart, place: None });
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(auth::unknown());
    }
    if let Some((token, greeting)) = value.rsplit_once(MARK)
        && let Ok(principal) = app.admin.holder(token, &state)
    {
        let bytes = URL_SAFE_NO_PAD.decode(greeting).map_err(|_| auth::unknown())?;
        let greeting: Greeting = serde_json::from_slice(&bytes).map_err(|_| auth::unknown())?;
        return Ok(Credentials { principal, token: token.to_owned(), mart: greeting.m, place: Some(greeting.s) });
    }
    Ok(Credentials { principal: app.admin.holder(value, &state)?, token: value.to_owned(), mart: None, place: None })
}

/// A mart by its name; without a tenant it is one of the principal's own.
fn named(name: &str, principal: &Principal) -> Result<MartId, ApiError> {
    let bad = |_| {
        ApiError::new(Code::Invalid, format!("the metadata `{MART}` wants `TENANT/MART`"))
            .hint("`tarn mart list` shows yours")
    };
    match (name.contains('/'), &principal.tenant) {
        (false, Some(tenant)) => Ok(MartId { tenant: tenant.clone(), mart: name.parse().map_err(bad)? }),
        _ => name.parse().map_err(bad),
    }
}

/// The tenant's first mart; `dev` for the tenant `default`.
fn default_mart(app: &App, principal: &Principal) -> Result<MartId, ApiError> {
    let tenant: Tenant = match &principal.tenant {
        Some(tenant) => tenant.clone(),
        None => "default".parse().map_err(|error| ApiError::internal("`default` is a name", error))?,
    };
    if tenant.as_str() == "default" {
        let mart = "dev".parse().map_err(|error| ApiError::internal("`dev` is a name", error))?;
        return Ok(MartId { tenant, mart });
    }
    let state = app.control.state();
    let marts = state.tenants.get(&tenant).map(|entry| &entry.marts);
    let first = marts.and_then(|marts| marts.iter().min_by_key(|(_, entry)| entry.created_us));
    match first {
        Some((mart, _)) => Ok(MartId { tenant, mart: mart.clone() }),
        None => Err(ApiError::new(Code::NotFound, "this tenant has no mart yet")
            .hint("make one, or name one in the metadata `tarn-mart`")),
    }
}

fn place(headers: &HeaderMap, extensions: &Extensions, greeted: Option<Uuid>) -> Result<Place, ApiError> {
    let named = match text(headers, &SESSION)? {
        Some(value) => Some(value.parse().map_err(|_| {
            ApiError::new(Code::Invalid, format!("the metadata `{SESSION}` wants a UUID that you choose"))
        })?),
        None => cookie(headers),
    };
    if let Some(id) = named.or(greeted) {
        return Ok(Place { id, closed: None });
    }
    Ok(match extensions.get::<ConnectionId>() {
        Some(connection) => Place { id: connection.id, closed: Some(connection.closed.clone()) },
        None => Place { id: Uuid::new_v4(), closed: None },
    })
}

/// The place that a cookie names. Another server's cookies may stand beside it.
pub(super) fn cookie(headers: &HeaderMap) -> Option<Uuid> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION.as_str()).and_then(|(_, value)| value.trim_matches('"').parse().ok())
}

fn durability(headers: &HeaderMap) -> Result<Durability, ApiError> {
    match text(headers, &DURABILITY)? {
        None | Some("object") => Ok(Durability::Object),
        Some("local") => Ok(Durability::Local),
        Some(_) => Err(ApiError::new(Code::Invalid, format!("the metadata `{DURABILITY}` wants `object` or `local`"))),
    }
}

/// The shortest of what is asked for; the client's own deadline is one of them.
fn timeout(headers: &HeaderMap, default: Duration) -> Result<Duration, ApiError> {
    let ours = match text(headers, &TIMEOUT)? {
        Some(value) => Some(Duration::from_millis(value.parse().map_err(|_| {
            ApiError::new(Code::Invalid, format!("the metadata `{TIMEOUT}` wants a number of milliseconds"))
        })?)),
        None => None,
    };
    let grpc = headers.get(GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.to_str().ok()?));
    Ok(match (ours, grpc) {
        (Some(ours), Some(grpc)) => ours.min(grpc),
        (one, other) => one.or(other).unwrap_or(default),
    })
}

/// `10S`: at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().map_err(|_| ApiError::new(Code::Invalid, format!("the metadata `{name}` is no text")))?;
    Ok(Some(text.trim()).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_has_a_number_and_a_unit() {
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "5", "5x", "123456789S", "-1S", "5é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad:?} passed");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let id = Uuid::new_v4();
        let line = format!("a=b; tarn-session={id}; c=d");
        let headers = HeaderMap::from_iter([(COOKIE, line.parse().expect("a legal header"))]);
        assert_eq!(cookie(&headers), Some(id));
        assert_eq!(cookie(&HeaderMap::new()), None);
    }
}
