//! Reads one snapshot: its streams piece by piece, its trees entry by entry, in threads of their own.
//!
//! Invariant: the end of an artifact is reported only after its file was read to the end and its SHA-256 compared.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactKind, ArtifactRecord, Content, EntryOrder, Manifest};
use backup_core::sink::{EntryReader, FileContent, Piece, PieceReader, SnapshotReader, StoredEntry};
use backup_core::tree::{EntryKind, TreeEntry};
use backup_core::{ArtifactName, SourceName};
use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::compression::{Compression, Decoder};
use super::names::{SUMS, Sums};
use super::spool::{Next, Spool, SpoolWriter, Spooled, SpooledPieces};
use super::tar::TarReader;
use crate::blocking;

/// So many pieces, or entries, may be read ahead.
const QUEUE: usize = 16;
const PIECE_BYTES: usize = 256 * 1024;

/// Reads one snapshot.
#[derive(Debug)]
pub(super) struct DirectoryReader {
    pub(super) folder: PathBuf,
    pub(super) manifest: Manifest,
    /// `None` when it is missing or damaged.
    pub(super) sums: Option<Sums>,
}

/// Opens a file that must be an ordinary one: no link to elsewhere, no pipe to wait for.
pub(super) fn open_plain(path: &Path) -> Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(path),
        // The file is a link.
        _ if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => not_plain(path),
        _ => Error::io("cannot open the file", path, source),
    })?;
    let metadata = file.metadata().map_err(|source| Error::io("cannot look at the file", path, source))?;
    if metadata.is_file() { Ok(file) } else { Err(not_plain(path)) }
}

fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::Damaged, "a file of the snapshot is missing").with("path", path.display())
}

fn not_plain(path: &Path) -> Error {
    Error::new(ErrorKind::Damaged, "a file of the snapshot is no ordinary file").with("path", path.display())
}

/// The file of an artifact, how it is compressed, and in which order its entries lie.
pub(super) fn file_of(artifact: &ArtifactRecord) -> Result<(&ArtifactName, Compression, EntryOrder)> {
    match &artifact.content {
        Content::File { path, compression, order } => Ok((path, Compression::parse(compression)?, *order)),
        _ => Err(Error::new(ErrorKind::Damaged, "the manifest names extents where a directory has files")),
    }
}

impl DirectoryReader {
    async fn open(&self, artifact: &ArtifactRecord) -> Result<Input> {
        let (path, compression, order) = file_of(artifact)?;
        let expected = self.sums.as_ref().and_then(|sums| sums.0.get(path.as_str()).cloned());
        // The manifest has the SHA-256 of a stream's plain bytes, and nothing of the kind for a tree.
        if expected.is_none() && artifact.kind == ArtifactKind::Tree {
            let message = format!("{SUMS} has no usable line for `{path}`: nothing tells whether the tree is whole");
            let hint =
                "`stackward verify` says what is damaged; if you trust the file all the same, extract it with tar";
            return Err(Error::new(ErrorKind::Damaged, message).hint(hint));
        }
        let place = self.folder.join(path.as_str());
        blocking(move || {
            let hashed = Hashed { file: open_plain(&place)?, digest: Sha256::new() };
            let opened = Decoder::new(hashed, compression);
            let decoder = opened.map_err(|source| Error::io("cannot read the file", &place, source))?;
            Ok(Input { decoder, place, order, expected })
        })
        .await
    }
}

#[async_trait]
impl SnapshotReader for DirectoryReader {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn stream(&self, _: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        let input = self.open(artifact).await?;
        Ok(Box::new(StreamPieces(Ahead::start(move |to| read_stream(input, to))?)))
    }

    async fn tree(&self, _: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        let input = self.open(artifact).await?;
        Ok(Box::new(TreeEntries(Ahead::start(move |to| read_tree(input, to))?)))
    }
}

/// A stored file while it is read.
struct Input {
    decoder: Decoder<Hashed>,
    place: PathBuf,
    order: EntryOrder,
    expected: Option<String>,
}

/// Hashes what is read.
struct Hashed {
    file: File,
    digest: Sha256,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.digest.update(&buffer[..count]);
        Ok(count)
    }
}

/// Ends an input: nothing follows, and its bytes are those that were written.
fn finish(decoder: Decoder<Hashed>, expected: Option<&str>) -> Result<()> {
    let hashed = decoder.finish().map_err(decode_error)?;
    match expected {
        Some(expected) if hex::encode(hashed.digest.finalize()) != expected => {
            Err(Error::new(ErrorKind::Damaged, format!("a file does not have its SHA-256 of {SUMS}")))
        }
        _ => Ok(()),
    }
}

fn decode_error(source: io::Error) -> Error {
    if source.raw_os_error().is_some() {
        return Error::from_io("cannot read", source);
    }
    Error::new(ErrorKind::Damaged, "a file does not decompress").caused_by(source)
}

