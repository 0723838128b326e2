//! Puts databases back: written beside their place, then exchanged together with the files that belong to the old one.
//!
//! Invariant: the new database never stands beside the `-wal`, `-shm` or `-journal` of the old one. SQLite would take
//! them for its own and write old pages into it (sqlite.org/howtocorrupt.html, section 1.4).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_core::engine::{Existing, Place, RestorePlan, RestoreReport, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;
use backup_core::{BackupReader, RunContext};
use rusqlite::Connection;
use rustix::fs::{Access, AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Flock, FlockOffsetType, FlockType};

use super::backup::beside;
use super::connection::{blocking, explain};
use super::record::{DatabaseRecord, databases};
use super::verify::{fetch, pragma};
use crate::owners::Owners;
use crate::restore::{At, Location, Reach, Staging, enter, exchange, in_the_way};

/// What belongs to a database besides its file.
pub(crate) const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The bytes that SQLite locks: every connection to a database in WAL mode, and every reader, holds one of them
/// (`SHARED_FIRST` and `SHARED_SIZE` in SQLite's `os.h`).
const SHARED_FIRST: u64 = 0x4000_0002;
const SHARED_SIZE: u64 = 510;

/// One database and where it goes.
#[derive(Debug, Clone)]
struct Task {
    record: DatabaseRecord,
    /// For people, and for looking.
    to: PathBuf,
    /// The same, for writing: no link below what the operator named is followed.
    location: Location,
}

/// Decides which database goes where.
fn decide(from: &BackupReader, paths: &[PathBuf], to: &RestoreTarget) -> Result<Vec<Task>> {
    if to.rename.is_some() {
        return Err(Error::new(ErrorKind::Usage, "a database file is not restored under another name")
            .hint("restore into a folder and rename there"));
    }
    let all = databases(from)?;
    let mut tasks = Vec::new();
    for record in select(&all, &to.select)? {
        let location = match &to.place {
            Place::Original => {
                let path = original(record, &all, paths)?;
                located(path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default().as_ref())?
            }
            Place::Folder(folder) => {
                let alone = all.iter().filter(|other| other.file_name() == record.file_name()).count() == 1;
                let below = if alone {
                    record.file_name()
                } else {
                    record.path.strip_prefix("/").unwrap_or(record.file_name())
                };
                let folder = std::path::absolute(folder)
                    .map_err(|source| Error::io("cannot resolve the folder", folder, source))?;
                // The folder itself may have been prepared by somebody else, as may what is in it.
                let name = folder.file_name().map_or(Path::new(""), Path::new);
                located(folder.parent().unwrap_or(Path::new("/")), &name.join(below))?
            }
        };
        tasks.push(Task { record: record.clone(), to: location.path(), location });
    }
    Ok(tasks)
}

fn located(above: &Path, below: &Path) -> Result<Location> {
    Ok(Location::new(above, &TreePath::new(below.as_os_str().as_bytes().to_vec())?))
}

fn select<'a>(all: &'a [DatabaseRecord], wanted: &[String]) -> Result<Vec<&'a DatabaseRecord>> {
    if wanted.is_empty() {
        return Ok(all.iter().collect());
    }
    let mut selected = Vec::new();
    for name in wanted {
        let is_meant =
            |record: &&DatabaseRecord| record.path == Path::new(name) || record.file_name() == Path::new(name);
        let found = all.iter().find(is_meant).ok_or_else(|| {
            let known: Vec<String> = all.iter().map(|record| record.path.display().to_string()).collect();
            Error::new(ErrorKind::NotFound, format!("`{name}` is not in the backup"))
                .hint(format!("it has {}", known.join(", ")))
        })?;
        selected.push(found);
    }
    selected.dedup();
    Ok(selected)
}

/// Where the plan has this database now. A manifest alone does not decide which file is overwritten.
fn original(record: &DatabaseRecord, all: &[DatabaseRecord], paths: &[PathBuf]) -> Result<PathBuf> {
    let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    if let ([_], [path]) = (all, paths) {
        return Ok(real(path));
    }
    let known = paths.iter().map(real).find(|path| *path == record.path);
    known.ok_or_else(|| {
        Error::new(ErrorKind::Plan, format!("the plan does not name `{}`, which was saved", record.path.display()))
            .hint("name it in `paths`, or restore into a folder")
    })
}

impl Task {
    fn occupied(&self) -> Result<Option<PathBuf>> {
        match std::fs::symlink_metadata(&self.to) {
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {}
            Ok(metadata) if metadata.is_file() => return Ok(Some(self.to.clone())),
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "something that is not a file stands in the database's place",
                )
                .with("path", self.to.display())
                .hint("remove it, or restore elsewhere"));
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("cannot look at the target", &self.to, source)),
        }
        let mut left = COMPANIONS.iter().map(|ending| beside(&self.to, ending));
        Ok(left.find(|path| std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)))
    }

    fn check(&self, existing: Existing) -> Result<()> {
        self.location.reach()?;
        if let Some(path) = self.occupied()? {
            if existing == Existing::Refuse {
                return Err(Error::new(ErrorKind::AlreadyExists, "the target is not empty")
                    .with("path", path.display())
                    .hint("restore elsewhere, or add --force to replace what stands there"));
            }
            check_unused(&self.to)?;
        }
        let folder = self.existing_folder();
        rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|errno| Error::io("cannot restore into the folder", folder, errno.into()))
    }

    fn existing_folder(&self) -> &Path {
        self.to.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
    }

    fn step(&self) -> Result<String> {
        let (from, to) = (self.record.path.display(), self.to.display());
        Ok(match self.occupied()? {
            Some(_) => format!(
                "write `{from}` beside `{to}`, put it in its place, then remove the old one with its -wal and -shm"
            ),
            None => format!("write `{from}` beside `{to}`, then rename it"),
        })
    }
}

