//! A base backup's tree becomes a data directory again, with its tablespaces where they shall be now.
//!
//! Invariant: every file is compared with the server's manifest as it is written. Nothing leads to where a tablespace was, unless
//! the layout says so: every link, the server's own `tablespace_map` and such records of the log are written anew, and the manifest
//! agrees with them, so `pg_verifybackup` can check it. `pg_control` comes last: a server cannot start on half a data directory.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::engine::Existing;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{FileContent, Piece};
use backup_core::tree::{EntryKind, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, RunContext};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::amend::amend;
use super::backup::TREE;
use super::details::PhysicalDetails;
use super::inventory::{Inventory, Listed};
use super::layout::{LINKS, Layout, tablespace};
use super::owner::{Owner, PRIVATE, make_folder, own, write_private};
use super::receiver::crc32c;
use super::standing::is_same;
use crate::recovery::{Blanks, STAGE};

/// Where the tablespaces are, as the server finds it when it recovers.
const MAP: &str = "tablespace_map";
/// The folder of the log.
const LOG: &str = "pg_wal";
/// Without it no server starts.
const CONTROL: &str = "global/pg_control";
/// Until everything else is on disk.
const CONTROL_LATER: &str = "global/pg_control.stackward";
/// A file goes to the disk in batches of this size, give or take a piece: handing each piece to another thread costs more.
const BATCH_BYTES: u64 = 2 * 1024 * 1024;
/// Batches that wait for the disk, a file.
const BATCHES_AHEAD: usize = 1;
/// Configuration files.
const MAX_SMALL: u64 = 16 * 1024 * 1024;
/// Zeroes are counted into checksums in pieces of this size.
const ZEROES: &[u8] = &[0; 64 * 1024];

/// What was placed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Files that were the same already.
    pub(crate) kept: u64,
}

/// How a tree is placed.
#[derive(Debug)]
pub(super) struct Placing<'a> {
    /// Where files are written now.
    pub(super) layout: &'a Layout,
    /// Where they will be: links lead there.
    pub(super) later: &'a Layout,
    pub(super) existing: Existing,
    pub(super) owner: Option<Owner>,
    pub(super) inventory: &'a Inventory,
    /// Of the segments of the log that the tree has.
    pub(super) blanks: &'a [Blanks],
}

/// Writes the whole tree, without `pg_control`, which [`finish`] adds.
///
/// # Errors
/// [`ErrorKind::Damaged`] when what is stored is not what was saved; those of the disk. What was written stays then.
pub(super) async fn place(cx: &RunContext, from: &BackupReader, how: &Placing<'_>) -> Result<Placed> {
    let Placing { layout, later, owner, .. } = *how;
    for folder in layout.folders() {
        make_folder(folder, PRIVATE, owner)?;
    }
    // Whoever writes a file ends before we return, whatever happened: else it could write after we cleaned up.
    let stop = cx.cancellation().child_token();
    let mut writing = JoinSet::new();
    let writers = cx.clone().cancelled_by(stop.clone());
    let mut placed = Placed::default();
    let mut result = write_all(&writers, from, how, &mut writing, &mut placed).await;
    if result.is_err() {
        stop.cancel();
    }
    while let Some(done) = writing.join_next().await {
        if let Err(error) = placed.count(done)
            && result.is_ok()
        {
            stop.cancel();
            result = Err(error);
        }
    }
    result?;
    cx.check_cancelled()?;
    for oid in &layout.passing {
        let folder = layout.passing(*oid);
        for folder in [&layout.data.join(STAGE), &layout.all_passing(), &folder] {
            make_folder(folder, PRIVATE, owner)?;
        }
    }
    later.links().try_for_each(|(oid, folder)| link(&layout.data, oid, &folder, owner))?;
    if layout.data.join(MAP).exists() {
        write_private(&layout.data.join(MAP), &later.map(), owner)?;
        amend(layout, &[MAP], owner)?;
    }
    for blanks in how.blanks {
        blanks
            .segments()
            .try_for_each(|segment| blanks.apply(segment, &layout.data.join(LOG).join(segment.to_string())))?;
    }
    Ok(placed)
}

