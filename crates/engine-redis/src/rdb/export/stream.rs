//! Streams as commands: entries, counters, consumer groups, and what was delivered but not acknowledged.
//!
//! Invariant: an entry is passed through as it is read; ids that are needed again are held outside of memory when they
//! are many. Entries: t_stream.c, `streamAppendItem`; the commands: aof.c, `rewriteStreamObject`.

use backup_core::{Error, ErrorKind, Result};

use super::commands::Commands;
use super::held::Held;
use super::target::{Feature, Target};
use crate::rdb::blob::{self, Blob};
use crate::rdb::input::Input;
use crate::rdb::kind::StreamForm;
use crate::rdb::listpack::Listpack;
use crate::rdb::pull::Elements;
use crate::rdb::stream::{self, Group, Id, Pending, Tail};

/// Flags of an entry (t_stream.c, `STREAM_ITEM_FLAG_`).
const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;
/// The longest name of a group or a consumer: it is repeated, and is held.
const NAME_BYTES_MAX: usize = 1024 * 1024;
/// The most ids in one XCLAIM, whatever the caller allows.
const CLAIM_IDS_MAX: usize = 10_000;
/// A held pending entry: its id, when it was delivered, how often.
const PENDING_BYTES: u64 = 32;

/// What is held while a stream is written; kept from key to key.
#[derive(Debug, Default)]
pub(super) struct StreamBuffers {
    /// The names of the fields of a node's first entry, each behind its length.
    names: Held,
    /// The raw ids of all entries, in order.
    ids: Held,
    /// The pending entries of a group, in the order of their ids.
    pending: Held,
}

/// Writes one stream.
pub(super) struct Writer<'a, 'o> {
    pub(super) commands: &'a mut Commands<'o>,
    pub(super) buffers: &'a mut StreamBuffers,
    pub(super) target: Target,
    pub(super) key: &'a [u8],
    pub(super) chunk: usize,
}

/// Pending entries of one consumer that one command can claim.
struct Claim<'n> {
    group: &'n [u8],
    consumer: &'n [u8],
    ids: Vec<Id>,
    delivered_ms: i64,
    deliveries: u64,
}

impl Writer<'_, '_> {
    /// Writes the stream; returns what it lacks, if something.
    pub(super) fn write(&mut self, input: &mut Input<'_>, form: StreamForm) -> Result<Option<String>> {
        self.buffers.ids.clear();
        for _ in 0..input.number()? {
            self.node(input)?;
        }
        let tail = Tail::read(input, form)?;
        let entries = self.buffers.ids.len() / Id::BYTES as u64;
        if entries != tail.length {
            return Err(input.damaged("a stream has another number of entries than it claims"));
        }
        self.counters(&tail)?;
        let mut lost = 0;
        for _ in 0..tail.groups {
            lost += self.group(input, form)?;
        }
        let producers = stream::producers(input, form)?;
        Ok(lacking(lost, producers))
    }

    /// A node: the id that its entries' ids are relative to, and its entries.
    fn node(&mut self, input: &mut Input<'_>) -> Result<()> {
        let (raw, length) = blob::prefix(input, Id::BYTES)?;
        let base = match <[u8; Id::BYTES]>::try_from(raw) {
            Ok(raw) if length == Id::BYTES as u64 => Id::from_raw(raw),
            _ => return Err(input.damaged("a node of a stream is not named by an id")),
        };
        let mut blob = Blob::open(input)?;
        self.entries(&mut Listpack::open(blob.packed()?)?, base)?;
        blob.close()
    }

    /// The entries of a node. First comes the node's own: counts, and the names of the fields of its first entry.
    fn entries(&mut self, pack: &mut Listpack<'_>, base: Id) -> Result<()> {
        let live = pack.must()?.integer()?;
        let _deleted = pack.must()?.integer()?;
        let fields = count(pack)?;
        self.buffers.names.clear();
        for _ in 0..fields {
            let name = pack.must()?;
            self.buffers.names.append(&name.len().to_le_bytes())?;
            self.buffers.names.append_item(name)?;
        }
        if pack.must()?.integer()? != 0 {
            return Err(pack.damage("the first entry of a stream's node does not end"));
        }
        let before = self.buffers.ids.len();
        while let Some(flags) = pack.next()? {
            let flags = flags.integer()?;
            self.entry(pack, base, flags, fields)?;
        }
        if (self.buffers.ids.len() - before) / Id::BYTES as u64 != live as u64 {
            return Err(pack.damage("a stream's node has another number of entries than it claims"));
        }
        Ok(())
    }

