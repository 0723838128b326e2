//! Checking a base backup without a server: the tree against its own manifest, its pages, and the log that it needs.
//!
//! Invariant: damage is a finding; an error means that it could not be looked at. Memory grows with the number of files
//! (some fifty bytes each), never with their content.

use std::collections::HashMap;

use backup_core::engine::{Finding, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::sink::{FileContent, Piece, StoredEntry};
use backup_core::{ArtifactName, BackupReader, RunContext};
use sha2::{Digest as _, Sha256};

use super::backup::{MANIFEST, TREE};
use super::details::{DamagedPage, PhysicalDetails};
use super::files::RelationFile;
use super::receiver::crc32c;
use super::server_manifest::{Line, ManifestReader, WalRange};
use super::suspects::{LookedAt, PageCheck, Suspects};
use crate::wal::{PAGE_HEADER_BYTES, PageHeader, SegmentSize, WalFile, WalSegment};

/// More files than this are no cluster.
const MAX_FILES: usize = 50_000_000;
/// What is wrong is told up to here.
const MAX_FINDINGS: usize = 1000;
/// Zeroes are counted into checksums in pieces of this size.
const ZEROES: &[u8] = &[0; 64 * 1024];

/// The first bytes of the SHA-256 of a path.
pub(super) type PathKey = [u8; 16];

pub(super) fn key(path: &[u8]) -> PathKey {
    let digest = Sha256::digest(path);
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    bytes: u64,
    crc: u32,
}

/// Looks at everything that a base backup has.
pub(crate) async fn verify(
    cx: &RunContext,
    from: &BackupReader,
    details: &PhysicalDetails,
    report: &mut VerifyReport,
) -> Result<()> {
    let size = match SegmentSize::new(details.wal_segment_size) {
        Ok(size) => size,
        Err(error) => {
            report.findings.push(finding(from, error.chain())?);
            return Ok(());
        }
    };
    let system = details.system_identifier.parse().unwrap_or_default();
    let suspects = Suspects::new(details.start_lsn, size, system);
    let (seen, ranges, log) = (HashMap::new(), Vec::new(), Vec::new());
    let mut check = Check { cx, from, details, report, size, suspects, seen, ranges, log };
    check.tree().await?;
    check.pages()?;
    check.log_is_whole()?;
    Ok(())
}

fn finding(from: &BackupReader, problem: String) -> Result<Finding> {
    let (snapshot, source) = (from.manifest().id.clone(), from.source().clone());
    Ok(Finding { snapshot, source, artifact: ArtifactName::new(TREE)?, problem })
}

struct Check<'a> {
    cx: &'a RunContext,
    from: &'a BackupReader,
    details: &'a PhysicalDetails,
    report: &'a mut VerifyReport,
    size: SegmentSize,
    suspects: Suspects,
    seen: HashMap<PathKey, Seen>,
    ranges: Vec<WalRange>,
    log: Vec<WalSegment>,
}

