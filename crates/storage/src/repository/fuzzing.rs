//! The parsers of a repository's plain bytes, for the fuzz targets: what decodes must survive being encoded again.
//!
//! Seals are left out: whoever can make them valid holds the keys, and these parsers must bear even that.

use backup_core::tree::{TreeEntry, TreePath};

use super::codec::Decoder;
use super::content::ContentList;
use super::entry::{put_entry, read_entry};
use super::index::{self, Index};
use super::layout::object_hash;
use super::pack::{self, FOOTER_BYTES, PackInfo};
use super::page_map::{HEADER_BYTES, put_header, put_map, read_header, read_map};

/// An index object's document.
pub(crate) fn index(plain: &[u8]) -> bool {
    let Ok(packs) = index::decode_plain(plain) else { return false };
    assert_eq!(index::encode_plain(&packs), plain, "an index has one encoding");
    let mut index = Index::default();
    for pack in &packs {
        // A pack that is listed twice counts once, as it was listed first.
        let first = !index.knows_pack(&pack.hash);
        index.add(pack);
        if first {
            assert_inside(&index, pack);
        }
    }
    true
}

/// A pack whose table of contents is not sealed.
pub(crate) fn pack(object: &[u8]) -> bool {
    let Some((info, table)) = read_pack(object) else { return false };
    let mut again = Vec::new();
    pack::put_entries(&mut again, &info.entries);
    assert_eq!(again, table, "a table of contents has one encoding");
    let mut index = Index::default();
    index.add(&info);
    assert_inside(&index, &info);
    true
}

fn read_pack(object: &[u8]) -> Option<(PackInfo, &[u8])> {
    let (session, class) = pack::read_header(object).ok()?;
    let (body, footer) = object.split_last_chunk::<FOOTER_BYTES>()?;
    let length = pack::read_footer(footer, object.len() as u64).ok()? as usize;
    let (before, table) = body.split_at(body.len() - length);
    let mut decoder = Decoder::new(table);
    let entries = pack::read_entries(&mut decoder, (before.len() - pack::HEADER_BYTES) as u64).ok()?;
    decoder.finish().ok()?;
    Some((PackInfo { hash: object_hash(object), size: object.len() as u64, session, class, entries }, table))
}

/// Whatever is looked up lies inside its pack.
fn assert_inside(index: &Index, pack: &PackInfo) {
    for entry in &pack.entries {
        let Some(location) = index.get(&entry.id) else { panic!("an added chunk is found") };
        let end = u64::from(location.offset) + u64::from(location.stored);
        assert!(
            location.offset as usize >= pack::HEADER_BYTES && end <= index.pack(location.pack).size,
            "{location:?}"
        );
    }
}

/// The listing of a tree artifact: records, one after another.
pub(crate) fn entries(listing: &[u8]) -> bool {
    let mut records = Decoder::new(listing);
    while !records.is_empty() {
        let Some((entry, content)) = records.bytes().ok().and_then(read) else { return false };
        let mut record = Vec::new();
        put_entry(&mut record, &entry, &content);
        let again = Decoder::new(&record).bytes().ok().and_then(read);
        assert_eq!(again, Some((entry.clone(), content.clone())));
        assert_safe(&entry);
        assert_eq!(ContentList::from_record(&content.to_record()).ok(), Some(content));
    }
    true
}

/// A page map: its header, and records, one after another.
pub(crate) fn page_map(map: &[u8]) -> bool {
    let Some((header, records)) = map.split_at_checked(HEADER_BYTES) else { return false };
    let Ok(key) = read_header(header) else { return false };
    let mut again = Vec::new();
    put_header(&mut again, &key);
    assert_eq!(again, header, "a header has one encoding");
    let mut records = Decoder::new(records);
    while !records.is_empty() {
        let Some((path, map)) = records.bytes().ok().and_then(|body| read_map(body).ok()) else { return false };
        let mut record = Vec::new();
        put_map(&mut record, &path, &map);
        let again = Decoder::new(&record).bytes().ok().and_then(|body| read_map(body).ok());
        assert_safe_path(&path);
        assert_eq!(again, Some((path, map)));
    }
    true
}

fn read(body: &[u8]) -> Option<(TreeEntry, ContentList)> {
    read_entry(body).ok()
}

/// No path that was read leaves the folder that it is put below.
pub(crate) fn assert_safe(entry: &TreeEntry) {
    let link = match &entry.kind {
        backup_core::tree::EntryKind::Hardlink { target } => Some(target),
        _ => None,
    };
    for path in std::iter::once(&entry.path).chain(link) {
        assert_safe_path(path);
    }
}

fn assert_safe_path(path: &TreePath) {
    let plain = |component: std::path::Component<'_>| matches!(component, std::path::Component::Normal(_));
    assert!(path.as_path().components().all(plain), "{path:?}");
}

#[cfg(test)]
mod tests {
    use backup_core::tree::{EntryKind, FileIdentity, FileTime};

