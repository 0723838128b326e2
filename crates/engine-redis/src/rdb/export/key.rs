//! One key after the other: which are wanted, which can be written, and what surrounds a value.
//!
//! Invariant: whether a key is refused is decided before the first command of it is written.

use backup_core::Result;

use super::batch::{Batch, Buffers};
use super::collection;
use super::commands::Commands;
use super::stream::{self, StreamBuffers};
use super::target::Feature;
use super::{ExportOptions, ExportSummary, Functions, RefusedKey};
use crate::rdb::blob::{self, Blob};
use crate::rdb::input::Input;
use crate::rdb::kind::Stored;
use crate::rdb::skip;
use crate::rdb::slots::slot_of;
use crate::rdb::summary::{Flavour, skip_library};
use crate::rdb::walk::{KeyHead, Library, Metadata, Visitor};

/// The longest name of a key: it is repeated in every command, and is held.
const KEY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of a name is shown.
const SHOWN_BYTES: usize = 256;

/// Writes the keys that come by.
pub(super) struct Exporter<'a> {
    options: &'a ExportOptions,
    commands: Commands<'a>,
    buffers: Buffers,
    stream_buffers: StreamBuffers,
    /// The database in which the commands work now.
    selected: Option<u32>,
    summary: ExportSummary,
}

/// What to do with a key.
enum Fate {
    Write,
    /// Not asked for.
    Leave,
    Expired,
    Refuse(String),
}

/// What came of a value.
enum Written {
    Whole,
    Empty,
    /// Without this.
    Lacking(String),
}

impl<'a> Exporter<'a> {
    pub(super) fn new(options: &'a ExportOptions, commands: Commands<'a>) -> Self {
        Self {
            options,
            commands,
            buffers: Buffers::default(),
            stream_buffers: StreamBuffers::default(),
            selected: None,
            summary: ExportSummary::default(),
        }
    }

    pub(super) fn finish(mut self) -> Result<ExportSummary> {
        self.commands.flush()?;
        Ok(ExportSummary { commands: self.commands.written(), ..self.summary })
    }

    /// Whether what belongs to the whole server was asked for, and not only some keys.
    fn everything(&self) -> bool {
        match self.options.functions {
            Functions::WithTheWhole => self.options.databases.is_none() && self.options.pattern.is_none(),
            Functions::Only => true,
            Functions::Never => false,
        }
    }

    fn fate(&self, head: &KeyHead, name: &[u8], length: u64) -> Fate {
        let options = self.options;
        let other_database = options.databases.as_ref().is_some_and(|wanted| !wanted.contains(&head.database));
        let other_slot = options.slots.as_ref().is_some_and(|slots| !slots.contains(slot_of(name)));
        if options.functions == Functions::Only || other_database || other_slot {
            return Fate::Leave;
        }
        if options.pattern.as_ref().is_some_and(|pattern| !pattern.matches(name)) {
            return Fate::Leave;
        }
        if head.expired(options.now_ms) {
            return Fate::Expired;
        }
        if length > name.len() as u64 {
            return Fate::Refuse(format!("its name has {length} bytes; {KEY_BYTES_MAX} are the most that are held"));
        }
        let target = options.target;
        match head.stored {
            Stored::Module => Fate::Refuse("a module defines its type: no command of the server writes it".to_owned()),
            Stored::Stream(_) if !target.has(Feature::Streams) => Fate::Refuse(format!("{target} has no streams")),
            Stored::ExpiringHash(_) | Stored::ExpiringListpack(_) if !target.has(Feature::FieldExpiry) => {
                Fate::Refuse(format!("fields of it expire, and {target} has no HPEXPIREAT"))
            }
            _ => Fate::Write,
        }
    }

    fn write(&mut self, input: &mut Input<'_>, head: &KeyHead, name: &[u8]) -> Result<()> {
        self.select(head.database)?;
        if self.options.replace && head.stored != Stored::String {
            let verb: &[u8] = if self.options.target.has(Feature::Unlink) { b"UNLINK" } else { b"DEL" };
            self.commands.command(&[verb, name])?;
        }
        let written = self.value(input, head, name)?;
        if matches!(written, Written::Empty) {
            self.summary.skipped_empty += 1;
            return Ok(());
        }
        if let Some(expires_ms) = head.expires_ms
            && !(head.stored == Stored::String && self.options.target.has(Feature::SetExpiry))
        {
            self.commands.command(&[b"PEXPIREAT", name, expires_ms.to_string().as_bytes()])?;
        }
        *self.summary.keys.entry(head.database).or_default() += 1;
        if let Written::Lacking(why) = written {
            self.summary.lacks(refused(head.database, name, why));
        }
        if head.metadata == Metadata::OfModules {
            self.summary.lacks(refused(head.database, name, "what modules attached to it".to_owned()));
        }
        Ok(())
    }

