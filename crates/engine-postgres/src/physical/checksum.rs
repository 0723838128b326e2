//! Page checksums, as `src/include/storage/checksum_impl.h` of PostgreSQL computes them: FNV-1a in 32 lanes.
//!
//! Invariant: a page is called damaged only when the server would: not when it is new, nor when it was written after the
//! backup began (the log repairs it).

use backup_core::position::Lsn;
use pulp::Arch;

const LANES: usize = 32;
const ROW: usize = LANES * 4;
const PRIME: u32 = 16_777_619;
/// What each lane begins with.
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageState {
    Good,
    /// Never used.
    New,
    /// Written after the backup began: it may be torn, and the log has it whole.
    Later,
    Damaged,
}

/// Judges a page. `block` is its number in the relation, across segments; `start` is where the backup began.
pub(crate) fn judge(page: &[u8], block: u32, start: Lsn) -> PageState {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    // `PageHeaderData` of `bufpage.h`: pd_lsn in two words, pd_checksum, pd_flags, pd_lower, pd_upper.
    if half(14) == 0 {
        return PageState::New;
    }
    if u64::from(word(0)) << 32 | u64::from(word(4)) >= start.0 {
        return PageState::Later;
    }
    // With the widest multiplications that this machine has: four times as fast as what every x86-64 has.
    if half(8) == Arch::new().dispatch(|| checksum(page, block)) { PageState::Good } else { PageState::Damaged }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "what is not inlined into the dispatched code has no wide multiplications")]
fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let mut rows = page.chunks_exact(ROW);
    if let Some(first) = rows.next() {
        // The checksum does not count itself.
        let mut row = [0; ROW];
        row.copy_from_slice(first);
        row[8..10].fill(0);
        mix_row(&mut sums, &row);
    }
    for row in rows {
        mix_row(&mut sums, row);
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mix(*sum, 0);
        }
    }
    let folded = sums.iter().fold(0, |folded, sum| folded ^ sum) ^ block;
    (folded % 65_535 + 1) as u16
}

/// Written so that the compiler sees that the lanes are independent.
#[inline(always)]
#[expect(clippy::inline_always, reason = "see `checksum`")]
fn mix_row(sums: &mut [u32; LANES], row: &[u8]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = mix(*sum, u32::from_le_bytes(*word));
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "see `checksum`")]
fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn(0x100_0000);

    /// A page with this LSN, some content, and the checksum that this code gives it. That the server agrees is tested
    /// where it sends its files.
    fn page(lsn: u64, block: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..8192_u32).map(|n| (n * 7 % 251) as u8).collect();
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn every_byte_and_the_place_count() {
        let good = page(5, 3);
        assert_eq!(judge(&good, 3, START), PageState::Good);
        assert_eq!(judge(&good, 4, START), PageState::Damaged, "a page that was written to another place");
        for at in [16, 100, 127, 128, 4000, 8191] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(judge(&bad, 3, START), PageState::Damaged, "{at}");
        }
    }

    #[test]
    fn new_and_later_pages_are_let_pass() {
        assert_eq!(judge(&[0; 8192], 0, START), PageState::New);
        let mut later = page(START.0, 0);
        later[5000] ^= 1;
        assert_eq!(judge(&later, 0, START), PageState::Later);
        let mut earlier = page(START.0 - 1, 0);
        earlier[5000] ^= 1;
        assert_eq!(judge(&earlier, 0, START), PageState::Damaged);
    }
}
