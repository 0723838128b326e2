//! What a listing finds: snapshots, and the remains of some. One damaged snapshot must not hide the others, nor itself.

use backup_core::SnapshotId;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{SnapshotFilter, SnapshotSummary, UnreadableSnapshot};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Summaries {
    readable: Vec<SnapshotSummary>,
    damaged: Vec<(SnapshotId, Error)>,
}

impl Summaries {
    /// Takes what was read of one snapshot.
    ///
    /// # Errors
    /// What is neither damage nor a snapshot that was removed in this very moment.
    pub(crate) fn add(&mut self, id: SnapshotId, read: Result<SnapshotSummary>) -> Result<()> {
        match read {
            Ok(summary) => self.readable.push(summary),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                self.damaged.push((id, error));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The snapshots that `filter` asks for, oldest first.
    ///
    /// # Errors
    /// The damage, when nothing else was found.
    pub(crate) fn listed(mut self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        if let (true, Some((_, error))) = (self.readable.is_empty(), self.damaged.pop()) {
            return Err(error);
        }
        self.readable.retain(|summary| filter.plan.as_ref().is_none_or(|plan| *plan == summary.plan));
        self.readable.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        Ok(self.readable)
    }

    /// The snapshots that cannot be listed.
    pub(crate) fn unreadable(self) -> Vec<UnreadableSnapshot> {
        let named = |(id, error): (SnapshotId, Error)| UnreadableSnapshot { id, problem: error.chain() };
        let mut unreadable: Vec<_> = self.damaged.into_iter().map(named).collect();
        unreadable.sort_by(|a, b| a.id.cmp(&b.id));
        unreadable
    }
}
