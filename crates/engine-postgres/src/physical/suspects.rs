//! Pages that do not have their own checksum, until the log has told which of them are damaged.
//!
//! A page that the server wrote while it was read may have arrived in two halves. Whatever is written during a backup was
//! changed after it began, and the first such change has the whole page in the log (the server forces `full_page_writes`
//! while a backup runs, and with checksums logs even hints so): a recovery puts it back before it looks at it. The others
//! are damaged. Invariant: a page is absolved only by a record between the backup's beginning and its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use backup_core::position::Lsn;
use bytes::BytesMut;

use super::checksum::{PageState, judge};
use super::details::DamagedPage;
use super::files::RelationFile;
use crate::wal::{Fork, PageAddress, SegmentSize, WalSegment, Walker};

/// Damaged pages are counted beyond this, not listed.
pub(crate) const MAX_DAMAGED: usize = 1000;
/// So many can be absolved; a disk that rots has more, and they are counted as damaged.
const MAX_SUSPECTS: usize = 20_000;

/// Pages that are damaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DamagedPages {
    pub(crate) list: Vec<DamagedPage>,
    pub(crate) total: u64,
}

/// A relation's file whose pages are looked at.
#[derive(Debug, Clone)]
pub(crate) struct LookedAt {
    path: Arc<str>,
    fork: Fork,
    /// The number that its first page has in the relation.
    first_block: u32,
}

impl LookedAt {
    /// `segment_blocks`: pages in a file of a relation.
    pub(crate) fn new(path: &str, file: RelationFile, segment_blocks: u32) -> Self {
        Self { path: path.into(), fork: file.fork, first_block: file.segment.saturating_mul(segment_blocks) }
    }
}

/// Looks at the pages of a relation's file as they pass.
#[derive(Debug)]
pub(crate) struct PageCheck {
    file: LookedAt,
    page_bytes: usize,
    /// The number of the next page in its relation.
    block: u32,
    /// The beginning of a page that did not arrive whole.
    pending: BytesMut,
}

impl PageCheck {
    pub(crate) fn new(file: LookedAt, page_bytes: u32) -> Self {
        Self { block: file.first_block, file, page_bytes: page_bytes.max(1) as usize, pending: BytesMut::new() }
    }

    pub(crate) fn take(&mut self, mut data: &[u8], suspects: &mut Suspects) {
        if !self.pending.is_empty() {
            let (head, rest) = data.split_at((self.page_bytes - self.pending.len()).min(data.len()));
            self.pending.extend_from_slice(head);
            data = rest;
            if self.pending.len() < self.page_bytes {
                return;
            }
            let page = self.pending.split();
            self.look(&page, suspects);
        }
        let mut pages = data.chunks_exact(self.page_bytes);
        for page in &mut pages {
            self.look(page, suspects);
        }
        self.pending.extend_from_slice(pages.remainder());
    }

    fn look(&mut self, page: &[u8], suspects: &mut Suspects) {
        suspects.look(&self.file, self.block, page);
        self.block = self.block.wrapping_add(1);
    }

    /// Looks at the page with this number in the file, whatever passed.
    pub(crate) fn look_at(&self, number: u32, page: &[u8], suspects: &mut Suspects) {
        suspects.look(&self.file, self.file.first_block.wrapping_add(number), page);
    }
}

#[derive(Debug)]
struct Suspect {
    path: Arc<str>,
    /// Where the log first has the whole page.
    whole: Option<Lsn>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// Where the backup began.
    start: Lsn,
    size: SegmentSize,
    system: u64,
    pages: BTreeMap<PageAddress, Suspect>,
    /// Those that did not fit.
    more: u64,
    walker: Option<Walker>,
}

impl Suspects {
    /// Of a backup of the server `system` that began at `start`.
    pub(crate) fn new(start: Lsn, size: SegmentSize, system: u64) -> Self {
        Self { start, size, system, pages: BTreeMap::new(), more: 0, walker: None }
    }

    /// Looks at a page; `block` is its number in the relation.
    fn look(&mut self, file: &LookedAt, block: u32, page: &[u8]) {
        if judge(page, block, self.start) != PageState::Damaged {
            return;
        }
        if self.pages.len() < MAX_SUSPECTS {
            let suspect = Suspect { path: Arc::clone(&file.path), whole: None };
            self.pages.insert(PageAddress { fork: file.fork, block }, suspect);
        } else {
            self.more += 1;
        }
    }

