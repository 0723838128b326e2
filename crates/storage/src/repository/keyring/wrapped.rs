//! What a wrapped key shows to who cannot open it: whether its form is whole, and whether it and another are one.
//!
//! Invariant: wrapping draws all anew, so a wrapped key that has anything in common with another is the same one, damaged.

/// What every wrapped key begins with.
const AGE: &[u8] = b"age-encryption.org/v1\n";
/// The mark of a part of the header for one recipient.
const PART: &[u8] = b"-> ";
/// The mark of a part for a public key.
const PUBLIC_KEY: &[u8] = b"-> X25519 ";
/// The mark of the last line of the header.
const LAST: &[u8] = b"--- ";
/// 32 bytes in base64.
const SECRET_CHARS: usize = 43;
/// Content in common of this length is no chance.
const BLOCK: usize = 16;

/// A wrapped key whose header has the right form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrapped<'a> {
    /// The lines of the header after the first.
    lines: Vec<&'a [u8]>,
    payload: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// `None` when it has not the form of a wrapped key.
    pub(super) fn parse(object: &'a [u8]) -> Option<Self> {
        let mut rest = object.strip_prefix(AGE)?;
        let mut lines = Vec::new();
        let mut parts = 0;
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            lines.push(line);
            if let Some(mac) = line.strip_prefix(LAST) {
                let whole = parts > 0 && mac.len() == SECRET_CHARS && is_base64(mac);
                return whole.then_some(Self { lines, payload: rest });
            }
            let is_share = |text: &[u8]| text.len() == SECRET_CHARS && is_base64(text);
            if line.strip_prefix(PUBLIC_KEY).is_some_and(|share| !is_share(share)) {
                return None;
            }
            if line.starts_with(PART) {
                parts += 1;
            } else if parts == 0 || line.len() > 64 || !is_base64(line) {
                return None;
            }
        }
    }

    /// For how many public keys it is wrapped.
    pub(super) fn public_keys(&self) -> usize {
        self.lines.iter().filter(|line| line.starts_with(PUBLIC_KEY)).count()
    }

    /// Whether it holds as much as `other`, which is whole, and was wrapped at another time.
    pub(super) fn is_another_than(&self, other: &Self) -> bool {
        let is_random = |line: &&&[u8]| line.len() >= SECRET_CHARS;
        let blocks = self.payload.chunks_exact(BLOCK).zip(other.payload.chunks_exact(BLOCK));
        self.payload.len() == other.payload.len()
            && self.lines.iter().filter(is_random).all(|line| !other.lines.contains(line))
            && blocks.into_iter().all(|(mine, others)| mine != others)
    }
}

fn is_base64(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;

    /// No flipped bit, and no cut, makes a key look like one that was wrapped again.
    #[test]
    fn damage_is_told_from_wrapping_again() {
        let (first, second) = (keys::generate().recipient, keys::generate().recipient);
        let plain = [7; 100];
        let both = keys::wrap(&[first.clone(), second], &plain).unwrap();
        let whole = Wrapped::parse(&both).unwrap();
        assert_eq!(whole.public_keys(), 2);
        for recipients in [vec![first.clone()], vec![first.clone(), first]] {
            let again = keys::wrap(&recipients, &plain).unwrap();
            let again = Wrapped::parse(&again).unwrap();
            assert!(again.is_another_than(&whole));
            assert_eq!(again.public_keys(), recipients.len());
        }
        for at in 0..both.len() {
            for bit in 0..8 {
                let mut flipped = both.clone();
                flipped[at] ^= 1 << bit;
                assert!(Wrapped::parse(&flipped).is_none_or(|found| !found.is_another_than(&whole)), "{at} {bit}");
            }
            assert!(Wrapped::parse(&both[..at]).is_none_or(|found| !found.is_another_than(&whole)), "{at}");
        }
    }
}
