//! An RDB as commands (RESP) that `redis-cli --pipe` or a connection takes: the way to older and to other servers.
//!
//! Invariant: a key is written whole, or it is refused and named; no key is left out in silence, and no value is held.
//!
//! What commands cannot express is named in [`ExportSummary::incomplete`], or lost for every stream: when a consumer was
//! last seen and active, and what is remembered of idempotent producers. How often and how recently a key was used
//! (`LFU`, `LRU`) is not written either.

mod batch;
mod collection;
mod commands;
mod held;
mod key;
mod stream;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use backup_core::Result;

use super::glob::Glob;
use super::slots::Slots;
use super::walk;
use commands::Commands;
use key::Exporter;

pub use target::Target;

/// What to write, and for whom.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Only these databases; `None` for all.
    pub databases: Option<BTreeSet<u32>>,
    /// Only keys that match; `None` for all.
    pub pattern: Option<Glob>,
    /// Only keys of these slots of a cluster; `None` for all.
    pub slots: Option<Slots>,
    /// Whether libraries of functions are written.
    pub functions: Functions,
    /// Milliseconds since 1970: keys and fields whose expiry lies before are left out, as a loading server does.
    pub now_ms: i64,
    /// Which commands the receiving server knows.
    pub target: Target,
    /// The most elements in one command. Commands also end at about 1 MiB, whatever this says.
    pub chunk: usize,
    /// Whether each key is deleted before it is written. Otherwise collections that exist are added to.
    pub replace: bool,
}

/// Whether libraries of functions, which belong to the whole server, are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Functions {
    /// When neither databases nor a pattern choose among the keys.
    WithTheWhole,
    /// And nothing else.
    Only,
    /// They are not.
    Never,
}

/// What was written, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportSummary {
    /// Keys written, by database.
    pub keys: BTreeMap<u32, u64>,
    /// Libraries of functions written. They belong to the whole server: none is when only a part was asked for.
    pub functions: u64,
    /// Commands written.
    pub commands: u64,
    /// Keys left out because they had expired.
    pub skipped_expired: u64,
    /// Keys left out because their collection has no element: servers do not load those either.
    pub skipped_empty: u64,
    /// Keys and functions that were not written, and why; the first [`NAMED_MAX`] of them.
    pub refused: Vec<RefusedKey>,
    /// How many there are in all.
    pub refused_total: u64,
    /// Keys that were written without something that they had; the first [`NAMED_MAX`] of them.
    pub incomplete: Vec<RefusedKey>,
    /// How many there are in all.
    pub incomplete_total: u64,
}

/// How many refused, and how many incomplete keys are named: more are only counted.
pub const NAMED_MAX: usize = 10_000;

/// A key that was not written, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedKey {
    /// Its database; 0 for a library of functions.
    pub database: u32,
    /// Its name, shortened when it is long, with what is not UTF-8 replaced.
    pub key: String,
    /// Why.
    pub why: String,
}

/// Writes the keys of an RDB as commands.
///
/// Damage is found where it stands, and a wrong checksum only at the end: [`scan`](super::scan) before sending
/// what comes out to a server.
///
/// # Errors
/// As [`scan`](super::scan); [`Io`](backup_core::ErrorKind::Io) and its kin when `out` refuses what is written.
pub fn export(reader: impl Read, options: &ExportOptions, out: &mut dyn Write) -> Result<ExportSummary> {
    let mut exporter = Exporter::new(options, Commands::new(out));
    walk::walk(reader, &mut exporter)?;
    exporter.finish()
}

impl ExportSummary {
    pub(super) fn refuse(&mut self, refused: RefusedKey) {
        self.refused_total += 1;
        if self.refused.len() < NAMED_MAX {
            self.refused.push(refused);
        }
    }

    pub(super) fn lacks(&mut self, incomplete: RefusedKey) {
        self.incomplete_total += 1;
        if self.incomplete.len() < NAMED_MAX {
            self.incomplete.push(incomplete);
        }
    }
}
