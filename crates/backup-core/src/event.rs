//! Events: what long work reports while it runs. Libraries never print; a front end renders these.

use std::sync::Arc;

use serde::Serialize;

use crate::log::SegmentId;
use crate::names::{ArtifactName, SourceName};

/// Something that happened. Serialisable so that `--json` can print one object a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Work on a source began.
    Started {
        /// The source.
        source: SourceName,
        /// What is being done: `backup`, `restore`, `verify`, `drill`.
        work: &'static str,
        /// The size to expect in bytes, when known.
        expected_bytes: Option<u64>,
    },
    /// Bytes and items were processed since the previous event of this kind; add them up.
    Progress {
        /// The source.
        source: SourceName,
        /// Plain bytes processed.
        bytes: u64,
        /// Items (files, tables, keys) processed.
        items: u64,
    },
    /// An artifact was accepted as complete.
    Sealed {
        /// The source.
        source: SourceName,
        /// The artifact.
        artifact: ArtifactName,
        /// Its plain size.
        bytes: u64,
        /// What the sink had to store for it.
        stored_bytes: u64,
    },
    /// A step of the work, in a few words: `loading database app`.
    Step {
        /// The source.
        source: SourceName,
        /// What is being done now.
        what: String,
    },
    /// Something that an operator should know, and that did not stop the work.
    Warned {
        /// The source.
        source: SourceName,
        /// What.
        message: String,
    },
    /// A follower archived a segment of a log: it is durable.
    Archived {
        /// The source.
        source: SourceName,
        /// The segment.
        segment: SegmentId,
    },
    /// A follower does not follow now, and tries again by itself; or it does, again.
    Waiting {
        /// The source.
        source: SourceName,
        /// Why; `None` when the wait is over.
        why: Option<String>,
    },
    /// Work on a source ended.
    Finished {
        /// The source.
        source: SourceName,
        /// `None` when it succeeded, else why not.
        failure: Option<String>,
    },
}

/// Receives events. Called from many threads; must not block for long.
pub trait Observer: Send + Sync {
    /// Takes one event.
    fn event(&self, event: &Event);
}

/// Drops every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event) {}
}

/// Keeps every event, for tests.
#[derive(Debug, Default)]
pub struct Recorder(std::sync::Mutex<Vec<Event>>);

impl Recorder {
    /// What came so far.
    ///
    /// # Panics
    /// When another thread panicked while it recorded.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().expect("no recorder panics").clone()
    }
}

impl Observer for Recorder {
    fn event(&self, event: &Event) {
        if let Ok(mut events) = self.0.lock() {
            events.push(event.clone());
        }
    }
}

/// A shared observer.
pub type SharedObserver = Arc<dyn Observer>;
