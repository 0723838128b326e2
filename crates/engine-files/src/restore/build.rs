//! Builds the tree in its staging folders: one thread makes folders, links and devices in the tree's order, a few
//! write contents.
//!
//! Invariant: everything is made through the descriptor of a folder that this restore made itself, so no entry can
//! lead out of its target, whatever the stored tree says.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use backup_core::engine::{RestoreReport, Unknown};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{FileContent, StoredEntry};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::Asked;
use super::apply::{Applier, Shortfall};
use super::content::{ContentWriter, Job};
use super::links::Orphans;
use super::place::Ancestors;
use super::spool::Spool;
use super::staging::{NEW, Staging};
use super::target::Unit;
use crate::backup::ENTRIES;

/// Files that wait for a writer.
const QUEUE: usize = 64;
/// Writers beyond this wait for each other in the file system.
const MAX_WRITERS: usize = 4;

/// A folder that this restore made. Its attributes are put back when nothing more is made in it.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    entry: Option<TreeEntry>,
}

impl Folder {
    pub(crate) fn new(fd: OwnedFd, entry: Option<TreeEntry>) -> Arc<Self> {
        Arc::new(Self { fd, entry })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Lets go of the folder; whoever does so last puts its attributes back.
    pub(crate) fn release(self: Arc<Self>, applier: &Applier) -> Result<()> {
        match Arc::into_inner(self) {
            Some(Self { fd, entry: Some(entry) }) => applier.folder(fd.as_fd(), &entry),
            _ => Ok(()),
        }
    }
}

/// Files that are handed to a writer and not finished, so that a link can wait for its target.
#[derive(Debug, Default)]
struct InFlight {
    paths: Mutex<HashSet<TreePath>>,
    landed: Condvar,
}

impl InFlight {
    fn add(&self, path: &TreePath) {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
    }

    fn remove(&self, path: &TreePath) {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        self.landed.notify_all();
    }

