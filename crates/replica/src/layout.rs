//! Every key that a replica uses, in one place. Keys are relative to `{prefix}/{incarnation}`.
//!
//! **Invariant:** `log/` names are the only ones won by create-if-absent; packs and manifests carry a random part and are
//! never overwritten; `head` is a hint that may be missing, old or garbage.

use object_store::path::Path;
use uuid::Uuid;

use crate::record::Owner;

/// Log slots that one segment covers: segment `n` holds the records of slots `n * 1000 .. (n + 1) * 1000`.
pub const SLOTS_PER_SEGMENT: u64 = 1000;

/// Names objects of one incarnation of a mart.
#[derive(Debug, Clone)]
pub struct Layout {
    /// What all marts of the tenant have in common.
    family: Path,
    root: Path,
    owner: Owner,
}

impl Layout {
    /// `prefix` is the mart's (`duckdb/{mart}`).
    pub fn new(prefix: &Path, incarnation: Uuid) -> Self {
        let (family, mart) = prefix.as_ref().rsplit_once('/').unwrap_or(("", prefix.as_ref()));
        let owner = Owner { mart: mart.to_owned(), incarnation };
        Self { family: Path::from(family), root: prefix.clone().join(incarnation.to_string()), owner }
    }

    /// Of another mart of the same tenant.
    pub fn of(&self, owner: &Owner) -> Self {
        Self::new(&self.family.clone().join(owner.mart.as_str()), owner.incarnation)
    }

    /// Whose objects it names.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Everything of this incarnation lies below.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A log record, won by create-if-absent. Twenty digits, so that a listing is in order.
    pub fn slot(&self, slot: u64) -> Path {
        self.log().join(format!("{slot:020}"))
    }

    /// Where the slots are listed when the hint is lost.
    pub fn log(&self) -> Path {
        self.root.clone().join("log")
    }

    /// The slot that a listed key names.
    pub fn parse_slot(&self, key: &Path) -> Option<u64> {
        let name = key.as_ref().strip_prefix(self.log().as_ref())?.strip_prefix('/')?;
        (name.len() == 20).then(|| name.parse().ok())?
    }

    /// Concatenated records of a full range of slots.
    pub fn segment(&self, number: u64) -> Path {
        self.root.clone().join("segment").join(format!("{number:012}"))
    }

    /// Advisory: where the log's end was some time ago.
    pub fn head(&self) -> Path {
        self.root.clone().join("head")
    }

    /// Name (relative to the root) of a new base's table of blocks.
    pub fn new_manifest(epoch: u64, iteration: u64) -> String {
        format!("manifest/{epoch:010}-{iteration:020}-{}", Uuid::new_v4().simple())
    }

    /// Name (relative to the root) of a new pack of blocks.
    pub fn new_pack(epoch: u64) -> String {
        format!("pack/{epoch:010}-{}", Uuid::new_v4().simple())
    }

    /// A record that outlives the log around it because something named holds it.
    pub fn kept(&self, slot: u64) -> Path {
        self.root.clone().join("kept").join(format!("{slot:020}"))
    }

    /// Key of any object by its name below the root, as names of what is doomed have it.
    pub(crate) fn below(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    /// How a relative calls a manifest or pack that this mart calls `name`: `@{mart}/{incarnation}/{name}`.
    pub fn qualified(&self, name: &str) -> String {
        match name.starts_with('@') {
            true => name.to_owned(),
            false => format!("@{}/{}/{name}", self.owner.mart, self.owner.incarnation),
        }
    }

    /// Whose manifest or pack a name means, and what that one calls it.
    fn resolve<'a>(&self, name: &'a str) -> Option<(Self, &'a str)> {
        let Some(rest) = name.strip_prefix('@') else { return Some((self.clone(), name)) };
        let mut parts = rest.splitn(3, '/');
        let (mart, incarnation, name) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        let sane = !mart.is_empty() && mart.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        sane.then(|| (self.of(&Owner { mart: mart.to_owned(), incarnation }), name))
    }

    /// Key of a manifest or pack by the name a record gives it; `None` unless it is such a name.
    pub fn named(&self, name: &str) -> Option<Path> {
        let (layout, name) = self.resolve(name)?;
        layout.own(name)
    }

    /// The layout of whoever the named manifest or pack belongs to.
    pub fn home_of(&self, name: &str) -> Option<Self> {
        self.resolve(name).map(|(layout, _)| layout)
    }

    fn own(&self, name: &str) -> Option<Path> {
        let (folder, file) = name.split_once('/')?;
        let sane = matches!(folder, "manifest" | "pack")
            && !file.is_empty()
            && file.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        sane.then(|| self.root.clone().join(folder).join(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_list_in_order_and_parse_back() {
        let layout = Layout::new(&Path::from("duckdb/dev"), Uuid::nil());
        assert!(layout.slot(9).as_ref() < layout.slot(10).as_ref());
        assert_eq!(layout.parse_slot(&layout.slot(1234)), Some(1234));
        assert_eq!(layout.parse_slot(&layout.segment(1)), None);
    }

    #[test]
    fn a_name_from_a_record_cannot_leave_the_incarnation() {
        let layout = Layout::new(&Path::from("duckdb/dev"), Uuid::nil());
        assert!(layout.named(&Layout::new_pack(3)).is_some());
        let foreign = format!("@../{}/pack/a", Uuid::nil());
        for name in
            ["pack/", "pack/../x", "log/00000000000000000001", "pack/a/b", "/pack/a", "", "@a/b/pack/c", &foreign]
        {
            assert_eq!(layout.named(name), None, "{name}");
        }
    }

    #[test]
    fn a_relative_finds_what_another_mart_named() {
        let parent = Layout::new(&Path::from("duckdb/dev"), Uuid::nil());
        let branch = Layout::new(&Path::from("duckdb/try"), Uuid::from_u128(1));
        let name = Layout::new_pack(3);
        let qualified = parent.qualified(&name);
        assert_eq!(branch.named(&qualified), parent.named(&name));
        assert_eq!(parent.qualified(&qualified), qualified);
    }
}
