//! The log is handed to a recovering server piece by piece; whatever goes wrong then, it does not come up early.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use backup_core::engine::{Afterwards, Existing, Moment, RestoreTarget};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{LogStore, SegmentDamage, SegmentEntry, SegmentId, SegmentMeta, SegmentRecord, Stored};
use backup_core::sink::CheckDepth;
use backup_core::{RunContext, SegmentLog, SourceName, Timeline};
use backup_testkit::LiveGuard;
use tokio_util::sync::CancellationToken;

use super::support::{Archived, Restored, archived, into};
use crate::support::{context, source};

/// So many segments lie in the data directory at most, and one more for each that is on its way.
const AHEAD: usize = 8;

/// A server whose log since the snapshot is far longer than what is handed over at a time. Returns the last segment that
/// a recovery needs.
async fn long_log() -> (Archived, String) {
    let db = archived("");
    db.back_up().await;
    db.step(1);
    db.server
        .sql("postgres", "create table filler as select n, repeat('x', 1000) as t from generate_series(1, 40000) n");
    db.step(2);
    let last = db.segment();
    db.push().await;
    (db, last)
}

fn latest(folder: &Path) -> RestoreTarget {
    RestoreTarget { afterwards: Afterwards::Start, ..into(folder, Moment::Latest) }
}

/// The names of the segments that lie there for the server now.
fn lying(data: &Path) -> usize {
    let entries = std::fs::read_dir(data.join("pg_wal/stackward")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().len() == 24).count()
}

#[tokio::test]
async fn only_a_few_segments_lie_there_at_a_time() {
    let (db, _) = long_log().await;
    let restored = Restored::new(&db.server);
    let target = latest(&restored.target());
    let (data, mut most) = (restored.data(), 0);
    let watch = async {
        loop {
            most = most.max(lying(&data));
            tokio::task::yield_now().await;
        }
    };
    let (_, report) = tokio::select! {
        done = db.recover_as(&target) => done.unwrap(),
        () = watch => unreachable!(),
    };
    assert_eq!(restored.steps(), "1,2");
    assert_eq!(restored.sql("select count(*), sum(n) from filler"), "40000|800020000");
    let replayed =
        report.restored.iter().find_map(|line| line.strip_prefix("replay ")?.split(' ').next()?.parse().ok());
    let replayed: usize = replayed.unwrap();
    assert!(replayed > 4 * AHEAD, "{report:?}");
    assert!((1..=AHEAD + 2).contains(&most), "{most} of {replayed}");
    assert!(!restored.data().join("pg_wal/stackward").exists());
    let auto = std::fs::read_to_string(restored.data().join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("pg_wal/stackward") && !auto.contains("recovery_target"), "{auto}");
}

/// What happens to a segment after it was read for the plan.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// The archive does not answer, once.
    Once,
    /// Somebody damaged it.
    Damage,
    /// The archive never answers.
    Silence,
}

/// An archive that has trouble with one segment, but not while a way is sought.
#[derive(Debug)]
struct Troubled {
    inner: SegmentLog,
    segment: String,
    trouble: Trouble,
    reads: AtomicUsize,
}

#[async_trait]
impl LogStore for Troubled {
    async fn put(
        &self,
        _: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: Box<dyn Read + Send>,
    ) -> Result<Stored> {
        self.inner.put(id, meta, content).await
    }

    async fn timelines(&self, _: &SourceName) -> Result<Vec<Timeline>> {
        self.inner.timelines().await
    }

    async fn segments(&self, _: &SourceName, timeline: &Timeline) -> Result<Vec<SegmentEntry>> {
        self.inner.segments(timeline).await
    }

    async fn record(&self, _: &SourceName, id: &SegmentId) -> Result<SegmentRecord> {
        self.inner.record(id).await
    }

    async fn read(&self, _: &SourceName, id: &SegmentId, out: Box<dyn Write + Send>) -> Result<SegmentRecord> {
        if id.name.as_str() == self.segment {
            let earlier = self.reads.fetch_add(1, Ordering::SeqCst);
            match self.trouble {
                Trouble::Once if earlier == 1 => {
                    return Err(Error::new(ErrorKind::Unreachable, "the store does not answer").retry_later());
                }
                Trouble::Damage if earlier > 0 => return Err(Error::new(ErrorKind::Damaged, "a bit flipped")),
                Trouble::Silence if earlier > 0 => std::future::pending().await,
                _ => {}
            }
        }
        self.inner.read(id, out).await
    }

