//! Handing the log to a server while it recovers: a few segments at a time, on demand and ahead of it, so that the disk need not
//! hold all of them. What the server calls is a script of a few lines in its data directory (`hand_over.sh`); it knows neither
//! keys nor the plan, and needs no program of ours.
//!
//! Invariant: whatever lies there under the name of a segment is whole and belongs to the server's user; and when nobody hands
//! over any more, the server stops with an error: it never takes the end of what it got for the end of the log.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result, Retry};
use backup_core::{RunContext, SegmentLog};
use rustix::fs::FlockOperation;
use tokio::task::JoinSet;

use super::conf::STAGE;
use super::spaces::Blanks;
use super::way::Way;
use crate::physical::{Owner, make_private, write_private};
use crate::wal::{WalFile, WalSegment, fetch};

/// What `restore_command` runs.
pub(super) const SCRIPT: &str = "hand-over";
const SCRIPT_TEXT: &str = include_str!("hand_over.sh");
/// Held while somebody hands over.
const LOCK: &str = "lock";
/// Says that nobody does any more, where the lock does not tell.
const ENDED: &str = "ended";
/// Behind the name of a file that the server waits for.
const WANTED: &str = ".wanted";
/// Behind the name of a file that there is not.
const NONE: &str = ".none";
/// Behind the name of a segment until it is whole.
const UNFINISHED: &str = ".unfinished";

/// So much lies there at most, within these numbers of segments.
const AHEAD_BYTES: u64 = 64 * 1024 * 1024;
const LEAST_AHEAD: u64 = 2;
const MOST_AHEAD: u64 = 8;
/// How often is looked what the server took and what it waits for. What lies ahead bridges it.
const POLL: Duration = Duration::from_millis(10);
/// A segment that cannot be fetched for a passing reason is tried again so often, each time after twice the pause.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How many segments lie there at most.
pub(crate) fn ahead(segment_bytes: u64) -> usize {
    (AHEAD_BYTES / segment_bytes.max(1)).clamp(LEAST_AHEAD, MOST_AHEAD) as usize
}

/// Writes what the server needs to ask for the log: the script, and the histories, which are small.
///
/// # Errors
/// Those of the archive and of the disk.
pub(crate) async fn prepare(
    cx: &RunContext,
    log: &SegmentLog,
    way: &Way,
    data: &Path,
    owner: Option<Owner>,
) -> Result<()> {
    let folder = data.join(STAGE);
    make_private(&folder, owner)?;
    write_private(&folder.join(SCRIPT), SCRIPT_TEXT.as_bytes(), owner)?;
    write_private(&folder.join(LOCK), b"", owner)?;
    for timeline in &way.histories {
        let file = WalFile::History(*timeline);
        let path = folder.join(file.to_string());
        cx.unless_cancelled(fetch(log, file, &path)).await.map_err(|error| error.with("file", file))?;
        owner.map_or(Ok(()), |owner| owner.take(&path))?;
    }
    Ok(())
}

/// Whether a recovery into this data directory began and did not end: nobody can tell how far it came.
pub(crate) fn broke_off(data: &Path) -> bool {
    data.join(STAGE).join(LOCK).exists()
}

/// Does `work`, which runs a server on `data`, and hands it the log along `way` meanwhile.
///
/// # Errors
/// Those of `work`; when it failed for want of a segment, what kept the segment from coming.
pub(crate) async fn hand_over<T>(
    cx: &RunContext,
    log: &SegmentLog,
    way: &Way,
    (data, owner, blanks): (&Path, Option<Owner>, &Blanks),
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut desk = Desk::open(cx, log, way, (data, owner, blanks))?;
    let mut work = pin!(work);
    let failure = {
        let mut serve = pin!(desk.serve());
        tokio::select! {
            done = &mut work => Ok(done),
            failed = &mut serve => {
                let Err(error) = failed;
                Err(error)
            }
        }
    };
    let done = match failure {
        Ok(done) => done,
        Err(error) => {
            // The server gives up as soon as it asks again; it may have got all that it needs.
            desk.end();
            work.await.map_err(|told| error.with("the server", told.message()))
        }
    };
    if done.is_ok() {
        desk.clear();
    }
    done
}

/// See the module.
#[derive(Debug)]
struct Desk {
    cx: RunContext,
    log: SegmentLog,
    folder: PathBuf,
    owner: Option<Owner>,
    blanks: Blanks,
    /// In the order in which the server asks for them.
    segments: Vec<WalSegment>,
    segment_bytes: u64,
    ahead: usize,
    /// The first that the server is going to ask for, as far as is known.
    next: usize,
    /// Those that lie there.
    there: BTreeSet<usize>,
    coming: BTreeSet<usize>,
    fetches: JoinSet<Result<usize>>,
    lock: Option<File>,
}

