//! Short work goes first: a tenant whose queries run long has less weight for processor time than one whose queries are all short.
//!
//! Tenants with long work are equal among themselves, and so are those with short work. Whoever waits for a chart feels little of
//! somebody's batch; the batch keeps its smaller weight at the worst, and all that nobody else wants.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::names::Tenant;

/// A query is long from then on.
const LONG: Duration = Duration::from_secs(1);
/// So long after its last long query a tenant counts as one that has them: whoever sends the next one at once gains nothing.
const MEMORY: Duration = Duration::from_secs(10);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Tenants with long work, and until when they count as such.
#[derive(Debug, Default)]
struct Precedence(HashMap<Tenant, Instant>);

impl Precedence {
    /// Takes in who has a long query now; those who step back.
    fn look(&mut self, long: HashSet<Tenant>, now: Instant) -> HashSet<Tenant> {
        self.0.extend(long.into_iter().map(|tenant| (tenant, now + MEMORY)));
        self.0.retain(|_, until| *until > now);
        self.0.keys().cloned().collect()
    }
}

/// Weighs tenants until cancelled.
pub(crate) async fn run(app: &App, stop: CancellationToken) {
    let groups = app.marts.ground().groups.clone();
    let mut precedence = Precedence::default();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let now = Instant::now();
        groups.step_back(precedence.look(app.running.longer_than(LONG, now), now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_steps_back_and_comes_forward_after_a_while() {
        let [acme, other] = ["acme", "other"].map(|name| name.parse::<Tenant>().expect("legal"));
        let mut precedence = Precedence::default();
        let start = Instant::now();
        let mut look = |long: &[&Tenant], at| precedence.look(long.iter().copied().cloned().collect(), start + at);
        assert_eq!(look(&[], Duration::ZERO), HashSet::new());
        assert_eq!(look(&[&acme], Duration::ZERO), HashSet::from([acme.clone()]));
        assert_eq!(look(&[&other], MEMORY / 2), HashSet::from([acme.clone(), other.clone()]));
        assert_eq!(look(&[], MEMORY), HashSet::from([other]), "the first one's time is over");
        assert_eq!(look(&[], 2 * MEMORY), HashSet::new());
    }
}
