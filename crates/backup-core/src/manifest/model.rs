//! The manifest's types. `docs/reference/manifest.schema.json` is generated from them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::EvidenceRecord;
use crate::names::{ArtifactName, PlanName, SnapshotId, SourceName};
use crate::position::Position;

/// One run of a plan: a restore point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// The version of this format. Readers refuse newer ones, and tolerate unknown fields of their own.
    pub format_version: u32,
    /// The snapshot's id.
    pub id: SnapshotId,
    /// The plan that was run.
    pub plan: PlanName,
    /// The machine that ran it.
    pub host: String,
    /// The version of Stackward that ran it.
    pub tool_version: String,
    /// When the run began.
    pub started: Timestamp,
    /// When the last source ended.
    pub finished: Timestamp,
    /// Whether every source succeeded.
    pub outcome: Outcome,
    /// What became of each source, in the plan's order.
    pub sources: Vec<SourceRecord>,
}

/// Whether a snapshot holds everything that its plan asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every source succeeded.
    Complete,
    /// At least one source failed; the others are whole.
    Partial,
}

/// What became of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SourceRecord {
    /// Its name in the plan.
    pub name: SourceName,
    /// The engine that served it.
    pub engine: String,
    /// The way in which it was saved, for engines that have several: `logical`, `physical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Whether it succeeded.
    pub outcome: SourceOutcome,
    /// When its work began.
    pub started: Timestamp,
    /// When its work ended.
    pub finished: Timestamp,
    /// The server that was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerRecord>,
    /// Where in the server's log the artifacts are consistent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// What was saved. Empty for a source that failed.
    pub artifacts: Vec<ArtifactRecord>,
    /// Counts that a drill compares after a restore.
    #[serde(default, skip_serializing_if = "Fingerprint::is_empty")]
    pub fingerprint: Fingerprint,
    /// What a restore must know besides: the engine's own, documented in its README.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, serde_json::Value>,
    /// What the operator was warned of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Whether a source succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum SourceOutcome {
    /// Everything was saved and sealed.
    Complete,
    /// Nothing of it is in the snapshot.
    Failed {
        /// Why, as one line.
        reason: String,
        /// What to do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// The server that a source was saved from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerRecord {
    /// The product: `PostgreSQL`.
    pub product: String,
    /// Its full version.
    pub version: String,
    /// The container image, when it runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image's digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Counts by group and item: `tables of app` → `public.users` → 10.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Fingerprint(pub BTreeMap<String, BTreeMap<String, u64>>);

impl Fingerprint {
    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Records a count.
    pub fn count(&mut self, group: impl Into<String>, item: impl Into<String>, count: u64) {
        self.0.entry(group.into()).or_default().insert(item.into(), count);
    }

    /// The sum of a group's counts.
    #[must_use]
    pub fn total(&self, group: &str) -> u64 {
        self.0.get(group).map_or(0, |items| saturating_sum(items.values().copied()))
    }

    /// Where `restored` differs from what was saved, as readable lines; empty when equal.
    #[must_use]
    pub fn differences(&self, restored: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let empty = BTreeMap::new();
        let groups: std::collections::BTreeSet<&String> = self.0.keys().chain(restored.0.keys()).collect();
        for group in groups {
            let before = self.0.get(group).unwrap_or(&empty);
            let after = restored.0.get(group).unwrap_or(&empty);
            let items: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for item in items {
                match (before.get(item), after.get(item)) {
                    (Some(a), Some(b)) if a != b => lines.push(format!("{group}: {item}: {a} saved, {b} restored")),
                    (Some(a), None) => lines.push(format!("{group}: {item}: {a} saved, missing after the restore")),
                    (None, Some(b)) => lines.push(format!("{group}: {item}: {b} restored, none saved")),
                    _ => {}
                }
            }
        }
        lines
    }
}

/// Whether an artifact is a stream of bytes or a tree of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// One stream of bytes.
    Stream,
    /// A tree of files.
    Tree,
}