    fn select(&mut self, database: u32) -> Result<()> {
        // A connection begins in database 0; it is selected all the same, for who sends two exports on one connection.
        if self.selected != Some(database) {
            self.commands.command(&[b"SELECT", database.to_string().as_bytes()])?;
            self.selected = Some(database);
        }
        Ok(())
    }

    fn value(&mut self, input: &mut Input<'_>, head: &KeyHead, name: &[u8]) -> Result<Written> {
        match head.stored {
            Stored::String => self.string(input, head, name),
            Stored::Stream(form) => {
                let mut writer = stream::Writer {
                    commands: &mut self.commands,
                    buffers: &mut self.stream_buffers,
                    target: self.options.target,
                    key: name,
                    chunk: self.options.chunk,
                };
                Ok(writer.write(input, form)?.map_or(Written::Whole, Written::Lacking))
            }
            stored => {
                let verb = collection::verb(stored.key_type());
                let mut batch = Batch::new(&mut self.commands, &mut self.buffers, verb, name, self.options.chunk);
                collection::read(input, stored, &mut batch)?;
                Ok(if batch.finish()? == 0 { Written::Empty } else { Written::Whole })
            }
        }
    }

    fn string(&mut self, input: &mut Input<'_>, head: &KeyHead, name: &[u8]) -> Result<Written> {
        let expires_ms = head.expires_ms.filter(|_| self.options.target.has(Feature::SetExpiry));
        self.commands.begin(if expires_ms.is_some() { 5 } else { 3 })?;
        self.commands.argument(b"SET")?;
        self.commands.argument(name)?;
        let mut blob = Blob::open(input)?;
        self.commands.item(blob.item())?;
        blob.close()?;
        if let Some(expires_ms) = expires_ms {
            self.commands.argument(b"PXAT")?;
            self.commands.argument(expires_ms.to_string().as_bytes())?;
        }
        Ok(Written::Whole)
    }
}

impl Visitor for Exporter<'_> {
    fn begin(&mut self, _flavour: Flavour, _version: u32) {}

    fn aux(&mut self, _key: String, _value: String) {}

    fn module(&mut self, name: String) {
        if self.everything() {
            let why = "what the module keeps beside its keys".to_owned();
            self.summary.lacks(refused(0, format!("module {name}").as_bytes(), why));
        }
    }

    fn library(&mut self, input: &mut Input<'_>, form: Library) -> Result<()> {
        if !self.everything() {
            return skip_library(input, form);
        }
        let why = match form {
            Library::Candidate => {
                skip_library(input, form)?;
                let why = "functions of a release candidate of Redis 7.0, which no server loads".to_owned();
                self.summary.refuse(refused(0, b"a library of functions", why));
                return Ok(());
            }
            Library::Released if self.options.target.has(Feature::Functions) => None,
            Library::Released => Some(format!("{} has no functions", self.options.target)),
        };
        match why {
            None => {
                self.commands.begin(4)?;
                self.commands.argument(b"FUNCTION")?;
                self.commands.argument(b"LOAD")?;
                self.commands.argument(b"REPLACE")?;
                let mut blob = Blob::open(input)?;
                self.commands.item(blob.item())?;
                self.summary.functions += 1;
                blob.close()
            }
            Some(why) => {
                // The code begins with a line such as `#!lua name=mylib`.
                let (code, _) = blob::prefix(input, SHOWN_BYTES)?;
                let line = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
                self.summary.refuse(refused(0, &[b"library of functions ", line].concat(), why));
                Ok(())
            }
        }
    }

    fn key(&mut self, input: &mut Input<'_>, head: KeyHead) -> Result<()> {
        let (name, length) = blob::prefix(input, KEY_BYTES_MAX)?;
        match self.fate(&head, &name, length) {
            Fate::Write => return self.write(input, &head, &name),
            Fate::Leave => {}
            Fate::Expired => self.summary.skipped_expired += 1,
            Fate::Refuse(why) => self.summary.refuse(refused(head.database, &name, why)),
        }
        skip::value(input, head.stored).map(drop)
    }
}

/// An entry for the summary's lists.
fn refused(database: u32, name: &[u8], why: String) -> RefusedKey {
    let shown = String::from_utf8_lossy(&name[..name.len().min(SHOWN_BYTES)]);
    let key = if name.len() > SHOWN_BYTES { format!("{shown}…") } else { shown.into_owned() };
    RefusedKey { database, key, why }
}
