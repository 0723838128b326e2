//! One base backup, from the slot that holds its log to the seal of its tree.
//!
//! Invariant: the tree is sealed only after the server got ready again, after its own list agreed with every file that
//! arrived, and with every segment of the log that the backup needs.

use backup_core::engine::SourceSummary;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::event::Event as Told;
use backup_core::evidence::Evidence;
use backup_core::manifest::ServerRecord;
use backup_core::position::{Lsn, Position};
use backup_core::sink::ChunkHint;
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_core::writer::{ArtifactWriter, FileWriter};
use backup_core::{ArtifactName, BackupWriter, RunContext};
use bytes::Bytes;
use jiff::Timestamp;

use super::details::{DamagedPage, PhysicalDetails, PhysicalTablespace};
use super::facts::ServerFacts;
use super::increment::{self, Chosen};
use super::ledger::LedgerCheck;
use super::receiver::{Receiver, Shape};
use super::server_manifest::{Line, ManifestReader, ManifestWriter, WalRange};
use super::stream::{BackupKind, BaseBackup, End, Event, Wanted};
use super::suspects::{DamagedPages, MAX_DAMAGED};
use super::{Physical, standing};
use crate::config_files::{self, ConfigFile};
use crate::wal::WalSegment;
use crate::wire::{Connection, Purpose, SlotKind};

/// The tree: the data directory, with tablespaces below `pg_tblspc/<oid>/`.
pub(crate) const TREE: &str = "base";
/// The server's list, in the tree, and as a memo for the next increment.
pub(crate) const MANIFEST: &str = "backup_manifest";
/// What the backup is called in the server's own `backup_label`.
const LABEL: &str = "stackward";
/// The folder of the log in the tree.
const LOG_FOLDER: &[u8] = b"pg_wal/";

/// Whether the configuration files are saved here; the logical mode saves them, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfigFiles {
    Save,
    LeaveToOthers,
}

impl Physical {
    /// Saves the cluster. Dropping the future cancels the backup on the server.
    pub(crate) async fn save(
        &self,
        cx: &RunContext,
        out: &BackupWriter,
        config_files: ConfigFiles,
    ) -> Result<SourceSummary> {
        let mut connection = Connection::connect(&self.server, Purpose::Replication).await?;
        let facts = ServerFacts::ask(&mut connection).await?;
        let holder = self.hold_log().await?;
        let major = facts.version.major();
        // Not every role may know; then the plan says where a restore goes.
        let data_directory = connection.show("data_directory").await.ok();
        let log_folder = data_directory.as_deref().and_then(|data| self.log_folder(data, &facts));
        let chosen = increment::choose(cx, out, &self.settings, &facts, &mut connection).await?;
        cx.step("waiting for the server's checkpoint");
        let started = Timestamp::now();
        let (backup, increment) = self.begin(cx, connection, major, chosen).await?;
        let kind = if increment.is_some() { BackupKind::Incremental } else { BackupKind::Full };
        announce(cx, &backup, kind);
        let mut received = receive(cx, out, &facts, backup, kind).await?;
        let increment_of = increment.map(|increment| {
            received.inherit(increment.damaged);
            increment.of
        });
        // The log is in the tree now.
        holder.close().await;
        let stopped = Timestamp::now();
        let saved = match config_files {
            ConfigFiles::Save => self.save_config_files(cx, out, major).await?,
            ConfigFiles::LeaveToOthers => Vec::new(),
        };
        let details = PhysicalDetails {
            version_number: facts.version.0,
            system_identifier: facts.identity.system_identifier.to_string(),
            timeline: received.timeline,
            start_lsn: received.start,
            stop_lsn: received.end.lsn,
            started,
            stopped,
            wal_segment_size: facts.shape.wal_segment.bytes(),
            block_size: facts.shape.page_bytes,
            segment_blocks: facts.shape.segment_blocks,
            data_checksums: facts.shape.checksums,
            standby: received.standby,
            tablespaces: received.tablespaces,
            settings: facts.settings,
            data_directory,
            log_folder,
            config_files: saved,
            damaged_pages: received.damaged.list,
            damaged_total: received.damaged.total,
            increment_of,
        };
        Ok(SourceSummary {
            mode: Some("physical".into()),
            server: Some(ServerRecord {
                product: "PostgreSQL".into(),
                version: facts.version_text,
                image: None,
                digest: None,
            }),
            position: Some(Position::Wal { timeline: received.end.timeline, lsn: received.end.lsn }),
            details: details.to_map()?,
            ..SourceSummary::default()
        })
    }

