//! Standard tools read what we write, and GNU tar restores it as it was, in silence.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backup_core::plan::CompressionConfig;
use backup_core::sink::Piece;
use backup_core::tree::{EntryKind, FileTime, TreeEntry};
use backup_testkit::{ScriptedSource, noise};
use bytes::Bytes;
use rustix::fs::XattrFlags;

use super::support::{COMPRESSIONS, Content, artifact, entry, open, run, snapshot, write_stream, write_tree};

#[tokio::test]
async fn sha256sum_and_the_decompressors_agree_with_us() {
    for compression in COMPRESSIONS {
        let folder = tempfile::tempdir().unwrap();
        let sink = open(folder.path(), compression).await;
        let id = snapshot(&*sink).await.unwrap().id;
        let snapshot = folder.path().join(id.as_str());
        let checked = run("sha256sum", &["--strict", "-c", "SHA256SUMS"], &snapshot).await;
        assert_eq!(checked.lines().filter(|line| line.ends_with(": OK")).count(), 3, "{checked}");
        let (suffix, tool) = match compression {
            CompressionConfig::None => ("", None),
            CompressionConfig::Gzip => (".gz", Some("gzip")),
            CompressionConfig::Zstd => (".zst", Some("zstd")),
        };
        if let Some(tool) = tool {
            run(tool, &["-q", "-d", "-k", &format!("test/stream{suffix}")], &snapshot).await;
        }
        assert!(std::fs::read(snapshot.join("test/stream")).unwrap() == noise(300_000, 1), "{compression:?}");
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let archive = snapshot.join(format!("test/tree.tar{suffix}"));
        let said = run("tar", &["-xpf", archive.to_str().unwrap()], &out).await;
        assert_eq!(said, "");
        assert!(std::fs::read(out.join("a")).unwrap() == noise(200_000, 2), "{compression:?}");
        let plan = run("jq", &["-r", ".plan", "manifest.json"], &snapshot).await;
        assert_eq!(plan.trim(), "test");
    }
}

/// One of everything that a file system has.
fn everything() -> Vec<(TreeEntry, Content)> {
    let long = [vec![b'n'; 90], b"/".to_vec(), vec![b'm'; 200]].concat();
    let file = |path: &[u8], pieces: Content| {
        (entry(path, EntryKind::File { size: pieces.iter().map(Piece::length).sum() }), pieces)
    };
    let plain = |path: &[u8], kind: EntryKind| (entry(path, kind), Vec::new());
    let with = |mut given: (TreeEntry, Content), change: &dyn Fn(&mut TreeEntry)| {
        change(&mut given.0);
        given
    };
    let text = || vec![Piece::Data(Bytes::from_static(b"text"))];
    let acl = posix_acl();
    let target = |path: &[u8]| entry(path, EntryKind::Fifo).path;
    let mut entries = vec![
        with(plain(b"", EntryKind::Directory), &|entry| entry.mode = 0o2751),
        plain(b"block", EntryKind::BlockDevice { major: 7, minor: 1_000_000 }),
        plain(b"char", EntryKind::CharDevice { major: 1, minor: 3 }),
        with(plain(b"dir", EntryKind::Directory), &|entry| entry.mode = 0o1777),
        with(file(b"dir/acl", text()), &|entry| {
            entry.xattrs = vec![(b"system.posix_acl_access".to_vec(), acl.clone())];
            entry.mode = 0o660;
        }),
        with(file(b"dir/caf\xe9 \xff\n", text()), &|entry| entry.mode = 0o4755),
        with(file("dir/caf\u{e9}".as_bytes(), text()), &|_| {}),
        with(file(b"dir/early", text()), &|entry| entry.modified = FileTime { seconds: -1, nanos: 999_999_999 }),
        with(file(b"dir/earlier", text()), &|entry| entry.modified = FileTime { seconds: -1_000_000_000, nanos: 0 }),
        file(b"dir/empty", Vec::new()),
        with(file(b"dir/late", text()), &|entry| entry.modified = FileTime { seconds: 9_000_000_000, nanos: 1 }),
        with(file(b"dir/owner", text()), &|entry| (entry.uid, entry.gid) = (3_000_000_000, 2_097_152)),
        with(file(b"dir/named", text()), &|entry| {
            (entry.uid, entry.user) = (12_345, Some("nobody-has-this-name".to_owned()));
            (entry.gid, entry.group) = (54_321, Some("\u{e9}".repeat(20)));
        }),
        with(file(b"dir/xattrs", text()), &|entry| {
            entry.xattrs = vec![
                (b"user.a".to_vec(), b"\0\n\xff=1 ".to_vec()),
                (b"user.b=%".to_vec(), Vec::new()),
                (b"user.large".to_vec(), noise(3000, 5).to_vec()),
            ];
        }),
        plain(b"fifo", EntryKind::Fifo),
        plain(b"hard", EntryKind::Hardlink { target: target(b"dir/empty") }),
        file(b"large", vec![Piece::Data(noise(3_000_000, 9))]),
        plain(&long[..90], EntryKind::Directory),
        file(&long, text()),
        file(&[&long[..], b"\xff\xfe"].concat(), text()),
        plain(b"o-hard", EntryKind::Hardlink { target: target(&[&long[..], b"\xff\xfe"].concat()) }),
        plain(b"o-soft", EntryKind::Symlink { target: [&b"../"[..], &long, b"\xff"].concat() }),
        file(
            b"sparse",
            vec![Piece::Hole(1 << 20), Piece::Data(noise(71_680, 1)), Piece::Hole(50 << 20), Piece::Data(noise(5, 2))],
        ),
        file(&[&long[..], b"-sparse\xff"].concat(), vec![Piece::Data(noise(512, 3)), Piece::Hole(1 << 21)]),
        file(b"sparse-odd", odd_holes()),
        file(b"sparse-all", vec![Piece::Hole(10 << 20)]),
        plain(b"soft", EntryKind::Symlink { target: b"/does/not/exist".to_vec() }),
    ];
    entries.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    entries
}

