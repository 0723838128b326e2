//! Writes the file of one artifact in a thread of its own: compresses, hashes, syncs.
//!
//! Invariant: a file counts only after its end was asked for and everything is on disk; a thread whose sender is
//! dropped stops, and its file goes with the partial folder.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use backup_core::ArtifactName;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreeEntry;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::compression::{Compression, Encoder};
use super::spool::Spooled;
use super::tar;

/// So many pieces may wait for the thread.
const QUEUE: usize = 8;

/// What the thread is told.
pub(super) enum Job {
    /// Bytes of a stream.
    Data(Bytes),
    /// An entry of a tree.
    Entry(Box<TreeEntry>, Option<Spooled>),
    /// The end of a tree.
    EndOfTree,
    /// The end of the artifact.
    End,
}

/// A file that is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) path: ArtifactName,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A file that is being written.
pub(super) struct Output {
    jobs: mpsc::Sender<Job>,
    /// Taken when the thread's end was learned.
    done: Option<oneshot::Receiver<Result<Written>>>,
}

impl Output {
    /// Starts the thread that writes `file`. `place` is where it is for messages, `path` below its snapshot's folder.
    pub(super) fn start(file: File, place: PathBuf, path: ArtifactName, compression: Compression) -> Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (finished, done) = oneshot::channel();
        let work = move || {
            let result = write(file, path, compression, queue).transpose();
            let result = result.map(|written| written.map_err(|source| write_error(&place, source)));
            // Whoever dropped the receiver has given the artifact up.
            if let Some(result) = result {
                let _given_up = finished.send(result);
            }
        };
        std::thread::Builder::new()
            .name("directory".to_owned())
            .spawn(work)
            .map_err(|source| Error::from_io("cannot start a thread", source))?;
        Ok(Self { jobs, done: Some(done) })
    }

    /// Hands a job over; waits when the thread is behind.
    pub(super) async fn send(&mut self, job: Job) -> Result<()> {
        if self.jobs.send(job).await.is_ok() {
            return Ok(());
        }
        match self.end().await {
            Err(error) => Err(error),
            Ok(_) => Err(stopped()),
        }
    }

    /// Ends the artifact, once it is on disk.
    pub(super) async fn finish(mut self) -> Result<Written> {
        self.send(Job::End).await?;
        self.end().await
    }

    /// Waits for the thread.
    async fn end(&mut self) -> Result<Written> {
        let done = self.done.take().ok_or_else(stopped)?;
        done.await.map_err(|_| stopped())?
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the thread that writes an artifact ended")
}

fn write_error(place: &std::path::Path, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::InvalidInput {
        return Error::new(ErrorKind::Unsupported, source.to_string());
    }
    Error::io("cannot write the file", place, source)
}

/// Does the jobs until the end; `None` when the sender was dropped before.
fn write(
    file: File,
    path: ArtifactName,
    compression: Compression,
    mut queue: mpsc::Receiver<Job>,
) -> io::Result<Option<Written>> {
    let hashed = Hashed { file, bytes: 0, digest: Sha256::new() };
    let mut encoder = Encoder::new(hashed, compression)?;
    loop {
        match queue.blocking_recv() {
            Some(Job::Data(data)) => encoder.write_all(&data)?,
            Some(Job::Entry(entry, content)) => tar::put_entry(&mut encoder, &entry, content.as_ref())?,
            Some(Job::EndOfTree) => tar::put_end(&mut encoder)?,
            Some(Job::End) => break,
            None => return Ok(None),
        }
    }
    let Hashed { file, bytes, digest } = encoder.finish()?;
    file.sync_all()?;
    Ok(Some(Written { path, bytes, sha256: hex::encode(digest.finalize()) }))
}

/// Counts and hashes what is written.
struct Hashed {
    file: File,
    bytes: u64,
    digest: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.digest.update(&data[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
