//! Copies a live database into scratch under one read transaction, counts its rows there, and streams the copy.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::engine::SourceSummary;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{Fingerprint, ServerRecord};
use backup_core::sink::ChunkHint;
use backup_core::{BackupWriter, Evidence, RunContext};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use tempfile::TempDir;

use super::apart;
use super::connection::{Interrupts, blocking, explain, open_copy, open_live};
use super::health::Health;
use super::record::{DATABASES, DatabaseRecord, artifact_name};
use super::verify::pragma;
use crate::owners::Owners;

/// How much is copied between two looks at the cancellation.
const STEP_BYTES: u32 = 4 * 1024 * 1024;
/// How long to wait before a step that found the database locked is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A consistent copy, in a folder of its own that is removed with the last user.
struct Copy {
    folder: Arc<TempDir>,
    record: DatabaseRecord,
    bytes: u64,
    health: Health,
}

impl Copy {
    fn path(&self) -> PathBuf {
        file_in(&self.folder)
    }
}

fn file_in(folder: &TempDir) -> PathBuf {
    folder.path().join("copy.sqlite")
}

/// A folder of our own below the scratch folder.
pub(crate) fn scratch(cx: &RunContext) -> Result<TempDir> {
    let failed = |source| Error::io("cannot make a folder for temporary files", cx.scratch(), source);
    tempfile::Builder::new().prefix(".stackward-sqlite-").tempdir_in(cx.scratch()).map_err(failed)
}

/// The database that `path` names: a regular file, links resolved. It is not opened.
///
/// # Errors
/// [`ErrorKind::NotFound`], [`ErrorKind::Unsupported`] for something else than a file, [`ErrorKind::Incomplete`] for an
/// empty one.
pub(crate) fn locate(path: &Path) -> Result<(PathBuf, std::fs::Metadata)> {
    let missing = |source: std::io::Error| {
        let absent = source.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("cannot find the database", path, source);
        if absent { error.hint("correct the path in the plan, or remove the source") } else { error }
    };
    let real = std::fs::canonicalize(path).map_err(missing)?;
    let metadata = std::fs::metadata(&real).map_err(missing)?;
    if real.to_str().is_none() {
        return Err(
            Error::new(ErrorKind::Unsupported, "the path of the database is not UTF-8").with("path", real.display())
        );
    }
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::Unsupported, format!("`{}` is not a file", real.display()))
            .hint("name the database file itself; folders are saved by the engine `files`"));
    }
    let wal = std::fs::metadata(beside(&real, "-wal")).map_or(0, |wal| wal.len());
    if metadata.len() == 0 && wal == 0 {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!("`{}` is empty: there is no database in it", real.display()),
        )
        .hint("remove the source until its application has made its database"));
    }
    Ok((real, metadata))
}

/// The file beside a database that its name gets with `ending`.
pub(crate) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Saves each database into an artifact of its own.
pub(crate) async fn backup(
    cx: &RunContext,
    paths: &[PathBuf],
    busy_timeout: Duration,
    out: &BackupWriter,
) -> Result<SourceSummary> {
    let mut fingerprint = Fingerprint::default();
    let mut records = Vec::new();
    for path in paths {
        cx.step(format!("copying {}", path.display()));
        let folder = Arc::new(scratch(cx)?);
        let (path, handed) = (path.clone(), Arc::clone(&folder));
        let copy = blocking(cx, move |cx, interrupts| copy(cx, interrupts, &path, handed, busy_timeout)).await?;
        tell(cx, &copy);
        for (table, rows) in &copy.health.rows {
            fingerprint.count(copy.record.group(), table.clone(), *rows);
        }
        let hint = ChunkHint::Pages(copy.record.page_size);
        let mut artifact = out.artifact(copy.record.artifact.clone(), hint).await?;
        let opened = tokio::fs::File::open(copy.path()).await;
        let file = opened.map_err(|source| Error::io("cannot read the copy", copy.path(), source))?;
        artifact.copy_from(file).await?;
        artifact.seal(Evidence::ExactLength(copy.bytes)).await?;
        records.push(copy.record.clone());
    }
    let detail = serde_json::to_value(&records)
        .map_err(|source| Error::new(ErrorKind::Internal, "a record cannot be written").caused_by(source))?;
    let server = ServerRecord {
        product: "SQLite".to_owned(),
        version: rusqlite::version().to_owned(),
        image: None,
        digest: None,
    };
    Ok(SourceSummary {
        server: Some(server),
        fingerprint,
        details: BTreeMap::from([(DATABASES.to_owned(), detail)]),
        ..SourceSummary::default()
    })
}

/// Warns of what the copy says of its original. Damage does not keep it from being stored: it may be the best that there is.
fn tell(cx: &RunContext, copy: &Copy) {
    let shown = copy.record.path.display();
    if let Some(first) = copy.health.faults.first() {
        let more = copy.health.faults.len() - 1;
        let more = if more == 0 { String::new() } else { format!(", and {more} more faults") };
        cx.warn(format!(
            "`{shown}` is damaged: {first}{more}; the snapshot has it as it is: restore it from an earlier one, or rebuild it with `sqlite3 .recover`"
        ));
    }
    for (table, why) in &copy.health.unchecked {
        cx.warn(format!("`{shown}`: the structure of `{table}` is saved but was not checked: {why}"));
    }
    for (table, why) in &copy.health.uncounted {
        cx.warn(format!("`{shown}`: the rows of `{table}` are saved but could not be counted: {why}"));
    }
}