/// A thread that reads ahead, a bounded way.
struct Ahead<T> {
    queue: mpsc::Receiver<Result<Option<T>>>,
    ended: bool,
}

/// What the reading thread hands its items to. `false`: nobody wants them any more.
struct Handover<T>(mpsc::Sender<Result<Option<T>>>);

impl<T> Handover<T> {
    fn give(&self, item: T) -> bool {
        self.0.blocking_send(Ok(Some(item))).is_ok()
    }
}

impl<T: Send + 'static> Ahead<T> {
    fn start(work: impl FnOnce(&Handover<T>) -> Result<()> + Send + 'static) -> Result<Self> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let run = move || {
            let handover = Handover(sender);
            let end = work(&handover).map(|()| None);
            // Whoever dropped the receiver does not want to know.
            let _unwanted = handover.0.blocking_send(end);
        };
        std::thread::Builder::new()
            .name("directory".to_owned())
            .spawn(run)
            .map_err(|source| Error::from_io("cannot start a thread", source))?;
        Ok(Self { queue, ended: false })
    }

    async fn next(&mut self) -> Result<Option<T>> {
        if self.ended {
            return Ok(None);
        }
        let next = self
            .queue
            .recv()
            .await
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "the thread that reads an artifact ended")));
        self.ended = matches!(next, Ok(None));
        next
    }
}

fn read_stream(input: Input, to: &Handover<Bytes>) -> Result<()> {
    let Input { mut decoder, place, expected, .. } = input;
    let at = |error: Error| error.with("path", place.display());
    loop {
        let mut buffer = Vec::new();
        let piece = (&mut decoder).take(PIECE_BYTES as u64).read_to_end(&mut buffer);
        piece.map_err(decode_error).map_err(at)?;
        if buffer.is_empty() {
            return finish(decoder, expected.as_deref()).map_err(at);
        }
        if !to.give(Bytes::from(buffer)) {
            return Ok(());
        }
    }
}

fn read_tree(input: Input, to: &Handover<(TreeEntry, Option<Spooled>)>) -> Result<()> {
    let Input { decoder, place, order, expected } = input;
    let folder = temporary_folder();
    let at = |error: Error| match error.kind() {
        // Only the temporary file is written to.
        ErrorKind::NoSpace => error.with("folder", folder.display()).hint("free some space there, or set TMPDIR"),
        _ => error.with("path", place.display()),
    };
    let spool = Spool::new(&folder);
    let mut reader = TarReader::new(decoder, order);
    while let Some(entry) = reader.next().map_err(at)? {
        let content = if matches!(entry.kind, EntryKind::File { .. }) {
            let mut writer = SpoolWriter::new(&spool);
            reader.content(&mut writer).map_err(at)?;
            Some(writer.finish())
        } else {
            None
        };
        if !to.give((entry, content)) {
            return Ok(());
        }
    }
    finish(reader.into_inner(), expected.as_deref()).map_err(at)
}

/// Contents that wait to be restored can be large, and `/tmp` is often kept in memory.
fn temporary_folder() -> PathBuf {
    let large = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && large.is_dir() { large.to_owned() } else { std::env::temp_dir() }
}

struct StreamPieces(Ahead<Bytes>);

#[async_trait]
impl PieceReader for StreamPieces {
    async fn next(&mut self) -> Result<Option<Piece>> {
        Ok(self.0.next().await?.map(Piece::Data))
    }
}

struct TreeEntries(Ahead<(TreeEntry, Option<Spooled>)>);

#[async_trait]
impl EntryReader for TreeEntries {
    async fn next(&mut self) -> Result<Option<StoredEntry>> {
        let next = self.0.next().await?;
        Ok(next.map(|(entry, content)| {
            let content = content.map(|content| Box::new(SpooledContent(content)) as Box<dyn FileContent>);
            StoredEntry { entry, content }
        }))
    }
}

#[derive(Debug)]
struct SpooledContent(Spooled);

#[async_trait]
impl FileContent for SpooledContent {
    async fn open(self: Box<Self>) -> Result<Box<dyn PieceReader>> {
        Ok(Box::new(FilePieces(self.0.into_pieces())))
    }
}

struct FilePieces(SpooledPieces);

#[async_trait]
impl PieceReader for FilePieces {
    async fn next(&mut self) -> Result<Option<Piece>> {
        Ok(match self.0.next() {
            None => None,
            Some(Next::Hole(length)) => Some(Piece::Hole(length)),
            Some(Next::Ready(data)) => Some(Piece::Data(data)),
            Some(Next::OnDisk(piece)) => {
                let read =
                    move || piece.read().map_err(|source| Error::from_io("cannot read a temporary file", source));
                Some(Piece::Data(blocking(read).await?))
            }
        })
    }
}
