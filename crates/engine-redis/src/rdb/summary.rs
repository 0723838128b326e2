//! What a scan finds out: counts per database and type, and whether the checksum fits.
//!
//! Invariant: nothing grows with the number of keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;

use backup_core::Result;

use super::blob;
use super::input::Input;
use super::kind::KeyType;
use super::skip;
use super::walk::{self, KeyHead, Library, Visitor, Walked};

/// The most auxiliary fields that are kept: real files have about ten.
const AUX_FIELDS_MAX: usize = 256;
/// The most databases that are told apart; servers are configured with 16.
const DATABASES_MAX: usize = 65_536;

/// Whose RDB it is, by its magic. Valkey up to 8.1 writes that of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `REDIS0001` to `REDIS0013`.
    Redis,
    /// `VALKEY080`.
    Valkey,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        })
    }
}

/// What became of the checksum at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It is there and fits.
    Verified,
    /// The server wrote none: `rdbchecksum no`, or a version before 5.
    Off,
}

/// The keys of one database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatabaseCounts {
    /// How many keys of each type, expired ones included.
    pub keys: BTreeMap<KeyType, u64>,
    /// How many of them have an expiry.
    pub expiring: u64,
    /// How many of those had passed it at the time given: a server leaves them out when it loads the RDB.
    pub expired: u64,
}

impl DatabaseCounts {
    /// All keys.
    pub fn total(&self) -> u64 {
        self.keys.values().sum()
    }
}

/// Counts per database and type, functions and auxiliary fields of one RDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdbSummary {
    /// The version of the format.
    pub version: u32,
    /// Whose format it is.
    pub magic: Flavour,
    /// What the server wrote about itself: `redis-ver`, `ctime`, `used-mem`, `repl-id`, `repl-offset`, …
    pub aux: BTreeMap<String, String>,
    /// The databases that hold keys, by number.
    pub databases: BTreeMap<u32, DatabaseCounts>,
    /// Libraries of functions.
    pub functions: u64,
    /// The names of module types whose data is in it.
    pub modules: BTreeSet<String>,
    /// What became of the checksum.
    pub checksum: Checksum,
    /// Its length.
    pub bytes: u64,
}

impl RdbSummary {
    /// All keys of all databases, expired ones included.
    pub fn keys(&self) -> u64 {
        self.databases.values().map(DatabaseCounts::total).sum()
    }

    /// Adds the counts of another RDB of the same backup: of another master of the cluster.
    fn add(&mut self, other: &Self) {
        for (number, theirs) in &other.databases {
            let ours = self.databases.entry(*number).or_default();
            for (kind, count) in &theirs.keys {
                *ours.keys.entry(*kind).or_default() += count;
            }
            ours.expiring += theirs.expiring;
            ours.expired += theirs.expired;
        }
        self.functions += other.functions;
        self.modules.extend(other.modules.iter().cloned());
        self.bytes += other.bytes;
        self.version = self.version.max(other.version);
        if other.checksum == Checksum::Off {
            self.checksum = Checksum::Off;
        }
    }

    /// As [`add`](Self::add), to nothing yet or to what was counted before.
    pub(crate) fn add_to(self, total: &mut Option<Self>) {
        match total {
            Some(total) => total.add(&self),
            None => *total = Some(self),
        }
    }

    /// All keys that had expired at the time given to the scan.
    pub fn expired(&self) -> u64 {
        self.databases.values().map(|database| database.expired).sum()
    }
}

struct Counter {
    now_ms: i64,
    summary: RdbSummary,
}

pub(super) fn scan(reader: impl Read, now_ms: i64) -> Result<RdbSummary> {
    let mut counter = Counter::new(now_ms);
    let walked = walk::walk(reader, &mut counter)?;
    Ok(counter.end(&walked))
}

/// Scans an RDB at the front of the input.
pub(super) fn scan_front(input: &mut Input<'_>, now_ms: i64) -> Result<RdbSummary> {
    let mut counter = Counter::new(now_ms);
    let walked = walk::walk_front(input, &mut counter)?;
    Ok(counter.end(&walked))
}

impl Counter {
    fn new(now_ms: i64) -> Self {
        let summary = RdbSummary {
            version: 0,
            magic: Flavour::Redis,
            aux: BTreeMap::new(),
            databases: BTreeMap::new(),
            functions: 0,
            modules: BTreeSet::new(),
            checksum: Checksum::Off,
            bytes: 0,
        };
        Self { now_ms, summary }
    }

    fn end(self, walked: &Walked) -> RdbSummary {
        RdbSummary { checksum: walked.checksum, bytes: walked.bytes, ..self.summary }
    }
}

/// Passes over a library.
pub(super) fn skip_library(input: &mut Input<'_>, form: Library) -> Result<()> {
    if form == Library::Candidate {
        blob::skip(input)?;
        blob::skip(input)?;
        if input.number()? != 0 {
            blob::skip(input)?;
        }
    }
    blob::skip(input)
}

impl Visitor for Counter {
    fn begin(&mut self, flavour: Flavour, version: u32) {
        self.summary.magic = flavour;
        self.summary.version = version;
    }

    fn aux(&mut self, key: String, value: String) {
        if self.summary.aux.len() < AUX_FIELDS_MAX {
            self.summary.aux.insert(key, value);
        }
    }

    fn module(&mut self, name: String) {
        if self.summary.modules.len() < AUX_FIELDS_MAX {
            self.summary.modules.insert(name);
        }
    }

    fn library(&mut self, input: &mut Input<'_>, form: Library) -> Result<()> {
        self.summary.functions += 1;
        skip_library(input, form)
    }

    fn key(&mut self, input: &mut Input<'_>, head: KeyHead) -> Result<()> {
        let databases = &mut self.summary.databases;
        if databases.len() >= DATABASES_MAX && !databases.contains_key(&head.database) {
            return Err(input.damaged("the RDB has more databases than can be"));
        }
        let counts = databases.entry(head.database).or_default();
        *counts.keys.entry(head.stored.key_type()).or_default() += 1;
        counts.expiring += u64::from(head.expires_ms.is_some());
        counts.expired += u64::from(head.expired(self.now_ms));
        blob::skip(input)?;
        if let Some(name) = skip::value(input, head.stored)? {
            self.module(name);
        }
        Ok(())
    }
}
