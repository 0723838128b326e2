//! A follower whose archive fails: nothing is confirmed that is not there, and the server is not kept from stopping.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backup_core::engine::{Candidate, Snapshots, Source};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{LogStore, SegmentDamage, SegmentEntry, SegmentId, SegmentMeta, SegmentRecord, Stored};
use backup_core::manifest::Manifest;
use backup_core::position::Lsn;
use backup_core::sink::CheckDepth;
use backup_core::{RunContext, SegmentLog, SourceName, Timeline};
use backup_testkit::{MemorySink, PrivatePostgres};
use engine_postgres::wal::Chain;
use tokio_util::sync::CancellationToken;

use crate::support::{context, engine, source};

/// A log that can be told to fail.
#[derive(Debug)]
struct Failing {
    inner: Arc<dyn LogStore>,
    how: Mutex<Option<ErrorKind>>,
}

impl Failing {
    fn fails(&self, how: Option<ErrorKind>) {
        *self.how.lock().unwrap() = how;
    }
}

#[async_trait]
impl LogStore for Failing {
    async fn put(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: Box<dyn Read + Send>,
    ) -> Result<Stored> {
        let how = *self.how.lock().unwrap();
        match how {
            Some(kind) => Err(Error::new(kind, "this log fails")),
            None => self.inner.put(source, id, meta, content).await,
        }
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

    async fn read(&self, source: &SourceName, id: &SegmentId, out: Box<dyn Write + Send>) -> Result<SegmentRecord> {
        self.inner.read(source, id, out).await
    }

    async fn check(&self, cx: &RunContext, source: &SourceName, depth: CheckDepth) -> Result<Vec<SegmentDamage>> {
        self.inner.check(cx, source, depth).await
    }
}

/// Snapshots that are not needed.
#[derive(Debug)]
struct NoSnapshots;

#[async_trait]
impl Snapshots for NoSnapshots {
    async fn take(&self, _: &RunContext, _: Arc<dyn Source>) -> Result<Manifest> {
        panic!("there was a gap")
    }

    async fn candidates(&self) -> Result<Vec<Candidate>> {
        Ok(Vec::new())
    }
}

const SLOT: &str = "pg_replication_slots where slot_name = 'stackward_db'";

/// Waits until the server says so.
async fn until(server: &PrivatePostgres, condition: &str) {
    while server.sql("postgres", &format!("select {condition}")) != "t" {
        tokio::task::yield_now().await;
    }
}

/// Writes something, and waits until the follower confirmed it.
async fn archived(server: &PrivatePostgres) {
    let lsn = server.sql("postgres", "insert into t values (1); select pg_current_wal_flush_lsn()");
    until(server, &format!("coalesce((select restart_lsn >= '{lsn}' from {SLOT}), false)")).await;
}

async fn confirmed_is_archived(server: &PrivatePostgres, log: &SegmentLog) {
    let confirmed: Lsn = server.sql("postgres", &format!("select restart_lsn from {SLOT}")).parse().unwrap();
    let chain = Chain::read(log).await.unwrap().unwrap();
    assert!(confirmed <= chain.end(1).unwrap(), "{confirmed} was confirmed, {:?} is archived", chain.end(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_confirmed_that_cannot_be_archived_and_the_server_stops_all_the_same() {
    let settings = [("wal_level", "replica"), ("max_wal_senders", "4"), ("synchronous_commit", "local")];
    let server = PrivatePostgres::with_settings(&settings);
    server.sql("postgres", "create table t (n int)");
    let store = Arc::new(Failing { inner: Arc::new(MemorySink::default().log().clone()), how: Mutex::new(None) });
    let log = SegmentLog::new(store.clone(), source());
    let follower = engine(&server, "wal: stream").follower.unwrap();
    let cancel = CancellationToken::new();
    let (cx, archive) = (context().cancelled_by(cancel.clone()), log.clone());
    let following = tokio::spawn(async move { follower.follow(&cx, &archive, &NoSnapshots).await });
    archived(&server).await;

    // The store is full while the server is stopped: the server is let go, and keeps what was not archived.
    store.fails(Some(ErrorKind::NoSpace));
    server.sql("postgres", "insert into t select generate_series(1, 1000)");
    tokio::task::block_in_place(|| server.stop_fast());
    assert!(!server.data_folder().join("postmaster.pid").exists(), "it waits for the follower");
    tokio::task::block_in_place(|| server.launch());
    confirmed_is_archived(&server, &log).await;
    store.fails(None);
    archived(&server).await;
    let holes: Vec<_> =
        Chain::read(&log).await.unwrap().unwrap().spans().into_iter().flat_map(|span| span.holes).collect();
    assert_eq!(holes, []);

    // The repository is not there any more: no waiting mends that.
    store.fails(Some(ErrorKind::NoRepository));
    server.sql("postgres", "insert into t select generate_series(1, 1000)");
    server.sql("postgres", "select pg_switch_wal()");
    let error = following.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRepository, "{error:?}");
    confirmed_is_archived(&server, &log).await;
}
