//! Writes a file of pages: those that did not change become pieces of chunks that are stored already, the others are
//! stored together, in the order of the file, however far apart they are.
//!
//! Invariant: a page is taken from the earlier snapshot only when its hash is the same and the repository has its chunk;
//! a page that was not seen as a whole has no hash.

mod output;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backup_core::error::Result;
use backup_core::sink::nothing_to_keep;
use bytes::BytesMut;

use super::content::{ChunkId, ContentList, Extent};
use super::earlier::{EarlierContent, EarlierPages};
use super::page_map::{PageHash, PageKey, PageMap, UNKNOWN_PAGE, ZERO_PAGE};
use super::pipeline::{Pipeline, Tally};
use output::{HashWriter, Output};

/// So much is kept at a time: the extents of more would take too much memory.
pub(super) const KEEP_BYTES: u64 = 4 * 1024 * 1024;

/// Files are looked at for fragmentation in regions of so many pages.
const REGION_PAGES: u64 = 256;
/// A region that fell into more extents than this, fewer than two pages each, is stored anew in one piece.
const MAX_REGION_EXTENTS: usize = 128;
/// At most this part of a tree is stored anew for being fragmented, a run: no backup pays for all the others.
const COMPACTION_SHARE: u64 = 128;
/// Small trees may be stored anew faster.
const MIN_COMPACTION_BYTES: u64 = 16 * 1024 * 1024;

const ZEROS: &[u8] = &[0; 64 * 1024];

/// How many bytes of unchanged pages a run may still store anew.
#[derive(Debug)]
pub(super) struct Allowance(AtomicU64);

impl Allowance {
    /// For a tree whose earlier snapshot has so many bytes.
    pub(super) fn of(bytes: u64) -> Self {
        Self(AtomicU64::new((bytes / COMPACTION_SHARE).max(MIN_COMPACTION_BYTES)))
    }

    fn spend(&self, bytes: u64) -> bool {
        let spend = |left: u64| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// What the files of a tree share.
#[derive(Debug, Clone)]
pub(super) struct PageSetup {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) tally: Arc<Tally>,
    pub(super) key: Arc<PageKey>,
    pub(super) allowance: Arc<Allowance>,
}

/// Whether the bytes so far of the page that is being written were handed over, kept, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    /// They are gathered, to be compared once the page is whole.
    Handed,
    Kept,
    Mixed,
}

/// See the module.
pub(super) struct PageWriter {
    setup: PageSetup,
    page_bytes: u64,
    output: Output,
    hashes: HashWriter,
    earlier: Option<EarlierPages>,
    /// Bytes that were taken.
    position: u64,
    current: Current,
    gathered: BytesMut,
    /// So many bytes were kept and nothing else happened: they are looked at when something else happens. A file of
    /// which all is kept is taken over as it is, and its map is not even read.
    untouched: u64,
    /// The region that is being written, and whether its unchanged pages are stored anew.
    region: Option<u64>,
    rewrite: bool,
    found: Vec<Extent>,
}

impl PageWriter {
    pub(super) fn new(setup: PageSetup, page_bytes: u32, earlier: Option<&EarlierContent>) -> Self {
        Self {
            output: Output::new(&setup),
            hashes: HashWriter::new(&setup),
            earlier: earlier.map(|earlier| earlier.pages(page_bytes)),
            setup,
            page_bytes: u64::from(page_bytes),
            position: 0,
            current: Current::Handed,
            gathered: BytesMut::new(),
            untouched: 0,
            region: None,
            rewrite: false,
            found: Vec::new(),
        }
    }

    /// Bytes of the current page that were taken.
    fn filled(&self) -> u64 {
        self.position % self.page_bytes
    }

    pub(super) async fn write(&mut self, mut data: &[u8]) -> Result<()> {
        self.touch().await?;
        while !data.is_empty() {
            let filled = self.filled();
            let room = (self.page_bytes - filled) as usize;
            let (piece, rest) = data.split_at(room.min(data.len()));
            if filled == 0 && piece.len() == room {
                self.page(self.position, piece).await?;
                self.position += piece.len() as u64;
            } else {
                self.piece(filled, piece).await?;
            }
            data = rest;
        }
        Ok(())
    }

    /// Takes a part of a page.
    async fn piece(&mut self, filled: u64, piece: &[u8]) -> Result<()> {
        if filled == 0 {
            self.current = Current::Handed;
        }
        if self.current == Current::Handed {
            self.gathered.extend_from_slice(piece);
        } else {
            self.current = Current::Mixed;
            self.output.fresh(piece).await?;
        }
        self.position += piece.len() as u64;
        if self.filled() == 0 { self.end_page(self.page_bytes).await } else { Ok(()) }
    }

    /// Ends the page whose `length` bytes were taken in pieces.
    async fn end_page(&mut self, length: u64) -> Result<()> {
        let start = self.position - length;
        match self.current {
            Current::Handed => {
                let mut page = std::mem::take(&mut self.gathered);
                self.page(start, &page).await?;
                page.clear();
                self.gathered = page;
                Ok(())
            }
            Current::Kept => {
                let hash = match &mut self.earlier {
                    Some(earlier) => earlier.hash(start, length).await,
                    None => None,
                };
                self.hashes.push(hash.unwrap_or(UNKNOWN_PAGE)).await
            }
            Current::Mixed => self.hashes.push(UNKNOWN_PAGE).await,
        }
    }

