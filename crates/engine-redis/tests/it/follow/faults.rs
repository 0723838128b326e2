//! A store that is full, slow or away: nothing is acknowledged that is not durable, and nothing is lost by waiting.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{LogStore, SegmentDamage, SegmentEntry, SegmentId, SegmentMeta, SegmentRecord, Stored};
use backup_core::manifest::Manifest;
use backup_core::sink::{
    CheckDepth, CheckReport, Sink, SnapshotFilter, SnapshotHeader, SnapshotReader, SnapshotSummary, SnapshotWriter,
    UnreadableSnapshot,
};
use backup_core::{RunContext, SnapshotId, SourceName, Timeline};
use backup_testkit::{Disturbance, DisturbedSink, MemorySink};
use tokio::sync::Semaphore;

use super::support::{Archive, QUICK, acknowledged, info, offset, until};
use crate::support::{engine, sample};

/// A sink whose logs take nothing while it is full, and which begins no snapshot while its gate is closed.
#[derive(Debug, Clone)]
struct Full {
    inner: Arc<dyn Sink>,
    full: Arc<AtomicBool>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl Sink for Full {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>> {
        let _passed = self.gate.acquire().await.unwrap();
        self.inner.begin(header).await
    }

    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        self.inner.snapshots(filter).await
    }

    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>> {
        self.inner.unreadable().await
    }

    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        self.inner.manifest(id).await
    }

    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>> {
        self.inner.open(id).await
    }

    fn logs(&self) -> Option<Arc<dyn LogStore>> {
        Some(Arc::new(FullLog { inner: self.inner.logs()?, full: Arc::clone(&self.full) }))
    }

    async fn check(&self, cx: &RunContext, depth: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport> {
        self.inner.check(cx, depth, of).await
    }
}

#[derive(Debug)]
struct FullLog {
    inner: Arc<dyn LogStore>,
    full: Arc<AtomicBool>,
}

#[async_trait]
impl LogStore for FullLog {
    async fn put(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: Box<dyn Read + Send>,
    ) -> Result<Stored> {
        if self.full.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::NoSpace, "the test's disk is full"));
        }
        self.inner.put(source, id, meta, content).await
    }

    async fn timelines(&self, source: &SourceName) -> Result<Vec<Timeline>> {
        self.inner.timelines(source).await
    }

    async fn segments(&self, source: &SourceName, timeline: &Timeline) -> Result<Vec<SegmentEntry>> {
        self.inner.segments(source, timeline).await
    }

    async fn record(&self, source: &SourceName, id: &SegmentId) -> Result<SegmentRecord> {
        self.inner.record(source, id).await
    }

    async fn read(
        &self,
        source: &SourceName,
        id: &SegmentId,
        out: Box<dyn std::io::Write + Send>,
    ) -> Result<SegmentRecord> {
        self.inner.read(source, id, out).await
    }

    async fn check(&self, cx: &RunContext, source: &SourceName, depth: CheckDepth) -> Result<Vec<SegmentDamage>> {
        self.inner.check(cx, source, depth).await
    }
}

fn archive() -> (Archive, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let gate = Arc::new(Semaphore::new(1));
    let sink = Full { inner: Arc::new(MemorySink::default()), full: Arc::clone(&full), gate };
    (Archive { sink: Arc::new(sink) }, full)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_durable_is_not_acknowledged() {
    let server = sample(&[]);
    let (archive, full) = archive();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SET before 1\n");
    let durable = following.archived(&server).await;
    full.store(true, Ordering::Release);
    server.pipe("SET during 1\n");
    following.tells("the test's disk is full").await;
    let tried = |count: usize| following.told().matches("is not archived").count() >= count;
    until(|| tried(3), || following.told()).await;
    assert_eq!(acknowledged(&server), Some(durable));
    assert_eq!(archive.records().await.last().unwrap().meta.span.unwrap().end, durable);
    full.store(false, Ordering::Release);
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

/// More than may wait: the server keeps the rest, and everything comes in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_is_full_is_told_and_emptied_later() {
    let server = sample(&[("repl-backlog-size", "64mb")]);
    let (archive, full) = archive();
    let settings = "follow: { segment_age: 1s, segment_bytes: 65536, spool_bytes: 1048576 }";
    let following = archive.follow(&engine(&server, settings));
    following.tells("following").await;
    full.store(true, Ordering::Release);
    let value = "x".repeat(50_000);
    for round in 0..120 {
        server.pipe(&format!("SET big:{round} {value}\n"));
    }
    following.tells("as many as may").await;
    full.store(false, Ordering::Release);
    following.tells("the spool has room again").await;
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    assert_eq!(archive.candidates().await.len(), 1);
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

/// A follower that is stopped while the disk is full says that something is not archived; the next one fetches it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_with_a_full_disk_is_no_success() {
    let server = sample(&[]);
    let (archive, full) = archive();
    let engine = engine(&server, QUICK);
    let following = archive.follow(&engine);
    following.tells("following").await;
    server.pipe("SET before 1\n");
    following.archived(&server).await;
    full.store(true, Ordering::Release);
    server.pipe("SET during 1\n");
    following.tells("is not archived").await;
    let error = following.stop().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    full.store(false, Ordering::Release);
    let following = archive.follow(&engine);
    following.tells("following from").await;
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

/// The snapshot fails as on a full disk; nothing of the stream is stored without one, and the next attempt succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_fails_is_taken_again() {
    let server = sample(&[]);
    for operation in [1, 3] {
        let inner: Arc<dyn Sink> = Arc::new(MemorySink::default());
        let sink = DisturbedSink::new(inner, Disturbance::Fail(operation));
        let archive = Archive { sink: Arc::new(sink) };
        let following = archive.follow(&engine(&server, QUICK));
        following.tells("the disturbed sink is full").await;
        assert!(archive.records().await.is_empty());
        following.tells("took the snapshot").await;
        server.call(&["SET", "a", &operation.to_string()]);
        let end = following.archived(&server).await;
        following.stop().await.unwrap();
        assert!(end <= offset(&server));
        assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
    }
}

/// The server gets rid of its snapshot, and goes on to the stream, while the repository has not taken a byte of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_repository_does_not_hold_the_server_up() {
    let server = sample(&[]);
    server.fill(60_000, 1000);
    let gate = Arc::new(Semaphore::new(0));
    let sink = Full {
        inner: Arc::new(MemorySink::default()),
        full: Arc::new(AtomicBool::new(false)),
        gate: Arc::clone(&gate),
    };
    let archive = Archive { sink: Arc::new(sink) };
    let following = archive.follow(&engine(&server, QUICK));
    let online = || info(&server, "slave0").is_some_and(|replica| replica.contains("state=online"));
    until(online, || info(&server, "slave0").unwrap_or_default()).await;
    server.pipe("SET during 1\n");
    assert_eq!(acknowledged(&server), Some(0), "nothing is durable yet");
    gate.add_permits(1);
    following.tells("took the snapshot").await;
    following.archived(&server).await;
    following.stop().await.unwrap();
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}
