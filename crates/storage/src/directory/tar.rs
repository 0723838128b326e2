//! Trees as POSIX pax archives that GNU tar extracts faithfully; `docs/directory.md` says what is written how.
//!
//! Invariant: what is read was written whole: checksums, sizes and the end-of-archive blocks are demanded, and paths
//! are [`TreePath`](backup_core::tree::TreePath)s in ascending order.

mod pax;
mod read;
mod write;

pub(super) use read::TarReader;
pub(super) use write::{put_end, put_entry};

/// Everything in an archive comes in blocks of this size.
const BLOCK: usize = 512;
/// Holes of one file, at most. Writers keep far below.
const MAX_SEGMENTS: u64 = 1 << 20;

const SPARSE_MAJOR: &str = "GNU.sparse.major";
const SPARSE_MINOR: &str = "GNU.sparse.minor";
const SPARSE_NAME: &str = "GNU.sparse.name";
const SPARSE_SIZE: &str = "GNU.sparse.realsize";
const XATTR: &str = "SCHILY.xattr.";
/// What tar has no field for is kept in a comment: every reader of pax skips comments in silence.
const COMMENT: &str = "comment";
const COMMENT_IDENTITY: &str = "stackward inode=";

/// The bytes that fill a block after `length` bytes of content.
const fn padding(length: u64) -> usize {
    ((BLOCK as u64 - length % BLOCK as u64) % BLOCK as u64) as usize
}

