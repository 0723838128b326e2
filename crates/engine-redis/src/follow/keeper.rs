//! Storing segments, one after the other, in a task of its own, so that a slow or full store does not stop the receiving.
//!
//! Invariant: the durable offset moves only when the log said that a segment is stored, and segments are stored in order.

use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{RunContext, SegmentLog};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::intake::Waiting;
use super::passing;

/// The first pause after a failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After a cancellation, what was received has so long to become durable.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);

/// How far the archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// The epoch of the last segment that was stored.
    pub(crate) epoch: u64,
    /// Its end: everything before it, in its epoch, is durable.
    pub(crate) end: u64,
    /// How many bytes were stored in all.
    pub(crate) bytes: u64,
    /// How many segments were stored in all.
    pub(crate) segments: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Keeper {
    queue: mpsc::UnboundedSender<Waiting>,
    progress: watch::Receiver<Progress>,
    /// `None` once it ended.
    task: Option<JoinHandle<Result<()>>>,
    /// How many bytes, and segments, were handed over.
    given: u64,
    segments: u64,
}

impl Keeper {
    pub(crate) fn begin(cx: &RunContext, log: &SegmentLog) -> Self {
        // Not bounded here: whoever reads from the server looks at `backlog` first.
        let (queue, segments) = mpsc::unbounded_channel();
        let (tell, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(store_all(cx.clone(), log.clone(), segments, tell));
        Self { queue, progress, task: Some(task), given: 0, segments: 0 }
    }

    /// Stores `segment` when its turn comes.
    pub(crate) fn keep(&mut self, segment: Waiting) {
        self.given += segment.bytes();
        self.segments += 1;
        // A keeper that ended has an error, which `failed` tells.
        let _ended = self.queue.send(segment);
    }

    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// How many bytes wait.
    pub(crate) fn backlog(&self) -> u64 {
        self.given.saturating_sub(self.progress().bytes)
    }

    /// How many segments wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.segments - self.progress().segments
    }

    /// Waits until a segment was stored.
    ///
    /// # Errors
    /// Why no further one will be. Cancel safe.
    pub(crate) async fn stored(&mut self) -> Result<()> {
        if self.progress.changed().await.is_ok() {
            return Ok(());
        }
        let early = || Error::new(ErrorKind::Internal, "the keeper of segments ended");
        let Some(task) = &mut self.task else { return Err(early()) };
        let ended = task.await;
        self.task = None;
        ended.map_err(panicked)?.and_then(|()| Err(early()))
    }

    /// Waits until everything is stored.
    ///
    /// # Errors
    /// Why not all of it is.
    pub(crate) async fn finish(self) -> Result<()> {
        let Self { queue, task, given, progress, .. } = self;
        drop(queue);
        // Why it ended early was told already.
        let Some(mut task) = task else { return Ok(()) };
        if let Ok(ended) = tokio::time::timeout(FLUSH_LIMIT, &mut task).await {
            return ended.map_err(panicked)?;
        }
        task.abort();
        let left = given.saturating_sub(progress.borrow().bytes);
        Err(Error::new(ErrorKind::Incomplete, format!("the last {left} bytes could not be archived in time"))
            .hint("the server has them as long as its replication backlog goes back: follow it again soon"))
    }
}

fn panicked(source: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "the keeper of segments panicked").caused_by(source)
}

async fn store_all(
    cx: RunContext,
    log: SegmentLog,
    mut segments: mpsc::UnboundedReceiver<Waiting>,
    tell: watch::Sender<Progress>,
) -> Result<()> {
    while let Some(segment) = segments.recv().await {
        store(&cx, &log, &segment).await?;
        let Progress { bytes, segments, .. } = *tell.borrow();
        let (bytes, segments) = (bytes + segment.bytes(), segments + 1);
        tell.send_replace(Progress { epoch: segment.epoch, end: segment.span.end, bytes, segments });
        cx.progress(segment.bytes(), 1);
        cx.archived(&segment.id);
    }
    Ok(())
}

/// Tries until it is stored. A failure that will not pass ends it, and so does one after a cancellation.
async fn store(cx: &RunContext, log: &SegmentLog, segment: &Waiting) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let put = log.put(&segment.id, segment.meta.clone(), segment.content()?).await;
        let Err(error) = put else { return Ok(()) };
        if !passing(&error) || cx.cancellation().is_cancelled() {
            return Err(error.during(format!("archive the segment {}", segment.id)));
        }
        cx.warn(format!(
            "the segment {} is not archived: {}; trying again in {} s, and the server keeps it meanwhile as far as its \
             backlog goes",
            segment.id,
            error.chain(),
            pause.as_secs_f32()
        ));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cx.cancellation().cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
