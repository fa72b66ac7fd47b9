//! `tarn doctor`: checks what a node needs, one line each, with what to do about what is missing. Changes nothing but a few probe
//! objects and files, which it removes.

mod access;
mod upkeep;

use std::path::Path;

use bytes::Bytes;
use engine::walls::Wall;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::Serialize;
use uuid::Uuid;

use super::client::block_on;
use super::flags::Settings;
use crate::clock;
use crate::cluster;
use crate::config::Config;
use crate::control::Control;
use crate::names::Tenant;
use crate::stores::{Bucket, BucketName, BucketStores, StoreConfig, Versioning};
use crate::supervisor::child;

const LITTLE_DISK_BYTES: u64 = 2 << 30;
const FEW_FILES: u64 = 4096;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Serialize)]
struct Finding {
    check: String,
    verdict: Verdict,
    found: String,
    /// What to do; empty if nothing.
    advice: String,
}

type Report = Vec<Finding>;

fn note(report: &mut Report, check: impl Into<String>, verdict: Verdict, found: impl Into<String>, advice: &str) {
    report.push(Finding { check: check.into(), verdict, found: found.into(), advice: advice.into() });
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.settings.load()?;
    let mut report = Report::new();
    check_state_dir(&config.state_dir, &mut report);
    check_machine(&config, &mut report);
    block_on(async {
        check_walls(&config, &mut report).await;
        access::check(&config, &mut report).await;
        check_store(&config, &mut report).await;
        Ok(())
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for finding in &report {
            let mark = match finding.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            println!("{mark}  {}: {}", finding.check, finding.found);
            if !finding.advice.is_empty() {
                println!("      → {}", finding.advice);
            }
        }
    }
    let failed = report.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
    if failed > 0 {
        anyhow::bail!("{failed} of {} checks failed", report.len());
    }
    Ok(())
}

fn check_state_dir(dir: &Path, report: &mut Report) {
    let probe = dir.join(format!(".doctor-{}", Uuid::new_v4().simple()));
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        std::fs::write(&probe, b"x")?;
        std::fs::File::open(&probe)?.sync_all()?;
        std::fs::remove_file(&probe)
    });
    match written {
        Ok(()) => note(report, "state directory", Verdict::Ok, format!("`{}` is writable", dir.display()), ""),
        Err(error) => {
            note(
                report,
                "state directory",
                Verdict::Fail,
                format!("`{}`: {error}", dir.display()),
                "choose another with --state-dir, or give this user the right to write there",
            );
            return;
        }
    }
    if let Ok(Some(kind)) = replica::mount::bridge(dir) {
        let advice =
            "use a local disk: what is durable is in the store, and a live database can't be kept on such a mount";
        note(report, "state directory", Verdict::Fail, format!("`{}` is on {kind}", dir.display()), advice);
    }
    match rustix::fs::statvfs(dir) {
        Ok(disk) => {
            let free = disk.f_bavail * disk.f_frsize;
            let (verdict, advice) = if free < LITTLE_DISK_BYTES {
                (Verdict::Warn, "engines spill and log here: free some space, or choose another --state-dir")
            } else {
                (Verdict::Ok, "")
            };
            note(report, "disk", verdict, format!("{} MB free", free >> 20), advice);
        }
        Err(error) => note(report, "disk", Verdict::Warn, error.to_string(), ""),
    }
}

fn check_machine(config: &Config, report: &mut Report) {
    let limits = &config.engine;
    match &limits.httpfs {
        Some(path) => note(report, "extensions", Verdict::Ok, format!("`{}`", path.display()), ""),
        None => note(
            report,
            "extensions",
            Verdict::Fail,
            "httpfs.duckdb_extension not found: SQL can't read `s3://`",
            "run scripts/setup, or say where it is with --extension-dir",
        ),
    }
    let found = format!(
        "{} MB and {} threads for each open mart's DuckDB, {} MB of spill",
        limits.memory_bytes >> 20,
        limits.threads,
        limits.temp_bytes >> 20
    );
    note(report, "engine limits", Verdict::Ok, found, "");
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let (verdict, advice) = if files < FEW_FILES {
        (Verdict::Warn, "raise it (`ulimit -n 65536`): connections, engines and files all need descriptors")
    } else {
        (Verdict::Ok, "")
    };
    note(report, "open files", verdict, format!("limit {files}"), advice);
}

