//! The content of files: read in one moment, or read again, or reported.
//!
//! Invariant: content that is stored without a warning was read between two looks at the file that agree.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use backup_core::RunContext;
use backup_core::error::{Error, Result};
use backup_core::tree::{EntryKind, FileIdentity, TreeEntry};
use backup_core::writer::FileWriter;
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::attributes::{self, Holder, Stamp};
use crate::owners::Owners;
use crate::walk::{Found, is_refusal};

/// How often a file that changes while it is read is read again.
const MAX_REREADS: u32 = 3;
/// Files are read in pieces of this size; smaller ones in one piece.
const PIECE_BYTES: usize = 1024 * 1024;
/// How much is asked for behind the end of every file.
const PROBE_BYTES: usize = 4096;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is stored, with this length.
    Kept(u64),
    /// It was gone, or had become something else.
    Vanished,
    /// It could not be read.
    Unreadable,
}

/// Reads files and writes them to the sink. For threads that may block.
#[derive(Debug, Clone)]
pub(crate) struct ContentReader {
    pub(crate) cx: RunContext,
    pub(crate) runtime: Handle,
    pub(crate) owners: Arc<Owners>,
    /// See [`FilesConfig::settle`](crate::config::FilesConfig::settle).
    pub(crate) settle: Duration,
}

/// Why reading stopped.
enum Stop {
    File(Errno),
    /// The file system does not give what lies behind the length that it tells.
    Unreadable(Errno),
    Sink(Error),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::File(errno)
    }
}

impl ContentReader {
    /// Stores the content of `found` in `writer`.
    ///
    /// # Errors
    /// When the sink fails or the operation is cancelled. Trouble with the file is a warning and an [`Outcome`].
    pub(crate) fn store(&self, found: Found, mut writer: FileWriter) -> Result<Outcome> {
        let path = found.entry.path.clone();
        match self.transfer(found, &mut writer) {
            Ok(entry) => {
                let size = entry.size();
                self.runtime.block_on(writer.finish(entry))?;
                Ok(Outcome::Kept(size))
            }
            Err(Stop::Sink(error)) => Err(error),
            Err(Stop::Unreadable(errno)) => {
                self.cx.warn(format!("`/{path}` cannot be read and is not in the backup: {errno}"));
                self.runtime.block_on(writer.abandon())?;
                Ok(Outcome::Unreadable)
            }
            Err(Stop::File(errno)) => {
                let outcome = match errno {
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => {
                        self.cx.warn(format!("`/{path}` vanished while it was saved"));
                        Outcome::Vanished
                    }
                    errno if is_refusal(errno) => {
                        self.cx.warn(format!("`/{path}` cannot be read and is not in the backup: {errno}"));
                        Outcome::Unreadable
                    }
                    errno => return Err(Error::io("cannot read", path.below("/".as_ref()), errno.into())),
                };
                self.runtime.block_on(writer.abandon())?;
                Ok(outcome)
            }
        }
    }

    fn transfer(&self, found: Found, writer: &mut FileWriter) -> Result<TreeEntry, Stop> {
        let file = open(&found)?;
        let (mut entry, mut stat) = (found.entry, found.stat);
        for attempt in 0.. {
            let (size, mut read) = (attributes::size(&stat), self.read(&file, &stat, writer)?);
            let mut after = rustix::fs::fstat(&file)?;
            if attributes::kind(&after) != FileType::RegularFile {
                return Err(Stop::File(Errno::NOENT));
            }
            if Stamp::of(&after) == Stamp::of(&stat) && read == size {
                let more = self.rest(&file, writer)?;
                if more == 0 {
                    break;
                }
                // It grew just now, or its file system (proc, FUSE) does not know how long it is.
                read += more;
                after = rustix::fs::fstat(&file)?;
                if Stamp::of(&after) == Stamp::of(&stat) {
                    if size > 0 {
                        self.cx.warn(format!("`/{}` has {read} bytes, its file system says {size}", entry.path));
                    }
                    entry.kind = EntryKind::File { size: read };
                    entry.identity = FileIdentity::default();
                    break;
                }
            }
            if attempt == MAX_REREADS {
                self.cx.warn(format!(
                    "`/{}` kept changing while it was read; what was saved of it may not be of one moment",
                    entry.path
                ));
                entry.kind = EntryKind::File { size: read };
                entry.identity = FileIdentity::default();
                break;
            }
            self.runtime.block_on(writer.restart()).map_err(Stop::Sink)?;
            rustix::fs::seek(&file, SeekFrom::Start(0))?;
            let xattrs = attributes::xattrs(Holder::Open(file.as_fd()))?.unwrap_or_default();
            let kind = EntryKind::File { size: attributes::size(&after) };
            entry = attributes::entry(entry.path, kind, &after, xattrs, &self.owners);
            attributes::identify(&mut entry, &after, self.settle);
            stat = after;
        }
        Ok(entry)
    }

