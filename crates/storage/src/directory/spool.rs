//! Keeps contents until their turn comes: small ones in memory, the rest in one unnamed temporary file.
//!
//! Invariant: all contents together hold at most [`MEMORY_BYTES`] and one piece per open file in memory; what is
//! dropped gives its memory and its disk space back at once.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::FallocateFlags;

/// A content that grows past this goes to disk.
const BUFFER_BYTES: usize = 1024 * 1024;
/// When all contents together hold more than this in memory, those that grow go to disk earlier.
const MEMORY_BYTES: usize = 32 * 1024 * 1024;
/// Space in the temporary file is given out in extents that grow with their file, from small to this.
const MAX_EXTENT_BYTES: u64 = 1024 * 1024 * 1024;
/// A file with more stretches of data and holes than this has its further holes kept as zero bytes.
const MAX_SEGMENTS: usize = 65_536;
/// The size of the pieces in which contents are handed on.
const PIECE_BYTES: usize = 256 * 1024;

/// Where contents wait.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    memory: AtomicUsize,
    disk: Mutex<Disk>,
}

#[derive(Debug, Default)]
struct Disk {
    file: Option<Arc<File>>,
    end: u64,
    used: u64,
}

impl Spool {
    /// A spool whose temporary file, if it ever needs one, lies in `folder` and has no name.
    pub(super) fn new(folder: &Path) -> Arc<Self> {
        Arc::new(Self { folder: folder.to_owned(), memory: AtomicUsize::new(0), disk: Mutex::default() })
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(self: &Arc<Self>, capacity: u64) -> io::Result<Extent> {
        let mut disk = self.disk();
        let file = match &disk.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(disk.file.insert(Arc::new(tempfile::tempfile_in(&self.folder)?))),
        };
        let at = disk.end;
        disk.end += capacity;
        disk.used += capacity;
        drop(disk);
        Ok(Extent { spool: Arc::clone(self), file, at, capacity, length: 0 })
    }
}

/// A stretch of the temporary file.
#[derive(Debug)]
struct Extent {
    spool: Arc<Spool>,
    file: Arc<File>,
    at: u64,
    capacity: u64,
    length: u64,
}

impl Drop for Extent {
    fn drop(&mut self) {
        let mut disk = self.spool.disk();
        disk.used -= self.capacity;
        if disk.used == 0 {
            disk.end = 0;
            // A file that keeps its length wastes space for a while, nothing else.
            let _kept = self.file.set_len(0);
            return;
        }
        if disk.end == self.at + self.capacity {
            disk.end = self.at;
        }
        if self.length > 0 {
            // File systems that cannot punch holes give the space back when the spool is empty.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _kept = rustix::fs::fallocate(&*self.file, flags, self.at, self.length);
        }
    }
}

/// Bytes in memory that count against [`MEMORY_BYTES`].
#[derive(Debug)]
struct Held {
    spool: Arc<Spool>,
    bytes: Vec<u8>,
}

impl Held {
    fn push(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.spool.memory.fetch_add(data.len(), Ordering::Relaxed);
    }

    fn clear(&mut self) {
        self.spool.memory.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.bytes = Vec::new();
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
    /// So many bytes of data.
    Data(u64),
    /// So many zero bytes that are kept nowhere.
    Hole(u64),
}

/// Takes one content.
#[derive(Debug)]
pub(super) struct SpoolWriter {
    buffer: Held,
    extents: Vec<Extent>,
    segments: Vec<Segment>,
}

/// Whether a [`SpoolWriter`] wants [`SpoolWriter::flush`] before more is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffer {
    HasRoom,
    IsFull,
}

impl SpoolWriter {
    pub(super) fn new(spool: &Arc<Spool>) -> Self {
        let buffer = Held { spool: Arc::clone(spool), bytes: Vec::new() };
        Self { buffer, extents: Vec::new(), segments: Vec::new() }
    }