/// Builds the walls around a process as around an engine, and tells what does not stand.
async fn check_walls(config: &Config, report: &mut Report) {
    let walls = match child::walls(&config.state_dir).await {
        Ok(walls) => walls,
        Err(error) => return note(report, "walls", Verdict::Fail, error.to_string(), "engines can't start like this"),
    };
    for wall in Wall::ALL {
        let what = format!("wall {wall}");
        match walls.lacking().find(|(lacking, _)| *lacking == wall) {
            None => note(report, what, Verdict::Ok, "stands", ""),
            Some((_, why)) => {
                let required = config.engine.required_walls.contains(&wall);
                let verdict = if required { Verdict::Fail } else { Verdict::Warn };
                let advice = format!("{}: docs/security.md says what it needs", wall.gap());
                note(report, what, verdict, format!("does not stand: {why}"), &advice);
            }
        }
    }
}

async fn check_store(config: &Config, report: &mut Report) {
    let place = match &config.store {
        StoreConfig::File(dir) => format!("directory `{}`", dir.display()),
        StoreConfig::S3(s3) => format!("S3 at `{}`", s3.endpoint.as_deref().unwrap_or("AWS")),
        StoreConfig::Memory => "memory".into(),
    };
    let stores = match BucketStores::new(config.store.clone(), config.buckets.clone()) {
        Ok(stores) => stores,
        Err(error) => {
            return note(
                report,
                "store",
                Verdict::Fail,
                error.to_string(),
                "see docs/configuration.md for the settings of the store",
            );
        }
    };
    note(report, "store", Verdict::Ok, place, "");
    let Some(bucket) = check_bucket(&stores, &config.control, "control bucket", report).await else { return };
    check_nodes(config, &bucket, report).await;
    let control = match Control::open(bucket).await {
        Ok(control) => control,
        Err(error) => {
            return note(
                report,
                "control store",
                Verdict::Fail,
                error.to_string(),
                "restore the named object from the bucket's versions",
            );
        }
    };
    let state = control.state();
    let marts: usize = state.tenants.values().map(|tenant| tenant.marts.len()).sum();
    note(
        report,
        "control store",
        Verdict::Ok,
        format!("version {}, {} tenants, {marts} marts", control.version(), state.tenants.len()),
        "",
    );
    let fallback: Tenant = "default".parse().expect("a legal name");
    let tenants = if state.tenants.is_empty() { vec![&fallback] } else { state.tenants.keys().collect() };
    for tenant in tenants {
        let what = format!("bucket of tenant {tenant}");
        if let Some(bucket) = check_bucket(&stores, &stores.names_of(tenant).analytics, &what, report).await {
            check_versioning(&bucket, &format!("versioning of tenant {tenant}"), report).await;
            upkeep::check(config, &bucket, tenant, &state, report).await;
        }
    }
}

/// Nodes that left a sign of life. A node that stopped in order has none.
async fn check_nodes(config: &Config, bucket: &Bucket, report: &mut Report) {
    let found = match cluster::heartbeats(bucket).await {
        Ok(found) => found,
        Err(error) => {
            return note(
                report,
                "nodes",
                Verdict::Fail,
                error.to_string(),
                "the credentials must be allowed to list and read",
            );
        }
    };
    if found.is_empty() {
        note(report, "nodes", Verdict::Ok, "none gives signs of life", "");
    }
    for (id, time_us, heartbeat) in found {
        // Two clocks, and for people only: the store's and this machine's.
        let age_s = clock::now_us().saturating_sub(time_us).max(0) / 1_000_000;
        let Some(heartbeat) = heartbeat else {
            note(
                report,
                format!("node {id}"),
                Verdict::Warn,
                format!("its heartbeat, {age_s} s old, can't be read"),
                "is it of a newer version?",
            );
            continue;
        };
        let place = heartbeat.advertise.map(|place| format!(", reached at {place}")).unwrap_or_default();
        let text = format!("on `{}`{place}, last sign of life {age_s} s ago", heartbeat.host);
        let dead = u64::try_from(age_s).is_ok_and(|age| age * 1000 > heartbeat.takeover_ms);
        let (verdict, advice) = match (dead, config.cluster.takeover_after) {
            (true, _) => (
                Verdict::Warn,
                "it was killed or has no contact with the store: its marts go over to the nodes that are asked for them",
            ),
            (false, None) => {
                (Verdict::Warn, "with `takeover_after = never` here a node started on this store takes its marts away")
            }
            (false, Some(_)) => (Verdict::Ok, ""),
        };
        note(report, format!("node {id}"), verdict, text, advice);
    }
}

