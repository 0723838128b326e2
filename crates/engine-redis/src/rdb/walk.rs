//! The outermost structure of an RDB (rdb.c, `rdbLoadRioWithLoadingCtx`): magic, opcodes, keys, checksum.
//!
//! Invariant: a walk that returns `Ok` saw the end mark, a checksum that fits (or says that there is none), and then
//! the end of the bytes.

use std::io::Read;

use backup_core::{Error, ErrorKind, Result};

use super::blob;
use super::input::Input;
use super::kind::Stored;
use super::module;
use super::summary::{Checksum, Flavour};

/// The versions that are read.
const REDIS_VERSIONS: std::ops::RangeInclusive<u32> = 1..=13;
const VALKEY_VERSION: u32 = 80;
/// The first version that ends in a checksum.
const FIRST_WITH_CHECKSUM: u32 = 5;
/// The most bytes of an auxiliary field that are kept.
const AUX_BYTES_MAX: usize = 4096;
/// The most databases that Redis numbers: a signed 32-bit number.
const DATABASE_MAX: u64 = i32::MAX as u64;

/// What is known of a key before its name is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyHead {
    pub(super) database: u32,
    pub(super) stored: Stored,
    /// Milliseconds since 1970.
    pub(super) expires_ms: Option<i64>,
    pub(super) metadata: Metadata,
}

impl KeyHead {
    /// Whether a server that loads the RDB at `now_ms` leaves the key out.
    pub(super) fn expired(&self, now_ms: i64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms < now_ms)
    }
}

/// Whether modules attached something to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    None,
    OfModules,
}

/// The forms in which a library of functions is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    /// One string: its code.
    Released,
    /// Name, engine, description, code: release candidates of 7.0 only, and no server loads it any more.
    Candidate,
}