    /// A segment of the log begins. All pages must have been looked at: the log comes last.
    pub(crate) fn segment(&mut self, segment: WalSegment) {
        if self.pages.is_empty() {
            return;
        }
        let start = segment.start(self.size);
        if self.walker.as_ref().is_none_or(|walker| walker.position() != start) {
            self.walker = Some(Walker::new(start, self.size, self.system).with_pages());
        }
    }

    /// The next bytes of that segment.
    pub(crate) fn log(&mut self, data: &[u8]) {
        let Self { start, pages, walker: Some(walker), .. } = self else { return };
        walker.push(data, &mut |record| {
            for page in record.pages.iter().filter(|_| record.start >= *start) {
                if let Some(suspect) = pages.get_mut(page) {
                    suspect.whole.get_or_insert(record.start);
                }
            }
        });
    }

    /// Those that are damaged, in the order of their files. `end`: where the backup ended.
    pub(crate) fn settle(&mut self, end: Lsn) -> DamagedPages {
        let mut damaged = DamagedPages { list: Vec::new(), total: std::mem::take(&mut self.more) };
        let guilty = std::mem::take(&mut self.pages)
            .into_iter()
            .filter(|(_, suspect)| suspect.whole.is_none_or(|lsn| lsn >= end));
        for (PageAddress { block, .. }, Suspect { path, .. }) in guilty {
            damaged.total += 1;
            if damaged.list.len() < MAX_DAMAGED {
                damaged.list.push(DamagedPage { path: path.to_string(), block });
            }
        }
        damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: u64 = 7;
    const SEGMENT: u64 = 1 << 20;

    fn suspects(start: Lsn) -> Suspects {
        Suspects::new(start, SegmentSize::new(SEGMENT).unwrap(), SYSTEM)
    }

    fn file(path: &str) -> LookedAt {
        LookedAt::new(path, RelationFile::of(path).unwrap(), 131_072)
    }

    /// A page that was used, with a checksum that is not its own.
    fn torn() -> Vec<u8> {
        let mut page = vec![1; 8192];
        page[..8].fill(0);
        page
    }

    #[test]
    fn without_a_log_they_are_damaged() {
        let mut suspects = suspects(Lsn(100));
        let (first, second) = (file("base/5/16384"), file("base/5/16384.1"));
        suspects.look(&second, second.first_block + 3, &torn());
        suspects.look(&first, 9, &torn());
        suspects.look(&first, 10, &[0; 8192]);
        let DamagedPages { list, total } = suspects.settle(Lsn(200));
        let list: Vec<_> = list.iter().map(|page| (page.path.as_str(), page.block)).collect();
        assert_eq!((list, total), (vec![("base/5/16384", 9), ("base/5/16384.1", 131_075)], 2));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut suspects = suspects(Lsn(100));
        let file = file("base/5/16384");
        for block in 0..MAX_SUSPECTS as u32 + 5 {
            suspects.look(&file, block, &torn());
        }
        let damaged = suspects.settle(Lsn(200));
        assert_eq!((damaged.list.len(), damaged.total), (MAX_DAMAGED, MAX_SUSPECTS as u64 + 5));
    }

    #[test]
    fn pages_are_looked_at_however_they_arrive() {
        let mut bad = vec![1_u8; 8192 * 3];
        bad[..8].fill(0);
        bad[8192..8200].fill(0);
        bad[16384..16400].fill(0);
        let path = "base/1/2.1";
        let file = LookedAt::new(path, RelationFile::of(path).unwrap(), 131_072);
        for step in [1, 100, 8192, 32768] {
            let mut suspects = Suspects::new(Lsn(100), SegmentSize::new(1 << 24).unwrap(), 1);
            let mut check = PageCheck::new(file.clone(), 8192);
            bad.chunks(step).for_each(|piece| check.take(piece, &mut suspects));
            let blocks: Vec<u32> = suspects.settle(Lsn(200)).list.iter().map(|page| page.block).collect();
            assert_eq!(blocks, [131_072, 131_073], "step {step}");
        }
    }
}
