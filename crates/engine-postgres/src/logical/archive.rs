//! Reads along while `pg_dump`'s custom format passes by, and knows at the end whether it is whole.
//!
//! The format (PostgreSQL source, `pg_backup_archiver.c` and `pg_backup_custom.c`): a header; a table of contents; then,
//! for every entry that has data, one block of length-prefixed chunks that a zero ends. Nothing marks the end of the
//! file, but the entries tell which blocks must come. Invariant: memory grows with the number of tables, never with data.

use std::collections::BTreeSet;

use backup_core::error::{Error, ErrorKind, Result};

use crate::text::decode;

/// What every archive begins with.
pub(crate) const MAGIC: &[u8] = b"PGDMP";
/// What the manifest says was seen at the end of a dump.
pub(crate) const TRAILER: &str = "the last data block of the table of contents";
/// The archive's format versions (1.x) that are understood: those of `pg_dump` 10 to 18.
const MINORS: std::ops::RangeInclusive<u8> = 12..=16;
const CUSTOM: u8 = 1;
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// The definition of one object is never longer.
const MAX_STRING: i64 = 1 << 30;
/// More entries than this are damage.
const MAX_ENTRIES: i64 = 50_000_000;

/// A schema and a table of it.
pub(crate) type Table = (String, String);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ArchiveScan {
    state: State,
    pending: Vec<u8>,
    shape: Shape,
    awaited: BTreeSet<i64>,
    tables: BTreeSet<Table>,
    ids: Vec<i64>,
    views: Vec<View>,
}

/// An entry that fills a materialized view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    id: i64,
    /// The statement, in the encoding of the dump; see [`decode`].
    pub(crate) statement: String,
    /// Schema and name, as far as they can be read.
    pub(crate) name: Table,
}

#[derive(Debug, Default, Clone, Copy)]
struct Shape {
    minor: u8,
    int_bytes: usize,
    offset_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Header,
    Entries {
        left: i64,
    },
    /// Between two blocks: where an archive may end.
    Block,
    /// Within a block; before a chunk's length.
    Chunk(Within),
    /// Within a chunk.
    Skip {
        left: u64,
        within: Within,
    },
    /// Before the number of a large object, or the zero that ends them.
    LargeObject,
    /// The archive is of a version that is not understood: nothing is checked.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Within {
    Table,
    LargeObject,
}