/// Holes that begin and end within blocks.
fn odd_holes() -> Content {
    let data = |length: usize| Piece::Data(noise(length, length as u64));
    vec![
        data(1),
        Piece::Hole(100_000),
        data(700),
        Piece::Hole(3),
        data(9),
        Piece::Hole(200_000),
        data(5),
        Piece::Hole(1),
    ]
}

/// `user::rw-, user:4242:r--, group::r--, mask::rw-, other::---` as the kernel has it.
fn posix_acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 4242), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&bits.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

#[tokio::test]
async fn gnu_tar_restores_every_kind_of_entry_as_it_was() {
    assert!(rustix::process::geteuid().is_root(), "run the tests as root: devices and owners need it");
    for locale in ["C", "C.UTF-8"] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let sink = open(&folder.path().join("sink"), CompressionConfig::Zstd).await;
        let script = ScriptedSource::new(|out| Box::pin(async move { write_tree(&out, "tree", everything()).await }));
        let id = script.run_into(&*sink).await.unwrap().id;
        let archive = folder.path().join("sink").join(id.as_str()).join("test/tree.tar.zst");
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let command = "exec tar --zstd -xpf \"$1\" --xattrs --xattrs-include='*' --numeric-owner";
        let locale = format!("LC_ALL={locale}");
        let said = run("env", &[&locale, "sh", "-c", command, "sh", archive.to_str().unwrap()], &out).await;
        // Files from before 1970, and from the future, are what tar remarks on, and restores.
        let remarks = |line: &&str| !line.contains("implausibly old time stamp") && !line.contains("in the future");
        assert_eq!(said.lines().filter(remarks).collect::<Vec<_>>(), Vec::<&str>::new());
        for (entry, content) in everything() {
            same(&out, &entry, &content);
        }
        assert_eq!(super::support::files(&out).len(), everything().len() - 3, "nothing else is there");
    }
}

fn same(out: &Path, entry: &TreeEntry, content: &[Piece]) {
    let path = if entry.path.is_root() { out.to_owned() } else { out.join(entry.path.as_path()) };
    let found = std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
    if let EntryKind::Hardlink { target } = &entry.kind {
        let target = std::fs::symlink_metadata(out.join(target.as_path())).expect("tar restored it");
        assert_eq!((found.ino(), found.nlink()), (target.ino(), 2), "{}", entry.path);
        return;
    }
    assert_eq!((found.uid(), found.gid()), (entry.uid, entry.gid), "{}", entry.path);
    let modified = FileTime { seconds: found.mtime(), nanos: found.mtime_nsec() as u32 };
    assert_eq!(modified, entry.modified, "{}", entry.path);
    if let EntryKind::Symlink { target } = &entry.kind {
        assert_eq!(
            std::fs::read_link(&path).expect("tar restored it"),
            PathBuf::from(std::ffi::OsString::from_vec(target.clone()))
        );
        return;
    }
    assert_eq!(found.permissions().mode() & 0o7777, entry.mode, "{}", entry.path);
    match &entry.kind {
        EntryKind::Directory => assert!(found.is_dir(), "{}", entry.path),
        EntryKind::Fifo => assert!(found.file_type().is_fifo(), "{}", entry.path),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            assert_eq!(found.rdev(), rustix::fs::makedev(*major, *minor), "{}", entry.path);
            assert_eq!(found.file_type().is_block_device(), matches!(entry.kind, EntryKind::BlockDevice { .. }));
        }
        EntryKind::File { size } => {
            assert_eq!(found.len(), *size, "{}", entry.path);
            assert!(std::fs::read(&path).expect("tar restored it") == bytes(content), "{}", entry.path);
            let data = *size - holes(content).iter().sum::<u64>();
            if data < *size {
                assert!(found.blocks() * 512 < data + 64 * 1024, "{} has no holes", entry.path);
            }
        }
        EntryKind::Symlink { .. } | EntryKind::Hardlink { .. } => unreachable!(),
    }
    for (name, value) in &entry.xattrs {
        let mut buffer = vec![0; 65_536];
        let name = std::ffi::CString::new(name.clone()).expect("no zero bytes");
        let length = rustix::fs::lgetxattr(&path, &name, &mut buffer)
            .unwrap_or_else(|error| panic!("{} {name:?}: {error}", entry.path));
        assert!(buffer[..length] == *value, "{} {name:?}", entry.path);
    }
}

