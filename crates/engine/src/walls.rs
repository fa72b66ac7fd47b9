//! The walls around an engine's process: what stops SQL that has taken DuckDB over.
//!
//! [`first`] needs no configuration and [`second`] only the engine's own directories, so a process can have the first half behind it
//! and wait for its mart. Both run in `main` before any other thread exists: Landlock and seccomp bind the calling thread and whatever it
//! starts, and a user namespace can't be entered by a process with threads. Which SQL may run is `sql::gate`'s business.
//!
//! **Invariant:** nothing here fails because the kernel lacks something: what does not stand is in the [`Report`], and whoever wants
//! it to be fatal looks there.

mod files;
mod namespace;
mod syscalls;

use std::{collections::BTreeMap, fmt, net::TcpListener, path::PathBuf, str::FromStr};

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// One of the walls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wall {
    /// A user and network namespace of its own: the only thing it can connect to is its listener of the node's gateway.
    Namespace,
    /// Landlock on files: its own directory, the extension read-only, nothing else.
    Files,
    /// Landlock on TCP: connect to the gateway's port only, and no bind. It filters ports, not addresses.
    Ports,
    /// System calls that an engine never needs fail.
    Seccomp,
    /// No privilege is gained or kept.
    Privileges,
    /// A crash writes no memory to disk, and no other process of the user looks into it.
    CoreDumps,
    /// Control groups: the kernel limits memory and threads and shares processor time out by tenant. The node builds it.
    Limits,
}

impl Wall {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Namespace, Self::Files, Self::Ports, Self::Seccomp, Self::Privileges, Self::CoreDumps, Self::Limits];

    /// As settings and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Files => "files",
            Self::Ports => "ports",
            Self::Seccomp => "seccomp",
            Self::Privileges => "privileges",
            Self::CoreDumps => "core_dumps",
            Self::Limits => "limits",
        }
    }

    /// What is open where it does not stand.
    pub fn gap(self) -> &'static str {
        match self {
            Self::Namespace => "SQL that takes an engine over could send packets to hosts that this machine reaches",
            Self::Files => "SQL that takes an engine over could read and write what this user can",
            Self::Ports => "only the gate and DuckDB's own settings keep an engine from other ports",
            Self::Seccomp => "SQL that takes an engine over could use every system call",
            Self::Privileges => "an engine keeps the privileges of the node's user",
            Self::CoreDumps => "a crash may leave a tenant's rows in a core dump",
            Self::Limits => "engines watch their own memory, and busy tenants share the processors by engine",
        }
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Wall {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|wall| wall.name() == text)
            .ok_or_else(|| format!("no wall is called `{text}`; there are {}", names()))
    }
}

/// Which walls stand in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// None where it stands, else why it does not.
    pub walls: BTreeMap<Wall, Option<String>>,
}

impl Report {
    /// Whether it stands.
    pub fn stands(&self, wall: Wall) -> bool {
        matches!(self.walls.get(&wall), Some(None))
    }

    /// Those that don't stand, with the reason.
    pub fn lacking(&self) -> impl Iterator<Item = (Wall, &str)> {
        self.walls.iter().filter_map(|(wall, why)| Some((*wall, why.as_deref()?)))
    }

    /// Notes whether one stands.
    pub fn note(&mut self, wall: Wall, built: Result<(), String>) {
        self.walls.insert(wall, built.err());
    }
}

/// What the first half leaves.
pub struct First {
    /// What stands so far.
    pub report: Report,
    /// A listener of this process's network namespace, for the node to accept on: whoever connects to it is this engine.
    pub door: Option<TcpListener>,
}

/// What an engine may touch, for the second half.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    /// Directories that it reads and writes; they must exist.
    pub own: Vec<PathBuf>,
    /// Files that it reads.
    pub read: Vec<PathBuf>,
    /// The port that it connects to.
    pub port: Option<u16>,
}

/// What needs no configuration: no core dumps, a session of its own (the scheduler shares out processor time by session where it has
/// no groups to go by), the namespaces. With a `door`, also a way to the node's gateway.
pub fn first(door: bool) -> First {
    let mut report = Report::default();
    // Fails where the process leads a session already, which is as good.
    let _ = rustix::process::setsid();
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    report.note(Wall::CoreDumps, setrlimit(Resource::Core, none).map_err(|error| format!("setrlimit: {error}")));
    let entered = namespace::enter(door);
    let (built, door) = match entered {
        Ok(door) => (Ok(()), door),
        Err(why) => (Err(why), None),
    };
    report.note(Wall::Namespace, built);
    First { report, door }
}

/// The rest. Afterwards this thread, and what it starts, touches only `ground`.
pub fn second(mut report: Report, ground: &Ground) -> Report {
    // Proc's files of this process belong to root from here on, so whoever needs them has opened them.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        report.note(Wall::CoreDumps, Err(format!("prctl: {error}")));
    }
    report.note(Wall::Privileges, drop_privileges());
    let (files, ports) = files::restrict(ground);
    report.note(Wall::Files, files);
    report.note(Wall::Ports, ports);
    report.note(Wall::Seccomp, syscalls::restrict());
    report
}

fn drop_privileges() -> Result<(), String> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_no_new_privs(true).map_err(|error| format!("no_new_privs: {error}"))?;
    set_capabilities(None, none).map_err(|error| format!("capset: {error}"))
}

/// Closes what this process was given beyond its first `keep` descriptors.
pub fn close_descriptors(keep: u32) {
    // SAFETY: nothing in this process owns descriptors from `keep` on yet, as it has only begun.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, keep, u32::MAX, 0) } == 0;
    if closed {
        return;
    }
    // A kernel before 5.9. What /proc lists includes the directory's own descriptor, which is gone by then.
    let Ok(listed) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| u32::try_from(*fd).is_ok_and(|fd| fd >= keep)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}