/// What comes by. Each method must consume exactly what it is given.
pub(super) trait Visitor {
    /// The magic was read.
    fn begin(&mut self, flavour: Flavour, version: u32);
    /// An auxiliary field.
    fn aux(&mut self, key: String, value: String);
    /// A module's own data was passed over.
    fn module(&mut self, name: String);
    /// A library of functions stands next in the input.
    fn library(&mut self, input: &mut Input<'_>, form: Library) -> Result<()>;
    /// A key's name and value stand next in the input.
    fn key(&mut self, input: &mut Input<'_>, head: KeyHead) -> Result<()>;
}

/// What is known at the end.
pub(super) struct Walked {
    pub(super) checksum: Checksum,
    pub(super) bytes: u64,
}

/// Walks a whole RDB, after which nothing may follow.
pub(super) fn walk(reader: impl Read, visitor: &mut dyn Visitor) -> Result<Walked> {
    let mut input = Input::new(reader);
    let walked = walk_front(&mut input, visitor)?;
    if !input.at_end()? {
        return Err(input.damaged("something follows the end of the RDB"));
    }
    Ok(walked)
}

/// Walks an RDB at the front of the input.
pub(super) fn walk_front(input: &mut Input<'_>, visitor: &mut dyn Visitor) -> Result<Walked> {
    let (flavour, version) = magic(input)?;
    visitor.begin(flavour, version);
    let mut state = State { flavour, version, database: 0, expires_ms: None, metadata: Metadata::None };
    while state.step(input, visitor).map_err(|error| placed(error, input))? == Next::More {}
    let checksum = if version < FIRST_WITH_CHECKSUM { Checksum::Off } else { check(input)? };
    Ok(Walked { checksum, bytes: input.offset() })
}

fn magic(input: &mut Input<'_>) -> Result<(Flavour, u32)> {
    let bytes = input.array::<9>()?;
    let (flavour, digits) = match (bytes.strip_prefix(b"REDIS"), bytes.strip_prefix(b"VALKEY")) {
        (Some(digits), _) => (Flavour::Redis, digits),
        (_, Some(digits)) => (Flavour::Valkey, digits),
        _ => return Err(input.damaged("this is not an RDB: it begins with neither REDIS nor VALKEY")),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(input.damaged("the version of the RDB is not a number"));
    }
    let version = digits.iter().fold(0, |version, digit| version * 10 + u32::from(digit - b'0'));
    let known = match flavour {
        Flavour::Redis => REDIS_VERSIONS.contains(&version),
        Flavour::Valkey => version == VALKEY_VERSION,
    };
    if known {
        Ok((flavour, version))
    } else {
        Err(Error::new(ErrorKind::Unsupported, format!("version {version} of {flavour}'s RDB is not known"))
            .hint("use a newer version of Stackward, or check the file with the server's own redis-check-rdb"))
    }
}

/// Reads the stored checksum and compares.
fn check(input: &mut Input<'_>) -> Result<Checksum> {
    let computed = input.checksum();
    match u64::from_le_bytes(input.array()?) {
        0 => Ok(Checksum::Off),
        stored if stored == computed => Ok(Checksum::Verified),
        stored => Err(input
            .damaged("the checksum of the RDB is wrong")
            .with("stored", format_args!("{stored:016x}"))
            .with("computed", format_args!("{computed:016x}"))
            .hint("the bytes were altered after the server wrote them: use another backup")),
    }
}

#[derive(PartialEq, Eq)]
enum Next {
    More,
    End,
}

struct State {
    flavour: Flavour,
    version: u32,
    database: u32,
    expires_ms: Option<i64>,
    metadata: Metadata,
}

impl State {
    /// One opcode, or one key.
    fn step(&mut self, input: &mut Input<'_>, visitor: &mut dyn Visitor) -> Result<Next> {
        let byte = input.byte()?;
        match byte {
            255 => return if self.between_keys() { Ok(Next::End) } else { Err(stray(input)) },
            254 => {
                let database = input.number()?;
                if database > DATABASE_MAX || !self.between_keys() {
                    return Err(input.damaged(format!("database {database} cannot begin here")));
                }
                self.database = database as u32;
            }
            253 => self.expires_ms = Some(i64::from(i32::from_le_bytes(input.array()?)) * 1000),
            252 => self.expires_ms = Some(input.milliseconds()?),
            // Sizes of the tables: hints for whoever allocates them.
            251 => numbers(input, 2)?,
            250 => {
                let (key, _) = blob::prefix(input, AUX_BYTES_MAX)?;
                let (value, _) = blob::prefix(input, AUX_BYTES_MAX)?;
                visitor.aux(lossy(&key), lossy(&value));
            }
            // How often and how long ago a key was used.
            249 => input.skip(1)?,
            248 => numbers(input, 1)?,
            247 => visitor.module(module::skip_aux(input)?),
            246 => visitor.library(input, Library::Candidate)?,
            245 => visitor.library(input, Library::Released)?,
            // A cluster's slot: its number and the sizes of its tables.
            244 => numbers(input, 3)?,
            243 => self.opcode_243(input)?,
            _ => self.key(byte, input, visitor)?,
        }
        Ok(Next::More)
    }

    /// Whether no expiry or metadata waits for its key.
    fn between_keys(&self) -> bool {
        self.expires_ms.is_none() && self.metadata == Metadata::None
    }

    /// What modules attached to a key (Redis), or the slots that a cluster's node was importing (Valkey,
    /// cluster_migrateslots.c, `clusterRDBLoadSlotImport`).
    fn opcode_243(&mut self, input: &mut Input<'_>) -> Result<()> {
        match self.flavour {
            Flavour::Redis => {
                module::skip_key_metadata(input)?;
                self.metadata = Metadata::OfModules;
            }
            Flavour::Valkey => {
                blob::skip(input)?;
                for _ in 0..input.number()? {
                    numbers(input, 2)?;
                }
            }
        }
        Ok(())
    }

    fn key(&mut self, byte: u8, input: &mut Input<'_>, visitor: &mut dyn Visitor) -> Result<()> {
        let Some(stored) = Stored::from_byte(byte, self.flavour) else {
            let what = format!("the byte {byte} stands for no type or opcode known of version {}", self.version);
            let error = Error::new(ErrorKind::Unsupported, what).with("offset", input.offset());
            return Err(error.hint("a newer server, or a fork of one, wrote this RDB; or it is damaged"));
        };
        let head = KeyHead {
            database: self.database,
            stored,
            expires_ms: self.expires_ms.take(),
            metadata: std::mem::replace(&mut self.metadata, Metadata::None),
        };
        visitor.key(input, head)
    }
}

/// Adds where it happened to damage that does not say so yet.
fn placed(error: Error, input: &Input<'_>) -> Error {
    let said = error.context().iter().any(|(name, _)| *name == "offset");
    if error.kind() == ErrorKind::Damaged && !said { error.with("offset", input.offset()) } else { error }
}

/// Passes over numbers that nobody needs.
fn numbers(input: &mut Input<'_>, count: u32) -> Result<()> {
    for _ in 0..count {
        input.number()?;
    }
    Ok(())
}

fn stray(input: &Input<'_>) -> Error {
    input.damaged("an expiry stands where no key follows")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
