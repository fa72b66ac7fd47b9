//! What clients carry for us: tickets, handles of prepared statements, ids of transactions. Opaque to them and signed, so that
//! nothing in them has to be believed: only what this installation wrote comes back.
//!
//! The key is made once, kept in the control store and mixed with the master key, so every node takes every node's tickets.
//!
//! **Invariant:** a paper counts only for the principal it was written for, and only as long as that principal may enter the mart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::call::Call;
use crate::app::App;
use crate::clock;
use crate::error::{ApiError, Code};
use crate::names::MartId;

/// Begins every paper; another layout gets another number.
const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
/// What the key is for, as `blake3::derive_key` wants it.
const CONTEXT: &str = "tarn 2026-11 flight tickets and handles v1";
/// A ticket counts so long.
const TICKET_US: i64 = 3600 * 1_000_000;

/// What a paper is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Matter {
    /// A read that runs when its ticket is presented.
    Read(Read),
    /// An answer that this node holds.
    Held(Uuid),
    /// A question about the mart: the command itself.
    Meta(Base64),
    /// A prepared statement on this node.
    Prepared(Uuid),
    /// A transaction on this node.
    Transaction(Uuid),
}

/// A read without a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Read {
    /// Names the read to those who cancel it.
    pub id: Uuid,
    pub sql: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params_arrow: Option<String>,
    /// The earlier moment it reads at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Bytes in JSON.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Base64(pub Bytes);

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(|bytes| Self(bytes.into())).map_err(serde::de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
struct Paper {
    principal: String,
    mart: String,
    /// Microseconds since the Unix epoch; none for what its own state expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until_us: Option<i64>,
    matter: Matter,
}

/// The installation's key.
#[derive(Clone)]
pub(super) struct Seal([u8; blake3::KEY_LEN]);

impl Seal {
    /// The key of this installation, made if there is none yet.
    pub(super) async fn of(app: &App) -> Result<Self, ApiError> {
        let kept = app.control.state().ticket_key.clone();
        let kept = match kept {
            Some(kept) => kept,
            None => {
                let mut bytes = [0; 32];
                rand::rng().fill_bytes(&mut bytes);
                let new = blake3::Hash::from_bytes(bytes).to_hex().to_string();
                // Another node may have been faster: then its key is the one.
                app.control.change(|state| Ok(state.ticket_key.get_or_insert_with(|| new.clone()).clone())).await?
            }
        };
        Ok(Self::new(&kept, app.config.master_key.as_deref()))
    }

    fn new(kept: &str, master: Option<&str>) -> Self {
        let mut material = blake3::Hasher::new_derive_key(CONTEXT);
        material.update(&(kept.len() as u64).to_le_bytes());
        material.update(kept.as_bytes());
        material.update(master.unwrap_or_default().as_bytes());
        Self(*material.finalize().as_bytes())
    }

    /// A key that everybody knows.
    pub(super) fn for_tests() -> Self {
        Self::new("", None)
    }

    /// Whether it was written with this key.
    pub(super) fn opens(&self, bytes: &[u8]) -> bool {
        self.open(bytes).is_some()
    }

    /// A paper about nothing that there is.
    pub(super) fn sample(&self) -> Bytes {
        let matter = Matter::Held(Uuid::nil());
        let paper = Paper { principal: "nobody".into(), mart: "no/where".into(), until_us: Some(0), matter };
        self.signed(&serde_json::to_vec(&paper).unwrap_or_default())
    }

    /// A ticket for whoever makes the call.
    pub(super) fn ticket(&self, call: &Call, matter: Matter) -> Result<Bytes, ApiError> {
        self.write(call, matter, Some(clock::now_us() + TICKET_US))
    }

    /// A handle or id, which counts as long as what it names is there.
    pub(super) fn handle(&self, call: &Call, matter: Matter) -> Result<Bytes, ApiError> {
        self.write(call, matter, None)
    }

    fn write(&self, call: &Call, matter: Matter, until_us: Option<i64>) -> Result<Bytes, ApiError> {
        let paper = Paper { principal: call.principal.id.clone(), mart: call.mart.to_string(), until_us, matter };
        let json = serde_json::to_vec(&paper).map_err(|error| ApiError::internal("a ticket is JSON", error))?;
        Ok(self.signed(&json))
    }

    fn signed(&self, json: &[u8]) -> Bytes {
        let mut bytes = Vec::with_capacity(1 + MAC_BYTES + json.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(blake3::keyed_hash(&self.0, json).as_bytes());
        bytes.extend_from_slice(json);
        bytes.into()
    }

    /// What a paper is about, and the call as one about the paper's mart.
    pub(super) fn read(&self, call: Call, bytes: &[u8]) -> Result<(Call, Matter), ApiError> {
        let paper = self.open(bytes).ok_or_else(garbled)?;
        if paper.principal != call.principal.id {
            return Err(ApiError::new(Code::NotFound, "no such ticket or handle").hint("it may be another principal's"));
        }
        if paper.until_us.is_some_and(|until| until < clock::now_us()) {
            return Err(ApiError::new(Code::NotFound, "the ticket has expired").hint("ask for the query's info again"));
        }
        let mart: MartId = paper.mart.parse().map_err(|_| garbled())?;
        Ok((call.about(&mart)?, paper.matter))
    }

    fn open(&self, bytes: &[u8]) -> Option<Paper> {
        let (version, rest) = bytes.split_first()?;
        let (mac, json) = rest.split_at_checked(MAC_BYTES)?;
        let mac: [u8; MAC_BYTES] = mac.try_into().ok()?;
        // blake3::Hash compares in constant time.
        let genuine = *version == VERSION && blake3::keyed_hash(&self.0, json) == blake3::Hash::from_bytes(mac);
        genuine.then(|| serde_json::from_slice(json).ok()).flatten()
    }
}

/// Why a paper that nobody here wrote is refused.
pub(super) fn garbled() -> ApiError {
    ApiError::new(Code::Invalid, "this is no ticket or handle of this server").hint("send it back as it was given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_with_the_key_opens() {
        let seal = Seal::new("a", None);
        let paper =
            Paper { principal: "p".into(), mart: "t/m".into(), until_us: None, matter: Matter::Held(Uuid::nil()) };
        let bytes = seal.signed(&serde_json::to_vec(&paper).expect("a paper is JSON")).to_vec();
        assert!(seal.open(&bytes).is_some());
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert!(seal.open(&wrong).is_none(), "byte {at}");
            assert!(seal.open(&bytes[..at]).is_none(), "cut at {at}");
        }
        for other in [Seal::new("b", None), Seal::new("a", Some("master"))] {
            assert!(other.open(&bytes).is_none());
        }
    }
}