#[cfg(test)]
mod tests {
    #[test]
    fn padding_fills_a_block_whatever_length_an_enemy_wrote() {
        for (length, expected) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511), (u64::MAX, 1)] {
            assert_eq!(super::padding(length), expected, "{length}");
        }
    }

    use backup_core::ErrorKind;
    use backup_core::manifest::EntryOrder;
    use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
    use proptest::prelude::*;

    use super::*;
    use crate::directory::spool::{Next, Spool, SpoolWriter};

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1u8.., 0..most)
    }

    fn path() -> impl Strategy<Value = TreePath> {
        prop_oneof![bytes(20), bytes(300)].prop_filter_map("a safe path", |path| TreePath::new(path).ok())
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        prop_oneof![
            Just(EntryKind::Directory),
            bytes(200).prop_map(|target| EntryKind::Symlink { target }),
            path().prop_map(|target| EntryKind::Hardlink { target }),
            Just(EntryKind::Fifo),
            (0..0o10_000_000u32, 0..0o10_000_000u32).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (0..0o10_000_000u32, 0..0o10_000_000u32).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        ]
    }

    fn time() -> impl Strategy<Value = FileTime> {
        (prop_oneof![any::<i64>(), -2..3i64], prop_oneof![Just(0), 0..1_000_000_000u32])
            .prop_map(|(seconds, nanos)| FileTime { seconds, nanos })
    }

    fn name() -> impl Strategy<Value = Option<String>> {
        proptest::option::of("[^\0]{1,40}")
    }

    fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        proptest::collection::vec(("user\\.[a-z=%\n ]{1,20}".prop_map(String::into_bytes), any::<Vec<u8>>()), 0..4)
    }

    fn read_back(archive: &[u8]) -> Vec<TreeEntry> {
        let mut reader = TarReader::new(archive, EntryOrder::ByPath);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            entries.push(entry);
        }
        entries
    }

    proptest! {
        #[test]
        fn an_entry_round_trips(
            path in path(), kind in kind(), mode in 0..0o10000u32, owner: (u32, u32), names in (name(), name()),
            times in (time(), time()), inode: u64, xattrs in xattrs(),
        ) {
            let entry = TreeEntry {
                path, kind, mode, uid: owner.0, gid: owner.1, user: names.0, group: names.1, modified: times.0, xattrs,
                identity: FileIdentity { inode, changed: times.1 },
            };
            let mut archive = Vec::new();
            put_entry(&mut archive, &entry, None).unwrap();
            put_end(&mut archive).unwrap();
            prop_assert_eq!(read_back(&archive), [entry]);
        }

        #[test]
        fn foreign_bytes_never_panic(mut archive in proptest::collection::vec(any::<u8>(), 0..3000), flip in any::<(u16, u8)>()) {
            let mut reader = TarReader::new(&archive[..], EntryOrder::ByPath);
            while let Ok(Some(_)) = reader.next() {}
            archive.clear();
            put_entry(&mut archive, &file("a", 0), None).unwrap();
            put_end(&mut archive).unwrap();
            let at = flip.0 as usize % archive.len();
            archive[at] ^= flip.1;
            let mut reader = TarReader::new(&archive[..], EntryOrder::ByPath);
            while let Ok(Some(_)) = reader.next() {}
        }
    }

    fn file(path: &str, size: u64) -> TreeEntry {
        TreeEntry {
            path: TreePath::new(path).unwrap(),
            kind: EntryKind::File { size },
            mode: 0o644,
            uid: 0,
            gid: 0,
            user: None,
            group: None,
            modified: FileTime::default(),
            xattrs: Vec::new(),
            identity: FileIdentity::default(),
        }
    }

    /// An archive of the file `a`, given as data (true) and holes (false) of these lengths, and the file `b`.
    fn archive(shape: &[(bool, usize)]) -> (Vec<u8>, Vec<u8>) {
        let spool = Spool::new(&std::env::temp_dir());
        let mut writer = SpoolWriter::new(&spool);
        let mut plain = Vec::new();
        for (data, length) in shape {
            let piece = vec![if *data { b'x' } else { 0 }; *length];
            if *data {
                writer.push(&piece);
            } else {
                assert!(writer.hole(*length as u64));
            }
            plain.extend_from_slice(&piece);
        }
        let mut archive = Vec::new();
        put_entry(&mut archive, &file("a", plain.len() as u64), Some(&writer.finish())).unwrap();
        put_entry(&mut archive, &file("b", 0), None).unwrap();
        put_end(&mut archive).unwrap();
        (archive, plain)
    }

    #[test]
    fn contents_and_holes_round_trip() {
        let shapes: [&[(bool, usize)]; 8] = [
            &[(true, 1)],
            &[(true, 512), (true, 700)],
            &[(false, 100_000)],
            &[(true, 3), (false, 5000)],
            &[(false, 5000), (true, 3)],
            &[(true, 10), (false, 1), (true, 600), (false, 70_000), (true, 1)],
            &[(true, 1), (false, 511), (true, 1), (false, 512), (true, 511), (false, 2), (true, 5), (false, 1000)],
            &[],
        ];
        for shape in shapes {
            let (archive, plain) = archive(shape);
            let mut reader = TarReader::new(&archive[..], EntryOrder::ByPath);
            let entry = reader.next().unwrap().unwrap();
            assert_eq!(entry, file("a", plain.len() as u64), "{shape:?}");
            let mut writer = SpoolWriter::new(&Spool::new(&std::env::temp_dir()));
            reader.content(&mut writer).unwrap();
            let mut pieces = writer.finish().into_pieces();
            let (mut read, mut holes) = (Vec::new(), 0);
            while let Some(next) = pieces.next() {
                match next {
                    Next::Hole(length) => {
                        holes += length as usize;
                        read.resize(read.len() + length as usize, 0);
                    }
                    Next::Ready(data) => read.extend_from_slice(&data),
                    Next::OnDisk(piece) => read.extend_from_slice(&piece.read().unwrap()),
                }
            }
            assert!(read == plain, "{shape:?}");
            let expected: usize = shape.iter().filter(|(data, _)| !data).map(|(_, length)| length).sum();
            assert!(holes <= expected && expected <= holes + shape.len() * BLOCK, "{shape:?}: {holes}");
            assert_eq!(reader.next().unwrap(), Some(file("b", 0)), "{shape:?}");
            assert_eq!(reader.next().unwrap(), None, "{shape:?}");
        }
    }

    fn read_all(archive: &[u8]) -> backup_core::Result<usize> {
        let mut reader = TarReader::new(archive, EntryOrder::ByPath);
        let mut count = 0;
        while reader.next()?.is_some() {
            let mut writer = SpoolWriter::new(&Spool::new(&std::env::temp_dir()));
            reader.content(&mut writer)?;
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_damaged() {
        let (archive, _) = archive(&[(true, 700), (false, 70_000), (true, 1)]);
        assert_eq!(read_all(&archive).unwrap(), 2);
        for length in 0..archive.len() {
            let error = read_all(&archive[..length]).expect_err("a cut archive is not whole");
            assert_eq!(error.kind(), ErrorKind::Damaged, "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_found() {
        let (archive, _) = archive(&[(true, 700)]);
        for at in 0..512 {
            let mut bad = archive.clone();
            bad[at] ^= 1;
            assert!(read_all(&bad).is_err(), "byte {at}");
        }
    }

    /// No system has such names; a field of a header would end at the zero byte, so that two readings differed.
    #[test]
    fn names_with_a_zero_byte_are_refused() {
        let long = format!("x\0{}", "y".repeat(200));
        let target = EntryKind::Symlink { target: long.clone().into_bytes() };
        let entries = [
            TreeEntry { user: Some(long.clone()), ..file("a", 0) },
            TreeEntry { group: Some(long), ..file("a", 0) },
            TreeEntry { kind: target, ..file("a", 0) },
            TreeEntry { xattrs: vec![(b"user.\0".to_vec(), Vec::new())], ..file("a", 0) },
        ];
        for entry in entries {
            let mut archive = Vec::new();
            put_entry(&mut archive, &entry, None).unwrap();
            put_end(&mut archive).unwrap();
            assert_eq!(read_all(&archive).unwrap_err().kind(), ErrorKind::Damaged, "{entry:?}");
        }
    }

    /// A map of a few bytes an entry must not be able to fill the disk with zeros.
    #[test]
    fn a_map_with_too_many_holes_is_refused() {
        let stretches: u64 = 40_000;
        let size = u64::MAX / 2;
        let mut map = format!("{stretches}\n");
        for at in 1..=stretches {
            map.push_str(&format!("{}\n{BLOCK}\n", at * 1000));
        }
        map.push_str(&"\0".repeat(padding(map.len() as u64)));
        let records = [(SPARSE_MAJOR, "1"), (SPARSE_MINOR, "0"), (SPARSE_NAME, "a"), (SPARSE_SIZE, &size.to_string())];
        let mut extended = Vec::new();
        for (keyword, value) in records {
            pax::put_record(&mut extended, keyword.as_bytes(), value.as_bytes());
        }
        let stored = map.len() as u64 + stretches * BLOCK as u64;
        let mut archive = Vec::new();
        for (kind, size) in [(::tar::EntryType::XHeader, extended.len() as u64), (::tar::EntryType::Regular, stored)] {
            let mut header = ::tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            if kind == ::tar::EntryType::XHeader {
                archive.extend_from_slice(&extended);
                archive.resize(archive.len() + padding(size), 0);
            }
        }
        archive.extend_from_slice(map.as_bytes());
        archive.resize(archive.len() + stretches as usize * BLOCK, 1);
        let error = read_all(&archive).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        assert!(error.to_string().contains("too many holes"), "{error:?}");
    }

    #[test]
    fn names_that_climb_and_entries_out_of_order_are_refused() {
        for name in ["../x", "/etc/passwd", "a/../../b", "a//b", "."] {
            let mut header = ::tar::Header::new_ustar();
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(::tar::EntryType::Regular);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            let mut archive = header.as_bytes().to_vec();
            put_end(&mut archive).unwrap();
            assert_eq!(read_all(&archive).unwrap_err().kind(), ErrorKind::Damaged, "{name}");
        }
        for (first, second) in [("b", "a"), ("a", "a")] {
            let mut archive = Vec::new();
            put_entry(&mut archive, &file(first, 0), None).unwrap();
            put_entry(&mut archive, &file(second, 0), None).unwrap();
            put_end(&mut archive).unwrap();
            assert!(read_all(&archive).unwrap_err().to_string().contains("order"));
        }
    }
}
