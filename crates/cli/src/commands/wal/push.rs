//! `stackward wal push`: one file of the log into the archive, on the calling thread where the way is short.
//!
//! Invariant: it succeeds only when the file is durable in the archive, so that the server may recycle its own.

use std::path::Path;

use backup_core::log::{SegmentId, SegmentMeta, SegmentRecord, Stored};
use backup_core::{Error, ErrorKind, Result, SegmentLog, SegmentName, SourceName, Timeline};
use engine_postgres::wal::{self, Pushed, WalFile};
use serde_json::json;
use tokio::runtime::Runtime;

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
    let hole = archive.compare(&pushed)?;
    let id = pushed.file.id()?;
    let stored = archive.put(&id, pushed.meta, pushed.content)?;
    if let Some(missing) = hole {
        session.output.warn(format!("{}: {missing} is not in the archive; recovery cannot pass it", archive.source));
    }
    let (word, stored_bytes) = match stored {
        Stored::New { stored_bytes } => (format!("archived, {}", output::bytes(stored_bytes)), Some(stored_bytes)),
        Stored::Same => ("was archived before".to_owned(), None),
    };
    session.output.summary(format!("{id} {word}"));
    let body =
        json!({ "source": archive.source, "segment": id, "new": stored_bytes.is_some(), "stored_bytes": stored_bytes });
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

    /// Compares the server with the one that the archive is of. Returns the file that should have come before, when it did not.
    fn compare(&self, pushed: &Pushed) -> Result<Option<String>> {
        let Some(before) = &pushed.meta.predecessor else { return self.compare_with_any(pushed).map(|_| None) };
        if let Some(record) = self.record(before)? {
            return same_server(pushed, &record).map(|()| None);
        }
        // The first segment of all, the first of a timeline, or the first after a hole.
        let begun = self.compare_with_any(pushed)?;
        Ok(begun.then(|| before.name.to_string()))
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
        if let Some(known) = known
            && let Some(record) = self.record(&known)?
        {
            same_server(pushed, &record)?;
        }
        Ok(begun)
    }
}

fn same_server(pushed: &Pushed, known: &SegmentRecord) -> Result<()> {
    wal::foreign(pushed, known).map_or(Ok(()), Err)
}
