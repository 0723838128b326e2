//! Tree entries: what a tree artifact is made of, before any sink encodes it.
//!
//! Invariant: a [`TreePath`] is relative and has no `.`, `..` or empty component, so joining it to a folder stays inside.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// A relative path inside a tree: bytes (names need not be UTF-8), components separated by `/`.
/// The empty path is the tree's root.
///
/// Ordering is the order of a depth-first walk that visits names by their bytes: component by component.
/// Tree artifacts are stored in this order, which lets two of them be compared by one merge without memory.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Box<[u8]>);

/// Longer paths than this cannot be created on Linux in one call (`PATH_MAX`); some can exist, none is sane.
pub const MAX_PATH_BYTES: usize = 64 * 1024;

impl TreePath {
    /// The root of the tree.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks and wraps.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the path could leave its tree or cannot be a path at all.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        if let Some(why) = path_fault(&bytes) {
            let shown = String::from_utf8_lossy(&bytes).escape_debug().to_string();
            return Err(Error::new(ErrorKind::Damaged, format!("`{shown}` is not a path inside a tree: {why}"))
                .hint("whoever wrote this tree wanted to write outside its target; do not restore it"));
        }
        Ok(Self(bytes.into_boxed_slice()))
    }

    /// The path of `name` in this folder.
    ///
    /// # Errors
    /// As [`TreePath::new`].
    pub fn join(&self, name: &OsStr) -> Result<Self> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        Self::new(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative file system path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The path below `folder`.
    #[must_use]
    pub fn below(&self, folder: &Path) -> PathBuf {
        if self.is_root() { folder.to_owned() } else { folder.join(self.as_path()) }
    }

    /// Whether this is the tree's root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    /// Whether this is `ancestor` itself or lies below it.
    #[must_use]
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        ancestor.is_root()
            || (self.0.starts_with(&ancestor.0) && matches!(self.0.get(ancestor.0.len()), None | Some(b'/')))
    }
}

fn path_fault(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        return None;
    }
    if bytes.len() > MAX_PATH_BYTES {
        return Some("it is too long");
    }
    if bytes.contains(&0) {
        return Some("it holds a zero byte");
    }
    let bad = |component: &[u8]| matches!(component, b"" | b"." | b"..");
    if bytes.split(|byte| *byte == b'/').any(bad) {
        return Some("it is absolute, or has an empty, `.` or `..` component");
    }
    None
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // `/` must sort before every other byte, else `a-b` would come between `a` and `a/b`.
        let rank = |byte: &u8| if *byte == b'/' { 0u16 } else { u16::from(*byte) + 1 };
        self.0.iter().map(rank).cmp(other.0.iter().map(rank))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory. It precedes everything below it.
    Directory,
    /// A regular file with its length in bytes.
    File {
        /// The length, holes included.
        size: u64,
    },
    /// A symbolic link, with its target as it stands (never followed).
    Symlink {
        /// The target's bytes.
        target: Vec<u8>,
    },
    /// Another name of a regular file (or other non-directory) that came earlier in the same tree.
    Hardlink {
        /// The earlier path.
        target: TreePath,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// A moment as file systems keep it: seconds since the Unix epoch and nanoseconds (0 to 999,999,999).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FileTime {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// What tells, without reading it, that a file is the very one that was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileIdentity {
    /// The inode number.
    pub inode: u64,
    /// The time of the last status change (`ctime`), which no program can set back.
    pub changed: FileTime,
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Where it is in the tree.
    pub path: TreePath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, set-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// The owner's name on the machine that was backed up, when it has one.
    pub user: Option<String>,
    /// The group's name on the machine that was backed up, when it has one.
    pub group: Option<String>,
    /// The time of the last modification.
    pub modified: FileTime,
    /// Extended attributes, POSIX ACLs among them (`system.posix_acl_access`), in the order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// For regular files: see [`FileIdentity`]. Zero when unknown.
    pub identity: FileIdentity,
}

impl TreeEntry {
    /// The length in bytes for a regular file, zero otherwise.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size } => size,
            _ => 0,
        }
    }

    /// Whether a sink that holds the content of `earlier` may use it for this entry without reading the file:
    /// same path, size, modification time, inode and status-change time, the last two known.
    #[must_use]
    pub fn same_file(&self, earlier: &Self) -> bool {
        matches!((&self.kind, &earlier.kind), (EntryKind::File { size: a }, EntryKind::File { size: b }) if a == b)
            && self.path == earlier.path
            && self.modified == earlier.modified
            && self.identity == earlier.identity
            && self.identity.inode != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    #[test]
    fn a_path_cannot_leave_its_tree() {
        for bad in ["/etc/passwd", "../x", "a/../b", "a/..", "a//b", "a/", ".", "./a", "a\0b"] {
            let error = TreePath::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{bad}");
        }
        assert!(TreePath::new("").unwrap().is_root());
        assert!(TreePath::new(b"caf\xe9/\xff".to_vec()).is_ok());
    }

    #[test]
    fn order_is_that_of_a_depth_first_walk() {
        let mut paths = ["a-b", "a/b", "a", "", "a/b/c", "a.b", "a/b!"].map(path);
        paths.sort();
        let texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [".", "a", "a/b", "a/b/c", "a/b!", "a-b", "a.b"]);
    }

    #[test]
    fn starting_with_is_by_component() {
        assert!(path("a/b").starts_with(&path("a")));
        assert!(path("a").starts_with(&path("")));
        assert!(!path("ab").starts_with(&path("a")));
    }

    #[test]
    fn join_refuses_a_name_that_climbs() {
        assert!(path("a").join(OsStr::new("..")).is_err());
        assert_eq!(path("a").join(OsStr::new("b")).unwrap(), path("a/b"));
    }
}
