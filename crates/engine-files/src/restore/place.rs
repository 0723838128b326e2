//! The moment in which what was staged takes its place.
//!
//! Invariant: where nothing stands, a part appears whole, by one rename; where something stands, it is merged into it. A
//! failure takes everything back.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{TreeEntry, TreePath};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::Asked;
use super::apply::Applier;
use super::build::open_folder;
use super::location::{Reach, names_in};
use super::merge::{At, Merger, Putting, exchange, rename_new};
use super::staging::{NEW, Staging};
use super::target::{Standing, Unit};

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

/// What was done besides merging, so that it can be undone.
enum Done {
    /// A folder was made.
    Made(OwnedFd, OsString),
    /// A part was moved to its place, or exchanged with what stood there.
    Put(usize, Way),
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Moved,
    Exchanged,
}

/// Moves everything into place. Returns warnings about what could not be tidied up.
pub(crate) fn put_all(
    asked: &Asked,
    staged: Vec<Staging>,
    ancestors: &Ancestors,
    applier: &Applier,
) -> Result<Vec<String>> {
    sync(&staged)?;
    let recorded = asked.recorded_rules()?;
    let mut merger = Merger::new(asked, recorded.as_ref(), applier)?;
    let mut done = Vec::new();
    let mut reached: Vec<(&Unit, &Staging, Reach)> = Vec::new();
    let mut put_and_sync = || -> Result<()> {
        for (number, (unit, staging)) in asked.units.iter().zip(&staged).enumerate() {
            let reach = make_parents(unit, ancestors, applier, &mut done)?;
            reached.push((unit, staging, reach));
            let Some((.., reach)) = reached.last() else { continue };
            put(Putting { number, unit, staging }, reach, &mut merger, &mut done)?;
        }
        if asked.units.iter().any(Unit::is_merged) {
            sync(&staged)?;
        }
        reached.iter().try_for_each(|(unit, _, reach)| sync_above(unit, reach))
    };
    if let Err(error) = put_and_sync() {
        let taken_back = merger.undo(&reached);
        if undo(done, &reached) && taken_back {
            return Err(error);
        }
        drop(reached);
        // What stood there is in these folders now: they must stay.
        let kept: Vec<String> = staged.into_iter().map(|staging| staging.keep().display().to_string()).collect();
        let hint = format!("what stood there could not all be moved back; look into {}", kept.join(", "));
        return Err(error.hint(hint));
    }
    drop(reached);
    let mut warnings = merger.warnings();
    warnings.extend(staged.into_iter().filter_map(Staging::remove));
    Ok(warnings)
}

/// Brings everything that was staged to disk: once for each file system, not once for each file.
fn sync(staged: &[Staging]) -> Result<()> {
    let mut synced = Vec::new();
    for staging in staged {
        let device = rustix::fs::fstat(staging.fd()).map_err(|errno| staging.broken(errno))?.st_dev;
        if !synced.contains(&device) {
            rustix::fs::syncfs(staging.fd()).map_err(|errno| staging.broken(errno))?;
            synced.push(device);
        }
    }
    Ok(())
}

/// Makes a rename durable before what it replaced is removed.
fn sync_above(unit: &Unit, reach: &Reach) -> Result<()> {
    let synced = match open_folder(reach.folder.as_fd(), OsStr::new(".")) {
        Ok(folder) => rustix::fs::fsync(folder),
        // A folder that this user may write and not read.
        Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    };
    synced.map_err(|errno| Error::io("cannot make the restore durable", &unit.destination, errno.into()))
}

fn put(putting: Putting<'_>, reach: &Reach, merger: &mut Merger<'_>, done: &mut Vec<Done>) -> Result<()> {
    let Putting { number, unit, staging } = putting;
    let failed = |errno: Errno| Error::io("cannot put the restore in its place", &unit.destination, errno.into());
    let not_empty = || {
        Error::new(ErrorKind::AlreadyExists, "the target is not empty any more")
            .with("path", unit.destination.display())
    };
    let new = At { folder: staging.fd(), name: OsStr::new(NEW) };
    let to = At { folder: reach.folder.as_fd(), name: &reach.name };
    match unit.standing {
        Standing::Nothing => {
            merger.set_companions_aside(putting, &unit.stored, new, to)?;
            match rename_new(new, to) {
                // A file system or a kernel that does not know the flag.
                Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(new.folder, new.name, to.folder, to.name),
                result => result,
            }
            .map_err(|errno| match errno {
                Errno::EXIST | Errno::NOTEMPTY => not_empty(),
                errno => failed(errno),
            })?;
            done.push(Done::Put(number, Way::Moved));
        }
        Standing::EmptyFolder if staging.has_entry() => {
            exchange(new, to).map_err(failed)?;
            done.push(Done::Put(number, Way::Exchanged));
            let old = open_folder(new.folder, new.name);
            if old.is_ok_and(|old| names_in(old.as_fd()).is_ok_and(|names| !names.is_empty())) {
                return Err(not_empty());
            }
        }
        Standing::EmptyFolder | Standing::Something => merger.put(putting, &unit.stored, new, to)?,
        Standing::MountPoint => merger.merge(putting, &unit.stored, new, to)?,
    }
    Ok(())
}

/// Makes the folders above the destination that are missing, with the attributes that were saved.
fn make_parents(unit: &Unit, ancestors: &Ancestors, applier: &Applier, done: &mut Vec<Done>) -> Result<Reach> {
    // Reached anew: another part may have made some of them.
    let Reach { mut folder, missing, name } = unit.reach()?;
    let depth = unit.stored.components().count();
    for (index, made) in missing.iter().enumerate() {
        let above = missing.len() - index;
        let path = || unit.destination.ancestors().nth(above).unwrap_or(&unit.destination).to_owned();
        let failed = |errno: Errno| Error::io("cannot make a folder above the target", path(), errno.into());
        rustix::fs::mkdirat(&folder, made, Mode::from_raw_mode(0o777)).map_err(failed)?;
        let opened = open_folder(folder.as_fd(), made).map_err(failed)?;
        done.push(Done::Made(std::mem::replace(&mut folder, opened), made.clone()));
        let Some(levels) = depth.checked_sub(above).filter(|levels| *levels > 0) else { continue };
        let stored: Vec<&[u8]> = unit.stored.components().take(levels).collect();
        if let Some(entry) = ancestors.0.get(&TreePath::new(stored.join(&b'/'))?) {
            applier.folder(folder.as_fd(), entry)?;
        }
    }
    Ok(Reach { folder, missing: Vec::new(), name })
}

/// Takes everything back, last first. `false`: not everything could be.
fn undo(done: Vec<Done>, reached: &[(&Unit, &Staging, Reach)]) -> bool {
    let mut whole = true;
    for step in done.into_iter().rev() {
        let result = match step {
            Done::Made(parent, name) => rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR),
            Done::Put(number, way) => match reached.get(number) {
                Some((_, staging, reach)) => {
                    let new = At { folder: staging.fd(), name: OsStr::new(NEW) };
                    let to = At { folder: reach.folder.as_fd(), name: &reach.name };
                    match way {
                        Way::Moved => rustix::fs::renameat(to.folder, to.name, new.folder, new.name),
                        Way::Exchanged => exchange(new, to),
                    }
                }
                None => Err(Errno::INVAL),
            },
        };
        whole &= result.is_ok();
    }
    whole
}
