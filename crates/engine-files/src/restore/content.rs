//! The content of restored files, written by a few threads.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{FileContent, Piece};
use backup_core::tree::TreeEntry;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::apply::Applier;
use super::build::Folder;

/// A file to write.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) folder: Arc<Folder>,
    /// Its name there.
    pub(crate) name: std::ffi::OsString,
    pub(crate) entry: TreeEntry,
    pub(crate) content: Box<dyn FileContent>,
}

/// Writes files.
#[derive(Debug, Clone)]
pub(crate) struct ContentWriter {
    pub(crate) cx: RunContext,
    pub(crate) runtime: Handle,
    pub(crate) applier: Arc<Applier>,
}

impl ContentWriter {
    /// Creates the file, writes its content, puts its attributes back.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the stored content is not whole, or the name was there already; also when writing fails.
    pub(crate) fn write(&self, job: Job) -> Result<u64> {
        let Job { folder, name, entry, content } = job;
        let broken = |errno: Errno| match errno {
            Errno::EXIST => Error::new(ErrorKind::Damaged, format!("`/{}` is in the tree twice", entry.path)),
            errno => Error::io("cannot write a restored file", format!("/{}", entry.path), errno.into()),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder.fd(), &name, flags, self.applier.creation_mode(&entry)).map_err(broken)?;
        let written = self.fill(&file, &entry, content)?;
        self.applier.file(file.as_fd(), &entry)?;
        drop(file);
        folder.release(&self.applier)?;
        self.cx.progress(written, 1);
        Ok(written)
    }

    fn fill(&self, file: &OwnedFd, entry: &TreeEntry, content: Box<dyn FileContent>) -> Result<u64> {
        let broken = |errno: Errno| Error::io("cannot write a restored file", format!("/{}", entry.path), errno.into());
        let size = entry.size();
        let damaged = |length: u64| {
            let message = format!("`/{}` has {size} bytes in the listing, {length} in its content", entry.path);
            Error::new(ErrorKind::Damaged, message)
        };
        let mut pieces = self.runtime.block_on(content.open())?;
        let (mut position, mut extent) = (0u64, 0u64);
        while let Some(piece) = self.runtime.block_on(pieces.next())? {
            self.cx.check_cancelled()?;
            match piece {
                Piece::Hole(length) => position = position.saturating_add(length),
                Piece::Data(data) => {
                    if position + data.len() as u64 > size {
                        return Err(damaged(position + data.len() as u64));
                    }
                    write_all(file, &data, position).map_err(broken)?;
                    position += data.len() as u64;
                    extent = position;
                }
            }
        }
        if position != size {
            return Err(damaged(position));
        }
        if extent < size {
            rustix::fs::ftruncate(file, size).map_err(broken)?;
        }
        Ok(size)
    }
}

fn write_all(file: &OwnedFd, mut data: &[u8], mut position: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(file, data, position) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                data = &data[count..];
                position += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
