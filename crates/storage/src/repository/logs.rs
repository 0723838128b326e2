//! Continuous logs in a repository: one object per segment, below `logs/<source>/<timeline>/`.
//!
//! Invariant: a segment object is created by one conditional put and never changed; whether a later push brings the same
//! bytes is told by a keyed hash in its header, which the machine that writes can open. Only what can be read again counts as
//! stored: a damaged object is set aside for a sound one of the same bytes.

pub(super) mod key;
mod notes;
pub(crate) mod quick;
pub(super) mod segment;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{
    LogStore, SegmentDamage, SegmentEntry, SegmentId, SegmentMeta, SegmentRecord, Stored, conflict, missing,
};
use backup_core::sink::CheckDepth;
use backup_core::{RunContext, SegmentName, SourceName, Timeline};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio::sync::Mutex;

use super::{Repository, keyring, layout, read};
use crate::keys;
use key::{LogIdentity, LogRecipient};
use segment::{Found, Header, PREFIX_BYTES, Sealed, Sealer, header_length};

/// Headers are nearly always shorter than this, so that one request reads one.
const FIRST_READ_BYTES: u64 = 16 * 1024;
/// Headers that are read at the same time.
const PARALLEL: usize = 8;

/// What a repository knows of the key pairs of logs: the one to write with, those that were opened for reading.
#[derive(Default)]
pub(super) struct LogKeys {
    writing: Mutex<Option<LogRecipient>>,
    opened: Mutex<HashMap<String, LogIdentity>>,
}

impl Repository {
    /// What seals this machine's segments. The first call of a machine makes its key pair.
    async fn log_sealer(&self) -> Result<Sealer> {
        let writer = self.writer()?;
        let keys = &writer.keys;
        let recipient = if self.is_encrypted() { Some(self.log_recipient().await?) } else { None };
        let (index_key, id_key) = (keys.index_key.clone(), keys.id_key.clone());
        Ok(Sealer { index_key, id_key, recipient, level: self.level })
    }

    async fn log_recipient(&self) -> Result<LogRecipient> {
        let mut writing = self.logs.writing.lock().await;
        if let Some(recipient) = &*writing {
            return Ok(recipient.clone());
        }
        let recipients = self.config.lock().await.recipients_to_write(&self.recipients)?;
        let known = key::load(&self.state, &self.id, &recipients)?;
        let known = match known {
            // What is sealed to a pair whose private half was lost is lost.
            Some(known) if self.mend_key(&layout::log_key(known.id())).await?.is_none() => Some(known),
            _ => None,
        };
        let found = if let Some(found) = known { found } else { self.new_log_recipient().await? };
        *writing = Some(found.clone());
        Ok(found)
    }

    async fn new_log_recipient(&self) -> Result<LogRecipient> {
        let (recipient, identity) = key::pair()?;
        let path = layout::log_key(recipient.id());
        // In the store first, then in this machine's state.
        let recipients = self.wrap_new(&path, &identity.to_bytes(&self.index_key)).await?;
        key::save(&self.state, &self.id, &recipients, &recipient)?;
        Ok(recipient)
    }

    async fn log_identity(&self, header: &Header) -> Result<Option<LogIdentity>> {
        let id = match (header.key(), self.is_encrypted()) {
            (Some(id), true) => id,
            (None, false) => return Ok(None),
            _ => return Err(Error::new(ErrorKind::Damaged, "the segment is not sealed as this repository is")),
        };
        if !self.sessions.can_read() {
            return Err(read::needs_identity());
        }
        let mut opened = self.logs.opened.lock().await;
        if let Some(identity) = opened.get(id) {
            return Ok(Some(identity.clone()));
        }
        // A segment is there, and what opens it is not: an error of its own, which nobody takes for an absent segment.
        let open = |wrapped: &[u8]| LogIdentity::from_bytes(&keys::unwrap(&self.unlocked, wrapped)?, &self.index_key);
        let is_named = self.store.names(&self.unlocked.recipients()).await;
        let identity = keyring::open(&self.store, &layout::log_key(id), is_named, open).await?;
        opened.insert(id.to_owned(), identity.clone());
        Ok(Some(identity))
    }

