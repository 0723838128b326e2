//! Logs kept in memory: the simplest implementation of [`LogStore`], and what followers test against.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{
    LogStore, MAX_SEGMENT_BYTES, SegmentDamage, SegmentEntry, SegmentId, SegmentMeta, SegmentRecord, Stored, conflict,
    missing,
};
use backup_core::sink::CheckDepth;
use backup_core::{RunContext, SegmentName, SourceName, Timeline};
use jiff::Timestamp;

type Segments = BTreeMap<(SourceName, SegmentId), (SegmentRecord, Arc<[u8]>)>;

type Notes = BTreeMap<(SourceName, SegmentName), String>;

/// See the module. Cheap to clone; clones share the segments.
#[derive(Debug, Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Segments>>, Arc<Mutex<Notes>>);

impl MemoryLog {
    fn with<T>(&self, work: impl FnOnce(&mut Segments) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn found(&self, source: &SourceName, id: &SegmentId) -> Result<(SegmentRecord, Arc<[u8]>)> {
        let key = (source.clone(), id.clone());
        self.with(|segments| segments.get(&key).cloned()).ok_or_else(|| missing(source, id))
    }

    /// Takes a segment away, as somebody who tidies up in the wrong place does.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn lose(&self, source: &SourceName, id: &SegmentId) -> Result<()> {
        let key = (source.clone(), id.clone());
        self.with(|segments| segments.remove(&key)).map(|_| ()).ok_or_else(|| missing(source, id))
    }
}

#[async_trait]
impl LogStore for MemoryLog {
    async fn put(
        &self,
        source: &SourceName,
        id: &SegmentId,
        meta: SegmentMeta,
        content: Box<dyn Read + Send>,
    ) -> Result<Stored> {
        let mut bytes = Vec::new();
        let read = content.take(MAX_SEGMENT_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::from_io("cannot read the segment", source))?;
        if bytes.len() as u64 > MAX_SEGMENT_BYTES {
            return Err(Error::new(ErrorKind::Unsupported, format!("the segment {id} is too long")));
        }
        let stored_bytes = bytes.len() as u64;
        let record =
            SegmentRecord { id: id.clone(), meta, bytes: stored_bytes, stored_bytes, stored: Timestamp::now() };
        self.with(|segments| match segments.get(&(source.clone(), id.clone())) {
            Some((_, existing)) if **existing == *bytes => Ok(Stored::Same),
            Some(_) => Err(conflict(source, id)),
            None => {
                segments.insert((source.clone(), id.clone()), (record, bytes.into()));
                Ok(Stored::New { stored_bytes })
            }
        })
    }

    async fn timelines(&self, source: &SourceName) -> Result<Vec<Timeline>> {
        let of = |(owner, id): &(SourceName, SegmentId)| (owner == source).then(|| id.timeline.clone());
        let mut timelines: Vec<Timeline> = self.with(|segments| segments.keys().filter_map(of).collect());
        timelines.dedup();
        Ok(timelines)
    }

    async fn segments(&self, source: &SourceName, timeline: &Timeline) -> Result<Vec<SegmentEntry>> {
        Ok(self.with(|segments| {
            let of = segments.iter().filter(|((owner, id), _)| owner == source && id.timeline == *timeline);
            of.map(|((_, id), (record, _))| SegmentEntry { id: id.clone(), stored_bytes: record.stored_bytes })
                .collect()
        }))
    }

    async fn record(&self, source: &SourceName, id: &SegmentId) -> Result<SegmentRecord> {
        self.found(source, id).map(|(record, _)| record)
    }

    async fn read(&self, source: &SourceName, id: &SegmentId, mut out: Box<dyn Write + Send>) -> Result<SegmentRecord> {
        let (record, bytes) = self.found(source, id)?;
        let written = out.write_all(&bytes).and_then(|()| out.flush());
        written.map_err(|source| Error::from_io("cannot write the segment", source))?;
        Ok(record)
    }

    async fn add_note(&self, source: &SourceName, name: &SegmentName, text: &str) -> Result<()> {
        let mut notes = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.clone(), name.clone());
        if notes.contains_key(&key) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("the note {name} is there")));
        }
        notes.insert(key, text.to_owned());
        Ok(())
    }

    async fn notes(&self, source: &SourceName) -> Result<Vec<(SegmentName, String)>> {
        let notes = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let of = notes.iter().filter(|((owner, _), _)| owner == source);
        Ok(of.map(|((_, name), text)| (name.clone(), text.clone())).collect())
    }

    async fn check(&self, _: &RunContext, _: &SourceName, _: CheckDepth) -> Result<Vec<SegmentDamage>> {
        Ok(Vec::new())
    }
}
