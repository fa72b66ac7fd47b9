//! What open marts take of this machine: disk by kind of file, memory of their engines; and what the volume has left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Page, of_mart};
use crate::names::MartId;

/// A mart whose engine runs.
pub struct Place {
    /// Which.
    pub id: MartId,
    /// Where its files are.
    pub dir: PathBuf,
    /// Its engine.
    pub pid: u32,
}

/// Lines about these marts, their objects, and the volume of the state directory. Reads the disk.
pub fn usage(state_dir: &Path, marts: &[Place], objects: &BTreeMap<MartId, u64>) -> String {
    let mut page = Page::default();
    let help =
        "Bytes that an open mart takes: of files on this node's disk by kind, and of objects in the store (hourly).";
    page.family("tarn_disk_used_bytes", "gauge", help);
    for Place { id, dir, .. } in marts {
        let kinds = [("database", "mart.db"), ("wal", "mart.db.wal"), ("temp", "temp")];
        for (kind, name) in kinds {
            let labels = [of_mart(id).as_slice(), &[("kind", kind)]].concat();
            page.sample("tarn_disk_used_bytes", &labels, bytes(&dir.join(name)) as f64);
        }
        if let Some(bytes) = objects.get(id) {
            let labels = [of_mart(id).as_slice(), &[("kind", "objects")]].concat();
            page.sample("tarn_disk_used_bytes", &labels, *bytes as f64);
        }
    }
    page.family("tarn_engine_memory_bytes", "gauge", "Resident memory of a mart's engine.");
    for Place { id, pid, .. } in marts {
        if let Some(bytes) = resident(*pid) {
            page.sample("tarn_engine_memory_bytes", &of_mart(id), bytes as f64);
        }
    }
    if let Ok(volume) = rustix::fs::statvfs(state_dir) {
        page.family(
            "tarn_volume_free_bytes",
            "gauge",
            "Bytes free for this node on the volume of its state directory.",
        );
        page.sample("tarn_volume_free_bytes", &[], (volume.f_bavail * volume.f_frsize) as f64);
        page.family("tarn_volume_size_bytes", "gauge", "Size of the volume of this node's state directory.");
        page.sample("tarn_volume_size_bytes", &[], (volume.f_blocks * volume.f_frsize) as f64);
    }
    page.text
}

/// Of a file, or of all below a directory. What vanishes meanwhile takes nothing.
fn bytes(path: &Path) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    if !found.is_dir() {
        return found.len();
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes(&entry.path())).sum()
}

/// Nothing of a process that has ended.
fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    line.map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_by_kind_and_a_mart_without_files_takes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mart = dir.path().join("mart");
        fs::create_dir_all(mart.join("temp/load")).expect("it is writable");
        for (name, size) in [("mart.db", 4096), ("temp/load/a", 10), ("temp/b", 5)] {
            fs::write(mart.join(name), vec![0; size]).expect("it is writable");
        }
        let id = MartId { tenant: "acme".parse().expect("legal"), mart: "sales".parse().expect("legal") };
        let objects = BTreeMap::from([(id.clone(), 77)]);
        let text = usage(dir.path(), &[Place { id, dir: mart, pid: std::process::id() }], &objects);
        assert!(text.contains(",kind=\"objects\"} 77\n"), "{text}");
        let of = |kind: &str| format!("tarn_disk_used_bytes{{tenant=\"acme\",mart=\"sales\",kind=\"{kind}\"}}");
        for (kind, bytes) in [("database", 4096), ("wal", 0), ("temp", 15)] {
            assert!(text.contains(&format!("{} {bytes}\n", of(kind))), "{text}");
        }
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).expect("it is there");
            line.rsplit(' ').next().expect("a value").parse().expect("a number")
        };
        assert!(value("tarn_engine_memory_bytes{") > 1e6);
        assert!(value("tarn_volume_free_bytes ") <= value("tarn_volume_size_bytes "));
    }
}
