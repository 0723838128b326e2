//! Attributes of restored entries. What cannot be put back is counted and told once, with an example.
//!
//! Invariant: set-id bits are set only on files whose owner could be put back.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use backup_core::error::{Error, Result};
use backup_core::tree::{EntryKind, FileTime, TreeEntry};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::owners::Owners;

/// The bits that make a program run as its owner or group.
const SET_ID: u32 = 0o6000;

/// Puts attributes back, as far as this process may.
#[derive(Debug)]
pub(crate) struct Applier {
    owners: Owners,
    user: u32,
    group: u32,
    umask: u32,
    notes: Mutex<Vec<Note>>,
}

#[derive(Debug)]
struct Note {
    what: Shortfall,
    count: u64,
    example: String,
}

/// What could not be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortfall {
    /// An owner or group.
    Owner,
    /// An extended attribute or an ACL.
    Attribute,
    /// A device.
    Device,
    /// A link to something that could not be put back itself.
    Link,
}

impl Applier {
    /// For the user and the names of this process.
    pub(crate) fn for_this_process() -> Self {
        Self {
            owners: Owners::load(),
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
            umask: umask(),
            notes: Mutex::default(),
        }
    }

    /// Finishes an open file that was created with [`creation_mode`].
    pub(crate) fn file(&self, file: BorrowedFd<'_>, entry: &TreeEntry) -> Result<()> {
        let masked = entry.mode & 0o777 & self.umask != 0;
        self.open(file, entry, if masked { Created::Otherwise } else { Created::WithItsMode })
    }

    /// Finishes an open folder.
    pub(crate) fn folder(&self, folder: BorrowedFd<'_>, entry: &TreeEntry) -> Result<()> {
        self.open(folder, entry, Created::Otherwise)
    }

    /// Finishes an open folder that stood there before, and belongs to somebody.
    pub(crate) fn standing_folder(&self, folder: BorrowedFd<'_>, entry: &TreeEntry, owner: (u32, u32)) -> Result<()> {
        if owner != (self.user, self.group) {
            // Ours first, like a folder that we made; then it is given to its owner.
            let ours = (Some(Uid::from_raw(self.user)), Some(Gid::from_raw(self.group)));
            if rustix::fs::fchown(folder, ours.0, ours.1).is_err() {
                self.note(Shortfall::Owner, entry);
            }
        }
        self.folder(folder, entry)
    }

    fn open(&self, fd: BorrowedFd<'_>, entry: &TreeEntry, created: Created) -> Result<()> {
        let broken = |errno: Errno| broken(entry, errno);
        let owned = self.owner(entry, |uid, gid| rustix::fs::fchown(fd, uid, gid)).map_err(broken)?;
        for (name, value) in &entry.xattrs {
            let result = rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty());
            self.attribute(entry, name, result)?;
        }
        let mode = if owned { entry.mode } else { entry.mode & !SET_ID };
        if mode & 0o7000 != 0 || created == Created::Otherwise || !entry.xattrs.is_empty() {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(broken)?;
        }
        rustix::fs::futimens(fd, &times(entry.modified)).map_err(broken)
    }

    /// Finishes what cannot be opened without effects: a link, a pipe, a device.
    pub(crate) fn special(&self, parent: BorrowedFd<'_>, name: &OsStr, entry: &TreeEntry) -> Result<()> {
        let broken = |errno: Errno| broken(entry, errno);
        let chown = |uid, gid| rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        let owned = self.owner(entry, chown).map_err(broken)?;
        if !entry.xattrs.is_empty() {
            // There is no call that takes a folder and a name; the folder is ours, so the path leads where we mean.
            let mut path = format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).into_bytes();
            path.extend_from_slice(name.as_bytes());
            for (key, value) in &entry.xattrs {
                let (path, key_name) = (OsStr::from_bytes(&path), OsStr::from_bytes(key));
                let result = rustix::fs::lsetxattr(path, key_name, value, XattrFlags::empty());
                self.attribute(entry, key, result)?;
            }
        }
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            let mode = if owned { entry.mode } else { entry.mode & !SET_ID };
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(broken)?;
        }
        rustix::fs::utimensat(parent, name, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW).map_err(broken)
    }

    /// Gives the file to its owner. `false`: it could not.
    fn owner(
        &self,
        entry: &TreeEntry,
        chown: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        let uid = self.owners.uid(entry.user.as_deref(), entry.uid);
        let gid = self.owners.gid(entry.group.as_deref(), entry.gid);
        if (uid, gid) == (self.user, self.group) {
            return Ok(true);
        }
        // `-1` means "leave as it is" to chown(2), and is no owner.
        if uid == u32::MAX || gid == u32::MAX {
            self.note(Shortfall::Owner, entry);
            return Ok(false);
        }
        let new_user = (uid != self.user).then(|| Uid::from_raw(uid));
        match chown(new_user, Some(Gid::from_raw(gid))) {
            Ok(()) => Ok(true),
            // INVAL: a number that the user namespace does not map.
            Err(Errno::PERM | Errno::INVAL | Errno::NOTSUP) => {
                self.note(Shortfall::Owner, entry);
                Ok(false)
            }
            Err(errno) => Err(errno),
        }
    }

    fn attribute(&self, entry: &TreeEntry, name: &[u8], result: Result<(), Errno>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(broken(entry, errno)),
            Err(_) => {
                let name = String::from_utf8_lossy(name).into_owned();
                self.note_as(Shortfall::Attribute, format!("`{name}` of `/{}`", entry.path));
                Ok(())
            }
        }
    }

    /// Remembers that something of `entry` could not be put back.
    pub(crate) fn note(&self, what: Shortfall, entry: &TreeEntry) {
        self.note_as(what, format!("`/{}`", entry.path));
    }

    fn note_as(&self, what: Shortfall, example: String) {
        let Ok(mut notes) = self.notes.lock() else { return };
        match notes.iter_mut().find(|note| note.what == what) {
            Some(note) => note.count += 1,
            None => notes.push(Note { what, count: 1, example }),
        }
    }

    /// What could not be put back, one line for each sort.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let Ok(notes) = self.notes.lock() else { return Vec::new() };
        notes
            .iter()
            .map(|Note { what, count, example }| match what {
                Shortfall::Owner => {
                    format!("{count} entries could not be given to their owner, {example} among them; run as root")
                }
                Shortfall::Attribute => format!("{count} extended attributes could not be set, {example} among them"),
                Shortfall::Device => format!("{count} devices could not be made, {example} among them; run as root"),
                Shortfall::Link => {
                    format!("{count} links lead to entries that could not be made, {example} among them")
                }
            })
            .collect()
    }
}

/// The permission bits to create a file with. They are its final ones when [`Applier::file`] has nothing to add.
pub(crate) fn creation_mode(entry: &TreeEntry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o777)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Created {
    WithItsMode,
    Otherwise,
}

fn broken(entry: &TreeEntry, errno: Errno) -> Error {
    Error::io("cannot set the attributes of a restored file", format!("/{}", entry.path), errno.into())
}

/// Sets the modification time and leaves the time of the last access alone.
fn times(modified: FileTime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanos.into() },
    }
}

/// The mask of this process, which can only be read without changing it from proc(5). Unknown: as if it took all bits.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}