    use super::super::content::{ChunkId, Extent};
    use super::super::crypto::SessionId;
    use super::super::pack::{Class, PackEntry};
    use super::super::page_map::{Hashes, PageMap};
    use super::*;
    use crate::fuzzing::tests::assert_seeds;

    fn packed(number: u8, class: Class, count: u8) -> PackInfo {
        let entries = (0..count).map(|at| PackEntry {
            id: ChunkId([number.wrapping_add(at); 32]),
            stored: 24 + 7 * u32::from(at),
            raw: 9 * u32::from(at),
        });
        let entries: Vec<_> = entries.collect();
        let frames: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
        PackInfo { hash: [number; 32], size: frames + 100, session: SessionId([number; 16]), class, entries }
    }

    #[test]
    fn index_seeds() {
        let one = index::encode_plain(&[packed(1, Class::Content, 3)]);
        let two = index::encode_plain(&[packed(1, Class::Content, 2), packed(9, Class::Meta, 4)]);
        assert_seeds("index", &[("empty", index::encode_plain(&[])), ("one", one), ("two", two)], index);
    }

    #[test]
    fn pack_seeds() {
        let object = |class: Class, count: u8| {
            let info = packed(7, class, count);
            let mut object = [&b"SWPK"[..], &[1, class as u8, 0, 0], &info.session.0, &[0; 8]].concat();
            for entry in &info.entries {
                object.extend(std::iter::repeat_n(0xAB, entry.stored as usize));
            }
            let mut table = Vec::new();
            pack::put_entries(&mut table, &info.entries);
            object.extend_from_slice(&table);
            object.extend_from_slice(&(table.len() as u32).to_le_bytes());
            object.extend_from_slice(b"SWPE");
            object
        };
        let seeds = [("content", object(Class::Content, 3)), ("meta", object(Class::Meta, 1))];
        assert_seeds("pack_header", &seeds, pack);
    }

    #[test]
    fn page_map_seeds() {
        let header = [&b"SWPM"[..], &[1, 0, 0, 0], &[0x5A; 32]].concat();
        let with = |maps: &[(&str, PageMap)]| {
            let mut out = header.clone();
            for (path, map) in maps {
                put_map(&mut out, &TreePath::new(*path).unwrap(), map);
            }
            out
        };
        let extents = vec![Extent { chunk: ChunkId([5; 32]), offset: 0, length: 8192 }];
        let inline = PageMap { page_bytes: 8192, size: 20_000, hashes: Hashes::Inline((0..48).collect()) };
        let listed =
            PageMap { page_bytes: 4096, size: 512 * 4096, hashes: Hashes::Listed(ContentList { depth: 1, extents }) };
        let seeds = [
            ("empty", header.clone()),
            ("stream", with(&[("", inline.clone())])),
            ("tree", with(&[("base/1", inline), ("base/2", listed)])),
        ];
        assert_seeds("page_map", &seeds, page_map);
    }

    #[test]
    fn entry_seeds() {
        let path = |text: &str| TreePath::new(text).unwrap();
        let kinds = [
            ("", EntryKind::Directory),
            ("a", EntryKind::File { size: 3000 }),
            ("b", EntryKind::Symlink { target: b"../\xff".to_vec() }),
            ("c", EntryKind::Hardlink { target: path("a") }),
            ("d", EntryKind::Fifo),
            ("e/f", EntryKind::CharDevice { major: 1, minor: 3 }),
            ("e/g", EntryKind::BlockDevice { major: 259, minor: 70_000 }),
        ];
        let mut seeds = Vec::new();
        let mut all = Vec::new();
        for (number, (name, kind)) in kinds.into_iter().enumerate() {
            let extents = match kind {
                EntryKind::File { .. } => vec![
                    Extent { chunk: ChunkId([5; 32]), offset: 10, length: 1000 },
                    Extent { chunk: ChunkId::HOLE, offset: 0, length: 2000 },
                ],
                _ => Vec::new(),
            };
            let entry = TreeEntry {
                path: path(name),
                kind,
                mode: 0o4755,
                uid: 1000,
                gid: u32::MAX,
                user: (number % 2 == 0).then(|| "josé".to_owned()),
                group: None,
                modified: FileTime { seconds: -1, nanos: 999_999_999 },
                xattrs: vec![(b"user.x".to_vec(), vec![0, 1, 255])],
                identity: FileIdentity { inode: 77, changed: FileTime { seconds: 1 << 33, nanos: 1 } },
            };
            let mut record = Vec::new();
            put_entry(&mut record, &entry, &ContentList { depth: u8::from(number == 1), extents });
            all.extend_from_slice(&record);
            seeds.push((["root", "file", "symlink", "hardlink", "fifo", "char", "block"][number], record));
        }
        seeds.push(("all", all));
        assert_seeds("tree_entries", &seeds, entries);
    }
}
