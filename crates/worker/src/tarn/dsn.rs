//! `tarn://[TOKEN@]HOST:PORT/TENANT/MART[?tls=true]`, as for the command line of `tarn`.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::definition::MartName;

/// A node, and perhaps a mart on it.
#[derive(Clone)]
pub struct Dsn {
    pub place: String,
    pub tls: bool,
    pub mart: Option<MartName>,
    pub token: String,
    pub ca_file: Option<PathBuf>,
}

impl Dsn {
    /// From `TARN_DSN`, with `TARN_TOKEN` or `TARN_ADMIN_TOKEN` where it has no token, and `TARN_CA_FILE`.
    pub fn from_environment() -> anyhow::Result<Self> {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let text = read("TARN_DSN").context("set TARN_DSN to tarn://HOST:PORT/TENANT/MART")?;
        let token = || read("TARN_TOKEN").or_else(|| read("TARN_ADMIN_TOKEN"));
        let mut dsn = Self::parse(&text, token)?;
        dsn.ca_file = read("TARN_CA_FILE").map(PathBuf::from);
        Ok(dsn)
    }

    /// The text is in no error: it has a secret in it.
    fn parse(text: &str, token: impl FnOnce() -> Option<String>) -> anyhow::Result<Self> {
        let rest = text.strip_prefix("tarn://").context("the DSN does not begin with `tarn://`")?;
        let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = address.split_once('/').unwrap_or((address, ""));
        let (own, place) = authority.rsplit_once('@').map_or((None, authority), |(token, place)| (Some(token), place));
        if place.is_empty() {
            bail!("the DSN names no host");
        }
        let tls = match options.split('&').filter_map(|option| option.strip_prefix("tls=")).next_back() {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => bail!("`tls` in the DSN wants true or false"),
        };
        let mart = match path.trim_end_matches('/') {
            "" => None,
            path if path.split('/').count() == 2 => Some(MartName(path.into())),
            _ => bail!("the DSN names a tenant and a mart, or neither"),
        };
        let token = own.filter(|own| !own.is_empty()).map(str::to_owned).or_else(token);
        let token = token.context("no token: put it into the DSN (`tarn://TOKEN@…`) or set TARN_TOKEN")?;
        Ok(Self { place: place.into(), tls, mart, token, ca_file: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dsn_has_a_place_and_may_have_a_mart_and_a_token() {
        let read = |text: &str| {
            let dsn = Dsn::parse(text, || Some("other".into())).ok()?;
            Some(format!("{} {} {} {}", dsn.place, dsn.tls, dsn.mart.map(|mart| mart.0).unwrap_or_default(), dsn.token))
        };
        assert_eq!(read("tarn://t@h:1/a/b?tls=true").as_deref(), Some("h:1 true a/b t"));
        assert_eq!(read("tarn://h:1").as_deref(), Some("h:1 false  other"));
        assert_eq!(read("tarn://[::1]:1/a/b?profile=batch").as_deref(), Some("[::1]:1 false a/b other"));
        for bad in ["http://h", "tarn://", "tarn://h/a", "tarn://h/a/b/c", "tarn://h/a/b?tls=1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
