//! The runner: drives the sources of a plan and is the only code that commits.
//!
//! Invariant: the manifest is handed to the sink last, after every source ended; a source that failed contributes
//! nothing to it, and a run in which no source succeeded, or which was cancelled, commits nothing.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{OwnPlace, RunContext, interrupted};
use crate::engine::{Source, SourceSummary};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, SharedObserver, Silent};
use crate::manifest::{ArtifactRecord, FORMAT_VERSION, Manifest, Outcome, SourceOutcome, SourceRecord};
use crate::names::{PlanName, SnapshotId, SourceName};
use crate::plan::OnFailure;
use crate::sink::{Sink, SnapshotHeader, SnapshotWriter};
use crate::writer::BackupWriter;

/// One source, ready to run.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name.
    pub name: SourceName,
    /// The engine's name.
    pub engine: String,
    /// What saves it.
    pub source: Arc<dyn Source>,
    /// What its failure means for the run.
    pub on_failure: OnFailure,
}

/// How to run.
#[derive(Clone)]
pub struct RunOptions {
    /// The plan's name.
    pub plan: PlanName,
    /// This machine's name.
    pub host: String,
    /// Sources at the same time.
    pub concurrency: usize,
    /// Whom to tell.
    pub observer: SharedObserver,
    /// When to stop.
    pub cancel: CancellationToken,
    /// Where sources put temporary files.
    pub scratch: std::path::PathBuf,
    /// What no source saves: the repository, this machine's state.
    pub own_places: Vec<OwnPlace>,
}

impl RunOptions {
    /// Options with defaults: two sources at a time, silent, the system's temporary folder.
    #[must_use]
    pub fn new(plan: PlanName, host: impl Into<String>) -> Self {
        Self {
            plan,
            host: host.into(),
            concurrency: 2,
            observer: Arc::new(Silent),
            cancel: CancellationToken::new(),
            scratch: std::env::temp_dir(),
            own_places: Vec::new(),
        }
    }
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions").field("plan", &self.plan).field("host", &self.host).finish_non_exhaustive()
    }
}

/// Runs `tasks` into a new snapshot of `sink` and commits it.
///
/// Returns the manifest as committed; its outcome is [`Outcome::Partial`] when some, but not all, sources failed.
/// Cancel through `options.cancel`; dropping the future kills the sources and commits nothing, too.
///
/// # Errors
/// [`ErrorKind::Interrupted`] when cancelled; the first failure when no source succeeded, or when one failed whose
/// [`Task::on_failure`] is [`OnFailure::Abort`]; also when the sink fails.
pub async fn run(tasks: Vec<Task>, sink: &dyn Sink, options: &RunOptions) -> Result<Manifest> {
    if tasks.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "there is no source to back up"));
    }
    let started = Timestamp::now();
    let id = SnapshotId::generate(started);
    let header = SnapshotHeader { id: id.clone(), plan: options.plan.clone(), host: options.host.clone(), started };
    let writer = sink.begin(header).await.map_err(|error| error.during("begin a snapshot"))?;
    let sources = run_all(tasks, &writer, options).await?;
    if options.cancel.is_cancelled() {
        return Err(interrupted());
    }
    let complete = sources.iter().filter(|source| source.is_complete()).count();
    let outcome = if complete == sources.len() { Outcome::Complete } else { Outcome::Partial };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        id,
        plan: options.plan.clone(),
        host: options.host.clone(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        started,
        finished: Timestamp::now(),
        outcome,
        sources,
    };
    writer.commit(manifest).await.map_err(|error| error.during("commit the snapshot"))
}

struct Ended {
    position: usize,
    record: SourceRecord,
    failure: Option<Error>,
    on_failure: OnFailure,
}

