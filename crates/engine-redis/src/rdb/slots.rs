//! The slots of a cluster: which of them a key belongs to (the cluster specification of Redis, "Key distribution model").
//!
//! Invariant: a set of slots is sorted, and its ranges neither touch nor overlap.

use std::fmt;

use backup_core::{Error, ErrorKind, Result};

/// How many slots a cluster has.
pub const SLOTS: u16 = 16_384;

/// A set of slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots(Vec<(u16, u16)>);

impl Slots {
    /// Puts ranges, both ends included, in order.
    #[must_use]
    pub fn of(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// Reads what `Display` writes: `0-5460 7000`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let range = |word: &str| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last && last < SLOTS).then_some((first, last))
        };
        let ranges: Option<Vec<_>> = text.split_whitespace().map(range).collect();
        let damaged = || Error::new(ErrorKind::Damaged, format!("`{text}` are no slots of a cluster"));
        ranges.map(Self::of).ok_or_else(damaged)
    }

    /// The ranges, both ends included.
    #[must_use]
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the slot is among them.
    #[must_use]
    pub fn contains(&self, slot: u16) -> bool {
        let place = self.0.partition_point(|(first, _)| *first <= slot);
        place > 0 && slot <= self.0[place - 1].1
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            let space = if position == 0 { "" } else { " " };
            if first == last { write!(f, "{space}{first}")? } else { write!(f, "{space}{first}-{last}")? }
        }
        Ok(())
    }
}

/// The slot of a key: that of what stands between its first `{` and the next `}`, when something does.
#[must_use]
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = || {
        let open = key.iter().position(|byte| *byte == b'{')? + 1;
        let length = key[open..].iter().position(|byte| *byte == b'}').filter(|length| *length > 0)?;
        Some(&key[open..open + length])
    };
    crc16(tag().unwrap_or(key)) % SLOTS
}

/// CRC-16 with the polynomial 0x1021 and nothing inverted (XMODEM).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_slots_that_the_server_says() {
        // CLUSTER KEYSLOT of Redis 7.0.
        let cases: [(&[u8], u16); 7] = [
            (b"foo", 12_182),
            (b"", 0),
            (b"{user1000}.following", 3_443),
            (b"user1000", 3_443),
            (b"foo{}{bar}", 8_363),
            (b"foo{{bar}}zap", 4_015),
            (b"123456789", 0x31c3),
        ];
        for (key, slot) in cases {
            assert_eq!(slot_of(key), slot, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn sets_are_put_in_order_and_read_back() {
        let slots = Slots::of(vec![(100, 200), (0, 5), (6, 7), (300, 300), (150, 250)]);
        assert_eq!(slots.to_string(), "0-7 100-250 300");
        assert_eq!(Slots::parse(&slots.to_string()).unwrap(), slots);
        assert_eq!(slots.count(), 8 + 151 + 1);
        for (slot, inside) in
            [(0, true), (7, true), (8, false), (99, false), (250, true), (251, false), (300, true), (16_383, false)]
        {
            assert_eq!(slots.contains(slot), inside, "{slot}");
        }
        assert!(Slots::default().is_empty() && !Slots::default().contains(0));
        for wrong in ["a", "5-1", "0-16384", "1-2-3"] {
            assert_eq!(Slots::parse(wrong).unwrap_err().kind(), ErrorKind::Damaged, "{wrong}");
        }
    }
}
