//! What a manifest's `details.physical` says of a base backup: all that a restore and a recovery must know.
//!
//! This is a wire format: fields are only ever added, with defaults. The crate's README documents it.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::SourceRecord;
use backup_core::names::SnapshotId;
use backup_core::position::Lsn;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config_files::ConfigFile;

/// The key of the details.
const KEY: &str = "physical";

/// A base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PhysicalDetails {
    /// `server_version_num`: 150018 for 15.18.
    pub(crate) version_number: u32,
    /// As text, because JSON numbers are not that long.
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    /// The log is needed from here on.
    pub(crate) start_lsn: Lsn,
    /// The cluster is consistent from here on.
    pub(crate) stop_lsn: Lsn,
    /// When the server began and when it had told the end, by our clock.
    pub(crate) started: Timestamp,
    pub(crate) stopped: Timestamp,
    /// Bytes of a segment of the log.
    pub(crate) wal_segment_size: u64,
    pub(crate) block_size: u32,
    /// Blocks of a segment of a relation.
    #[serde(default)]
    pub(crate) segment_blocks: u32,
    pub(crate) data_checksums: bool,
    /// Whether the server was a standby.
    #[serde(default)]
    pub(crate) standby: bool,
    #[serde(default)]
    pub(crate) tablespaces: Vec<PhysicalTablespace>,
    /// The settings that must be at least as large where the log is replayed (PostgreSQL manual, "Hot Standby").
    #[serde(default)]
    pub(crate) settings: BTreeMap<String, u64>,
    /// Where the data directory was, when the role may know it.
    #[serde(default)]
    pub(crate) data_directory: Option<String>,
    /// Where `pg_wal` led to, when it was known to be a link. The tree has a plain folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_folder: Option<String>,
    /// Configuration files that were saved besides, with their places on the server.
    #[serde(default)]
    pub(crate) config_files: Vec<ConfigFile>,
    /// Pages that did not have their own checksum on the server.
    #[serde(default)]
    pub(crate) damaged_pages: Vec<DamagedPage>,
    /// How many there were: the list has an end.
    #[serde(default)]
    pub(crate) damaged_total: u64,
    /// When only changes were read: since which snapshot. The result is whole all the same.
    #[serde(default)]
    pub(crate) increment_of: Option<SnapshotId>,
}

/// A tablespace. Its files are below `pg_tblspc/<oid>/` of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PhysicalTablespace {
    pub(crate) oid: u32,
    /// The folder on the server.
    pub(crate) location: String,
}

/// A page whose checksum is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamagedPage {
    /// The file in the data directory.
    pub(crate) path: String,
    /// The page's number in its relation, across segments.
    pub(crate) block: u32,
}

impl PhysicalDetails {
    /// As a manifest keeps them.
    pub(crate) fn to_map(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        let value = serde_json::to_value(self)
            .map_err(|source| Error::new(ErrorKind::Internal, "the details are not JSON").caused_by(source))?;
        Ok(BTreeMap::from([(KEY.to_owned(), value)]))
    }

    /// From a manifest, which may have been tampered with; `None` when the source was not saved physically.
    pub(crate) fn of(record: &SourceRecord) -> Result<Option<Self>> {
        let Some(value) = record.details.get(KEY) else { return Ok(None) };
        Self::deserialize(value).map(Some).map_err(|source| {
            let message = format!("the details `{KEY}` of the source `{}` do not parse", record.name);
            Error::new(ErrorKind::Damaged, message).caused_by(source)
        })
    }
}
