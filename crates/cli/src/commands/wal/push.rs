//! `stackward wal push`: one file of the log into the archive, on the calling thread where the way is short.
//!
//! Invariant: it succeeds only when the file is durable in the archive, so that the server may recycle its own.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use backup_core::log::{SegmentId, SegmentMeta, SegmentRecord, Stored};
use backup_core::{Error, ErrorKind, PlanName, Result, SegmentLog, SegmentName, SourceName, Timeline};
use engine_postgres::wal::{self, Pushed, WalFile};
use serde_json::json;
use tokio::runtime::Runtime;

use super::super::log::{OWNER, claim, owned_by, same_owner};
use super::{log, server};
use crate::exit::Exit;
use crate::output;
use crate::session::Session;
use crate::sinks::QuickLog;
use crate::stack::{Access, Stack};

pub(crate) fn push(session: &Session<'_>, path: &Path, source: Option<&SourceName>) -> Result<Exit> {
    let pushed = wal::describe(path)?;
    let stack = Stack::load(session)?;
    let source = server(&stack, source)?.name().clone();
    let archive = Archive::open(session, &stack, source)?;
    archive.claim(&stack.plan.name)?;
    let before = archive.compare(&pushed, path)?;
    let id = pushed.file.id()?;
    let stored = archive.put(&id, pushed.meta, pushed.content)?;
    if let Some(told) = before.told(&archive.source) {
        session.output.warn(told);
    }
    let (word, stored_bytes) = match stored {
        Stored::New { stored_bytes } => (format!("archived, {}", output::bytes(stored_bytes)), Some(stored_bytes)),
        Stored::Same => ("was archived before".to_owned(), None),
        Stored::Repaired { stored_bytes } => {
            session
                .output
                .warn(format!("{}: {id} was archived before, and damaged; it is archived again", archive.source));
            ("archived again, in the place of a damaged copy, which was set aside".to_owned(), Some(stored_bytes))
        }
    };
    session.output.summary(format!("{id} {word}"));
    let repaired = matches!(stored, Stored::Repaired { .. });
    let body = json!({
        "source": archive.source, "segment": id, "new": stored_bytes.is_some(), "repaired": repaired,
        "stored_bytes": stored_bytes,
    });
    session.output.result("wal push", Exit::Done, &body);
    Ok(Exit::Done)
}

/// The archive of one source.
struct Archive {
    source: SourceName,
    way: Way,
}

enum Way {
    Short(QuickLog),
    Long(Runtime, SegmentLog),
}

impl Archive {
    fn open(session: &Session<'_>, stack: &Stack, source: SourceName) -> Result<Self> {
        if let Some(quick) = session.world.sinks.quick_log(&stack.plan.sink, &stack.folder)? {
            return Ok(Self { source, way: Way::Short(quick) });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| {
            Error::new(ErrorKind::Internal, "the asynchronous runtime cannot start").caused_by(source)
        })?;
        let log = runtime.block_on(log(session, stack, &source, Access::Write))?;
        Ok(Self { source, way: Way::Long(runtime, log) })
    }

    fn put(&self, id: &SegmentId, meta: SegmentMeta, mut content: std::fs::File) -> Result<Stored> {
        match &self.way {
            Way::Short(quick) => quick.put(&self.source, id, meta, &mut content),
            Way::Long(runtime, log) => runtime.block_on(log.put(id, meta, Box::new(content))),
        }
    }

