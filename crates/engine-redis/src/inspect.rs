//! Checking an RDB while it passes by: the bytes go to a thread that scans them, with back-pressure.
//!
//! Invariant: a summary is returned only for an RDB that was scanned whole, with nothing behind its end.

use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader, RunContext};
use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::rdb::{RdbSummary, scan};

/// How many pieces may wait for the scan: with pieces of a megabyte at most, its memory.
const QUEUE: usize = 8;

/// A scan that is fed. Dropping it ends the scan.
#[derive(Debug)]
pub(crate) struct Inspection<T = RdbSummary> {
    feed: mpsc::Sender<Bytes>,
    scan: JoinHandle<Result<T>>,
}

impl Inspection {
    /// Begins the scan of an RDB. `now_ms` decides which keys count as expired.
    pub(crate) fn begin(now_ms: i64) -> Self {
        Self::of(move |fed| scan(fed, now_ms))
    }
}

impl<T: Send + 'static> Inspection<T> {
    /// Begins with what reads all that is pushed.
    pub(crate) fn of(scan: impl FnOnce(Fed) -> Result<T> + Send + 'static) -> Self {
        let (feed, pieces) = mpsc::channel(QUEUE);
        let scan = tokio::task::spawn_blocking(move || scan(Fed { pieces, piece: Bytes::new() }));
        Self { feed, scan }
    }

    /// Hands over the next bytes. Waits when the scan is behind.
    ///
    /// # Errors
    /// What the scan found, as soon as it found it.
    pub(crate) async fn push(&mut self, data: Bytes) -> Result<()> {
        if self.feed.send(data).await.is_ok() {
            return Ok(());
        }
        ended(&mut self.scan).await?;
        Err(Error::new(ErrorKind::Damaged, "something follows the end"))
    }

    /// Hands over a whole artifact, and ends.
    ///
    /// # Errors
    /// As [`finish`](Self::finish), and those of reading.
    pub(crate) async fn read(mut self, cx: &RunContext, from: &BackupReader, name: &ArtifactName) -> Result<T> {
        let mut reader = from.stream(name).await?;
        while let Some(piece) = cx.unless_cancelled(reader.next()).await? {
            cx.progress(piece.len() as u64, 0);
            self.push(piece).await?;
        }
        self.finish().await
    }

    /// Ends.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] unless what was pushed is whole.
    pub(crate) async fn finish(self) -> Result<T> {
        let Self { feed, mut scan } = self;
        drop(feed);
        ended(&mut scan).await
    }
}

/// Scans a file.
pub(crate) async fn scan_file(path: &Path, now_ms: i64) -> Result<RdbSummary> {
    let file = std::fs::File::open(path).map_err(|source| Error::io("cannot read the RDB", path, source))?;
    ended(&mut tokio::task::spawn_blocking(move || scan(file, now_ms))).await
}

async fn ended<T>(scan: &mut JoinHandle<Result<T>>) -> Result<T> {
    scan.await.map_err(|source| Error::new(ErrorKind::Internal, "the scan of the RDB panicked").caused_by(source))?
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Reads what is pushed; its end is that of the pushing.
pub(crate) struct Fed {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Fed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}