    /// The header of a segment, its length, and the size of the whole object.
    async fn log_header(&self, source: &SourceName, id: &SegmentId) -> Result<(Header, usize, u64)> {
        let path = layout::segment(source, id);
        let found = self.store.get_first(&path, FIRST_READ_BYTES).await;
        let (mut first, size) = found.map_err(|error| not_there(error, source, id))?;
        let in_object = |error: Error| error.with("object", &path);
        let length = header_length(&first).map_err(in_object)?;
        let end = PREFIX_BYTES + length;
        if first.len() < end && (first.len() as u64) < size {
            first = self.store.get_first(&path, end as u64).await?.0;
        }
        let (header, length) = self.header_of(source, id, &first)?;
        Ok((header, length, size))
    }

    /// The header at the beginning of a segment's object, and its length.
    fn header_of(&self, source: &SourceName, id: &SegmentId, object: &[u8]) -> Result<(Header, usize)> {
        let open = || {
            let length = header_length(object)?;
            let sealed = object.get(PREFIX_BYTES..PREFIX_BYTES + length);
            let sealed = sealed.ok_or_else(|| Error::new(ErrorKind::Damaged, "the segment is cut short"))?;
            Ok((Header::open(&self.index_key, source, id, sealed)?, length))
        };
        open().map_err(|error: Error| error.with("object", layout::segment(source, id)))
    }

    /// What an existing segment of the same name means for `sealed`, whose bytes are `parts`. All of it is read: it is rare, and
    /// whoever is told that it is stored deletes its own.
    async fn settle(&self, source: &SourceName, id: &SegmentId, sealed: &Sealed, parts: &[Bytes; 2]) -> Result<Stored> {
        let stored_bytes = parts.iter().map(|part| part.len() as u64).sum();
        let path = layout::segment(source, id);
        let object = self.store.get(&path).await?;
        let look = |object: &[u8]| Found::look(&self.index_key, source, id, sealed, object);
        match look(&object)? {
            Found::Same => return Ok(Stored::Same),
            Found::Other => return Err(conflict(source, id)),
            Found::Damaged(_) => {}
        }
        let aside = layout::damaged_segment(source, id, &object);
        self.store.create_hashed(&aside, object).await?;
        self.store.delete(&path).await?;
        match self.store.create_parts(&path, parts.clone()).await {
            Ok(()) => Ok(Stored::Repaired { stored_bytes }),
            // Another one was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match look(&self.store.get(&path).await?)? {
                Found::Same => Ok(Stored::Same),
                Found::Other => Err(conflict(source, id)),
                Found::Damaged(error) => Err(error.with("object", path)),
            },
            Err(error) => Err(error),
        }
    }

    async fn check_segment(&self, source: &SourceName, entry: &SegmentEntry, depth: CheckDepth) -> Result<()> {
        if depth == CheckDepth::Data {
            let object = self.store.get(&layout::segment(source, &entry.id)).await?;
            let (header, length) = self.header_of(source, &entry.id, &object)?;
            return header.check_body(object.get(PREFIX_BYTES + length..).unwrap_or_default());
        }
        let (header, length, size) = self.log_header(source, &entry.id).await?;
        if size != (PREFIX_BYTES + length) as u64 + header.body_bytes() {
            return Err(Error::new(ErrorKind::Damaged, "the segment is shorter or longer than its header says"));
        }
        Ok(())
    }
}

/// What is not there is told by the segment's name, not the object's.
fn not_there(error: Error, source: &SourceName, id: &SegmentId) -> Error {
    if error.kind() == ErrorKind::NotFound { missing(source, id) } else { error }
}

/// Runs what blocks or computes long on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let lost = |source| Error::new(ErrorKind::Internal, "the thread of a segment was lost").caused_by(source);
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

