//! The plain directory: one folder per snapshot with ordinary files, `manifest.json` and `SHA256SUMS`.
//! `docs/directory.md` describes the layout and how to read it with standard tools.
//!
//! Invariant: a folder with a snapshot's id as its name is a whole snapshot; everything else is invisible.

mod check;
mod compression;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod marker;
mod names;
mod output;
mod partial;
mod read;
mod spool;
mod tar;
mod tree;
mod write;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{self, Manifest};
use backup_core::plan::DirectoryConfig;
use backup_core::sink::{
    CheckDepth, CheckReport, Sink, SnapshotFilter, SnapshotHeader, SnapshotReader, SnapshotSummary, SnapshotWriter,
    UnreadableSnapshot,
};
use backup_core::{RunContext, SnapshotId};
use sha2::{Digest, Sha256};

use crate::blocking;
use crate::summaries::Summaries;

use crate::repository::Created;
use compression::Compression;
use marker::Identity;
use names::{MANIFEST, SUMS, Sums};
use read::{DirectoryReader, open_plain};
use write::DirectoryWriter;

/// More bytes than this are no manifest, and no list of sums.
const MAX_SMALL_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// A plain directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    compression: Compression,
    identity: Arc<Identity>,
}

impl Directory {
    /// Makes the folder, if it is not there, and the marker by which it knows itself. `folder` is where a relative path
    /// starts.
    ///
    /// # Errors
    /// When it cannot be made, or something else is there.
    pub async fn create(config: &DirectoryConfig, folder: &Path) -> Result<Created> {
        let path = crate::location::folder_of(&config.path, folder)?;
        let description = describe(&path);
        blocking(move || {
            if path.is_dir() {
                let holds_snapshots = !ids(&path)?.is_empty();
                let made = marker::make(&path)?;
                return Ok(Created { description, created: made && !holds_snapshots, notes: Vec::new() });
            }
            partial::make_folders(&path).map_err(|source| Error::io("cannot make the directory", &path, source))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                partial::sync_folder(parent)?;
            }
            marker::make(&path)?;
            Ok(Created { description, created: true, notes: Vec::new() })
        })
        .await
    }

    /// Opens the folder. `folder` is where a relative path starts.
    ///
    /// # Errors
    /// [`ErrorKind::NoRepository`] when there is none, also when the folder was never made one and holds no snapshots.
    pub async fn open(config: &DirectoryConfig, folder: &Path) -> Result<Self> {
        let path = crate::location::folder_of(&config.path, folder)?;
        let compression = config.compression.into();
        blocking(move || match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                let identity = Identity::open(&path)?;
                identity.refuse_unless_made(!ids(&path)?.is_empty())?;
                Ok(Self { path, compression, identity: Arc::new(identity) })
            }
            Ok(_) => Err(Error::new(ErrorKind::NoRepository, format!("{} is not a folder", path.display()))
                .hint("give the path of a folder")),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::NoRepository, format!("there is no folder {}", path.display()))
                    .hint("run `stackward init` to make it; is a disk not mounted?"))
            }
            Err(source) => Err(Error::io("cannot open the directory", &path, source)),
        })
        .await
    }

    fn summaries(&self) -> Result<Summaries> {
        let mut summaries = Summaries::default();
        for id in self.ids()? {
            let read = self.load(&id).map(|reader| SnapshotSummary::of(&reader.manifest));
            summaries.add(id, read)?;
        }
        Ok(summaries)
    }

    /// See [`ids`]. Those of another folder are not listed.
    fn ids(&self) -> Result<Vec<SnapshotId>> {
        self.identity.confirm_folder()?;
        ids(&self.path)
    }

    /// A snapshot's manifest and sums. Blocks.
    fn load(&self, id: &SnapshotId) -> Result<DirectoryReader> {
        let folder = self.path.join(id.as_str());
        if !folder.is_dir() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no snapshot {id} in {}", self.path.display()),
            )
            .hint("`stackward list` shows what there is"));
        }
        let at = |error: Error| error.with("snapshot", id);
        let bytes = small_file(&folder.join(MANIFEST)).map_err(at)?;
        let sums = load_sums(&folder).ok();
        if let Some(expected) = sums.as_ref().and_then(|sums| sums.0.get(MANIFEST))
            && *expected != hex::encode(Sha256::digest(&bytes))
        {
            let message = format!("{MANIFEST} does not have its SHA-256 of {SUMS}");
            return Err(at(Error::new(ErrorKind::Damaged, message)));
        }
        let manifest = manifest::parse(&bytes).map_err(at)?;
        if manifest.id != *id {
            return Err(at(Error::new(ErrorKind::Damaged, format!("its manifest is that of {}", manifest.id))));
        }
        Ok(DirectoryReader { folder, manifest, sums })
    }
}

/// The ids of all finished snapshots in the folder at `path`, damaged or not, oldest first. Blocks.
fn ids(path: &Path) -> Result<Vec<SnapshotId>> {
    let mut ids = Vec::new();
    for entry in partial::entries(path)? {
        let name = entry.file_name();
        if let Some(id) = name.to_str().and_then(|name| SnapshotId::new(name).ok())
            && partial::is_folder(&entry)?
        {
            ids.push(id);
        }
    }
    ids.sort();
    Ok(ids)
}

fn describe(path: &Path) -> String {
    format!("the directory {}", path.display())
}

fn load_sums(folder: &Path) -> Result<Sums> {
    Sums::parse(&small_file(&folder.join(SUMS))?)
}

fn small_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open_plain(path)?.take(MAX_SMALL_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| Error::io("cannot read the file", path, source))?;
    if bytes.len() as u64 > MAX_SMALL_FILE_BYTES {
        return Err(Error::new(ErrorKind::Damaged, "the file is too long").with("path", path.display()));
    }
    Ok(bytes)
}

#[async_trait]
impl Sink for Directory {
    fn describe(&self) -> String {
        describe(&self.path)
    }

    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>> {
        Ok(Arc::new(DirectoryWriter::begin(self, &header).await?))
    }

    /// A snapshot whose manifest is damaged does not hide the others: it is left out here, and reported by
    /// [`Sink::check`]. When nothing else is there, the damage is the error.
    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        let directory = self.clone();
        blocking(move || directory.summaries()).await?.listed(filter)
    }

    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>> {
        let directory = self.clone();
        Ok(blocking(move || directory.summaries()).await?.unreadable())
    }

    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        let (directory, id) = (self.clone(), id.clone());
        blocking(move || directory.load(&id).map(|reader| reader.manifest)).await
    }

    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>> {
        let (directory, id) = (self.clone(), id.clone());
        Ok(Arc::new(blocking(move || directory.load(&id)).await?))
    }

    async fn check(&self, cx: &RunContext, depth: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport> {
        check::check(self, cx, depth, of).await
    }
}
