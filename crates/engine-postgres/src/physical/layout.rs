//! Where the files of a cluster go: its data directory, and each tablespace.
//!
//! Invariant: nothing goes to where a tablespace was on the server, unless the restore takes the server's place or the operator
//! says so: its files may still be live there.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;

use super::details::PhysicalDetails;
use super::staging::Staging;

/// The folder of the links to tablespaces.
pub(super) const LINKS: &str = "pg_tblspc";

/// The data directory, below the folder of a restore.
pub(super) const DATA: &str = "data";

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The folder of each tablespace, by its number. Absolute: links lead there.
    pub(crate) tablespaces: BTreeMap<u32, PathBuf>,
}

impl Layout {
    /// Everything below one folder: `data`, and `tablespaces/<oid>`.
    pub(crate) fn below(folder: &Path, details: &PhysicalDetails) -> Self {
        let place = |oid: u32| folder.join("tablespaces").join(oid.to_string());
        let tablespaces = details.tablespaces.iter().map(|space| (space.oid, place(space.oid))).collect();
        Self { data: folder.join(DATA), tablespaces }
    }

    /// Everything where it was on the server.
    pub(crate) fn original(data: PathBuf, details: &PhysicalDetails) -> Self {
        let tablespaces = details.tablespaces.iter().map(|space| (space.oid, space.location.clone().into())).collect();
        Self { data, tablespaces }
    }

    /// Puts tablespaces elsewhere, named by where they were.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there was no tablespace in such a folder, or two would share one.
    pub(crate) fn relocate(mut self, relocate: &BTreeMap<PathBuf, PathBuf>, details: &PhysicalDetails) -> Result<Self> {
        for (old, new) in relocate {
            let space = details.tablespaces.iter().find(|space| Path::new(&space.location) == old);
            let Some(space) = space else {
                let all: Vec<&str> = details.tablespaces.iter().map(|space| space.location.as_str()).collect();
                let there = if all.is_empty() { "there is none".to_owned() } else { all.join(", ") };
                return Err(Error::new(ErrorKind::Usage, format!("no tablespace was in {}", old.display()))
                    .hint(format!("tablespaces of the snapshot: {there}")));
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
        Self { data: staging.path(&self.data), tablespaces }
    }

    /// Every folder that is written.
    pub(crate) fn folders(&self) -> impl DoubleEndedIterator<Item = &PathBuf> {
        std::iter::once(&self.data).chain(self.tablespaces.values())
    }

    /// Where an entry of the tree goes.
    pub(super) fn place(&self, path: &TreePath) -> PathBuf {
        match tablespace(path) {
            Some((oid, rest)) if self.tablespaces.contains_key(&oid) => {
                let rest = Path::new(std::ffi::OsStr::from_bytes(rest));
                let root = &self.tablespaces[&oid];
                if rest.as_os_str().is_empty() { root.clone() } else { root.join(rest) }
            }
            _ => path.below(&self.data),
        }
    }

    /// What the server shall find in `tablespace_map`: a number and a path a line, ends of lines in paths escaped.
    pub(super) fn map(&self) -> Vec<u8> {
        let mut map = Vec::new();
        for (oid, path) in &self.tablespaces {
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
        let layout = Layout { data: "/new/data".into(), tablespaces: BTreeMap::from([(16384, "/new/a\nb\\c".into())]) };
        for (path, place) in [
            ("pg_tblspc/16384/PG_15/5/1", "/new/a\nb\\c/PG_15/5/1"),
            ("pg_tblspc/16384", "/new/a\nb\\c"),
            ("pg_tblspc/1/x", "/new/data/pg_tblspc/1/x"),
            ("pg_tblspc", "/new/data/pg_tblspc"),
            ("base/5/1", "/new/data/base/5/1"),
        ] {
            assert_eq!(layout.place(&TreePath::new(path).unwrap()), Path::new(place), "{path}");
        }
        assert_eq!(layout.map(), b"16384 /new/a\\\nb\\\\c\n");
    }
}
