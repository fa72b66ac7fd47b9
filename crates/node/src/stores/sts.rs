//! Asking a Security Token Service for temporary credentials: AssumeRole (signed with the configured keys) and
//! AssumeRoleWithWebIdentity (with a token file that its owner rotates, read anew each time).
//!
//! Speaks the AWS query protocol, version 2011-06-15, to AWS or to the S3 endpoint itself where one is configured (as
//! SeaweedFS, MinIO and Ceph have it). Keeps nothing: [`super::credentials`] does.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use http::header::{ACCEPT, CONTENT_TYPE};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};

use super::credentials::Issuer;
use super::lister::percent_encoded;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// How long we ask for; the service may give less.
const WANTED_SECONDS: &str = "3600";
/// A token service that takes longer than this counts as away.
const DEADLINE: Duration = Duration::from_secs(20);

/// One role at one token service.
pub(super) struct Sts {
    /// Where the service listens, with scheme.
    pub endpoint: String,
    /// For the signature.
    pub region: String,
    /// The role to take.
    pub role_arn: String,
    /// What we prove ourselves with.
    pub proof: Proof,
    /// The client to ask with.
    pub client: HttpClient,
}

/// What entitles us to the role.
pub(super) enum Proof {
    /// Keys of our own, which sign the request.
    Keys(AwsCredential),
    /// A file holding a web identity token.
    TokenFile(PathBuf),
}

impl std::fmt::Debug for Sts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sts").field("role_arn", &self.role_arn).finish_non_exhaustive()
    }
}

#[async_trait]
impl Issuer for Sts {
    async fn issue(&self) -> Result<(AwsCredential, Duration), AnyError> {
        let request = self.request().await?;
        let answer = tokio::time::timeout(DEADLINE, async {
            let answer = self.client.execute(request).await?;
            let status = answer.status();
            let body = answer.into_body().bytes().await?;
            Ok::<_, AnyError>((status, body))
        });
        let (status, body) = answer.await.map_err(|_| "the token service did not answer in time")??;
        let text = std::str::from_utf8(&body).map_err(|_| "the token service's answer is not text")?;
        if !status.is_success() {
            let code = element(text, "Code").unwrap_or_else(|| "no code".into());
            return Err(format!("the token service refused role `{}`: {status}, {code}", self.role_arn).into());
        }
        parse(text, Utc::now())
    }
}

impl Sts {
    async fn request(&self) -> Result<HttpRequest, AnyError> {
        let mut form = vec![
            "Version=2011-06-15&RoleSessionName=tarn".to_owned(),
            format!("DurationSeconds={WANTED_SECONDS}"),
            format!("RoleArn={}", percent_encoded(&self.role_arn)),
        ];
        match &self.proof {
            Proof::Keys(_) => form.push("Action=AssumeRole".to_owned()),
            Proof::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|e| format!("the web identity token file can't be read: {e}"))?;
                form.push("Action=AssumeRoleWithWebIdentity".to_owned());
                form.push(format!("WebIdentityToken={}", percent_encoded(token.trim())));
            }
        }
        let mut request = http::Request::post(format!("{}/", self.endpoint.trim_end_matches('/')))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/xml")
            .body(HttpRequestBody::from(form.join("&")))?;
        if let Proof::Keys(keys) = &self.proof {
            AwsAuthorizer::new(keys, "sts", &self.region).authorize(&mut request, None);
        }
        Ok(request)
    }
}

fn parse(xml: &str, now: DateTime<Utc>) -> Result<(AwsCredential, Duration), AnyError> {
    let part = |name: &str| element(xml, name).ok_or_else(|| format!("the token service's answer lacks `{name}`"));
    let expires = DateTime::parse_from_rfc3339(&part("Expiration")?)?.with_timezone(&Utc);
    let life = (expires - now).to_std().map_err(|_| "the token service gave credentials that have expired")?;
    let credential = AwsCredential {
        key_id: part("AccessKeyId")?,
        secret_key: part("SecretAccessKey")?,
        token: Some(part("SessionToken")?),
    };
    Ok((credential, life))
}

/// The text of the first `<name>` element. The answers hold flat text elements only, without attributes or CDATA.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text.trim();
    let text = text.replace("&quot;", "\"").replace("&apos;", "'").replace("&lt;", "<");
    Some(text.replace("&gt;", ">").replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"<?xml version="1.0"?><AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
        <AssumeRoleResult><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/tarn</Arn></AssumedRoleUser><Credentials>
        <AccessKeyId>AK</AccessKeyId><SecretAccessKey>a/b+c=</SecretAccessKey><SessionToken>x&amp;y==</SessionToken>
        <Expiration>2030-01-01T01:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"#;

    /// A token service that knows one token, and the address it listens on.
    async fn service() -> String {
        let answer = |form: String| async move {
            let wanted = "WebIdentityToken=good%2F2";
            match form.contains("Action=AssumeRoleWithWebIdentity") && form.split('&').any(|pair| pair == wanted) {
                true => (http::StatusCode::OK, ANSWER.replace("2030", "2130")),
                false => (http::StatusCode::FORBIDDEN, "<Error><Code>ExpiredToken</Code></Error>".to_owned()),
            }
        };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let router = axum::Router::new().route("/", axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        endpoint
    }

    #[tokio::test]
    async fn a_rotated_web_identity_token_is_read_anew_and_a_refusal_names_the_role() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        std::fs::write(&file, "old/1\n").expect("written");
        let sts = Sts {
            endpoint: service().await,
            region: "us-east-1".into(),
            role_arn: "arn:aws:iam::1:role/r".into(),
            proof: Proof::TokenFile(file.clone()),
            client: HttpClient::new(reqwest::Client::new()),
        };
        let refused = sts.issue().await.expect_err("an expired token").to_string();
        assert!(refused.contains("role/r") && refused.contains("ExpiredToken"), "{refused}");
        std::fs::write(&file, "good/2\n").expect("rotated");
        let (credential, life) = sts.issue().await.expect("a good token");
        assert_eq!(credential.key_id, "AK");
        assert!(life > Duration::from_secs(3600));
    }

    #[test]
    fn an_answer_is_read_whole() {
        let now = "2030-01-01T00:15:00Z".parse().expect("a time");
        let (credential, life) = parse(ANSWER, now).expect("a good answer");
        assert_eq!((credential.key_id.as_str(), credential.secret_key.as_str()), ("AK", "a/b+c="));
        assert_eq!(credential.token.as_deref(), Some("x&y=="));
        assert_eq!(life, Duration::from_secs(2700));
    }

    #[test]
    fn expired_or_partial_answers_are_errors() {
        let now = "2030-01-01T01:00:01Z".parse().expect("a time");
        assert!(parse(ANSWER, now).is_err());
        let now = "2030-01-01T00:00:00Z".parse().expect("a time");
        assert!(parse(&ANSWER.replace("SessionToken", "Other"), now).is_err());
    }
}
