//! Control groups for engines, where this process may make them: memory that the kernel enforces, and processor time shared out equally
//! among tenants.
//!
//! Version 1 and version 2 alike: below our own group lies one of this node, in it one for each tenant, in that one for each engine.
//! Tenants have equal weights, so a tenant with twenty busy engines gets no more than one with a single busy engine; those that step
//! back have less. The node itself, which
//! all of them need and which needs little, goes before them. What can't be had is
//! told: then engines are sessions of their own, among which the scheduler shares time out, step back behind the node, and watch their
//! own memory.
//!
//! **Invariants:** nothing here keeps a node or an engine from starting. No process but this one and its engines is ever moved.

mod find;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::names::{MartId, Tenant};
use find::{Tree, Version};

/// Beside an engine's own limit: what it is ended for by itself comes first, with a line that says so.
const HEADROOM_BYTES: u64 = 500 << 20;
/// Threads and processes of one engine; DuckDB has one for each processor, and a few more.
const MOST_TASKS: u32 = 1024;
/// Length of the scheduler's accounts, microseconds.
const PERIOD_US: u64 = 100_000;
/// Of an engine that shares the processors with others without groups.
const NICE: i32 = 5;

/// What of the kernel's is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Bytes of memory.
    Memory,
    /// Processor time.
    Cpu,
    /// Threads.
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// As the kernel names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an engine may use.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Processors' worth of time; none is all there are.
    pub cpus: Option<u32>,
    /// The engine's own limit; the group's lies above it.
    pub memory_bytes: u64,
}

/// Below the group of all engines: processes that are nobody's engine yet, or never will be. No tenant has such a name.
const WORK: &str = ".work";
/// Where this process's children begin, once it has a group with a weight of its own. A process is in one group only.
static CHILDREN: OnceLock<PathBuf> = OnceLock::new();

/// Tenants that go after others.
type Back = HashSet<Tenant>;

/// Where groups are made. Cheap to clone; the last one removes what is left.
#[derive(Clone)]
pub struct Groups(Arc<All>);

struct All {
    trees: Vec<Tree>,
    lacking: Vec<(Controller, String)>,
    next: AtomicU64,
    /// A tenant's group is removed when its last engine's is, and must not be while another's is made in it.
    tenants: Mutex<Back>,
}

impl Groups {
    /// Makes this node's group, named after its state directory, and removes what a killed node left there.
    pub fn find(state_dir: &Path) -> Self {
        let hash = blake3::hash(state_dir.as_os_str().as_encoded_bytes()).to_hex();
        let (trees, lacking) = find::trees(&format!("tarn-{}", &hash[..16]));
        Self(Arc::new(All { trees, lacking, next: AtomicU64::new(0), tenants: Mutex::default() }))
    }

    /// Lets this process go before its engines for processor time, where that can be shared out: what it does for one tenant must not wait
    /// for another's work. Once; its children begin elsewhere from then on.
    pub fn lift_node(&self) {
        let Some(tree) = self.0.trees.iter().find(|tree| tree.controllers.contains(&Controller::Cpu)) else { return };
        let work = tree.top.join(WORK);
        let made = match fs::create_dir(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => tree.lift(),
        };
        match made {
            Ok(()) => drop(CHILDREN.set(work)),
            Err(error) => tracing::debug!(%error, "the node shares processor time with its engines as it comes"),
        }
    }

    /// Has these tenants go after all others, and no more those that went after them before.
    pub fn step_back(&self, tenants: HashSet<Tenant>) {
        let Some(tree) = self.0.trees.iter().find(|tree| tree.controllers.contains(&Controller::Cpu)) else { return };
        let mut back = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        for tenant in back.symmetric_difference(&tenants) {
            // One without an engine has no group; it is made with its weight.
            let _ = tree.weigh(tenant, tenants.contains(tenant));
        }
        *back = tenants;
    }

