//! A store that fails on purpose, for tests: wraps any other and asks a rule before every call.
//!
//! Models what networks do to puts: applied though the answer is lost, refused though nothing is there, stored in part.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Overwriting or creating put.
    Put,
    /// Body, whole or in part.
    Get,
    /// Existence.
    Head,
    /// Any listing.
    List,
    /// Removal of one key.
    Delete,
    /// Copy or start of a multipart upload.
    Other,
}

/// A call about to be made.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number, from 0.
    pub index: usize,
    /// What it does.
    pub op: Op,
    /// To which key (or prefix).
    pub key: Key,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Applied, then 503.
    LostAck,
    /// 503, not applied.
    Unavailable,
    /// 412, not applied: a lie about a create.
    Refused,
    /// 409, not applied (a conflicting request was under way).
    Conflict,
    /// Late, but fine.
    Slow(Duration),
    /// A put that stores half the body, then 503.
    Torn,
    /// A read with one bit flipped.
    BitFlip,
    /// A read of an object that is there says it is not.
    Missing,
}

type Rule = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

/// The wrapper.
#[derive(Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

struct State {
    rule: Rule,
    calls: Vec<Call>,
}

impl FaultyStore {
    /// `rule` is asked before every call and says what goes wrong, if anything.
    pub fn new(inner: Arc<dyn ObjectStore>, rule: impl FnMut(&Call) -> Option<Fault> + Send + 'static) -> Self {
        Self { inner, state: Arc::new(Mutex::new(State { rule: Box::new(rule), calls: Vec::new() })) }
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).calls.clone()
    }

    /// Another rule from now on.
    pub fn set_rule(&self, rule: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).rule = Box::new(rule);
    }

    fn fault(&self, op: Op, key: &Key) -> Option<Fault> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let call = Call { index: state.calls.len(), op, key: key.clone() };
        state.calls.push(call.clone());
        (state.rule)(&call)
    }

    /// Faults that happen before the call; `Ok` if the call is to be made.
    async fn before(fault: Option<Fault>, key: &Key) -> Result<()> {
        match fault {
            Some(Fault::Unavailable) => Err(unavailable()),
            Some(Fault::Refused | Fault::Conflict) => {
                Err(Error::AlreadyExists { path: key.to_string(), source: "injected".into() })
            }
            Some(Fault::Missing) => Err(Error::NotFound { path: key.to_string(), source: "injected".into() }),
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.inner)
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "faulty", source: "injected: 503".into() }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Key, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let fault = self.fault(Op::Put, location);
        Self::before(fault, location).await?;
        match fault {
            Some(Fault::LostAck) => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(unavailable())
            }
            Some(Fault::Torn) => {
                let whole = Bytes::from(payload);
                let half = whole.slice(..whole.len() / 2);
                self.inner.put_opts(location, half.into(), opts).await?;
                Err(unavailable())
            }
            _ => self.inner.put_opts(location, payload, opts).await,
        }
    }

    async fn put_multipart_opts(&self, location: &Key, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Self::before(self.fault(Op::Other, location), location).await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        let fault = self.fault(if options.head { Op::Head } else { Op::Get }, location);
        Self::before(fault, location).await?;
        let result = self.inner.get_opts(location, options).await?;
        match fault {
            Some(Fault::LostAck) => Err(unavailable()),
            Some(Fault::BitFlip) => {
                let (meta, range, attributes) = (result.meta.clone(), result.range.clone(), result.attributes.clone());
                let mut body = BytesMut::from(result.bytes().await?);
                let middle = body.len() / 2;
                if let Some(byte) = body.get_mut(middle) {
                    *byte ^= 0x10;
                }
                let payload = GetResultPayload::Stream(stream::once(async { Ok(body.freeze()) }).boxed());
                Ok(GetResult { payload, meta, range, attributes })
            }
            _ => Ok(result),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let store = self.clone();
        let checked = locations.and_then(move |key| {
            let fault = store.fault(Op::Delete, &key);
            async move { Self::before(fault, &key).await.map(|()| key) }
        });
        self.inner.delete_stream(checked.boxed())
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let key = prefix.cloned().unwrap_or_default();
        match self.fault(Op::List, &key) {
            Some(Fault::Unavailable | Fault::LostAck) => stream::once(async { Err(unavailable()) }).boxed(),
            _ => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let key = prefix.cloned().unwrap_or_default();
        Self::before(self.fault(Op::List, &key), &key).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        Self::before(self.fault(Op::Other, to), to).await?;
        self.inner.copy_opts(from, to, options).await
    }
}