    fn wait_for(&self, path: &TreePath) {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        while paths.contains(path) {
            paths = self.landed.wait(paths).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A restore, ready to run on a thread that may block.
#[derive(Debug)]
pub(crate) struct Restore {
    pub(crate) asked: Asked,
    pub(crate) applier: Arc<Applier>,
    /// What is removed at the end.
    pub(crate) doomed: Option<Spool>,
}

impl Restore {
    /// Stages everything, then moves it into place. On an error, everything is as before.
    pub(crate) fn run(mut self) -> Result<RestoreReport> {
        self.look()?;
        let staged: Vec<Staging> = self.asked.units.iter().map(begin).collect::<Result<_>>()?;
        let writer = ContentWriter {
            cx: self.asked.cx.clone(),
            runtime: self.asked.runtime.clone(),
            applier: Arc::clone(&self.applier),
        };
        // Links are rare; without any, nobody need keep track of what is being written.
        let links = self.asked.from.record().fingerprint.0.get(ENTRIES).and_then(|counts| counts.get("hard links"));
        let in_flight = (links != Some(&0)).then(InFlight::default);
        let (jobs, queue) = bounded::<Job>(QUEUE);
        let stop = self.asked.cx.cancellation();
        let (built, written) = std::thread::scope(|scope| {
            let write = || {
                let mut drain = Drain { queue: &queue, in_flight: in_flight.as_ref(), stop: Some(stop) };
                let result = write_all(&writer, &queue, in_flight.as_ref());
                if result.is_ok() {
                    drain.stop = None;
                }
                result
            };
            let writers: Vec<_> = (0..self.asked.cx.jobs().clamp(2, MAX_WRITERS)).map(|_| scope.spawn(write)).collect();
            let mut builder = Builder::new(&self, &staged, Some(jobs), in_flight.as_ref());
            let built = builder.build();
            let result = built.map(|()| builder.finish());
            let counts: Vec<Result<u64>> = writers
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a writer panicked")))
                })
                .collect();
            (result, counts)
        });
        let (mut bytes, mut failure) = (0, None);
        for result in written {
            match result {
                Ok(count) => bytes += count,
                Err(error) => crate::backup::prefer(&mut failure, error),
            }
        }
        let built = match built {
            Ok(built) => Some(built),
            Err(error) => {
                crate::backup::prefer(&mut failure, error);
                None
            }
        };
        if let Some(error) = failure {
            return Err(error);
        }
        let Some(built) = built else { return Err(backup_core::context::interrupted()) };
        let items = built.items;
        bytes += built.orphans.copy(&self, &writer, &staged)?;
        self.asked.cx.check_cancelled()?;
        let mut warnings = super::place::put_all(&self.asked, staged, &built.ancestors, &self.applier)?;
        if let Some(doomed) = self.doomed {
            super::prune::prune(&self.asked, doomed)?;
        }
        warnings.extend(self.applier.warnings());
        let parts = self.asked.units.iter().filter(|unit| !unit.nested);
        let restored = parts.map(|unit| unit.destination.display().to_string()).collect();
        Ok(RestoreReport { restored, bytes, items, warnings, ..RestoreReport::default() })
    }

    /// Looks once more at what stands there, where that decides what is done.
    fn look(&mut self) -> Result<()> {
        if self.asked.target.unknown == Unknown::Delete || self.asked.units.iter().any(|unit| unit.nested) {
            let survey = super::survey::survey(&self.asked)?;
            survey.drop_unused(&mut self.asked.units)?;
            self.doomed = survey.doomed;
        }
        Ok(())
    }
}

fn begin(unit: &Unit) -> Result<Staging> {
    let (folder, path) = unit.staging_folder()?;
    Staging::begin(folder, &path, unit.destination.file_name().unwrap_or_default())
}

/// After a failure, and after a panic: stops the others, and takes their work away so that nobody waits for it.
struct Drain<'a> {
    queue: &'a Receiver<Job>,
    in_flight: Option<&'a InFlight>,
    stop: Option<&'a CancellationToken>,
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        let Some(stop) = self.stop else { return };
        stop.cancel();
        while let Ok(job) = self.queue.recv() {
            drop(Landing { in_flight: self.in_flight, path: job.entry.path });
        }
    }
}

/// Says, when dropped, that a file is not in flight any more.
struct Landing<'a> {
    in_flight: Option<&'a InFlight>,
    path: TreePath,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if let Some(in_flight) = self.in_flight {
            in_flight.remove(&self.path);
        }
    }
}

fn write_all(writer: &ContentWriter, queue: &Receiver<Job>, in_flight: Option<&InFlight>) -> Result<u64> {
    let mut bytes = 0;
    for job in queue {
        let _landing = in_flight.map(|_| Landing { in_flight, path: job.entry.path.clone() });
        writer.cx.check_cancelled()?;
        bytes += writer.write(job)?;
    }
    Ok(bytes)
}

/// What the builder leaves for the end.
pub(crate) struct Built {
    items: u64,
    orphans: Orphans,
    ancestors: Ancestors,
}

struct Builder<'a> {
    restore: &'a Restore,
    staged: &'a [Staging],
    jobs: Option<Sender<Job>>,
    in_flight: Option<&'a InFlight>,
    /// The unit that is being built, and the folders from its start to the last entry.
    unit: Option<usize>,
    stack: Vec<(TreePath, Arc<Folder>)>,
    last: Option<TreePath>,
    left: Built,
}

impl<'a> Builder<'a> {
    fn new(
        restore: &'a Restore,
        staged: &'a [Staging],
        jobs: Option<Sender<Job>>,
        in_flight: Option<&'a InFlight>,
    ) -> Self {
        let left = Built { items: 0, orphans: Orphans::default(), ancestors: Ancestors::default() };
        Self { restore, staged, jobs, in_flight, unit: None, stack: Vec::new(), last: None, left }
    }

    fn finish(self) -> Built {
        self.left
    }

