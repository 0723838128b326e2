//! Putting what was staged into what stands there: entry by entry, each by one rename.
//!
//! Invariant: at any moment each entry is the old one or the new one, also after a power cut; what is not in the snapshot
//! is not touched; a failure takes everything back. No link below a target is followed, and nothing is written through
//! a name: files are exchanged, never opened.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use backup_core::engine::{Existing, Unknown};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::Asked;
use super::apply::Applier;
use super::build::open_folder;
use super::location::{Reach, is_mounted, kind_of, names_in, parent_of};
use super::spool::Spool;
use super::staging::{NEW, Staging};
use super::survey::{Guard, conflict};
use super::target::{Unit, below};
use crate::attributes::{self, Holder};
use crate::filter::Rules;
use crate::owners::Owners;
use crate::sqlite::COMPANIONS;

/// What a folder's owner needs to change what is in it.
const OPEN: u32 = 0o700;

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) folder: BorrowedFd<'a>,
    pub(crate) name: &'a OsStr,
}

/// One part, while it is put in its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Putting<'a> {
    pub(crate) number: usize,
    pub(crate) unit: &'a Unit,
    pub(crate) staging: &'a Staging,
}

/// What was done, so that it can be undone. Kept in a file: a tree may have any number of entries.
#[derive(Debug)]
struct Journal(Spool);

/// A step that was done.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The new entry went to where nothing was.
    Moved,
    /// The new entry and the old one changed places.
    Exchanged,
    /// The folder, whose attributes these were, is being changed.
    Changing(Attributes),
    /// A companion of the database at this path went into the staging folder: the ending with this index, under this number.
    Aside(u8, u32),
}

/// Attributes of a folder that stands at the target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanos: u32,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Merger<'a> {
    asked: &'a Asked,
    applier: &'a Applier,
    owners: Owners,
    guard: Guard<'a>,
    journal: Journal,
    warnings: Vec<String>,
    aside: u32,
}

impl<'a> Merger<'a> {
    pub(crate) fn new(asked: &'a Asked, recorded: Option<&'a Rules>, applier: &'a Applier) -> Result<Self> {
        let journal = Journal(Spool::new(asked.cx.scratch())?);
        let guard = Guard { plan: &asked.rules, recorded };
        Ok(Self { asked, applier, owners: Owners::load(), guard, journal, warnings: Vec::new(), aside: 0 })
    }

    /// Puts the staged `new` at the entry `path`, whatever stands there.
    pub(crate) fn put(&mut self, putting: Putting<'_>, path: &TreePath, new: At<'_>, to: At<'_>) -> Result<()> {
        self.set_companions_aside(putting, path, new, to)?;
        let moved = match rename_new(new, to) {
            // A file system or a kernel that does not know the flag.
            Err(Errno::INVAL | Errno::NOSYS) => match kind_of(to.folder, to.name) {
                Ok(None) => rustix::fs::renameat(new.folder, new.name, to.folder, to.name),
                Ok(Some(_)) => Err(Errno::EXIST),
                Err(errno) => Err(errno),
            },
            result => result,
        };
        match moved {
            Ok(()) => self.journal.note(putting.number, path, &Step::Moved).inspect_err(|_| {
                let _taken_back = rename_new(to, new);
            }),
            Err(Errno::EXIST) => self.meet(putting, path, new, to),
            Err(errno) => Err(failed(putting.unit, path, errno)),
        }
    }