/// Makes the folders, and hands the files to writers.
async fn write_all(
    cx: &RunContext,
    from: &BackupReader,
    how: &Placing<'_>,
    writing: &mut JoinSet<Result<Placed>>,
    placed: &mut Placed,
) -> Result<()> {
    let Placing { layout, existing, owner, inventory, .. } = *how;
    let mut tree = from.tree(&ArtifactName::new(TREE)?).await?;
    let slots = Arc::new(Semaphore::new(cx.jobs()));
    while let Some(stored) = cx.unless_cancelled(tree.next()).await? {
        while let Some(done) = writing.try_join_next() {
            placed.count(done)?;
        }
        let entry = stored.entry;
        let path = layout.place(&entry.path);
        match (&entry.kind, stored.content) {
            (EntryKind::Directory, _) => match tablespace(&entry.path) {
                // Its folder is made already; links come at the end.
                Some((oid, b"")) if layout.has(oid) => {}
                _ => make_folder(&path, entry.mode, owner)?,
            },
            (EntryKind::File { .. }, Some(content)) => {
                let slot = Arc::clone(&slots).acquire_owned().await;
                let job = Job {
                    cx: cx.clone(),
                    path: control_later(layout, path, &entry.path),
                    listed: inventory.listed(entry.path.as_bytes()),
                    existing,
                    owner,
                };
                writing.spawn(async move {
                    let _slot = slot;
                    job.run(&entry, content).await
                });
            }
            (EntryKind::Symlink { target }, _) => {
                // Nothing that the server sends is a link, but for tablespaces.
                let target = String::from_utf8_lossy(target).into_owned();
                return Err(Error::new(ErrorKind::Damaged, format!("`{}` is a link to {target}", entry.path)));
            }
            _ => return Err(Error::new(ErrorKind::Damaged, format!("`{}` is no file of a server", entry.path))),
        }
    }
    Ok(())
}

/// Brings everything to disk, and then lets a server start on it.
pub(super) async fn finish(layout: &Layout) -> Result<()> {
    let layout = layout.clone();
    let syncing = tokio::task::spawn_blocking(move || {
        let mut devices = std::collections::BTreeSet::new();
        // The log may be on a disk of its own.
        let log = layout.data.join("pg_wal");
        for folder in layout.folders().chain(log.is_symlink().then_some(&log)) {
            let failed = |source| Error::io("cannot look at the folder", folder, source);
            // Once for each file system.
            if devices.insert(std::fs::metadata(folder).map_err(failed)?.dev()) {
                sync(folder)?;
            }
        }
        let control = layout.data.join(CONTROL);
        let failed = |source| Error::io("cannot put the file in its place", &control, source);
        std::fs::rename(layout.data.join(CONTROL_LATER), &control).map_err(failed)?;
        let global = control.parent().unwrap_or(&layout.data);
        std::fs::File::open(global).and_then(|folder| folder.sync_all()).map_err(failed)
    });
    syncing.await.map_err(|source| Error::new(ErrorKind::Internal, "the disk was lost").caused_by(source))?
}

fn control_later(layout: &Layout, path: PathBuf, entry: &TreePath) -> PathBuf {
    if entry.as_bytes() == CONTROL.as_bytes() { layout.data.join(CONTROL_LATER) } else { path }
}

impl Placed {
    fn count(&mut self, done: Result<Result<Self>, tokio::task::JoinError>) -> Result<()> {
        let lost = |source| Error::new(ErrorKind::Internal, "a file was lost").caused_by(source);
        let Self { files, bytes, kept } = done.map_err(lost)??;
        self.files += files;
        self.bytes += bytes;
        self.kept += kept;
        Ok(())
    }
}

/// One file.
struct Job {
    cx: RunContext,
    path: PathBuf,
    listed: Option<Listed>,
    existing: Existing,
    owner: Option<Owner>,
}

impl Job {
    async fn run(self, entry: &TreeEntry, content: Box<dyn FileContent>) -> Result<Placed> {
        let size = entry.size();
        let same = self.existing == Existing::Update && is_same(&self.path, size, self.listed).await?;
        if !same {
            self.write(entry, content).await?;
        }
        let path = &self.path;
        let mode = std::fs::Permissions::from_mode(entry.mode);
        std::fs::set_permissions(path, mode).map_err(|source| Error::io("cannot set the mode", path, source))?;
        own(path, self.owner)?;
        self.cx.progress(if same { size } else { 0 }, 1);
        Ok(Placed { files: 1, bytes: if same { 0 } else { size }, kept: u64::from(same) })
    }

