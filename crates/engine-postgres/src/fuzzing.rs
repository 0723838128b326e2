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

/// What is read of dumps. The first byte chooses: an archive of `pg_dump`, which the second cuts in two, or a script of
/// `pg_dumpall`. Returns whether it was understood.
///
/// # Panics
/// When a parser is wrong.
pub fn dump_bytes(input: &[u8]) -> bool {
    let [parser, cut, rest @ ..] = input else { return false };
    if parser % 2 == 1 {
        return crate::logical::fuzzing::globals(rest);
    }
    let at = usize::from(*cut).min(rest.len());
    let whole = Bytes::copy_from_slice(rest);
    let one = crate::logical::fuzzing::archive(std::slice::from_ref(&whole));
    let two = crate::logical::fuzzing::archive(&[whole.slice(..at), whole.slice(at..)]);
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
        let parsers: [fn(&[u8]) -> bool; 2] = [server_bytes, dump_bytes];
        for (folder, parse) in ["postgres", "postgres_dumps"].into_iter().zip(parsers) {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(folder);
            let mut seen = 0;
            for item in std::fs::read_dir(&folder).unwrap() {
                let path = item.unwrap().path();
                assert!(parse(&std::fs::read(&path).unwrap()), "{}", path.display());
                seen += 1;
            }
            assert_eq!(seen, 4, "{}", folder.display());
        }
        assert!(!server_bytes(b"\0\0no archive at all"));
    }
}