    /// The log and the index of a database that is replaced belong to the old one: beside the new one they destroy it.
    /// They go first, so that the new one never stands beside them.
    pub(crate) fn set_companions_aside(
        &mut self,
        putting: Putting<'_>,
        path: &TreePath,
        new: At<'_>,
        to: At<'_>,
    ) -> Result<()> {
        let unit = putting.unit;
        for (index, ending) in (0_u8..).zip(COMPANIONS) {
            let (companion, brought) = (with_ending(to.name, ending), with_ending(new.name, ending));
            let inner = TreePath::new([path.as_bytes(), ending.as_bytes()].concat())?;
            let broken = |errno: Errno| failed(unit, &inner, errno);
            let stands = kind_of(to.folder, &companion).map_err(broken)?;
            if !stands.is_some_and(|kind| kind != FileType::Directory)
                || kind_of(new.folder, &brought).map_err(broken)?.is_some()
                || self.asked.units.iter().any(|other| other.stored == inner)
                || !(is_database(new) || is_database(to))
            {
                continue;
            }
            let place = unit.place_of(path).with_file_name(&companion);
            if self.asked.target.existing == Existing::Refuse {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    "a file of another state of the database stands there",
                )
                .with("path", place.display())
                .hint("move it away, or add `--force`"));
            }
            if unit.leaves_alone(&inner) {
                return Err(Error::new(ErrorKind::AlreadyExists, "a file of the database belongs to another source")
                    .with("path", place.display())
                    .hint("restore the database with that source, and leave it out here with `--select`"));
            }
            self.aside += 1;
            let aside = aside(self.aside);
            rustix::fs::renameat(to.folder, &companion, putting.staging.fd(), &aside).map_err(broken)?;
            self.journal.note(putting.number, path, &Step::Aside(index, self.aside)).inspect_err(|_| {
                let _taken_back = rustix::fs::renameat(putting.staging.fd(), &aside, to.folder, &companion);
            })?;
            self.warnings.push(format!("removed `{}`: it belonged to the database that was replaced", place.display()));
        }
        Ok(())
    }

    /// What the operator should know.
    pub(crate) fn warnings(self) -> Vec<String> {
        self.warnings
    }

    /// Something stands there.
    fn meet(&mut self, putting: Putting<'_>, path: &TreePath, new: At<'_>, to: At<'_>) -> Result<()> {
        let broken = |errno: Errno| failed(putting.unit, path, errno);
        let vanished = || broken(Errno::NOENT);
        let brings = kind_of(new.folder, new.name).map_err(broken)?.ok_or_else(vanished)?;
        let stands = kind_of(to.folder, to.name).map_err(broken)?.ok_or_else(vanished)?;
        let folders = (brings == FileType::Directory, stands == FileType::Directory);
        let place = || putting.unit.place_of(path);
        match folders {
            (true, true) => return self.merge(putting, path, new, to),
            (false, false) if self.asked.target.existing == Existing::Refuse => {
                return Err(Error::new(ErrorKind::AlreadyExists, "the target is not empty any more")
                    .with("path", place().display()));
            }
            (false, false) => {}
            _ => self.check_conflict(putting, path, to, stands).map_err(|error| error.unwrap_or_else(vanished))?,
        }
        match exchange(new, to) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                return Err(Error::new(ErrorKind::Unsupported, "something is mounted there; it cannot be replaced")
                    .with("path", place().display())
                    .hint("unmount it, or leave it out with `--select`"));
            }
            Err(errno) => return Err(broken(errno)),
        }
        let back = |error: Error| match exchange(new, to) {
            Ok(()) => error,
            Err(_) => error.hint("what stood there is in the temporary folder beside it"),
        };
        // What was empty a moment ago may not be so any more.
        if folders.1
            && self.asked.target.unknown == Unknown::Keep
            && let Ok(old) = open_folder(new.folder, new.name)
            && names_in(old.as_fd()).is_ok_and(|names| !names.is_empty())
        {
            return Err(back(conflict(&place(), stands, Unknown::Keep)));
        }
        self.journal.note(putting.number, path, &Step::Exchanged).map_err(back)
    }

    /// A folder excludes whatever else the snapshot has there. `Err(None)`: it vanished.
    fn check_conflict(
        &self,
        putting: Putting<'_>,
        path: &TreePath,
        to: At<'_>,
        stands: FileType,
    ) -> Result<(), Option<Error>> {
        let broken = |errno: Errno| Some(failed(putting.unit, path, errno));
        let mounted = is_mounted(to.folder, to.name).map_err(broken)?;
        if stands == FileType::Directory && !mounted {
            let folder = open_folder(to.folder, to.name).map_err(broken)?;
            if names_in(folder.as_fd()).map_err(broken)?.is_empty() {
                return Ok(());
            }
        }
        let unknown = self.asked.target.unknown;
        if unknown == Unknown::Delete && self.guard.lets_go(putting.unit, to.folder, to.name, path).map_err(broken)? {
            return Ok(());
        }
        Err(Some(conflict(&putting.unit.place_of(path), stands, unknown)))
    }

    /// Both are folders: what is in the new one goes into the old one, which takes over its attributes.
    pub(crate) fn merge(&mut self, putting: Putting<'_>, path: &TreePath, new: At<'_>, to: At<'_>) -> Result<()> {
        let broken = |errno: Errno| failed(putting.unit, path, errno);
        let top = *path == putting.unit.stored;
        let (staged, mut wanted) = self.open(path, new).map_err(broken)?;
        // The label of the staging folder is not one that was saved.
        wanted.xattrs.retain(|(name, _)| name != b"security.selinux");
        let mut names = names_in(staged.as_fd()).map_err(broken)?;
        // A database comes before its companions, which are still here then when the snapshot brings them.
        names.sort();
        if !top && is_mounted(to.folder, to.name).map_err(broken)? {
            // The snapshot has nothing for it but the mount point itself: what is mounted has attributes of its own.
            let hint =
                "it is a subvolume, or was mounted meanwhile: restore it by itself with `--select`, then the rest";
            return if names.is_empty() { Ok(()) } else { Err(broken(Errno::XDEV).hint(hint)) };
        }
        let (standing, before) = self.open(path, to).map_err(broken)?;
        self.journal.note(putting.number, path, &Step::Changing(Attributes::of(&before)))?;
        for (folder, entry) in [(&staged, &wanted), (&standing, &before)] {
            // Only root may change what is in a folder that is closed to its owner.
            if entry.mode & OPEN != OPEN && !rustix::process::geteuid().is_root() {
                rustix::fs::fchmod(folder, Mode::from_raw_mode(entry.mode | OPEN)).map_err(broken)?;
            }
        }
        for name in names {
            self.asked.cx.check_cancelled()?;
            let inner = path.join(&name)?;
            let new = At { folder: staged.as_fd(), name: &name };
            self.put(putting, &inner, new, At { folder: standing.as_fd(), name: &name })?;
        }
        if top && !putting.staging.has_entry() {
            // The tree says nothing about the folder itself.
            return rustix::fs::fchmod(&standing, Mode::from_raw_mode(before.mode)).map_err(broken);
        }
        remove_xattrs(&standing, &before.xattrs, &wanted.xattrs);
        self.applier.standing_folder(standing.as_fd(), &wanted, (before.uid, before.gid))
    }

    /// Opens a folder, and reads its attributes.
    fn open(&self, path: &TreePath, at: At<'_>) -> Result<(OwnedFd, TreeEntry), Errno> {
        let stat = rustix::fs::statat(at.folder, at.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let folder = match open_folder(at.folder, at.name) {
            Err(Errno::ACCESS) if stat.st_uid == rustix::process::geteuid().as_raw() => {
                let mode = Mode::from_raw_mode((stat.st_mode & 0o7777) | OPEN);
                rustix::fs::chmodat(at.folder, at.name, mode, AtFlags::empty())?;
                open_folder(at.folder, at.name)?
            }
            result => result?,
        };
        let xattrs = attributes::xattrs(Holder::Open(folder.as_fd()))?.unwrap_or_default();
        Ok((folder, attributes::entry(path.clone(), EntryKind::Directory, &stat, xattrs, &self.owners)))
    }

    /// Takes everything back, last first. `false`: not everything could be.
    pub(crate) fn undo(mut self, units: &[(&Unit, &Staging, Reach)]) -> bool {
        let mut whole = true;
        loop {
            let (number, path, step) = match self.journal.take() {
                Ok(Some(done)) => done,
                Ok(None) => return whole,
                Err(_) => return false,
            };
            let Some((unit, staging, reach)) = units.get(number) else { return false };
            whole &= take_back(unit, staging, reach, &path, step).is_ok();
        }
    }
}