    fn entry(&mut self, pack: &mut Listpack<'_>, base: Id, flags: i64, node_fields: u64) -> Result<()> {
        // The differences are those of unsigned numbers: they wrap.
        let milliseconds = base.milliseconds.wrapping_add_signed(pack.must()?.integer()?);
        let sequence = base.sequence.wrapping_add_signed(pack.must()?.integer()?);
        let same = flags & SAME_FIELDS != 0;
        let fields = if same { node_fields } else { count(pack)? };
        if flags & DELETED != 0 {
            for _ in 0..fields.saturating_mul(if same { 1 } else { 2 }) {
                pack.must()?;
            }
        } else {
            let id = Id { milliseconds, sequence };
            self.begin_entry(pack, id, fields)?;
            if same { self.values(pack, fields)? } else { self.fields_and_values(pack, fields)? }
        }
        pack.must()?.integer()?; // How many elements the entry has: for walking backwards.
        Ok(())
    }

    fn begin_entry(&mut self, pack: &Listpack<'_>, id: Id, fields: u64) -> Result<()> {
        let last = self.buffers.ids.len().checked_sub(Id::BYTES as u64);
        let last = last.map_or(Ok(Id::ZERO), |start| self.buffers.ids.array(start).map(Id::from_raw))?;
        if id <= last {
            return Err(pack.damage("the ids of a stream do not ascend"));
        }
        if fields == 0 {
            return Err(pack.damage("an entry of a stream has no field"));
        }
        self.buffers.ids.append(&id.raw())?;
        self.commands.begin(fields.saturating_mul(2).saturating_add(3))?;
        self.commands.argument(b"XADD")?;
        self.commands.argument(self.key)?;
        self.commands.argument(id.to_string().as_bytes())
    }

    /// The values of an entry whose fields are those of the node's first one.
    fn values(&mut self, pack: &mut Listpack<'_>, fields: u64) -> Result<()> {
        let mut place = 0;
        for _ in 0..fields {
            let length = u64::from_le_bytes(self.buffers.names.array(place)?);
            self.commands.held(&self.buffers.names, place + 8, length)?;
            place += 8 + length;
            self.commands.item(pack.must()?)?;
        }
        Ok(())
    }

    fn fields_and_values(&mut self, pack: &mut Listpack<'_>, fields: u64) -> Result<()> {
        for _ in 0..fields {
            self.commands.item(pack.must()?)?;
            self.commands.item(pack.must()?)?;
        }
        Ok(())
    }

    /// Makes the stream when it has no entry, and sets what it counts.
    fn counters(&mut self, tail: &Tail) -> Result<()> {
        let last = tail.last.to_string();
        if tail.length == 0 {
            // An entry that is trimmed at once leaves an empty stream behind.
            let id = if tail.last == Id::ZERO { "0-1" } else { &last };
            self.commands.command(&[b"XADD", self.key, b"MAXLEN", b"0", id.as_bytes(), b"x", b"y"])?;
        }
        match &tail.offsets {
            Some(offsets) if self.target.has(Feature::StreamOffsets) => {
                let (added, deleted) = (offsets.added.to_string(), offsets.largest_deleted.to_string());
                let arguments = [added.as_bytes(), b"MAXDELETEDID", deleted.as_bytes()];
                self.commands
                    .command(&[&[b"XSETID", self.key, last.as_bytes(), b"ENTRIESADDED"], &arguments[..]].concat())
            }
            _ => self.commands.command(&[b"XSETID", self.key, last.as_bytes()]),
        }
    }

    /// A consumer group; returns how many of its pending entries could not be written.
    fn group(&mut self, input: &mut Input<'_>, form: StreamForm) -> Result<u64> {
        let name = read_name(input)?;
        let group = Group::read(input, form)?;
        let start = group.last.to_string();
        let create: [&[u8]; 5] = [b"XGROUP", b"CREATE", self.key, &name, start.as_bytes()];
        match group.read {
            Some(read) if self.target.has(Feature::StreamOffsets) => {
                let read = read.to_string();
                self.commands.command(&[&create[..], &[b"ENTRIESREAD", read.as_bytes()]].concat())?;
            }
            _ => self.commands.command(&create)?,
        }
        self.hold_pending(input, group.pending)?;
        let mut lost = 0;
        for _ in 0..input.number()? {
            lost += self.consumer(input, form, &name)?;
        }
        Ok(lost)
    }

    fn hold_pending(&mut self, input: &mut Input<'_>, count: u64) -> Result<()> {
        let held = &mut self.buffers.pending;
        held.clear();
        let mut before = None;
        for _ in 0..count {
            let pending = Pending::read(input)?;
            if before >= Some(pending.id) {
                return Err(input.damaged("the pending ids of a consumer group do not ascend"));
            }
            before = Some(pending.id);
            held.append(&pending.id.raw())?;
            held.append(&pending.delivered_ms.to_le_bytes())?;
            held.append(&pending.deliveries.to_le_bytes())?;
        }
        Ok(())
    }

