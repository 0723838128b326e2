//! Memory for decoded chunks, which is used again: the C library gives blocks of this size back to the system when they are
//! freed, and taking them again, page by page, would be a tenth of a restore.
//!
//! Invariant: at most [`KEPT`] buffers of at most [`KEPT_BYTES`] each wait for use.

use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that wait for use: as many as chunks are decoded ahead, for some files at a time.
const KEPT: usize = 32;
/// The chunks of page files have 256 KiB, those of other files about a megabyte; longer ones are rare.
const KEPT_BYTES: usize = 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer that goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// An empty buffer with room for `bytes`.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Lent {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = waiting.iter().rposition(|buffer| buffer.capacity() >= bytes);
        let mut buffer = found.map(|position| waiting.swap_remove(position)).unwrap_or_default();
        drop(waiting);
        buffer.reserve_exact(bytes);
        Lent { bytes: buffer, home: Arc::clone(self) }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.bytes);
        let mut waiting = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() <= KEPT_BYTES && waiting.len() < KEPT {
            buffer.clear();
            waiting.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_piece_of_it_is_gone() {
        let buffers = Arc::<Buffers>::default();
        let waiting = || buffers.0.lock().unwrap().len();
        let mut lent = buffers.take(100);
        lent.bytes.extend_from_slice(b"plain bytes");
        let place = lent.bytes.as_ptr();
        let all = Bytes::from_owner(lent);
        let piece = all.slice(6..);
        drop(all);
        assert_eq!((&piece[..], waiting()), (&b"bytes"[..], 0));
        drop(piece);
        assert_eq!(waiting(), 1);
        let again = buffers.take(50);
        assert!(again.bytes.is_empty() && again.bytes.as_ptr() == place);
        assert_ne!(buffers.take(50).bytes.as_ptr(), place);
    }

    #[test]
    fn few_and_small_ones_are_kept() {
        let buffers = Arc::<Buffers>::default();
        drop(buffers.take(KEPT_BYTES + 1));
        assert!(buffers.0.lock().unwrap().is_empty());
        let many: Vec<Lent> = (0..KEPT + 5).map(|_| buffers.take(10)).collect();
        drop(many);
        assert_eq!(buffers.0.lock().unwrap().len(), KEPT);
    }
}