async fn run_all(
    tasks: Vec<Task>,
    writer: &Arc<dyn SnapshotWriter>,
    options: &RunOptions,
) -> Result<Vec<SourceRecord>> {
    let stop = options.cancel.child_token();
    let slots = Arc::new(Semaphore::new(options.concurrency.max(1)));
    let mut running = JoinSet::new();
    let mut records: Vec<Option<SourceRecord>> = vec![None; tasks.len()];
    for (position, task) in tasks.into_iter().enumerate() {
        let cx = RunContext::new(task.name.clone())
            .observed_by(Arc::clone(&options.observer))
            .cancelled_by(stop.clone())
            .scratch_in(&options.scratch)
            .keeping_out_of(options.own_places.clone());
        let (writer, slots) = (Arc::clone(writer), Arc::clone(&slots));
        running.spawn(async move {
            let _slot = slots.acquire_owned().await;
            run_one(position, task, cx, writer).await
        });
    }
    let mut failures = Vec::new();
    let mut aborted = None;
    while let Some(joined) = running.join_next().await {
        let ended =
            joined.map_err(|source| Error::new(ErrorKind::Internal, "the runner lost a source").caused_by(source))?;
        records[ended.position] = Some(ended.record);
        let Some(failure) = ended.failure else { continue };
        if ended.on_failure == OnFailure::Abort && aborted.is_none() && failure.kind() != ErrorKind::Interrupted {
            stop.cancel();
            aborted = Some(failure);
        } else {
            failures.push(failure);
        }
    }
    if options.cancel.is_cancelled() {
        return Err(interrupted());
    }
    if let Some(failure) = aborted {
        return Err(failure.hint("the plan says `on_failure: abort`, so nothing was committed"));
    }
    let records: Vec<SourceRecord> = records.into_iter().flatten().collect();
    if records.iter().any(SourceRecord::is_complete) {
        return Ok(records);
    }
    Err(failures.into_iter().next().unwrap_or_else(|| Error::new(ErrorKind::Internal, "no source ran")))
}

async fn run_one(position: usize, task: Task, cx: RunContext, writer: Arc<dyn SnapshotWriter>) -> Ended {
    let started = Timestamp::now();
    cx.report(&Event::Started { source: task.name.clone(), work: "backup", expected_bytes: None });
    let result = save(&task, &cx, writer).await.map_err(|error| {
        if error.operation().is_some() { error } else { error.during(format!("back up `{}`", task.name)) }
    });
    let (outcome, artifacts, summary, failure) = match result {
        Ok((artifacts, summary)) => (SourceOutcome::Complete, artifacts, summary, None),
        Err(error) => {
            let failed = SourceOutcome::Failed { reason: error.chain(), hint: error.remedy().map(str::to_owned) };
            (failed, Vec::new(), SourceSummary::default(), Some(error))
        }
    };
    cx.report(&Event::Finished { source: task.name.clone(), failure: failure.as_ref().map(Error::chain) });
    let record = SourceRecord {
        name: task.name,
        engine: task.engine,
        mode: summary.mode,
        outcome,
        started,
        finished: Timestamp::now(),
        server: summary.server,
        position: summary.position,
        artifacts,
        fingerprint: summary.fingerprint,
        details: summary.details,
        warnings: cx.warnings(),
    };
    Ended { position, record, failure, on_failure: task.on_failure }
}

/// Runs a source in a task of its own, so that its panic is its failure and nobody else's.
async fn save(
    task: &Task,
    cx: &RunContext,
    writer: Arc<dyn SnapshotWriter>,
) -> Result<(Vec<ArtifactRecord>, SourceSummary)> {
    cx.check_cancelled()?;
    let out = BackupWriter::new(cx.clone(), writer);
    let (source, inner_cx, inner_out) = (Arc::clone(&task.source), cx.clone(), out.clone());
    let mut work = AbortOnDrop(tokio::spawn(async move { source.backup(&inner_cx, &inner_out).await }));
    let summary = (&mut work.0).await.unwrap_or_else(|source| {
        Err(Error::new(ErrorKind::Internal, "the engine panicked; this is a defect of it").caused_by(source))
    })?;
    cx.check_cancelled()?;
    Ok((out.close()?, summary))
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