    /// Where `pg_wal` of the data directory leads to, when it is a link and can be seen from here. The server does not tell.
    fn log_folder(&self, data: &str, facts: &ServerFacts) -> Option<String> {
        if !self.server.endpoint.is_socket() {
            return None;
        }
        let data = self.server.host.local_path(std::path::Path::new(data))?;
        // A socket may lead into a container, whose paths are others.
        if standing::system_of(&data)? != facts.identity.system_identifier.to_string() {
            return None;
        }
        std::fs::read_link(data.join("pg_wal")).ok().map(|target| target.display().to_string())
    }

    /// A session whose slot keeps the log from vanishing while the backup runs; it lives as long as the session.
    async fn hold_log(&self) -> Result<Connection> {
        let mut holder = Connection::connect(&self.server, Purpose::Replication).await?;
        let name = format!("stackward_backup_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        holder.create_slot(&name, SlotKind::Temporary).await.map_err(|error| error.during("reserve the log"))?;
        Ok(holder)
    }

    /// Begins the backup: an increment when one was prepared, else, or when the server cannot after all, a full one.
    async fn begin(
        &self,
        cx: &RunContext,
        connection: Connection,
        major: u32,
        chosen: Option<Chosen>,
    ) -> Result<(BaseBackup, Option<Chosen>)> {
        let full = Wanted { major, label: LABEL, kind: BackupKind::Full };
        let Some(chosen) = chosen else {
            return Ok((BaseBackup::begin(connection, full).await.map_err(|(error, _)| error)?, None));
        };
        match BaseBackup::begin(connection, Wanted { kind: BackupKind::Incremental, ..full }).await {
            Ok(backup) => Ok((backup, Some(chosen))),
            Err((error, _)) => {
                increment::explain(cx, &error)?;
                // The manifest stays with its session; a new one has none.
                let connection = Connection::connect(&self.server, Purpose::Replication).await?;
                Ok((BaseBackup::begin(connection, full).await.map_err(|(error, _)| error)?, None))
            }
        }
    }

    async fn save_config_files(&self, cx: &RunContext, out: &BackupWriter, major: u32) -> Result<Vec<ConfigFile>> {
        let database = self.server.endpoint.database.as_deref().unwrap_or("postgres");
        let mut session = match Connection::connect(&self.server, Purpose::Sql(database)).await {
            Ok(session) => session,
            Err(error) => {
                cx.warn(format!(
                    "the server's configuration files outside its data directory are not saved: {}",
                    error.chain()
                ));
                return Ok(Vec::new());
            }
        };
        let saved = config_files::save(cx, out, &self.server, &mut session, major).await?;
        session.close().await;
        Ok(saved)
    }
}

fn announce(cx: &RunContext, backup: &BaseBackup, kind: BackupKind) {
    cx.report(&Told::Started {
        source: cx.source().clone(),
        work: "backup",
        expected_bytes: Some(backup.estimate()).filter(|_| kind == BackupKind::Full),
    });
    let spaces = backup.tablespaces.len().saturating_sub(1);
    let what = if kind == BackupKind::Full { "everything" } else { "what changed" };
    cx.step(format!("receiving {what}, the data directory and {spaces} tablespaces"));
}

/// What came of a backup.
#[derive(Debug)]
struct ReceivedBackup {
    start: Lsn,
    timeline: u32,
    end: End,
    standby: bool,
    tablespaces: Vec<PhysicalTablespace>,
    damaged: DamagedPages,
}

impl ReceivedBackup {
    /// Takes over what was damaged in the snapshot that unchanged pages were kept from. Those that were written since are
    /// told, too, until the next full backup: better than to keep silent about the others.
    fn inherit(&mut self, damaged: Vec<DamagedPage>) {
        for page in damaged {
            if self.damaged.list.len() < MAX_DAMAGED && !self.damaged.list.contains(&page) {
                self.damaged.list.push(page);
                self.damaged.total += 1;
            }
        }
    }
}

async fn receive(
    cx: &RunContext,
    out: &BackupWriter,
    facts: &ServerFacts,
    mut backup: BaseBackup,
    kind: BackupKind,
) -> Result<ReceivedBackup> {
    let tree = out.tree_in_any_order(ArtifactName::new(TREE)?).await?;
    let mut receiver = Receiver::new(cx, tree, facts.shape, kind, backup.start)?;
    loop {
        match cx.unless_cancelled(backup.next()).await? {
            Event::Archive { oid } => receiver.begin_archive(oid)?,
            Event::Data(data) => receiver.take(data).await?,
            Event::Manifest => break,
            Event::ManifestData(_) | Event::End(_) => return Err(incomplete("the server's manifest")),
        }
    }
    receiver.end_archive()?;
    let Receiver { mut tree, ledger, mut suspects, wal, entries, standby, .. } = receiver;
    let mut list = List::begin(&mut tree, out, ledger.into_check()?).await?;
    let end = loop {
        match cx.unless_cancelled(backup.next()).await? {
            Event::ManifestData(data) => list.take(&data).await?,
            Event::End(end) => break end,
            _ => return Err(incomplete("the server's manifest")),
        }
    };
    let (start, timeline) = (backup.start, backup.timeline);
    let ranges = list.finish().await?;
    check_log(&wal, timeline, start, end.lsn, facts.shape, &ranges)?;
    for notice in end.notices.iter().filter(|notice| notice.severity == "WARNING") {
        cx.warn(format!("the server remarks: {}", notice.message));
    }
    let damaged = suspects.settle(end.lsn);
    tell_damage(cx, &damaged.list);
    // One more: the server's list.
    tree.seal(Evidence::Listing { entries: entries + 1 }).await?;
    let spaces = backup.tablespaces.iter().filter_map(|space| Some((space.oid?, space.location.clone())));
    let tablespaces = spaces.map(|(oid, location)| PhysicalTablespace { oid, location }).collect();
    backup.close().await;
    Ok(ReceivedBackup { start, timeline, end, standby, tablespaces, damaged })
}

fn incomplete(what: &str) -> Error {
    Error::new(ErrorKind::Incomplete, format!("the backup came without {what}"))
}

/// The server's list, on its way into the tree and into the memo: of an increment, rewritten for the whole files that came
/// of it.
struct List {
    file: FileWriter,
    memo: ArtifactWriter,
    reader: ManifestReader,
    writer: ManifestWriter,
    ledger: LedgerCheck,
    ranges: Vec<WalRange>,
    bytes: u64,
}

impl List {
    async fn begin(
        tree: &mut backup_core::writer::TreeWriter,
        out: &BackupWriter,
        ledger: LedgerCheck,
    ) -> Result<Self> {
        Ok(Self {
            file: tree.file(TreePath::new(MANIFEST)?, ChunkHint::Stream).await?,
            memo: out.memo(ArtifactName::new(MANIFEST)?).await?,
            reader: ManifestReader::default(),
            writer: ManifestWriter::default(),
            ledger,
            ranges: Vec::new(),
            bytes: 0,
        })
    }

