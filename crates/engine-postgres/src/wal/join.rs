//! Where new log joins what is archived: whether one server wrote both.
//!
//! Every record names the one before it, so that a segment says which record it follows, and which one the next must follow.
//! Copies of a server, and the server itself after it was set back, have its identifier and its timeline, but write other records.
//! Invariant: what is compared needs no private key; a machine that archives cannot read what it archived.

use std::io::Read;
use std::path::Path;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{SegmentDamage, SegmentMeta, SegmentRecord};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};

use super::chain::Chain;
use super::names::{SegmentSize, WalFile, WalSegment};
use super::push::Pushed;
use super::records::{Record, Walker};
use super::walk::{Observer, walk};

const BUFFER_BYTES: usize = 256 * 1024;

/// The records at both ends of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Edges {
    /// The record that the first one which begins in it follows.
    pub(super) after: Option<Lsn>,
    /// The last one which begins in it.
    pub(super) last: Option<Lsn>,
}

impl Edges {
    /// Reads all records of a segment. What is no record ends that, and is nobody's fault here: those who recover look closer.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read(content: &mut dyn Read, segment: WalSegment, size: SegmentSize, system: u64) -> Result<Self> {
        let mut walker = Walker::new(segment.start(size), size, system);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => walker.push(&buffer[..count], &mut |_| {}),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io(format!("cannot read the segment {segment}"), error)),
            }
        }
        let last = if walker.fault().is_none() { walker.last_begun() } else { None };
        Ok(Self { after: walker.first_follows(), last })
    }

    /// Writes them down.
    pub(super) fn tell(self, meta: &mut SegmentMeta) {
        (meta.after, meta.last_record) = (self.after.map(|lsn| lsn.0), self.last.map(|lsn| lsn.0));
    }
}

/// The error of a server that has another log than the archive, of the same system; `what` says where they differ.
pub(super) fn estranged(what: &str) -> Error {
    let message = format!("{what}: a copy of the server that was archived, or an earlier state of it, wrote this");
    Error::new(ErrorKind::AlreadyExists, message).hint(
        "give this server a source name of its own in the plan, and take a backup; what is archived stays as it is, and \
         nothing was added to it",
    )
}

/// The error of a segment whose first record does not follow the last one of `before`, which is archived; `None` when it
/// does, or nobody can tell.
#[must_use]
pub fn torn(pushed: &Pushed, before: &SegmentRecord) -> Option<Error> {
    let (after, last) = (Lsn(pushed.meta.after?), Lsn(before.meta.last_record?));
    (after != last).then(|| {
        let (file, id) = (pushed.file, &before.id.name);
        estranged(&format!(
            "{file} goes on after the record at {after}, and the last one of {id} in the archive is at {last}"
        ))
    })
}

/// The error of a server whose `file` is not what is archived under that name.
#[must_use]
pub fn other_content(file: WalFile) -> Error {
    estranged(&format!("{file} is archived with other content than the server has"))
}

/// The server's own copy of the segment before the pushed one, beside it, while the server still has it.
#[must_use]
pub fn beside(path: &Path, before: &SegmentRecord) -> Option<std::fs::File> {
    let file = std::fs::File::open(path.parent()?.join(before.id.name.as_str())).ok()?;
    // A recycled file has the name of a segment that is still to come.
    (file.metadata().ok()?.len() == before.bytes).then_some(file)
}

/// Those of `names` that are pieces of the pushed segment, with the part of it that each is of.
#[must_use]
pub fn pieces_of<'a>(pushed: &Pushed, names: impl IntoIterator<Item = &'a str>) -> Vec<(WalFile, u64, u64)> {
    let WalFile::Segment(segment) = pushed.file else { return Vec::new() };
    let piece = |name: &str| match name.parse() {
        Ok(file @ WalFile::Piece(of, from, to)) if of == segment => Some((file, u64::from(from), u64::from(to))),
        _ => None,
    };
    names.into_iter().filter_map(piece).collect()
}

#[derive(Debug)]
struct Nobody;

impl Observer for Nobody {
    fn see(&mut self, _: &Record) {}
}

