//! Where the files of a cluster go: its data directory, and each tablespace.
//!
//! Invariant: nothing goes to where a tablespace was on the server, unless the restore takes the server's place or the operator
//! says so: its files may still be live there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;

use super::spaces::{Origin, Space, Spaces};
use super::staging::Staging;
use crate::recovery::STAGE;

/// The folder of the links to tablespaces.
pub(super) const LINKS: &str = "pg_tblspc";

/// The data directory, below the folder of a restore.
pub(super) const DATA: &str = "data";

/// Where tablespaces are, below [`STAGE`], that the log drops before the recovery ends.
const PASSING: &str = "passing";

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The folder of each tablespace, by its number. Absolute: links lead there.
    pub(crate) tablespaces: BTreeMap<u32, PathBuf>,
    /// Those of them that the base backup does not have: the log makes them.
    pub(crate) made: BTreeSet<u32>,
    /// Those that are dropped while the log is replayed, and live inside of the data directory until then.
    pub(crate) passing: BTreeSet<u32>,
}

impl Layout {
    /// Everything below one folder: `data`, and `tablespaces/<oid>`.
    pub(crate) fn below(folder: &Path, spaces: &Spaces) -> Self {
        Self::of(folder.join(DATA), spaces, |space| folder.join("tablespaces").join(space.oid.to_string()))
    }

    /// Everything where it was on the server.
    pub(crate) fn original(data: PathBuf, spaces: &Spaces) -> Self {
        let mut layout = Self::of(data, spaces, |space| space.location.clone());
        // One that is dropped makes room for another in the same folder.
        let stays = |space: &&Space| !space.dropped;
        for space in spaces.list.iter().filter(|space| space.dropped) {
            if spaces.list.iter().filter(stays).any(|other| other.location == space.location) {
                layout.tablespaces.remove(&space.oid);
                layout.passing.insert(space.oid);
            }
        }
        layout
    }

    fn of(data: PathBuf, spaces: &Spaces, place: impl Fn(&Space) -> PathBuf) -> Self {
        let is_made = |space: &&Space| matches!(space.origin, Origin::Log(_));
        let passing = |space: &&Space| is_made(space) && space.dropped;
        Self {
            data,
            tablespaces: spaces
                .list
                .iter()
                .filter(|space| !passing(space))
                .map(|space| (space.oid, place(space)))
                .collect(),
            made: spaces.list.iter().filter(is_made).map(|space| space.oid).collect(),
            passing: spaces.list.iter().filter(passing).map(|space| space.oid).collect(),
        }
    }

    /// Puts tablespaces elsewhere, named by where they were.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there was no tablespace in such a folder, or two would share one.
    pub(crate) fn relocate(mut self, relocate: &BTreeMap<PathBuf, PathBuf>, spaces: &Spaces) -> Result<Self> {
        for (old, new) in relocate {
            let there = || spaces.list.iter().filter(|space| self.tablespaces.contains_key(&space.oid));
            let Some(space) = there().find(|space| space.location == *old) else {
                let all: Vec<String> = there().map(|space| space.location.display().to_string()).collect();
                let there = if all.is_empty() { "there is none".to_owned() } else { all.join(", ") };
                return Err(Error::new(ErrorKind::Usage, format!("no tablespace was in {}", old.display()))
                    .hint(format!("tablespaces of the snapshot and of its log: {there}")));
            };
            self.tablespaces.insert(space.oid, new.clone());
        }
        let folders: Vec<&PathBuf> = self.folders().collect();
        for (index, folder) in folders.iter().enumerate() {
            if folders[..index].iter().any(|other| folder.starts_with(other) || other.starts_with(folder)) {
                let message = format!("{} would hold two parts of the cluster", folder.display());
                return Err(Error::new(ErrorKind::Usage, message).hint("give each tablespace a folder of its own"));
            }
        }
        Ok(self)
    }

    /// The same, where it is written until it is whole.
    pub(super) fn staged(&self, staging: &Staging) -> Self {
        let tablespaces = self.tablespaces.iter().map(|(oid, folder)| (*oid, staging.path(folder))).collect();
        Self { data: staging.path(&self.data), tablespaces, ..self.clone() }
    }

