//! Postgres connections by name: `TARN_POSTGRES_{NAME}`, or `[postgres.name]` in `tarn.toml`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::config::SslMode;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::ConfigError;
use crate::error::{ApiError, Code};
use crate::names::Tenant;

const PREFIX: &str = "TARN_POSTGRES_";
/// More of a connection, behind its name.
const TENANTS: &str = "_TENANTS";
const PASSWORD_FILE: &str = "_PASSWORD_FILE";
const CA_FILE: &str = "_CA_FILE";

/// One of them. Its password is in no `Debug`.
#[derive(Clone)]
pub struct Connection {
    pub config: tokio_postgres::Config,
    /// Who may write there; none is everybody.
    tenants: Option<Vec<String>>,
    /// A file of authorities in PEM; none is the machine's.
    ca_file: Option<String>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("tenants", &self.tenants).finish_non_exhaustive()
    }
}

/// All of them by name, in lower case.
#[derive(Debug, Clone, Default)]
pub struct Connections(BTreeMap<String, Connection>);

/// What is said of one.
#[derive(Default)]
struct Said {
    url: Option<String>,
    tenants: Option<String>,
    password_file: Option<String>,
    ca_file: Option<String>,
}

impl Connections {
    /// From the environment, over a table `[postgres]` of `tarn.toml`.
    pub fn resolve(
        environment: impl Iterator<Item = (String, String)>,
        file: Option<&figment::value::Value>,
    ) -> Result<Self, ConfigError> {
        let mut said: BTreeMap<String, Said> = BTreeMap::new();
        if let Some(table) = file {
            read_table(table, &mut said)?;
        }
        for (variable, value) in environment.filter(|(_, value)| !value.is_empty()) {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            let (name, field): (&str, fn(&mut Said) -> &mut Option<String>) =
                match [TENANTS, PASSWORD_FILE, CA_FILE].iter().find_map(|end| Some((name.strip_suffix(end)?, *end))) {
                    Some((name, TENANTS)) => (name, |said| &mut said.tenants),
                    Some((name, PASSWORD_FILE)) => (name, |said| &mut said.password_file),
                    Some((name, _)) => (name, |said| &mut said.ca_file),
                    None => (name, |said| &mut said.url),
                };
            *field(said.entry(name.to_ascii_lowercase()).or_default()) = Some(value);
        }
        said.into_iter()
            .map(|(name, said)| Ok((name.clone(), connection(&name, said)?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The one of that name, if the tenant may use it.
    pub fn get(&self, name: &str, tenant: &Tenant) -> Option<&Connection> {
        let found = self.0.get(&name.to_ascii_lowercase())?;
        let allowed = found.tenants.as_ref().is_none_or(|all| all.iter().any(|one| one == tenant.as_str()));
        allowed.then_some(found)
    }

    /// What a connection's server is checked against.
    pub fn tls(&self, connection: &Connection) -> Result<Arc<ClientConfig>, ApiError> {
        let unusable = |error: String| {
            tracing::warn!(error, "authorities for a Postgres connection can't be read");
            ApiError::new(Code::Unavailable, "the Postgres connection's settings can't be used")
                .hint("the node's log has the reason")
        };
        let mut roots = RootCertStore::empty();
        if connection.config.get_ssl_mode() == SslMode::Disable {
            // Nobody asks it.
        } else if let Some(path) = &connection.ca_file {
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            for certificate in certificates(&pem) {
                roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
            }
        } else {
            for certificate in rustls_native_certs::load_native_certs().certs {
                // One that can't be used is as if it were not there.
                let _ = roots.add(certificate);
            }
        }
        Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
    }
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

fn read_table(table: &figment::value::Value, said: &mut BTreeMap<String, Said>) -> Result<(), ConfigError> {
    let wrong = || {
        ConfigError::of(
            "postgres",
            "wants tables such as `[postgres.reporting]` with texts: `url`, `tenants`, `password_file`, `ca_file`",
        )
    };
    for (name, fields) in table.as_dict().ok_or_else(wrong)? {
        let one = said.entry(name.to_ascii_lowercase()).or_default();
        for (field, value) in fields.as_dict().ok_or_else(wrong)? {
            let place = match field.as_str() {
                "url" => &mut one.url,
                "tenants" => &mut one.tenants,
                "password_file" => &mut one.password_file,
                "ca_file" => &mut one.ca_file,
                _ => return Err(wrong()),
            };
            *place = Some(value.as_str().ok_or_else(wrong)?.to_owned());
        }
    }
    Ok(())
}

fn connection(name: &str, said: Said) -> Result<Connection, ConfigError> {
    let variable = format!("{PREFIX}{}", name.to_ascii_uppercase());
    let bad = |why: &str| ConfigError::named(&variable, why);
    let url = said.url.ok_or_else(|| bad("is missing: a URL such as postgres://user@host/database"))?;
    // The library's own words may repeat the password.
    let mut config: tokio_postgres::Config =
        url.parse().map_err(|_| bad("wants a URL such as postgres://user@host/database?sslmode=require"))?;
    if let Some(path) = said.password_file {
        let password = std::fs::read_to_string(&path).map_err(|error| bad(&format!("its password file: {error}")))?;
        config.password(password.trim_end_matches(['\n', '\r']));
    }
    let tenants = said.tenants.map(|text| text.split(',').map(|name| name.trim().to_owned()).collect());
    Ok(Connection { config, tenants, ca_file: said.ca_file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Connections, ConfigError> {
        Connections::resolve(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())), None)
    }

    #[test]
    fn connections_are_named_by_variables_and_kept_to_their_tenants() {
        let all = of(&[
            ("TARN_POSTGRES_REPORTING", "postgres://u:secret@db:5433/reports"),
            ("TARN_POSTGRES_REPORTING_TENANTS", "acme, globex"),
            ("TARN_POSTGRES_OPEN", "postgres://u@db/open"),
            ("TARN_LISTEN", "127.0.0.1:1"),
        ])
        .expect("legal");
        let tenant = |name: &str| name.parse::<Tenant>().expect("legal");
        let found = all.get("reporting", &tenant("acme")).expect("allowed");
        assert_eq!((found.config.get_ports(), found.config.get_dbname()), (&[5433][..], Some("reports")));
        assert!(all.get("reporting", &tenant("other")).is_none() && all.get("open", &tenant("other")).is_some());
        assert!(!format!("{all:?}").contains("secret"));
    }

    #[test]
    fn what_can_t_be_used_is_named_without_its_secrets() {
        for pairs in [
            &[("TARN_POSTGRES_X", "nonsense://u:secret@h")][..],
            &[("TARN_POSTGRES_X_TENANTS", "acme")],
            &[("TARN_POSTGRES_X", "postgres://u:secret@h/d"), ("TARN_POSTGRES_X_PASSWORD_FILE", "/nowhere")],
        ] {
            let error = of(pairs).expect_err("refused").to_string();
            assert!(error.contains("TARN_POSTGRES_X") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_table_of_the_file_says_the_same() {
        let toml = "[postgres.reporting]\nurl = \"postgres://u@db/reports\"\ntenants = \"acme\"\n";
        let file: BTreeMap<String, figment::value::Value> =
            figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(toml))
                .extract()
                .expect("TOML");
        let all = Connections::resolve(std::iter::empty(), file.get("postgres")).expect("legal");
        assert!(all.get("reporting", &"acme".parse().expect("legal")).is_some());
    }
}