    async fn check(&self, cx: &RunContext, _: &SourceName, depth: CheckDepth) -> Result<Vec<SegmentDamage>> {
        self.inner.check(cx, depth).await
    }
}

fn troubled(db: &Archived, segment: &str, trouble: Trouble) -> (SegmentLog, Arc<Troubled>) {
    let reads = AtomicUsize::new(0);
    let store = Arc::new(Troubled { inner: db.log(), segment: segment.to_owned(), trouble, reads });
    (SegmentLog::new(Arc::clone(&store) as _, source()), store)
}

/// Nobody runs on it, and nobody has written to it since.
#[track_caller]
fn is_in_recovery(db: &Archived, data: &Path) {
    assert!(!data.join("postmaster.pid").exists(), "no server runs");
    let told = db.server.program("pg_controldata").env("LC_ALL", "C").arg("-D").arg(data).output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("in archive recovery") && told.contains("TimeLineID:       1\n"), "{told}");
    assert!(!data.join("pg_wal/00000002.history").exists(), "it was not promoted");
}

#[tokio::test]
async fn a_segment_that_does_not_come_ends_the_server_and_not_its_recovery() {
    let (db, last) = long_log().await;
    let restored = Restored::new(&db.server);
    let (log, _) = troubled(&db, &last, Trouble::Damage);
    let error = db.recover_with(&log, &latest(&restored.target())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(error.chain().contains("a bit flipped") && format!("{error:?}").contains(&last), "{error:?}");
    is_in_recovery(&db, &restored.data());
    let said = std::fs::read_to_string(restored.target().join("stackward-start.log")).unwrap();
    assert!(said.contains("whoever handed over the log is gone"), "{said}");

    // By hand it does not come up either, and what is told leads on.
    let mut start = db.server.program("pg_ctl");
    // `pg_ctl` takes a server that recovers for one that has started, when it looks in time.
    let _may_seem_so =
        start.args(["start", "-s", "-w", "-l", "/dev/null", "-D"]).arg(restored.data()).status().unwrap();
    while restored.data().join("postmaster.pid").exists() {}
    is_in_recovery(&db, &restored.data());
    let error = db.recover_as(&latest(&restored.target())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    assert!(error.to_string().contains("broke off") && error.remedy().unwrap().contains("--delta"), "{error:?}");
    let again = RestoreTarget { existing: Existing::Update, ..latest(&restored.target()) };
    db.recover_as(&again).await.unwrap();
    assert_eq!((restored.steps(), restored.sql("select count(*) from filler")), ("1,2".into(), "40000".into()));
}

#[tokio::test]
async fn an_archive_that_fails_for_a_moment_is_asked_again() {
    let (db, last) = long_log().await;
    let restored = Restored::new(&db.server);
    let (log, store) = troubled(&db, &last, Trouble::Once);
    db.recover_with(&log, &latest(&restored.target())).await.unwrap();
    assert_eq!(restored.steps(), "1,2");
    assert!(store.reads.load(Ordering::SeqCst) > 2);
}

#[tokio::test]
async fn a_recovery_that_is_cancelled_leaves_no_server() {
    let (db, last) = long_log().await;
    let restored = Restored::new(&db.server);
    let (log, store) = troubled(&db, &last, Trouble::Silence);
    let (engine, target) = (db.engine(), latest(&restored.target()));
    let cancel = CancellationToken::new();
    let cx = context().cancelled_by(cancel.clone());
    let recover = async {
        let id = engine.restorer.choose(&cx, &db.candidates().await, Some(&log), &target.moment).await?;
        let reader = db.reader(&id).await.with_log(Some(log));
        let plan = engine.restorer.plan_restore(&cx, &reader, &target).await?;
        engine.restorer.restore(&cx, &reader, plan).await
    };
    // The server waits for the last one, which never comes.
    let waits = async {
        while store.reads.load(Ordering::SeqCst) < 2 || lying(&restored.data()) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(restored.data().join("postmaster.pid").exists());
        cancel.cancel();
    };
    let live = LiveGuard::all();
    let (result, ()) = futures::future::join(recover, waits).await;
    live.check();
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Interrupted);
    is_in_recovery(&db, &restored.data());
}