/// Walks every record that is archived, over the borders of segments. Needs a private key; what cannot be read at all is
/// passed over: checks of stored bytes tell it.
///
/// # Errors
/// Those of reading the archive.
pub async fn verify(cx: &RunContext, log: &SegmentLog) -> Result<Vec<SegmentDamage>> {
    let mut found = Vec::new();
    let Some(chain) = Chain::read(log).await? else { return Ok(found) };
    let Some(system) = chain.system().and_then(|system| system.parse().ok()) else { return Ok(found) };
    let size = chain.segment_size();
    for timeline in chain.timelines() {
        let mut before: Option<Walker> = None;
        for segment in chain.held(timeline) {
            cx.check_cancelled()?;
            let start = segment.start(size);
            let goes_on = before.take().filter(|walker| walker.position() == start && walker.fault().is_none());
            let walker = goes_on.unwrap_or_else(|| Walker::new(start, size, system));
            match cx.unless_cancelled(walk(log, &chain, segment, walker, Nobody)).await {
                Ok((walker, Nobody)) => {
                    if let Some(fault) = walker.fault() {
                        let problem = format!("its records break off at {}: {}", fault.at, fault.why);
                        found.push(SegmentDamage { id: WalFile::Segment(segment).id()?, problem });
                    }
                    before = Some(walker);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::Arc;

    use backup_core::SourceName;
    use backup_testkit::MemoryLog;
    use serde_json::json;

    use super::super::records::tests::{SEGMENT, START, SYSTEM, log};
    use super::*;

    /// Two segments of one server whose records have this length.
    fn segments(length: usize) -> [Vec<u8>; 2] {
        let (bytes, _) = log(&vec![length; 2 * SEGMENT as usize / length]);
        let half = SEGMENT as usize;
        [bytes[..half].to_vec(), bytes[half..2 * half].to_vec()]
    }

    fn size() -> SegmentSize {
        SegmentSize::new(SEGMENT).unwrap()
    }

    fn numbers() -> [WalSegment; 2] {
        let first = WalSegment::containing(1, Lsn(START), size());
        [first, first.next(size())]
    }

    #[test]
    fn a_segment_follows_the_one_before_it_and_no_other() {
        let edges = |bytes: &Vec<u8>, number: usize| {
            Edges::read(&mut Cursor::new(bytes), numbers()[number], size(), SYSTEM).unwrap()
        };
        let (mine, other) = (segments(1000), segments(1300));
        let last = edges(&mine[0], 0).last;
        assert!(last.is_some() && edges(&mine[1], 1).after == last, "{last:?}");
        assert!(edges(&other[1], 1).after.is_some_and(|after| Some(after) != last));
        assert_eq!(edges(&vec![0; SEGMENT as usize], 0), Edges::default());
    }

    /// As an earlier version archived them, which knew nothing of edges.
    #[tokio::test]
    async fn a_walk_over_all_records_finds_where_they_do_not_go_on() {
        let (mine, other) = (segments(1000), segments(1300));
        let found = async |contents: [&Vec<u8>; 2]| {
            let log = SegmentLog::new(Arc::new(MemoryLog::default()), SourceName::new("db").unwrap());
            for (segment, content) in numbers().into_iter().zip(contents) {
                let details = [("system".to_owned(), json!(SYSTEM.to_string()))].into();
                let meta = SegmentMeta { details, ..SegmentMeta::default() };
                let id = WalFile::Segment(segment).id().unwrap();
                log.put(&id, meta, Box::new(Cursor::new(content.clone()))).await.unwrap();
            }
            verify(&RunContext::new(SourceName::new("db").unwrap()), &log).await.unwrap()
        };
        assert_eq!(found([&mine[0], &mine[1]]).await, []);
        let breaks = found([&mine[0], &other[1]]).await;
        assert!(breaks.len() == 1 && breaks[0].id == WalFile::Segment(numbers()[1]).id().unwrap(), "{breaks:?}");
        assert!(breaks[0].problem.contains("break off at"), "{breaks:?}");
    }
}