    /// Every folder that is written.
    pub(crate) fn folders(&self) -> impl DoubleEndedIterator<Item = &PathBuf> {
        std::iter::once(&self.data).chain(self.tablespaces.values())
    }

    /// Whether the tablespace with this number has a folder of its own.
    pub(super) fn has(&self, oid: u32) -> bool {
        self.tablespaces.contains_key(&oid) || self.passing.contains(&oid)
    }

    /// The folder of a tablespace that is dropped on the way; it goes with what the recovery needed.
    pub(super) fn passing(&self, oid: u32) -> PathBuf {
        self.data.join(STAGE).join(PASSING).join(oid.to_string())
    }

    /// What is removed when a recovery has ended that needed no log of an archive.
    pub(super) fn all_passing(&self) -> PathBuf {
        self.data.join(STAGE).join(PASSING)
    }

    /// The links to tablespaces, by their numbers, and what they lead to.
    pub(super) fn links(&self) -> impl Iterator<Item = (u32, PathBuf)> {
        let passing =
            self.passing.iter().map(|oid| (*oid, Path::new("..").join(STAGE).join(PASSING).join(oid.to_string())));
        self.tablespaces.iter().map(|(oid, folder)| (*oid, folder.clone())).chain(passing)
    }

    /// Where an entry of the tree goes.
    pub(super) fn place(&self, path: &TreePath) -> PathBuf {
        let root = |oid| match self.tablespaces.get(&oid) {
            None if self.passing.contains(&oid) => Some(self.passing(oid)),
            folder => folder.cloned(),
        };
        match tablespace(path).and_then(|(oid, rest)| Some((root(oid)?, Path::new(std::ffi::OsStr::from_bytes(rest)))))
        {
            Some((root, rest)) if rest.as_os_str().is_empty() => root,
            Some((root, rest)) => root.join(rest),
            None => path.below(&self.data),
        }
    }

    /// What the server shall find in `tablespace_map`, of which it links anew what the base backup has: a number and a path a line,
    /// ends of lines in paths escaped.
    pub(super) fn map(&self) -> Vec<u8> {
        let mut map = Vec::new();
        for (oid, path) in self.links().filter(|(oid, _)| !self.made.contains(oid)) {
            map.extend(format!("{oid} ").into_bytes());
            for byte in path.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    map.push(b'\\');
                }
                map.push(*byte);
            }
            map.push(b'\n');
        }
        map
    }
}

/// The tablespace's number and the path in it, for what lies in one.
pub(super) fn tablespace(path: &TreePath) -> Option<(u32, &[u8])> {
    let rest = path.as_bytes().strip_prefix(LINKS.as_bytes())?.strip_prefix(b"/")?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let oid = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((oid, rest[end..].strip_prefix(b"/").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_go_to_their_new_places_and_nowhere_else() {
        let tablespaces = BTreeMap::from([(16384, "/new/a\nb\\c".into()), (16400, "/new/made".into())]);
        let (made, passing) = ([16400, 16500].into(), [16500].into());
        let layout = Layout { data: "/new/data".into(), tablespaces, made, passing };
        for (path, place) in [
            ("pg_tblspc/16384/PG_15/5/1", "/new/a\nb\\c/PG_15/5/1"),
            ("pg_tblspc/16384", "/new/a\nb\\c"),
            ("pg_tblspc/16500/PG_15", "/new/data/pg_wal/stackward/passing/16500/PG_15"),
            ("pg_tblspc/1/x", "/new/data/pg_tblspc/1/x"),
            ("pg_tblspc", "/new/data/pg_tblspc"),
            ("base/5/1", "/new/data/base/5/1"),
        ] {
            assert_eq!(layout.place(&TreePath::new(path).unwrap()), Path::new(place), "{path}");
        }
        assert_eq!(layout.map(), b"16384 /new/a\\\nb\\\\c\n");
    }
}
