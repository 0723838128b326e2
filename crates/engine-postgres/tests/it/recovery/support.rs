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

/// A server that archives into a folder, and what was saved of it.
pub(super) struct Archived {
    pub(super) server: PrivatePostgres,
    pub(super) sink: MemorySink,
    /// Where `archive_command` puts files.
    pub(super) archive: PathBuf,
    more: String,
}

/// A row for every step, so that what a restore brought back can be counted; pgbench runs beside.
pub(super) fn archived(more: &str) -> Archived {
    let server = PrivatePostgres::with_initdb(
        &["--wal-segsize=1"],
        &[("archive_mode", "on"), ("archive_command", "'false'"), ("max_prepared_transactions", "5")],
    );
    let archive = server.make_folder("archive");
    archive_into(&server, &archive);
    server.pgbench("postgres", &["-i", "-q", "-s", "1"]);
    server.sql("postgres", "create table steps (n int primary key, at timestamptz default clock_timestamp())");
    Archived { server, sink: MemorySink::default(), archive, more: more.to_owned() }
}

pub(super) fn archive_into(server: &PrivatePostgres, folder: &Path) {
    let command = format!("'test ! -e \"{0}/%f\" && cp %p \"{0}/%f.new\" && mv \"{0}/%f.new\" \"{0}/%f\"'", folder.display());
    server.set("archive_command", &command);
}

/// Switches to the next segment and waits until the one before is archived.
pub(super) fn flush(server: &PrivatePostgres) {
    let name = server.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
    while server.sql("postgres", "select coalesce(max(last_archived_wal), '') from pg_stat_archiver") < name {}
}

impl Archived {
    pub(super) fn engine(&self) -> Engine {
        engine(&self.server, &format!("modes: [physical], wal: push{}", self.more))
    }

    /// A snapshot, while pgbench works.
    pub(super) async fn back_up(&self) -> Manifest {
        let _busy = self.server.pgbench_in_background("postgres", &["-c", "2", "-T", "1000"]);
        run(vec![task(&self.engine())], &self.sink, &options()).await.unwrap()
    }

    /// Does a step: one row, after some work.
    pub(super) fn step(&self, number: u32) {
        self.server.pgbench("postgres", &["-c", "2", "-t", "50"]);
        self.server.sql("postgres", &format!("insert into steps values ({number})"));
    }

    pub(super) fn log(&self) -> SegmentLog {
        SegmentLog::new(self.sink.logs().unwrap(), source())
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
        let engine = self.engine();
        let (cx, log) = (context(), self.log());
        let id = engine.restorer.choose(&cx, &self.candidates().await, Some(&log), &target.moment).await?;
        let report = restore(&engine, &self.reader(&id).await, target).await?;
        Ok((id, report))
    }
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
        let mut psql = self.like.program("psql");
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", sql]);
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

#[expect(dead_code, reason = "kept for tests that flip bits")]
pub(super) fn memory_log() -> Arc<MemoryLog> {
    Arc::default()
}
