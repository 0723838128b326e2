//! Sorts the records of a tree whose entries came in any order: in memory, and past a limit by merging sorted runs
//! that lie in temporary files without names.
//!
//! Invariant: memory is bounded by [`BUFFER_BYTES`], [`MAX_RUNS`] and [`READ_BYTES`], however many records there are;
//! records leave in strictly ascending order of their paths.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::TreePath;

/// Records are sorted in memory until they hold so many bytes.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// What a record costs in memory besides its bytes.
const RECORD_BYTES: usize = 96;
/// So many runs of a level become one of the next: 64 runs of 8 MiB are the listing of some two million files.
const MAX_RUNS: usize = 64;
/// So much of each run is read ahead.
const READ_BYTES: usize = 64 * 1024;

/// A record of the listing and, when the file has one, its record of the page map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sortable {
    pub(super) path: TreePath,
    pub(super) size: u64,
    pub(super) listed: Vec<u8>,
    pub(super) mapped: Vec<u8>,
}

/// Takes records in any order.
#[derive(Debug)]
pub(super) struct Sorter {
    folder: PathBuf,
    limit: usize,
    buffer: Vec<Sortable>,
    bytes: usize,
    levels: Vec<Level>,
}

/// Sorted runs of about the same length; those of each level are [`MAX_RUNS`] times as long as those of the one before.
#[derive(Debug)]
struct Level {
    /// It has no name.
    file: Arc<File>,
    /// Where in it the runs begin and end.
    runs: Vec<(u64, u64)>,
}

impl Sorter {
    /// A sorter whose temporary files, if it ever needs any, lie in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self::limited(folder, BUFFER_BYTES)
    }

    fn limited(folder: &Path, limit: usize) -> Self {
        Self { folder: folder.to_owned(), limit, buffer: Vec::new(), bytes: 0, levels: Vec::new() }
    }

    /// Adds a record. `true`: the buffer is full, [`Sorter::spill`] it.
    pub(super) fn push(&mut self, record: Sortable) -> bool {
        self.bytes += record.path.as_bytes().len() + record.listed.len() + record.mapped.len() + RECORD_BYTES;
        self.buffer.push(record);
        self.bytes >= self.limit
    }

    /// Writes what is in memory as a sorted run. Blocks.
    pub(super) fn spill(mut self) -> Result<Self> {
        let mut buffer = std::mem::take(&mut self.buffer);
        self.bytes = 0;
        buffer.sort_by(|a, b| a.path.cmp(&b.path));
        match self.write_run(0, buffer.into_iter().map(Ok)).and_then(|()| self.merge_levels()) {
            Ok(()) => Ok(self),
            Err(source) => Err(Error::io("cannot write a temporary file for a tree's listing", &self.folder, source)),
        }
    }

    fn write_run(&mut self, level: usize, records: impl Iterator<Item = io::Result<Sortable>>) -> io::Result<()> {
        while self.levels.len() <= level {
            self.levels.push(Level { file: Arc::new(tempfile::tempfile_in(&self.folder)?), runs: Vec::new() });
        }
        let Level { file, runs } = &mut self.levels[level];
        let start = (&**file).seek(SeekFrom::End(0))?;
        let mut out = BufWriter::with_capacity(READ_BYTES, &**file);
        for record in records {
            put(&mut out, &record?)?;
        }
        out.flush()?;
        drop(out);
        runs.push((start, (&**file).stream_position()?));
        Ok(())
    }

    /// Merges the runs of levels that are full into one of the next, and gives their space back.
    fn merge_levels(&mut self) -> io::Result<()> {
        let mut level = 0;
        while self.levels.get(level).is_some_and(|level| level.runs.len() >= MAX_RUNS) {
            let merge = Merge::new(self.levels[level].readers().collect(), Vec::new())?;
            self.write_run(level + 1, merge)?;
            self.levels[level].runs.clear();
            self.levels[level].file.set_len(0)?;
            level += 1;
        }
        Ok(())
    }

    /// The records in the order of their paths. Reading them blocks for a moment at a time when there are runs.
    pub(super) fn finish(mut self) -> Result<Sorted> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.sort_by(|a, b| a.path.cmp(&b.path));
        let readers = self.levels.iter().flat_map(Level::readers).collect();
        let merge = Merge::new(readers, buffer).map_err(unreadable)?;
        Ok(Sorted { merge, last: None })
    }
}

impl Level {
    fn readers(&self) -> impl Iterator<Item = RunReader> {
        let open = |(start, end): &(u64, u64)| Stretch { file: Arc::clone(&self.file), at: *start, end: *end };
        self.runs.iter().map(move |run| BufReader::with_capacity(READ_BYTES, open(run)))
    }
}

/// Gives sorted records back.
#[derive(Debug)]
pub(super) struct Sorted {
    merge: Merge,
    last: Option<TreePath>,
}

impl Sorted {
    /// The next record.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when a path came twice; also when the temporary file cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Sortable>> {
        let Some(record) = self.merge.next().transpose().map_err(unreadable)? else { return Ok(None) };
        if self.last.as_ref() == Some(&record.path) {
            return Err(Error::new(ErrorKind::Internal, format!("the entry `{}` came twice", record.path)));
        }
        self.last = Some(record.path.clone());
        Ok(Some(record))
    }
}

