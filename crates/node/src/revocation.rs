//! What ends when somebody may not be here any more: the answers under way, and what was left here between requests (sessions,
//! transactions, prepared statements, held answers, asynchronous queries).
//!
//! One task looks, when the control store has a new version, when the issuer's keys have changed, and when the next token ends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::clock;
use crate::flight::Flight;
use crate::router;

/// Wall clocks are set now and then: nobody sleeps longer without a look at them.
const LONGEST: Duration = Duration::from_secs(30);

/// Ends what has to end, until cancelled.
pub async fn watch(app: Arc<App>, flight: Arc<Flight>, stop: CancellationToken) {
    let watch = async {
        loop {
            // Before the look, so that no change falls in between.
            let (control, keys) = (app.control.changes(), app.identity.issuer.as_ref().map(|issuer| issuer.changes()));
            let state = app.control.state();
            let now = app.now(&state);
            let gone = app.guests.away(&app.guests.look(&now));
            if !gone.is_empty() {
                end(&app, &flight, &gone).await;
            }
            close_dropped(&app);
            let next = app.guests.next_end_us(&now).map_or(LONGEST, |until| {
                Duration::from_micros(u64::try_from(until - clock::now_us()).unwrap_or(0)).min(LONGEST)
            });
            let keys = async {
                match keys {
                    Some(keys) => keys.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = control => {}
                () = keys => {}
                () = app.guests.sooner() => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    };
    stop.run_until_cancelled(watch).await;
}

/// Nothing of theirs goes on.
async fn end(app: &Arc<App>, flight: &Flight, gone: &HashSet<String>) {
    tracing::info!(principals = gone.len(), "tokens were revoked or have ended: what ran for them is stopped");
    app.jobs.end_of(gone);
    flight.forget(gone);
    for id in app.marts.open_ids() {
        let Some(live) = app.marts.get(&id).and_then(|mart| mart.watcher().live_now()) else { continue };
        let (gone, guests) = (gone.clone(), app.guests.clone());
        // An engine that is slow to answer holds up nobody else's end.
        tokio::spawn(async move {
            for principal in guests.away(&gone) {
                if let Err(error) = router::end_principal(&live, &principal).await {
                    tracing::debug!(%error, "an engine did not end a principal's sessions; they end when they are idle");
                }
            }
        });
    }
}

/// Another node may have dropped a mart that is open here.
fn close_dropped(app: &Arc<App>) {
    for id in app.marts.open_ids() {
        let Some(life) = app.marts.get(&id).map(|mart| mart.incarnation()) else { continue };
        // Read after that: a mart is known before it is opened.
        if app.control.state().mart(&id).map(|entry| entry.incarnation) != Some(life) {
            let app = app.clone();
            tokio::spawn(async move { app.marts.close(&id, life).await });
        }
    }
}
