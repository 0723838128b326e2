//! Folders that a restore builds in, on the file system of its target.
//!
//! Invariant: only we may enter one; it is locked while its restore lives, so that what a killed one left is known and
//! removed by the next; removing it never crosses a mount.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreeEntry;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::build::{Folder, open_folder};
use super::location::{is_mounted, names_in};

/// The name of what is built, in its staging folder.
pub(crate) const NEW: &str = "new";
/// What follows the target's name in that of its staging folder, before eight letters by chance.
const MARK: &[u8] = b".stackward-";
const RANDOM: usize = 8;
/// The mode of a staging folder.
const PRIVATE: u32 = 0o700;

/// A folder beside the destination that only we may enter. Removed, with all that is in it, when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    parent: OwnedFd,
    name: OsString,
    fd: OwnedFd,
    /// For people.
    path: PathBuf,
    begun: Cell<bool>,
    entry: RefCell<Option<TreeEntry>>,
    kept: bool,
}

impl Staging {
    /// Makes one in `parent`, which is `path`, for something called `target`. Removes what killed restores left there.
    pub(crate) fn begin(parent: OwnedFd, path: &Path, target: &OsStr) -> Result<Self> {
        remove_leftovers(parent.as_fd());
        let failed = |errno: Errno| Error::io("cannot make a temporary folder beside the target", path, errno.into());
        // A name may be as long as the file system allows; ours must leave room for its own letters.
        let shown: String = target.to_string_lossy().chars().take(40).collect();
        let (name, fd) = loop {
            let mut name = OsString::from(format!(".{shown}"));
            name.push(OsStr::from_bytes(MARK));
            name.push(letters());
            match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(failed(errno)),
            }
            match open_own(parent.as_fd(), &name).and_then(|fd| Ok((claim(parent.as_fd(), &name, &fd)?, fd))) {
                Ok((Claimed::Ours, fd)) => break (name, fd),
                // Another restore took it for a leftover, in the moment before it was locked.
                Ok((Claimed::Lost, _)) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    let _leftover = rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR);
                    return Err(failed(errno));
                }
            }
        };
        let path = path.join(&name);
        let staging = Self { parent, name, fd, path, begun: Cell::new(false), entry: RefCell::default(), kept: false };
        staging.prepare().map_err(failed)?;
        Ok(staging)
    }

    fn prepare(&self) -> Result<(), Errno> {
        // What the folder above hands down (a default ACL, a group) must not reach what is restored.
        match rustix::fs::fremovexattr(&self.fd, "system.posix_acl_default") {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
        let _best_effort = rustix::fs::fchown(&self.fd, None, Some(rustix::process::getegid()));
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(PRIVATE))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether anything was put into it.
    pub(crate) fn is_begun(&self) -> bool {
        self.begun.get()
    }

    pub(crate) fn note_begun(&self) {
        self.begun.set(true);
    }

    /// Whether the tree says what the destination itself is.
    pub(crate) fn has_entry(&self) -> bool {
        self.entry.borrow().is_some()
    }

    /// Notes the entry that the destination itself becomes, and gives the folder to make it in.
    pub(crate) fn begin_with(&self, entry: &TreeEntry) -> Result<Arc<Folder>> {
        self.begun.set(true);
        *self.entry.borrow_mut() = Some(entry.clone());
        let fd = self.fd.try_clone().map_err(|source| Error::from_io("cannot duplicate a descriptor", source))?;
        Ok(Folder::new(fd, None))
    }

    pub(crate) fn broken(&self, errno: Errno) -> Error {
        Error::io("cannot write into the temporary folder", &self.path, errno.into())
    }

    /// Lets it stay.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.kept = true;
        std::mem::take(&mut self.path)
    }

    /// Removes it, and says when something of it is left.
    pub(crate) fn remove(mut self) -> Option<String> {
        self.kept = true;
        let failed = remove_beneath(self.parent.as_fd(), &self.name).err()?;
        Some(format!("the temporary folder `{}` could not be removed: {failed}", self.path.display()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody is left to tell; the name says whose it is, and the next restore removes it.
            let _leftover = remove_beneath(self.parent.as_fd(), &self.name);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimed {
    Ours,
    Lost,
}

/// Locks a staging folder that was just made, so that it is not taken for a leftover.
fn claim(parent: BorrowedFd<'_>, name: &OsStr, fd: &OwnedFd) -> Result<Claimed, Errno> {
    // A file system that knows no locks keeps what a killed restore leaves.
    if let Err(Errno::WOULDBLOCK) = rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        return Ok(Claimed::Lost);
    }
    let (own, named) = (rustix::fs::fstat(fd)?, rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW));
    match named {
        Ok(named) if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino) => Ok(Claimed::Ours),
        Ok(_) | Err(Errno::NOENT) => Ok(Claimed::Lost),
        Err(errno) => Err(errno),
    }
}

/// Opens a staging folder. Whoever may write the folder above could have put another in its place.
fn open_own(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if stat.st_uid == rustix::process::geteuid().as_raw() { Ok(fd) } else { Err(Errno::PERM) }
}

/// Eight letters by chance. The name need not be secret, for the folder is closed; it must only be new.
fn letters() -> String {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    format!("{random:016x}")[..RANDOM].to_owned()
}

/// Removes the staging folders in `parent` that no living restore holds.
pub(crate) fn remove_leftovers(parent: BorrowedFd<'_>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::openat(parent, ".", flags, Mode::empty()) else { return };
    let Ok(names) = names_in(folder.as_fd()) else { return };
    for name in names.iter().filter(|name| is_staging_name(name)) {
        let Ok(left) = open_own(parent, name) else { continue };
        let private = rustix::fs::fstat(&left).is_ok_and(|stat| stat.st_mode & 0o7777 == PRIVATE);
        if private && rustix::fs::flock(&left, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // The next attempt, or a person, sees what could not be removed.
            let _left_for_later = remove_beneath(parent, name);
        }
    }
}

fn is_staging_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let Some(mark) = bytes.len().checked_sub(MARK.len() + RANDOM) else { return false };
    bytes.starts_with(b".") && bytes[mark..].starts_with(MARK) && bytes[mark + MARK.len()..].is_ascii()
}

/// Removes `name` in `parent` and everything in it, also when folders forbid that to their owner. Follows no link.
///
/// # Errors
/// [`ErrorKind::Unsupported`] at a mount, which is not entered; and when something cannot be removed.
pub(crate) fn remove_beneath(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let failed = |errno: Errno| Error::io("cannot remove", name, errno.into());
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    if is_mounted(parent, name).map_err(failed)? {
        return Err(Error::new(ErrorKind::Unsupported, "a file system is mounted there").with("path", name.display()));
    }
    let folder = match open_folder(parent, name) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty()).map_err(failed)?;
            open_folder(parent, name)
        }
        result => result,
    };
    let folder = folder.map_err(failed)?;
    let stat = rustix::fs::fstat(&folder).map_err(failed)?;
    if stat.st_mode & PRIVATE != PRIVATE {
        rustix::fs::fchmod(&folder, Mode::RWXU).map_err(failed)?;
    }
    for item in names_in(folder.as_fd()).map_err(failed)? {
        remove_beneath(folder.as_fd(), &item)?;
    }
    drop(folder);
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed)
}