    /// Hands on at most the length that `stat` tells, and returns how much there was.
    fn read(&self, file: &OwnedFd, stat: &Stat, writer: &mut FileWriter) -> Result<u64, Stop> {
        let size = attributes::size(stat);
        if !attributes::maybe_sparse(stat) {
            return self.read_data(file, size, writer);
        }
        let mut position = 0;
        while position < size {
            // NXIO: nothing but a hole follows.
            let data = match rustix::fs::seek(file, SeekFrom::Data(position)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => size,
                // A file system that knows no holes.
                Err(Errno::INVAL | Errno::NOTSUP) => {
                    rustix::fs::seek(file, SeekFrom::Start(position))?;
                    return Ok(position + self.read_data(file, size - position, writer)?);
                }
                Err(errno) => return Err(errno.into()),
            };
            if data > position {
                self.runtime.block_on(writer.hole(data - position)).map_err(Stop::Sink)?;
                position = data;
            }
            if position == size {
                break;
            }
            let end = rustix::fs::seek(file, SeekFrom::Hole(position))?.min(size);
            rustix::fs::seek(file, SeekFrom::Start(position))?;
            let read = self.read_data(file, end - position, writer)?;
            position += read;
            if position < end {
                break;
            }
        }
        // Behind a hole at the end, where `rest` goes on.
        rustix::fs::seek(file, SeekFrom::Start(position))?;
        Ok(position)
    }

    /// Hands on what lies behind the length that the file system told: nothing, of ordinary files.
    fn rest(&self, file: &OwnedFd, writer: &mut FileWriter) -> Result<u64, Stop> {
        let mut read = 0;
        let mut wanted = PROBE_BYTES;
        loop {
            let piece = fill(file, wanted).map_err(Stop::Unreadable)?;
            if piece.is_empty() {
                return Ok(read);
            }
            read += piece.len() as u64;
            wanted = PIECE_BYTES;
            self.runtime.block_on(writer.write(Bytes::from(piece))).map_err(Stop::Sink)?;
        }
    }

    fn read_data(&self, file: &OwnedFd, length: u64, writer: &mut FileWriter) -> Result<u64, Stop> {
        let mut left = length;
        while left > 0 {
            let wanted = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            let piece = fill(file, wanted)?;
            if piece.is_empty() {
                break;
            }
            left -= piece.len() as u64;
            self.runtime.block_on(writer.write(Bytes::from(piece))).map_err(Stop::Sink)?;
        }
        Ok(length - left)
    }
}

/// Reads `wanted` bytes, fewer only at the end of the file.
fn fill(file: &OwnedFd, wanted: usize) -> Result<Vec<u8>, Errno> {
    let mut piece = Vec::with_capacity(wanted);
    while piece.len() < wanted {
        match rustix::io::read(file, spare_capacity(&mut piece)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(piece)
}

/// Opens without following a link, without waiting for a pipe's other end, and, where allowed, without a trace.
fn open(found: &Found) -> Result<OwnedFd, Errno> {
    let parent = found.parent.as_ref().ok_or(Errno::NOENT)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Only the owner and root may read without updating the access time (open(2)).
    match rustix::fs::openat(parent, found.name(), flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(parent, found.name(), flags, Mode::empty()),
        result => result,
    }
}
