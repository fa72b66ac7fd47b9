//! A call that is watched: heartbeats with its progress while it runs, and an end to its query when the activity is cancelled.

use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde_json::{Value, json};
use temporalio_sdk::activities::{ActivityContext, ActivityError};
use uuid::Uuid;

use super::failed;
use crate::tarn::{Refusal, Tarn};

/// So often progress is asked for and told.
const BEAT: Duration = Duration::from_secs(1);
/// So long an answer about progress is waited for.
const ANSWERS: Duration = Duration::from_secs(2);
/// Times in a row that a node may be silent about a query that it is told to stop.
const SILENCE: u32 = 10;
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
        let called = call(&id);
        tokio::pin!(called);
        let (mut stopping, mut silent) = (false, 0);
        loop {
            let woken = async {
                tokio::select! {
                    () = tokio::time::sleep(BEAT) => {}
                    () = self.ctx.cancelled(), if !stopping => {}
                }
            };
            tokio::select! {
                biased;
                answer = &mut called => return outcome(answer, stopping),
                () = woken => {}
            }
            stopping = stopping || self.ctx.is_cancelled();
            let method = if stopping { Method::DELETE } else { Method::GET };
            // The call goes on meanwhile: it is what the answer of this is about.
            let told = tokio::select! {
                biased;
                answer = &mut called => return outcome(answer, stopping),
                told = tokio::time::timeout(ANSWERS, self.tarn.call(method, &path, None, &[])) => told,
            };
            let heard =
                matches!(&told, Ok(Ok(_))) || matches!(&told, Ok(Err(refusal)) if refusal.code != "unavailable");
            silent = if heard { 0 } else { silent + 1 };
            if stopping && silent >= SILENCE {
                return Err(ActivityError::cancelled());
            }
            let progress = told.ok().and_then(Result::ok).map(|told| told["progress"].clone());
            let beat = self.ctx.record_heartbeat(json!({"progress": progress}));
            beat.await.map_err(|error| failed(Refusal::new("internal", error.to_string())))?;
        }
    }
}

/// What was done is done, also if it was to be stopped: who cancelled is told so.
fn outcome(answer: Result<Value, Refusal>, stopping: bool) -> Result<Value, ActivityError> {
    answer.map_err(|refusal| if stopping { ActivityError::cancelled() } else { failed(refusal) })
}
