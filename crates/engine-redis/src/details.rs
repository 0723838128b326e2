//! What the manifest keeps about a server besides its data, under `details`.

use std::collections::BTreeMap;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::SourceRecord;
use backup_core::position::Position;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rdb::RdbSummary;
use crate::server::Info;

/// The details of one backup. Unknown fields are ignored, so that older versions read newer backups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Details {
    /// How the RDB was obtained: `replication`, `follow`, `bgsave`, `export`.
    pub(crate) way: String,
    /// When the server had come to the position of the snapshot, at the latest.
    pub(crate) position_time: Option<Timestamp>,
    /// Why the follower took it: it is the first, or the server no longer had the stream where the archive ended.
    pub(crate) followed_because: Option<String>,
    /// The first second that the saved append-only files tell, and the moment that they were saved at: between them they
    /// can be cut at any second (`aof-timestamp-enabled yes`).
    pub(crate) aof_from: Option<Timestamp>,
    pub(crate) aof_to: Option<Timestamp>,
    /// Whether the keys are of different moments.
    pub(crate) fuzzy: bool,
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
    /// The masters of the cluster that were saved, when all were.
    pub(crate) shards: Vec<Shard>,
    /// How many Sentinels watch the server.
    pub(crate) sentinels: u64,
    /// What happens when memory is full.
    pub(crate) maxmemory_policy: Option<String>,
    /// How much memory the data took, in bytes.
    pub(crate) used_memory: Option<u64>,
}

/// One master of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Shard {
    /// The artifact with its RDB.
    pub(crate) artifact: String,
    /// Its id.
    pub(crate) node: String,
    /// Where it listened.
    pub(crate) address: String,
    /// Its slots: `0-5460 7000`.
    pub(crate) slots: String,
    /// How its RDB was obtained.
    pub(crate) way: String,
    /// Where in its replication stream that stands, when it said so.
    pub(crate) position: Option<Position>,
}

impl Details {
    /// What the server tells.
    pub(crate) fn new(info: &Info) -> Self {
        Self {
            modules: info.modules.clone(),
            role: info.get("role").map(str::to_owned),
            append_only: info.is_on("aof_enabled"),
            cluster: info.is_on("cluster_enabled"),
            maxmemory_policy: info.get("maxmemory_policy").map(str::to_owned),
            used_memory: info.number("used_memory"),
            ..Self::default()
        }
    }

    /// How an RDB was obtained; of several masters, the least good way counts.
    pub(crate) fn way_was(&mut self, way: &str) {
        self.fuzzy |= way == "export";
        if self.way.is_empty() || self.way == "replication" || way == "export" {
            way.clone_into(&mut self.way);
        }
    }

    /// What is in the RDB.
    pub(crate) fn with_rdb(self, summary: &RdbSummary) -> Self {
        Self {
            rdb_version: summary.version,
            rdb_format: summary.magic.to_string(),
            expiring: summary.databases.iter().map(|(id, counts)| (*id, counts.expiring)).collect(),
            ..self
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
