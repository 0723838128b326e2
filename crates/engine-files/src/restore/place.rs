//! Staging folders, and the moment in which what they hold takes its place.
//!
//! Invariant: what stood there is moved aside, never deleted, until everything new is in its place; a failure moves
//! it back.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::Existing;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{TreeEntry, TreePath};
use rustix::fs::{CWD, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::apply::Applier;
use super::build::Folder;
use super::target::{Standing, Unit};

/// The name of what is built, in its staging folder.
pub(crate) const NEW: &str = "new";
/// The name of what stood there, in the staging folder.
const OLD: &str = "old";
/// What a fresh ext file system holds.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// A folder beside the destination that only we may enter. Removed, with all that is in it, when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    fd: OwnedFd,
    begun: Cell<bool>,
    entry: std::cell::RefCell<Option<TreeEntry>>,
}

impl Staging {
    pub(crate) fn begin(unit: &Unit) -> Result<Self> {
        let folder = unit.staging_folder();
        let name = unit.destination.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A name may be as long as the file system allows; ours must leave room for its own letters.
        let prefix: String = std::iter::once('.').chain(name.chars().take(40)).chain(".stackward-".chars()).collect();
        let failed = |source| Error::io("cannot make a temporary folder beside the target", folder, source);
        let made = tempfile::Builder::new().prefix(&prefix).rand_bytes(8).tempdir_in(folder).map_err(failed)?;
        let path = made.keep();
        let staging = Self::open(path.clone());
        if staging.is_err() {
            let _leftover = std::fs::remove_dir(&path);
        }
        staging.map_err(|errno| Error::io("cannot use the temporary folder", &path, errno.into()))
    }

    fn open(path: PathBuf) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())?;
        // What the folder above hands down (a default ACL, a group) must not reach what is restored.
        match rustix::fs::fremovexattr(&fd, "system.posix_acl_default") {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
        let _best_effort = rustix::fs::fchown(&fd, None, Some(rustix::process::getegid()));
        rustix::fs::fchmod(&fd, Mode::RWXU)?;
        Ok(Self { path, fd, begun: Cell::new(false), entry: std::cell::RefCell::default() })
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

    fn new_path(&self) -> PathBuf {
        self.path.join(NEW)
    }

    fn old_path(&self) -> PathBuf {
        self.path.join(OLD)
    }

    /// Lets it stay.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }

    /// Removes it, and says when something of it is left.
    fn remove(mut self) -> Option<String> {
        let path = std::mem::take(&mut self.path);
        let failed = remove_tree(&path).err()?;
        Some(format!("the temporary folder `{}` could not be removed: {failed}", path.display()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Nobody is left to tell; the name says whose it is.
            let _leftover = remove_tree(&self.path);
        }
    }
}

/// Removes a tree, also when folders in it forbid that to their owner.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    let Err(first) = std::fs::remove_dir_all(path) else { return Ok(()) };
    if first.kind() != std::io::ErrorKind::PermissionDenied {
        return Err(first);
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
        for item in std::fs::read_dir(&folder)? {
            let item = item?;
            if item.file_type()?.is_dir() {
                folders.push(item.path());
            }
        }
    }
    std::fs::remove_dir_all(path)
}

/// The stored entries of the folders above the units, for those that must be made.
#[derive(Debug, Default)]
pub(crate) struct Ancestors(BTreeMap<TreePath, TreeEntry>);

impl Ancestors {
    /// Keeps `entry` when a unit lies below it. There are few: as many as the units are deep.
    pub(crate) fn note(&mut self, units: &[Unit], entry: TreeEntry) {
        if units.iter().any(|unit| unit.stored.starts_with(&entry.path)) {
            self.0.insert(entry.path.clone(), entry);
        }
    }
}

/// What was done, so that it can be undone.
enum Done {
    Made(PathBuf),
    Renamed { from: PathBuf, to: PathBuf },
    Exchanged(PathBuf, PathBuf),
}

/// Moves everything into place. Returns warnings about what could not be tidied up.
pub(crate) fn put_all(
    units: &[Unit],
    staged: Vec<Staging>,
    ancestors: &Ancestors,
    applier: &Applier,
    existing: Existing,
) -> Result<Vec<String>> {
    for staging in &staged {
        rustix::fs::syncfs(&staging.fd).map_err(|errno| staging.broken(errno))?;
    }
    let mut done = Vec::new();
    let mut put_and_sync = || -> Result<()> {
        for (unit, staging) in units.iter().zip(&staged) {
            put(unit, staging, ancestors, applier, existing, &mut done)?;
        }
        staged.iter().try_for_each(|staging| rustix::fs::syncfs(&staging.fd).map_err(|errno| staging.broken(errno)))
    };
    if let Err(error) = put_and_sync() {
        if undo(done) {
            return Err(error);
        }
        // What stood there is in these folders now: they must stay.
        let kept: Vec<String> = staged.into_iter().map(|staging| staging.keep().display().to_string()).collect();
        let hint = format!("what stood there could not all be moved back; look into {}", kept.join(", "));
        return Err(error.hint(hint));
    }
    Ok(staged.into_iter().filter_map(Staging::remove).collect())
}

