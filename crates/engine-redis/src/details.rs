//! What the manifest keeps about a server besides its data, under `details`.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::SourceRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rdb::RdbSummary;
use crate::server::Info;

/// The details of one backup. Unknown fields are ignored, so that older versions read newer backups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Details {
    /// How the RDB was obtained: `replication`, `follow`, `bgsave`.
    pub(crate) way: String,
    /// When the server had come to the position of the snapshot, at the latest.
    pub(crate) position_time: Option<Timestamp>,
    /// Why the follower took it: it is the first, or the server no longer had the stream where the archive ended.
    pub(crate) followed_because: Option<String>,
    /// The first second that the saved append-only files tell, and the moment that they were saved at: between them they
    /// can be cut at any second (`aof-timestamp-enabled yes`).
    pub(crate) aof_from: Option<Timestamp>,
    pub(crate) aof_to: Option<Timestamp>,
    /// The version of the RDB's format.
    pub(crate) rdb_version: u32,
    /// Whose format it is: `Redis`, `Valkey`.
    pub(crate) rdb_format: String,
    /// Keys with an expiry, per database.
    pub(crate) expiring: BTreeMap<u32, u64>,
    /// The modules that were loaded, and their versions.
    pub(crate) modules: BTreeMap<String, String>,
    /// `master` or `slave`.
    pub(crate) role: Option<String>,
    /// Whether the server kept an append-only file: one that does ignores `dump.rdb` when it starts.
    pub(crate) append_only: bool,
    /// Whether it is a node of a cluster, and holds only its own slots.
    pub(crate) cluster: bool,
    /// What happens when memory is full.
    pub(crate) maxmemory_policy: Option<String>,
    /// How much memory the data took, in bytes.
    pub(crate) used_memory: Option<u64>,
}

impl Details {
    pub(crate) fn new(info: &Info, summary: &RdbSummary, way: &str) -> Self {
        Self {
            way: way.to_owned(),
            position_time: None,
            followed_because: None,
            aof_from: None,
            aof_to: None,
            rdb_version: summary.version,
            rdb_format: summary.magic.to_string(),
            expiring: summary.databases.iter().map(|(id, counts)| (*id, counts.expiring)).collect(),
            modules: info.modules.clone(),
            role: info.get("role").map(str::to_owned),
            append_only: info.is_on("aof_enabled"),
            cluster: info.is_on("cluster_enabled"),
            maxmemory_policy: info.get("maxmemory_policy").map(str::to_owned),
            used_memory: info.number("used_memory"),
        }
    }

    /// From a manifest.
    pub(crate) fn of(record: &SourceRecord) -> Result<Self> {
        let value = serde_json::Value::Object(record.details.clone().into_iter().collect());
        serde_json::from_value(value).map_err(|source| {
            Error::new(ErrorKind::Damaged, "the manifest's details are not those of a Redis backup").caused_by(source)
        })
    }

    /// For a manifest.
    pub(crate) fn to_map(&self) -> Result<BTreeMap<String, serde_json::Value>> {
        let value = serde_json::to_value(self)
            .map_err(|source| Error::new(ErrorKind::Internal, "details").caused_by(source))?;
        let serde_json::Value::Object(fields) = value else { return Ok(BTreeMap::new()) };
        Ok(fields.into_iter().collect())
    }
}