/// Whether what is overwritten or deleted in the bucket could be had back.
async fn check_versioning(bucket: &Bucket, what: &str, report: &mut Report) {
    let (verdict, found, advice) = match bucket.versioning().await {
        Ok(Versioning::On) => (Verdict::Ok, "on".to_owned(), ""),
        Ok(Versioning::Suspended) => (
            Verdict::Warn,
            "suspended: what is deleted now can't be had back".to_owned(),
            "turn it on again; docs/recovery.md says how, and how long to keep older versions",
        ),
        Ok(Versioning::Off) => (
            Verdict::Warn,
            "off: `tarn verify --repair` has nothing to repair from".to_owned(),
            "turn it on; docs/recovery.md says how, and how long to keep older versions",
        ),
        Ok(Versioning::None) => (
            Verdict::Ok,
            "this store keeps no older versions".to_owned(),
            "back the directory up, or use S3 with versioning: `tarn verify --repair` needs older versions",
        ),
        Err(error) => (
            Verdict::Warn,
            error.to_string(),
            "allow the credentials `s3:GetBucketVersioning`, `s3:ListBucketVersions` and `s3:GetObjectVersion`",
        ),
    };
    note(report, what, verdict, found, advice);
}

/// Write, conditional write, read, list, delete.
async fn check_bucket(stores: &BucketStores, name: &BucketName, what: &str, report: &mut Report) -> Option<Bucket> {
    let bucket = match stores.bucket(name) {
        Ok(bucket) => bucket,
        Err(error) => {
            note(
                report,
                what,
                Verdict::Fail,
                format!("`{name}`: {:#}", anyhow::Error::from(error)),
                "check the endpoint, and that the directory is writable and not on FUSE",
            );
            return None;
        }
    };
    let prefix = Key::from("duckdb/.doctor");
    let key = prefix.clone().join(Uuid::new_v4().simple().to_string());
    let probed = probe(&bucket, &prefix, &key).await;
    // A probe that can't be removed was told about above, or is harmless.
    let _ = bucket.data.delete(&key).await;
    match probed {
        Ok(()) => note(
            report,
            what,
            Verdict::Ok,
            format!("`{name}`: reads, writes, lists, and refuses to overwrite when asked"),
            "",
        ),
        Err((found, advice)) => {
            note(report, what, Verdict::Fail, format!("`{name}`: {found}"), advice);
            return None;
        }
    }
    Some(bucket)
}

async fn probe(bucket: &Bucket, prefix: &Key, key: &Key) -> Result<(), (String, &'static str)> {
    let create =
        |text: &'static [u8]| bucket.log.put_opts(key, Bytes::from_static(text).into(), PutMode::Create.into());
    create(b"one").await.map_err(|error| {
        (error.to_string(), "check that the bucket exists and that the credentials may write to it")
    })?;
    match create(b"two").await {
        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
        Ok(_) => {
            return Err((
                "a conditional write overwrote an object".into(),
                "this store ignores `If-None-Match: *`; commits would not be safe on it: use another",
            ));
        }
        Err(error) => {
            return Err((format!("a conditional write failed: {error}"), "the store must support `If-None-Match: *`"));
        }
    }
    let read = async { bucket.data.get(key).await?.bytes().await };
    match read.await {
        Ok(bytes) if bytes == Bytes::from_static(b"one") => {}
        Ok(_) => {
            return Err(("an object reads back as something else".into(), "the store or a proxy before it is broken"));
        }
        Err(error) => return Err((error.to_string(), "the credentials must be allowed to read")),
    }
    let listed: Vec<_> = bucket
        .data
        .list(Some(prefix))
        .try_collect()
        .await
        .map_err(|error| (error.to_string(), "the credentials must be allowed to list"))?;
    if !listed.iter().any(|object| object.location == *key) {
        return Err(("a new object is not listed".into(), "the store must list what was written"));
    }
    bucket.data.delete(key).await.map_err(|error| (error.to_string(), "the credentials must be allowed to delete"))
}
