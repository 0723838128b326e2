//! Places that are reached folder by folder, by descriptor.
//!
//! Invariant: above a place, links are followed, because the operator named that path; from there on none ever is. What
//! a user of the restored tree puts in the way of root is refused by name, never walked through.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// Where something goes: below a folder that the operator named.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    above: PathBuf,
    below: Vec<OsString>,
}

/// A location, opened as far as it exists.
#[derive(Debug)]
pub(crate) struct Reach {
    /// The innermost folder above the place that is there.
    pub(crate) folder: OwnedFd,
    /// The folders between it and the place that are not, outermost first.
    pub(crate) missing: Vec<OsString>,
    /// The place's name in its folder.
    pub(crate) name: OsString,
}

impl Location {
    /// The place `path` below `above`, in which no link is followed. `above` becomes its real path, as far as it exists.
    pub(crate) fn new(above: &Path, path: &TreePath) -> Self {
        let below = path.components().map(|name| OsStr::from_bytes(name).to_owned()).collect();
        Self { above: real(above), below }
    }

    /// A place below this one.
    pub(crate) fn join(&self, path: &TreePath) -> Self {
        let mut below = self.below.clone();
        below.extend(path.components().map(|name| OsStr::from_bytes(name).to_owned()));
        Self { above: self.above.clone(), below }
    }

    /// Its real path.
    pub(crate) fn path(&self) -> PathBuf {
        self.below.iter().fold(self.above.clone(), |path, name| path.join(name))
    }

    /// Opens the folders that lead to it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when a link or something else that is no folder is in the way.
    pub(crate) fn reach(&self) -> Result<Reach> {
        let Some((name, between)) = self.below.split_last() else {
            return Err(Error::new(ErrorKind::Unsupported, "a running system cannot be replaced as a whole")
                .hint("restore into a folder, or select paths"));
        };
        let (mut folder, mut missing) = open_existing(&self.above)?;
        let mut path = self.above.clone();
        for name in between {
            path.push(name);
            if !missing.is_empty() {
                missing.push(name.clone());
                continue;
            }
            match enter(folder.as_fd(), name) {
                Ok(next) => folder = next,
                Err(Errno::NOENT) => missing.push(name.clone()),
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(in_the_way(&path)),
                Err(errno) => return Err(Error::io("cannot open the folder", &path, errno.into())),
            }
        }
        Ok(Reach { folder, missing, name: name.clone() })
    }
}

/// The error for something that is no folder, where the restore must pass.
pub(crate) fn in_the_way(path: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, "a link, or something else that is no folder, stands where a folder must be")
        .with("path", path.display())
        .hint(
            "a restore follows no link below the paths that it restores: move it away, or restore into another folder",
        )
}

/// The real path of `path`, as far as it exists.
pub(crate) fn real(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = std::fs::canonicalize(ancestor) {
            return missing.iter().rev().fold(real, |path, name| path.join(name));
        }
        missing.extend(ancestor.file_name());
    }
    path.to_owned()
}

/// Opens the innermost folder of `path` that exists, and tells what is missing.
fn open_existing(path: &Path) -> Result<(OwnedFd, Vec<OsString>)> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(ancestor, flags, Mode::empty()) {
            Ok(folder) => {
                missing.reverse();
                return Ok((folder, missing));
            }
            Err(Errno::NOENT) => missing.extend(ancestor.file_name().map(OsStr::to_owned)),
            Err(Errno::NOTDIR) => return Err(in_the_way(ancestor)),
            Err(errno) => return Err(Error::io("cannot open the folder", ancestor, errno.into())),
        }
    }
    Err(Error::new(ErrorKind::Unsupported, "the path is not absolute").with("path", path.display()))
}

/// Opens a folder to go through it: no right to read it is needed, and no link is followed.
pub(crate) fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens the folder that holds the last of `names`, below `folder`. Follows no link.
pub(crate) fn parent_of(folder: BorrowedFd<'_>, names: &[&OsStr]) -> Result<OwnedFd, Errno> {
    let mut parent = rustix::io::fcntl_dupfd_cloexec(folder, 0)?;
    for name in names.iter().take(names.len().saturating_sub(1)) {
        parent = enter(parent.as_fd(), name)?;
    }
    Ok(parent)
}

/// What `name` in `parent` is; `None` when it is not there.
pub(crate) fn kind_of(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether a file system, or a file of another place, is mounted on `name`; or it is a folder of another device, as a
/// subvolume of btrfs is: nothing can be renamed into it from here, and nobody expects us to remove it.
pub(crate) fn is_mounted(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    let statx = rustix::fs::statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    if statx.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(true);
    }
    // Files may be of other devices than their folder without any border between them (overlayfs).
    let is_folder = FileType::from_raw_mode(u32::from(statx.stx_mode)) == FileType::Directory;
    let above = rustix::fs::fstat(parent)?;
    Ok(is_folder && above.st_dev != rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor))
}

/// The names in a folder, sorted.
pub(crate) fn names_in(folder: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort();
    Ok(names)
}

/// The real paths of what is mounted strictly below `folder`, from proc(5), outermost first.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    const TABLE: &str = "/proc/self/mountinfo";
    let table = std::fs::read(TABLE).map_err(|source| Error::io("cannot see what is mounted", TABLE, source))?;
    let mut mounts: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|mount| mount.starts_with(folder) && mount != folder)
        .collect();
    mounts.sort();
    mounts.dedup();
    Ok(mounts)
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let value = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mounts_are_unescaped() {
        let cases: [(&[u8], &[u8]); 4] =
            [(b"/a", b"/a"), (br"/a\040b", b"/a b"), (br"/x\134040", br"/x\040"), (br"/end\04", br"/end\04")];
        for (field, expected) in cases {
            assert_eq!(unescape(field), expected);
        }
    }

    #[test]
    fn a_link_below_a_place_is_not_followed_and_one_above_is() {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        std::fs::create_dir_all(at("real/root")).unwrap();
        std::fs::create_dir_all(at("elsewhere/sub")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("real/root/planted")).unwrap();
        let place = |below: &str| Location::new(&at("link"), &TreePath::new(below).unwrap());
        assert_eq!(place("root/x").path(), std::fs::canonicalize(at("real/root")).unwrap().join("x"));
        assert_eq!(place("root/x").reach().unwrap().missing, Vec::<OsString>::new());
        assert_eq!(place("root/new/deep/x").reach().unwrap().missing, ["new", "deep"]);
        let error = place("root/planted/sub/x").reach().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("real/root/planted"), "{error}");
    }
}
