//! Workflows: deterministic orders of activities.

pub mod maintenance;
pub mod transform;

use std::time::Duration;

use temporalio_common::RetryPolicy;
use temporalio_common::error::IncomingError;
use temporalio_sdk::{
    ActivityCancellationType, ActivityCloseTimeouts, ActivityExecutionError, ActivityOptions, ApplicationFailure,
    WorkflowCancellationToken,
};

use crate::definition::Limits;

/// A worker that is silent so long is taken for dead. Told progress every second.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How an activity is run: as long as time can heal what is wrong, and until it has really stopped when it is cancelled.
fn options(id: impl Into<String>, limits: &Limits, stop: WorkflowCancellationToken) -> ActivityOptions {
    let id = id.into();
    let retry = RetryPolicy::builder()
        .initial_interval(Duration::from_millis(500))
        .maximum_interval(Duration::from_secs(15))
        .build();
    let (schedule, start) = (limits.retry(), limits.timeout().min(limits.retry()));
    ActivityOptions::with_close_timeouts(ActivityCloseTimeouts::ScheduleAndStartToClose {
        schedule_to_close: schedule,
        start_to_close: start,
    })
    .activity_id(id.clone())
    .summary(id)
    .heartbeat_timeout(HEARTBEAT)
    .retry_policy(retry)
    .cancellation_type(ActivityCancellationType::WaitCancellationCompleted)
    .cancellation_token(stop)
    .build()
}

/// What went wrong, and with what.
#[derive(Debug)]
struct Failed {
    code: String,
    text: String,
    cancelled: bool,
}

impl Failed {
    fn new(what: &str, error: &ActivityExecutionError) -> Self {
        let cancelled = matches!(error, ActivityExecutionError::Cancelled(_));
        let mut cause = error.cause();
        let mut timed_out = false;
        while let Some(inner) = cause {
            match inner {
                IncomingError::Application(failure) => {
                    let code = failure.type_name().unwrap_or("internal").to_owned();
                    let late = if timed_out { " (tried as long as it may be)" } else { "" };
                    return Self { code, text: format!("{what}: {failure}{late}"), cancelled };
                }
                IncomingError::Timeout(_) => timed_out = true,
                _ => {}
            }
            cause = inner.cause();
        }
        let code = if timed_out { "timeout" } else { "internal" };
        Self { code: code.into(), text: format!("{what}: {error}"), cancelled }
    }

    fn invalid(text: impl Into<String>) -> Self {
        Self { code: "invalid".into(), text: text.into(), cancelled: false }
    }

    fn and(mut self, more: &str) -> Self {
        self.text = format!("{}; {more}", self.text);
        self
    }

    /// The end of a workflow: to run it again is for people or its schedule to decide.
    fn application(self) -> ApplicationFailure {
        ApplicationFailure::builder(self.text).type_name(self.code).non_retryable(true).build()
    }
}