    /// Takes a whole page; only the last one of a file may be short.
    async fn page(&mut self, start: u64, page: &[u8]) -> Result<()> {
        let length = page.len() as u64;
        let region = start / (REGION_PAGES * self.page_bytes);
        if self.region != Some(region) {
            self.region = Some(region);
            self.rewrite = self.is_fragmented(start).await;
        }
        if is_zero(page) {
            self.hashes.push(ZERO_PAGE).await?;
            return self.output.stored(hole(length)).await;
        }
        let hash = self.setup.key.hash(page);
        self.hashes.push(hash).await?;
        if !self.is_unchanged(start, length, hash).await || self.rewrite && self.setup.allowance.spend(length) {
            return self.output.fresh(page).await;
        }
        for extent in self.found.drain(..) {
            self.output.stored(extent).await?;
        }
        Ok(())
    }

    /// Whether the earlier snapshot has this very page here, and the repository has it; then `found` says where.
    async fn is_unchanged(&mut self, start: u64, length: u64, hash: PageHash) -> bool {
        let Some(earlier) = &mut self.earlier else { return false };
        if hash == UNKNOWN_PAGE || earlier.hash(start, length).await != Some(hash) {
            return false;
        }
        self.found.clear();
        earlier.take(start, start + length, &mut self.found).await
    }

    async fn is_fragmented(&mut self, start: u64) -> bool {
        let Some(earlier) = &mut self.earlier else { return false };
        let end = start + REGION_PAGES * self.page_bytes;
        earlier.is_fragmented(start, end, MAX_REGION_EXTENTS).await
    }

    pub(super) async fn hole(&mut self, mut length: u64) -> Result<()> {
        self.touch().await?;
        while length > 0 {
            let filled = self.filled();
            let whole = length - length % self.page_bytes;
            if filled == 0 && whole > 0 {
                self.output.stored(hole(whole)).await?;
                for _ in 0..whole / self.page_bytes {
                    self.hashes.push(ZERO_PAGE).await?;
                }
                self.position += whole;
                length -= whole;
            } else {
                let count = length.min(self.page_bytes - filled).min(ZEROS.len() as u64);
                self.piece(filled, &ZEROS[..count as usize]).await?;
                length -= count;
            }
        }
        Ok(())
    }

    /// See [`FileSink::keep`](backup_core::sink::FileSink::keep).
    pub(super) async fn keep(&mut self, length: u64) -> Result<()> {
        let earlier = self.earlier.as_mut().ok_or_else(nothing_to_keep)?;
        let end = self.position.checked_add(length).filter(|end| *end <= earlier.length());
        let end = end.ok_or_else(nothing_to_keep)?;
        if self.untouched < self.position {
            return self.keep_until(end).await;
        }
        if self.position == 0 && !earlier.is_whole().await {
            return Err(nothing_to_keep());
        }
        (self.untouched, self.position) = (end, end);
        Ok(())
    }

    /// Looks at what was kept at the beginning, because the file goes on in another way.
    async fn touch(&mut self) -> Result<()> {
        let end = std::mem::take(&mut self.untouched);
        if end > 0 && end == self.position {
            self.position = 0;
            self.keep_until(end).await?;
        }
        Ok(())
    }

    async fn keep_until(&mut self, end: u64) -> Result<()> {
        if self.filled() > 0 && self.current == Current::Handed {
            // What was gathered comes before what is kept now, and the page cannot be compared as a whole.
            let gathered = self.gathered.split();
            self.output.fresh(&gathered).await?;
            self.current = Current::Mixed;
        }
        while self.position < end {
            let start = self.position;
            let stop = end.min(start + KEEP_BYTES);
            let earlier = self.earlier.as_mut().ok_or_else(nothing_to_keep)?;
            self.found.clear();
            if !earlier.take(start, stop, &mut self.found).await {
                return Err(nothing_to_keep());
            }
            for extent in self.found.drain(..) {
                self.output.stored(extent).await?;
            }
            while self.position < stop {
                let filled = self.filled();
                if filled == 0 {
                    self.current = Current::Kept;
                }
                self.position += (self.page_bytes - filled).min(stop - self.position);
                if self.filled() == 0 {
                    self.end_page(self.page_bytes).await?;
                }
            }
        }
        Ok(())
    }

    /// Ends the file.
    pub(super) async fn finish(mut self) -> Result<(ContentList, Option<PageMap>)> {
        if self.untouched == self.position
            && let Some(earlier) = &mut self.earlier
            && earlier.length() == self.position
        {
            return Ok(earlier.as_it_is());
        }
        self.touch().await?;
        let filled = self.filled();
        if filled > 0 {
            self.end_page(filled).await?;
        }
        let (page_bytes, size) = (self.page_bytes as u32, self.position);
        let content = self.output.finish().await?;
        let hashes = self.hashes.finish().await?;
        Ok((content, (size > 0).then_some(PageMap { page_bytes, size, hashes })))
    }
}

fn is_zero(page: &[u8]) -> bool {
    page.chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()])
}

fn hole(length: u64) -> Extent {
    Extent { chunk: ChunkId::HOLE, offset: 0, length }
}
