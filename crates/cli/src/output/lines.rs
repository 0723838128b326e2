//! Events without a terminal: JSON lines for programs, and only the warnings for people.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backup_core::event::{Event, Observer};
use backup_core::names::SourceName;

use super::Output;

/// Progress of a source is written at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Writes every event as a line, progress added up.
pub(super) struct JsonLines {
    output: Arc<Output>,
    pending: Mutex<HashMap<SourceName, Pending>>,
}

struct Pending {
    bytes: u64,
    items: u64,
    since: Instant,
}

impl JsonLines {
    pub(super) fn new(output: Arc<Output>) -> Self {
        Self { output, pending: Mutex::default() }
    }

    fn take(&self, source: &SourceName) -> Option<Event> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Pending { bytes, items, .. } = pending.remove(source)?;
        Some(Event::Progress { source: source.clone(), bytes, items })
    }

    /// Adds up; gives the sum back when it is time to tell.
    fn add(&self, source: &SourceName, bytes: u64, items: u64) -> Option<Event> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let sum =
            pending.entry(source.clone()).or_insert_with(|| Pending { bytes: 0, items: 0, since: Instant::now() });
        sum.bytes += bytes;
        sum.items += items;
        let due = sum.since.elapsed() >= PROGRESS_EVERY;
        drop(pending);
        if due { self.take(source) } else { None }
    }
}

impl Observer for JsonLines {
    fn event(&self, event: &Event) {
        let due = match event {
            Event::Progress { source, bytes, items } => self.add(source, *bytes, *items),
            Event::Finished { source, .. } => self.take(source),
            _ => None,
        };
        if let Some(progress) = due {
            self.output.event(&progress);
        }
        if !matches!(event, Event::Progress { .. }) {
            self.output.event(event);
        }
    }
}

/// Shows warnings only.
pub(super) struct Warnings(Arc<Output>);

impl Warnings {
    pub(super) fn new(output: Arc<Output>) -> Self {
        Self(output)
    }
}

impl Observer for Warnings {
    fn event(&self, event: &Event) {
        if let Event::Warned { source, message } = event {
            self.0.warn(format!("{source}: {message}"));
        }
    }
}
