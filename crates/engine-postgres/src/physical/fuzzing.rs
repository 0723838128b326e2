//! The parsers of this mode, for [`crate::fuzzing`]: what they make of bytes, as text to compare.

use bytes::Bytes;

use super::incremental::{IncrementalReader, Patch};
use super::server_manifest::ManifestReader;
use super::tar::{TarEvent, TarReader};

const PAGE_BYTES: usize = 1024;
const SEGMENT_BLOCKS: u32 = 1 << 12;

/// An archive: its entries, and how many bytes each has.
pub(crate) fn tar(pieces: &[Bytes]) -> Option<String> {
    let (mut reader, mut told, mut bytes) = (TarReader::default(), String::new(), 0);
    for piece in pieces {
        reader.push(piece.clone());
        loop {
            match reader.event().ok()? {
                TarEvent::More => break,
                TarEvent::Data(data) => bytes += data.len(),
                TarEvent::Entry(entry) => told.push_str(&format!("{entry:?}")),
                TarEvent::FileEnd => told.push_str(&format!("{bytes};")),
            }
        }
    }
    reader.finish().ok().map(|()| told)
}

/// An incremental file: its length, and the pages that it has.
pub(crate) fn increment(pieces: &[Bytes]) -> Option<String> {
    let (mut reader, mut told) = (IncrementalReader::new(PAGE_BYTES, SEGMENT_BLOCKS), String::new());
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.patch().ok()? {
                Patch::More => break,
                patch => told.push_str(&format!("{patch:?}")),
            }
        }
    }
    reader.finish().ok().map(|()| told)
}

/// The server's list.
pub(crate) fn manifest(pieces: &[Bytes]) -> Option<String> {
    let (mut reader, mut told) = (ManifestReader::default(), String::new());
    for piece in pieces {
        for line in reader.push(piece).ok()? {
            told.push_str(&format!("{line:?}"));
        }
    }
    reader.finish().ok().map(|()| told)
}