/// What tar has no fields for comes back too, when we read it.
#[tokio::test]
async fn every_kind_of_entry_comes_back_whole() {
    for compression in COMPRESSIONS {
        let folder = tempfile::tempdir().unwrap();
        let sink = open(folder.path(), compression).await;
        let script = ScriptedSource::new(|out| Box::pin(async move { write_tree(&out, "tree", everything()).await }));
        let id = script.run_into(&*sink).await.unwrap().id;
        let reader = backup_core::BackupReader::new(sink.open(&id).await.unwrap(), super::support::source()).unwrap();
        let mut tree = reader.tree(&artifact("tree")).await.unwrap();
        // Contents are opened after the whole tree was read: they wait for as long as it takes.
        let mut read = Vec::new();
        while let Some(stored) = tree.next().await.unwrap() {
            read.push(stored);
        }
        assert_eq!(read.len(), everything().len());
        for (stored, (entry, content)) in read.into_iter().zip(everything()) {
            assert_eq!(stored.entry, entry);
            let mut pieces = Vec::new();
            if let Some(stored) = stored.content {
                let mut reader = stored.open().await.unwrap();
                while let Some(piece) = reader.next().await.unwrap() {
                    pieces.push(piece);
                }
            }
            let odd = entry.path.as_bytes() == b"sparse-odd";
            assert!(bytes(&pieces) == bytes(&content), "{}", entry.path);
            assert!(odd || holes(&pieces) == holes(&content), "{}", entry.path);
        }
    }
}

fn bytes(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Hole(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes
}

fn holes(pieces: &[Piece]) -> Vec<u64> {
    let hole = |piece: &Piece| if let Piece::Hole(length) = piece { Some(*length) } else { None };
    pieces.iter().filter_map(hole).collect()
}

#[tokio::test]
async fn names_that_get_in_each_others_way_have_files_of_their_own() {
    for compression in COMPRESSIONS {
        let folder = tempfile::tempdir().unwrap();
        let sink = open(folder.path(), compression).await;
        let long = "x".repeat(400);
        let names = ["a", "a.gz", "a.tar", "a.tar.gz/b", "a.zst/b", "a/b", long.as_str()];
        let owned: Vec<String> = names.iter().map(ToString::to_string).collect();
        let script = ScriptedSource::new(move |out| {
            let names = owned.clone();
            Box::pin(async move {
                write_tree(&out, "c", vec![(entry(b"", EntryKind::Directory), Vec::new())]).await?;
                for (seed, name) in names.iter().enumerate() {
                    write_stream(&out, name, noise(1000, seed as u64)).await?;
                }
                write_stream(&out, "c.tar", noise(1000, 99)).await
            })
        });
        let task = script.task("manifest.json");
        let options = backup_core::run::RunOptions::new(backup_core::PlanName::new("test").unwrap(), "host");
        let manifest = backup_core::run::run(vec![task], &*sink, &options).await.unwrap();
        assert_eq!(manifest.sources[0].outcome, backup_core::manifest::SourceOutcome::Complete);
        let opened = sink.open(&manifest.id).await.unwrap();
        let source = backup_core::SourceName::new("manifest.json").unwrap();
        let reader = backup_core::BackupReader::new(opened, source).unwrap();
        for (seed, name) in names.iter().enumerate() {
            assert_eq!(reader.read(&artifact(name), u64::MAX).await.unwrap(), noise(1000, seed as u64), "{name}");
        }
        assert_eq!(reader.read(&artifact("c.tar"), u64::MAX).await.unwrap(), noise(1000, 99));
        run("sha256sum", &["--strict", "-c", "SHA256SUMS"], &folder.path().join(manifest.id.as_str())).await;
    }
}

/// The file system under the tests can do what the tests ask of it.
#[test]
fn the_file_system_keeps_extended_attributes() {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    rustix::fs::setxattr(file.path(), c"user.a", b"1", XattrFlags::empty()).unwrap();
}
