//! One line of the audit log. `docs/access.md` tells what is in it; fields are added, never renamed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use uuid::Uuid;

use crate::auth::Kind;
use crate::clock;
use crate::config::AuditSql;
use crate::names::MartId;
use crate::visit::{Noted, Visit};

/// What is known of a request when it has ended.
pub struct Record {
    time_us: i64,
    started: Instant,
    took: Duration,
    action: String,
    forwarded: bool,
    noted: Noted,
    /// The contract's word for what came of it.
    pub outcome: String,
    /// Rows that it changed, where the answer says so.
    pub rows: Option<u64>,
    /// Bytes of its answer.
    pub bytes: u64,
}

/// As it is written.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    time: String,
    action: &'a str,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<engine::wire::Role>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mart: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sql_blake3: Option<&'a str>,
    peer: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    forwarded: bool,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    bytes: u64,
}

impl Record {
    /// Of a request that begins.
    pub fn begin(action: String, forwarded: bool) -> Self {
        Self {
            time_us: clock::now_us(),
            started: Instant::now(),
            took: Duration::ZERO,
            action,
            forwarded,
            noted: Noted::default(),
            outcome: "ok".into(),
            rows: None,
            bytes: 0,
        }
    }

    /// It has ended: takes in what was noted. False if it is not to be written.
    pub fn end(&mut self, visit: &Visit) -> bool {
        self.noted = visit.noted();
        self.took = self.started.elapsed();
        !self.noted.untold
    }

    /// The query that it was, if it was one that ran here: of which mart, of which kind, and how long it took.
    pub fn query(&self) -> Option<(&MartId, &'static str, Duration)> {
        // What is only handed in has a line of its own when it has run.
        let ran = self.action != "query.submit";
        Some((self.noted.mart.as_ref()?, self.noted.kind.filter(|_| ran)?, self.took))
    }

    /// When it began, in microseconds since 1970.
    pub fn began_us(&self) -> i64 {
        self.time_us
    }

    /// When it began, and how long it took.
    pub fn span(&self) -> (SystemTime, Duration) {
        (UNIX_EPOCH + Duration::from_micros(self.time_us.unsigned_abs()), self.took)
    }

    /// The word for what it does.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// What is known of it.
    pub fn noted(&self) -> &Noted {
        &self.noted
    }

    pub(super) fn shown(&self, sql: AuditSql) -> Shown<'_> {
        let noted = &self.noted;
        let principal = noted.principal.as_deref();
        let mart: Option<&MartId> = noted.mart.as_ref();
        let kept = noted.sql.as_deref();
        Shown {
            time: clock::rfc3339_us(self.time_us),
            action: &self.action,
            outcome: &self.outcome,
            reason: noted.refused,
            repeated: noted.repeated,
            principal: principal.map(|principal| principal.id.as_str()),
            name: principal.map(|principal| principal.name.as_str()).filter(|name| !name.is_empty()),
            auth: principal.map(|principal| match principal.kind {
                Kind::Admin => "admin",
                Kind::Token => "token",
                Kind::Jwt(_) => "jwt",
            }),
            role: principal.map(|principal| principal.role),
            tenant: mart.map(|id| id.tenant.as_str()).or(noted.tenant.as_ref().map(|tenant| tenant.as_str())),
            mart: mart.map(|id| id.mart.as_str()),
            object: noted.object.as_deref(),
            query: noted.query,
            kind: noted.kind,
            sql: kept.filter(|_| sql == AuditSql::Text),
            sql_blake3: kept.filter(|_| sql == AuditSql::Hash),
            peer: noted.peer.map(|peer| peer.to_string()),
            forwarded: self.forwarded,
            duration_ms: (self.took.as_secs_f64() * 1e6).round() / 1e3,
            rows: self.rows,
            bytes: self.bytes,
        }
    }
}
