//! What a source can be recovered to, by its log and its snapshots: the one place that `status` and `wal status` ask.

use std::sync::Arc;

use backup_core::engine::Candidate;
use backup_core::log::LogStore;
use backup_core::sink::Sink;
use backup_core::snapshots::candidates;
use backup_core::window::{LogOverview, Window, overview};
use backup_core::{Result, SegmentLog};
use jiff::Timestamp;

use crate::session::Session;
use crate::stack::{Part, Stack, clock};

/// See the module.
#[derive(Debug)]
pub(super) struct Recoverable {
    /// Chains, holes, damage.
    pub(super) log: LogOverview,
    /// Oldest first.
    pub(super) windows: Vec<Window>,
    /// When the newest complete snapshot was taken.
    pub(super) snapshot: Option<Timestamp>,
}

impl Recoverable {
    /// Looks at the records of all segments and the complete snapshots. Needs no private key on a machine that may write.
    ///
    /// # Errors
    /// When the sink cannot be read; damage is in the answer.
    pub(super) async fn look(
        session: &Session<'_>,
        stack: &Stack,
        part: &Part,
        sink: &dyn Sink,
        logs: Option<&Arc<dyn LogStore>>,
    ) -> Result<Self> {
        let cx = session.context(part.name());
        let candidates = candidates(sink, &stack.plan.name, part.name()).await?;
        let candidates: Vec<Candidate> =
            candidates.into_iter().filter(|candidate| candidate.record.is_complete()).collect();
        let mut log = match logs {
            Some(logs) => {
                let log = SegmentLog::new(Arc::clone(logs), part.name().clone());
                cx.unless_cancelled(overview(&cx, &log)).await?
            }
            None => LogOverview::default(),
        };
        log.accept_bridged(&candidates);
        let windows = log.windows(&candidates);
        // A snapshot from the future makes nothing younger than it is.
        let newest = candidates.iter().rev().find(|candidate| !clock::is_ahead(candidate.record.started));
        let snapshot = newest.map(|candidate| candidate.record.started);
        Ok(Self { log, windows, snapshot })
    }
}
