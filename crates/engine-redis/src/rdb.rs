//! RDB files, read natively: counted and checked ([`scan`]), or turned into commands for any server ([`export()`]).
//!
//! Invariant: memory does not depend on the data; a length is believed only as far as bytes have come, and every wrong
//! byte is an error with its offset, never a panic.
//!
//! Both functions block and pull from a [`Read`]: call them on a thread for blocking work. To cancel, let the reader
//! fail. Versions 1 to 13 of Redis (up to 8.x) and 80 of Valkey 9 are read. The format's facts are those of rdb.h and
//! rdb.c in redis/redis and valkey-io/valkey; each module names the file that it follows.

mod blob;
mod export;
mod glob;
mod input;
mod kind;
mod listpack;
mod lzf;
mod module;
mod packed;
mod pull;
mod skip;
mod slots;
mod stream;
mod summary;
mod walk;
pub(crate) mod write;
mod ziplist;

use std::io::{self, Read};

use backup_core::Result;

pub use export::{ExportOptions, ExportSummary, Functions, NAMED_MAX, RefusedKey, Target, export};
pub use glob::Glob;
pub use kind::KeyType;
pub use slots::{SLOTS, Slots, slot_of};
pub use summary::{Checksum, DatabaseCounts, Flavour, RdbSummary};

/// Walks the whole structure of an RDB, checks its CRC-64 and that nothing follows; holds no value.
///
/// `now_ms` (milliseconds since 1970) decides which keys count as expired: those that a server would not load now.
///
/// # Errors
/// [`Damaged`](backup_core::ErrorKind::Damaged) with the offset for anything that is not an RDB, is cut, or was altered;
/// [`Unsupported`](backup_core::ErrorKind::Unsupported) for a version, a type or an opcode that is not known.
pub fn scan(reader: impl Read, now_ms: i64) -> Result<RdbSummary> {
    summary::scan(reader, now_ms)
}

/// As [`scan`], of an RDB that something follows (the commands of an append-only file); also returns what follows.
///
/// # Errors
/// As [`scan`].
pub(crate) fn scan_preamble<'r>(reader: impl Read + 'r, now_ms: i64) -> Result<(RdbSummary, impl Read + 'r)> {
    struct Rest<'r>(input::Input<'r>);
    impl Read for Rest<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.rest(into).map_err(io::Error::other)
        }
    }
    let mut input = input::Input::new(reader);
    let summary = summary::scan_front(&mut input, now_ms)?;
    Ok((summary, Rest(input)))
}
