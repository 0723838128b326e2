//! Writes one file of a tree.
//!
//! Invariant: what is kept of the earlier snapshot is there, or the file fails; a file that is dropped fails its tree.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::sink::{ChunkHint, FileSink, nothing_to_keep};
use backup_core::tree::TreeEntry;
use bytes::Bytes;

use super::chunker::Cut;
use super::content::ContentList;
use super::earlier::{EarlierContent, ExtentCursor};
use super::pack::Class;
use super::page_map::page_bytes;
use super::pages::{KEEP_BYTES, PageSetup, PageWriter};
use super::stream::{ChunkWriter, ContentWriter};
use super::tree::Listed;
use crate::ordered::Place;

/// A file of a tree in a repository.
pub(super) struct RepositoryFile {
    setup: PageSetup,
    hint: ChunkHint,
    earlier: Option<EarlierContent>,
    writer: Option<ContentWriter>,
    /// Where `keep` is in the earlier content, for a file that is not one of pages.
    cursor: Option<ExtentCursor>,
    position: u64,
    place: Place<Listed>,
}

impl RepositoryFile {
    pub(super) fn new(
        setup: PageSetup,
        hint: ChunkHint,
        earlier: Option<EarlierContent>,
        place: Place<Listed>,
    ) -> Self {
        Self { setup, hint, earlier, writer: None, cursor: None, position: 0, place }
    }

    fn writer(&mut self) -> &mut ContentWriter {
        let Self { setup, hint, earlier, .. } = self;
        self.writer.get_or_insert_with(|| match *hint {
            ChunkHint::Pages(hinted) => {
                let pages = PageWriter::new(setup.clone(), page_bytes(hinted), earlier.as_ref());
                ContentWriter::Pages(Box::new(pages))
            }
            ChunkHint::Stream => {
                let (pipeline, tally) = (Arc::clone(&setup.pipeline), Arc::clone(&setup.tally));
                ContentWriter::Chunks(ChunkWriter::new(pipeline, tally, Class::Content, Cut::File))
            }
        })
    }

    /// Keeps bytes of a file that is not one of pages.
    async fn splice(&mut self, length: u64) -> Result<()> {
        let earlier = self.earlier.as_ref().ok_or_else(nothing_to_keep)?;
        let (start, end) = (self.position, self.position + length);
        let cursor = self.cursor.get_or_insert_with(|| earlier.cursor());
        let mut extents = Vec::new();
        match cursor.take(start, end, &mut extents).await {
            Ok(true) => {}
            Ok(false) => return Err(nothing_to_keep()),
            Err(error) => return Err(nothing_to_keep().caused_by(error)),
        }
        match self.writer() {
            ContentWriter::Chunks(writer) => writer.splice(&extents).await,
            ContentWriter::Pages(_) => Err(nothing_to_keep()),
        }
    }
}

#[async_trait]
impl FileSink for RepositoryFile {
    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.position += data.len() as u64;
        self.writer().write(data).await
    }

    async fn hole(&mut self, length: u64) -> Result<()> {
        self.position += length;
        self.writer().hole(length).await
    }

    async fn keep(&mut self, mut length: u64) -> Result<()> {
        let there = self.earlier.as_ref().map_or(0, EarlierContent::length);
        self.position.checked_add(length).filter(|end| *end <= there).ok_or_else(nothing_to_keep)?;
        if let ContentWriter::Pages(writer) = self.writer() {
            writer.keep(length).await?;
            self.position += length;
            return Ok(());
        }
        while length > 0 {
            let count = length.min(KEEP_BYTES);
            self.splice(count).await?;
            self.position += count;
            length -= count;
        }
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        (self.writer, self.cursor, self.position) = (None, None, 0);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, entry: TreeEntry) -> Result<()> {
        let (content, map) = match self.writer.take() {
            Some(writer) => writer.finish().await?,
            None => (ContentList::default(), None),
        };
        self.place.fill(Listed { entry: Box::new(entry), content, map });
        Ok(())
    }

    async fn abandon(mut self: Box<Self>) -> Result<()> {
        self.place.abandon();
        Ok(())
    }
}
