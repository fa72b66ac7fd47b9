//! What a job does: a lone read keeps its rows in a session of the engine, anything else runs once and its answer is kept.
//!
//! # Cancellation
//! A query that the engine has is stopped there and its answer waited for, so that it is known what it did. One that has not been sent
//! is dropped.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use engine::wire::{Kept, NO_SESSION};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::super::query::{self, Checked, is_lone_read};
use super::super::{App, Shared};
use crate::error::{ApiError, Code, Outcome};
use crate::jobs::{self, Answer, End, Job, Rows};
use crate::router::{self, Ask, Committed, DURABLE, POSITION, Who};

/// The engine is told again after so long, until it knows the query.
const AGAIN: Duration = Duration::from_millis(20);
/// An engine's own words are short.
const MOST_WORDS: usize = 64 << 10;

/// Runs a job.
pub(super) async fn run(app: Shared, job: Arc<Job>, checked: Checked) -> End {
    let work = async {
        if checked.at.is_none() && is_lone_read(&checked.sql) {
            match keep_rows(&app, &checked).await {
                // A mart in which a view may write: there the engine keeps no rows.
                Err(error) if error.code == Code::Invalid => {}
                kept => return kept,
            }
        }
        keep_answer(&app, &job, checked).await
    };
    let mut work = pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        () = job.cancelled() => stop(&app, &job, work).await,
    };
    match done {
        Ok(end) => end,
        Err(error) if error.code == Code::Cancelled && job.is_cancelled() => End::Cancelled(error.request_id(job.id)),
        // All that its principal had was ended, the session for its rows before it.
        Err(error) if *error.message == *NO_SESSION && job.is_cancelled() => {
            End::Cancelled(jobs::cancelled().request_id(job.id))
        }
        Err(error) => End::Failed(error.request_id(job.id)),
    }
}

/// Has the work stopped, and says what became of it.
async fn stop(
    app: &App,
    job: &Job,
    mut work: Pin<&mut impl Future<Output = Result<End, ApiError>>>,
) -> Result<End, ApiError> {
    loop {
        // It goes out only under its entry.
        if !app.running.knows(job.id) {
            return Err(jobs::cancelled());
        }
        tokio::select! {
            biased;
            done = &mut work => return done,
            told = app.running.stop(job.id) => if told {
                return work.await;
            },
        }
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn keep_rows(app: &App, checked: &Checked) -> Result<End, ApiError> {
    let mart = app.mart(&checked.mart).await?;
    let live = mart.live().await?;
    let _entry = app.admit(&checked.ask, &checked.mart, &live).await?;
    let who = Who { principal: checked.ask.principal.clone(), role: checked.ask.role };
    let session = router::open_session(&live, &who).await?;
    let live_until = Arc::downgrade(&live);
    let mut rows = Rows {
        live: live_until,
        who,
        session,
        rows: 0,
        most: checked.max_rows,
        position: None,
        durable: false,
        profile: checked.ask.profile.clone(),
    };
    let kept = async {
        let body = query::keep_body(checked, session)?;
        // Without a key: a read may run again, and does for whoever sends it again.
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        let ask = Ask { headers, ..checked.ask.clone() };
        let answer = successful(router::query(&mart, live, &ask, body.into(), app.config.durable_wait).await?)?;
        (rows.position, rows.durable) = moment(answer.headers());
        let broken = |cause: &dyn std::fmt::Display| ApiError::internal("what was kept can't be read", cause);
        let words = Limited::new(answer.into_body(), MOST_WORDS).collect().await.map_err(|error| broken(&error))?;
        let Kept { rows } = serde_json::from_slice(&words.to_bytes()).map_err(|error| broken(&error))?;
        Ok::<u64, ApiError>(rows)
    };
    match kept.await {
        Ok(count) => {
            rows.rows = rows.most.map_or(count, |most| count.min(most));
            Ok(End::Rows(rows))
        }
        Err(error) => {
            rows.close().await;
            if error.code == Code::Invalid {
                // It is about to be sent again under its id, which the engine gives back just after its answer.
                while app.running.progress(checked.ask.id).await.is_some() {
                    tokio::time::sleep(AGAIN).await;
                }
            }
            Err(error)
        }
    }
}

async fn keep_answer(app: &App, job: &Job, checked: Checked) -> Result<End, ApiError> {
    let answer = successful(query::answer(app, checked).await?)?;
    let committed = answer.extensions().get::<Committed>().is_some();
    let (head, body) = answer.into_parts();
    let mut headers = head.headers;
    let position = headers.get(POSITION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let placed = |error: ApiError| match (&position, committed) {
        (Some(position), true) => error.outcome(Outcome::Committed).position(position),
        _ => error,
    };
    let whole = match Limited::new(body, Answer::MOST_BYTES).collect().await {
        Ok(whole) => whole,
        Err(error) if error.is::<LengthLimitError>() => {
            let text = format!("the answer has more than {} bytes", Answer::MOST_BYTES);
            return Err(placed(ApiError::new(Code::TooLarge, text)).hint(
                "only the rows of a lone query that reads, at the present, are kept whatever their size; `POST …/query` streams",
            ));
        }
        Err(_) if job.is_cancelled() => return Err(placed(jobs::cancelled())),
        Err(_) => {
            return Err(placed(ApiError::new(Code::Sql, "the query failed after its answer had begun"))
                .hint("`POST …/query` with its last statement alone says why"));
        }
    };
    // A read that turned out to write says so at its end.
    for (name, value) in whole.trailers().into_iter().flatten() {
        if name == POSITION || name == DURABLE {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.remove(http::header::TRAILER);
    Answer::keep(headers, whole.to_bytes(), app.jobs.budget()).map(End::Answer).map_err(placed)
}

/// An answer that is no refusal.
fn successful(answer: Response) -> Result<Response, ApiError> {
    match answer.extensions().get::<ApiError>() {
        Some(error) => Err(error.clone()),
        None => Ok(answer),
    }
}

fn moment(headers: &HeaderMap) -> (Option<replica::Position>, bool) {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    (text(POSITION).and_then(|text| text.parse().ok()), text(DURABLE) == Some("object"))
}
