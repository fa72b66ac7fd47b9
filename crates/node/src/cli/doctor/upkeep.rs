//! Whether marts are looked after: when each kind of upkeep was last done, as their own logs tell.

use object_store::path::Path as Key;
use replica::MartReplica;

use super::{Report, Verdict, note};
use crate::clock;
use crate::config::Config;
use crate::control::State;
use crate::names::{MartId, Tenant};
use crate::stores::Bucket;
use crate::upkeep::due::{Job, overdue};

/// So many marts of a tenant are looked at: each is a few reads.
const MOST_MARTS: usize = 100;

pub(super) async fn check(config: &Config, bucket: &Bucket, tenant: &Tenant, state: &State, report: &mut Report) {
    let Some(entry) = state.tenants.get(tenant) else { return };
    let mut read = Vec::new();
    for (mart, entry) in entry.marts.iter().take(MOST_MARTS) {
        let replica = MartReplica::new(bucket.replica(), Key::from(format!("duckdb/{mart}")), entry.incarnation);
        match replica.look().await {
            Ok(looked) => read.push((MartId { tenant: tenant.clone(), mart: mart.clone() }, looked.names)),
            Err(error) => {
                let advice = "`tarn verify` says what is damaged";
                note(report, format!("log of {tenant}/{mart}"), Verdict::Fail, error.to_string(), advice);
            }
        }
    }
    let left = entry.marts.len().saturating_sub(MOST_MARTS);
    let of_all = if left > 0 { format!(" ({left} more marts were not looked at)") } else { String::new() };
    for job in Job::ALL {
        let Some(every) = job.every(&config.upkeep) else { continue };
        let done: Vec<i64> = read.iter().filter_map(|(_, names)| names.done.get(job.name()).copied()).collect();
        let Some(oldest) = done.iter().min() else { continue };
        let late: Vec<_> =
            read.iter().filter(|(id, names)| overdue(names, job, every, id)).map(|(id, _)| id.to_string()).collect();
        let found = format!("of {} marts, the oldest at {}{of_all}", done.len(), clock::rfc3339(*oldest));
        let what = format!("{} of tenant {tenant}", job.name());
        if late.is_empty() {
            note(report, what, Verdict::Ok, found, "");
        } else {
            let found = format!("{found}; overdue for {}", late.join(", "));
            note(
                report,
                what,
                Verdict::Warn,
                found,
                "a running node does it within minutes; its log says why if it can't",
            );
        }
    }
}