/// Fails when another process has the database open, as far as locks tell.
fn check_unused(path: &Path) -> Result<()> {
    let Ok(file) = std::fs::File::options().read(true).write(true).open(path) else { return Ok(()) };
    let mut lock = Flock::from(FlockType::WriteLock);
    lock.offset_type = FlockOffsetType::Set;
    (lock.start, lock.length) = (SHARED_FIRST, SHARED_SIZE);
    let holder = rustix::process::fcntl_getlk(&file, &lock).ok().flatten().and_then(|lock| lock.pid);
    match holder {
        None => Ok(()),
        Some(holder) => Err(Error::new(ErrorKind::Busy, "the database is in use")
            .with("path", path.display())
            .with("process", holder.as_raw_nonzero())
            .hint("stop the application that uses it, then restore again")),
    }
}

/// Decides what a restore would do. Changes nothing.
pub(crate) fn plan(from: &BackupReader, paths: &[PathBuf], to: &RestoreTarget) -> Result<RestorePlan> {
    to.refuse_comparison("SQLite databases")?;
    let tasks = decide(from, paths, to)?;
    let mut plan = RestorePlan { steps: Vec::new(), bytes: 0, target: to.clone(), warnings: Vec::new(), changes: None };
    for task in &tasks {
        task.check(to.existing)?;
        plan.steps.push(task.step()?);
        let bytes = from.record().artifact(&task.record.artifact).map_or(0, |artifact| artifact.bytes);
        plan.bytes = plan.bytes.saturating_add(bytes);
    }
    Ok(plan)
}

/// Carries the plan out.
pub(crate) async fn restore(
    cx: &RunContext,
    from: &BackupReader,
    paths: &[PathBuf],
    plan: RestorePlan,
) -> Result<RestoreReport> {
    let tasks = decide(from, paths, &plan.target)?;
    let mut made = MadeFolders::default();
    let mut staged = Vec::new();
    let mut report = RestoreReport::default();
    for task in tasks {
        task.check(plan.target.existing)?;
        cx.step(format!("restoring {}", task.to.display()));
        let one = Staged::begin(made.make_above(&task.location)?, task)?;
        report.bytes += fetch(cx, from, &one.task.record, &one.new_path()).await?;
        let record = one.task.record.clone();
        let path = one.new_path();
        report.warnings.extend(blocking(cx, move |_, _| finish(&path, &record)).await?);
        let rows = from.record().fingerprint.total(&one.task.record.group());
        report.items = report.items.saturating_add(rows);
        staged.push(one);
    }
    cx.check_cancelled()?;
    // From here on nothing is awaited: the exchange is not left half-way by a future that is dropped.
    let existing = plan.target.existing;
    let mut done = Vec::new();
    let exchanged = staged
        .iter()
        .try_for_each(|one| one.task.check(existing).and_then(|()| one.exchange(&mut done)).and_then(|()| one.sync()));
    if let Err(error) = exchanged {
        let mut whole = true;
        for step in done.iter().rev() {
            whole &= step.take_back().is_ok();
        }
        drop(done);
        if whole {
            return Err(error);
        }
        let kept: Vec<String> = staged.into_iter().map(|one| one.staging.keep().display().to_string()).collect();
        return Err(error.hint(format!("what stood there could not all be moved back; look into {}", kept.join(", "))));
    }
    drop(done);
    made.keep();
    for one in staged {
        report.restored.push(one.task.to.display().to_string());
        report.warnings.extend(one.staging.remove());
    }
    for warning in &report.warnings {
        cx.warn(warning.clone());
    }
    Ok(report)
}

/// A database that is written and waits for its place.
#[derive(Debug)]
struct Staged {
    task: Task,
    staging: Staging,
    place: Reach,
    /// The names of what may belong to the database that stands there.
    companions: Vec<OsString>,
}

/// Something that was renamed or exchanged.
struct Step<'a> {
    from: At<'a>,
    to: (std::os::fd::BorrowedFd<'a>, OsString),
    exchanged: bool,
}

impl Step<'_> {
    fn take_back(&self) -> Result<(), Errno> {
        let to = At { folder: self.to.0, name: &self.to.1 };
        if self.exchanged {
            return exchange(self.from, to);
        }
        rustix::fs::renameat(to.folder, to.name, self.from.folder, self.from.name)
    }
}

