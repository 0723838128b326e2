//! What every operation of an engine receives: whom to tell, when to stop, where to put scratch files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, SharedObserver, Silent};
use crate::log::SegmentId;
use crate::names::SourceName;

/// A folder of our own: what is saved there would be saved into itself, and grow each time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPlace {
    /// The folder.
    pub path: PathBuf,
    /// What it is, for people: `the repository`.
    pub what: String,
}

/// The context of one operation on one source. Cheap to clone.
#[derive(Clone)]
pub struct RunContext {
    source: SourceName,
    observer: SharedObserver,
    cancel: CancellationToken,
    scratch: Arc<PathBuf>,
    jobs: usize,
    own_places: Arc<Vec<OwnPlace>>,
    warnings: Arc<Mutex<Vec<String>>>,
}

/// More warnings than this are counted, not kept (a tree of a million unreadable files must not fill the manifest).
pub const MAX_WARNINGS: usize = 100;

impl RunContext {
    /// A context for `source` that reports to nobody and uses the system's folder for temporary files.
    #[must_use]
    pub fn new(source: SourceName) -> Self {
        Self {
            source,
            observer: Arc::new(Silent),
            cancel: CancellationToken::new(),
            scratch: Arc::new(std::env::temp_dir()),
            jobs: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            own_places: Arc::default(),
            warnings: Arc::default(),
        }
    }

    /// Reports to `observer`.
    #[must_use]
    pub fn observed_by(mut self, observer: SharedObserver) -> Self {
        self.observer = observer;
        self
    }

    /// Stops when `cancel` is cancelled.
    #[must_use]
    pub fn cancelled_by(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Puts temporary files into `folder`.
    #[must_use]
    pub fn scratch_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.scratch = Arc::new(folder.into());
        self
    }

    /// Leaves `places` out of what is saved.
    #[must_use]
    pub fn keeping_out_of(mut self, places: Vec<OwnPlace>) -> Self {
        self.own_places = Arc::new(places);
        self
    }

    /// Folders that no source saves, because they are our own.
    #[must_use]
    pub fn own_places(&self) -> &[OwnPlace] {
        &self.own_places
    }

    /// Uses up to `jobs` workers.
    #[must_use]
    pub fn with_jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs.max(1);
        self
    }

    /// The source that this is about.
    #[must_use]
    pub fn source(&self) -> &SourceName {
        &self.source
    }

    /// How many workers the operation may use.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// The folder for temporary files. Remove what you put there.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The token that is cancelled when the operation shall stop.
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Fails when the operation shall stop. Call it in every loop.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`].
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(interrupted()) } else { Ok(()) }
    }

    /// Runs `work` until it ends or the operation shall stop; then `work` is dropped.
    ///
    /// # Errors
    /// Those of `work`, and [`ErrorKind::Interrupted`].
    pub async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(interrupted()),
            result = work => result,
        }
    }

    /// Reports an event.
    pub fn report(&self, event: &Event) {
        self.observer.event(event);
    }

    /// Reports progress since the last call.
    pub fn progress(&self, bytes: u64, items: u64) {
        self.report(&Event::Progress { source: self.source.clone(), bytes, items });
    }

    /// Says what is being done now.
    pub fn step(&self, what: impl Into<String>) {
        self.report(&Event::Step { source: self.source.clone(), what: what.into() });
    }

    /// Says that a segment of a log is archived, durable.
    pub fn archived(&self, segment: &SegmentId) {
        self.report(&Event::Archived { source: self.source.clone(), segment: segment.clone() });
    }

    /// Says that a follower does not follow now, and why; it tries again by itself.
    pub fn waits_for(&self, why: impl Into<String>) {
        self.report(&Event::Waiting { source: self.source.clone(), why: Some(why.into()) });
    }

    /// Says that a follower follows, from now on.
    pub fn waits_no_more(&self) {
        self.report(&Event::Waiting { source: self.source.clone(), why: None });
    }

    /// Tells the operator something that did not stop the work; it also goes into the manifest.
    pub fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        self.report(&Event::Warned { source: self.source.clone(), message: message.clone() });
        if let Ok(mut warnings) = self.warnings.lock() {
            if warnings.len() < MAX_WARNINGS {
                warnings.push(message);
            } else if warnings.len() == MAX_WARNINGS {
                warnings.push(format!("more than {MAX_WARNINGS} warnings; the rest were only shown"));
            }
        }
    }

    /// The warnings so far.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().map(|warnings| warnings.clone()).unwrap_or_default()
    }
}

/// The error that cancelled work ends with.
#[must_use]
pub fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted; nothing was committed")
}

impl fmt::Debug for RunContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunContext").field("source", &self.source).field("jobs", &self.jobs).finish_non_exhaustive()
    }
}
