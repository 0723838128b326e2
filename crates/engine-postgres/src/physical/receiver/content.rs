//! One file on its way from an archive into the tree: as it is, or put together from changed and kept pages.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::tree::{EntryKind, TreePath};
use backup_core::writer::FileWriter;
use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

use super::super::incremental::{IncrementalReader, Patch};
use super::super::ledger::Received;
use super::super::suspects::{PageCheck, Suspects};
use super::super::tar::TarEntry;
use super::{Shape, tree_entry};
use crate::wal::{PAGE_HEADER_BYTES, PageHeader, WalSegment};

/// `backup_label` has some three hundred bytes.
const MAX_LABEL: usize = 64 * 1024;
/// The lines of the label that only an increment has, and a full backup must not have.
const LABEL_OF_INCREMENT: &str = "INCREMENTAL FROM ";

/// CRC-32C as the server computes it.
pub(crate) fn crc32c() -> Digest {
    Digest::new(CrcAlgorithm::Crc32Iscsi)
}

/// How the bytes that arrive become the file.
#[derive(Debug)]
pub(crate) struct Content {
    writer: FileWriter,
    how: How,
}

#[derive(Debug)]
enum How {
    Plain,
    Label(Vec<u8>),
    Wal { segment: WalSegment, shape: Shape, head: BytesMut },
    Patched(Box<Patching>),
}

#[derive(Debug)]
struct Patching {
    reader: IncrementalReader,
    page_bytes: u64,
    /// The length of the file in the earlier snapshot.
    earlier: u64,
    /// The length that it will have.
    bytes: u64,
    /// How much of it is there.
    at: u64,
    /// Of what was written; `None` from the first page on that was kept.
    crc: Option<Digest>,
}

impl Content {
    pub(super) fn plain(writer: FileWriter) -> Self {
        Self { writer, how: How::Plain }
    }

    pub(super) fn label(writer: FileWriter) -> Self {
        Self { writer, how: How::Label(Vec::new()) }
    }

    pub(super) fn wal(writer: FileWriter, segment: WalSegment, shape: Shape) -> Self {
        Self { writer, how: How::Wal { segment, shape, head: BytesMut::new() } }
    }

    pub(super) fn patched(writer: FileWriter, earlier: u64, shape: Shape) -> Self {
        let patching = Patching {
            reader: IncrementalReader::new(shape.page_bytes as usize, shape.segment_blocks),
            page_bytes: u64::from(shape.page_bytes),
            earlier,
            bytes: 0,
            at: 0,
            crc: Some(crc32c()),
        };
        Self { writer, how: How::Patched(Box::new(patching)) }
    }
}

/// A file that is being received.
#[derive(Debug)]
pub(crate) struct FileInHand {
    sent_path: Vec<u8>,
    path: TreePath,
    entry: TarEntry,
    content: Content,
    pages: Option<PageCheck>,
    crc: Digest,
    bytes: u64,
}

impl FileInHand {
    pub(super) fn new(
        sent_path: Vec<u8>,
        path: TreePath,
        entry: TarEntry,
        content: Content,
        pages: Option<PageCheck>,
    ) -> Self {
        Self { sent_path, path, entry, content, pages, crc: crc32c(), bytes: 0 }
    }

    pub(super) fn is_wal(&self) -> bool {
        matches!(self.content.how, How::Wal { .. })
    }

    /// Whether it is a label that says that a standby was saved.
    pub(super) fn is_of_standby(&self) -> bool {
        let line = |line: &[u8]| line == b"BACKUP FROM: standby";
        matches!(&self.content.how, How::Label(label) if label.split(|byte| *byte == b'\n').any(line))
    }

    pub(super) async fn take(&mut self, data: Bytes, suspects: &mut Suspects) -> Result<()> {
        self.bytes += data.len() as u64;
        // Segments of the log are not in the server's list; their records have checksums of their own.
        if !self.is_wal() {
            self.crc.update(&data);
        }
        match &mut self.content.how {
            How::Plain => {
                if let Some(pages) = &mut self.pages {
                    pages.take(&data, suspects);
                }
                self.content.writer.write(data).await
            }
            How::Label(label) => {
                label.extend_from_slice(&data);
                if label.len() <= MAX_LABEL {
                    return Ok(());
                }
                Err(Error::new(ErrorKind::Damaged, "the server's backup_label is too long"))
            }
            How::Wal { segment, shape, head } => {
                let before = head.len();
                head.extend_from_slice(&data[..data.len().min(PAGE_HEADER_BYTES - before)]);
                if before < PAGE_HEADER_BYTES && head.len() == PAGE_HEADER_BYTES {
                    check_segment(head, *segment, *shape)?;
                }
                suspects.log(&data);
                self.content.writer.write(data).await
            }
            How::Patched(patching) => {
                patching.reader.push(&data);
                patching.apply(&mut self.content.writer, self.pages.as_ref(), suspects).await
            }
        }
    }

