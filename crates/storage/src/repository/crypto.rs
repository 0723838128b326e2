//! Keys and sealing. AES-256-GCM everywhere; keys are derived and ids are made with keyed BLAKE3.
//!
//! Invariant: a (key, nonce) pair is used once. Session keys live for one run and count their nonces;
//! boxes under long-lived keys derive a fresh key from 32 random bytes each.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use backup_core::error::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

pub(super) const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const COUNTER_BYTES: usize = 8;
const SALT_BYTES: usize = 32;
/// What a frame adds to the payload: the nonce counter and the tag.
pub(super) const FRAME_OVERHEAD: usize = COUNTER_BYTES + TAG_BYTES;

pub(super) type Key = Zeroizing<[u8; KEY_BYTES]>;

/// Fresh random bytes from the operating system. Not through the cipher library: that gathers entropy of its own from the
/// clock's jitter first, which takes longer than to archive a segment of a log.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|source| Error::new(ErrorKind::Internal, "the system gives no random numbers").caused_by(source))?;
    Ok(bytes)
}

/// A fresh random key.
pub(super) fn random_key() -> Result<Key> {
    random().map(Zeroizing::new)
}

/// Derives a key from secret `material` for the purpose that `context` names.
pub(super) fn derive(context: &str, material: &[&[u8]]) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in material {
        hasher.update(part);
    }
    Zeroizing::new(*hasher.finalize().as_bytes())
}

pub(super) fn aead(key: &[u8; KEY_BYTES]) -> Result<LessSafeKey> {
    let unbound = UnboundKey::new(&AES_256_GCM, key)
        .map_err(|_| Error::new(ErrorKind::Internal, "a key has the wrong length"))?;
    Ok(LessSafeKey::new(unbound))
}

pub(super) fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0u8; NONCE_LEN];
    bytes[NONCE_LEN - COUNTER_BYTES..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals many payloads under one session's key.
pub(super) struct FrameSealer {
    key: LessSafeKey,
    next: AtomicU64,
}

impl FrameSealer {
    pub(super) fn new(key: &Key) -> Result<Self> {
        Ok(Self { key: aead(key)?, next: AtomicU64::new(0) })
    }

    /// Turns `frame`, whose first [`FRAME_PREFIX`] bytes are free and whose rest is the payload, into a sealed frame.
    pub(super) fn seal(&self, aad: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        let (prefix, payload) = frame.split_at_mut(COUNTER_BYTES);
        prefix.copy_from_slice(&counter.to_le_bytes());
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), payload)
            .map_err(|_| Error::new(ErrorKind::Internal, "sealing failed"))?;
        frame.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The bytes that a frame needs before its payload.
pub(super) const FRAME_PREFIX: usize = COUNTER_BYTES;

impl fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameSealer")
    }
}

/// Opens frames of one session.
pub(super) struct FrameOpener(LessSafeKey);

impl FrameOpener {
    pub(super) fn new(key: &Key) -> Result<Self> {
        Ok(Self(aead(key)?))
    }

    /// Opens `frame` in place and returns the payload.
    pub(super) fn open<'a>(&self, aad: &[u8], frame: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let (counter, sealed) = frame
            .split_first_chunk_mut()
            .ok_or_else(|| Error::new(ErrorKind::Damaged, "a sealed frame is too short"))?;
        self.0
            .open_in_place(nonce(u64::from_le_bytes(*counter)), Aad::from(aad), sealed)
            .map_err(|_| Error::new(ErrorKind::Damaged, "a sealed frame is not what was written"))
    }
}

impl fmt::Debug for FrameOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameOpener")
    }
}

/// What a box holds; part of its key and of what it authenticates, so that one cannot stand for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BoxKind {
    /// The table of contents of a pack.
    PackContents = 1,
    /// An index object.
    Index = 2,
    /// The summary of a snapshot.
    Summary = 3,
    /// The manifest of a snapshot.
    Manifest = 4,
    /// The header of a segment of a log.
    Segment = 5,
    /// A note beside a log.
    Note = 6,
}

