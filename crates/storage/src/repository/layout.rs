//! Where objects lie. Names are part of the format.

use backup_core::log::SegmentId;
use backup_core::{SegmentName, SnapshotId, SourceName, Timeline};
use object_store::path::Path;

use super::crypto::SessionId;

pub(super) const CONFIG: &str = "config";
pub(super) const KEYS: &str = "keys";
pub(super) const KEY_COPIES: &str = "key-copies";
/// What the names of sessions' keys begin with.
const SESSION: &str = "session-";
pub(super) const PACKS: &str = "packs";
pub(super) const INDEX: &str = "index";
pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const LOGS: &str = "logs";
pub(super) const LOG_NOTES: &str = "log-notes";
pub(super) const DAMAGED: &str = "damaged";

pub(super) fn config() -> Path {
    Path::from(CONFIG)
}

pub(super) fn repository_keys(repository: &str) -> Path {
    Path::from(format!("{KEYS}/repository-{repository}.age"))
}

pub(super) fn passphrase_identity(repository: &str) -> Path {
    Path::from(format!("{KEYS}/passphrase-{repository}.age"))
}

pub(super) fn session_keys(session: SessionId) -> Path {
    Path::from(format!("{KEYS}/{SESSION}{session}.age"))
}

pub(super) fn is_session_keys(path: &Path) -> bool {
    path.filename().is_some_and(|name| name.starts_with(SESSION))
}

pub(super) fn log_key(key: &str) -> Path {
    Path::from(format!("{KEYS}/log-{key}.age"))
}

/// The end of the names of key objects.
const WRAPPED: &str = ".age";

/// The second copy of the key object at `key` whose bytes have this hash.
pub(super) fn key_copy(key: &Path, hash: &ObjectHash) -> Path {
    let name = key.filename().unwrap_or_default();
    Path::from(format!("{KEY_COPIES}/{}.{}{WRAPPED}", name.trim_end_matches(WRAPPED), hex::encode(hash)))
}

/// The key object that a second copy is of, and the hash in its name.
pub(super) fn key_of_copy(copy: &Path) -> Option<(Path, ObjectHash)> {
    let (name, hash) = copy.filename()?.strip_suffix(WRAPPED)?.rsplit_once('.')?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(hash, &mut bytes).ok()?;
    Some((Path::from(format!("{KEYS}/{name}{WRAPPED}")), bytes))
}

pub(super) fn source_log(source: &SourceName) -> String {
    format!("{LOGS}/{source}")
}

pub(super) fn timeline(source: &SourceName, timeline: &Timeline) -> String {
    format!("{LOGS}/{source}/{timeline}")
}

pub(super) fn segment(source: &SourceName, id: &SegmentId) -> Path {
    Path::from(format!("{LOGS}/{source}/{}/{}", id.timeline, id.name))
}

/// Where the damaged object of a segment is set aside, by its content.
pub(super) fn damaged_segment(source: &SourceName, id: &SegmentId, object: &[u8]) -> Path {
    let hash = hex::encode(&object_hash(object)[..8]);
    Path::from(format!("{DAMAGED}/{LOGS}/{source}/{}/{}-{hash}", id.timeline, id.name))
}

pub(super) fn source_notes(source: &SourceName) -> String {
    format!("{LOG_NOTES}/{source}")
}

pub(super) fn note(source: &SourceName, name: &SegmentName) -> Path {
    Path::from(format!("{LOG_NOTES}/{source}/{name}"))
}

pub(super) fn pack(hash: &ObjectHash) -> Path {
    let name = hex::encode(hash);
    Path::from(format!("{PACKS}/{}/{name}", &name[..2]))
}

pub(super) fn index(hash: &ObjectHash) -> Path {
    Path::from(format!("{INDEX}/{}", hex::encode(hash)))
}

pub(super) fn snapshot(id: &SnapshotId) -> Path {
    Path::from(format!("{SNAPSHOTS}/{id}"))
}

/// BLAKE3 of an object's bytes, without a key: anybody can check an object against its name.
pub(super) type ObjectHash = [u8; 32];

pub(super) fn object_hash(bytes: &[u8]) -> ObjectHash {
    *blake3::hash(bytes).as_bytes()
}

/// The hash in the last part of an object's path.
pub(super) fn hash_in(path: &Path) -> Option<ObjectHash> {
    let mut hash = [0; 32];
    hex::decode_to_slice(path.filename()?, &mut hash).ok()?;
    Some(hash)
}
