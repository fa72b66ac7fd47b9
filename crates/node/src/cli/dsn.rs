//! `tarn://[TOKEN@]HOST:PORT/TENANT/MART[?tls=true][&at=MOMENT][&profile=NAME]`: which mart on which node, as whom.

use std::fmt;
use std::path::Path;

use crate::names::{Mart, MartId, Tenant};

const SCHEME: &str = "tarn://";

/// Wrong words on the command line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadUsage(pub(super) String);

/// A parsed DSN. Its token is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Dsn {
    pub host: String,
    pub tls: bool,
    pub token: Option<String>,
    pub tenant: Option<Tenant>,
    pub mart: Option<Mart>,
    /// An earlier moment, for queries.
    pub at: Option<String>,
    /// The profile of queries.
    pub profile: Option<String>,
    /// More authorities to trust, in PEM; from `TARN_CA_FILE`.
    pub ca_file: Option<String>,
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsn")
            .field("host", &self.host)
            .field("tenant", &self.tenant)
            .field("mart", &self.mart)
            .finish_non_exhaustive()
    }
}

impl Dsn {
    /// The given DSN or that of `TARN_DSN`; a token from it, from `TARN_TOKEN`, or, on this machine, the node's own admin token.
    pub(super) fn find(given: Option<&str>) -> Result<Self, BadUsage> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let text = match given {
            Some(text) => text.to_owned(),
            None => variable("TARN_DSN")
                .ok_or_else(|| BadUsage("no DSN: give `tarn://HOST:PORT/TENANT/MART` or set TARN_DSN".into()))?,
        };
        let mut dsn = Self::parse(&text)?;
        dsn.ca_file = variable("TARN_CA_FILE");
        dsn.token = dsn.token.or_else(|| variable("TARN_TOKEN")).or_else(|| variable("TARN_ADMIN_TOKEN"));
        if dsn.token.is_none() && dsn.is_local() {
            let state_dir = variable("TARN_STATE_DIR").unwrap_or_else(|| "volumes/duckdb".into());
            dsn.token = std::fs::read_to_string(Path::new(&state_dir).join("admin-token"))
                .ok()
                .map(|text| text.trim().to_owned());
        }
        Ok(dsn)
    }

    fn parse(text: &str) -> Result<Self, BadUsage> {
        let bad = |why: &str| BadUsage(format!("{why}; a DSN looks like `tarn://HOST:PORT/TENANT/MART`"));
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("the DSN does not begin with `tarn://`"))?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (token, host) = match authority.rsplit_once('@') {
            Some((token, host)) => (Some(token.to_owned()), host),
            None => (None, authority),
        };
        if host.is_empty() {
            return Err(bad("the DSN names no host"));
        }
        let mut dsn = Self {
            host: host.to_owned(),
            tls: false,
            token,
            tenant: None,
            mart: None,
            at: None,
            profile: None,
            ca_file: None,
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("tls", value)) => dsn.tls = value.parse().map_err(|_| bad("`tls` wants true or false"))?,
                Some(("at", value)) => dsn.at = Some(unescape(value).ok_or_else(|| bad("`at` can't be read"))?),
                Some(("profile", value)) => dsn.profile = Some(value.to_owned()),
                _ => return Err(bad("unknown option in the DSN")),
            }
        }
        let mut names = path.split('/').filter(|name| !name.is_empty());
        let (tenant, mart) = (names.next(), names.next());
        if names.next().is_some() {
            return Err(bad("too many names in the DSN"));
        }
        dsn.tenant = tenant.map(str::parse).transpose().map_err(|e: crate::names::BadName| bad(&e.to_string()))?;
        dsn.mart = mart.map(str::parse).transpose().map_err(|e: crate::names::BadName| bad(&e.to_string()))?;
        Ok(dsn)
    }

    /// The mart that it names.
    pub(super) fn mart_id(&self) -> Result<MartId, BadUsage> {
        match (&self.tenant, &self.mart) {
            (Some(tenant), Some(mart)) => Ok(MartId { tenant: tenant.clone(), mart: mart.clone() }),
            _ => Err(BadUsage("the DSN names no mart: `tarn://HOST:PORT/TENANT/MART`".into())),
        }
    }

    /// Where its HTTP API is.
    pub(super) fn base_url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.host)
    }

    fn is_local(&self) -> bool {
        let host = self.host.rsplit_once(':').map_or(self.host.as_str(), |(host, _)| host);
        matches!(host, "localhost" | "127.0.0.1" | "[::1]")
    }
}

/// Percent escapes, as in a URL; a `+` stays one, since times with an offset have it.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_of_a_dsn() {
        let dsn = Dsn::parse("tarn://secret@node:8642/acme/sales?tls=true").expect("a legal DSN");
        assert_eq!((dsn.host.as_str(), dsn.tls, dsn.token.as_deref()), ("node:8642", true, Some("secret")));
        assert_eq!(dsn.mart_id().expect("it names a mart").to_string(), "acme/sales");
        assert!(!format!("{dsn:?}").contains("secret"));
    }

    #[test]
    fn a_moment_in_a_dsn_may_be_escaped() {
        let at = |text: &str| Dsn::parse(&format!("tarn://h/a/b?at={text}")).expect("a legal DSN").at;
        assert_eq!(at("2026-01-31T12:00:00%2B01:00").as_deref(), Some("2026-01-31T12:00:00+01:00"));
        assert_eq!(at("2026-01-31T12:00:00+01:00").as_deref(), Some("2026-01-31T12:00:00+01:00"));
        assert!(Dsn::parse("tarn://h/a/b?at=%zz").is_err());
    }

    #[test]
    fn wrong_dsns_are_refused() {
        for wrong in [
            "http://x/a/b",
            "tarn://",
            "tarn:///a/b",
            "tarn://h/a/b/c",
            "tarn://h/A/b",
            "tarn://h/a/b?tls=1",
            "tarn://h/a/b?x=y",
        ] {
            assert!(Dsn::parse(wrong).is_err(), "{wrong} passed");
        }
    }
}