/// The names of the new database and of the old one in the staging folder.
const NEW: &str = "new";
const OLD: &str = "old";

impl Staged {
    fn begin(place: Reach, task: Task) -> Result<Self> {
        let above = task.to.parent().unwrap_or(Path::new("/"));
        let duplicate = place.folder.try_clone();
        let parent = duplicate.map_err(|source| Error::io("cannot open the folder", above, source))?;
        let staging = Staging::begin(parent, above, &place.name)?;
        let companion = |ending: &str| beside(Path::new(&place.name), ending).into_os_string();
        let companions = COMPANIONS.into_iter().map(companion).collect();
        Ok(Self { task, staging, place, companions })
    }

    /// A path that leads into the staging folder, whatever is renamed above it.
    fn new_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{NEW}", self.staging.fd().as_raw_fd()))
    }

    /// Moves the old database and its companions away, then the new one in. `done` tells what to take back.
    fn exchange<'a>(&'a self, done: &mut Vec<Step<'a>>) -> Result<()> {
        let failed = |errno: Errno| Error::io("cannot put the database in its place", &self.task.to, errno.into());
        let (here, aside) = (self.place.folder.as_fd(), self.staging.fd());
        let stands = |name: &OsStr| rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let name = self.place.name.as_os_str();
        let new = At { folder: aside, name: OsStr::new(NEW) };
        let companions: Vec<_> = self.companions.iter().zip(COMPANIONS).filter(|(name, _)| stands(name)).collect();
        if companions.is_empty() && stands(name) {
            // Alone, the two change places in one step.
            exchange(new, At { folder: here, name }).map_err(failed)?;
            done.push(Step { from: new, to: (here, name.to_owned()), exchanged: true });
            return Ok(());
        }
        let mut rename = |from: At<'a>, to: (std::os::fd::BorrowedFd<'a>, OsString)| -> Result<()> {
            rustix::fs::renameat(from.folder, from.name, to.0, &to.1).map_err(failed)?;
            done.push(Step { from, to, exchanged: false });
            Ok(())
        };
        // The database first: without it, its companions are nothing that SQLite would open.
        if stands(name) {
            rename(At { folder: here, name }, (aside, OLD.into()))?;
        }
        for (companion, ending) in companions {
            rename(At { folder: here, name: companion }, (aside, format!("{OLD}{ending}").into()))?;
        }
        rename(new, (here, name.to_owned()))
    }

    fn sync(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let synced = rustix::fs::openat(&self.place.folder, ".", flags, Mode::empty()).and_then(rustix::fs::fsync);
        synced.map_err(|errno| Error::io("cannot make the restore durable", &self.task.to, errno.into()))
    }
}

/// Gives the staged file its journal mode, owner and modes. Returns warnings.
fn finish(path: &Path, record: &DatabaseRecord) -> Result<Vec<String>> {
    let broken = |source| explain(source, path);
    if record.journal_mode == "wal" {
        let database = Connection::open(path).map_err(broken)?;
        let mode: String = pragma(&database, "journal_mode").map_err(broken)?;
        if mode != "wal" {
            let _now: String = database.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(broken)?;
        }
        // The last connection that closes takes -wal and -shm away.
        database.close().map_err(|(_, source)| broken(source))?;
    }
    let mut warnings = Vec::new();
    let owners = Owners::load();
    let (uid, gid) = (owners.uid(record.user.as_deref(), record.uid), owners.gid(record.group.as_deref(), record.gid));
    let ours = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let real = uid != u32::MAX && gid != u32::MAX;
    if (uid, gid) != ours
        && (!real || rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).is_err())
    {
        warnings.push(format!("`{}` could not be given to its owner; run as root", record.path.display()));
    }
    let mode = Mode::from_raw_mode(record.mode & 0o777);
    rustix::fs::chmod(path, mode).map_err(|errno| Error::io("cannot set the mode", path, errno.into()))?;
    let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| Error::io("cannot write the database", path, source))?;
    Ok(warnings)
}

/// Folders that the restore made; removed again when it fails.
#[derive(Debug, Default)]
struct MadeFolders(Vec<(OwnedFd, OsString)>);

impl MadeFolders {
    /// Opens the folder of `to`, and makes those above it that are missing. No link is followed.
    fn make_above(&mut self, to: &Location) -> Result<Reach> {
        let mut reach = to.reach()?;
        for name in std::mem::take(&mut reach.missing) {
            let failed = |errno: Errno| match errno {
                Errno::EXIST | Errno::NOTDIR | Errno::LOOP => in_the_way(&to.path()),
                errno => Error::io("cannot make a folder above the database", to.path(), errno.into()),
            };
            rustix::fs::mkdirat(&reach.folder, &name, Mode::from_raw_mode(0o777)).map_err(failed)?;
            let made = enter(reach.folder.as_fd(), &name).map_err(failed)?;
            self.0.push((std::mem::replace(&mut reach.folder, made), name));
        }
        Ok(reach)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for (parent, name) in self.0.iter().rev() {
            // Whatever somebody else put there meanwhile stays.
            let _not_empty = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    }
}