    /// Ends the file and says what it was.
    pub(super) async fn finish(self, suspects: &mut Suspects) -> Result<Received> {
        let Self { sent_path, path, entry, content, pages, crc, bytes } = self;
        let crc = crc.finalize() as u32;
        let Content { mut writer, how } = content;
        let (stored_bytes, stored_crc) = match how {
            How::Plain => (bytes, Some(crc)),
            How::Wal { segment, shape, .. } => {
                if bytes != shape.wal_segment.bytes() {
                    let message = format!("the segment {segment} of the log has {bytes} bytes");
                    return Err(Error::new(ErrorKind::Incomplete, message).hint("run the backup again"));
                }
                (bytes, None)
            }
            How::Label(label) => {
                let label = without_increment(&label)?;
                let mut digest = crc32c();
                digest.update(&label);
                let length = label.len() as u64;
                writer.write(Bytes::from(label)).await?;
                (length, Some(digest.finalize() as u32))
            }
            How::Patched(mut patching) => {
                patching.apply(&mut writer, pages.as_ref(), suspects).await?;
                patching.finish(&mut writer).await?
            }
        };
        writer.finish(tree_entry(path.clone(), EntryKind::File { size: stored_bytes }, &entry)).await?;
        let stored_path = path.as_bytes().to_vec();
        Ok(Received { path: sent_path, bytes, crc, stored_path, stored_bytes, stored_crc })
    }
}

impl Patching {
    /// Writes what was pushed: the pages that came, and before each those that did not.
    async fn apply(
        &mut self,
        writer: &mut FileWriter,
        pages: Option<&PageCheck>,
        suspects: &mut Suspects,
    ) -> Result<()> {
        loop {
            match self.reader.patch()? {
                Patch::More => return Ok(()),
                Patch::Begin { blocks } => self.bytes = u64::from(blocks) * self.page_bytes,
                Patch::Block { number, page } => {
                    self.fill(writer, u64::from(number) * self.page_bytes).await?;
                    if let Some(pages) = pages {
                        pages.look_at(number, &page, suspects);
                    }
                    if let Some(crc) = &mut self.crc {
                        crc.update(&page);
                    }
                    self.at += page.len() as u64;
                    writer.write(page).await?;
                }
            }
        }
    }

    /// Brings the file up to `to`: as it was, and beyond its earlier end with zeroes (`pg_combinebackup` does the same).
    async fn fill(&mut self, writer: &mut FileWriter, to: u64) -> Result<()> {
        let kept = self.earlier.min(to).saturating_sub(self.at);
        if kept > 0 {
            writer.keep(kept).await?;
            self.at += kept;
        }
        let zeroes = to - self.at;
        if zeroes > 0 {
            writer.hole(zeroes).await?;
            self.at += zeroes;
        }
        if kept + zeroes > 0 {
            self.crc = None;
        }
        Ok(())
    }

    /// Writes the end, and tells length and checksum.
    async fn finish(mut self, writer: &mut FileWriter) -> Result<(u64, Option<u32>)> {
        self.fill(writer, self.bytes).await?;
        self.reader.finish()?;
        Ok((self.bytes, self.crc.map(|crc| crc.finalize() as u32)))
    }
}

/// A label of a full backup, which the result is.
fn without_increment(label: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(label)
        .map_err(|source| Error::new(ErrorKind::Damaged, "the server's backup_label is no text").caused_by(source))?;
    let kept = text.split_inclusive('\n').filter(|line| !line.starts_with(LABEL_OF_INCREMENT));
    Ok(kept.collect::<String>().into_bytes())
}

fn check_segment(head: &[u8], segment: WalSegment, shape: Shape) -> Result<()> {
    let header = PageHeader::parse(head).map_err(|error| {
        Error::new(error.kind(), format!("the segment {segment} of the log is damaged")).caused_by(error)
    })?;
    header.check(segment)?;
    if header.system != shape.system_identifier {
        let message = format!("the segment {segment} of the log belongs to another server ({})", header.system);
        return Err(Error::new(ErrorKind::Damaged, message).hint("look into pg_wal of the server: who put it there?"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_an_increment_becomes_that_of_a_full_backup() {
        let label =
            b"START WAL LOCATION: 0/2000028\nINCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\nLABEL: x\n";
        assert_eq!(without_increment(label).unwrap(), b"START WAL LOCATION: 0/2000028\nLABEL: x\n");
    }

    #[test]
    fn crc_is_that_of_the_server() {
        let mut digest = crc32c();
        digest.update(b"123456789");
        assert_eq!(digest.finalize(), 0xe306_9283);
    }
}