fn copy(
    cx: &RunContext,
    interrupts: &Interrupts,
    path: &Path,
    folder: Arc<TempDir>,
    busy_timeout: Duration,
) -> Result<Copy> {
    let (real, metadata) = locate(path)?;
    let live = begin_reading(cx, &real, &folder.path().join("apart.sqlite"), busy_timeout, interrupts)?;
    let broken = |source| explain(source, &real);
    let target = file_in(&folder);
    transfer(cx, &live, &real, &target, busy_timeout)?;
    let owners = Owners::load();
    let record = DatabaseRecord {
        artifact: artifact_name(&real)?,
        page_size: pragma(&live, "page_size").map_err(broken)?,
        journal_mode: pragma(&live, "journal_mode").map_err(broken)?,
        encoding: pragma(&live, "encoding").map_err(broken)?,
        application_id: pragma(&live, "application_id").map_err(broken)?,
        user_version: pragma(&live, "user_version").map_err(broken)?,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        user: owners.user_name(metadata.uid()),
        group: owners.group_name(metadata.gid()),
        path: real,
        faults: Vec::new(),
    };
    live.execute_batch("COMMIT").map_err(|source| explain(source, &record.path))?;
    drop(live);
    let copied = open_copy(&target, interrupts)?;
    let health = Health::of(cx, &copied, &record.path)?;
    let record = DatabaseRecord { faults: health.faults.clone(), ..record };
    let pages: u32 = pragma(&copied, "page_count").map_err(|source| explain(source, &target))?;
    Ok(Copy { folder, bytes: u64::from(pages) * u64::from(record.page_size), record, health })
}

/// Opens a live database and begins the one read transaction under which it is copied: in WAL mode writers go on and the
/// copy does not see them, so it need not start again; in the rollback modes they wait, as they would for any long reader
/// (sqlite.org/isolation.html).
///
/// What was left by a crash, and cannot be put right in its place, is put right in a copy at `apart`.
fn begin_reading(
    cx: &RunContext,
    real: &Path,
    apart: &Path,
    busy_timeout: Duration,
    interrupts: &Interrupts,
) -> Result<Connection> {
    let live = open_live(real, busy_timeout)?;
    interrupts.watch(&live);
    let why = match begin(&live) {
        Ok(()) => return Ok(live),
        Err(why) if apart::is_needed(&why, real) => why,
        Err(why) => return Err(explain(why, real)),
    };
    drop(live);
    cx.warn(format!(
        "`{}` cannot be read in its place ({why}): a copy of it and its journal was made, put right and saved",
        real.display()
    ));
    let copy = apart::open(real, apart)?;
    interrupts.watch(&copy);
    begin(&copy).map_err(|source| explain(source, real))?;
    Ok(copy)
}

fn begin(live: &Connection) -> rusqlite::Result<()> {
    live.execute_batch("BEGIN")?;
    let sql = "SELECT count(*) FROM sqlite_schema";
    let _begins_reading: i64 = live.query_row(sql, [], |row| row.get(0))?;
    Ok(())
}

fn transfer(cx: &RunContext, live: &Connection, real: &Path, target: &Path, busy_timeout: Duration) -> Result<()> {
    let broken = |source| explain(source, real);
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(target);
    drop(made.map_err(|source| Error::io("cannot make the copy", target, source))?);
    let mut copy = Connection::open(target).map_err(|source| explain(source, target))?;
    // Nobody reads the copy before it is whole, and a crash throws it away.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        .map_err(|source| explain(source, target))?;
    let page_size: u32 = pragma(live, "page_size").map_err(broken)?;
    let pages = i32::try_from(STEP_BYTES / page_size.max(512)).unwrap_or(1).max(1);
    let steps = Backup::new(live, &mut copy).map_err(broken)?;
    let mut waiting_since = None;
    loop {
        cx.check_cancelled()?;
        match steps.step(pages).map_err(broken)? {
            StepResult::Done => return Ok(()),
            StepResult::More => waiting_since = None,
            _ => {
                let since = *waiting_since.get_or_insert_with(Instant::now);
                if since.elapsed() > busy_timeout {
                    let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                    return Err(broken(rusqlite::Error::SqliteFailure(busy, None)));
                }
                std::thread::sleep(BUSY_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use backup_core::SourceName;

    use super::*;

    #[test]
    fn a_copy_is_of_the_moment_in_which_it_began() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("live.db");
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        let cx = RunContext::new(SourceName::new("x").unwrap());
        let apart = home.path().join("apart.db");
        let live = begin_reading(&cx, &path, &apart, Duration::ZERO, &Interrupts::default()).unwrap();
        writer.execute_batch("INSERT INTO t VALUES (2)").unwrap();
        let target = home.path().join("copy.db");
        transfer(&cx, &live, &path, &target, Duration::ZERO).unwrap();
        let copy = open_copy(&target, &Interrupts::default()).unwrap();
        assert_eq!(Health::of(&cx, &copy, &path).unwrap().rows["t"], 1, "what was committed later is not in it");
    }
}