    /// Appends bytes, at most a piece at a time.
    pub(super) fn push(&mut self, data: &[u8]) -> Buffer {
        self.buffer.push(data);
        match self.segments.last_mut() {
            Some(Segment::Data(length)) => *length += data.len() as u64,
            _ if data.is_empty() => {}
            _ => self.segments.push(Segment::Data(data.len() as u64)),
        }
        let crowded = self.buffer.spool.memory.load(Ordering::Relaxed) > MEMORY_BYTES;
        if self.buffer.bytes.len() >= BUFFER_BYTES || crowded { Buffer::IsFull } else { Buffer::HasRoom }
    }

    /// Appends a hole; `false` when it must be written as zero bytes because there are too many.
    pub(super) fn hole(&mut self, length: u64) -> bool {
        let crowded = self.segments.len() + 1 >= MAX_SEGMENTS;
        match self.segments.last_mut() {
            Some(Segment::Hole(hole)) => *hole += length,
            _ if length == 0 => {}
            _ if crowded => return false,
            _ => self.segments.push(Segment::Hole(length)),
        }
        true
    }

    /// Moves what is in memory to disk. Blocks.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut rest = &self.buffer.bytes[..];
        while !rest.is_empty() {
            if self.extents.last().is_none_or(|last| last.length == last.capacity) {
                let so_far: u64 = self.extents.iter().map(|extent| extent.length).sum();
                let capacity = so_far.clamp(rest.len() as u64, MAX_EXTENT_BYTES.max(rest.len() as u64));
                self.extents.push(self.buffer.spool.allocate(capacity)?);
            }
            let Some(last) = self.extents.last_mut() else { break };
            let room = last.capacity - last.length;
            let count = usize::try_from(room).map_or(rest.len(), |room| room.min(rest.len()));
            last.file.write_all_at(&rest[..count], last.at + last.length)?;
            last.length += count as u64;
            rest = &rest[count..];
        }
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(self) -> Spooled {
        Spooled { extents: self.extents, tail: self.buffer, segments: self.segments }
    }
}

/// A complete content.
#[derive(Debug)]
pub(super) struct Spooled {
    extents: Vec<Extent>,
    tail: Held,
    segments: Vec<Segment>,
}

impl Spooled {
    /// Its stretches of data and holes, in order, never two of a kind in a row.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Writes the data, without the holes. Blocks.
    pub(super) fn copy_data(&self, to: &mut impl Write) -> io::Result<()> {
        let mut buffer = Vec::new();
        for extent in &self.extents {
            let mut done = 0;
            while done < extent.length {
                let count = (extent.length - done).min(PIECE_BYTES as u64);
                buffer.resize(count as usize, 0);
                extent.file.read_exact_at(&mut buffer, extent.at + done)?;
                to.write_all(&buffer)?;
                done += count;
            }
        }
        to.write_all(&self.tail.bytes)
    }

    /// Reads it piece by piece.
    pub(super) fn into_pieces(self) -> SpooledPieces {
        let segments = self.segments.into_iter();
        SpooledPieces {
            extents: self.extents.into_iter(),
            extent: None,
            tail: Bytes::from_owner(self.tail),
            segments,
            left: 0,
        }
    }
}

/// Reads a content piece by piece.
#[derive(Debug)]
pub(super) struct SpooledPieces {
    extents: std::vec::IntoIter<Extent>,
    /// The extent that is being read, and how much of it was.
    extent: Option<(Extent, u64)>,
    tail: Bytes,
    segments: std::vec::IntoIter<Segment>,
    /// What is left of the stretch of data that is being read.
    left: u64,
}

/// What comes next of a content.
#[derive(Debug)]
pub(super) enum Next {
    Hole(u64),
    Ready(Bytes),
    /// To be read from disk, with [`DiskPiece::read`].
    OnDisk(DiskPiece),
}

/// A piece that lies in the temporary file.
#[derive(Debug)]
pub(super) struct DiskPiece {
    file: Arc<File>,
    at: u64,
    length: usize,
}

impl DiskPiece {
    /// Blocks.
    pub(super) fn read(&self) -> io::Result<Bytes> {
        let mut buffer = vec![0; self.length];
        self.file.read_exact_at(&mut buffer, self.at)?;
        Ok(Bytes::from(buffer))
    }
}

