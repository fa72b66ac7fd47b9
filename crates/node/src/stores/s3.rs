//! Clients for buckets of an S3 service, made from the configuration.
//!
//! Two clients per bucket: one that retries, with a long deadline, for data; one that never retries, with a short
//! deadline, for the log. Credentials are shared by all buckets. Reads no environment variable: `config.rs` does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential, AwsCredentialProvider, S3ConditionalPut};
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::{BackoffConfig, ClientOptions, RetryConfig, StaticCredentialProvider};

use super::StoreError;
use super::bucket::{Bucket, BucketName};
use super::credentials::Refreshing;
use super::lister::Lister;
use super::sts::{Proof, Sts};

/// A body of data has this long to pass; a read that is cut off goes on where it was.
const DATA_DEADLINE: Duration = Duration::from_secs(300);
/// An attempt to win a slot has this long before its outcome counts as unknown.
const LOG_DEADLINE: Duration = Duration::from_secs(15);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How to reach an S3 service.
#[derive(Clone, Default)]
pub struct S3Config {
    /// A custom endpoint; without a scheme `https` is meant. AWS's global endpoint means none.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` if none is given.
    pub region: Option<String>,
    /// Key id, with its secret.
    pub access_key_id: Option<String>,
    /// The secret of the key.
    pub secret_access_key: Option<String>,
    /// Session token, if the keys are temporary ones.
    pub session_token: Option<String>,
    /// A role to take: with the keys, or with the web identity token.
    pub role_arn: Option<String>,
    /// A file with a web identity token, rotated by somebody else.
    pub web_identity_token_file: Option<PathBuf>,
    /// The token service; by default AWS's regional one, or the custom endpoint.
    pub sts_endpoint: Option<String>,
    /// `https://host/bucket` instead of `https://bucket.host`; by default for custom endpoints only.
    pub path_style: Option<bool>,
}

impl std::fmt::Debug for S3Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("role_arn", &self.role_arn)
            .finish_non_exhaustive()
    }
}

impl S3Config {
    /// The custom endpoint with its scheme, if there is one.
    fn custom_endpoint(&self) -> Option<String> {
        let text = self.endpoint.as_deref()?.trim().trim_end_matches('/');
        if text.is_empty() {
            return None;
        }
        let endpoint = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let global = ["https://s3.amazonaws.com", "http://s3.amazonaws.com"];
        (!global.contains(&endpoint.as_str())).then_some(endpoint)
    }

    fn region(&self) -> String {
        self.region.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| "us-east-1".into())
    }

    /// Whether buckets are named in the path.
    fn path_style(&self) -> bool {
        self.path_style.unwrap_or(self.custom_endpoint().is_some())
    }

    /// Address of a bucket, without a final `/`.
    fn bucket_address(&self, bucket: &BucketName) -> String {
        let endpoint = self.custom_endpoint().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", self.region()));
        match self.path_style() {
            true => format!("{endpoint}/{bucket}"),
            false => endpoint.replacen("://", &format!("://{bucket}."), 1),
        }
    }
}

/// Everything that the clients of all buckets share.
pub(super) struct Clients {
    config: S3Config,
    /// None: whatever the machine itself is entitled to (container or instance credentials).
    credentials: Option<AwsCredentialProvider>,
}

impl Clients {
    pub(super) fn new(config: S3Config) -> Result<Self, StoreError> {
        let credentials = credentials(&config)?;
        Ok(Self { config, credentials })
    }

    pub(super) fn bucket(&self, name: &BucketName) -> Result<Bucket, StoreError> {
        let data = Arc::new(self.client(name, DATA_DEADLINE, RetryConfig::default())?);
        let once = RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO };
        let log = Arc::new(self.client(name, LOG_DEADLINE, once)?);
        let lister = Lister {
            client: connect(self.config.custom_endpoint().as_deref())?,
            address: self.config.bucket_address(name),
            region: self.config.region(),
            credentials: data.credentials().clone(),
        };
        Ok(Bucket { name: name.clone(), data: data.clone(), log, multipart: data, pages: Some(Arc::new(lister)) })
    }

    fn client(&self, name: &BucketName, deadline: Duration, retry: RetryConfig) -> Result<AmazonS3, StoreError> {
        let endpoint = self.config.custom_endpoint();
        // Virtual-hosted for the builder means that the address holds the bucket already, wherever in it.
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(name.as_str())
            .with_region(self.config.region())
            .with_endpoint(self.config.bucket_address(name))
            .with_virtual_hosted_style_request(true)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(retry)
            .with_client_options(options(endpoint.as_deref()).with_timeout(deadline));
        if let Some(credentials) = &self.credentials {
            builder = builder.with_credentials(credentials.clone());
        }
        builder.build().map_err(|e| StoreError::Open(e.into()))
    }
}