    /// A consumer, and the entries that are pending with it.
    fn consumer(&mut self, input: &mut Input<'_>, form: StreamForm, group: &[u8]) -> Result<u64> {
        let name = read_name(input)?;
        if self.target.has(Feature::CreateConsumer) {
            self.commands.command(&[b"XGROUP", b"CREATECONSUMER", self.key, group, &name])?;
        } else {
            // Asking for what is pending makes the consumer.
            let ask: [&[u8]; 6] = [b"XREADGROUP", b"GROUP", group, &name, b"COUNT", b"1"];
            self.commands.command(&[&ask[..], &[b"STREAMS", self.key, b"0"]].concat())?;
        }
        let mut claim = Claim { group, consumer: &name, ids: Vec::new(), delivered_ms: 0, deliveries: 0 };
        let (mut place, mut entry, mut lost) = (0, 0, 0);
        for _ in 0..stream::consumer(input, form)? {
            let id = Id::from_raw(input.array()?);
            place = match find(&self.buffers.pending, PENDING_BYTES, id, place)? {
                Ok(place) => place,
                Err(_) => return Err(input.damaged("an entry is pending with a consumer but not with its group")),
            };
            let start = place * PENDING_BYTES + Id::BYTES as u64;
            let delivered_ms = i64::from_le_bytes(self.buffers.pending.array(start)?);
            let deliveries = u64::from_le_bytes(self.buffers.pending.array(start + 8)?);
            let found = find(&self.buffers.ids, Id::BYTES as u64, id, entry)?;
            entry = found.unwrap_or_else(|next| next);
            if found.is_err() && self.target.has(Feature::StreamOffsets) {
                lost += 1; // Its entry was deleted, and such a server refuses to claim it.
                continue;
            }
            let full = claim.ids.len() >= self.chunk.clamp(1, CLAIM_IDS_MAX);
            if full || (claim.delivered_ms, claim.deliveries) != (delivered_ms, deliveries) {
                self.claim(&mut claim)?;
                (claim.delivered_ms, claim.deliveries) = (delivered_ms, deliveries);
            }
            claim.ids.push(id);
        }
        self.claim(&mut claim)?;
        Ok(lost)
    }

    fn claim(&mut self, claim: &mut Claim<'_>) -> Result<()> {
        if claim.ids.is_empty() {
            return Ok(());
        }
        self.commands.begin(11 + claim.ids.len() as u64)?;
        for argument in [b"XCLAIM", self.key, claim.group, claim.consumer, b"0"] {
            self.commands.argument(argument)?;
        }
        for id in claim.ids.drain(..) {
            self.commands.argument(id.to_string().as_bytes())?;
        }
        let (time, count) = (claim.delivered_ms.to_string(), claim.deliveries.to_string());
        for argument in [b"TIME", time.as_bytes(), b"RETRYCOUNT", count.as_bytes(), b"FORCE", b"JUSTID"] {
            self.commands.argument(argument)?;
        }
        Ok(())
    }
}

/// A count of fields.
fn count(pack: &mut Listpack<'_>) -> Result<u64> {
    let count = pack.must()?.integer()?;
    u64::try_from(count).map_err(|_| pack.damage("an entry of a stream has a negative number of fields"))
}

fn read_name(input: &mut Input<'_>) -> Result<Vec<u8>> {
    let (name, length) = blob::prefix(input, NAME_BYTES_MAX)?;
    if length > name.len() as u64 {
        let what = format!("the name of a consumer or a group has {length} bytes; {NAME_BYTES_MAX} are the most");
        return Err(Error::new(ErrorKind::Unsupported, what).with("offset", input.offset()));
    }
    Ok(name)
}

/// Finds an id among sorted records of `width` bytes that begin with one, from record `from` on: `Ok` with its place,
/// or `Err` with the place before which it would stand.
fn find(held: &Held, width: u64, id: Id, from: u64) -> Result<std::result::Result<u64, u64>> {
    let (mut low, mut high) = (from, held.len() / width);
    // Ids are asked for in order: the next record is the likely one.
    let mut middle = low;
    while low < high {
        let here = Id::from_raw(held.array(middle * width)?);
        match here.cmp(&id) {
            std::cmp::Ordering::Equal => return Ok(Ok(middle)),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
        middle = low + (high - low) / 2;
    }
    Ok(Err(low))
}

fn lacking(lost: u64, producers: u64) -> Option<String> {
    let mut parts = Vec::new();
    if lost > 0 {
        parts.push(format!("{lost} pending entries whose message is deleted"));
    }
    if producers > 0 {
        parts.push(format!("what it remembers of {producers} producers"));
    }
    (!parts.is_empty()).then(|| parts.join(", and "))
}
