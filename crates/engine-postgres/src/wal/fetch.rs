//! Files of the log, from the archive to a disk.
//!
//! Invariant: a file appears under its name only when it is whole and checked.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use backup_core::SegmentLog;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::SegmentRecord;

use super::chain::size_of;
use super::names::{WalFile, WalSegment};

/// Writes a file of the log to `to`. Of a segment that was never full, what was archived in pieces, and zeroes behind it: the
/// server replays it up to there.
///
/// # Errors
/// [`ErrorKind::NotFound`] when the archive has none of this name; [`ErrorKind::Damaged`]; those of writing.
pub async fn fetch(log: &SegmentLog, file: WalFile, to: &Path) -> Result<()> {
    refuse_other_kinds(to)?;
    let partial = partial(to);
    let written = write(log, file, &partial).await;
    place(written, &partial, to)
}

/// As [`fetch`], for a segment that is archived as a whole.
///
/// # Errors
/// As there; [`ErrorKind::NotFound`], too, when the archive has pieces of it only.
pub async fn fetch_whole(log: &SegmentLog, segment: WalSegment, to: &Path) -> Result<()> {
    refuse_other_kinds(to)?;
    let partial = partial(to);
    let written = write_whole(log, WalFile::Segment(segment), &partial).await;
    place(written, &partial, to)
}

/// A rename takes the place of whatever stands there: of a device, when we are root.
fn refuse_other_kinds(to: &Path) -> Result<()> {
    match std::fs::symlink_metadata(to) {
        Ok(standing) if !standing.is_file() => {
            Err(Error::new(ErrorKind::Usage, "what stands there is no file, and is not replaced by one")
                .with("path", to.display())
                .hint("name a path that is free"))
        }
        _ => Ok(()),
    }
}

/// What a file is called until it is whole.
fn partial(to: &Path) -> PathBuf {
    let mut partial = to.as_os_str().to_owned();
    partial.push(format!(".stackward-{}", std::process::id()));
    partial.into()
}

/// Of writing. A folder that is not there must not look like a file that the archive does not have.
fn failed(to: &Path, error: std::io::Error) -> Error {
    let message = "cannot write the file of the write-ahead log";
    if error.kind() == std::io::ErrorKind::NotFound {
        return Error::new(ErrorKind::Io, message).caused_by(error).with("path", to.display());
    }
    Error::io(message, to, error)
}

fn place(written: Result<()>, partial: &Path, to: &Path) -> Result<()> {
    let placed = written.and_then(|()| std::fs::rename(partial, to).map_err(|error| failed(to, error)));
    if placed.is_err() {
        let _gone = std::fs::remove_file(partial);
    }
    placed
}

/// Writes the file of this very name.
async fn write_whole(log: &SegmentLog, file: WalFile, to: &Path) -> Result<()> {
    let out = File::create(to).map_err(|error| failed(to, error))?;
    log.read(&file.id()?, Box::new(out)).await.map(|_| ())
}

async fn write(log: &SegmentLog, file: WalFile, to: &Path) -> Result<()> {
    let (segment, missing) = match (write_whole(log, file, to).await, file) {
        (Err(error), WalFile::Segment(segment)) if error.kind() == ErrorKind::NotFound => (segment, error),
        (whole, _) => return whole,
    };
    let failed = |error| failed(to, error);
    let mut out = File::create(to).map_err(failed)?;
    let mut length = None;
    for piece in pieces(log, segment).await? {
        let WalFile::Piece(_, from, _) = piece else { continue };
        out.seek(SeekFrom::Start(u64::from(from))).map_err(failed)?;
        let record: SegmentRecord = log.read(&piece.id()?, Box::new(out.try_clone().map_err(failed)?)).await?;
        length = Some(size_of(&record)?.bytes());
    }
    out.set_len(length.ok_or(missing)?).map_err(failed)
}

