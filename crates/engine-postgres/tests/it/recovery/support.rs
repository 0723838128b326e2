//! A server whose log is archived, snapshots of it, and restores to moments.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::{Afterwards, Candidate, Engine, Moment, Place, RestoreReport, RestoreTarget};
use backup_core::error::Result;
use backup_core::manifest::Manifest;
use backup_core::run::run;
use backup_core::sink::{Sink, SnapshotFilter};
use backup_core::{BackupReader, SegmentLog, SnapshotId};
use backup_testkit::{MemoryLog, MemorySink, PrivatePostgres};
use engine_postgres::wal::describe;

use crate::support::{context, engine, open_folder, options, restore, source, task};

/// The pages of pgbench agree with each other at every moment.
pub(super) const BALANCED: &str = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches) \
    and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)";

/// A server that archives into a folder, and what was saved of it.
pub(super) struct Archived {
    pub(super) server: PrivatePostgres,
    pub(super) sink: MemorySink,
    /// Where `archive_command` puts files.
    pub(super) archive: PathBuf,
    /// More of the configuration of its engine.
    pub(super) more: String,
}

/// A row for every step, so that what a restore brought back can be counted; pgbench runs beside.
pub(super) fn archived(more: &str) -> Archived {
    archived_by(PrivatePostgres::with_initdb(SMALL_SEGMENTS, ARCHIVING), more)
}

pub(super) const SMALL_SEGMENTS: &[&str] = &["--wal-segsize=1"];
pub(super) const ARCHIVING: &[(&str, &str)] =
    &[("archive_mode", "on"), ("archive_command", "'false'"), ("max_prepared_transactions", "5")];

/// The same of a server that was made with these.
pub(super) fn archived_by(server: PrivatePostgres, more: &str) -> Archived {
    let archive = server.make_folder("archive");
    archive_into(&server, &archive);
    server.pgbench("postgres", &["-i", "-q", "-s", "1"]);
    server.sql("postgres", "create table steps (n int primary key, at timestamptz default clock_timestamp())");
    Archived { server, sink: MemorySink::default(), archive, more: more.to_owned() }
}

pub(super) fn archive_into(server: &PrivatePostgres, folder: &Path) {
    let command =
        format!("'test ! -e \"{0}/%f\" && cp %p \"{0}/%f.new\" && mv \"{0}/%f.new\" \"{0}/%f\"'", folder.display());
    server.set("archive_command", &command);
}

/// Switches to the next segment and waits until the one before is archived.
pub(super) fn flush(server: &PrivatePostgres) {
    let name = server.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
    while server.sql("postgres", "select coalesce(max(last_archived_wal), '') from pg_stat_archiver") < name {}
}

impl Archived {
    pub(super) fn engine(&self) -> Engine {
        let wal = if self.more.contains("wal:") { "" } else { ", wal: push" };
        engine(&self.server, &format!("modes: [physical]{wal}{}", self.more))
    }

    /// A snapshot, while pgbench works.
    pub(super) async fn back_up(&self) -> Manifest {
        self.back_up_by(&self.engine()).await
    }

    /// A snapshot of what another engine sees, into the same sink.
    pub(super) async fn back_up_by(&self, engine: &Engine) -> Manifest {
        let _busy = self.server.pgbench_in_background("postgres", &["-c", "2", "-T", "1000"]);
        run(vec![task(engine)], &self.sink, &options()).await.unwrap()
    }

    /// Does a step: one row, after some work.
    pub(super) fn step(&self, number: u32) {
        self.server.pgbench("postgres", &["-c", "2", "-t", "50"]);
        self.server.sql("postgres", &format!("insert into steps values ({number})"));
    }

    pub(super) fn log(&self) -> SegmentLog {
        SegmentLog::new(self.sink.logs().unwrap(), source())
    }

    /// The segment that the log is in now.
    pub(super) fn segment(&self) -> String {
        self.server.sql("postgres", "select pg_walfile_name(pg_current_wal_insert_lsn())")
    }

    pub(super) fn lsn(&self) -> Moment {
        Moment::Position(self.server.sql("postgres", "select pg_current_wal_insert_lsn()"))
    }

    /// Brings what the server archived so far into the archive, as `stackward wal push` does.
    pub(super) async fn push(&self) {
        flush(&self.server);
        push_all(&self.log(), &self.archive).await;
    }