fn options(endpoint: Option<&str>) -> ClientOptions {
    let plain = endpoint.is_some_and(|e| e.starts_with("http://"));
    ClientOptions::new().with_allow_http(plain).with_connect_timeout(CONNECT_DEADLINE)
}

fn connect(endpoint: Option<&str>) -> Result<HttpClient, StoreError> {
    ReqwestConnector::default().connect(&options(endpoint)).map_err(|e| StoreError::Open(e.into()))
}

fn credentials(config: &S3Config) -> Result<Option<AwsCredentialProvider>, StoreError> {
    let keys = match (&config.access_key_id, &config.secret_access_key) {
        (Some(key_id), Some(secret_key)) => Some(AwsCredential {
            key_id: key_id.clone(),
            secret_key: secret_key.clone(),
            token: config.session_token.clone(),
        }),
        (None, None) => None,
        _ => {
            return Err(StoreError::Config(
                "an access key id and its secret go together; one of them is missing".into(),
            ));
        }
    };
    let proof = match (&config.role_arn, &config.web_identity_token_file, keys) {
        (Some(_), Some(file), _) => Proof::TokenFile(file.clone()),
        (Some(_), None, Some(keys)) => Proof::Keys(keys),
        (None, _, Some(keys)) => return Ok(Some(Arc::new(StaticCredentialProvider::new(keys)))),
        (Some(_), None, None) => {
            let why = "a role needs keys or a web identity token file to be assumed with";
            return Err(StoreError::Config(why.into()));
        }
        (None, Some(_), None) => {
            return Err(StoreError::Config("a web identity token file needs a role to assume".into()));
        }
        (None, None, None) => return Ok(None),
    };
    let region = config.region();
    let endpoint = config
        .sts_endpoint
        .clone()
        .or_else(|| config.custom_endpoint())
        .unwrap_or_else(|| format!("https://sts.{region}.amazonaws.com"));
    let client = connect(Some(&endpoint))?;
    Ok(Some(Arc::new(Refreshing::new(Sts {
        endpoint,
        region,
        role_arn: config.role_arn.clone().unwrap_or_default(),
        proof,
        client,
    }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_endpoint(endpoint: &str) -> S3Config {
        S3Config { endpoint: Some(endpoint.into()), ..S3Config::default() }
    }

    #[test]
    fn the_global_endpoint_means_no_custom_endpoint() {
        for text in ["https://s3.amazonaws.com", "https://s3.amazonaws.com/", "s3.amazonaws.com", " ", ""] {
            assert_eq!(with_endpoint(text).custom_endpoint(), None, "{text}");
        }
        let local = with_endpoint("http://127.0.0.1:8333/").custom_endpoint();
        assert_eq!(local.as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!(with_endpoint("minio.lan").custom_endpoint().as_deref(), Some("https://minio.lan"));
    }

    #[test]
    fn a_custom_endpoint_gets_path_style_unless_told_otherwise() {
        let name: BucketName = "sm-a-raw".parse().expect("legal");
        let address = |endpoint: &str, path_style| {
            let config = S3Config { path_style, region: Some("eu-west-1".into()), ..with_endpoint(endpoint) };
            config.bucket_address(&name)
        };
        assert_eq!(address("https://minio.lan", None), "https://minio.lan/sm-a-raw");
        assert_eq!(address("https://minio.lan", Some(false)), "https://sm-a-raw.minio.lan");
        assert_eq!(address("https://s3.amazonaws.com", None), "https://sm-a-raw.s3.eu-west-1.amazonaws.com");
        assert_eq!(address("", Some(true)), "https://s3.eu-west-1.amazonaws.com/sm-a-raw");
    }

    #[test]
    fn half_a_pair_of_keys_or_a_role_without_proof_is_refused() {
        let half = S3Config { access_key_id: Some("k".into()), ..S3Config::default() };
        let unproved = S3Config { role_arn: Some("arn:aws:iam::1:role/r".into()), ..S3Config::default() };
        let roleless = S3Config { web_identity_token_file: Some("/token".into()), ..S3Config::default() };
        for config in [half, unproved, roleless] {
            assert!(matches!(Clients::new(config), Err(StoreError::Config(_))));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = S3Config {
            secret_access_key: Some("hush".into()),
            session_token: Some("hush".into()),
            ..S3Config::default()
        };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