    fn build(&mut self) -> Result<()> {
        let result = self.build_all();
        // The writers end when nobody can send to them any more.
        self.jobs = None;
        self.stack.clear();
        result
    }

    fn build_all(&mut self) -> Result<()> {
        let mut tree = self.restore.asked.tree()?;
        while let Some(stored) = self.restore.asked.runtime.block_on(tree.next())? {
            self.restore.asked.cx.check_cancelled()?;
            let path = &stored.entry.path;
            if self.last.as_ref().is_some_and(|last| last >= path) {
                return Err(damaged(&stored.entry, "is out of order"));
            }
            self.last = Some(path.clone());
            match self.restore.asked.units.iter().position(|unit| unit.takes(path)) {
                Some(unit) => self.take(unit, stored)?,
                None => self.left.ancestors.note(&self.restore.asked.units, stored.entry),
            }
        }
        while let Some((_, folder)) = self.stack.pop() {
            folder.release(&self.restore.applier)?;
        }
        match self.staged.iter().zip(&self.restore.asked.units).find(|(staging, _)| !staging.is_begun()) {
            Some((_, unit)) => {
                Err(Error::new(ErrorKind::Damaged, format!("`/{}` is not in the stored tree", unit.stored)))
            }
            None => Ok(()),
        }
    }

    fn take(&mut self, unit: usize, stored: StoredEntry) -> Result<()> {
        let StoredEntry { entry, content } = stored;
        // A part may lie inside another one, where something is mounted: the way back to that one stays open.
        while self.stack.last().is_some_and(|(path, _)| !entry.path.starts_with(path)) {
            if let Some((_, folder)) = self.stack.pop() {
                folder.release(&self.restore.applier)?;
            }
        }
        self.unit = Some(unit);
        let start = &self.restore.asked.units[unit].stored;
        let staging = &self.staged[unit];
        if entry.path == *start {
            self.left.items += 1;
            let folder = staging.begin_with(&entry)?;
            return self.make(&folder, OsStr::new(NEW), entry, content);
        }
        if start.is_root() && self.stack.is_empty() {
            // The tree's root is in the tree only when `/` itself was saved.
            let made = make_folder(staging.fd(), OsStr::new(NEW), None).map_err(|errno| staging.broken(errno))?;
            staging.note_begun();
            self.stack.push((TreePath::root(), made));
        }
        let parent = self.stack.last().filter(|(path, _)| is_parent(path, &entry.path));
        let Some((_, folder)) = parent else {
            return Err(damaged(&entry, "does not lie in a folder of the same tree").hint(ESCAPE_HINT));
        };
        let folder = Arc::clone(folder);
        let name = entry.path.as_path().file_name().unwrap_or_default().to_owned();
        self.left.items += 1;
        self.make(&folder, &name, entry, content)?;
        folder.release(&self.restore.applier)
    }

    fn make(
        &mut self,
        folder: &Arc<Folder>,
        name: &OsStr,
        entry: TreeEntry,
        content: Option<Box<dyn FileContent>>,
    ) -> Result<()> {
        match &entry.kind {
            EntryKind::File { .. } => {
                let Some(content) = content else { return Err(damaged(&entry, "has no content")) };
                self.send(Job { folder: Arc::clone(folder), name: name.to_owned(), entry, content })
            }
            EntryKind::Directory => {
                let path = entry.path.clone();
                let made =
                    make_folder(folder.fd(), name, Some(entry.clone())).map_err(|errno| broken(&entry, errno))?;
                self.stack.push((path, made));
                Ok(())
            }
            EntryKind::Hardlink { target } => {
                let target = target.clone();
                self.link(folder, name, entry, &target)
            }
            _special => make_special(&self.restore.applier, folder.fd(), name, &entry).map(drop),
        }
    }

    fn send(&self, job: Job) -> Result<()> {
        if let Some(in_flight) = self.in_flight {
            in_flight.add(&job.entry.path);
        }
        let jobs = self.jobs.as_ref().ok_or_else(backup_core::context::interrupted)?;
        jobs.send(job).map_err(|_| backup_core::context::interrupted())
    }

