//! Where this process may make control groups, by what `/proc` says of its own.
//!
//! # Version 2 in a container
//! A group that has processes can't share out anything to groups below it. A node that is alone in its group steps down into a group
//! beside its engines'; where others are in it, as in a login session, the controllers can't be had.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Controller, processors};
use crate::names::Tenant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A hierarchy in which groups can be made.
pub(super) struct Tree {
    pub version: Version,
    pub controllers: Vec<Controller>,
    /// All of the node's engines.
    pub top: PathBuf,
    /// The node's own group, if it left `top`'s parent for it.
    stepped_down: Option<PathBuf>,
}

/// How many times what a tenant has the node may have of processor time, of which it needs little.
const NODE_TIMES: u64 = 16;
/// How many times what a tenant has that steps back the others have.
const SHORT_TIMES: u64 = 16;

impl Tree {
    /// A tenant's group, if it is not there.
    pub(super) fn make_tenant(&self, tenant: &Tenant, back: bool) -> io::Result<()> {
        let dir = self.top.join(tenant.as_str());
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        if self.version == Version::Two {
            enable(&dir, &self.controllers)?;
        }
        if back && self.controllers.contains(&Controller::Cpu) { self.weigh(tenant, back) } else { Ok(()) }
    }

    /// Has a tenant that has a group go after others, or beside them.
    pub(super) fn weigh(&self, tenant: &Tenant, back: bool) -> io::Result<()> {
        let dir = self.top.join(tenant.as_str());
        let (file, equal) = weight(self.version);
        fs::write(dir.join(file), (if back { equal / SHORT_TIMES } else { equal }).to_string())
    }

    /// Gives this process a group with a weight of its own, beside its engines'.
    pub(super) fn lift(&self) -> io::Result<()> {
        match self.version {
            Version::One => {
                let own = self.own();
                match fs::create_dir(&own) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                let weight = (NODE_TIMES * all_weights(self.version)).min(262_144);
                fs::write(own.join("cpu.shares"), weight.to_string())?;
                fs::write(own.join("cgroup.procs"), std::process::id().to_string())
            }
            Version::Two => match &self.stepped_down {
                Some(own) => {
                    fs::write(own.join("cpu.weight"), (NODE_TIMES * all_weights(self.version)).min(10_000).to_string())
                }
                None => Err(io::Error::other("others are in the node's group")),
            },
        }
    }

    /// The node's own group, where it has one.
    fn own(&self) -> PathBuf {
        self.top.with_extension("node")
    }

    /// Removes it with what is left in it.
    pub(super) fn remove(&self) {
        clear(&self.top);
        if let (Version::One, Some(base)) = (self.version, self.top.parent())
            && self.own().exists()
            && words(&self.own().join("cgroup.procs")).any(|pid| pid == std::process::id().to_string())
        {
            let back = fs::write(base.join("cgroup.procs"), std::process::id().to_string());
            if let Err(error) = back.and_then(|()| fs::remove_dir(self.own())) {
                tracing::debug!(%error, "the node's control group is left");
            }
        }
        let (Some(own), Some(base)) = (&self.stepped_down, self.top.parent()) else { return };
        // Back to where it was; if it can't be, the node ends where it is.
        let off: Vec<_> = self.controllers.iter().map(|controller| format!("-{controller}")).collect();
        let back = fs::write(base.join("cgroup.subtree_control"), off.join(" "))
            .and_then(|()| fs::write(base.join("cgroup.procs"), std::process::id().to_string()))
            .and_then(|()| fs::remove_dir(own));
        if let Err(error) = back {
            tracing::debug!(%error, "the node's control group is left");
        }
    }
}

/// All that can be had, each with an empty group `name`; and what can't, with the reason.
pub(super) fn trees(name: &str) -> (Vec<Tree>, Vec<(Controller, String)>) {
    let (mut trees, mut lacking) = (Vec::<Tree>::new(), Vec::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for controller in Controller::ALL {
        match locate(&mounts, &groups, controller) {
            // Version 1 may mount several controllers as one, and version 2 always does.
            Some((version, base)) => match trees.iter_mut().find(|tree| tree.top.parent() == Some(base.as_path())) {
                Some(tree) => tree.controllers.push(controller),
                None => {
                    let top = base.join(name);
                    trees.push(Tree { version, controllers: vec![controller], top, stepped_down: None });
                }
            },
            None => lacking.push((controller, "no hierarchy of control groups has it".to_owned())),
        }
    }
    trees.retain_mut(|tree| match open(tree) {
        Ok(()) => true,
        Err(error) => {
            tree.remove();
            lacking.extend(tree.controllers.iter().map(|controller| (*controller, error.clone())));
            false
        }
    });
    (trees, lacking)
}

/// The group of this process in the hierarchy that has the controller.
fn locate(mounts: &str, groups: &str, controller: Controller) -> Option<(Version, PathBuf)> {
    let own = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then(|| path.to_owned())
        })
    };
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<_> = left.split(' ').collect();
        let right: Vec<_> = right.split(' ').collect();
        let (Some(root), Some(point), Some(kind)) = (left.get(3), left.get(4), right.first()) else { continue };
        let options = right.get(2).copied().unwrap_or_default();
        let (version, path) = match *kind {
            "cgroup" if options.split(',').any(|option| option == controller.name()) => {
                (Version::One, own(&|controllers| controllers.split(',').any(|one| one == controller.name())))
            }
            "cgroup2" => (Version::Two, own(&str::is_empty)),
            _ => continue,
        };
        let Some(path) = path else { continue };
        // A container sees its own group as the root of the mount, with or without a namespace of groups.
        let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(&path).trim_start_matches('/');
        let base = Path::new(point).join(below);
        let has =
            version == Version::One || words(&base.join("cgroup.controllers")).any(|one| one == controller.name());
        if has && base.is_dir() {
            return Some((version, base));
        }
    }
    None
}