    async fn write(&self, entry: &TreeEntry, content: Box<dyn FileContent>) -> Result<()> {
        let Self { cx, path, owner, .. } = self;
        if let Some(parent) = path.parent()
            && !parent.exists()
        {
            // A plain directory's archive may have a folder after what is in it.
            make_folder(parent, PRIVATE, *owner)?;
        }
        let mut pieces = content.open().await?;
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let writing = tokio::task::spawn_blocking({
            let path = path.clone();
            move || write_file(&path, receiver).map_err(|source| Error::io("cannot write the file", &path, source))
        });
        let read = async {
            let (mut batch, mut batched) = (Vec::new(), 0);
            loop {
                let piece = cx.unless_cancelled(pieces.next()).await?;
                let ended = piece.is_none();
                batched += piece.as_ref().map_or(0, Piece::length);
                batch.extend(piece);
                if ended || batched >= BATCH_BYTES {
                    // Refused: the writer failed, and says why.
                    if sender.send(std::mem::take(&mut batch)).await.is_err() || ended {
                        cx.progress(batched, 0);
                        return Ok(());
                    }
                    cx.progress(std::mem::take(&mut batched), 0);
                }
            }
        };
        let read: Result<()> = read.await;
        drop(sender);
        // In any case: nobody writes when this returns.
        let lost = |source| Error::new(ErrorKind::Internal, "a file was lost").caused_by(source);
        let written = writing.await.map_err(lost)?;
        read?;
        let Written { bytes, crc } = written?;
        if bytes != entry.size() {
            let message = format!("`{}` has {} bytes in its tree, {bytes} were read", entry.path, entry.size());
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        if self.listed.and_then(|listed| listed.crc).is_some_and(|listed| listed != crc) {
            let message = format!("`{}` does not have the checksum of the server's manifest", entry.path);
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        Ok(())
    }
}

/// What was written into a file.
struct Written {
    bytes: u64,
    crc: u32,
}

/// Writes what comes, in a thread that may wait for the disk; holes stay holes.
fn write_file(path: &Path, mut batches: mpsc::Receiver<Vec<Piece>>) -> std::io::Result<Written> {
    let mut file = std::fs::File::create(path)?;
    let (mut bytes, mut digest) = (0, crc32c());
    for piece in std::iter::from_fn(|| batches.blocking_recv()).flatten() {
        bytes += piece.length();
        match piece {
            Piece::Data(data) => {
                digest.update(&data);
                file.write_all(&data)?;
            }
            Piece::Hole(length) => {
                let mut left = length;
                while left > 0 {
                    let count = left.min(ZEROES.len() as u64);
                    digest.update(&ZEROES[..count as usize]);
                    left -= count;
                }
                file.seek(SeekFrom::Start(bytes))?;
            }
        }
    }
    file.set_len(bytes)?;
    Ok(Written { bytes, crc: digest.finalize() as u32 })
}

/// Links the tablespace `oid` of the data directory `data` to where it will be.
fn link(data: &Path, oid: u32, folder: &Path, owner: Option<Owner>) -> Result<()> {
    let links = data.join(LINKS);
    make_folder(&links, PRIVATE, owner)?;
    let path = links.join(oid.to_string());
    if path.is_symlink() {
        std::fs::remove_file(&path).map_err(|source| Error::io("cannot replace the link", &path, source))?;
    }
    symlink(folder, &path).map_err(|source| Error::io("cannot link the tablespace", &path, source))?;
    own(&path, owner)
}

/// Brings everything to disk: a restore that a power failure could undo is none.
fn sync(folder: &Path) -> Result<()> {
    let failed = |source| Error::io("cannot bring the files to disk", folder, source);
    let handle = std::fs::File::open(folder).map_err(failed)?;
    rustix::fs::syncfs(&handle).map_err(|source| failed(source.into()))
}

/// The configuration files as they were laid out, those that shall be in `folder/config` into `beside`.
pub(super) async fn place_config(
    cx: &RunContext,
    from: &BackupReader,
    details: &PhysicalDetails,
    folder: &Path,
    beside: &Path,
) -> Result<u64> {
    for file in &details.config_files {
        let content = cx.unless_cancelled(from.read(&file.artifact, MAX_SMALL)).await?;
        let name = Path::new(file.artifact.as_str());
        let path = name.strip_prefix("config").map_or_else(|_| folder.join(name), |name| beside.join(name));
        if let Some(parent) = path.parent() {
            make_folder(parent, PRIVATE, None)?;
        }
        write_private(&path, &content, None)?;
    }
    Ok(details.config_files.len() as u64)
}