/// Why an item could not be read.
enum Stop {
    More,
    Fault(&'static str),
}

impl ArchiveScan {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when they cannot belong to an archive.
    pub(crate) fn push(&mut self, data: &[u8]) -> Result<()> {
        if self.state == State::Foreign {
            return Ok(());
        }
        if self.pending.is_empty() {
            let used = self.consume(data)?;
            self.pending.extend_from_slice(&data[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(data);
            let used = self.consume(&joined)?;
            joined.drain(..used);
            self.pending = joined;
        }
        Ok(())
    }

    /// Judges the end.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] unless every block came, to its end.
    pub(crate) fn finish(&self) -> Result<()> {
        let incomplete = |why: String| Err(Error::new(ErrorKind::Incomplete, format!("the dump is cut: {why}")));
        match self.state {
            State::Foreign => Ok(()),
            State::Header => incomplete("it ends within its header".to_owned()),
            State::Entries { left } => incomplete(format!("{left} entries of its table of contents are missing")),
            State::Block if self.pending.is_empty() && self.awaited.is_empty() => Ok(()),
            State::Block if self.pending.is_empty() => {
                incomplete(format!("the data of {} tables is missing", self.awaited.len()))
            }
            _ => incomplete("it ends within the data of a table".to_owned()),
        }
    }

    /// Whether the archive's version is understood, so that [`finish`](Self::finish) proves something.
    pub(crate) fn is_understood(&self) -> bool {
        !matches!(self.state, State::Header | State::Foreign)
    }

    /// The tables whose data the table of contents lists.
    pub(crate) fn tables(&self) -> &BTreeSet<Table> {
        &self.tables
    }

    /// Whether the whole table of contents was read.
    pub(crate) fn has_contents(&self) -> bool {
        !matches!(self.state, State::Header | State::Entries { .. })
    }

    /// The entries that fill materialized views, in the order in which they can be filled.
    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// What `pg_restore --use-list` takes for all entries but those that fill materialized views.
    pub(crate) fn list_without_views(&self) -> String {
        let views: BTreeSet<i64> = self.views.iter().map(|view| view.id).collect();
        let kept: Vec<String> = self.ids.iter().filter(|id| !views.contains(id)).map(i64::to_string).collect();
        kept.join(";\n") + ";\n"
    }

    /// Reads items as long as they are whole; returns how many bytes that were.
    fn consume(&mut self, data: &[u8]) -> Result<usize> {
        let mut used = 0;
        loop {
            if self.state == State::Foreign {
                return Ok(data.len());
            }
            if let State::Skip { left, within } = self.state {
                let here = usize::try_from(left).map_or(data.len() - used, |left| left.min(data.len() - used));
                used += here;
                let left = left - here as u64;
                if left > 0 {
                    self.state = State::Skip { left, within };
                    return Ok(used);
                }
                self.state = State::Chunk(within);
            }
            let mut cursor = Cursor { data: &data[used..], at: 0, int_bytes: self.shape.int_bytes };
            match self.item(&mut cursor) {
                Ok(()) => used += cursor.at,
                Err(Stop::More) => return Ok(used),
                Err(Stop::Fault(why)) => {
                    return Err(Error::new(ErrorKind::Damaged, format!("the dump is not what pg_dump writes: {why}")));
                }
            }
        }
    }

    fn item(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        match self.state {
            State::Header => self.header(cursor),
            State::Entries { left: 0 } => {
                self.state = State::Block;
                Ok(())
            }
            State::Entries { left } => {
                self.entry(cursor)?;
                self.state = State::Entries { left: left - 1 };
                Ok(())
            }
            State::Block => self.block(cursor),
            State::LargeObject => {
                let object = cursor.int()?;
                self.state = if object == 0 { State::Block } else { State::Chunk(Within::LargeObject) };
                Ok(())
            }
            State::Chunk(within) => {
                self.state = match (cursor.int()?, within) {
                    (0, Within::Table) => State::Block,
                    (0, Within::LargeObject) => State::LargeObject,
                    (length @ 1.., within) => State::Skip { left: length.unsigned_abs(), within },
                    _ => return Err(Stop::Fault("a chunk has a negative length")),
                };
                Ok(())
            }
            State::Skip { .. } | State::Foreign => Ok(()),
        }
    }

    fn header(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(Stop::Fault("it does not begin with PGDMP"));
        }
        let (major, minor, _revision) = (cursor.byte()?, cursor.byte()?, cursor.byte()?);
        if major != 1 || !MINORS.contains(&minor) {
            self.state = State::Foreign;
            return Ok(());
        }
        let (int_bytes, offset_bytes) = (usize::from(cursor.byte()?), usize::from(cursor.byte()?));
        if !(1..=8).contains(&int_bytes) || !(1..=8).contains(&offset_bytes) {
            return Err(Stop::Fault("its header names impossible sizes"));
        }
        if cursor.byte()? != CUSTOM {
            return Err(Stop::Fault("it is not of the custom format"));
        }
        cursor.int_bytes = int_bytes;
        if minor >= 15 {
            cursor.byte()?;
        } else {
            cursor.int()?;
        }
        for _time_part in 0..7 {
            cursor.int()?;
        }
        for _name_and_versions in 0..3 {
            cursor.string()?;
        }
        let entries = cursor.int()?;
        if !(0..=MAX_ENTRIES).contains(&entries) {
            return Err(Stop::Fault("its table of contents has an impossible length"));
        }
        self.shape = Shape { minor, int_bytes, offset_bytes };
        self.state = State::Entries { left: entries };
        Ok(())
    }

    fn entry(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let id = cursor.int()?;
        let has_data = cursor.int()? != 0;
        let (_table_oid, _oid) = (cursor.string()?, cursor.string()?);
        let (tag, description) = (cursor.string()?, cursor.string()?);
        let _section = cursor.int()?;
        let (definition, _drop, _copy) = (cursor.string()?, cursor.string()?, cursor.string()?);
        let (schema, _tablespace) = (cursor.string()?, cursor.string()?);
        if self.shape.minor >= 14 {
            cursor.string()?;
        }
        if self.shape.minor >= 16 {
            cursor.int()?;
        }
        let (_owner, _with_oids) = (cursor.string()?, cursor.string()?);
        while cursor.string()?.is_some() {}
        cursor.take(1 + self.shape.offset_bytes)?;
        if has_data {
            self.awaited.insert(id);
        }
        self.ids.push(id);
        let text = |bytes: Option<&[u8]>| decode(bytes.unwrap_or_default());
        if description == Some(b"MATERIALIZED VIEW DATA") {
            self.views.push(View { id, statement: text(definition), name: (text(schema), text(tag)) });
        }
        if description == Some(b"TABLE DATA") {
            self.tables.insert((text(schema), text(tag)));
        }
        Ok(())
    }

    fn block(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let kind = cursor.byte()?;
        let id = cursor.int()?;
        if !self.awaited.remove(&id) {
            return Err(Stop::Fault("a data block belongs to no entry of the table of contents"));
        }
        self.state = match kind {
            BLOCK_DATA => State::Chunk(Within::Table),
            BLOCK_LARGE_OBJECTS => State::LargeObject,
            _ => return Err(Stop::Fault("a data block is of an unknown kind")),
        };
        Ok(())
    }
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
    int_bytes: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let bytes = self.data.get(self.at..).and_then(|rest| rest.get(..count)).ok_or(Stop::More)?;
        self.at += count;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A sign and the magnitude, least significant byte first.
    fn int(&mut self) -> Result<i64, Stop> {
        let bytes = self.take(1 + self.int_bytes)?;
        let magnitude = bytes[1..].iter().rev().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let magnitude = i64::try_from(magnitude).map_err(|_| Stop::Fault("a number is too large"))?;
        Ok(if bytes[0] == 0 { magnitude } else { -magnitude })
    }

    /// A length and bytes; a negative length is no string at all.
    fn string(&mut self) -> Result<Option<&'a [u8]>, Stop> {
        match self.int()? {
            ..0 => Ok(None),
            length @ 0..=MAX_STRING => {
                let length = usize::try_from(length).map_err(|_| Stop::Fault("a string is too long"))?;
                self.take(length).map(Some)
            }
            _ => Err(Stop::Fault("a string is too long")),
        }
    }
}

/// What an archive means, however it is cut, for [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzzing(pieces: &[bytes::Bytes]) -> Option<String> {
    let mut scan = ArchiveScan::default();
    for piece in pieces {
        scan.push(piece).ok()?;
    }
    scan.finish().ok()?;
    scan.is_understood().then(|| format!("{:?}{:?}{}", scan.tables, scan.views, scan.list_without_views()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(value: i32) -> Vec<u8> {
        let mut bytes = vec![u8::from(value < 0)];
        bytes.extend(value.unsigned_abs().to_le_bytes());
        bytes
    }

    fn string(text: &str) -> Vec<u8> {
        [int(i32::try_from(text.len()).unwrap()), text.as_bytes().to_vec()].concat()
    }

    /// An archive of format 1.14 with a table and a large object, as `pg_dump -Fc -Z0` writes it.
    fn archive() -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 14, 0, 4, 8, CUSTOM]].concat();
        bytes.extend(std::iter::repeat_n(int(0), 8).flatten());
        bytes.extend([string("app"), string("15.18"), string("15.18"), int(4)].concat());
        for (id, has_data, tag, description) in [
            (7, 1, "users", "TABLE DATA"),
            (8, 1, "BLOBS", "BLOBS"),
            (9, 0, "users", "TABLE"),
            (10, 0, "v", "MATERIALIZED VIEW DATA"),
        ] {
            bytes.extend([int(id), int(has_data), string("0"), string("0"), string(tag), string(description)].concat());
            bytes.extend([int(3), string("defn"), string("drop"), int(-1), string("public"), int(-1)].concat());
            bytes.extend([string("heap"), string("owner"), string("false"), string("4"), int(-1)].concat());
            bytes.extend([0; 9]);
        }
        bytes.extend([vec![BLOCK_DATA], int(7), string("1\tann\n"), string("\\.\n\n\n"), int(0)].concat());
        bytes.extend([vec![BLOCK_LARGE_OBJECTS], int(8), int(16_400), string("large"), int(0), int(0)].concat());
        bytes
    }

    fn scan(bytes: &[u8], piece: usize) -> Result<ArchiveScan> {
        let mut scan = ArchiveScan::default();
        for piece in bytes.chunks(piece) {
            scan.push(piece)?;
        }
        scan.finish().map(|()| scan)
    }

    #[test]
    fn a_whole_archive_is_whole_however_it_arrives() {
        let archive = archive();
        for piece in [1, 2, 7, 100, archive.len()] {
            let scan = scan(&archive, piece).unwrap();
            assert!(scan.is_understood());
            assert!(scan.has_contents());
            assert_eq!(scan.views().iter().map(|view| view.statement.as_str()).collect::<Vec<_>>(), ["defn"]);
            assert_eq!(scan.list_without_views(), "7;\n8;\n9;\n");
            assert_eq!(scan.tables().iter().collect::<Vec<_>>(), [&("public".to_owned(), "users".to_owned())]);
        }
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_not_whole() {
        let archive = archive();
        for length in 0..archive.len() {
            assert!(scan(&archive[..length], 64).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        for bytes in [&b"--\n-- PostgreSQL database dump\n"[..], b"", b"PGDMP", &[&archive()[..], &b"x"[..]].concat()] {
            assert!(scan(bytes, 64).is_err());
        }
    }
}
