//! What the archive is told of a file of the log before it takes it. Nothing here waits: `archive_command` is called for
//! every segment, and the server does not recycle one before it is archived.

use std::io::Read;
use std::path::Path;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{Mark, SegmentId, SegmentMeta, SegmentRecord, Span};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::history::{History, MAX_HISTORY_BYTES};
use super::join::Edges;
use super::names::{WalFile, WalSegment};
use super::page::{PAGE_HEADER_BYTES, PageHeader};

/// A file of the log, looked at, ready to be archived.
#[derive(Debug)]
pub struct Pushed {
    /// Which file it is, by its name.
    pub file: WalFile,
    /// What the archive is told of it.
    pub meta: SegmentMeta,
    /// The server's identifier, for segments.
    pub system: Option<u64>,
    /// The file, at its beginning.
    pub content: std::fs::File,
}

/// Looks at the file at `path`, whose name says what it is.
///
/// # Errors
/// [`ErrorKind::Usage`] when the name is none of a write-ahead log; [`ErrorKind::Damaged`] when the content belongs
/// elsewhere or has another length; those of reading it.
pub fn describe(path: &Path) -> Result<Pushed> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file: WalFile = name.parse()?;
    let failed = |error| Error::io("cannot read the file of the write-ahead log", path, error);
    let mut content = std::fs::File::open(path).map_err(failed)?;
    let status = content.metadata().map_err(failed)?;
    let mut meta = SegmentMeta::default();
    let mut system = None;
    match file {
        WalFile::Segment(segment) | WalFile::Partial(segment) => {
            let mut first = [0; PAGE_HEADER_BYTES];
            let read = content.read_exact(&mut first);
            read.map_err(|error| Error::io("cannot read the beginning of the segment", path, error))?;
            let header = PageHeader::parse(&first).and_then(|header| header.check(segment).map(|()| header));
            let header = header.map_err(|error| error.with("file", path.display()))?;
            let size = header.segment_size;
            if status.len() != size.bytes() {
                let message = format!("the segment {name} has {} bytes, not {}", status.len(), size.bytes());
                return Err(Error::new(ErrorKind::Damaged, message).with("file", path.display()));
            }
            meta = segment_meta(segment, &header)?;
            if let WalFile::Partial(_) = file {
                (meta.predecessor, meta.span) = (None, None);
            } else {
                rewind(&mut content).map_err(failed)?;
                Edges::read(&mut content, segment, size, header.system)?.tell(&mut meta);
                // The time of the file's last change: from then on it was full.
                let time = status.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
                meta.marks.extend(time.map(|time| Mark { time, position: segment.end(size).0 }));
            }
            system = Some(header.system);
            rewind(&mut content).map_err(failed)?;
        }
        WalFile::History(timeline) => {
            let mut text = String::new();
            (&mut content).take(MAX_HISTORY_BYTES).read_to_string(&mut text).map_err(failed)?;
            let history = History::parse(timeline, &text).map_err(|error| error.with("file", path.display()))?;
            meta = history_meta(&history);
            rewind(&mut content).map_err(failed)?;
        }
        WalFile::Backup(..) => {}
        WalFile::Piece(..) => {
            return Err(Error::new(
                ErrorKind::Usage,
                "pieces of segments are the receiver's own; no server archives one",
            ));
        }
    }
    Ok(Pushed { file, meta, system, content })
}

/// What the archive is told of a whole segment.
pub(super) fn segment_meta(segment: WalSegment, header: &PageHeader) -> Result<SegmentMeta> {
    let size = header.segment_size;
    let mut meta = SegmentMeta {
        predecessor: predecessor(segment, header)?,
        span: Some(Span { start: segment.start(size).0, end: segment.end(size).0 }),
        ..SegmentMeta::default()
    };
    // As text: numbers of JSON are not exact beyond 2^53 everywhere.
    meta.details.insert("system".to_owned(), json!(header.system.to_string()));
    meta.details.insert("page_magic".to_owned(), json!(header.magic));
    Ok(meta)
}

/// The segment before one. The first page of a timeline's first segment is of the timeline that it left.
pub(super) fn predecessor(segment: WalSegment, header: &PageHeader) -> Result<Option<SegmentId>> {
    let before = segment.previous(header.segment_size);
    before.map(|before| WalFile::Segment(WalSegment { timeline: header.timeline, ..before }).id()).transpose()
}

/// What the archive is told of a history: its content, so that chains can be followed without a private key.
pub(super) fn history_meta(history: &History) -> SegmentMeta {
    let mut meta = SegmentMeta::default();
    meta.details.insert("history".to_owned(), serde_json::to_value(history).unwrap_or(Value::Null));
    meta
}

fn rewind(file: &mut std::fs::File) -> std::io::Result<()> {
    use std::io::Seek;
    file.rewind()
}

/// The error of a file of another server than that of `known`, which is in the archive already; `None` when it is the same.
#[must_use]
pub fn foreign(pushed: &Pushed, known: &SegmentRecord) -> Option<Error> {
    let (mine, theirs) = (pushed.system?.to_string(), known.meta.details.get("system")?.as_str()?.to_owned());
    if mine == theirs {
        return None;
    }
    let message = format!(
        "{} is of the server with the identifier {mine}, and the archive is that of the server {theirs}",
        pushed.file
    );
    Some(Error::new(ErrorKind::AlreadyExists, message).hint(
        "two servers archive under one source name, or this one was set up anew: give it a source name of its own",
    ))
}