    /// Why there are none or not all, in words.
    pub fn lacking(&self) -> Option<String> {
        let said: Vec<_> = self.0.lacking.iter().map(|(controller, why)| format!("{controller}: {why}")).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    fn limits(&self, controller: Controller) -> bool {
        self.0.trees.iter().any(|tree| tree.controllers.contains(&controller))
    }

    /// Makes the group of one engine and puts its process there. None where no group can be made; what of its limits can't be set is
    /// logged.
    pub fn admit(&self, id: &MartId, pid: u32, share: Share) -> Option<Group> {
        if !self.limits(Controller::Cpu) {
            be_nice(pid, NICE);
        }
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut group = Group { all: self.0.clone(), dirs: Vec::new() };
        for tree in &self.0.trees {
            let dir = tree.top.join(id.tenant.as_str()).join(format!("{}.{number}", id.mart));
            let made = {
                let back = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
                tree.make_tenant(&id.tenant, back.contains(&id.tenant)).and_then(|()| fs::create_dir(&dir))
            };
            let placed = made.and_then(|()| {
                group.dirs.push((tree.version, dir.clone()));
                set(tree.version, &dir, share);
                fs::write(dir.join("cgroup.procs"), pid.to_string())
            });
            if let Err(error) = placed {
                let what: Vec<_> = tree.controllers.iter().map(|one| one.name()).collect();
                tracing::warn!(mart = %id, %error, ?what, "an engine runs without a control group");
            }
        }
        (!group.dirs.is_empty()).then_some(group)
    }
}

fn set(version: Version, dir: &Path, share: Share) {
    for controller in Controller::ALL {
        for (file, value) in settings(version, controller, share) {
            let file = dir.join(file);
            // Another controller's files are elsewhere, and limits of swap are not built into every kernel.
            if file.exists()
                && let Err(error) = fs::write(&file, value)
            {
                tracing::warn!(file = %file.display(), %error, "a limit of an engine's control group can't be set");
            }
        }
    }
}

fn settings(version: Version, controller: Controller, share: Share) -> Vec<(&'static str, String)> {
    let memory = share.memory_bytes.saturating_add(HEADROOM_BYTES).to_string();
    match (version, controller) {
        // Memory that goes to disk instead makes everybody wait.
        (Version::Two, Controller::Memory) => vec![("memory.max", memory), ("memory.swap.max", "0".into())],
        (Version::One, Controller::Memory) => {
            vec![("memory.limit_in_bytes", memory), ("memory.swappiness", "0".into())]
        }
        (_, Controller::Pids) => vec![("pids.max", MOST_TASKS.to_string())],
        (version, Controller::Cpu) => {
            // A quota of all there is limits nothing, and costs.
            let quota = share.cpus.filter(|cpus| *cpus < processors()).map(|cpus| u64::from(cpus.max(1)) * PERIOD_US);
            match (version, quota) {
                (Version::One, Some(quota)) => vec![("cpu.cfs_quota_us", quota.to_string())],
                (Version::One, None) => vec![("cpu.cfs_quota_us", "-1".into())],
                (Version::Two, Some(quota)) => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
                (Version::Two, None) => vec![("cpu.max", format!("max {PERIOD_US}"))],
            }
        }
    }
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// One engine's group. Dropping it removes it, which needs its process to be gone.
pub struct Group {
    all: Arc<All>,
    dirs: Vec<(Version, PathBuf)>,
}

impl Group {
    /// Whether the kernel ended a process here because the group's memory was used up.
    pub fn ran_out_of_memory(&self) -> bool {
        self.dirs.iter().any(|(version, dir)| {
            let file = match version {
                Version::One => "memory.oom_control",
                Version::Two => "memory.events",
            };
            fs::read_to_string(dir.join(file)).is_ok_and(|text| kills(&text) > 0)
        })
    }

    /// Sets its limits anew.
    pub fn resize(&self, share: Share) {
        self.dirs.iter().for_each(|(version, dir)| set(*version, dir, share));
    }
}

/// Both versions count the kernel's kills in a line of this form.
fn kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

impl Drop for Group {
    fn drop(&mut self) {
        let _guard = self.all.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, dir) in &self.dirs {
            // What can't be removed yet is removed with all the rest; a tenant's group stays while it has others.
            let _ = fs::remove_dir(dir);
            if let Some(tenant) = dir.parent() {
                let _ = fs::remove_dir(tenant);
            }
        }
    }
}

impl Drop for All {
    fn drop(&mut self) {
        self.trees.iter().for_each(Tree::remove);
    }
}

/// A child of this process does not have the weight of this process.
pub(super) fn set_apart(pid: Option<u32>) {
    if let (Some(pid), Some(work)) = (pid, CHILDREN.get()) {
        // It may have ended.
        let _ = fs::write(work.join("cgroup.procs"), pid.to_string());
    }
}

/// Lets others go first. Sessions have a niceness of their own where the scheduler shares time out among them.
pub(super) fn be_nice(pid: u32, nice: i32) {
    // Lowering a child's claim is always allowed; one that has ended needs none.
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::setpriority_process(Some(pid), nice);
    }
    let _ = fs::write(format!("/proc/{pid}/autogroup"), nice.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: Share = Share { cpus: Some(1), memory_bytes: 64 << 20 };

    fn id() -> MartId {
        MartId { tenant: "acme".parse().expect("legal"), mart: "sales".parse().expect("legal") }
    }

    #[test]
    fn a_group_has_its_limits_and_goes_with_its_engine() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let groups = Groups::find(dir.path());
        println!("lacking: {:?}", groups.lacking());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep is there");
        let group = groups.admit(&id(), child.id(), SHARE);
        let found = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).expect("it lives");
        let dirs: Vec<_> = group.iter().flat_map(|group| &group.dirs).map(|(_, dir)| dir.clone()).collect();
        let quota = if processors() > 1 { ["100000", "100000 100000"] } else { ["-1", "max 100000"] };
        let memory = (SHARE.memory_bytes + HEADROOM_BYTES).to_string();
        for (controller, files, wanted) in [
            (Controller::Memory, ["memory.max", "memory.limit_in_bytes"], [memory.as_str(); 2]),
            (Controller::Cpu, ["cpu.cfs_quota_us", "cpu.max"], quota),
            (Controller::Pids, ["pids.max"; 2], ["1024"; 2]),
        ] {
            let files = dirs.iter().flat_map(|dir| files.map(|file| dir.join(file)));
            match files.filter_map(|file| fs::read_to_string(file).ok()).next() {
                Some(text) => assert!(wanted.contains(&text.trim()), "{controller}: {text}"),
                None => {
                    let why = groups.lacking().expect("what is not limited is told");
                    assert!(why.contains(controller.name()), "{controller} is not limited: {why}");
                }
            }
        }
        assert_eq!(!dirs.is_empty(), found.contains("/acme/sales.0"), "{found}");
        child.kill().and_then(|()| child.wait()).expect("it is our child");
        assert!(group.as_ref().is_none_or(|group| !group.ran_out_of_memory()));
        drop(group);
        drop(groups);
        for top in dirs.iter().filter_map(|dir| dir.ancestors().nth(2)) {
            assert!(!top.exists(), "`{}` is left", top.display());
        }
    }

    #[test]
    fn a_process_that_needs_more_than_its_group_has_is_ended_and_it_shows() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let groups = Groups::find(dir.path());
        if !groups.limits(Controller::Memory) {
            assert!(
                groups.lacking().is_some_and(|why| why.contains("memory")),
                "memory is neither limited nor said not to be"
            );
            return;
        }
        // It waits for a line before it takes memory, so that it does so in its group; zeros have no ends of lines.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line; head -c 2G /dev/zero | tail"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("sh is there");
        let group = groups.admit(&id(), child.id(), Share { memory_bytes: 0, ..SHARE }).expect("memory can be limited");
        drop(child.stdin.take().map(|mut pipe| std::io::Write::write_all(&mut pipe, b"go\n")));
        let status = child.wait().expect("it is our child");
        assert!(!status.success(), "{status}");
        assert!(group.ran_out_of_memory());
    }

    #[test]
    fn kills_are_read_from_either_version() {
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills(""), 0);
    }
}