#[async_trait]
impl LogStore for Repository {
    async fn put(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        mut content: Box<dyn Read + Send>,
    ) -> Result<Stored> {
        let sealer = self.log_sealer().await?;
        let (of, which) = (source.clone(), id.clone());
        let mut object = blocking(move || sealer.seal(&of, &which, meta, &mut *content)).await?;
        let path = layout::segment(source, id);
        let stored_bytes = object.stored_bytes();
        let parts = [std::mem::take(&mut object.head), std::mem::take(&mut object.body)].map(Bytes::from);
        if !self.config.lock().await.conditional_put && self.store.exists(&path).await? {
            // The second best on a store that would overwrite it: two writers at the same moment are not told apart.
            return self.settle(source, id, &object, &parts).await;
        }
        match self.store.create_parts(&path, parts.clone()).await {
            Ok(()) => Ok(Stored::New { stored_bytes }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.settle(source, id, &object, &parts).await,
            Err(error) => Err(error),
        }
    }

    async fn holds(&self, source: &SourceName, id: &SegmentId, mut content: Box<dyn Read + Send>) -> Result<bool> {
        let (header, ..) = self.log_header(source, id).await?;
        let id_key = self.id_key.clone();
        blocking(move || header.is_of(&id_key, &mut *content)).await
    }

    async fn add_note(&self, source: &SourceName, name: &SegmentName, text: &str) -> Result<()> {
        let sealed = notes::seal(&self.index_key, source, name, text)?;
        let path = layout::note(source, name);
        if !self.config.lock().await.conditional_put && self.store.exists(&path).await? {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("the note `{path}` is there already")));
        }
        self.store.create(&path, sealed.into()).await
    }

    async fn notes(&self, source: &SourceName) -> Result<Vec<(SegmentName, String)>> {
        let mut found = Vec::new();
        for (path, _) in self.store.list(&layout::source_notes(source)).await? {
            let Some(name) = path.filename().and_then(|name| SegmentName::new(name).ok()) else { continue };
            let text = notes::open(&self.index_key, source, &name, &self.store.get(&path).await?);
            let text = text.map_err(|error| error.with("object", &path))?;
            found.push((name, text));
        }
        Ok(found)
    }

    async fn timelines(&self, source: &SourceName) -> Result<Vec<Timeline>> {
        let folders = self.store.folders(&layout::source_log(source)).await?;
        // Other names are not ours.
        Ok(folders.iter().filter_map(|folder| Timeline::new(folder.filename()?).ok()).collect())
    }

    async fn segments(&self, source: &SourceName, timeline: &Timeline) -> Result<Vec<SegmentEntry>> {
        let objects = self.store.list(&layout::timeline(source, timeline)).await?;
        let entry = |(path, stored_bytes): &(Path, u64)| {
            let name = SegmentName::new(path.filename()?).ok()?;
            Some(SegmentEntry { id: SegmentId { timeline: timeline.clone(), name }, stored_bytes: *stored_bytes })
        };
        Ok(objects.iter().filter_map(entry).collect())
    }

    async fn record(&self, source: &SourceName, id: &SegmentId) -> Result<SegmentRecord> {
        let (header, length, _) = self.log_header(source, id).await?;
        Ok(header.record(length))
    }

    async fn read(&self, source: &SourceName, id: &SegmentId, mut out: Box<dyn Write + Send>) -> Result<SegmentRecord> {
        let path = layout::segment(source, id);
        let object = self.store.get(&path).await.map_err(|error| not_there(error, source, id))?;
        let in_object = |error: Error| error.with("object", &path);
        let (header, length) = self.header_of(source, id, &object)?;
        let body = object.slice(PREFIX_BYTES + length..);
        header.check_body(&body).map_err(in_object)?;
        let identity = self.log_identity(&header).await?;
        let id_key = self.id_key.clone();
        blocking(move || {
            header.unseal(&id_key, identity.as_ref(), &body, &mut *out)?;
            Ok(header.record(length))
        })
        .await
        .map_err(in_object)
    }

    async fn check(&self, cx: &RunContext, source: &SourceName, depth: CheckDepth) -> Result<Vec<SegmentDamage>> {
        let mut damage = Vec::new();
        // Whole objects are held in memory one at a time.
        let parallel = if depth == CheckDepth::Data { 1 } else { PARALLEL };
        for timeline in self.timelines(source).await? {
            let entries = self.segments(source, &timeline).await?;
            let mut checks = futures::stream::iter(entries)
                .map(|entry| async move {
                    cx.check_cancelled()?;
                    let checked = self.check_segment(source, &entry, depth).await;
                    cx.progress(entry.stored_bytes, 1);
                    match checked {
                        Ok(()) => Ok(None),
                        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                            Ok(Some(SegmentDamage { id: entry.id, problem: error.chain() }))
                        }
                        Err(error) => Err(error),
                    }
                })
                .buffered(parallel);
            while let Some(found) = checks.try_next().await? {
                damage.extend(found);
            }
        }
        Ok(damage)
    }
}

/// The repository as a store of logs.
pub(super) fn of(repository: &Repository) -> Arc<dyn LogStore> {
    Arc::new(repository.clone())
}
