//! Which file system a directory lies on, and whether files there are a local disk's.
//!
//! A mount such as s3fs, goofys or rclone shows objects as files. It reads and writes whole objects well, and that is all: no atomic
//! links, no byte written where it was before, no `fsync` that means something, no lock that another machine sees.

use std::io;
use std::path::Path;

/// FUSE file systems through which a virtual machine shows its host's own disk.
const OF_HOSTS: [&str; 2] = ["fuse.grpcfuse", "fuse.osxfs"];

/// The type of the file system, as `mount` shows it, if it is one that keeps files in another program: `fuse.s3fs`, say.
pub fn bridge(dir: &Path) -> io::Result<Option<String>> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(dir)?.dev();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(kind(&mounts, (rustix::fs::major(device), rustix::fs::minor(device)))
        .filter(|kind| is_bridge(kind))
        .map(Into::into))
}

/// Of the device, in the kernel's list of mounts.
fn kind(mounts: &str, (major, minor): (u32, u32)) -> Option<&str> {
    let device = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let (of_mount, of_system) = line.split_once(" - ")?;
        let here = of_mount.split(' ').nth(2) == Some(&device);
        of_system.split(' ').next().filter(|_| here)
    })
}

fn is_bridge(kind: &str) -> bool {
    (kind == "fuse" || kind.starts_with("fuse.")) && !OF_HOSTS.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_to_objects_is_told_from_a_disk() {
        let mounts = "26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      40 26 0:52 / /mnt/bucket rw,nosuid - fuse.s3fs s3fs rw,user_id=0\n\
                      41 26 0:53 / /mnt/a\\040b rw shared:7 master:1 - virtiofs host rw\n";
        assert_eq!(kind(mounts, (0, 52)), Some("fuse.s3fs"));
        assert_eq!(kind(mounts, (0, 53)), Some("virtiofs"));
        assert_eq!(kind(mounts, (9, 9)), None);
        assert!(["fuse", "fuse.s3fs", "fuse.rclone"].into_iter().all(is_bridge));
        assert!(!["ext4", "virtiofs", "fuseblk", "fuse.grpcfuse", "overlay"].into_iter().any(is_bridge));
    }

    #[test]
    fn a_temporary_directory_is_no_bridge() {
        assert_eq!(bridge(Path::new("/proc")).expect("it is there"), None);
        assert!(bridge(Path::new("/nowhere")).is_err());
    }
}
