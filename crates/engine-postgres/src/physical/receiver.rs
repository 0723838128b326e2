//! From the server's archives to a tree: every file where it belongs, its pages checked, what it was noted.
//!
//! Invariant: what is noted is what arrived and what was stored, byte for byte; memory holds one piece of one file.

mod content;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::tree::{EntryKind, FileTime, TreeEntry, TreePath};
use backup_core::writer::TreeWriter;
use bytes::Bytes;

use super::files::{RelationFile, hint, without_incremental};
use super::ledger::{Ledger, Received};
use super::stream::BackupKind;
use super::suspects::{LookedAt, PageCheck, Suspects};
use super::tar::{TarEntry, TarEvent, TarKind, TarReader};
use crate::wal::{SegmentSize, WalFile, WalSegment};
use content::{Content, FileInHand};

pub(crate) use content::crc32c;

/// The mode of a tablespace's folder.
const TABLESPACE_MODE: u32 = 0o700;

/// What must be known of a server to understand its files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) page_bytes: u32,
    /// Blocks in a segment of a relation.
    pub(crate) segment_blocks: u32,
    pub(crate) wal_segment: SegmentSize,
    pub(crate) checksums: bool,
    pub(crate) system_identifier: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Receiver {
    cx: RunContext,
    pub(crate) tree: TreeWriter,
    shape: Shape,
    kind: BackupKind,
    tar: TarReader,
    /// What the paths of the present archive begin with.
    prefix: String,
    /// The tablespace whose own folder is not in the tree yet: its archive has only what is in it.
    root: Option<u32>,
    in_hand: Option<FileInHand>,
    pub(crate) ledger: Ledger,
    pub(crate) suspects: Suspects,
    /// Whether the server is a standby.
    pub(crate) standby: bool,
    /// The segments of the log that came along.
    pub(crate) wal: Vec<WalSegment>,
    pub(crate) entries: u64,
}

impl Receiver {
    pub(crate) fn new(cx: &RunContext, tree: TreeWriter, shape: Shape, kind: BackupKind, start: Lsn) -> Result<Self> {
        Ok(Self {
            cx: cx.clone(),
            tree,
            shape,
            kind,
            tar: TarReader::default(),
            prefix: String::new(),
            root: None,
            in_hand: None,
            ledger: Ledger::new(cx.scratch())?,
            suspects: Suspects::new(start, shape.wal_segment, shape.system_identifier),
            standby: false,
            wal: Vec::new(),
            entries: 0,
        })
    }

    /// An archive begins; the one before must be whole.
    pub(crate) fn begin_archive(&mut self, oid: Option<u32>) -> Result<()> {
        self.end_archive()?;
        self.root = oid;
        self.prefix = oid.map_or_else(String::new, |oid| format!("pg_tblspc/{oid}/"));
        Ok(())
    }

    /// The last archive is whole.
    pub(crate) fn end_archive(&mut self) -> Result<()> {
        std::mem::take(&mut self.tar).finish()
    }

    /// A piece of the present archive.
    pub(crate) async fn take(&mut self, data: Bytes) -> Result<()> {
        self.tar.push(data);
        loop {
            match self.tar.event()? {
                TarEvent::More => return Ok(()),
                TarEvent::Entry(entry) => self.entry(entry).await?,
                TarEvent::Data(data) => {
                    let file = self.in_hand.as_mut().ok_or_else(misplaced)?;
                    file.take(data, &mut self.suspects).await?;
                }
                TarEvent::FileEnd => self.end_file().await?,
            }
        }
    }

    async fn entry(&mut self, entry: TarEntry) -> Result<()> {
        self.cx.check_cancelled()?;
        if let Some(oid) = self.root.take() {
            self.folder(format!("pg_tblspc/{oid}").into_bytes(), &entry, TABLESPACE_MODE).await?;
        }
        let path = [self.prefix.as_bytes(), &entry.path].concat();
        match &entry.kind {
            TarKind::File => self.begin_file(path, entry).await,
            TarKind::Directory => self.folder(path, &entry, entry.mode).await,
            // A link to a tablespace: its place is in `tablespace_map`, its files come in an archive of their own.
            TarKind::Symlink(_) => Ok(()),
        }
    }

    /// Adds a folder with the owner of `like`.
    async fn folder(&mut self, path: Vec<u8>, like: &TarEntry, mode: u32) -> Result<()> {
        self.entries += 1;
        let entry = tree_entry(TreePath::new(path)?, EntryKind::Directory, like);
        self.tree.entry(TreeEntry { mode, ..entry }).await
    }

    async fn begin_file(&mut self, sent_path: Vec<u8>, entry: TarEntry) -> Result<()> {
        let text = String::from_utf8_lossy(&sent_path).into_owned();
        let plain = (self.kind == BackupKind::Incremental).then(|| without_incremental(&text)).flatten();
        let stored_text = plain.clone().unwrap_or_else(|| text.clone());
        // Names that are not UTF-8 are nothing that the server made: they are stored as they are.
        let path = TreePath::new(plain.clone().map_or_else(|| sent_path.clone(), String::into_bytes))?;
        let relation = RelationFile::of(&stored_text);
        let pages = relation.filter(|_| self.shape.checksums).map(|file| {
            PageCheck::new(LookedAt::new(&stored_text, file, self.shape.segment_blocks), self.shape.page_bytes)
        });
        let earlier = match plain {
            Some(_) => Some(self.tree.earlier_length(&path).await?.ok_or_else(|| not_there_earlier(&path))?),
            None => None,
        };
        let writer = self.tree.file(path.clone(), hint(&stored_text, self.shape.page_bytes)).await?;
        let content = match earlier {
            Some(length) => Content::patched(writer, length, self.shape),
            None if text == LABEL => Content::label(writer),
            None => match wal_segment(&text) {
                Some(segment) => {
                    self.wal.push(segment);
                    self.suspects.segment(segment);
                    Content::wal(writer, segment, self.shape)
                }
                None => Content::plain(writer),
            },
        };
        self.in_hand = Some(FileInHand::new(sent_path, path, entry, content, pages));
        Ok(())
    }

    async fn end_file(&mut self) -> Result<()> {
        let file = self.in_hand.take().ok_or_else(misplaced)?;
        let is_wal = file.is_wal();
        self.standby |= file.is_of_standby();
        let received: Received = file.finish(&mut self.suspects).await?;
        self.entries += 1;
        // The server's list has no segments of the log.
        if is_wal { Ok(()) } else { self.ledger.note(&received) }
    }
}

/// What the server must know to recover: where the backup began.
pub(crate) const LABEL: &str = "backup_label";

fn wal_segment(path: &str) -> Option<WalSegment> {
    match path.strip_prefix("pg_wal/")?.parse() {
        Ok(WalFile::Segment(segment)) => Some(segment),
        _ => None,
    }
}

fn misplaced() -> Error {
    Error::new(ErrorKind::Internal, "data of an archive came without its file")
}

fn not_there_earlier(path: &TreePath) -> Error {
    Error::new(
        ErrorKind::Incomplete,
        format!("the earlier snapshot does not have `{path}`, of which the server sent changes"),
    )
    .hint("write `increments: never` in the plan for one run, which then reads everything")
}

/// A tree's entry with the attributes that the server sent.
pub(crate) fn tree_entry(path: TreePath, kind: EntryKind, entry: &TarEntry) -> TreeEntry {
    TreeEntry {
        path,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        user: entry.user.clone(),
        group: entry.group.clone(),
        modified: FileTime { seconds: entry.modified, nanos: 0 },
        xattrs: Vec::new(),
        identity: backup_core::tree::FileIdentity::default(),
    }
}
