//! A call that is watched: heartbeats with its progress while it runs, and an end to its query when the activity is cancelled.

use std::time::{Duration, SystemTime};

use futures::FutureExt;
use reqwest::Method;
use serde_json::{Value, json};
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use uuid::Uuid;

use super::failed;
use crate::tarn::{Refusal, Tarn};

/// So often progress is asked for and told.
const BEAT: Duration = Duration::from_secs(1);
/// How long a query that was told to stop may take for it.
const STOPS: Duration = Duration::from_secs(10);
/// A query ends so long before its activity times out, for its own error to be the one that is told.
const MARGIN: Duration = Duration::from_secs(1);

pub(super) struct Watch {
    ctx: ActivityContext,
    tarn: Tarn,
}

impl Watch {
    pub(super) fn new(ctx: ActivityContext, tarn: Tarn) -> Self {
        Self { ctx, tarn }
    }

    /// What is left of the activity's time.
    pub(super) fn timeout_ms(&self) -> Option<u64> {
        let left = self.ctx.info().deadline?.duration_since(SystemTime::now()).unwrap_or_default();
        u64::try_from(left.saturating_sub(MARGIN).max(MARGIN).as_millis()).ok()
    }

    /// The call gets the id under which its query is asked about and stopped.
    pub(super) async fn over(
        &self,
        call: impl AsyncFnOnce(&str) -> Result<Value, Refusal>,
    ) -> Result<Value, ActivityError> {
        let id = Uuid::new_v4().to_string();
        let path = format!("/v1/queries/{id}");
        let called = call(&id).fuse();
        let cancelled = self.ctx.cancelled().fuse();
        futures::pin_mut!(called, cancelled);
        loop {
            let beat = tokio::time::sleep(BEAT).fuse();
            futures::pin_mut!(beat);
            futures::select_biased! {
                answer = called => return answer.map_err(failed),
                () = cancelled => {
                    let stop = self.tarn.call(Method::DELETE, &path, None, &[]);
                    // What became of it is the next try's to find out, by its key.
                    let _ = tokio::time::timeout(STOPS, futures::future::join(stop, called)).await;
                    return Err(ActivityError::cancelled());
                }
                () = beat => {
                    // The call goes on meanwhile: it is what the answer of this is about.
                    let told = tokio::time::timeout(BEAT, self.tarn.call(Method::GET, &path, None, &[]));
                    let told = futures::select_biased! {
                        answer = called => return answer.map_err(failed),
                        told = told.fuse() => told,
                    };
                    let progress = told.ok().and_then(Result::ok).map(|told| told["progress"].clone());
                    self.ctx.record_heartbeat(json!({"progress": progress})).await.map_err(|error| failed(Refusal::new("internal", error.to_string())))?;
                }
            }
        }
    }
}