/// The pieces of a segment that lead from its beginning as far as possible.
pub(super) async fn pieces(log: &SegmentLog, segment: WalSegment) -> Result<Vec<WalFile>> {
    let timeline = WalFile::Segment(segment).id()?.timeline;
    let mut found: Vec<(u32, u32)> = Vec::new();
    for entry in log.segments(&timeline).await? {
        if let Ok(WalFile::Piece(of, from, to)) = entry.id.name.as_str().parse()
            && of == segment
        {
            found.push((from, to));
        }
    }
    Ok(cover(found).into_iter().map(|(from, to)| WalFile::Piece(segment, from, to)).collect())
}

/// The fewest ranges that cover everything from zero on.
fn cover(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let (mut chosen, mut reach) = (Vec::new(), 0);
    while let Some(best) =
        ranges.iter().filter(|(from, to)| *from <= reach && *to > reach).max_by_key(|(_, to)| *to).copied()
    {
        reach = best.1;
        chosen.push(best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backup_core::SourceName;
    use backup_core::log::SegmentMeta;
    use backup_testkit::MemoryLog;
    use serde_json::json;

    use super::*;
    use crate::wal::SegmentSize;

    #[tokio::test]
    async fn pieces_are_fetched_when_they_will_do_and_nothing_is_left_of_what_is_not_there() {
        let log = SegmentLog::new(Arc::new(MemoryLog::default()), SourceName::new("db").unwrap());
        let size = SegmentSize::new(1 << 20).unwrap();
        let (whole, pieced) = (WalSegment::numbered(1, 3, size), WalSegment::numbered(1, 4, size));
        let details = [("segment_size".to_owned(), json!(size.bytes()))];
        let meta = SegmentMeta { details: details.into(), ..SegmentMeta::default() };
        let put = async |file: WalFile, content: &[u8]| {
            let content = Box::new(std::io::Cursor::new(content.to_vec()));
            log.put(&file.id().unwrap(), meta.clone(), content).await.unwrap();
        };
        put(WalFile::Segment(whole), &vec![7; 1 << 20]).await;
        put(WalFile::Piece(pieced, 0, 5), b"begin").await;
        put(WalFile::Piece(pieced, 3, 9), b"in and").await;
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("file");
        let left = || std::fs::read_dir(folder.path()).unwrap().count();
        fetch_whole(&log, whole, &to).await.unwrap();
        assert!(std::fs::read(&to).unwrap() == vec![7; 1 << 20]);
        std::fs::remove_file(&to).unwrap();
        for missing in [pieced, pieced.next(size)] {
            assert_eq!(fetch_whole(&log, missing, &to).await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(left(), 0);
        }
        let missing = WalFile::Segment(pieced.next(size));
        assert_eq!(fetch(&log, missing, &to).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(left(), 0);
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(fetch(&log, WalFile::Segment(pieced), &fifo).await.unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(fetch_whole(&log, whole, &fifo).await.unwrap_err().kind(), ErrorKind::Usage);
        std::fs::remove_file(&fifo).unwrap();
        fetch(&log, WalFile::Segment(pieced), &to).await.unwrap();
        let read = std::fs::read(&to).unwrap();
        assert!(read.len() == 1 << 20 && read.starts_with(b"begin and\0"), "{:?}", &read[..12]);
    }

    #[test]
    fn pieces_that_overlap_are_chosen_so_that_none_is_missing() {
        assert_eq!(cover(vec![(5, 9), (0, 3), (3, 5), (0, 5)]), [(0, 5), (5, 9)]);
        assert_eq!(cover(vec![(1, 9)]), []);
        assert_eq!(cover(vec![(0, 4), (6, 9)]), [(0, 4)]);
        assert_eq!(cover(vec![(0, 4), (2, 9), (4, 6)]), [(0, 4), (2, 9)]);
    }

    #[tokio::test]
    async fn a_folder_that_is_missing_is_no_segment_that_is_missing() {
        let log = SegmentLog::new(Arc::new(MemoryLog::default()), SourceName::new("db").unwrap());
        let segment = WalSegment::numbered(1, 3, SegmentSize::DEFAULT);
        let error = fetch(&log, WalFile::Segment(segment), Path::new("/nowhere/at/all")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    }
}
