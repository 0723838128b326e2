//! Where a session begins: at the end of the archive, if the server's history leads there.

use backup_core::error::Result;
use backup_core::position::Lsn;

use super::timelines;
use crate::wal::chain::Chain;
use crate::wal::history::History;
use crate::wal::names::{SegmentSize, WalSegment};
use crate::wire::{Connection, SystemIdentity};

/// Where to begin, and whether something is missing before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) segment: WalSegment,
    /// Why the archive cannot be continued.
    pub(super) gap: Option<String>,
}

impl Begin {
    pub(super) async fn find(
        connection: &mut Connection,
        chain: Option<&Chain>,
        identity: &SystemIdentity,
        restart: Option<Lsn>,
        size: SegmentSize,
    ) -> Result<Self> {
        let history = timelines::history(connection, identity.timeline).await?;
        // What the slot keeps may be older than the server's timeline.
        let from = restart.unwrap_or(identity.flushed);
        let fresh = WalSegment::containing(history.timeline_of(from, identity.timeline), from, size);
        let Some(chain) = chain else { return Ok(Self { segment: fresh, gap: None }) };
        Ok(Self::after(chain, identity.timeline, &history, fresh))
    }

    /// Continues the newest timeline of the archive that the server's `timeline` comes from.
    pub(super) fn after(chain: &Chain, timeline: u32, history: &History, fresh: WalSegment) -> Self {
        let size = chain.segment_size();
        for archived in chain.timelines().into_iter().rev() {
            let left = history.0.iter().find(|switch| switch.timeline == archived).map(|switch| switch.at);
            if archived != timeline && left.is_none() {
                // Another branch: a primary that was left behind, say.
                continue;
            }
            // Pieces alone: their segment is received again, whole.
            let next = match (chain.last(archived), chain.end(archived)) {
                (Some(last), _) => last.next(size),
                (None, Some(end)) => WalSegment::containing(archived, Lsn(end.0.saturating_sub(1)), size),
                (None, None) => continue,
            };
            let Some(left) = left else { return Self { segment: next, gap: None } };
            if left >= next.start(size) {
                return Self { segment: next, gap: None };
            }
            // The archive has more of the old timeline than the server's history kept; the new one begins before its end.
            let descendant =
                history.0.iter().map(|switch| switch.timeline).chain([timeline]).find(|each| *each > archived);
            let segment = WalSegment::containing(descendant.unwrap_or(timeline), left, size);
            return Self { segment, gap: None };
        }
        let known: Vec<String> = chain.timelines().iter().map(ToString::to_string).collect();
        let why = format!(
            "the server is on timeline {timeline}, which does not come from what is archived (timeline {})",
            known.join(", ")
        );
        Self { segment: fresh, gap: Some(why) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::chain::tests::{MIB, chain};
    use crate::wal::history::Switch;

    pub(super) fn after(chain: &Chain, timeline: u32, switches: &[(u32, u64)]) -> (u32, u64, bool) {
        let switch = |(timeline, at): &(u32, u64)| Switch { timeline: *timeline, at: Lsn(*at) };
        let history = History(switches.iter().map(switch).collect());
        let fresh = WalSegment::numbered(timeline, 99, chain.segment_size());
        let begin = Begin::after(chain, timeline, &history, fresh);
        (begin.segment.timeline, begin.segment.number(chain.segment_size()), begin.gap.is_some())
    }

    #[test]
    fn a_session_continues_the_archive_on_the_servers_line_of_history() {
        let first = chain(&[(1, &[3, 4])], &[]);
        assert_eq!(after(&first, 1, &[]), (1, 5, false));
        // Promoted later than the archive's end: the rest of timeline 1 comes first.
        assert_eq!(after(&first, 2, &[(1, 7 * MIB + 5)]), (1, 5, false));
        assert_eq!(after(&first, 2, &[(1, 5 * MIB)]), (1, 5, false));
        // Promoted before the archive's end: the new timeline is needed from there on.
        assert_eq!(after(&first, 2, &[(1, 4 * MIB + 5)]), (2, 4, false));
        assert_eq!(after(&first, 3, &[(1, 4 * MIB + 5), (2, 6 * MIB)]), (2, 4, false));
        // The archive has followed already.
        let both = chain(&[(1, &[3, 4]), (2, &[4, 5])], &[]);
        assert_eq!(after(&both, 2, &[(1, 4 * MIB + 5)]), (2, 6, false));
        // Another branch left timeline 1: not a descendant of timeline 2, but of timeline 1.
        assert_eq!(after(&both, 3, &[(1, 4 * MIB + 5)]), (3, 4, false));
        // Nothing in common.
        let second = chain(&[(2, &[4, 5])], &[]);
        assert_eq!(after(&second, 1, &[]), (1, 99, true));
    }
}
