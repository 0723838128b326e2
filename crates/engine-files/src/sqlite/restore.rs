//! Puts databases back: written beside their place, then exchanged together with the files that belong to the old one.
//!
//! Invariant: the new database never stands beside the `-wal`, `-shm` or `-journal` of the old one. SQLite would take
//! them for its own and write old pages into it (sqlite.org/howtocorrupt.html, section 1.4).

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_core::engine::{Existing, Place, RestorePlan, RestoreReport, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{BackupReader, RunContext};
use rusqlite::Connection;
use rustix::fs::{Access, Gid, Mode, Uid};
use rustix::process::{Flock, FlockOffsetType, FlockType};
use tempfile::TempDir;

use super::backup::beside;
use super::connection::{blocking, explain};
use super::record::{DatabaseRecord, databases};
use super::verify::{fetch, pragma};
use crate::owners::Owners;

/// What belongs to a database besides its file.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// The bytes that SQLite locks: every connection to a database in WAL mode, and every reader, holds one of them
/// (`SHARED_FIRST` and `SHARED_SIZE` in SQLite's `os.h`).
const SHARED_FIRST: u64 = 0x4000_0002;
const SHARED_SIZE: u64 = 510;

/// One database and where it goes.
#[derive(Debug, Clone)]
struct Task {
    record: DatabaseRecord,
    to: PathBuf,
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
        let to = match &to.place {
            Place::Original => original(record, &all, paths)?,
            Place::Folder(folder) => {
                let alone = all.iter().filter(|other| other.file_name() == record.file_name()).count() == 1;
                let below = if alone {
                    record.file_name()
                } else {
                    record.path.strip_prefix("/").unwrap_or(record.file_name())
                };
                let folder = std::path::absolute(folder)
                    .map_err(|source| Error::io("cannot resolve the folder", folder, source))?;
                folder.join(below)
            }
        };
        tasks.push(Task { record: record.clone(), to });
    }
    Ok(tasks)
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
    let tasks = decide(from, paths, to)?;
    let mut plan = RestorePlan { steps: Vec::new(), bytes: 0, target: to.clone(), warnings: Vec::new() };
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
        made.make_above(&task.to)?;
        let one = Staged::begin(task)?;
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
    for one in &staged {
        if let Err(error) = one.task.check(existing).and_then(|()| one.exchange(&mut done)) {
            let whole = done
                .into_iter()
                .rev()
                .fold(true, |whole, (from, to): (PathBuf, PathBuf)| std::fs::rename(to, from).is_ok() && whole);
            if whole {
                return Err(error);
            }
            let kept: Vec<String> = staged.into_iter().map(|one| one.folder.keep().display().to_string()).collect();
            return Err(
                error.hint(format!("what stood there could not all be moved back; look into {}", kept.join(", ")))
            );
        }
    }
    made.keep();
    for one in staged {
        report.restored.push(one.task.to.display().to_string());
        sync_folder(&one.task.to)?;
        let path = one.folder.path().to_owned();
        if let Err(source) = one.folder.close() {
            report.warnings.push(format!("the temporary folder `{}` could not be removed: {source}", path.display()));
        }
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
    folder: TempDir,
}

impl Staged {
    fn begin(task: Task) -> Result<Self> {
        let above = task.existing_folder();
        let name = String::from_utf8_lossy(task.to.file_name().unwrap_or_default().as_bytes()).into_owned();
        let prefix: String = std::iter::once('.').chain(name.chars().take(40)).chain(".stackward-".chars()).collect();
        let failed = |source| Error::io("cannot make a temporary folder beside the target", above, source);
        let folder = tempfile::Builder::new().prefix(&prefix).rand_bytes(8).tempdir_in(above).map_err(failed)?;
        Ok(Self { task, folder })
    }

    fn new_path(&self) -> PathBuf {
        self.folder.path().join("new")
    }

    /// Moves the old database and its companions away, then the new one in. `done` tells what to take back.
    fn exchange(&self, done: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
        let to = &self.task.to;
        let old = self.folder.path().join("old");
        let mut rename = |from: &Path, to: &Path| -> Result<()> {
            std::fs::rename(from, to)
                .map_err(|source| Error::io("cannot put the database in its place", to, source))?;
            done.push((from.to_owned(), to.to_owned()));
            Ok(())
        };
        // The database first: without it, its companions are nothing that SQLite would open.
        if std::fs::symlink_metadata(to).is_ok() {
            rename(to, &old)?;
        }
        for ending in COMPANIONS {
            let companion = beside(to, ending);
            if std::fs::symlink_metadata(&companion).is_ok() {
                rename(&companion, &beside(&old, ending))?;
            }
        }
        rename(&self.new_path(), to)
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

fn sync_folder(file: &Path) -> Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::io("cannot make the restore durable", folder, source))
}

/// Folders that the restore made; removed again when it fails.
#[derive(Debug, Default)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make_above(&mut self, file: &Path) -> Result<()> {
        let missing: Vec<&Path> = file.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            std::fs::create_dir(folder).map_err(|source| Error::io("cannot make the folder", folder, source))?;
            self.0.push(folder.to_owned());
        }
        Ok(())
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Whatever somebody else put there meanwhile stays.
            let _not_empty = std::fs::remove_dir(folder);
        }
    }
}
