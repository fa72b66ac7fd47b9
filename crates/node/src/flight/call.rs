//! Who calls, about which mart, and how: read from the metadata of each call before anything of the call itself.
//!
//! Nothing of a token is kept or logged. **Invariant:** a [`Call`] exists only for a principal that may enter its mart.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::wire::{Role, header};
use http::header::COOKIE;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::app::App;
use crate::auth::shown::MARK;
use crate::auth::{self, Principal, Shown};
use crate::connection::ConnectionId;
use crate::error::{ApiError, Code};
use crate::names::{MartId, Tenant};
use crate::profiles::Profile;
use crate::router::Durability;
use crate::visit;

/// Request metadata: `TENANT/MART`.
pub(super) const MART: HeaderName = HeaderName::from_static("tarn-mart");
/// Request metadata and cookie: what keeps calls together that come over several connections.
pub(super) const SESSION: HeaderName = HeaderName::from_static("tarn-session");
const DURABILITY: HeaderName = HeaderName::from_static("tarn-durability");
const TIMEOUT: HeaderName = HeaderName::from_static("tarn-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const AT: HeaderName = HeaderName::from_static("tarn-at");

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
    /// How large its engine is to be meanwhile.
    pub profile: Profile,
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

impl Call {
    /// The call that brings this metadata.
    pub(super) fn of(app: &App, headers: &HeaderMap, extensions: &Extensions) -> Result<Self, ApiError> {
        let principal = Principal::clone(&*auth::who(extensions)?);
        let (greeted_mart, greeted_place) = besides(Shown::of_flight(headers).as_ref())?;
        let mart = match text(headers, &MART)?.or(greeted_mart.as_deref()) {
            Some(name) => named(name, &principal)?,
            None => default_mart(app, &principal)?,
        };
        visit::about(&mart);
        let role = principal.role_in(&mart)?;
        let profile = app.profile(&principal, &mart, headers)?;
        let usual = profile.timeout.unwrap_or(app.config.query_timeout);
        Ok(Self {
            mart,
            role,
            profile,
            place: place(headers, extensions, greeted_place)?,
            durability: durability(headers)?,
            timeout: timeout(headers, usual)?,
            at: text(headers, &AT)?.map(str::to_owned),
            idempotency_key: headers.get(header::IDEMPOTENCY_KEY).cloned(),
            principal,
        })
    }

    /// The same call about a mart that a ticket names.
    pub(super) fn about(mut self, mart: &MartId) -> Result<Self, ApiError> {
        visit::about(mart);
        self.role = self.principal.role_in(mart)?;
        self.mart = mart.clone();
        Ok(self)
    }
}

/// The bearer that a handshake answers with: the token, a place of its own, and the mart of the user name.
pub(super) fn greet(principal: &Principal, shown: &Shown) -> Result<String, ApiError> {
    let (mart, _) = besides(Some(shown))?;
    if let Some(name) = &mart {
        principal.role_in(&named(name, principal)?)?;
    }
    let greeting = Greeting { s: Uuid::new_v4(), m: mart };
    let json = serde_json::to_vec(&greeting).map_err(|error| ApiError::internal("a greeting is JSON", error))?;
    Ok(format!("{}{MARK}{}", shown.token(), URL_SAFE_NO_PAD.encode(json)))
}

/// What the `authorization` says besides who it is: a mart as the user name, or what a handshake has added.
fn besides(shown: Option<&Shown>) -> Result<(Option<String>, Option<Uuid>), ApiError> {
    let Some(shown) = shown else { return Ok((None, None)) };
    if let Some(user) = &shown.user {
        return Ok((user.contains('/').then(|| user.clone()), None));
    }
    let Some(greeting) = shown.greeting() else { return Ok((None, None)) };
    let bytes = URL_SAFE_NO_PAD.decode(greeting).map_err(|_| auth::unknown())?;
    let greeting: Greeting = serde_json::from_slice(&bytes).map_err(|_| auth::unknown())?;
    Ok((greeting.m, Some(greeting.s)))
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

/// The token's own mart, else the tenant's first; `dev` for the tenant `default`.
fn default_mart(app: &App, principal: &Principal) -> Result<MartId, ApiError> {
    if let (Some(tenant), Some(mart)) = (&principal.tenant, &principal.mart) {
        return Ok(MartId { tenant: tenant.clone(), mart: mart.clone() });
    }
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