    fn link(&mut self, folder: &Arc<Folder>, name: &OsStr, entry: TreeEntry, target: &TreePath) -> Result<()> {
        if *target >= entry.path {
            return Err(damaged(&entry, "is a link to an entry that does not precede it"));
        }
        if let Some(in_flight) = self.in_flight {
            in_flight.wait_for(target);
        }
        self.restore.asked.cx.check_cancelled()?;
        let unit = self.unit.unwrap_or_default();
        let Some(home) = self.restore.asked.units.iter().position(|unit| unit.takes(target)) else {
            return self.left.orphans.add(target, unit, entry);
        };
        let made = super::links::link(&self.staged[home], &self.restore.asked.units[home], target, folder.fd(), name);
        match made {
            Ok(()) => Ok(()),
            // The target is in another file system now: this becomes a file of its own.
            Err(Errno::XDEV) => self.left.orphans.add(target, unit, entry),
            Err(Errno::NOENT) => {
                self.restore.applier.note(Shortfall::Link, &entry);
                Ok(())
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(damaged(&entry, "is a link that leaves its tree").hint(ESCAPE_HINT))
            }
            Err(errno) => Err(broken(&entry, errno)),
        }
    }
}

const ESCAPE_HINT: &str = "whoever wrote this tree wanted to write outside its target; do not restore it";

fn is_parent(folder: &TreePath, path: &TreePath) -> bool {
    let parent = path.as_path().parent().map(|parent| parent.as_os_str().as_bytes());
    parent == Some(folder.as_bytes())
}

fn damaged(entry: &TreeEntry, what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("`/{}` {what}", entry.path))
}

fn broken(entry: &TreeEntry, errno: Errno) -> Error {
    if errno == Errno::EXIST {
        return damaged(entry, "is in the tree twice");
    }
    Error::io("cannot make a restored entry", format!("/{}", entry.path), errno.into())
}

/// Makes a symbolic link, a pipe or a device. `false` for a device that this user may not make, which is noted.
pub(crate) fn make_special(applier: &Applier, folder: BorrowedFd<'_>, name: &OsStr, entry: &TreeEntry) -> Result<bool> {
    let made = match &entry.kind {
        EntryKind::Symlink { target } => rustix::fs::symlinkat(OsStr::from_bytes(target), folder, name),
        EntryKind::Fifo => node(folder, name, FileType::Fifo, (0, 0)),
        EntryKind::CharDevice { major, minor } => node(folder, name, FileType::CharacterDevice, (*major, *minor)),
        EntryKind::BlockDevice { major, minor } => node(folder, name, FileType::BlockDevice, (*major, *minor)),
        EntryKind::File { .. } | EntryKind::Directory | EntryKind::Hardlink { .. } => {
            return Err(damaged(entry, "is of a kind that cannot have other names"));
        }
    };
    match made {
        Ok(()) => applier.special(folder, name, entry).map(|()| true),
        Err(Errno::PERM) if matches!(entry.kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. }) => {
            applier.note(Shortfall::Device, entry);
            Ok(false)
        }
        Err(errno) => Err(broken(entry, errno)),
    }
}

fn node(parent: BorrowedFd<'_>, name: &OsStr, kind: FileType, (major, minor): (u32, u32)) -> Result<(), Errno> {
    rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor))
}

/// Makes a folder that only we may enter until its attributes are put back.
pub(crate) fn make_folder(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    entry: Option<TreeEntry>,
) -> Result<Arc<Folder>, Errno> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    Ok(Folder::new(open_folder(parent, name)?, entry))
}

pub(crate) fn open_folder(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The name of an entry in its folder.
pub(crate) fn name_of(entry: &TreeEntry) -> OsString {
    entry.path.as_path().file_name().unwrap_or_default().to_owned()
}