    async fn take(&mut self, data: &[u8]) -> Result<()> {
        let mut written = Vec::with_capacity(data.len() + data.len() / 8);
        for line in self.reader.push(data)? {
            match line {
                Line::File(file) => {
                    let found = self.ledger.expect(&file.path()?, file.size, file.crc()?)?;
                    let line = file.line(&found.stored_path, found.stored_bytes, found.stored_crc)?;
                    written.extend(self.writer.file(line));
                }
                Line::Range(range) => {
                    self.ranges.push(range);
                    written.extend(self.writer.range(range));
                }
                Line::Other(line) => written.extend(self.writer.other(&line)),
                Line::Checksum => {
                    let writer = std::mem::take(&mut self.writer);
                    written.extend(writer.finish());
                }
            }
        }
        self.write(Bytes::from(written)).await
    }

    async fn write(&mut self, data: Bytes) -> Result<()> {
        self.bytes += data.len() as u64;
        self.file.write(data.clone()).await?;
        self.memo.write(data).await
    }

    /// Ends the list, once the backup is whole. Returns the ranges of the log that it names.
    async fn finish(self) -> Result<Vec<WalRange>> {
        self.reader.finish()?;
        self.ledger.finish(|path| path.starts_with(LOG_FOLDER))?;
        let entry = TreeEntry {
            path: TreePath::new(MANIFEST)?,
            kind: EntryKind::File { size: self.bytes },
            mode: 0o600,
            uid: 0,
            gid: 0,
            user: Some("postgres".into()),
            group: Some("postgres".into()),
            modified: FileTime { seconds: Timestamp::now().as_second(), nanos: 0 },
            xattrs: Vec::new(),
            identity: FileIdentity::default(),
        };
        self.file.finish(entry).await?;
        self.memo.seal(Evidence::EndMarker("Manifest-Checksum")).await?;
        Ok(self.ranges)
    }
}

/// Every segment from the beginning of the backup to its end must have come along.
fn check_log(
    received: &[WalSegment],
    timeline: u32,
    start: Lsn,
    end: Lsn,
    shape: Shape,
    ranges: &[WalRange],
) -> Result<()> {
    for range in ranges {
        if range.timeline == timeline && range.end > end {
            return Err(incomplete("all of the log that its manifest names"));
        }
    }
    // The end may be the first position of a segment: nothing of that one is needed.
    let last = WalSegment::containing(timeline, Lsn(end.0.saturating_sub(1)), shape.wal_segment);
    let mut segment = WalSegment::containing(timeline, start, shape.wal_segment);
    while segment <= last {
        if !received.contains(&segment) {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("the backup came without the segment {segment} of the log"),
            )
            .hint("run the backup again; when it stays so, look whether `max_slot_wal_keep_size` is too small"));
        }
        segment = segment.next(shape.wal_segment);
    }
    Ok(())
}