fn take_back(unit: &Unit, staging: &Staging, reach: &Reach, path: &TreePath, step: Step) -> Result<(), Errno> {
    let rest = below(path, &unit.stored);
    let names = |top: &'static str, own: &std::ffi::OsString| -> Vec<std::ffi::OsString> {
        let top = if top.is_empty() { own.clone() } else { top.into() };
        let inner = rest.iter().flat_map(TreePath::components).map(|name| OsStr::from_bytes(name).to_owned());
        std::iter::once(top).chain(inner).collect()
    };
    let (new_names, to_names) = (names(NEW, &reach.name), names("", &reach.name));
    let open = |folder: BorrowedFd<'_>, names: &[std::ffi::OsString]| {
        let names: Vec<&OsStr> = names.iter().map(std::ffi::OsString::as_os_str).collect();
        parent_of(folder, &names)
    };
    let to_folder = open(reach.folder.as_fd(), &to_names)?;
    let to = At { folder: to_folder.as_fd(), name: to_names.last().ok_or(Errno::INVAL)? };
    if let Step::Changing(before) = step {
        return before.put_back(&open_folder(to.folder, to.name)?);
    }
    if let Step::Aside(index, number) = step {
        let ending = COMPANIONS.get(usize::from(index)).ok_or(Errno::INVAL)?;
        return rustix::fs::renameat(staging.fd(), aside(number), to.folder, with_ending(to.name, ending));
    }
    let new_folder = open(staging.fd(), &new_names)?;
    let new = At { folder: new_folder.as_fd(), name: new_names.last().ok_or(Errno::INVAL)? };
    match step {
        Step::Moved => rustix::fs::renameat(to.folder, to.name, new.folder, new.name),
        _ => exchange(new, to),
    }
}

