//! A follower at work on a server, over a sink in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::engine::{Candidate, Engine, Moment, RestoreReport, RestoreTarget, Snapshots};
use backup_core::error::Result;
use backup_core::event::{Event, Recorder};
use backup_core::log::{SegmentRecord, gaps};
use backup_core::sink::Sink;
use backup_core::snapshots::SourceSnapshots;
use backup_core::{BackupReader, SegmentLog, SnapshotId};
use backup_testkit::{MemorySink, PrivateRedis};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{context, engine, options, source};

/// Whatever is waited for is there by then.
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

/// Segments of the shortest age.
pub(crate) const QUICK: &str = "follow: { segment_age: 1s }";

/// Where a follower keeps what it gets.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    pub(crate) sink: Arc<dyn Sink>,
}

impl Default for Archive {
    fn default() -> Self {
        Self { sink: Arc::new(MemorySink::default()) }
    }
}

impl Archive {
    pub(crate) fn log(&self) -> SegmentLog {
        SegmentLog::new(self.sink.logs().unwrap(), source())
    }

    pub(crate) fn snapshots(&self) -> SourceSnapshots {
        SourceSnapshots::new(Arc::clone(&self.sink), options(), source(), "redis")
    }

    pub(crate) async fn candidates(&self) -> Vec<Candidate> {
        self.snapshots().candidates().await.unwrap()
    }

    /// Every segment, timelines in the order in which they were begun.
    pub(crate) async fn records(&self) -> Vec<SegmentRecord> {
        let log = self.log();
        let mut timelines = Vec::new();
        for timeline in log.timelines().await.unwrap() {
            let mut records = Vec::new();
            for entry in log.segments(&timeline).await.unwrap() {
                records.push(log.record(&entry.id).await.unwrap());
            }
            timelines.push(records);
        }
        timelines.sort_by_key(|records| records[0].stored);
        timelines.concat()
    }

    pub(crate) async fn assert_no_holes(&self) {
        let records = self.records().await;
        assert_eq!(gaps(&records), vec![]);
    }

    pub(crate) fn follow(&self, engine: &Engine) -> Following {
        let cancel = CancellationToken::new();
        let recorder = Arc::new(Recorder::default());
        let cx = context().cancelled_by(cancel.clone()).observed_by(recorder.clone());
        let (follower, log, snapshots) = (engine.follower.clone().unwrap(), self.log(), self.snapshots());
        let task = tokio::spawn(async move { follower.follow(&cx, &log, &snapshots).await });
        Following { cancel, recorder, task }
    }

    /// Chooses and restores, as the command line does.
    pub(crate) async fn recover(&self, into: &Engine, moment: Moment, target: RestoreTarget) -> Result<RestoreReport> {
        let id = self.choose(into, &moment).await?;
        self.recover_from(&id, into, moment, target).await
    }

    pub(crate) async fn choose(&self, engine: &Engine, moment: &Moment) -> Result<SnapshotId> {
        engine.restorer.choose(&context(), &self.candidates().await, Some(&self.log()), moment).await
    }

    pub(crate) async fn recover_from(
        &self,
        id: &SnapshotId,
        into: &Engine,
        moment: Moment,
        target: RestoreTarget,
    ) -> Result<RestoreReport> {
        let from = self.reader(id).await;
        let target = RestoreTarget { moment, ..target };
        let plan = into.restorer.plan_restore(&context(), &from, &target).await?;
        into.restorer.restore(&context(), &from, plan).await
    }

    pub(crate) async fn reader(&self, id: &SnapshotId) -> BackupReader {
        BackupReader::new(self.sink.open(id).await.unwrap(), source()).unwrap().with_log(Some(self.log()))
    }

    /// The digest of a server that was recovered to `moment`.
    pub(crate) async fn digest_at(&self, moment: Moment) -> String {
        let target = PrivateRedis::start();
        self.recover(&engine(&target, ""), moment.clone(), RestoreTarget::default())
            .await
            .unwrap_or_else(|error| panic!("{moment}: {error:?}"));
        target.digest()
    }
}

/// A follower at work.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) cancel: CancellationToken,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) task: JoinHandle<Result<()>>,
}

impl Following {
    /// Waits until the follower said that what `server` wrote so far is durable, and returns the offset.
    pub(crate) async fn archived(&self, server: &PrivateRedis) -> u64 {
        let offset = offset(server);
        until(|| acknowledged(server).is_some_and(|durable| durable >= offset), || self.told()).await;
        offset
    }

    /// Stops it; what it received is archived.
    pub(crate) async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        self.task.await.unwrap()
    }

    /// Waits until it told something that contains `text`.
    pub(crate) async fn tells(&self, text: &str) {
        until(|| self.told().contains(text), || format!("`{text}` in:\n{}", self.told())).await;
    }

    pub(crate) fn told(&self) -> String {
        let line = |event: Event| match event {
            Event::Warned { message, .. } => Some(format!("warning: {message}\n")),
            Event::Step { what, .. } => Some(what + "\n"),
            _ => None,
        };
        self.recorder.events().into_iter().filter_map(line).collect()
    }
}

/// Looks again and again until `condition`; tells `why` when it never comes.
pub(crate) async fn until(condition: impl Fn() -> bool, why: impl Fn() -> String) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "waited in vain: {}", why());
        tokio::time::sleep(POLL).await;
    }
}

/// The replication offset of a server.
pub(crate) fn offset(server: &PrivateRedis) -> u64 {
    info(server, "master_repl_offset").unwrap().parse().unwrap()
}

/// The offset that the server's replica said it has.
pub(crate) fn acknowledged(server: &PrivateRedis) -> Option<u64> {
    let replica = info(server, "slave0")?;
    replica.split(',').find_map(|field| field.strip_prefix("offset="))?.parse().ok()
}

pub(crate) fn info(server: &PrivateRedis, field: &str) -> Option<String> {
    let text = server.try_call(&["INFO", "replication"]).ok()?;
    text.lines().find_map(|line| line.trim_end().strip_prefix(field)?.strip_prefix(':').map(str::to_owned))
}

pub(crate) fn position(offset: u64) -> Moment {
    Moment::Position(offset.to_string())
}

/// Waits until the server has handed everything to its replica's connection.
pub(crate) async fn sent(server: &PrivateRedis) {
    let empty = || {
        let clients = server.call(&["CLIENT", "LIST", "TYPE", "replica"]);
        clients.contains(" events=r ")
    };
    until(empty, || server.call(&["CLIENT", "LIST", "TYPE", "replica"])).await;
}