/// Makes a tree's group for all engines, ready for tenants'.
fn open(tree: &mut Tree) -> Result<(), String> {
    let base = tree.top.parent().map(Path::to_owned).unwrap_or_default();
    let said = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    clear(&tree.top);
    match fs::create_dir(&tree.top) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("a group can't be made below the node's own: {error}"));
        }
        _ => {}
    }
    if tree.version == Version::Two {
        if let Err(error) = enable(&base, &tree.controllers) {
            tree.stepped_down =
                Some(step_down(tree, &base).map_err(|_| format!("sharing out what the node has: {error}"))?);
        }
        enable(&tree.top, &tree.controllers).map_err(said("sharing out what engines have"))?;
    }
    if tree.controllers.contains(&Controller::Cpu) {
        // Beside other programs on the machine all engines together count as programs on all processors do, not as one.
        fs::write(tree.top.join(weight(tree.version).0), all_weights(tree.version).to_string())
            .map_err(said("setting the engines' weight"))?;
    }
    Ok(())
}

/// The file of a group's weight, and what the kernel writes there at first.
fn weight(version: Version) -> (&'static str, u64) {
    match version {
        Version::One => ("cpu.shares", 1024),
        Version::Two => ("cpu.weight", 100),
    }
}

/// Of all engines together.
fn all_weights(version: Version) -> u64 {
    let all = weight(version).1 * u64::from(processors());
    if version == Version::Two { all.min(10_000) } else { all }
}

/// Lets groups below `dir` have the controllers.
fn enable(dir: &Path, controllers: &[Controller]) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let has: Vec<_> = words(&file).collect();
    let missing: Vec<_> = controllers
        .iter()
        .filter(|one| !has.iter().any(|word| word == one.name()))
        .map(|one| format!("+{one}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { fs::write(file, missing.join(" ")) }
}

/// Moves this process, alone in its group, to one beside its engines'.
fn step_down(tree: &Tree, base: &Path) -> io::Result<PathBuf> {
    let me = std::process::id().to_string();
    if words(&base.join("cgroup.procs")).any(|pid| pid != me) {
        return Err(io::Error::other("others are in the node's group"));
    }
    let own = tree.own();
    if let Err(error) = fs::create_dir(&own)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let moved = fs::write(own.join("cgroup.procs"), &me).and_then(|()| enable(base, &tree.controllers));
    if let Err(error) = moved {
        // As it was before; that it can be left again is as sure as that it could be entered.
        let _ = fs::write(base.join("cgroup.procs"), &me);
        let _ = fs::remove_dir(&own);
        return Err(error);
    }
    Ok(own)
}

fn words(file: &Path) -> impl Iterator<Item = String> + use<> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// Removes a group and those below it, as far as they are empty: files in them can't be removed and need not be.
fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear(&entry.path());
        }
    }
    // One in which an engine of before still ends stays, and is removed the next time.
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_below_what_is_mounted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let point = dir.path().display();
        fs::create_dir_all(dir.path().join("inner/most")).expect("it is writable");
        let find = |mounts: String, groups: &str| locate(&mounts, groups, Controller::Memory);
        let one = |root: &str| format!("30 25 0:26 {root} {point} rw,nosuid - cgroup cgroup rw,memory\n");
        let groups = "9:memory:/docker/abc/inner/most\n0::/elsewhere\n";
        let found = Some((Version::One, dir.path().join("inner/most")));
        assert_eq!(find(one("/docker/abc"), groups), found);
        assert_eq!(find(one("/"), "9:memory:/inner/most\n"), found);
        assert_eq!(find(one("/"), "9:cpu,memory:/gone\n"), None);
        let two = format!("31 25 0:27 / {point} rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(find(two.clone(), "0::/inner\n"), None, "it does not have the controller");
        fs::write(dir.path().join("inner/cgroup.controllers"), "cpu memory pids\n").expect("it is writable");
        assert_eq!(find(two, "0::/inner\n"), Some((Version::Two, dir.path().join("inner"))));
    }
}