fn unreadable(source: io::Error) -> Error {
    Error::from_io("cannot read a temporary file with a tree's listing", source)
}

/// A run while it is read, at its own position: runs share one file.
#[derive(Debug)]
struct Stretch {
    file: Arc<File>,
    at: u64,
    end: u64,
}

type RunReader = BufReader<Stretch>;

impl Read for Stretch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min((self.end - self.at) as usize);
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

/// Records of several sorted sources as one.
#[derive(Debug)]
struct Merge {
    runs: Vec<RunReader>,
    memory: std::vec::IntoIter<Sortable>,
    /// The first record of each source; the number of a source that is no run stands for memory.
    heads: BinaryHeap<Reverse<Head>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    record: Sortable,
    source: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.record.path.cmp(&other.record.path).then(self.source.cmp(&other.source))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Merge {
    fn new(runs: Vec<RunReader>, memory: Vec<Sortable>) -> io::Result<Self> {
        let mut merge = Self { runs, memory: memory.into_iter(), heads: BinaryHeap::new() };
        for source in 0..=merge.runs.len() {
            if let Some(record) = merge.read(source)? {
                merge.heads.push(Reverse(Head { record, source }));
            }
        }
        Ok(merge)
    }

    fn read(&mut self, source: usize) -> io::Result<Option<Sortable>> {
        match self.runs.get_mut(source) {
            Some(run) => take(run),
            None => Ok(self.memory.next()),
        }
    }
}

impl Iterator for Merge {
    type Item = io::Result<Sortable>;

    fn next(&mut self) -> Option<Self::Item> {
        let source = self.heads.peek()?.0.source;
        let next = match self.read(source) {
            Ok(next) => next,
            Err(error) => return Some(Err(error)),
        };
        let mut head = self.heads.peek_mut()?;
        let record = match next {
            Some(record) => std::mem::replace(&mut head.0.record, record),
            None => PeekMut::pop(head).0.record,
        };
        Some(Ok(record))
    }
}

/// Writes a record into a run: four lengths, then path and records.
fn put(out: &mut impl Write, record: &Sortable) -> io::Result<()> {
    let path = record.path.as_bytes();
    for number in [record.size, path.len() as u64, record.listed.len() as u64, record.mapped.len() as u64] {
        out.write_all(&number.to_le_bytes())?;
    }
    out.write_all(path)?;
    out.write_all(&record.listed)?;
    out.write_all(&record.mapped)
}

fn take(run: &mut RunReader) -> io::Result<Option<Sortable>> {
    if run.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut numbers = [0; 4];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        run.read_exact(&mut bytes)?;
        *number = u64::from_le_bytes(bytes);
    }
    let [size, path, listed, mapped] = numbers;
    let mut bytes = |length: u64| {
        let mut bytes = vec![0; length as usize];
        run.read_exact(&mut bytes).map(|()| bytes)
    };
    let path = TreePath::new(bytes(path)?).map_err(io::Error::other)?;
    Ok(Some(Sortable { path, size, listed: bytes(listed)?, mapped: bytes(mapped)? }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(path: &str, bytes: usize) -> Sortable {
        Sortable {
            path: TreePath::new(path).unwrap(),
            size: bytes as u64,
            listed: vec![path.len() as u8; bytes],
            mapped: vec![7; bytes / 2],
        }
    }

    fn sort(records: &[Sortable], limit: usize) -> Result<Vec<Sortable>> {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::limited(folder.path(), limit);
        for record in records {
            if sorter.push(record.clone()) {
                sorter = sorter.spill()?;
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the temporary file has no name");
        let mut leaving = sorter.finish()?;
        std::iter::from_fn(|| leaving.next().transpose()).collect()
    }

    proptest! {
        #[test]
        fn whatever_the_order_records_leave_sorted(
            // Not a hash set: its order is another one each time.
            paths in proptest::collection::btree_set("[a-c]{1,3}(/[a-c!-]{2,4}){0,2}", 0..300)
                .prop_map(Vec::from_iter).prop_shuffle(),
            limit in 1..20_000usize,
        ) {
            let records: Vec<Sortable> = paths.iter().map(|path| record(path, path.len() * 3)).collect();
            let mut expected = records.clone();
            expected.sort_by(|a, b| a.path.cmp(&b.path));
            prop_assert_eq!(sort(&records, limit).unwrap(), expected);
        }
    }

    #[test]
    fn more_runs_than_are_merged_at_a_time() {
        let records: Vec<Sortable> =
            (0..MAX_RUNS * MAX_RUNS + 100).map(|n| record(&format!("{:05}", n * 7919 % 10_007), n % 50)).collect();
        let mut expected = records.clone();
        expected.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(sort(&records, 1).unwrap() == expected);
    }

    #[test]
    fn a_path_that_comes_twice_is_refused_in_memory_and_across_runs() {
        for limit in [1, usize::MAX] {
            let error = sort(&[record("b", 1), record("a", 2), record("b", 3)], limit).unwrap_err();
            assert!(error.to_string().contains("`b` came twice"), "{error}");
        }
    }
}
