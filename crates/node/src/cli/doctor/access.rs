//! `tarn doctor` on who is let in: with which certificate, can the audit log be written, are the issuer's keys to be had.

use std::fs::OpenOptions;

use super::{Report, Verdict, note};
use crate::auth::issuer::Issuer;
use crate::config::{AuditTo, Config};
use crate::tls::{self, Certificate};

pub(super) async fn check(config: &Config, report: &mut Report) {
    check_audit(config, report);
    check_certificate(config, report);
    let Some(rules) = config.oidc.clone() else { return };
    let name = rules.issuer.clone();
    let found = match Issuer::new(rules) {
        Ok(issuer) => issuer.look().await,
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(keys) => note(report, "issuer", Verdict::Ok, format!("`{name}` lists {keys} keys that count here"), ""),
        Err(error) => note(
            report,
            "issuer",
            Verdict::Fail,
            format!("the keys of `{name}` can't be fetched: {error}"),
            "without them its tokens are refused: check `oidc_issuer` (exactly as in the tokens), or set `oidc_jwks_url`",
        ),
    }
}

fn check_certificate(config: &Config, report: &mut Report) {
    match &config.tls {
        Some(files) => match Certificate::load(files) {
            Ok(_) => {
                note(report, "certificate", Verdict::Ok, format!("`{}` and its key fit", files.chain.display()), "")
            }
            Err(error) => note(
                report,
                "certificate",
                Verdict::Fail,
                error.to_string(),
                "give a certificate and its own key, both in PEM, to `tls_cert` and `tls_key`",
            ),
        },
        None if config.listen.ip().is_loopback() => note(report, "certificate", Verdict::Ok, "none, on loopback", ""),
        None => note(
            report,
            "certificate",
            Verdict::Warn,
            "none: tokens and data cross the network in the clear",
            "set `tls_cert` and `tls_key`, or let only a proxy with TLS reach the port",
        ),
    }
    if let Err(error) = tls::trust(config.tls_ca.as_deref()) {
        note(report, "authorities", Verdict::Fail, error.to_string(), "give certificates in PEM to `tls_ca`");
    }
}

fn check_audit(config: &Config, report: &mut Report) {
    match &config.audit.to {
        AuditTo::None => note(
            report,
            "audit log",
            Verdict::Warn,
            "there is none: `audit` is `none`",
            "leave `audit` out to have it in the state directory",
        ),
        AuditTo::Stdout => note(report, "audit log", Verdict::Ok, "on standard output", ""),
        AuditTo::File(path) => {
            // Not made if it is missing: a check leaves nothing behind.
            let opened = match path.exists() {
                true => OpenOptions::new().append(true).open(path).map(drop),
                false => path.parent().map_or(Ok(()), |parent| std::fs::metadata(parent).map(drop)),
            };
            match opened {
                Ok(()) => note(report, "audit log", Verdict::Ok, format!("`{}`", path.display()), ""),
                Err(error) => note(
                    report,
                    "audit log",
                    Verdict::Fail,
                    format!("`{}`: {error}", path.display()),
                    "choose another with --audit, or give this user the right to write there",
                ),
            }
        }
    }
}
