//! Hard links: found again in the staged tree without following anything, or copied when their target is not restored.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{TreeEntry, TreePath};
use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::build::{Folder, Restore, make_special, name_of, open_folder};
use super::content::{ContentWriter, Job};
use super::staging::{NEW, Staging};
use super::target::Unit;

/// More links than this to files that are not restored cannot be kept in mind.
const MAX_ORPHANS: usize = 100_000;

/// Links whose target is not restored, or lies in another file system: the first of them gets the content.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    by_target: BTreeMap<TreePath, Vec<(usize, TreeEntry)>>,
    count: usize,
}

impl Orphans {
    pub(crate) fn add(&mut self, target: &TreePath, unit: usize, entry: TreeEntry) -> Result<()> {
        if self.count == MAX_ORPHANS {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("more than {MAX_ORPHANS} links lead out of the selection"),
            )
            .hint("restore everything, or select the folders that hold their targets too"));
        }
        self.count += 1;
        self.by_target.entry(target.clone()).or_default().push((unit, entry));
        Ok(())
    }

    /// Reads the tree once more and writes each target's content under the links' names. Returns the bytes written.
    pub(crate) fn copy(mut self, restore: &Restore, writer: &ContentWriter, staged: &[Staging]) -> Result<u64> {
        let mut bytes = 0;
        if self.by_target.is_empty() {
            return Ok(bytes);
        }
        let mut tree = restore.asked.tree()?;
        while let Some(stored) = restore.asked.runtime.block_on(tree.next())? {
            restore.asked.cx.check_cancelled()?;
            let Some(links) = self.by_target.remove(&stored.entry.path) else { continue };
            bytes += copy_one(restore, writer, staged, &stored.entry, stored.content, &links)?;
        }
        match self.by_target.keys().next() {
            Some(target) => {
                Err(Error::new(ErrorKind::Damaged, format!("a link leads to `/{target}`, which is not in the tree")))
            }
            None => Ok(bytes),
        }
    }
}

fn copy_one(
    restore: &Restore,
    writer: &ContentWriter,
    staged: &[Staging],
    target: &TreeEntry,
    mut content: Option<Box<dyn backup_core::sink::FileContent>>,
    links: &[(usize, TreeEntry)],
) -> Result<u64> {
    let mut bytes = 0;
    let mut first: Option<(OwnedFd, std::ffi::OsString)> = None;
    for (unit, link) in links {
        let broken = |errno: Errno| Error::io("cannot make a restored link", format!("/{}", link.path), errno.into());
        let folder = parent(&staged[*unit], &restore.asked.units[*unit], &link.path).map_err(broken)?;
        let before = rustix::fs::fstat(&folder).map_err(broken)?;
        let name = if link.path == restore.asked.units[*unit].stored { NEW.into() } else { name_of(link) };
        let entry = TreeEntry { kind: target.kind.clone(), ..link.clone() };
        match (&first, content.take()) {
            (None, Some(content)) => {
                let job = Job {
                    folder: Folder::new(
                        folder.try_clone().map_err(|source| Error::from_io("cannot duplicate a descriptor", source))?,
                        None,
                    ),
                    name: name.clone(),
                    entry,
                    content,
                };
                bytes += writer.write(job)?;
            }
            (Some((from, known)), _) => {
                rustix::fs::linkat(from, known, &folder, &name, AtFlags::empty()).map_err(broken)?;
            }
            (None, None) if make_special(&restore.applier, folder.as_fd(), &name, &entry)? => {}
            // A device that this user may not make; the next name is tried, and noted, too.
            (None, None) => continue,
        }
        let modified =
            Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec.try_into().unwrap_or_default() };
        let times =
            Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified };
        rustix::fs::futimens(&folder, &times).map_err(broken)?;
        first.get_or_insert((folder, name));
    }
    Ok(bytes)
}

/// Makes `name` in `folder` another name of the staged `target`.
pub(crate) fn link(
    home: &Staging,
    unit: &Unit,
    target: &TreePath,
    folder: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<(), Errno> {
    let from = parent(home, unit, target)?;
    let known = if *target == unit.stored { OsStr::new(NEW) } else { target.as_path().file_name().unwrap_or_default() };
    // Without AT_SYMLINK_FOLLOW, a symbolic link gets another name itself (linkat(2)).
    rustix::fs::linkat(&from, known, folder, name, AtFlags::empty())
}

/// Opens the staged folder that holds `path`, component by component, never through a symbolic link.
fn parent(home: &Staging, unit: &Unit, path: &TreePath) -> Result<OwnedFd, Errno> {
    let mut folder = rustix::io::fcntl_dupfd_cloexec(home.fd(), 0)?;
    if *path == unit.stored {
        return Ok(folder);
    }
    folder = open_folder(folder.as_fd(), OsStr::new(NEW))?;
    let depth = unit.stored.components().count();
    let below: Vec<&[u8]> = path.components().skip(depth).collect();
    for component in below.iter().take(below.len().saturating_sub(1)) {
        folder = open_folder(folder.as_fd(), OsStr::from_bytes(component))?;
    }
    Ok(folder)
}
