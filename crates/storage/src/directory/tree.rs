//! Writes one tree as an archive: contents wait in a spool until it is their entry's turn.
//!
//! Invariant: the archive holds only files whose content is complete, in the order in which their places were taken.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, Result};
use backup_core::manifest::EntryOrder;
use backup_core::sink::{ChunkHint, FileSink, Stored, TreeSink};
use backup_core::tree::{TreeEntry, TreePath};
use bytes::Bytes;

use super::compression::Compression;
use super::output::{Job, Output};
use super::spool::{Buffer, Spool, SpoolWriter, Spooled};
use super::write::Ledger;
use crate::blocking;
use crate::ordered::{Ordered, Place};

/// Contents go into the spool in pieces of at most this size.
const PIECE_BYTES: usize = 256 * 1024;
const ZEROS: &[u8] = &[0; 64 * 1024];

/// An entry, and its content when it is a file.
type Member = (Box<TreeEntry>, Option<Spooled>);

/// A tree artifact in a directory.
pub(super) struct DirectoryTree {
    output: Output,
    compression: Compression,
    entry_order: EntryOrder,
    ledger: Ledger,
    spool: Arc<Spool>,
    order: Ordered<Member>,
    bytes: u64,
}

impl DirectoryTree {
    pub(super) fn new(
        output: Output,
        compression: Compression,
        entry_order: EntryOrder,
        ledger: Ledger,
        folder: &Path,
    ) -> Self {
        Self { output, compression, entry_order, ledger, spool: Spool::new(folder), order: Ordered::new(), bytes: 0 }
    }

    /// Makes room for what waits, by handing on what is complete.
    async fn settle(&mut self) -> Result<()> {
        self.advance().await?;
        while self.order.is_full() {
            self.order.first_filled().await;
            self.advance().await?;
        }
        Ok(())
    }

    async fn advance(&mut self) -> Result<()> {
        while let Some((entry, content)) = self.order.next_ready()? {
            self.bytes += entry.size();
            self.output.send(Job::Entry(entry, content)).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl TreeSink for DirectoryTree {
    async fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.order.push((Box::new(entry), None));
        self.settle().await
    }

    /// Every snapshot is whole by itself.
    async fn reuse(&mut self, _: &TreeEntry) -> Result<bool> {
        Ok(false)
    }

    async fn file(&mut self, path: TreePath, _: ChunkHint) -> Result<Box<dyn FileSink>> {
        let place = self.order.reserve(path);
        self.settle().await?;
        let writer = Some(SpoolWriter::new(&self.spool));
        Ok(Box::new(DirectoryFile { spool: Arc::clone(&self.spool), writer, place }))
    }

    async fn finish(mut self: Box<Self>) -> Result<Stored> {
        self.advance().await?;
        self.order.finish()?;
        self.output.send(Job::EndOfTree).await?;
        let written = self.output.finish().await?;
        Ok(self.ledger.accept(written, self.bytes, self.compression, self.entry_order))
    }
}

/// A file of a tree in a directory.
struct DirectoryFile {
    spool: Arc<Spool>,
    /// `None` only while it is being flushed, and after a flush that failed.
    writer: Option<SpoolWriter>,
    place: Place<Member>,
}

impl DirectoryFile {
    fn writer(&mut self) -> Result<&mut SpoolWriter> {
        self.writer.as_mut().ok_or_else(|| {
            Error::new(backup_core::ErrorKind::Internal, "a file was written to after its temporary file failed")
        })
    }

    async fn push(&mut self, piece: &[u8]) -> Result<()> {
        if self.writer()?.push(piece) == Buffer::HasRoom {
            return Ok(());
        }
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        let flush = move || {
            writer
                .flush()
                .map_err(|source| Error::from_io("cannot write a temporary file beside the snapshot", source))?;
            Ok(writer)
        };
        self.writer = Some(blocking(flush).await?);
        Ok(())
    }
}

#[async_trait]
impl FileSink for DirectoryFile {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        for piece in data.chunks(PIECE_BYTES) {
            self.push(piece).await?;
        }
        Ok(())
    }

    async fn hole(&mut self, mut length: u64) -> Result<()> {
        if self.writer()?.hole(length) {
            return Ok(());
        }
        while length > 0 {
            let count = length.min(ZEROS.len() as u64);
            self.push(&ZEROS[..count as usize]).await?;
            length -= count;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.writer = Some(SpoolWriter::new(&self.spool));
        Ok(())
    }

    async fn finish(mut self: Box<Self>, entry: TreeEntry) -> Result<()> {
        self.writer()?;
        let content = self.writer.take().map(SpoolWriter::finish);
        self.place.fill((Box::new(entry), content));
        Ok(())
    }

    async fn abandon(mut self: Box<Self>) -> Result<()> {
        self.place.abandon();
        Ok(())
    }
}
