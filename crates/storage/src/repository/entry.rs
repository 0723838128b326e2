//! How a tree's entries are written, one record after another, in the listing of a tree artifact.
//!
//! Invariant: whatever is decoded has passed the checks of [`TreePath`]: a listing cannot name a place outside its tree.

use backup_core::error::Result;
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};

use super::codec::{Decoder, malformed, put_bytes, put_optional, put_signed, put_varint};
use super::content::ContentList;

/// A record longer than this is no entry (extended attributes are limited to 64 KiB each by Linux).
pub(super) const MAX_RECORD_BYTES: u64 = 64 * 1024 * 1024;
const MAX_XATTRS: u64 = 65_536;

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;
const HARDLINK: u8 = 3;
const FIFO: u8 = 4;
const CHAR_DEVICE: u8 = 5;
const BLOCK_DEVICE: u8 = 6;

/// Appends the record of `entry`: its length, then its body. `content` is for regular files.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &TreeEntry, content: &ContentList) {
    let mut body = Vec::with_capacity(160);
    put_body(&mut body, entry, content);
    put_bytes(out, &body);
}

fn put_body(body: &mut Vec<u8>, entry: &TreeEntry, content: &ContentList) {
    put_bytes(body, entry.path.as_bytes());
    put_varint(body, u64::from(entry.mode));
    put_varint(body, u64::from(entry.uid));
    put_varint(body, u64::from(entry.gid));
    put_optional(body, entry.user.as_deref());
    put_optional(body, entry.group.as_deref());
    put_time(body, entry.modified);
    put_varint(body, entry.identity.inode);
    put_time(body, entry.identity.changed);
    put_varint(body, entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        put_bytes(body, name);
        put_bytes(body, value);
    }
    match &entry.kind {
        EntryKind::Directory => body.push(DIRECTORY),
        EntryKind::File { size } => {
            body.push(FILE);
            put_varint(body, *size);
            content.put(body);
        }
        EntryKind::Symlink { target } => {
            body.push(SYMLINK);
            put_bytes(body, target);
        }
        EntryKind::Hardlink { target } => {
            body.push(HARDLINK);
            put_bytes(body, target.as_bytes());
        }
        EntryKind::Fifo => body.push(FIFO),
        EntryKind::CharDevice { major, minor } => put_device(body, CHAR_DEVICE, *major, *minor),
        EntryKind::BlockDevice { major, minor } => put_device(body, BLOCK_DEVICE, *major, *minor),
    }
}

fn put_time(body: &mut Vec<u8>, time: FileTime) {
    put_signed(body, time.seconds);
    put_varint(body, u64::from(time.nanos));
}

fn put_device(body: &mut Vec<u8>, tag: u8, major: u32, minor: u32) {
    body.push(tag);
    put_varint(body, u64::from(major));
    put_varint(body, u64::from(minor));
}

/// Decodes the body of a record.
pub(super) fn read_entry(body: &[u8]) -> Result<(TreeEntry, ContentList)> {
    let mut decoder = Decoder::new(body);
    let mut entry = TreeEntry {
        path: TreePath::new(decoder.bytes()?)?,
        mode: decoder.varint_u32()?,
        uid: decoder.varint_u32()?,
        gid: decoder.varint_u32()?,
        user: decoder.optional()?,
        group: decoder.optional()?,
        modified: read_time(&mut decoder)?,
        identity: FileIdentity { inode: decoder.varint()?, changed: read_time(&mut decoder)? },
        xattrs: read_xattrs(&mut decoder)?,
        kind: EntryKind::Fifo,
    };
    if entry.mode > 0o7777 {
        return Err(malformed("an entry has impossible permission bits"));
    }
    let mut content = ContentList::default();
    entry.kind = match decoder.byte()? {
        DIRECTORY => EntryKind::Directory,
        FILE => {
            let size = decoder.varint()?;
            content = ContentList::read(&mut decoder)?;
            EntryKind::File { size }
        }
        SYMLINK => EntryKind::Symlink { target: decoder.bytes()?.to_vec() },
        HARDLINK => EntryKind::Hardlink { target: TreePath::new(decoder.bytes()?)? },
        FIFO => EntryKind::Fifo,
        CHAR_DEVICE => EntryKind::CharDevice { major: decoder.varint_u32()?, minor: decoder.varint_u32()? },
        BLOCK_DEVICE => EntryKind::BlockDevice { major: decoder.varint_u32()?, minor: decoder.varint_u32()? },
        _ => return Err(malformed("an entry is of an unknown kind")),
    };
    decoder.finish()?;
    Ok((entry, content))
}

fn read_time(decoder: &mut Decoder<'_>) -> Result<FileTime> {
    let time = FileTime { seconds: decoder.signed()?, nanos: decoder.varint_u32()? };
    if time.nanos < 1_000_000_000 { Ok(time) } else { Err(malformed("a time has too many nanoseconds")) }
}

fn read_xattrs(decoder: &mut Decoder<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let count = decoder.varint()?;
    if count > MAX_XATTRS {
        return Err(malformed("an entry has too many extended attributes"));
    }
    (0..count).map(|_| Ok((decoder.bytes()?.to_vec(), decoder.bytes()?.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::content::{ChunkId, Extent};
    use super::*;

    fn path() -> impl Strategy<Value = TreePath> {
        proptest::collection::vec("[^/\0]{1,12}", 0..4)
            .prop_map(|parts| parts.join("/"))
            .prop_filter_map("a safe path", |text| TreePath::new(text).ok())
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        prop_oneof![
            Just(EntryKind::Directory),
            any::<u64>().prop_map(|size| EntryKind::File { size }),
            any::<Vec<u8>>().prop_map(|target| EntryKind::Symlink { target }),
            path().prop_map(|target| EntryKind::Hardlink { target }),
            Just(EntryKind::Fifo),
            any::<(u32, u32)>().prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            any::<(u32, u32)>().prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        ]
    }

    fn time() -> impl Strategy<Value = FileTime> {
        (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| FileTime { seconds, nanos })
    }

    proptest! {
        #[test]
        fn an_entry_round_trips(
            path in path(), kind in kind(), mode in 0..0o10000u32, owner: (u32, u32), names: (Option<String>, Option<String>),
            times in (time(), time()), inode: u64, xattrs: Vec<(Vec<u8>, Vec<u8>)>,
            extents in proptest::collection::vec((any::<[u8; 32]>(), any::<u32>(), any::<u64>()), 0..5),
        ) {
            let entry = TreeEntry {
                path, kind, mode, uid: owner.0, gid: owner.1, user: names.0, group: names.1, modified: times.0, xattrs,
                identity: FileIdentity { inode, changed: times.1 },
            };
            let extents = extents.into_iter().map(|(id, offset, length)| Extent { chunk: ChunkId(id), offset, length });
            let content = match entry.kind {
                EntryKind::File { .. } => ContentList { depth: 0, extents: extents.collect() },
                _ => ContentList::default(),
            };
            let mut out = Vec::new();
            put_entry(&mut out, &entry, &content);
            let mut decoder = Decoder::new(&out);
            let body = decoder.bytes().unwrap();
            prop_assert_eq!(read_entry(body).unwrap(), (entry, content));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _any = read_entry(&bytes);
        }
    }

    #[test]
    fn a_listing_that_climbs_out_is_refused() {
        let mut body = Vec::new();
        put_bytes(&mut body, b"../../etc/cron.d/x");
        let error = read_entry(&body).unwrap_err();
        assert!(error.to_string().contains("is not a path inside a tree"));
    }
}
