//! Timeline histories: `00000003.history` lists the ancestors of timeline 3 and where each was left.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use serde::{Deserialize, Serialize};

/// A longer history is none: a line takes some fifty bytes, and a timeline a promotion.
pub(super) const MAX_HISTORY_BYTES: u64 = 1 << 20;

/// A timeline that was left, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// The ancestor.
    pub timeline: u32,
    /// Its last position that belongs to the descendant.
    pub at: Lsn,
}

/// The ancestors of a timeline, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History(pub Vec<Switch>);

impl History {
    /// Parses a history file of `timeline`: lines of parent, position and reason, separated by tabs; `#` begins a comment.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is none, or its timelines do not grow.
    pub fn parse(timeline: u32, text: &str) -> Result<Self> {
        let wrong = |line: &str| {
            let line: String = line.chars().take(80).collect();
            Error::new(
                ErrorKind::Damaged,
                format!("the history of timeline {timeline} has the line `{}`", line.escape_debug()),
            )
        };
        let mut switches: Vec<Switch> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            let parent = words.next().and_then(|word| word.parse::<u32>().ok());
            let at = words.next().and_then(|word| word.parse::<Lsn>().ok());
            let (Some(parent), Some(at)) = (parent, at) else { return Err(wrong(line)) };
            let grows = switches.last().is_none_or(|last| last.timeline < parent && last.at <= at);
            if !grows || parent >= timeline {
                return Err(wrong(line));
            }
            switches.push(Switch { timeline: parent, at });
        }
        Ok(Self(switches))
    }

    /// The timeline that the position belongs to, on the way to `timeline`, whose history this is.
    #[must_use]
    pub fn timeline_of(&self, position: Lsn, timeline: u32) -> u32 {
        self.0.iter().find(|switch| position < switch.at).map_or(timeline, |switch| switch.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_lists_ancestors_in_order() {
        let text = "1\t0/3000000\tno recovery target specified\n\n# c\n2\t0/5000148\tbefore 2026-11-20 14:30:00+00\n";
        let history = History::parse(3, text).unwrap();
        assert_eq!(history.0.iter().map(|switch| switch.timeline).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(history.0[1].at.to_string(), "0/5000148");
        let of = |position| history.timeline_of(Lsn(position), 3);
        assert_eq!([0x2FF_FFFF, 0x300_0000, 0x500_0147, 0x500_0148].map(of), [1, 2, 2, 3]);
        for bad in ["x\t0/1\t", "1\t\t", "3\t0/1\tself", "2\t0/2\ta\n1\t0/3\tb", "1\t0/4\ta\n2\t0/3\tb"] {
            assert_eq!(History::parse(3, bad).unwrap_err().kind(), ErrorKind::Damaged, "{bad}");
        }
        assert!(History::parse(1, "").unwrap().0.is_empty());
    }
}
