//! Sizes of work: what a request may ask of its mart's engine while it runs.
//!
//! Three are built in, as the guide to sizing has them; `profiles` adds and changes some. What this machine has not got is cut to what
//! it has. A profile decides how many threads and how much memory the engine has while a request of that profile runs, how long the
//! request may take, and how many of the node's places it costs.

use std::time::Duration;

/// The one of marts and requests that name none.
pub const DEFAULT: &str = "notebook";
/// Processors of a profile that costs one place.
const CPUS_PER_PLACE: u32 = 4;

/// How large an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// DuckDB's threads, and processors' worth of time where the kernel shares it out.
    pub threads: u32,
    /// DuckDB's memory limit; the process may pass it by a margin.
    pub memory_bytes: u64,
}

impl Size {
    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self { threads: self.threads.max(other.threads), memory_bytes: self.memory_bytes.max(other.memory_bytes) }
    }
}

/// A size by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// As requests name it.
    pub name: String,
    /// How large the engine is meanwhile.
    pub size: Size,
    /// Deadline of a request that names none; none is the node's.
    pub timeout: Option<Duration>,
    /// Places of the node that a request takes.
    pub places: u32,
}

/// All profiles of a node.
#[derive(Debug, Clone)]
pub struct Profiles(Vec<Profile>);

impl Profiles {
    /// The built-in ones and those of `text`: `NAME=CPUS/MEMORY[/SECONDS]`, separated by commas. `notebook` is as large as `least`, which is
    /// what engines start with; nothing is larger than `most`.
    pub fn parse(text: &str, least: Size, most: Size) -> Result<Self, String> {
        let mut profiles = vec![
            Profile::new(DEFAULT, least, None, 4),
            Profile::new("batch", Size { threads: 8, memory_bytes: 32 << 30 }, Some(Duration::from_secs(3600)), 8),
            Profile::new("heavy", Size { threads: 16, memory_bytes: 64 << 30 }, Some(Duration::from_secs(3600)), 16),
        ];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let profile =
                one(part).ok_or_else(|| format!("`{part}` is not NAME=CPUS/MEMORY[/SECONDS], as `etl=6/24GB/3600`"))?;
            profiles.retain(|known| known.name != profile.name);
            profiles.push(profile);
        }
        for profile in &mut profiles {
            profile.size.threads = profile.size.threads.min(most.threads).max(1);
            profile.size.memory_bytes = profile.size.memory_bytes.min(most.memory_bytes).max(least.memory_bytes);
        }
        Ok(Self(profiles))
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Option<&Profile> {
        self.0.iter().find(|profile| profile.name == name)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|profile| profile.name.as_str())
    }
}

impl Profile {
    /// `cpus` is what it is meant to have, whatever this machine has: what a request costs does not depend on the machine.
    fn new(name: &str, size: Size, timeout: Option<Duration>, cpus: u32) -> Self {
        Self { name: name.to_owned(), size, timeout, places: cpus.div_ceil(CPUS_PER_PLACE).max(1) }
    }
}

fn one(text: &str) -> Option<Profile> {
    let (name, size) = text.split_once('=')?;
    let mut parts = size.split('/').map(str::trim);
    let (cpus, memory) = (parts.next()?.parse().ok()?, crate::config::parse_bytes(parts.next()?)?);
    let timeout = match parts.next() {
        Some(seconds) => Some(Duration::from_secs(seconds.parse().ok()?)),
        None => None,
    };
    let name = name.trim();
    let legal = !name.is_empty()
        && name.len() <= 50
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    let size = Size { threads: cpus, memory_bytes: memory };
    (legal && cpus > 0 && parts.next().is_none()).then(|| Profile::new(name, size, timeout, cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Size = Size { threads: 2, memory_bytes: 1 << 30 };
    const MOST: Size = Size { threads: 8, memory_bytes: 40 << 30 };

    #[test]
    fn the_guide_s_sizes_are_there_cut_to_the_machine() {
        let profiles = Profiles::parse("", LEAST, MOST).expect("nothing to read");
        let size = |name: &str| profiles.get(name).map(|profile| (profile.size, profile.places));
        assert_eq!(size("notebook"), Some((LEAST, 1)));
        assert_eq!(size("batch"), Some((Size { threads: 8, memory_bytes: 32 << 30 }, 2)));
        assert_eq!(size("heavy"), Some((MOST, 4)));
        assert_eq!(size("none"), None);
    }

    #[test]
    fn one_s_own_are_added_and_bad_ones_refused() {
        let profiles = Profiles::parse("etl=6/24GB/60, batch=2/2GB", LEAST, MOST).expect("good");
        let etl = profiles.get("etl").expect("there");
        assert_eq!(
            (etl.size, etl.timeout, etl.places),
            (Size { threads: 6, memory_bytes: 24 << 30 }, Some(Duration::from_secs(60)), 2)
        );
        assert_eq!(profiles.get("batch").expect("there").places, 1);
        for bad in ["etl", "etl=6", "etl=0/1GB", "etl=x/1GB", "=1/1GB", "Etl=1/1GB", "etl=1/1GB/1/1", "etl=1/lots"] {
            assert!(Profiles::parse(bad, LEAST, MOST).is_err(), "{bad}");
        }
    }
}