/// Decides which pages are damaged: the server reads a page again before it calls it so, we could not.
fn tell_damage(cx: &RunContext, damaged: &[DamagedPage]) {
    let mut files: Vec<(&str, Vec<u32>)> = Vec::new();
    for page in damaged {
        match files.last_mut() {
            Some((path, blocks)) if *path == page.path => blocks.push(page.block),
            _ => files.push((&page.path, vec![page.block])),
        }
    }
    for (path, blocks) in files {
        const SHOWN: usize = 10;
        let shown: Vec<String> = blocks.iter().take(SHOWN).map(u32::to_string).collect();
        let more = if blocks.len() > SHOWN { format!(" and {} more", blocks.len() - SHOWN) } else { String::new() };
        cx.warn(format!(
            "the server's file {path} has damaged pages: block {}{more}; the snapshot has them as they are; restore the \
             table from an earlier one, or dump what can be read of it",
            shown.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::SegmentSize;

    #[test]
    fn a_hole_in_the_log_is_named() {
        let shape = Shape {
            page_bytes: 8192,
            segment_blocks: 131_072,
            wal_segment: SegmentSize::DEFAULT,
            checksums: true,
            system_identifier: 1,
        };
        let segment = |number| WalSegment::numbered(1, number, SegmentSize::DEFAULT);
        let all = [segment(2), segment(3), segment(4)];
        let check = |received: &[WalSegment], start, end| check_log(received, 1, Lsn(start), Lsn(end), shape, &[]);
        check(&all, 0x200_0028, 0x400_0100).unwrap();
        // The end is the border between two segments.
        check(&all[..2], 0x200_0028, 0x400_0000).unwrap();
        let error = check(&[all[0], all[2]], 0x200_0028, 0x400_0100).unwrap_err();
        assert!(error.to_string().contains("000000010000000000000003"), "{error}");
        assert!(check(&[], 0x200_0028, 0x200_0100).is_err());
    }
}
