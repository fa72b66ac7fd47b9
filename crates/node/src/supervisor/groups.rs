//! Control groups for engines, where this process may make them: memory that the kernel enforces, and processor time shared out equally
//! among tenants.
//!
//! Version 1 and version 2 alike: below our own group lies one of this node, in it one for each tenant, in that one for each engine.
//! Tenants have equal weights, so a tenant with twenty busy engines gets no more than one with a single busy engine. Where no groups can
//! be made, engines are sessions of their own, among which the scheduler shares time out, and watch their own memory.
//!
//! **Invariant:** nothing here keeps a node or an engine from starting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::names::MartId;

/// Beside an engine's own limit: what it is ended for by itself comes first, with a line that says so.
const HEADROOM_BYTES: u64 = 500 << 20;
/// Threads and processes of one engine; DuckDB has one for each processor, and a few more.
const MOST_TASKS: u64 = 1024;
/// Unit of version 1's quota, microseconds.
const PERIOD_US: u64 = 100_000;

/// Where groups are made.
#[derive(Debug)]
pub struct Groups {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The root of each controller, if it may be used.
    V1 {
        memory: Option<PathBuf>,
        cpu: Option<PathBuf>,
        pids: Option<PathBuf>,
    },
    V2(PathBuf),
    None(String),
}

/// What an engine may use.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Processors' worth of time; none is all there are.
    pub cpus: Option<u32>,
    /// The engine's own limit; the group's lies above it.
    pub memory_bytes: u64,
}

/// One engine's group. Dropping it removes it, which needs its process to be gone.
#[derive(Debug)]
pub struct Group {
    dirs: Vec<PathBuf>,
    memory: Option<PathBuf>,
}

impl Groups {
    /// Makes this node's group, named after its state directory, and removes what a killed node left there.
    pub fn find(state_dir: &Path) -> Arc<Self> {
        let hash = blake3::hash(state_dir.as_os_str().as_encoded_bytes()).to_hex();
        let name = format!("tarn-{}", &hash[..12]);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let kind = find(&own, &name).unwrap_or_else(|why| Kind::None(why.to_string()));
        Arc::new(Self { kind })
    }

    /// Why there are none or not all, in words.
    pub fn lacking(&self) -> Option<String> {
        match &self.kind {
            Kind::V2(_) => None,
            Kind::None(why) => Some(why.clone()),
            Kind::V1 { memory, cpu, .. } => {
                let missing: Vec<_> =
                    [("memory", memory), ("cpu", cpu)].into_iter().filter(|(_, root)| root.is_none()).collect();
                let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
                (!names.is_empty()).then(|| format!("no group can be made for: {}", names.join(", ")))
            }
        }
    }

    /// Makes the group of one engine and puts its process there. None where that can't be done.
    pub fn admit(&self, id: &MartId, pid: u32, share: Share) -> Option<Group> {
        let name = format!("{}-{pid}", id.mart);
        let admitted = match &self.kind {
            Kind::None(_) => return None,
            Kind::V2(root) => admit_v2(root, id, &name, pid, share),
            Kind::V1 { memory, cpu, pids } => {
                admit_v1([memory.as_deref(), cpu.as_deref(), pids.as_deref()], id, &name, pid, share)
            }
        };
        match admitted {
            Ok(group) => Some(group),
            Err(error) => {
                tracing::warn!(mart = %id, %error, "an engine runs without a control group");
                None
            }
        }
    }
}

impl Group {
    /// Whether the kernel ended a process of the group because its memory was used up.
    pub fn ran_out_of_memory(&self) -> bool {
        let Some(memory) = &self.memory else { return false };
        // Version 2 counts in one file, version 1 in another; either says `oom_kill N`.
        ["memory.events", "memory.oom_control"].iter().any(|file| {
            let text = fs::read_to_string(memory.join(file)).unwrap_or_default();
            text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
        })
    }

