//! What a file of a data directory is, by its path: relations have pages and checksums, the log has segments.

use backup_core::sink::ChunkHint;

use crate::wal::Fork;

/// A file of a relation: `base/5/16384`, `base/5/16384_vm.1`, `pg_tblspc/16390/PG_15_202209061/5/16391`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelationFile {
    /// As the log names it.
    pub(crate) fork: Fork,
    /// The segment's number: a relation goes on in `.1`, `.2`, ….
    pub(crate) segment: u32,
}

/// What the server prefixes the names of incremental files with.
pub(crate) const INCREMENTAL: &str = "INCREMENTAL.";

/// `DEFAULTTABLESPACE_OID` and `GLOBALTABLESPACE_OID` of `catalog/pg_tablespace.dat`.
const DEFAULT_SPACE: u32 = 1663;
const GLOBAL_SPACE: u32 = 1664;
/// The forks of a relation behind the main one, in the order of `ForkNumber` (`common/relpath.h`).
const FORKS: [&str; 3] = ["fsm", "vm", "init"];

impl RelationFile {
    /// Recognises a relation's file.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let (space, database, name) =
            match (parts.next()?, parts.next()?, parts.next(), parts.next(), parts.next(), parts.next()) {
                ("global", name, None, ..) => (GLOBAL_SPACE, 0, name),
                ("base", database, Some(name), None, ..) => (DEFAULT_SPACE, oid(database)?, name),
                ("pg_tblspc", space, Some(_version), Some(database), Some(name), None) => {
                    (oid(space)?, oid(database)?, name)
                }
                _ => return None,
            };
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) if digits(segment) => (stem, segment.parse().ok()?),
            Some(_) => return None,
            None => (name, 0),
        };
        let (relation, number) = match stem.split_once('_') {
            Some((relation, fork)) => (relation, FORKS.iter().position(|name| *name == fork)? as u8 + 1),
            None => (stem, 0),
        };
        Some(Self { fork: Fork { space, database, relation: oid(relation)?, number }, segment })
    }
}

fn oid(text: &str) -> Option<u32> {
    if digits(text) { text.parse().ok() } else { None }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// How a file is best stored: what changes in place by pages is compared page by page.
pub(crate) fn hint(path: &str, page_bytes: u32) -> ChunkHint {
    let slru = ["pg_xact/", "pg_multixact/", "pg_commit_ts/"];
    if RelationFile::of(path).is_some() || slru.iter().any(|folder| path.starts_with(folder)) {
        ChunkHint::Pages(page_bytes)
    } else {
        ChunkHint::Stream
    }
}

/// `base/5/INCREMENTAL.16384` as `base/5/16384`; `None` for other files.
pub(crate) fn without_incremental(path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/')?;
    let name = name.strip_prefix(INCREMENTAL)?;
    let plain = format!("{folder}/{name}");
    RelationFile::of(&plain).map(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_recognised() {
        for (path, segment) in [
            ("base/5/16384", Some(0)),
            ("base/5/16384.12", Some(12)),
            ("base/5/16384_fsm", Some(0)),
            ("base/5/16384_vm.1", Some(1)),
            ("base/5/16384_init", Some(0)),
            ("global/1262", Some(0)),
            ("pg_tblspc/16390/PG_15_202209061/5/16391.2", Some(2)),
            ("global/pg_control", None),
            ("base/5/PG_VERSION", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/pg_internal.init", None),
            ("base/5/t3_16384", None),
            ("base/5/16384.x", None),
            ("base/5/1/16384", None),
            ("pg_wal/000000010000000000000002", None),
            ("16384", None),
        ] {
            assert_eq!(RelationFile::of(path).map(|file| file.segment), segment, "{path}");
        }
        let fork = |path: &str| RelationFile::of(path).map(|RelationFile { fork, .. }| fork);
        let named = |space, database, relation, number| Some(Fork { space, database, relation, number });
        assert_eq!(fork("base/5/16384.12"), named(1663, 5, 16384, 0));
        assert_eq!(fork("base/5/16384_vm.1"), named(1663, 5, 16384, 2));
        assert_eq!(fork("global/1262_fsm"), named(1664, 0, 1262, 1));
        assert_eq!(fork("pg_tblspc/16390/PG_15_202209061/5/16391_init"), named(16390, 5, 16391, 3));
        assert_eq!(without_incremental("base/5/INCREMENTAL.16384.1").as_deref(), Some("base/5/16384.1"));
        assert_eq!(without_incremental("base/5/16384"), None);
        assert_eq!(without_incremental("base/INCREMENTAL.5/16384"), None);
        assert_eq!(without_incremental("base/5/INCREMENTAL.PG_VERSION"), None);
    }
}
