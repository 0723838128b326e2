//! What an earlier snapshot has under the same name: its files are found by path, and pieces of their content are taken
//! over without being read.
//!
//! Invariant: only content whose chunks the repository has is taken over; what cannot be read costs storing it again.

mod content;

use std::sync::Arc;

use backup_core::error::Result;
use backup_core::manifest::ArtifactRecord;
use backup_core::tree::{EntryKind, TreeEntry, TreePath};

use super::content::ContentList;
use super::entry::read_entry;
use super::page_map::{HEADER_BYTES, PageKey, PageMap, read_map};
use super::read::{ChunkReader, ListingReader, MapReader, RecordIndex};
use super::referred::Referred;
pub(super) use content::{EarlierContent, EarlierPages, ExtentCursor};

/// A file of an earlier snapshot.
#[derive(Debug, Clone)]
pub(super) struct EarlierFile {
    pub(super) entry: TreeEntry,
    pub(super) content: ContentList,
    pub(super) map: Option<PageMap>,
}

/// Records that are found by path, in the order or not in which they lie.
enum Found<R, T> {
    /// They are read along, in the same order. The last that was read.
    Along(Box<R>, Option<T>),
    /// By an index, which is made when it is first needed; so many bytes are before the first record.
    Unread(ContentList, usize),
    Indexed(RecordIndex),
    /// Nothing can be found any more: it could not be read, or was read to its end.
    Lost,
}

/// The page map of an earlier artifact, at its first record.
pub(super) struct EarlierMaps {
    content: ContentList,
    reader: MapReader,
}

impl EarlierMaps {
    /// Opens the page map that is recorded with an artifact. The run goes on with its key; one that cannot be read is none.
    pub(super) async fn open(chunks: &Arc<ChunkReader>, record: &ArtifactRecord) -> Option<(PageKey, Self)> {
        let content = ContentList::from_record(record.page_map.as_ref()?).ok()?;
        let (key, reader) = MapReader::open(chunks, content.clone()).await.ok()?;
        Some((key, Self { content, reader }))
    }
}

/// See the module.
pub(super) struct EarlierTree {
    chunks: Arc<ChunkReader>,
    referred: Arc<Referred>,
    listing: Found<ListingReader, (TreeEntry, ContentList)>,
    maps: Found<MapReader, (TreePath, PageMap)>,
}

impl EarlierTree {
    /// A tree that is asked for ascending paths.
    pub(super) fn along(
        chunks: &Arc<ChunkReader>,
        referred: &Arc<Referred>,
        listing: ContentList,
        maps: Option<EarlierMaps>,
    ) -> Self {
        let listing = Found::Along(Box::new(ListingReader::new(chunks, listing)), None);
        let along = |maps: EarlierMaps| Found::Along(Box::new(maps.reader), None);
        let (chunks, referred) = (Arc::clone(chunks), Arc::clone(referred));
        Self { chunks, referred, listing, maps: maps.map_or(Found::Lost, along) }
    }

    /// A tree that is asked for paths in any order.
    pub(super) fn indexed(
        chunks: &Arc<ChunkReader>,
        referred: &Arc<Referred>,
        listing: ContentList,
        maps: Option<EarlierMaps>,
    ) -> Self {
        let maps = maps.map_or(Found::Lost, |maps| Found::Unread(maps.content, HEADER_BYTES));
        let (chunks, referred) = (Arc::clone(chunks), Arc::clone(referred));
        Self { chunks, referred, listing: Found::Unread(listing, 0), maps }
    }

    /// The regular file at `path`, whole or not.
    pub(super) async fn find(&mut self, path: &TreePath) -> Option<EarlierFile> {
        let Ok(found) = self.find_entry(path).await else {
            self.listing = Found::Lost;
            return None;
        };
        let (entry, content) = found.filter(|(entry, _)| matches!(entry.kind, EntryKind::File { .. }))?;
        let found = self.find_map(path).await;
        if found.is_err() {
            self.maps = Found::Lost;
        }
        let map = found.ok().flatten().filter(|map| map.size == entry.size());
        Some(EarlierFile { entry, content, map })
    }

    async fn find_entry(&mut self, path: &TreePath) -> Result<Option<(TreeEntry, ContentList)>> {
        self.listing.open(&self.chunks).await?;
        match &mut self.listing {
            Found::Along(reader, last) => {
                while last.as_ref().is_none_or(|(entry, _)| entry.path < *path) {
                    let Some(next) = reader.next().await? else {
                        self.listing = Found::Lost;
                        return Ok(None);
                    };
                    *last = Some(next);
                }
                Ok(last.as_ref().filter(|(entry, _)| entry.path == *path).cloned())
            }
            Found::Indexed(index) => index.find(path).await?.map(|record| read_entry(&record)).transpose(),
            Found::Unread(..) | Found::Lost => Ok(None),
        }
    }

    async fn find_map(&mut self, path: &TreePath) -> Result<Option<PageMap>> {
        self.maps.open(&self.chunks).await?;
        match &mut self.maps {
            Found::Along(reader, last) => {
                while last.as_ref().is_none_or(|(mapped, _)| mapped < path) {
                    let Some(next) = reader.next().await? else {
                        self.maps = Found::Lost;
                        return Ok(None);
                    };
                    *last = Some(next);
                }
                Ok(last.as_ref().filter(|(mapped, _)| mapped == path).map(|(_, map)| map.clone()))
            }
            Found::Indexed(index) => {
                Ok(index.find(path).await?.map(|record| read_map(&record)).transpose()?.map(|(_, map)| map))
            }
            Found::Unread(..) | Found::Lost => Ok(None),
        }
    }

    /// A way into the content of a file that was found.
    pub(super) fn start(&self, file: EarlierFile) -> EarlierContent {
        EarlierContent {
            chunks: Arc::clone(&self.chunks),
            referred: Arc::clone(&self.referred),
            length: file.entry.size(),
            content: file.content,
            map: file.map,
            is_whole: false,
        }
    }
}

impl<R, T> Found<R, T> {
    async fn open(&mut self, chunks: &Arc<ChunkReader>) -> Result<()> {
        if let Self::Unread(content, head) = self {
            let (content, head) = (std::mem::take(content), *head);
            *self = Self::Indexed(RecordIndex::build(chunks, content, head).await?);
        }
        Ok(())
    }
}