fn box_key(key: &Key, kind: BoxKind, salt: &[u8; SALT_BYTES]) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[kind as u8]);
    hasher.update(salt);
    Zeroizing::new(*hasher.finalize().as_bytes())
}

/// Seals a small document under a long-lived key: salt, ciphertext, tag.
pub(super) fn seal_box(key: &Key, kind: BoxKind, plain: &[u8]) -> Result<Vec<u8>> {
    let salt: [u8; SALT_BYTES] = random()?;
    let mut sealed = Vec::with_capacity(SALT_BYTES + plain.len() + TAG_BYTES);
    sealed.extend_from_slice(&salt);
    sealed.extend_from_slice(plain);
    let tag = aead(&box_key(key, kind, &salt))?
        .seal_in_place_separate_tag(nonce(0), Aad::from([kind as u8]), &mut sealed[SALT_BYTES..])
        .map_err(|_| Error::new(ErrorKind::Internal, "sealing failed"))?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Opens what [`seal_box`] made.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the bytes, the key or the kind are not those of the sealing.
pub(super) fn open_box(key: &Key, kind: BoxKind, sealed: &[u8]) -> Result<Vec<u8>> {
    let (salt, rest) =
        sealed.split_first_chunk().ok_or_else(|| Error::new(ErrorKind::Damaged, "a sealed box is too short"))?;
    let mut buffer = rest.to_vec();
    let plain = aead(&box_key(key, kind, salt))?
        .open_in_place(nonce(0), Aad::from([kind as u8]), &mut buffer)
        .map_err(|_| Error::new(ErrorKind::Damaged, "a sealed box is not what was written, or belongs to another key"))?
        .len();
    buffer.truncate(plain);
    Ok(buffer)
}

/// Identifies a run whose keys sealed something: 16 random bytes, in hexadecimal in names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SessionId(pub(super) [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The keys of one run.
#[derive(Clone)]
pub(super) struct SessionKeys {
    /// Seals contents. On the writing host it is forgotten when the run ends.
    pub(super) content: Option<Key>,
    /// Seals listings and the manifest; the writing host can derive it again.
    pub(super) meta: Key,
    /// Makes the ids of listing chunks.
    pub(super) meta_id: Key,
}

const FINGERPRINT_CONTEXT: &str = "stackward 2026-11 index key fingerprint";
const META_CONTEXT: &str = "stackward 2026-11 meta key";
const META_ID_CONTEXT: &str = "stackward 2026-11 meta id key";

/// Binds a session to its repository without giving the index key away.
fn fingerprint(index_key: &Key) -> Key {
    derive(FINGERPRINT_CONTEXT, &[&**index_key])
}

impl SessionKeys {
    /// The keys of a new run of the writer that holds `writer_secret`.
    pub(super) fn generate(writer_secret: &Key, session: SessionId) -> Result<Self> {
        Ok(Self { content: Some(random_key()?), ..Self::derived(writer_secret, session) })
    }

    /// What the writer can derive again: everything but the content key.
    pub(super) fn derived(writer_secret: &Key, session: SessionId) -> Self {
        Self {
            content: None,
            meta: derive(META_CONTEXT, &[&**writer_secret, &session.0]),
            meta_id: derive(META_ID_CONTEXT, &[&**writer_secret]),
        }
    }

    /// As wrapped to the recipients: content key, meta key, meta id key, and the fingerprint of the index key.
    pub(super) fn to_bytes(&self, index_key: &Key) -> Option<Zeroizing<Vec<u8>>> {
        let content = self.content.as_ref()?;
        Some(Zeroizing::new([&content[..], &self.meta[..], &self.meta_id[..], &fingerprint(index_key)[..]].concat()))
    }

    /// Reads what [`SessionKeys::to_bytes`] made, and checks that it belongs to the repository of `index_key`:
    /// anybody can encrypt to a public key, and a store could offer a repository key of its own beside real sessions.
    pub(super) fn from_bytes(bytes: &[u8], index_key: &Key) -> Result<Self> {
        let mut keys = bytes.chunks_exact(KEY_BYTES).map(|part| {
            let mut key = Zeroizing::new([0u8; KEY_BYTES]);
            key.copy_from_slice(part);
            key
        });
        let wrong = || Error::new(ErrorKind::Damaged, "a session key object has the wrong length");
        let (Some(content), Some(meta), Some(meta_id), Some(fingerprint_of), None) =
            (keys.next(), keys.next(), keys.next(), keys.next(), keys.next())
        else {
            return Err(wrong());
        };
        if fingerprint_of != fingerprint(index_key) {
            return Err(Error::new(
                ErrorKind::Damaged,
                "a session key belongs to another repository than its keys say",
            )
            .hint("somebody replaced `config` and `keys/`: change nothing, and restore them from a copy"));
        }
        if bytes.len().is_multiple_of(KEY_BYTES) {
            Ok(Self { content: Some(content), meta, meta_id })
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKeys(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_opens_only_whole_and_with_its_own_id() {
        let key = random_key().unwrap();
        let sealer = FrameSealer::new(&key).unwrap();
        let opener = FrameOpener::new(&key).unwrap();
        let mut frame = vec![0; FRAME_PREFIX];
        frame.extend_from_slice(b"payload");
        sealer.seal(b"id", &mut frame).unwrap();
        assert_eq!(frame.len(), b"payload".len() + FRAME_OVERHEAD);
        assert_eq!(opener.open(b"id", &mut frame.clone()).unwrap(), b"payload");
        assert!(opener.open(b"other", &mut frame.clone()).is_err());
        for position in 0..frame.len() {
            let mut broken = frame.clone();
            broken[position] ^= 1;
            assert!(opener.open(b"id", &mut broken).is_err(), "{position}");
            assert!(opener.open(b"id", &mut frame[..position].to_vec()).is_err(), "{position}");
        }
    }

    #[test]
    fn nonces_are_never_repeated() {
        let sealer = FrameSealer::new(&random_key().unwrap()).unwrap();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            let mut frame = vec![0; FRAME_PREFIX];
            sealer.seal(b"", &mut frame).unwrap();
            assert!(seen.insert(frame[..FRAME_PREFIX].to_vec()));
        }
    }

    #[test]
    fn a_box_of_one_kind_cannot_stand_for_another() {
        let key = random_key().unwrap();
        let sealed = seal_box(&key, BoxKind::Index, b"text").unwrap();
        assert_eq!(open_box(&key, BoxKind::Index, &sealed).unwrap(), b"text");
        assert!(open_box(&key, BoxKind::Manifest, &sealed).is_err());
        assert!(open_box(&random_key().unwrap(), BoxKind::Index, &sealed).is_err());
    }

    #[test]
    fn the_writer_derives_its_listing_keys_again_and_not_the_content_key() {
        let (secret, session) = (random_key().unwrap(), SessionId([7; 16]));
        let keys = SessionKeys::generate(&secret, session).unwrap();
        let again = SessionKeys::derived(&secret, session);
        assert_eq!((*keys.meta, *keys.meta_id), (*again.meta, *again.meta_id));
        assert!(again.content.is_none());
        let index_key = random_key().unwrap();
        let wrapped = keys.to_bytes(&index_key).unwrap();
        let read = SessionKeys::from_bytes(&wrapped, &index_key).unwrap();
        assert_eq!(read.content.as_deref(), keys.content.as_deref());
        assert!(SessionKeys::from_bytes(&wrapped[..127], &index_key).is_err());
        let error = SessionKeys::from_bytes(&wrapped, &random_key().unwrap()).unwrap_err();
        assert!(error.to_string().contains("another repository"));
    }
}
