//! What a base backup has, against what the server says that it sent: looked at before the first byte is written, without
//! reading the contents.
//!
//! Invariant: a file of the server's manifest that the tree lacks (a whole tablespace, say) is found here; a server that is
//! started without it would not notice. Memory grows with the number of files, some sixty bytes each.

use std::collections::{BTreeMap, HashMap, HashSet};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::sink::{FileContent, Piece};
use backup_core::{ArtifactName, BackupReader, RunContext};

use super::backup::{MANIFEST, TREE};
use super::layout::tablespace;
use super::server_manifest::{Line, ManifestReader};
use super::verify::{PathKey, key, segment_of};
use crate::wal::WalSegment;

/// What the server says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) size: u64,
    /// When it has a CRC-32C.
    pub(super) crc: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    listed: HashMap<PathKey, Listed>,
    /// Every entry of the tree.
    entries: HashSet<PathKey>,
    /// The bytes of each tablespace's files; under `None` those of all others.
    bytes: BTreeMap<Option<u32>, u64>,
    /// The segments of the log.
    log: BTreeMap<WalSegment, Box<dyn FileContent>>,
}

impl Inventory {
    /// Reads the tree's entries and the server's manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when a file is missing, with its name; [`ErrorKind::Damaged`].
    pub(super) async fn take(cx: &RunContext, from: &BackupReader) -> Result<Self> {
        let mut tree = from.tree(&ArtifactName::new(TREE)?).await?;
        let (mut entries, mut sizes, mut manifest) = (HashSet::new(), HashMap::new(), None);
        let mut log = BTreeMap::new();
        let mut bytes: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        while let Some(stored) = cx.unless_cancelled(tree.next()).await? {
            let path = stored.entry.path.as_bytes();
            entries.insert(key(path));
            let sum = bytes.entry(tablespace(&stored.entry.path).map(|(oid, _)| oid)).or_default();
            *sum = sum.saturating_add(stored.entry.size());
            match stored.content {
                Some(content) if path == MANIFEST.as_bytes() => manifest = Some(content),
                Some(content) => {
                    sizes.insert(key(path), stored.entry.size());
                    log.extend(segment_of(&stored.entry.path.to_string()).map(|segment| (segment, content)));
                }
                None => {}
            }
        }
        let manifest = manifest
            .ok_or_else(|| Error::new(ErrorKind::Incomplete, "the server's manifest is missing in the tree"))?;
        let listed = compare(cx, manifest, &sizes).await?;
        Ok(Self { listed, entries, bytes, log })
    }

    /// What the server says of the file at `path` of the tree; nothing of files of the log.
    pub(super) fn listed(&self, path: &[u8]) -> Option<Listed> {
        self.listed.get(&key(path)).copied()
    }

    /// The bytes of the files of a tablespace; of `None`, those of all other files.
    pub(super) fn bytes(&self, tablespace: Option<u32>) -> u64 {
        self.bytes.get(&tablespace).copied().unwrap_or_default()
    }

    /// The segments of the log that the tree has, in order; once.
    pub(super) fn take_log(&mut self) -> BTreeMap<WalSegment, Box<dyn FileContent>> {
        std::mem::take(&mut self.log)
    }

    /// Whether the tree has anything at this path.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.entries.contains(&key(path))
    }
}

async fn compare(
    cx: &RunContext,
    manifest: Box<dyn FileContent>,
    sizes: &HashMap<PathKey, u64>,
) -> Result<HashMap<PathKey, Listed>> {
    let mut listed = HashMap::with_capacity(sizes.len());
    let mut reader = ManifestReader::default();
    let mut pieces = manifest.open().await?;
    while let Some(piece) = cx.unless_cancelled(pieces.next()).await? {
        let Piece::Data(data) = piece else { continue };
        for line in reader.push(&data)? {
            let Line::File(file) = line else { continue };
            let path = file.path()?;
            let shown = String::from_utf8_lossy(&path).into_owned();
            match sizes.get(&key(&path)) {
                None => {
                    let message = format!("{shown} is in the server's manifest and not in the snapshot");
                    return Err(Error::new(ErrorKind::Incomplete, message).hint(
                        "a server would start without it and not notice; choose another snapshot, and run `stackward verify`",
                    ));
                }
                Some(size) if *size != file.size => {
                    let message =
                        format!("{shown} has {size} bytes in the snapshot, and {} in the server's manifest", file.size);
                    return Err(Error::new(ErrorKind::Damaged, message));
                }
                Some(_) => {
                    listed.insert(key(&path), Listed { size: file.size, crc: file.crc()? });
                }
            }
        }
    }
    reader.finish()?;
    Ok(listed)
}
