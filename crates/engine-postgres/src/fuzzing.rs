//! The parsers of what a server sends, for the fuzz target in `fuzz/`.
//!
//! Invariant: none of them panics, whatever arrives and however it is cut; how it is cut does not change what it means.

use bytes::Bytes;

use crate::physical::fuzzing as physical;

/// The first byte chooses the parser, the second where the rest is cut in two. Returns whether it was understood.
///
/// # Panics
/// When a parser is wrong.
pub fn server_bytes(input: &[u8]) -> bool {
    let [parser, cut, rest @ ..] = input else { return false };
    let at = usize::from(*cut).min(rest.len());
    let whole = Bytes::copy_from_slice(rest);
    let parse = |pieces: &[Bytes]| match parser % 4 {
        0 => physical::tar(pieces),
        1 => physical::increment(pieces),
        2 => physical::manifest(pieces),
        _ => crate::wire::fuzzing(pieces),
    };
    let (one, two) = (parse(std::slice::from_ref(&whole)), parse(&[whole.slice(..at), whole.slice(at..)]));
    assert_eq!(one, two, "cut at {at}");
    one.is_some()
}

/// A stretch of a write-ahead log. Returns whether a record was read.
///
/// # Panics
/// When the reader is wrong.
pub fn wal(input: &[u8]) -> bool {
    crate::wal::fuzzing::walk(input)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn seeds_are_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/postgres");
        let mut seen = 0;
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            assert!(server_bytes(&std::fs::read(&path).unwrap()), "{}", path.display());
            seen += 1;
        }
        assert_eq!(seen, 4);
        assert!(!server_bytes(b"\0\0no archive at all"));
    }
}