impl SpooledPieces {
    /// The next piece. A piece on disk must be read before the one after it is asked for.
    pub(super) fn next(&mut self) -> Option<Next> {
        if self.left == 0 {
            match self.segments.next()? {
                Segment::Hole(length) => return Some(Next::Hole(length)),
                Segment::Data(length) => self.left = length,
            }
        }
        let most = self.left.min(PIECE_BYTES as u64);
        if self.extent.as_ref().is_none_or(|(extent, done)| *done == extent.length) {
            self.extent = self.extents.next().map(|extent| (extent, 0));
        }
        let Some((extent, done)) = &mut self.extent else {
            let count = most.min(self.tail.len() as u64);
            self.left -= count;
            return Some(Next::Ready(self.tail.split_to(count as usize)));
        };
        let count = most.min(extent.length - *done);
        let piece = DiskPiece { file: Arc::clone(&extent.file), at: extent.at + *done, length: count as usize };
        *done += count;
        self.left -= count;
        Some(Next::OnDisk(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(spooled: Spooled) -> (Vec<u8>, Vec<u64>) {
        let (mut data, mut holes) = (Vec::new(), Vec::new());
        let mut pieces = spooled.into_pieces();
        while let Some(next) = pieces.next() {
            match next {
                Next::Hole(length) => holes.push(length),
                Next::Ready(bytes) => data.extend_from_slice(&bytes),
                Next::OnDisk(piece) => data.extend_from_slice(&piece.read().unwrap()),
            }
        }
        (data, holes)
    }

    fn fill(writer: &mut SpoolWriter, length: usize, seed: u8) -> Vec<u8> {
        let data: Vec<u8> = (0..length).map(|at| (at / 7) as u8 ^ seed).collect();
        for piece in data.chunks(100_000) {
            if writer.push(piece) == Buffer::IsFull {
                writer.flush().unwrap();
            }
        }
        data
    }

    #[test]
    fn contents_that_grow_together_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path());
        let (mut a, mut b) = (SpoolWriter::new(&spool), SpoolWriter::new(&spool));
        let mut expected = (Vec::new(), Vec::new());
        for round in 0..5 {
            expected.0.extend(fill(&mut a, 1_500_000, round));
            expected.1.extend(fill(&mut b, 700_000, 100 + round));
            assert!(a.hole(5000));
        }
        let (a, b) = (a.finish(), b.finish());
        let mut copied = Vec::new();
        a.copy_data(&mut copied).unwrap();
        assert!(copied == expected.0);
        assert!(all(a) == (expected.0, vec![5000; 5]));
        assert!(all(b) == (expected.1, vec![]));
    }

    #[test]
    fn memory_is_bounded_and_everything_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path());
        let mut waiting = Vec::new();
        for seed in 0..200 {
            let mut writer = SpoolWriter::new(&spool);
            let data = fill(&mut writer, 900_000, seed);
            waiting.push((writer.finish(), data));
            assert!(spool.memory.load(Ordering::Relaxed) <= MEMORY_BYTES + BUFFER_BYTES);
        }
        assert!(spool.disk().used > 0, "most of it is on disk");
        for (spooled, data) in waiting.drain(..) {
            assert!(all(spooled) == (data, vec![]));
        }
        assert_eq!(spool.memory.load(Ordering::Relaxed), 0);
        let disk = spool.disk();
        assert_eq!((disk.used, disk.end), (0, 0));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the temporary file has no name");
    }

    #[test]
    fn too_many_holes_become_zero_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = SpoolWriter::new(&Spool::new(folder.path()));
        let mut refused = 0;
        for _ in 0..MAX_SEGMENTS {
            writer.push(b"x");
            refused += usize::from(!writer.hole(1));
        }
        assert_eq!(refused, MAX_SEGMENTS / 2 + 1);
        assert!(writer.finish().segments().len() <= MAX_SEGMENTS);
    }
}