/// One thing that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactRecord {
    /// Its name within the source.
    pub name: ArtifactName,
    /// Stream or tree.
    pub kind: ArtifactKind,
    /// Plain bytes: the stream's length, or the sum of the files' lengths.
    pub bytes: u64,
    /// Bytes that this run had to store for it, after deduplication and compression.
    pub stored_bytes: u64,
    /// Entries of a tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// SHA-256 of the plain bytes of a stream, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why it is complete.
    pub evidence: EvidenceRecord,
    /// Where the sink keeps it.
    pub content: Content,
    /// Where a repository keeps the page map of its files: how the next run recognises unchanged pages. Only the machine
    /// that wrote it reads it, and no restore needs it. See `docs/format.md`, "Page maps".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_map: Option<Content>,
}

/// Where a sink keeps an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Content {
    /// In a repository: a list of extents. See `docs/format.md`, "Content".
    Extents {
        /// How many times the listed extents must be read as lists of further extents before content is reached.
        depth: u8,
        /// The extents, in order.
        extents: Vec<Extent>,
    },
    /// In a plain directory: a file.
    File {
        /// Its path below the snapshot's folder.
        path: ArtifactName,
        /// How it is compressed: `none`, `gzip`, `zstd`.
        compression: String,
        /// In which order a tree's entries lie in it.
        #[serde(default, skip_serializing_if = "EntryOrder::is_by_path")]
        order: EntryOrder,
    },
}

/// In which order the entries of a tree were stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryOrder {
    /// In that of their paths.
    #[default]
    ByPath,
    /// As they came.
    Any,
}

impl EntryOrder {
    /// Whether it is the usual order, which manifests do not mention.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
    fn is_by_path(&self) -> bool {
        *self == Self::ByPath
    }
}

/// A piece of a chunk: `chunk` in hexadecimal, then `offset` and `length` within its plain bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Extent {
    /// The chunk's id: 64 hexadecimal digits. All zero for a hole (zero bytes that are stored nowhere).
    pub chunk: String,
    /// The first byte within the chunk's plain bytes.
    pub offset: u32,
    /// The number of bytes.
    pub length: u64,
}

impl Manifest {
    /// The record of the source of this name.
    #[must_use]
    pub fn source(&self, name: &SourceName) -> Option<&SourceRecord> {
        self.sources.iter().find(|source| source.name == *name)
    }

    /// Plain bytes of all artifacts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        saturating_sum(self.artifacts().map(|artifact| artifact.bytes))
    }

    /// Bytes that this run had to store.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        saturating_sum(self.artifacts().map(|artifact| artifact.stored_bytes))
    }

    fn artifacts(&self) -> impl Iterator<Item = &ArtifactRecord> {
        self.sources.iter().flat_map(|source| &source.artifacts)
    }
}

impl SourceRecord {
    /// The artifact of this name.
    #[must_use]
    pub fn artifact(&self, name: &ArtifactName) -> Option<&ArtifactRecord> {
        self.artifacts.iter().find(|artifact| artifact.name == *name)
    }

    /// Plain bytes of its artifacts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        saturating_sum(self.artifacts.iter().map(|artifact| artifact.bytes))
    }

    /// Whether the source succeeded.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.outcome == SourceOutcome::Complete
    }
}

/// A manifest that was written by an enemy may claim any sizes.
fn saturating_sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_an_enemy_wrote_do_not_overflow() {
        let artifact = |name: &str| {
            serde_json::json!({
                "name": name, "kind": "stream", "bytes": u64::MAX, "stored_bytes": u64::MAX,
                "evidence": { "kind": "exact_length", "bytes": 1 },
                "content": { "kind": "extents", "depth": 0, "extents": [] },
            })
        };
        let manifest = serde_json::json!({
            "format_version": 1, "id": "20261120-063551-7k3q9xwm", "plan": "p", "host": "h", "tool_version": "0",
            "started": "2026-11-20T00:00:00Z", "finished": "2026-11-20T00:00:00Z", "outcome": "complete",
            "sources": [{
                "name": "s", "engine": "e", "outcome": { "result": "complete" },
                "started": "2026-11-20T00:00:00Z", "finished": "2026-11-20T00:00:00Z",
                "artifacts": [artifact("a"), artifact("b")],
                "fingerprint": { "rows": { "a": u64::MAX, "b": 1 } },
            }],
        });
        let manifest: Manifest = serde_json::from_value(manifest).unwrap();
        assert_eq!((manifest.bytes(), manifest.stored_bytes()), (u64::MAX, u64::MAX));
        assert_eq!(manifest.sources[0].bytes(), u64::MAX);
        assert_eq!(manifest.sources[0].fingerprint.total("rows"), u64::MAX);
    }
}
