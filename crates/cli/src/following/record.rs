//! What a follower tells of itself, in a file of this machine's state: who it is, what it did last, why it waits.
//!
//! Invariant: it is for people and monitoring; nothing is recovered from it, and an older program's is read.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Whose plan it serves.
    pub(crate) plan: String,
    pub(crate) host: String,
    pub(crate) pid: u32,
    pub(crate) started: Timestamp,
    /// Why it does not follow now; it tries again by itself.
    #[serde(default)]
    pub(crate) waiting: Option<Waiting>,
    /// The segment that was archived last.
    #[serde(default)]
    pub(crate) archived: Option<Archived>,
    /// How often it gave up and was begun anew.
    #[serde(default)]
    pub(crate) restarts: u64,
    /// Why it did so last, or ended.
    #[serde(default)]
    pub(crate) failure: Option<String>,
    /// When it ended in order.
    #[serde(default)]
    pub(crate) ended: Option<Timestamp>,
}

/// Why a follower does not follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) since: Timestamp,
    pub(crate) why: String,
}

/// A segment that a follower archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Archived {
    pub(crate) segment: String,
    pub(crate) at: Timestamp,
}

impl Record {
    /// This process, at its beginning.
    pub(crate) fn new(plan: &str, host: &str, started: Timestamp) -> Self {
        Self {
            plan: plan.to_owned(),
            host: host.to_owned(),
            pid: std::process::id(),
            started,
            waiting: Some(Waiting { since: started, why: "it begins, and has not reached the server yet".to_owned() }),
            archived: None,
            restarts: 0,
            failure: None,
            ended: None,
        }
    }

    /// It waits, since now unless it did before; or it does not any more.
    pub(super) fn waits(&mut self, why: Option<String>) {
        let since = self.waiting.take().map_or_else(Timestamp::now, |before| before.since);
        self.waiting = why.map(|why| Waiting { since, why });
    }

    pub(super) fn read(path: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        super::replace(path, &serde_json::to_vec(self)?)
    }
}