impl Check<'_> {
    fn find(&mut self, problem: String) -> Result<()> {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(finding(self.from, problem)?);
        }
        Ok(())
    }

    /// Reads every file; then the manifest, which speaks of them.
    async fn tree(&mut self) -> Result<()> {
        let mut tree = match self.from.tree(&ArtifactName::new(TREE)?).await {
            Ok(tree) => tree,
            Err(error) if is_damage(&error) => return self.find(error.chain()),
            Err(error) => return Err(error),
        };
        let mut manifest = None;
        let mut files = 0_u64;
        loop {
            let stored = match self.cx.unless_cancelled(tree.next()).await {
                Ok(Some(stored)) => stored,
                Ok(None) => break,
                Err(error) if is_damage(&error) => return self.find(error.chain()),
                Err(error) => return Err(error),
            };
            let StoredEntry { entry, content: Some(content) } = stored else { continue };
            files += 1;
            if entry.path.as_bytes() == MANIFEST.as_bytes() {
                manifest = Some(content);
                continue;
            }
            let path = entry.path.to_string();
            match self.file(&path, content).await {
                Ok(seen) => {
                    if self.seen.len() == MAX_FILES {
                        return Err(Error::new(ErrorKind::Unsupported, "the tree has too many files"));
                    }
                    self.seen.insert(key(entry.path.as_bytes()), seen);
                }
                Err(error) if is_damage(&error) => self.find(format!("{path}: {}", error.chain()))?,
                Err(error) => return Err(error),
            }
        }
        self.report.checked.push(format!("{files} files of the data directory read"));
        match manifest {
            Some(manifest) => match self.manifest(manifest).await {
                Err(error) if is_damage(&error) => self.find(format!("{MANIFEST}: {}", error.chain())),
                result => result,
            },
            None => self.find("the server's manifest is missing".to_owned()),
        }
    }

    /// One file: its checksum, its pages, and for a segment of the log its first page.
    async fn file(&mut self, path: &str, content: Box<dyn FileContent>) -> Result<Seen> {
        let relation = RelationFile::of(path).filter(|_| self.details.data_checksums);
        let looked_at = relation.map(|file| LookedAt::new(path, file, self.details.segment_blocks));
        let mut pages = looked_at.map(|file| PageCheck::new(file, self.details.block_size));
        let mut segment = segment_of(path).map(|segment| (segment, Vec::new()));
        if let Some((segment, _)) = &segment {
            self.suspects.segment(*segment);
        }
        let mut pieces = content.open().await?;
        let (mut digest, mut bytes) = (crc32c(), 0_u64);
        while let Some(piece) = self.cx.unless_cancelled(pieces.next()).await? {
            let mut take = |data: &[u8]| {
                digest.update(data);
                bytes += data.len() as u64;
                if let Some(pages) = &mut pages {
                    pages.take(data, &mut self.suspects);
                }
                if let Some((_, head)) = &mut segment {
                    let wanted = PAGE_HEADER_BYTES.saturating_sub(head.len()).min(data.len());
                    head.extend_from_slice(&data[..wanted]);
                    self.suspects.log(data);
                }
                self.cx.progress(data.len() as u64, 0);
            };
            match piece {
                Piece::Data(data) => take(&data),
                Piece::Hole(mut left) => {
                    while left > 0 {
                        let count = left.min(ZEROES.len() as u64);
                        take(&ZEROES[..count as usize]);
                        left -= count;
                    }
                }
            }
        }
        if let Some((segment, head)) = segment {
            self.segment(segment, &head, bytes)?;
        }
        Ok(Seen { bytes, crc: digest.finalize() as u32 })
    }

    fn segment(&mut self, segment: WalSegment, head: &[u8], bytes: u64) -> Result<()> {
        self.log.push(segment);
        if bytes != self.details.wal_segment_size {
            return self.find(format!("the segment {segment} of the log has {bytes} bytes"));
        }
        let header = PageHeader::parse(head).and_then(|header| header.check(segment).map(|()| header));
        match header {
            Err(error) => self.find(format!("the segment {segment} of the log: {}", error.chain())),
            Ok(header) if header.system.to_string() != self.details.system_identifier => {
                self.find(format!("the segment {segment} of the log belongs to another server ({})", header.system))
            }
            Ok(_) => Ok(()),
        }
    }

    async fn manifest(&mut self, content: Box<dyn FileContent>) -> Result<()> {
        let mut reader = ManifestReader::default();
        let mut pieces = content.open().await?;
        let (mut listed, mut without) = (0_u64, 0_u64);
        while let Some(piece) = pieces.next().await? {
            let Piece::Data(data) = piece else { continue };
            let lines = match reader.push(&data) {
                Ok(lines) => lines,
                Err(error) => return self.find(error.chain()),
            };
            for line in lines {
                match line {
                    Line::File(file) => {
                        listed += 1;
                        let (path, crc) = (file.path()?, file.crc()?);
                        without += u64::from(crc.is_none());
                        let shown = String::from_utf8_lossy(&path).into_owned();
                        match self.seen.remove(&key(&path)) {
                            None => self.find(format!("{shown} is in the manifest and not in the tree"))?,
                            Some(seen) if seen.bytes != file.size => {
                                self.find(format!("{shown} has {} bytes, not {}", seen.bytes, file.size))?;
                            }
                            Some(seen) if crc.is_some_and(|crc| crc != seen.crc) => {
                                self.find(format!("{shown} does not have the checksum of the server's manifest"))?;
                            }
                            Some(_) => {}
                        }
                    }
                    Line::Range(range) => self.ranges.push(range),
                    Line::Other(_) | Line::Checksum => {}
                }
            }
        }
        if let Err(error) = reader.finish() {
            return self.find(error.chain());
        }
        // The log is not in the manifest.
        for segment in &self.log {
            self.seen.remove(&key(format!("pg_wal/{segment}").as_bytes()));
        }
        if !self.seen.is_empty() {
            self.find(format!("{} files are in the tree and not in the manifest", self.seen.len()))?;
        }
        let sums = listed - without;
        self.report
            .checked
            .push(format!("{listed} files compared with the server's manifest, {sums} by their checksums"));
        if self.details.data_checksums {
            self.report.checked.push("the checksum of every page".to_owned());
        }
        Ok(())
    }

    /// Pages that do not have their own checksum, and that the log does not put back.
    fn pages(&mut self) -> Result<()> {
        for page in self.suspects.settle(self.details.stop_lsn).list {
            let known =
                if self.details.damaged_pages.contains(&page) { ", and had not on the server either" } else { "" };
            let DamagedPage { path, block } = page;
            self.find(format!("the page {block} of {path} does not have its own checksum{known}"))?;
        }
        Ok(())
    }

    /// The log from the beginning of the backup to its end, without a hole.
    fn log_is_whole(&mut self) -> Result<()> {
        let size = self.size;
        let (timeline, start, stop) = (self.details.timeline, self.details.start_lsn, self.details.stop_lsn);
        let last = WalSegment::containing(timeline, Lsn(stop.0.saturating_sub(1)), size);
        let mut segment = WalSegment::containing(timeline, start, size);
        let mut count = 0_u64;
        while segment <= last {
            count += 1;
            if !self.log.contains(&segment) {
                self.find(format!("the segment {segment} of the log, which the backup needs, is missing"))?;
            }
            segment = segment.next(size);
        }
        let told =
            self.ranges.iter().any(|range| range.timeline == timeline && range.start == start && range.end <= stop);
        if !told {
            self.find("the server's manifest speaks of another piece of the log".to_owned())?;
        }
        self.report.checked.push(format!("{count} segments of the log from {start} to {stop}"));
        Ok(())
    }
}

/// The segment of the log at this path of the tree.
pub(super) fn segment_of(path: &str) -> Option<WalSegment> {
    match path.strip_prefix("pg_wal/")?.parse() {
        Ok(WalFile::Segment(segment)) => Some(segment),
        _ => None,
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::NotFound)
}