    pub(super) async fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for summary in self.sink.snapshots(&SnapshotFilter::default()).await.unwrap() {
            let reader = self.reader(&summary.id).await;
            candidates.push(Candidate { id: summary.id, record: reader.record().clone() });
        }
        candidates
    }

    pub(super) async fn reader(&self, id: &SnapshotId) -> BackupReader {
        BackupReader::new(self.sink.open(id).await.unwrap(), source()).unwrap().with_log(Some(self.log()))
    }

    /// Chooses and restores into `folder`, as the command line does; starts it.
    pub(super) async fn recover(&self, moment: Moment, folder: &Path) -> Result<(SnapshotId, RestoreReport)> {
        let target = RestoreTarget { afterwards: Afterwards::Start, ..into(folder, moment) };
        self.recover_as(&target).await
    }

    pub(super) async fn recover_as(&self, target: &RestoreTarget) -> Result<(SnapshotId, RestoreReport)> {
        self.recover_with(&self.log(), target).await
    }

    /// With another archive.
    pub(super) async fn recover_with(
        &self,
        log: &SegmentLog,
        target: &RestoreTarget,
    ) -> Result<(SnapshotId, RestoreReport)> {
        let engine = self.engine();
        let id = engine.restorer.choose(&context(), &self.candidates().await, Some(log), &target.moment).await?;
        let reader = self.reader(&id).await.with_log(Some(log.clone()));
        let report = restore(&engine, &reader, target).await?;
        Ok((id, report))
    }

    /// An archive of its own with what the server archived, but for what `change` does with a file; `None` loses it.
    pub(super) async fn archive_with(&self, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> SegmentLog {
        let log = empty_log();
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&self.archive).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if let Some(content) = change(&name, std::fs::read(entry.path()).unwrap()) {
                std::fs::write(folder.path().join(name), content).unwrap();
            }
        }
        push_all(&log, folder.path()).await;
        log
    }
}

pub(super) fn empty_log() -> SegmentLog {
    SegmentLog::new(Arc::<MemoryLog>::default(), source())
}

pub(super) fn into(folder: &Path, moment: Moment) -> RestoreTarget {
    RestoreTarget { place: Place::Folder(folder.to_owned()), moment, ..RestoreTarget::default() }
}

pub(super) async fn push_all(log: &SegmentLog, folder: &Path) {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_none_or(|extension| extension != "new"));
    paths.sort();
    for path in paths {
        let pushed = describe(&path).unwrap();
        log.put(&pushed.file.id().unwrap(), pushed.meta, Box::new(pushed.content)).await.unwrap();
    }
}

/// A restored server that Stackward started: asked through its socket, and stopped when it goes.
pub(super) struct Restored<'a> {
    like: &'a PrivatePostgres,
    folder: tempfile::TempDir,
}

impl<'a> Restored<'a> {
    pub(super) fn new(like: &'a PrivatePostgres) -> Self {
        Self { like, folder: open_folder() }
    }

    pub(super) fn target(&self) -> PathBuf {
        self.folder.path().join("restored")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.target().join("data")
    }

    pub(super) fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    pub(super) fn sql_in(&self, database: &str, sql: &str) -> String {
        let mut psql = self.like.program("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql]);
        let output = psql.arg("-h").arg(self.target().join("run")).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{sql}: {error}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(super) fn steps(&self) -> String {
        self.sql("select coalesce(string_agg(n::text, ',' order by n), '') from steps")
    }

    pub(super) fn stop(&self) {
        let mut stop = self.like.program("pg_ctl");
        let _may_not_run = stop.args(["stop", "-s", "-m", "immediate", "-D"]).arg(self.data()).output();
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A small file system in memory, gone with its value.
pub(super) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(super) fn mount(mebibytes: u32) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root: a full disk needs a mount");
        let folder = open_folder();
        let options = format!("size={mebibytes}m,mode=755");
        let mounted =
            command("mount").args(["-t", "tmpfs", "-o", &options, "stackward-test"]).arg(folder.path()).status();
        assert!(mounted.unwrap().success());
        Self(folder)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _told = command("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[expect(clippy::disallowed_methods, reason = "a disk is mounted outside of any host")]
fn command(program: &str) -> std::process::Command {
    std::process::Command::new(program)
}
