//! Who follows a source on this machine: a lock that ends with its holder, and beside it what the follower did last.
//!
//! Invariant: whether somebody follows is told by the lock alone, which the system takes back however the holder ends; a
//! process that took the number of a dead one is not mistaken for it. The record says the rest.

mod record;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::event::{Event, Observer, SharedObserver};
use backup_core::sink::Sink;
use backup_core::{Error, ErrorKind, Result, SourceName};
use jiff::Timestamp;

use record::Archived;
pub(crate) use record::Record;

/// The followers of a repository's sources on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Followers(PathBuf);

/// What is known of a source's follower on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// None was ever here.
    Never,
    /// One is at work.
    Running(Record),
    /// One was here.
    Gone(Record),
}

impl Followers {
    /// Those of `sink`; `None` when this machine keeps nothing of it.
    pub(crate) fn of(sink: &dyn Sink) -> Option<Self> {
        sink.local_state().map(|folder| Self(folder.join("followers")))
    }

    /// Makes `record` the follower of `source`, until the lease is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] with process and host when there is one already; those of writing files.
    pub(crate) fn take(&self, source: &SourceName, record: Record) -> Result<Lease> {
        let failed = |source| Error::io("cannot note who follows", &self.0, source);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        let (lock, path) = (self.lock(source), self.record(source));
        let gate = self.gate().map_err(failed)?;
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(source, Record::read(&path).ok().as_ref())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        record.write(&path).map_err(failed)?;
        drop(gate);
        Ok(Lease { _lock: file, path, record: Mutex::new(record) })
    }

    /// Looks who follows `source`.
    ///
    /// # Errors
    /// When what is there cannot be read: then nobody knows.
    pub(crate) fn look(&self, source: &SourceName) -> Result<Seen> {
        let failed = |source| Error::io("cannot see who follows", &self.0, source);
        let gate = match self.gate() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Seen::Never),
            gate => gate.map_err(failed)?,
        };
        let file = match File::open(self.lock(source)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Seen::Never),
            file => file.map_err(failed)?,
        };
        let is_held = match file.try_lock_shared() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        };
        // Before others may try: a look must not keep a follower from beginning.
        drop(file);
        drop(gate);
        let record = Record::read(&self.record(source)).map_err(failed)?;
        Ok(if is_held { Seen::Running(record) } else { Seen::Gone(record) })
    }

    /// Whoever looks at a lock, or takes it, holds the folder: for a moment, so waiting for it is short.
    fn gate(&self) -> std::io::Result<File> {
        let folder = File::open(&self.0)?;
        folder.lock()?;
        Ok(folder)
    }

    fn lock(&self, source: &SourceName) -> PathBuf {
        self.0.join(format!("{source}.lock"))
    }

    fn record(&self, source: &SourceName) -> PathBuf {
        self.0.join(format!("{source}.json"))
    }
}

fn busy(source: &SourceName, holder: Option<&Record>) -> Error {
    let who = match holder {
        Some(Record { pid, host, started, .. }) => format!("by process {pid} on {host}, since {started}"),
        None => "by another process".to_owned(),
    };
    Error::new(ErrorKind::Busy, format!("`{source}` is followed already, {who}"))
        .hint("one follower per source: stop that one first, or let it work")
}

/// That this process follows a source. Dropping it ends that, as does the end of the process.
#[derive(Debug)]
pub(crate) struct Lease {
    _lock: File,
    path: PathBuf,
    record: Mutex<Record>,
}

impl Lease {
    /// Changes what is told of the follower.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        // What it says is for those who look; the log goes on without it, and the lock is what counts.
        let _told = record.write(&self.path);
    }

    /// The follower ended, in order.
    pub(crate) fn end(&self, failure: Option<String>) {
        self.tell(|record| {
            record.ended = Some(Timestamp::now());
            record.waiting = None;
            record.failure = failure;
        });
    }
}

/// Notes in a lease what a follower tells, and hands it on.
pub(crate) struct Noting {
    pub(crate) inner: SharedObserver,
    pub(crate) lease: Option<Arc<Lease>>,
}

impl Observer for Noting {
    fn event(&self, event: &Event) {
        match (&self.lease, event) {
            (Some(lease), Event::Waiting { why, .. }) => lease.tell(|record| record.waits(why.clone())),
            (Some(lease), Event::Archived { segment, .. }) => lease.tell(|record| {
                record.archived = Some(Archived { segment: segment.to_string(), at: Timestamp::now() });
            }),
            _ => {}
        }
        self.inner.event(event);
    }
}

/// Writes a file whole or not at all.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("json-partial");
    std::fs::write(&partial, content)?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str) -> Record {
        Record::new("small", host, Timestamp::from_second(1_800_000_000).unwrap())
    }

    #[test]
    fn one_follows_and_others_see_it() {
        let folder = tempfile::tempdir().unwrap();
        let followers = Followers(folder.path().join("state/followers"));
        let source = SourceName::new("db").unwrap();
        assert_eq!(followers.look(&source).unwrap(), Seen::Never);
        let lease = followers.take(&source, record("one")).unwrap();
        assert!(matches!(followers.look(&source).unwrap(), Seen::Running(found) if found == record("one")));
        let error = followers.take(&source, record("two")).unwrap_err();
        let pid = std::process::id();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains(&format!("process {pid} on one")), "{error}");
        assert!(followers.take(&SourceName::new("other").unwrap(), record("one")).is_ok(), "another source is free");
        lease.tell(|record| record.restarts = 3);
        assert!(matches!(followers.look(&source).unwrap(), Seen::Running(found) if found.restarts == 3));
        // As a crash leaves it.
        drop(lease);
        assert!(matches!(followers.look(&source).unwrap(), Seen::Gone(found) if found.ended.is_none()));
        let lease = followers.take(&source, record("two")).unwrap();
        lease.end(Some("why".to_owned()));
        drop(lease);
        assert!(matches!(followers.look(&source).unwrap(), Seen::Gone(found) if found.ended.is_some()));
    }

    #[test]
    fn whoever_looks_keeps_nobody_from_following() {
        let folder = tempfile::tempdir().unwrap();
        let followers = Followers(folder.path().to_owned());
        let source = SourceName::new("db").unwrap();
        drop(followers.take(&source, record("one")).unwrap());
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| (0..2000).for_each(|_| drop(followers.look(&source).unwrap())));
            while !looks.is_finished() {
                drop(followers.take(&source, record("one")).unwrap());
            }
        });
    }
}
