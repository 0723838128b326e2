//! Snapshot objects: a summary for every writer of the repository, and the manifest for those who may read it.
//!
//! Invariant: the summary, sealed under the index key, holds the hash of the sealed manifest: nobody without the
//! repository's keys can put another manifest in its place.

use backup_core::SnapshotId;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{self, Manifest, Outcome};
use backup_core::sink::SnapshotSummary;
use backup_core::{PlanName, SourceName};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::codec::Decoder;
use super::crypto::{BoxKind, Key, SessionId, open_box, seal_box};

const MAGIC: &[u8; 4] = b"SWSN";
const VERSION: u8 = 1;

/// The summary as it is stored: JSON in a box.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredSummary {
    pub(super) id: SnapshotId,
    pub(super) plan: PlanName,
    pub(super) host: String,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    pub(super) outcome: Outcome,
    pub(super) bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) sources: Vec<SourceName>,
    pub(super) failed: Vec<SourceName>,
    /// The session whose meta key seals the manifest, in hexadecimal.
    pub(super) session: String,
    /// The writer that can derive that key again.
    pub(super) writer: String,
    /// BLAKE3 of the sealed manifest, in hexadecimal.
    pub(super) manifest_hash: String,
}

impl StoredSummary {
    pub(super) fn session(&self) -> Result<SessionId> {
        let mut id = [0; 16];
        hex::decode_to_slice(&self.session, &mut id)
            .map_err(|_| super::codec::malformed("a summary names no session"))?;
        Ok(SessionId(id))
    }

    pub(super) fn summary(&self) -> SnapshotSummary {
        SnapshotSummary {
            id: self.id.clone(),
            plan: self.plan.clone(),
            host: self.host.clone(),
            started: self.started,
            finished: self.finished,
            outcome: self.outcome,
            bytes: self.bytes,
            stored_bytes: self.stored_bytes,
            sources: self.sources.clone(),
            failed: self.failed.clone(),
        }
    }
}

/// Whose keys seal a snapshot.
pub(super) struct SnapshotKeys<'a> {
    pub(super) index_key: &'a Key,
    pub(super) meta_key: &'a Key,
    pub(super) session: SessionId,
    pub(super) writer: &'a str,
}

/// The snapshot object of `manifest`.
pub(super) fn encode(keys: &SnapshotKeys<'_>, manifest: &Manifest) -> Result<Bytes> {
    let sealed_manifest = seal_box(keys.meta_key, BoxKind::Manifest, &manifest::render(manifest)?)?;
    let summary = SnapshotSummary::of(manifest);
    let stored = StoredSummary {
        id: summary.id,
        plan: summary.plan,
        host: summary.host,
        started: summary.started,
        finished: summary.finished,
        outcome: summary.outcome,
        bytes: summary.bytes,
        stored_bytes: summary.stored_bytes,
        sources: summary.sources,
        failed: summary.failed,
        session: keys.session.to_string(),
        writer: keys.writer.to_owned(),
        manifest_hash: blake3::hash(&sealed_manifest).to_hex().to_string(),
    };
    let json = serde_json::to_vec(&stored)
        .map_err(|source| Error::new(ErrorKind::Internal, "the summary cannot be written as JSON").caused_by(source))?;
    let sealed_summary = seal_box(keys.index_key, BoxKind::Summary, &json)?;
    let mut object = [&MAGIC[..], &[VERSION, 0, 0, 0], &(sealed_summary.len() as u32).to_le_bytes()].concat();
    object.extend_from_slice(&sealed_summary);
    object.extend_from_slice(&sealed_manifest);
    Ok(Bytes::from(object))
}

/// A snapshot object whose summary was opened.
#[derive(Debug)]
pub(super) struct SnapshotObject {
    pub(super) summary: StoredSummary,
    sealed_manifest: Vec<u8>,
}

impl SnapshotObject {
    /// Opens the summary and checks that the object is the one of `id`, and that its manifest was not exchanged.
    pub(super) fn decode(index_key: &Key, id: &SnapshotId, object: &[u8]) -> Result<Self> {
        let mut decoder = Decoder::new(object);
        if &decoder.array::<4>()? != MAGIC {
            return Err(super::codec::malformed("it is not a snapshot"));
        }
        if decoder.array::<4>()? != [VERSION, 0, 0, 0] {
            return Err(
                Error::new(ErrorKind::Unsupported, "a snapshot has a newer format").hint("use a newer stackward")
            );
        }
        let length = decoder.u32()? as usize;
        let json = open_box(index_key, BoxKind::Summary, decoder.take(length)?)?;
        let summary: StoredSummary = serde_json::from_slice(&json)
            .map_err(|source| Error::new(ErrorKind::Damaged, "a summary is not readable").caused_by(source))?;
        if summary.id != *id {
            return Err(Error::new(ErrorKind::Damaged, format!("the snapshot object of {id} holds {}", summary.id)));
        }
        let sealed_manifest = decoder.take(decoder.remaining())?.to_vec();
        if blake3::hash(&sealed_manifest).to_hex().as_str() != summary.manifest_hash {
            return Err(Error::new(ErrorKind::Damaged, "the manifest is not the one that was committed"));
        }
        Ok(Self { summary, sealed_manifest })
    }

    pub(super) fn manifest(&self, meta_key: &Key) -> Result<Manifest> {
        let manifest = manifest::parse(&open_box(meta_key, BoxKind::Manifest, &self.sealed_manifest)?)?;
        if manifest.id == self.summary.id {
            Ok(manifest)
        } else {
            Err(super::codec::malformed("the manifest has another id"))
        }
    }
}
