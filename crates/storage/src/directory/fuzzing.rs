//! The parser of a plain directory's archives, for the fuzz target: what it reads must survive being written again.

use backup_core::manifest::EntryOrder;
use backup_core::tree::TreeEntry;

use super::spool::{Next, Spool, SpoolWriter, Spooled};
use super::tar::{TarReader, put_end, put_entry};

/// Contents that the comparison reads back are at most this long; an archive may claim holes of any length.
const MAX_COMPARED_BYTES: u64 = 1 << 20;

/// A tree's archive. The checksums of its headers are put right first: they stop accidents, not enemies.
pub(crate) fn tar(archive: &[u8]) -> bool {
    let Some(first) = read(&with_checksums(archive)) else { return false };
    let mut again = Vec::new();
    let shapes: Vec<_> = first.iter().map(|(entry, content)| (entry.clone(), shape(content))).collect();
    for (entry, content) in &first {
        crate::repository::fuzzing::assert_safe(entry);
        if put_entry(&mut again, entry, Some(content)).is_err() {
            // The writer refuses numbers that have no place in the format; a reader of others' archives may meet them.
            return true;
        }
    }
    assert!(put_end(&mut again).is_ok());
    let Some(second) = read(&again) else { panic!("what was written is read: {shapes:?}") };
    assert_eq!(second.len(), first.len());
    for ((entry, content), (again, read)) in first.into_iter().zip(second) {
        assert_eq!(again, entry);
        if entry.size() <= MAX_COMPARED_BYTES {
            assert!(plain(content) == plain(read), "{entry:?}");
        }
    }
    true
}

fn with_checksums(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        let mut header = ::tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
    archive
}

fn read(archive: &[u8]) -> Option<Vec<(TreeEntry, Spooled)>> {
    let spool = Spool::new(&std::env::temp_dir());
    let mut reader = TarReader::new(archive, EntryOrder::ByPath);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().ok()? {
        let mut writer = SpoolWriter::new(&spool);
        reader.content(&mut writer).ok()?;
        entries.push((entry, writer.finish()));
    }
    Some(entries)
}

fn shape(content: &Spooled) -> Vec<super::spool::Segment> {
    content.segments().to_vec()
}

fn plain(content: Spooled) -> Vec<u8> {
    let mut pieces = content.into_pieces();
    let mut plain = Vec::new();
    while let Some(next) = pieces.next() {
        match next {
            Next::Hole(length) => plain.resize(plain.len() + length as usize, 0),
            Next::Ready(data) => plain.extend_from_slice(&data),
            Next::OnDisk(piece) => plain.extend_from_slice(&piece.read().unwrap_or_default()),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreePath};

    use super::*;
    use crate::fuzzing::tests::assert_seeds;

    #[test]
    fn archive_seeds() {
        let entry = |path: &str, kind: EntryKind| TreeEntry {
            path: TreePath::new(path).unwrap(),
            kind,
            mode: 0o640,
            uid: 1000,
            gid: 1 << 30,
            user: Some("josé".to_owned()),
            group: None,
            modified: FileTime { seconds: -5, nanos: 1 },
            xattrs: vec![(b"user.a=b".to_vec(), b"\n\0".to_vec())],
            identity: FileIdentity { inode: 3, changed: FileTime { seconds: 9, nanos: 0 } },
        };
        let archive = |entries: Vec<(TreeEntry, &[(bool, usize)])>| {
            let mut archive = Vec::new();
            for (entry, shape) in entries {
                let mut writer = SpoolWriter::new(&Spool::new(&std::env::temp_dir()));
                for (data, length) in shape {
                    if *data {
                        let _room = writer.push(&vec![b'x'; *length]);
                    } else {
                        assert!(writer.hole(*length as u64));
                    }
                }
                put_entry(&mut archive, &entry, Some(&writer.finish())).unwrap();
            }
            put_end(&mut archive).unwrap();
            archive
        };
        let file = |size: u64| EntryKind::File { size };
        let seeds = [
            ("empty", archive(Vec::new())),
            ("plain", archive(vec![(entry("", EntryKind::Directory), &[]), (entry("a", file(5)), &[(true, 5)])])),
            ("sparse", archive(vec![(entry("s", file(6000)), &[(true, 3), (false, 5990), (true, 7)])])),
            (
                "kinds",
                archive(vec![
                    (entry("b", EntryKind::Symlink { target: b"/\xff".to_vec() }), &[]),
                    (entry("c", EntryKind::Hardlink { target: TreePath::new("a").unwrap() }), &[]),
                    (entry("d", EntryKind::Fifo), &[]),
                    (entry("e", EntryKind::CharDevice { major: 1, minor: 3 }), &[]),
                ]),
            ),
        ];
        assert_seeds("directory_tar", &seeds, tar);
    }
}