    /// Sets its limits anew.
    pub fn resize(&self, share: Share) {
        for dir in &self.dirs {
            let _ = limit(dir, share);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // Left behind, it is empty and costs nothing; the next start removes it.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn find(own: &str, name: &str) -> io::Result<Kind> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        return prepare_v2(&root.join(path.trim_start_matches('/')), name).map(Kind::V2);
    }
    let controller = |wanted: &str| {
        let line =
            own.lines().find(|line| line.split(':').nth(1).is_some_and(|all| all.split(',').any(|c| c == wanted)))?;
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let dir = root.join(controllers).join(path.trim_start_matches('/')).join(name);
        clear(&dir);
        fs::create_dir_all(&dir).ok()?;
        // A read-only or foreign mount may look like one that can be used.
        dir.join("cgroup.procs").exists().then_some(dir)
    };
    let (memory, cpu, pids) = (controller("memory"), controller("cpu"), controller("pids"));
    match (&memory, &cpu) {
        (None, None) => Err(io::Error::other("no control group can be made here")),
        _ => Ok(Kind::V1 { memory, cpu, pids }),
    }
}

/// Version 2 wants processes in leaves only: ours moves into one, if nobody else lives in our group.
fn prepare_v2(own: &Path, name: &str) -> io::Result<PathBuf> {
    let controllers = fs::read_to_string(own.join("cgroup.controllers"))?;
    for wanted in ["memory", "cpu"] {
        if !controllers.split_whitespace().any(|there| there == wanted) {
            return Err(io::Error::other(format!("our control group has no `{wanted}`")));
        }
    }
    let dir = own.join(name);
    clear(&dir);
    fs::create_dir_all(&dir)?;
    let enabled = |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), "+memory +cpu +pids");
    if enabled(own).is_err() {
        let pid = std::process::id().to_string();
        let there = fs::read_to_string(own.join("cgroup.procs"))?;
        if there.lines().any(|line| line != pid) {
            return Err(io::Error::other("other processes live in our control group"));
        }
        let leaf = own.join(format!("{name}-node"));
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), &pid)?;
        enabled(own)?;
    }
    enabled(&dir)?;
    Ok(dir)
}

/// Removes empty groups that were left there.
fn clear(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        clear(&entry.path());
        let _ = fs::remove_dir(entry.path());
    }
}

fn admit_v1(roots: [Option<&Path>; 3], id: &MartId, name: &str, pid: u32, share: Share) -> io::Result<Group> {
    let mut group = Group { dirs: Vec::new(), memory: roots[0].map(|root| root.join(id.tenant.as_str()).join(name)) };
    for root in roots.into_iter().flatten() {
        let dir = root.join(id.tenant.as_str()).join(name);
        fs::create_dir_all(&dir)?;
        group.dirs.push(dir.clone());
        limit(&dir, share)?;
        fs::write(dir.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(group)
}

fn admit_v2(root: &Path, id: &MartId, name: &str, pid: u32, share: Share) -> io::Result<Group> {
    let tenant = root.join(id.tenant.as_str());
    fs::create_dir_all(&tenant)?;
    fs::write(tenant.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
    let dir = tenant.join(name);
    fs::create_dir_all(&dir)?;
    let group = Group { dirs: vec![dir.clone()], memory: Some(dir.clone()) };
    limit(&dir, share)?;
    fs::write(dir.join("cgroup.procs"), pid.to_string())?;
    Ok(group)
}

/// Writes what of the limits this group has files for.
fn limit(dir: &Path, share: Share) -> io::Result<()> {
    let memory = share.memory_bytes.saturating_add(HEADROOM_BYTES).to_string();
    let set = |file: &str, value: &str| match dir.join(file) {
        path if path.exists() => fs::write(path, value),
        _ => Ok(()),
    };
    set("memory.limit_in_bytes", &memory)?;
    set("memory.max", &memory)?;
    // Memory that goes to disk instead makes everybody wait. Not there without a swap controller.
    let _ = set("memory.swap.max", "0");
    set("pids.max", &MOST_TASKS.to_string())?;
    if let Some(cpus) = share.cpus {
        let quota = u64::from(cpus) * PERIOD_US;
        set("cpu.cfs_quota_us", &quota.to_string())?;
        set("cpu.max", &format!("{quota} {PERIOD_US}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_put_where_its_limits_hold() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let groups = Groups::find(dir.path());
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().expect("sleep is there");
        let id = MartId { tenant: "acme".parse().expect("legal"), mart: "m".parse().expect("legal") };
        let share = Share { cpus: Some(1), memory_bytes: 256 << 20 };
        let group = groups.admit(&id, child.id(), share);
        match &group {
            // This machine lets nobody make groups, and says so.
            None => assert!(groups.lacking().is_some()),
            Some(group) => {
                assert!(!group.ran_out_of_memory());
                for dir in &group.dirs {
                    let there = fs::read_to_string(dir.join("cgroup.procs")).expect("readable");
                    assert_eq!(there.trim(), child.id().to_string());
                    for file in ["memory.max", "memory.limit_in_bytes"].map(|file| dir.join(file)) {
                        if file.exists() {
                            let limit = fs::read_to_string(&file).expect("readable");
                            assert_eq!(limit.trim(), (share.memory_bytes + HEADROOM_BYTES).to_string());
                        }
                    }
                }
            }
        }
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        let dirs = group.iter().flat_map(|group| group.dirs.clone()).collect::<Vec<_>>();
        drop(group);
        assert!(dirs.iter().all(|dir| !dir.exists()), "the group is gone with its engine");
    }
}