    fn record(&self, id: &SegmentId) -> Result<Option<SegmentRecord>> {
        match &self.way {
            Way::Short(quick) => quick.record(&self.source, id),
            Way::Long(runtime, log) => match runtime.block_on(log.record(id)) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                found => found.map(Some),
            },
        }
    }

    fn timelines(&self) -> Result<Vec<Timeline>> {
        match &self.way {
            Way::Short(quick) => quick.timelines(&self.source),
            Way::Long(runtime, log) => runtime.block_on(log.timelines()),
        }
    }

    fn segments(&self, timeline: &Timeline) -> Result<Vec<SegmentName>> {
        match &self.way {
            Way::Short(quick) => quick.segments(&self.source, timeline),
            Way::Long(runtime, log) => {
                Ok(runtime.block_on(log.segments(timeline))?.into_iter().map(|entry| entry.id.name).collect())
            }
        }
    }

    /// Whether the segment was made of these bytes.
    fn holds(&self, id: &SegmentId, mut content: Box<dyn Read + Send>) -> Result<bool> {
        match &self.way {
            Way::Short(quick) => quick.holds(&self.source, id, &mut *content),
            Way::Long(runtime, log) => runtime.block_on(log.holds(id, content)),
        }
    }

    /// Makes the log that of `plan`, or finds that it is.
    fn claim(&self, plan: &PlanName) -> Result<()> {
        let quick = match &self.way {
            Way::Short(quick) => quick,
            Way::Long(runtime, log) => return runtime.block_on(claim(log, plan)),
        };
        let owner = SegmentName::new(OWNER)?;
        if let Some(note) = quick.note(&self.source, &owner)? {
            return same_owner(&self.source, plan, &note);
        }
        match quick.add_note(&self.source, &owner, &owned_by(plan)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let note = quick.note(&self.source, &owner)?.unwrap_or_default();
                same_owner(&self.source, plan, &note)
            }
            other => other,
        }
    }

    /// Compares the server with the one that the archive is of.
    fn compare(&self, pushed: &Pushed, path: &Path) -> Result<Before> {
        let Some(id) = &pushed.meta.predecessor else { return self.compare_with_any(pushed).map(|_| Before::Fine) };
        match self.record(id) {
            Ok(Some(record)) => self.compare_with_last(pushed, path, &record).map(|()| Before::Fine),
            // The first segment of all, the first of a timeline, or the first after a hole.
            Ok(None) => Ok(if self.compare_with_any(pushed)? { Before::Missing(id.clone()) } else { Before::Fine }),
            // It must not keep what comes after it out of the archive.
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                Ok(Before::Damaged(id.clone(), error.chain()))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether one server wrote both: by the records at the border, by its own copy of the segment before, by the pieces that
    /// a receiver archived.
    fn compare_with_last(&self, pushed: &Pushed, path: &Path, before: &SegmentRecord) -> Result<()> {
        same_server(pushed, before)?;
        if let Some(error) = wal::torn(pushed, before) {
            return Err(error);
        }
        if let Some(own) = wal::beside(path, before)
            && !self.holds(&before.id, Box::new(own))?
        {
            let file = before.id.name.as_str().parse()?;
            return Err(wal::other_content(file));
        }
        // Who pushes tells one moment of a segment, who receives many.
        if before.meta.marks.len() == 1 { Ok(()) } else { self.compare_with_pieces(pushed) }
    }

    fn compare_with_pieces(&self, pushed: &Pushed) -> Result<()> {
        let names = self.segments(&pushed.file.id()?.timeline)?;
        for (file, from, to) in wal::pieces_of(pushed, names.iter().map(SegmentName::as_str)) {
            let failed = |error| Error::from_io("cannot read the segment", error);
            let mut part = pushed.content.try_clone().map_err(failed)?;
            part.seek(SeekFrom::Start(from)).map_err(failed)?;
            match self.holds(&file.id()?, Box::new(part.take(to - from))) {
                Ok(false) => return Err(wal::other_content(file)),
                // A damaged piece must not keep the whole segment out of the archive.
                Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
                _ => {}
            }
        }
        (&pushed.content).rewind().map_err(|error| Error::from_io("cannot read the segment", error))
    }

    /// Whether the archive holds a segment of the same timeline, earlier than this one.
    fn compare_with_any(&self, pushed: &Pushed) -> Result<bool> {
        if pushed.system.is_none() {
            return Ok(false);
        }
        let id = pushed.file.id()?;
        let mut known = None;
        let mut begun = false;
        for timeline in self.timelines()? {
            let is_segment = |name: &SegmentName| matches!(name.as_str().parse(), Ok(WalFile::Segment(_)));
            let names: Vec<SegmentName> = self.segments(&timeline)?.into_iter().filter(is_segment).collect();
            begun |= timeline == id.timeline && names.first().is_some_and(|first| *first < id.name);
            known = names.into_iter().next_back().map(|name| SegmentId { timeline, name }).or(known);
        }
        let record = known.map_or(Ok(None), |known| self.record(&known));
        match record {
            Ok(Some(record)) => same_server(pushed, &record)?,
            Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
            _ => {}
        }
        self.compare_with_pieces(pushed)?;
        Ok(begun)
    }
}

/// What is known of the segment before the pushed one.
enum Before {
    Fine,
    Missing(SegmentId),
    Damaged(SegmentId, String),
}

impl Before {
    fn told(&self, source: &SourceName) -> Option<String> {
        match self {
            Self::Fine => None,
            Self::Missing(id) => Some(format!("{source}: {} is not in the archive; recovery cannot pass it", id.name)),
            Self::Damaged(id, why) => Some(format!(
                "{source}: {} in the archive is damaged: {why}; push it again while the server has it",
                id.name
            )),
        }
    }
}

fn same_server(pushed: &Pushed, known: &SegmentRecord) -> Result<()> {
    wal::foreign(pushed, known).map_or(Ok(()), Err)
}
