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

const CONTROL: &[u8] = b"global/pg_control";
const CONTROL_BYTES: usize = 8192;

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
    /// The files of the data directory that may be configuration, by their paths.
    pub(super) texts: BTreeMap<String, String>,
    control: Option<Control>,
    /// The segments of the log.
    log: BTreeMap<WalSegment, Box<dyn FileContent>>,
}

/// What `pg_control` says first (`catalog/pg_control.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) system: u64,
    /// Of it and of the version are the names of the folders in tablespaces: `PG_15_202209061`.
    pub(super) catalog: u32,
}

impl Control {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let system = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let catalog = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?);
        Some(Self { system, catalog })
    }
}

/// A configuration file that is longer is none.
const MAX_TEXT: u64 = 1024 * 1024;
/// All files that are called as one, and all others that may be one, have so many bytes at most; what is more is none.
const MAX_TEXTS: u64 = 16 * 1024 * 1024;

/// Whether a file of the data directory may be one of its configuration: not where only the server writes, no log.
fn may_be_text(path: &[u8], size: u64) -> bool {
    let in_folder = path.contains(&b'/');
    let of_server = [&b"base/"[..], b"global/", b"pg_"].iter().any(|prefix| path.starts_with(prefix));
    let is_server = in_folder && of_server && !path.ends_with(b".conf");
    let others =
        [&b".log"[..], b".csv", b".json", b"backup_label", b"tablespace_map", b"PG_VERSION", b"backup_manifest"];
    size <= MAX_TEXT && !is_server && !others.iter().any(|suffix| path.ends_with(suffix))
}

async fn read(cx: &RunContext, content: Box<dyn FileContent>, most: usize) -> Result<Vec<u8>> {
    let (mut bytes, mut pieces) = (Vec::new(), content.open().await?);
    while let Some(piece) = cx.unless_cancelled(pieces.next()).await? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Hole(length) => bytes.resize(bytes.len() + (length.min(most as u64)) as usize, 0),
        }
        if bytes.len() >= most {
            break;
        }
    }
    Ok(bytes)
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
        let (mut small, mut control, mut named, mut others) = (Vec::new(), None, 0, 0);
        while let Some(stored) = cx.unless_cancelled(tree.next()).await? {
            let path = stored.entry.path.as_bytes();
            entries.insert(key(path));
            let sum = bytes.entry(tablespace(&stored.entry.path).map(|(oid, _)| oid)).or_default();
            *sum = sum.saturating_add(stored.entry.size());
            match stored.content {
                Some(content) if path == MANIFEST.as_bytes() => manifest = Some(content),
                Some(content) => {
                    sizes.insert(key(path), stored.entry.size());
                    if path == CONTROL {
                        control = Some(content);
                        continue;
                    }
                    if let Some(segment) = segment_of(&stored.entry.path.to_string()) {
                        log.insert(segment, content);
                        continue;
                    }
                    let sum = if path.ends_with(b".conf") { &mut named } else { &mut others };
                    if may_be_text(path, stored.entry.size()) && *sum < MAX_TEXTS {
                        *sum += stored.entry.size();
                        small.push((String::from_utf8_lossy(path).into_owned(), content));
                    }
                }
                None => {}
            }
        }
        let manifest = manifest
            .ok_or_else(|| Error::new(ErrorKind::Incomplete, "the server's manifest is missing in the tree"))?;
        let listed = compare(cx, manifest, &sizes).await?;
        let mut texts = BTreeMap::new();
        for (path, content) in small {
            let text = read(cx, content, MAX_TEXT as usize).await?;
            texts.insert(path, String::from_utf8_lossy(&text).into_owned());
        }
        let control = match control {
            Some(content) => Control::read(&read(cx, content, CONTROL_BYTES).await?),
            None => None,
        };
        Ok(Self { listed, entries, bytes, texts, control, log })
    }

    /// What its `pg_control` says.
    pub(super) fn control(&self) -> Option<Control> {
        self.control
    }

    /// Whether a folder in a tablespace is this cluster's: other versions may share it, and whatever else lies there.
    pub(super) fn owns(&self, name: &[u8]) -> bool {
        let own = |control: Control| name.ends_with(format!("_{}", control.catalog).as_bytes());
        name.starts_with(b"PG_") && self.control.is_some_and(own)
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
