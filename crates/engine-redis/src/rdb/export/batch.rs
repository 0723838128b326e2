//! Elements of one collection, gathered into commands of bounded size.
//!
//! Invariant: what is gathered stays below [`BATCH_BYTES`]; a larger element gets a command of its own and is passed
//! through, or held in a file when its place in the command comes later than its place in the RDB.

use std::io::Write;
use std::ops::Range;

use backup_core::Result;

use super::commands::{Commands, bulk};
use super::held::Held;
use crate::rdb::pull::{Item, cannot_write};

/// A command is ended when its elements reach this size.
const BATCH_BYTES: usize = 1024 * 1024;
/// An element of this size is not gathered.
const LARGE_BYTES: u64 = 256 * 1024;

/// The buffers of a batch, kept from key to key.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Arguments in the protocol's form.
    encoded: Vec<u8>,
    /// The first half of the pair at hand: a field, or a member.
    first: Held,
    /// Fields of this batch that get an expiry: when, and where in `names` they are.
    expiring: Vec<(i64, Range<usize>)>,
    names: Vec<u8>,
}

/// A collection that is being written.
pub(super) struct Batch<'a, 'o> {
    commands: &'a mut Commands<'o>,
    buffers: &'a mut Buffers,
    verb: &'static [u8],
    key: &'a [u8],
    /// The most elements in a command.
    chunk: u64,
    /// What is gathered.
    elements: u64,
    arguments: u64,
    /// Elements in all.
    total: u64,
    last: Placed,
}

/// Where the last pair went.
#[derive(Clone, Copy)]
enum Placed {
    Gathered,
    Written,
}

impl<'a, 'o> Batch<'a, 'o> {
    pub(super) fn new(
        commands: &'a mut Commands<'o>,
        buffers: &'a mut Buffers,
        verb: &'static [u8],
        key: &'a [u8],
        chunk: usize,
    ) -> Self {
        let chunk = chunk.max(1) as u64;
        Self { commands, buffers, verb, key, chunk, elements: 0, arguments: 0, total: 0, last: Placed::Gathered }
    }

    /// An element by itself: of a list, of a set.
    pub(super) fn single(&mut self, item: Item<'_>) -> Result<()> {
        if item.len() >= LARGE_BYTES {
            self.begin_alone(1)?;
            return self.commands.item(item);
        }
        self.gather(1)?;
        encode(&mut self.buffers.encoded, item)
    }

    /// The first half of a pair.
    pub(super) fn first(&mut self, item: Item<'_>) -> Result<()> {
        self.buffers.first.clear();
        self.buffers.first.append_item(item).map(drop)
    }

    /// A hash's value; the field is the first half.
    pub(super) fn value(&mut self, item: Item<'_>) -> Result<()> {
        let field = self.buffers.first.len();
        if field + item.len() >= LARGE_BYTES {
            self.begin_alone(2)?;
            self.commands.held(&self.buffers.first, 0, field)?;
            return self.commands.item(item);
        }
        self.gather(2)?;
        self.encode_first()?;
        encode(&mut self.buffers.encoded, item)
    }

    /// A sorted set's score, as text; the member is the first half, and comes second in the command.
    pub(super) fn score(&mut self, text: &[u8]) -> Result<()> {
        let member = self.buffers.first.len();
        if member >= LARGE_BYTES {
            self.begin_alone(2)?;
            self.commands.argument(text)?;
            return self.commands.held(&self.buffers.first, 0, member);
        }
        self.gather(2)?;
        bulk(&mut self.buffers.encoded, text).map_err(cannot_write)?;
        self.encode_first()
    }

    /// The expiry of the field that was just written.
    pub(super) fn expire_field(&mut self, expires_ms: i64) -> Result<()> {
        let field = self.buffers.first.len();
        match self.last {
            Placed::Written => {
                self.begin_expiry(expires_ms, 1)?;
                self.commands.held(&self.buffers.first, 0, field)
            }
            Placed::Gathered => {
                let start = self.buffers.names.len();
                let names = &mut self.buffers.names;
                self.buffers.first.each(0, field, &mut |piece| {
                    names.extend_from_slice(piece);
                    Ok(())
                })?;
                self.buffers.expiring.push((expires_ms, start..self.buffers.names.len()));
                Ok(())
            }
        }
    }

    /// Writes what is left; returns how many elements there were in all.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.flush()?;
        Ok(self.total)
    }

    fn encode_first(&mut self) -> Result<()> {
        let Buffers { encoded, first, .. } = &mut *self.buffers;
        write!(encoded, "${}\r\n", first.len()).map_err(cannot_write)?;
        first.each(0, first.len(), &mut |piece| {
            encoded.extend_from_slice(piece);
            Ok(())
        })?;
        encoded.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Makes room for one more element of so many arguments.
    fn gather(&mut self, arguments: u64) -> Result<()> {
        if self.elements >= self.chunk || self.buffers.encoded.len() >= BATCH_BYTES {
            self.flush()?;
        }
        self.elements += 1;
        self.arguments += arguments;
        self.total += 1;
        self.last = Placed::Gathered;
        Ok(())
    }

    /// Begins the command of one large element.
    fn begin_alone(&mut self, arguments: u64) -> Result<()> {
        self.flush()?;
        self.total += 1;
        self.last = Placed::Written;
        self.begin(arguments)
    }

    fn begin(&mut self, arguments: u64) -> Result<()> {
        self.commands.begin(2 + arguments)?;
        self.commands.argument(self.verb)?;
        self.commands.argument(self.key)
    }

    fn begin_expiry(&mut self, expires_ms: i64, fields: usize) -> Result<()> {
        self.commands.begin(5 + fields as u64)?;
        self.commands.argument(b"HPEXPIREAT")?;
        self.commands.argument(self.key)?;
        self.commands.argument(expires_ms.to_string().as_bytes())?;
        self.commands.argument(b"FIELDS")?;
        self.commands.argument(fields.to_string().as_bytes())
    }

    fn flush(&mut self) -> Result<()> {
        if self.elements > 0 {
            self.begin(self.arguments)?;
            self.commands.encoded(&self.buffers.encoded)?;
            self.flush_expiries()?;
        }
        (self.elements, self.arguments) = (0, 0);
        self.buffers.encoded.clear();
        Ok(())
    }

    /// One command per run of fields that expire together.
    fn flush_expiries(&mut self) -> Result<()> {
        let expiring = std::mem::take(&mut self.buffers.expiring);
        for run in expiring.chunk_by(|(one, _), (other, _)| one == other) {
            self.begin_expiry(run[0].0, run.len())?;
            for (_, place) in run {
                self.commands.argument(&self.buffers.names[place.clone()])?;
            }
        }
        self.buffers.expiring = expiring;
        self.buffers.expiring.clear();
        self.buffers.names.clear();
        Ok(())
    }
}

/// Appends an element as an argument.
fn encode(encoded: &mut Vec<u8>, item: Item<'_>) -> Result<()> {
    write!(encoded, "${}\r\n", item.len()).map_err(cannot_write)?;
    item.each(&mut |piece| {
        encoded.extend_from_slice(piece);
        Ok(())
    })?;
    encoded.extend_from_slice(b"\r\n");
    Ok(())
}