fn with_ending(name: &OsStr, ending: &str) -> std::ffi::OsString {
    let mut name = name.to_owned();
    name.push(ending);
    name
}

/// The name of a companion in the staging folder.
fn aside(number: u32) -> String {
    format!("aside-{number}")
}

/// Whether it is a file that begins like a database of SQLite. What cannot be read is none.
pub(crate) fn is_database(at: At<'_>) -> bool {
    use rustix::fs::OFlags;
    if !matches!(kind_of(at.folder, at.name), Ok(Some(FileType::RegularFile))) {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut header = [0_u8; 16];
    rustix::fs::openat(at.folder, at.name, flags, Mode::empty())
        .and_then(|file| rustix::io::pread(&file, &mut header, 0))
        .is_ok_and(|read| read == header.len() && header == *b"SQLite format 3\0")
}

fn failed(unit: &Unit, path: &TreePath, errno: Errno) -> Error {
    Error::io("cannot put a restored entry in its place", unit.place_of(path), errno.into())
}

/// Moves `from` to where nothing may be.
pub(crate) fn rename_new(from: At<'_>, to: At<'_>) -> Result<(), Errno> {
    rustix::fs::renameat_with(from.folder, from.name, to.folder, to.name, RenameFlags::NOREPLACE)
}

/// Lets two entries change places.
pub(crate) fn exchange(new: At<'_>, to: At<'_>) -> Result<(), Errno> {
    match rustix::fs::renameat_with(new.folder, new.name, to.folder, to.name, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => exchange_in_steps(new, to),
        result => result,
    }
}

/// On a file system without exchange. A file keeps a second name meanwhile, so that there is always one in its place; a
/// folder cannot, and is gone for a moment.
fn exchange_in_steps(new: At<'_>, to: At<'_>) -> Result<(), Errno> {
    let mut aside = std::ffi::OsString::from(".exchanged-");
    aside.push(new.name.as_bytes().get(..40).map_or(new.name, OsStr::from_bytes));
    if rustix::fs::linkat(to.folder, to.name, new.folder, &aside, AtFlags::empty()).is_err() {
        rustix::fs::renameat(to.folder, to.name, new.folder, &aside)?;
    }
    rustix::fs::renameat(new.folder, new.name, to.folder, to.name)?;
    rustix::fs::renameat(new.folder, &aside, new.folder, new.name)
}

/// Takes away what the snapshot's folder does not have: an ACL would let in whom it did not.
fn remove_xattrs(folder: &OwnedFd, before: &[(Vec<u8>, Vec<u8>)], wanted: &[(Vec<u8>, Vec<u8>)]) {
    for (name, _) in before {
        let ours = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        if ours && !wanted.iter().any(|(other, _)| other == name) {
            let _not_allowed = rustix::fs::fremovexattr(folder, OsStr::from_bytes(name));
        }
    }
}

impl Attributes {
    fn of(entry: &TreeEntry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            seconds: entry.modified.seconds,
            nanos: entry.modified.nanos,
            xattrs: entry.xattrs.clone(),
        }
    }

    fn put_back(&self, folder: &OwnedFd) -> Result<(), Errno> {
        use rustix::fs::{Gid, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        let now = rustix::fs::fstat(folder)?;
        let has = attributes::xattrs(Holder::Open(folder.as_fd()))?.unwrap_or_default();
        let modified = attributes::modified(&now);
        let unchanged = (now.st_uid, now.st_gid, now.st_mode & 0o7777) == (self.uid, self.gid, self.mode)
            && (modified.seconds, modified.nanos) == (self.seconds, self.nanos)
            && has == self.xattrs;
        // What cannot be changed at all (an immutable folder) need not be changed back.
        if unchanged {
            return Ok(());
        }
        if (now.st_uid, now.st_gid) != (self.uid, self.gid) {
            rustix::fs::fchown(folder, owner.0, owner.1)?;
        }
        remove_xattrs(folder, &has, &self.xattrs);
        for (name, value) in self.xattrs.iter().filter(|one| !has.contains(one)) {
            rustix::fs::fsetxattr(folder, OsStr::from_bytes(name), value, XattrFlags::empty())?;
        }
        rustix::fs::fchmod(folder, Mode::from_raw_mode(self.mode))?;
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let last_modification = Timespec { tv_sec: self.seconds, tv_nsec: self.nanos.into() };
        rustix::fs::futimens(folder, &Timestamps { last_access, last_modification })
    }
}

impl Journal {
    fn note(&mut self, unit: usize, path: &TreePath, step: &Step) -> Result<()> {
        let mut record = Vec::new();
        put_field(&mut record, &unit.to_le_bytes());
        put_field(&mut record, path.as_bytes());
        match step {
            Step::Moved => record.push(b'm'),
            Step::Exchanged => record.push(b'x'),
            Step::Aside(index, number) => {
                record.extend_from_slice(&[b'a', *index]);
                record.extend_from_slice(&number.to_le_bytes());
            }
            Step::Changing(before) => {
                record.push(b'c');
                for number in [before.mode, before.uid, before.gid, before.nanos] {
                    record.extend_from_slice(&number.to_le_bytes());
                }
                record.extend_from_slice(&before.seconds.to_le_bytes());
                for (name, value) in &before.xattrs {
                    put_field(&mut record, name);
                    put_field(&mut record, value);
                }
            }
        }
        self.0.push(&record)
    }

    /// Takes the last step away.
    fn take(&mut self) -> Result<Option<(usize, TreePath, Step)>> {
        let Some(record) = self.0.pop()? else { return Ok(None) };
        let unreadable = || Error::new(ErrorKind::Internal, "the journal of a restore cannot be read");
        let mut rest = record.as_slice();
        let unit = take_field(&mut rest).and_then(|bytes| bytes.try_into().ok()).map(usize::from_le_bytes);
        let path = TreePath::new(take_field(&mut rest).ok_or_else(unreadable)?.to_vec())?;
        let (kind, rest) = rest.split_first().ok_or_else(unreadable)?;
        let step = match kind {
            b'm' => Some(Step::Moved),
            b'x' => Some(Step::Exchanged),
            b'a' => rest
                .split_first()
                .and_then(|(index, rest)| Some(Step::Aside(*index, u32::from_le_bytes(rest.try_into().ok()?)))),
            _ => read_attributes(rest).map(Step::Changing),
        };
        Ok(Some((unit.ok_or_else(unreadable)?, path, step.ok_or_else(unreadable)?)))
    }
}

fn read_attributes(mut rest: &[u8]) -> Option<Attributes> {
    let mut number = || {
        let (first, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        Some(u32::from_le_bytes(*first))
    };
    let (mode, uid, gid, nanos) = (number()?, number()?, number()?, number()?);
    let (seconds, mut rest) = rest.split_first_chunk::<8>()?;
    let mut before = Attributes { mode, uid, gid, seconds: i64::from_le_bytes(*seconds), nanos, xattrs: Vec::new() };
    while !rest.is_empty() {
        before.xattrs.push((take_field(&mut rest)?.to_vec(), take_field(&mut rest)?.to_vec()));
    }
    Some(before)
}

fn put_field(record: &mut Vec<u8>, field: &[u8]) {
    record.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(field);
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (field, after) = after.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    *rest = after;
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gives_back_what_was_noted() {
        let mut journal = Journal(Spool::new(&std::env::temp_dir()).unwrap());
        let path = |text: &str| TreePath::new(text).unwrap();
        let before = Attributes {
            mode: 0o2755,
            uid: 7,
            gid: 8,
            seconds: -5,
            nanos: 999,
            xattrs: vec![(b"user.a".to_vec(), b"x".to_vec()), (b"user.b".to_vec(), Vec::new())],
        };
        journal.note(0, &path("srv"), &Step::Changing(before.clone())).unwrap();
        journal.note(3, &path("srv/a"), &Step::Moved).unwrap();
        journal.note(1, &path("w.db"), &Step::Aside(2, 300)).unwrap();
        journal.note(1, &path(""), &Step::Exchanged).unwrap();
        assert_eq!(journal.take().unwrap(), Some((1, path(""), Step::Exchanged)));
        assert_eq!(journal.take().unwrap(), Some((1, path("w.db"), Step::Aside(2, 300))));
        assert_eq!(journal.take().unwrap(), Some((3, path("srv/a"), Step::Moved)));
        assert_eq!(journal.take().unwrap(), Some((0, path("srv"), Step::Changing(before))));
        assert_eq!(journal.take().unwrap(), None);
    }
}
