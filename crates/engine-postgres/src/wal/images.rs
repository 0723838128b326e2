//! Which pages a record of the log puts back as a whole: those of which it has an image, and those that it makes anew.
//!
//! Sources: `access/xlogrecord.h` (`XLogRecordBlockHeader`, `XLogRecordBlockImageHeader`), `storage/relfilelocator.h`
//! (`relfilenode.h` before 16), `catalog/pg_tablespace.dat`; the same in PostgreSQL 13 to 18 but for the flags of an image.

use super::records::u32_at;

/// The headers of the 33 blocks that a record can refer to, the longest that they can be, are shorter than this.
pub(super) const KEEP_HEADERS: usize = 2048;
/// `XLR_MAX_BLOCK_ID`: greater numbers begin other things.
const MAX_BLOCK_ID: u8 = 32;
/// `BKPBLOCK_FORK_MASK`, `BKPBLOCK_HAS_IMAGE`, `BKPBLOCK_WILL_INIT`, `BKPBLOCK_SAME_REL`.
const FORK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;
/// `BKPIMAGE_HAS_HOLE`.
const HAS_HOLE: u8 = 0x01;
/// `XLOG_PAGE_MAGIC` of version 15, in which the flags of images changed.
const MAGIC_15: u16 = 0xD110;

/// A relation's fork, as the log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fork {
    /// The oid of the tablespace.
    pub(crate) space: u32,
    /// That of the database; zero for what all share.
    pub(crate) database: u32,
    pub(crate) relation: u32,
    /// `ForkNumber`: main, free space map, visibility map, init.
    pub(crate) number: u8,
}

/// A page, by its number in the fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageAddress {
    pub(crate) fork: Fork,
    pub(crate) block: u32,
}

/// The pages that a record with this beginning of its body puts back; none from where it is cut or not understood.
pub(super) fn whole_pages(body: &[u8], magic: u16) -> Vec<PageAddress> {
    let mut pages = Vec::new();
    let mut rest = body;
    let mut relation = None;
    while let Some((id, page)) = block(&mut rest, magic, &mut relation) {
        if id > MAX_BLOCK_ID {
            break;
        }
        pages.extend(page);
    }
    pages
}

/// Takes the next block's header off; the second is `None` when its page is only changed.
fn block(rest: &mut &[u8], magic: u16, relation: &mut Option<(u32, u32, u32)>) -> Option<(u8, Option<PageAddress>)> {
    let header = take(rest, 4)?;
    let (id, flags) = (header[0], header[1]);
    if id > MAX_BLOCK_ID {
        return Some((id, None));
    }
    let mut is_whole = flags & WILL_INIT != 0;
    if flags & HAS_IMAGE != 0 {
        let image = take(rest, 5)?[4];
        let (applied, compressed) = if magic >= MAGIC_15 { (0x02, 0x04 | 0x08 | 0x10) } else { (0x04, 0x02) };
        if image & compressed != 0 && image & HAS_HOLE != 0 {
            take(rest, 2)?;
        }
        // Others are there to compare the outcome of a replay with, and are not put back.
        is_whole |= image & applied != 0;
    }
    if flags & SAME_RELATION == 0 {
        let locator = take(rest, 12)?;
        *relation = Some((u32_at(locator, 0), u32_at(locator, 4), u32_at(locator, 8)));
    }
    let block = u32_at(take(rest, 4)?, 0);
    let (space, database, relation) = (*relation)?;
    let fork = Fork { space, database, relation, number: flags & FORK };
    Some((id, is_whole.then_some(PageAddress { fork, block })))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELATION: [u32; 3] = [1663, 5, 16384];

    fn header(id: u8, flags: u8, image: Option<&[u8]>, relation: Option<[u32; 3]>, block: u32) -> Vec<u8> {
        let mut bytes = vec![id, flags, 0, 0];
        bytes.extend_from_slice(image.unwrap_or_default());
        bytes.extend(relation.into_iter().flatten().flat_map(u32::to_ne_bytes));
        bytes.extend(block.to_ne_bytes());
        bytes
    }

    fn blocks(body: &[u8], magic: u16) -> Vec<(u8, u32)> {
        whole_pages(body, magic).iter().map(|page| (page.fork.number, page.block)).collect()
    }

    #[test]
    fn images_and_new_pages_are_told_and_changes_are_not() {
        // Length, offset of the hole, flags; of the third, compressed with a hole, also the hole's length.
        let (plain, checked, packed): (&[u8], &[u8], &[u8]) =
            (&[0, 32, 0, 0, 0x03], &[0, 32, 0, 0, 0x01], &[9, 0, 24, 0, 0x07, 0, 16]);
        let body = [
            header(0, HAS_IMAGE, Some(plain), Some(RELATION), 7),
            header(1, SAME_RELATION | HAS_IMAGE | 2, Some(packed), None, 8),
            header(2, SAME_RELATION | HAS_IMAGE, Some(checked), None, 9),
            header(3, SAME_RELATION, None, None, 10),
            header(4, SAME_RELATION | WILL_INIT, None, None, 11),
            vec![255, 4, 1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(blocks(&body, 0xD110), [(0, 7), (2, 8), (0, 11)]);
        let fork = Fork { space: 1663, database: 5, relation: 16384, number: 0 };
        assert_eq!(whole_pages(&body, 0xD110)[0], PageAddress { fork, block: 7 });
        // Version 14 had other flags for the same.
        let old: (&[u8], &[u8]) = (&[0, 32, 0, 0, 0x05], &[9, 0, 24, 0, 0x07, 0, 16]);
        let body = [
            header(0, HAS_IMAGE, Some(old.0), Some(RELATION), 1),
            header(1, SAME_RELATION | HAS_IMAGE, Some(old.1), None, 2),
        ]
        .concat();
        assert_eq!(blocks(&body, 0xD10D), [(0, 1), (0, 2)]);
        for cut in 0..body.len() {
            assert!(blocks(&body[..cut], 0xD10D).len() <= 1, "{cut}");
        }
    }

    #[test]
    fn a_block_of_no_relation_is_not_understood() {
        assert_eq!(whole_pages(&header(0, SAME_RELATION | WILL_INIT, None, None, 1), 0xD118), []);
        assert_eq!(whole_pages(&[], 0xD118), []);
    }

    #[test]
    fn the_longest_headers_are_kept() {
        let longest = 4 + 7 + 12 + 4;
        assert!(KEEP_HEADERS >= (usize::from(MAX_BLOCK_ID) + 1) * longest + 16);
    }
}