fn put(
    unit: &Unit,
    staging: &Staging,
    ancestors: &Ancestors,
    applier: &Applier,
    existing: Existing,
    done: &mut Vec<Done>,
) -> Result<()> {
    let to = &unit.destination;
    let failed = |errno: Errno| Error::io("cannot move what was restored into its place", to, errno.into());
    match unit.standing {
        Standing::Nothing => {
            make_parents(unit, ancestors, applier, done)?;
            rename_new(&staging.new_path(), to).map_err(|errno| match errno {
                Errno::EXIST | Errno::NOTEMPTY => {
                    Error::new(ErrorKind::AlreadyExists, "something appeared at the target").with("path", to.display())
                }
                errno => failed(errno),
            })?;
            done.push(Done::Renamed { from: staging.new_path(), to: to.clone() });
        }
        Standing::EmptyFolder | Standing::Something => {
            if staging.entry.borrow().is_none() {
                keep_attributes(to, &staging.new_path()).map_err(failed)?;
            }
            exchange(staging, to, done).map_err(failed)?;
            let filled = std::fs::read_dir(staging.new_path()).is_ok_and(|mut items| items.next().is_some());
            if unit.standing == Standing::EmptyFolder && existing == Existing::Refuse && filled {
                return Err(
                    Error::new(ErrorKind::AlreadyExists, "the target is not empty any more").with("path", to.display())
                );
            }
        }
        Standing::MountPoint => {
            move_children(staging, to, done).map_err(failed)?;
            if let Some(entry) = &*staging.entry.borrow() {
                let folder =
                    std::fs::File::open(to).map_err(|source| Error::io("cannot open the target", to, source))?;
                applier.folder(folder.as_fd(), entry)?;
            }
        }
    }
    Ok(())
}

/// The tree says nothing about the folder itself: it stays as it is.
fn keep_attributes(from: &Path, to: &Path) -> Result<(), Errno> {
    let Ok(metadata) = std::fs::metadata(from) else { return Ok(()) };
    if metadata.is_dir() {
        let owner = (Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())));
        let _best_effort = rustix::fs::chown(to, owner.0, owner.1);
        rustix::fs::chmod(to, Mode::from_raw_mode(metadata.mode()))?;
    }
    Ok(())
}

fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system or a kernel that does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(CWD, from, CWD, to),
        result => result,
    }
}

fn exchange(staging: &Staging, to: &Path, done: &mut Vec<Done>) -> Result<(), Errno> {
    let new = staging.new_path();
    match rustix::fs::renameat_with(CWD, &new, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => {
            done.push(Done::Exchanged(new, to.to_owned()));
            Ok(())
        }
        Err(Errno::INVAL | Errno::NOSYS) => {
            rename(to, &staging.old_path(), done)?;
            rename(&new, to, done)
        }
        Err(errno) => Err(errno),
    }
}

fn move_children(staging: &Staging, to: &Path, done: &mut Vec<Done>) -> Result<(), Errno> {
    std::fs::DirBuilder::new().mode(0o700).create(staging.old_path()).map_err(|source| errno_of(&source))?;
    let keep = |name: &OsStr| Some(name) == staging.path.file_name() || name.as_bytes() == LOST_AND_FOUND.as_bytes();
    for name in names(to)?.iter().filter(|name| !keep(name)) {
        rename(&to.join(name), &staging.old_path().join(name), done)?;
    }
    for name in names(&staging.new_path())? {
        // A saved `lost+found` has nowhere to go: the file system has its own.
        if name.as_bytes() != LOST_AND_FOUND.as_bytes() || !to.join(&name).exists() {
            rename(&staging.new_path().join(&name), &to.join(&name), done)?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>, Errno> {
    let items = std::fs::read_dir(folder).map_err(|source| errno_of(&source))?;
    items.map(|item| item.map(|item| item.file_name()).map_err(|source| errno_of(&source))).collect()
}

fn errno_of(source: &std::io::Error) -> Errno {
    Errno::from_io_error(source).unwrap_or(Errno::IO)
}

fn rename(from: &Path, to: &Path, done: &mut Vec<Done>) -> Result<(), Errno> {
    rustix::fs::renameat(CWD, from, CWD, to)?;
    done.push(Done::Renamed { from: from.to_owned(), to: to.to_owned() });
    Ok(())
}

/// Makes the folders above the destination that are missing, with the attributes that were saved.
fn make_parents(unit: &Unit, ancestors: &Ancestors, applier: &Applier, done: &mut Vec<Done>) -> Result<()> {
    let missing: Vec<&Path> = unit.destination.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
    let depth = unit.stored.components().count();
    for (above, folder) in missing.iter().enumerate().rev() {
        let failed = |source| Error::io("cannot make a folder above the target", folder, source);
        std::fs::create_dir(folder).map_err(failed)?;
        done.push(Done::Made((*folder).to_owned()));
        let Some(levels) = depth.checked_sub(above + 1).filter(|levels| *levels > 0) else { continue };
        let stored: Vec<&[u8]> = unit.stored.components().take(levels).collect();
        if let Some(entry) = ancestors.0.get(&TreePath::new(stored.join(&b'/'))?) {
            let opened = std::fs::File::open(folder).map_err(failed)?;
            applier.folder(opened.as_fd(), entry)?;
        }
    }
    Ok(())
}

/// Takes everything back, last first. `false`: not everything could be.
fn undo(done: Vec<Done>) -> bool {
    let mut whole = true;
    for step in done.into_iter().rev() {
        let result = match step {
            Done::Made(path) => std::fs::remove_dir(path),
            Done::Renamed { from, to } => std::fs::rename(to, from),
            Done::Exchanged(a, b) => {
                rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).map_err(std::io::Error::from)
            }
        };
        whole &= result.is_ok();
    }
    whole
}
