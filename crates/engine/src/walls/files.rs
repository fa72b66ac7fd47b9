//! Landlock: which files and ports are left.

use std::{
    fs,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::Ground;

/// The first that knows TCP (Linux 6.7).
const PORTS: ABI = ABI::V4;
/// The first that knows abstract sockets and signals (Linux 6.12); taken where it is there.
const SCOPES: ABI = ABI::V6;
/// The first that guards every way of changing a file (Linux 6.2); before it, one could be truncated.
const FILES: ABI = ABI::V3;
/// Devices without state.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];
/// Where DuckDB learns which limits to look for.
const GROUPS: &str = "/proc/self/cgroup";
/// What it looks at there.
const LIMITS: [&str; 5] = ["memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"];

/// Restricts this thread, and what it starts, to the ground. Files and ports, each with why not.
pub(super) fn restrict(ground: &Ground) -> (Result<(), String>, Result<(), String>) {
    let files = build(ground, FILES, None).and_then(RulesetCreated::restrict_self).map(drop);
    if let Err(error) = files {
        let why = format!("landlock: {error}");
        return (Err(why.clone()), Err(why));
    }
    // A second layer, as older kernels have the first only.
    let ports = build(ground, PORTS, ground.port).and_then(RulesetCreated::restrict_self).map(drop);
    (Ok(()), ports.map_err(|error| format!("landlock: {error}")))
}

/// The rules of `abi`, or an error where the kernel does not have them all.
fn build(ground: &Ground, abi: ABI, port: Option<u16>) -> Result<RulesetCreated, RulesetError> {
    let mut rules =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::from_all(abi))?;
    if abi >= PORTS {
        rules = rules.handle_access(AccessNet::from_all(abi))?;
        rules = rules.set_compatibility(CompatLevel::BestEffort).scope(Scope::from_all(SCOPES))?;
    }
    let mut created = rules.create()?.set_compatibility(CompatLevel::BestEffort);
    let own = AccessFs::from_all(abi)
        & !(AccessFs::Execute
            | AccessFs::MakeBlock
            | AccessFs::MakeChar
            | AccessFs::MakeFifo
            | AccessFs::MakeSock
            | AccessFs::MakeSym
            | AccessFs::IoctlDev);
    for dir in &ground.own {
        created = allow(created, dir, own)?;
    }
    for file in &ground.read {
        created = allow(created, file, AccessFs::ReadFile.into())?;
    }
    for file in asked_by_duckdb() {
        created = allow(created, &file, AccessFs::ReadFile.into())?;
    }
    for device in DEVICES {
        created = allow(created, Path::new(device), AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    if let Some(port) = port {
        created = created.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    Ok(created)
}

/// What is not there needs no rule.
fn allow(
    created: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => created.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(created),
    }
}

/// The limits of this process's control groups, at the places where DuckDB looks: it reads them when it opens, whatever memory it was
/// given, and crashes if it finds one that it may not read.
fn asked_by_duckdb() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from(GROUPS)];
    let groups = fs::read_to_string(GROUPS).unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let tree = Path::new("/sys/fs/cgroup").join(controllers);
        // In a container the group itself is what is mounted there, and its path leads nowhere.
        for group in [tree.join(path.trim_start_matches('/')), tree] {
            files.extend(LIMITS.map(|name| group.join(name)));
        }
    }
    files
}
