//! The end of a restore with `--delete`: what the snapshot does not have is removed.
//!
//! Invariant: everything that the snapshot has is in its place before the first removal. What was found before is looked
//! for once more: the ignore files that the restore brought may leave it out now.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use backup_core::error::{Error, Result};
use backup_core::tree::TreePath;
use rustix::fs::{AtFlags, FileType, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::Asked;
use super::build::open_folder;
use super::location::{enter, is_mounted, kind_of, parent_of};
use super::spool::Spool;
use super::target::{Unit, below};
use crate::owners::Owners;
use crate::walk::Walker;

/// Removes what is `doomed`, innermost first.
///
/// # Errors
/// When something cannot be removed; what the snapshot has is in its place nevertheless.
pub(crate) fn prune(asked: &Asked, doomed: Spool) -> Result<()> {
    let mut doomed = still_there(asked, doomed)?;
    let mut last: Option<Parent> = None;
    while let Some(bytes) = doomed.pop()? {
        asked.cx.check_cancelled()?;
        let path = TreePath::new(bytes)?;
        let Some(unit) = unit_of(&asked.units, &path) else { continue };
        let result = remove(unit, &path, &mut last);
        result.map_err(|errno| {
            Error::io("cannot remove what the snapshot does not have", unit.place_of(&path), errno.into())
                .hint("what the snapshot has is in its place; run the restore again to remove the rest")
        })?;
    }
    Ok(())
}

fn unit_of<'a>(units: &'a [Unit], path: &TreePath) -> Option<&'a Unit> {
    units.iter().find(|unit| !unit.nested && unit.is_merged() && unit.takes(path))
}

/// What the plan's rules still find.
fn still_there(asked: &Asked, mut doomed: Spool) -> Result<Spool> {
    let mut left = Spool::new(asked.cx.scratch())?;
    let (mut position, mut current) = (0, None::<(TreePath, Option<Walker<'_>>, Option<TreePath>)>);
    let owners = Arc::new(Owners::load());
    while let Some(bytes) = doomed.next(&mut position)? {
        let path = TreePath::new(bytes)?;
        let Some(unit) = unit_of(&asked.units, &path) else { continue };
        if current.as_ref().is_none_or(|(stored, ..)| *stored != unit.stored) {
            let walker = walker(asked, unit, &owners)?;
            current = Some((unit.stored.clone(), walker, Some(TreePath::root())));
        }
        let Some((_, Some(walker), next)) = &mut current else { continue };
        while next.as_ref().is_some_and(|next| *next < path) {
            *next = walker.next()?.map(|found| found.entry.path);
        }
        if next.as_ref() == Some(&path) {
            left.push(path.as_bytes())?;
        }
    }
    Ok(left)
}

fn walker<'a>(asked: &'a Asked, unit: &Unit, owners: &Arc<Owners>) -> Result<Option<Walker<'a>>> {
    let reach = unit.reach()?;
    match open_folder(reach.folder.as_fd(), &reach.name) {
        Ok(folder) => {
            let owners = Arc::clone(owners);
            Walker::inside(asked.quiet(), folder, &unit.destination, &unit.stored, &asked.rules, owners).map(Some)
        }
        Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => Ok(None),
        Err(errno) => Err(Error::io("cannot look into the target", &unit.destination, errno.into())),
    }
}

/// The folder that something is removed from. It keeps its time.
struct Parent {
    path: TreePath,
    folder: OwnedFd,
    stat: Stat,
}

impl Drop for Parent {
    fn drop(&mut self) {
        let modified =
            Timespec { tv_sec: self.stat.st_mtime, tv_nsec: self.stat.st_mtime_nsec.try_into().unwrap_or_default() };
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access, last_modification: modified };
        let _best_effort = rustix::fs::futimens(&self.folder, &times);
    }
}

fn remove(unit: &Unit, path: &TreePath, last: &mut Option<Parent>) -> Result<(), Errno> {
    let name = path.as_path().file_name().unwrap_or_default();
    let above = path.as_path().parent().map(|parent| parent.as_os_str().as_bytes().to_vec()).unwrap_or_default();
    let above = TreePath::new(above).map_err(|_| Errno::INVAL)?;
    if last.as_ref().is_none_or(|last| last.path != above) {
        *last = None;
        match open_parent(unit, &above) {
            Ok(parent) => *last = Some(parent),
            // It went, or became something else, when the snapshot's own entry took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    let Some(parent) = last else { return Ok(()) };
    let flags = match kind_of(parent.folder.as_fd(), name)? {
        None => return Ok(()),
        Some(FileType::Directory) => AtFlags::REMOVEDIR,
        Some(_) => AtFlags::empty(),
    };
    if unit.protects(path) || is_mounted(parent.folder.as_fd(), name)? {
        return Ok(());
    }
    match rustix::fs::unlinkat(&parent.folder, name, flags) {
        // Something in it stays, so it stays.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn open_parent(unit: &Unit, path: &TreePath) -> Result<Parent, Errno> {
    let reach = unit.reach().map_err(|_| Errno::NOENT)?;
    let mut folder = enter(reach.folder.as_fd(), &reach.name)?;
    if let Some(rest) = below(path, &unit.stored) {
        let names: Vec<&OsStr> = rest.components().map(OsStr::from_bytes).collect();
        let above = parent_of(folder.as_fd(), &names)?;
        folder = enter(above.as_fd(), names.last().copied().unwrap_or_default())?;
    }
    let folder = open_folder(folder.as_fd(), OsStr::new("."))?;
    let stat = rustix::fs::fstat(&folder)?;
    Ok(Parent { path: path.clone(), folder, stat })
}