impl Desk {
    fn open(
        cx: &RunContext,
        log: &SegmentLog,
        way: &Way,
        (data, owner, blanks): (&Path, Option<Owner>, &Blanks),
    ) -> Result<Self> {
        let folder = data.join(STAGE);
        let path = folder.join(LOCK);
        let lock = File::open(&path).map_err(|source| Error::io("cannot open the file", &path, source))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|source| {
            let message = format!("another process hands the log to the server on {}", data.display());
            Error::new(ErrorKind::Busy, message).caused_by(std::io::Error::from(source))
        })?;
        Ok(Self {
            cx: cx.clone(),
            log: log.clone(),
            folder,
            owner,
            blanks: blanks.clone(),
            segments: way.segments.clone(),
            segment_bytes: way.segment_bytes,
            ahead: ahead(way.segment_bytes),
            next: 0,
            there: BTreeSet::new(),
            coming: BTreeSet::new(),
            fetches: JoinSet::new(),
            lock: Some(lock),
        })
    }

    /// Ends only with an error.
    async fn serve(&mut self) -> Result<Infallible> {
        loop {
            self.look()?;
            self.fetch();
            tokio::select! {
                Some(fetched) = self.fetches.join_next() => {
                    let lost = |source| Error::new(ErrorKind::Internal, "a segment was lost").caused_by(source);
                    let index = fetched.map_err(lost)??;
                    self.coming.remove(&index);
                    self.there.insert(index);
                    self.cx.progress(self.segment_bytes, 0);
                }
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Looks what the server took, and what it waits for.
    fn look(&mut self) -> Result<()> {
        let failed = |source| Error::io("cannot look into the folder", &self.folder, source);
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            // The server removes it when it has ended its recovery.
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            names.insert(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        let taken = |index: &usize| !names.contains(&self.segments[*index].to_string());
        if let Some(last) = self.there.iter().copied().filter(taken).max() {
            self.next = self.next.max(last + 1);
        }
        self.there.retain(|index| !taken(index));
        let wanted = names.iter().filter_map(|name| name.strip_suffix(WANTED));
        for name in wanted.filter(|name| !names.contains(*name)) {
            match self.segments.iter().position(|segment| segment.to_string() == name) {
                Some(index) if (self.next..self.next + self.ahead).contains(&index) => {}
                // It asks for some twice: at the beginning, and for the last one at the end.
                Some(index) => self.next = index,
                None => write_private(&self.folder.join(format!("{name}{NONE}")), b"", self.owner)?,
            }
        }
        let window = self.next..self.next + self.ahead;
        for index in self.there.iter().copied().filter(|index| !window.contains(index)).collect::<Vec<_>>() {
            self.there.remove(&index);
            // It may have been taken by now.
            let _gone = std::fs::remove_file(self.folder.join(self.segments[index].to_string()));
        }
        Ok(())
    }

    /// Begins to fetch what the server will ask for next.
    fn fetch(&mut self) {
        let until = (self.next + self.ahead).min(self.segments.len());
        for index in self.next..until {
            if self.coming.len() >= self.cx.jobs() {
                return;
            }
            if self.there.contains(&index) || !self.coming.insert(index) {
                continue;
            }
            let (log, segment, owner) = (self.log.clone(), self.segments[index], self.owner);
            let (to, blanks) = (self.folder.join(segment.to_string()), self.blanks.clone());
            self.fetches.spawn(async move { bring(&log, segment, &to, (owner, &blanks)).await.map(|()| index) });
        }
    }

    /// Lets the server know that nothing comes any more.
    fn end(&mut self) {
        if self.lock.take().is_some() {
            // Without a folder there is nobody who asks.
            let _gone = write_private(&self.folder.join(ENDED), b"", self.owner);
        }
    }

    /// Removes what the recovery needed. The server runs by now, and would not mind if something stayed.
    fn clear(&mut self) {
        self.fetches.abort_all();
        self.lock = None;
        if let Err(error) = std::fs::remove_dir_all(&self.folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            self.cx.warn(format!("{} is of no use any more, and cannot be removed: {error}", self.folder.display()));
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.end();
    }
}

/// Brings one segment to its place, whole, edited, and in the hands of the server's user.
async fn bring(
    log: &SegmentLog,
    segment: WalSegment,
    to: &Path,
    (owner, blanks): (Option<Owner>, &Blanks),
) -> Result<()> {
    let mut unfinished = to.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let mut pause = FIRST_PAUSE;
    for tries_left in (0..TRIES).rev() {
        match fetch(log, WalFile::Segment(segment), &unfinished).await {
            Ok(()) => break,
            Err(error) if error.retry() == Retry::Later && tries_left > 0 => tokio::time::sleep(pause).await,
            Err(error) => return Err(error.with("file", segment)),
        }
        pause *= 2;
    }
    blanks.apply(segment, &unfinished)?;
    owner.map_or(Ok(()), |owner| owner.take(&unfinished))?;
    std::fs::rename(&unfinished, to).map_err(|source| Error::io("cannot write the file", to, source))
}
