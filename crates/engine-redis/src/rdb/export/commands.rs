//! Commands in the protocol's form (RESP): a count of arguments, then each argument behind its length.
//!
//! Invariant: whoever begins a command with a count writes exactly as many arguments.

use std::io::{BufWriter, Write};

use backup_core::Result;

use super::held::Held;
use crate::rdb::pull::{Item, cannot_write};

const BUFFER_BYTES: usize = 64 * 1024;

/// Where commands are written to.
pub(super) struct Commands<'o> {
    out: BufWriter<&'o mut dyn Write>,
    written: u64,
}

impl<'o> Commands<'o> {
    pub(super) fn new(out: &'o mut dyn Write) -> Self {
        Self { out: BufWriter::with_capacity(BUFFER_BYTES, out), written: 0 }
    }

    /// How many commands were begun.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// A command of these arguments.
    pub(super) fn command(&mut self, arguments: &[&[u8]]) -> Result<()> {
        self.begin(arguments.len() as u64)?;
        arguments.iter().try_for_each(|argument| self.argument(argument))
    }

    /// Begins a command of so many arguments, its name included.
    pub(super) fn begin(&mut self, arguments: u64) -> Result<()> {
        self.written += 1;
        write!(self.out, "*{arguments}\r\n").map_err(cannot_write)
    }

    /// One argument.
    pub(super) fn argument(&mut self, bytes: &[u8]) -> Result<()> {
        bulk(&mut self.out, bytes).map_err(cannot_write)
    }

    /// One argument that is an element: however long, it is passed on piece by piece.
    pub(super) fn item(&mut self, item: Item<'_>) -> Result<()> {
        write!(self.out, "${}\r\n", item.len()).map_err(cannot_write)?;
        item.copy_to(&mut self.out)?;
        self.out.write_all(b"\r\n").map_err(cannot_write)
    }

    /// One argument that was held.
    pub(super) fn held(&mut self, held: &Held, start: u64, length: u64) -> Result<()> {
        write!(self.out, "${length}\r\n").map_err(cannot_write)?;
        held.each(start, length, &mut |piece| self.out.write_all(piece).map_err(cannot_write))?;
        self.out.write_all(b"\r\n").map_err(cannot_write)
    }

    /// Arguments that are in the protocol's form already.
    pub(super) fn encoded(&mut self, arguments: &[u8]) -> Result<()> {
        self.out.write_all(arguments).map_err(cannot_write)
    }

    /// Hands over what is buffered.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(cannot_write)
    }
}

/// Writes an argument.
pub(super) fn bulk(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    write!(out, "${}\r\n", bytes.len())?;
    out.write_all(bytes)?;
    out.write_all(b"\r\n")
}
