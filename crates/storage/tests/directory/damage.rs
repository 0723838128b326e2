//! Every kind of damage is found by `check`, named, and by reading; what is whole stays readable.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::manifest::Manifest;
use backup_core::plan::CompressionConfig;
use backup_core::sink::{CheckDepth, Damage, Sink, SnapshotFilter};
use backup_core::{BackupReader, ErrorKind};
use backup_testkit::noise;

use super::support::{COMPRESSIONS, artifact, cx, files, open, read_snapshot, run, snapshot, source};

async fn made(compression: CompressionConfig) -> (tempfile::TempDir, Arc<dyn Sink>, Manifest, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let sink = open(folder.path(), compression).await;
    let manifest = snapshot(&*sink).await.expect("the run succeeds");
    let path = folder.path().join(manifest.id.as_str());
    (folder, sink, manifest, path)
}

async fn damage(sink: &dyn Sink, depth: CheckDepth, manifest: &Manifest) -> Vec<Damage> {
    sink.check(&cx(), depth, std::slice::from_ref(&manifest.id)).await.expect("it can be checked").damage
}

/// A way in which a file can be hurt.
#[derive(Debug, Clone, Copy)]
enum Injury {
    FlipByte(usize),
    CutTo(usize),
    Append,
}

impl Injury {
    fn all(length: usize) -> impl Iterator<Item = Self> {
        let flips = [0, 1, 9, length / 3, length / 2, length - 2, length - 1].map(Self::FlipByte);
        flips.into_iter().chain([0, 1, length / 2, length - 1].map(Self::CutTo)).chain([Self::Append])
    }

    fn hurt(self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::FlipByte(at) => bytes[at] ^= 1,
            Self::CutTo(length) => bytes.truncate(length),
            Self::Append => bytes.push(0),
        }
        bytes
    }
}

#[tokio::test]
async fn every_injury_of_every_file_is_found_by_the_check_and_by_reading() {
    for compression in COMPRESSIONS {
        let (_keep, sink, manifest, folder) = made(compression).await;
        assert_eq!(damage(&*sink, CheckDepth::Data, &manifest).await, []);
        for name in files(&folder) {
            let path = folder.join(&name);
            let whole = std::fs::read(&path).unwrap();
            for injury in Injury::all(whole.len()) {
                let what = format!("{compression:?} {}: {injury:?}", name.display());
                std::fs::write(&path, injury.hurt(whole.clone())).unwrap();
                let found = damage(&*sink, CheckDepth::Data, &manifest).await;
                assert!(!found.is_empty(), "{what}");
                assert!(
                    found.iter().all(|damage| damage.object.starts_with(manifest.id.as_str())),
                    "{what}: {found:?}"
                );
                assert!(found.iter().all(|damage| damage.hurts.iter().all(|hurt| hurt.snapshot == manifest.id)));
                if name.starts_with("test") {
                    let object = format!("{}/{}", manifest.id, name.display());
                    assert_eq!(found.iter().map(|damage| &damage.object).collect::<Vec<_>>(), [&object], "{what}");
                    let hurt = found[0].hurts[0].artifact.as_ref().unwrap().as_str();
                    assert!(name.to_str().unwrap().contains(hurt), "{what}: {hurt}");
                }
                if name != Path::new("SHA256SUMS") {
                    let error = read_snapshot(&*sink, &manifest.id).await.expect_err(&what);
                    assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported), "{what}: {error:?}");
                }
                std::fs::write(&path, &whole).unwrap();
            }
        }
        read_snapshot(&*sink, &manifest.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_missing_file_is_found_without_reading_and_the_rest_stays_readable() {
    let (_keep, sink, manifest, folder) = made(CompressionConfig::Zstd).await;
    let tree = folder.join("test/tree.tar.zst");
    std::fs::remove_file(&tree).unwrap();
    let found = damage(&*sink, CheckDepth::References, &manifest).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].object, format!("{}/test/tree.tar.zst", manifest.id));
    assert_eq!(found[0].hurts[0].artifact, Some(artifact("tree")));
    let reader = BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap();
    assert_eq!(reader.read(&artifact("stream"), u64::MAX).await.unwrap(), noise(300_000, 1));
    assert_eq!(reader.tree(&artifact("tree")).await.expect_err("it is missing").kind(), ErrorKind::Damaged);
    // Neither a link nor a pipe is taken for the file.
    std::os::unix::fs::symlink("/etc/passwd", &tree).unwrap();
    assert_eq!(reader.tree(&artifact("tree")).await.expect_err("it is a link").kind(), ErrorKind::Damaged);
    std::fs::remove_file(&tree).unwrap();
    run("mkfifo", &[tree.to_str().unwrap()], &folder).await;
    assert_eq!(reader.tree(&artifact("tree")).await.expect_err("it is a pipe").kind(), ErrorKind::Damaged);
    assert_eq!(damage(&*sink, CheckDepth::Data, &manifest).await.len(), 1);
}

#[tokio::test]
async fn without_its_sums_a_stream_is_still_held_against_the_manifest() {
    let (_keep, sink, manifest, folder) = made(CompressionConfig::None).await;
    std::fs::remove_file(folder.join("SHA256SUMS")).unwrap();
    let found = damage(&*sink, CheckDepth::References, &manifest).await;
    assert_eq!(
        found.iter().map(|damage| damage.object.clone()).collect::<Vec<_>>(),
        [format!("{}/SHA256SUMS", manifest.id)]
    );
    let reader = BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap();
    assert_eq!(reader.read(&artifact("stream"), u64::MAX).await.unwrap(), noise(300_000, 1));
    let error = reader.tree(&artifact("tree")).await.expect_err("nothing tells whether it is whole");
    assert!(error.to_string().contains("SHA256SUMS"), "{error}");
}

#[tokio::test]
async fn a_damaged_manifest_hides_no_other_snapshot_and_is_reported() {
    let (_keep, sink, manifest, folder) = made(CompressionConfig::Zstd).await;
    let other = snapshot(&*sink).await.unwrap();
    std::fs::write(folder.join("manifest.json"), "{}").unwrap();
    let listed = sink.snapshots(&SnapshotFilter::default()).await.unwrap();
    assert_eq!(listed.iter().map(|summary| &summary.id).collect::<Vec<_>>(), [&other.id]);
    let found = damage(&*sink, CheckDepth::References, &other).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].object, format!("{}/manifest.json", manifest.id));
    // With nothing else to list, the list is an error, not empty.
    std::fs::remove_dir_all(folder.parent().unwrap().join(other.id.as_str())).unwrap();
    let error = sink.snapshots(&SnapshotFilter::default()).await.expect_err("the only snapshot is damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn what_is_not_ours_is_noted() {
    let (keep, sink, manifest, folder) = made(CompressionConfig::Zstd).await;
    std::fs::write(folder.join("test/notes.txt"), "mine").unwrap();
    std::fs::write(keep.path().join("README"), "mine").unwrap();
    std::fs::create_dir(keep.path().join(".partial-x")).unwrap();
    let report = sink.check(&cx(), CheckDepth::Data, &[manifest.id]).await.unwrap();
    assert_eq!(report.damage, []);
    let notes = report.notes.join("\n");
    assert!(notes.contains("test/notes.txt") && notes.contains("README") && notes.contains(".partial-x"), "{notes}");
}

/// A member of an archive that no backup writes.
fn member(name: &str, kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let ustar = header.as_ustar_mut().expect("it is of that format");
    ustar.name[..name.len()].copy_from_slice(name.as_bytes());
    ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[tokio::test]
async fn an_archive_that_someone_wrote_to_escape_its_target_is_refused() {
    use tar::EntryType as Type;
    let (_keep, sink, manifest, folder) = made(CompressionConfig::None).await;
    let hostile = [
        member("../evil", Type::Regular, ""),
        member("/etc/evil", Type::Regular, ""),
        member("a/../../evil", Type::Directory, ""),
        member("link", Type::Link, "../../etc/passwd"),
        member("link", Type::Link, "/etc/passwd"),
        member("", Type::Regular, ""),
        member("a", Type::GNULongName, ""),
        member("a", Type::GNUSparse, ""),
        [member("b", Type::Regular, ""), member("a", Type::Regular, "")].concat(),
        [member("a", Type::Symlink, "/etc"), member("a", Type::Regular, "")].concat(),
    ];
    for (number, mut archive) in hostile.into_iter().enumerate() {
        archive.extend_from_slice(&[0; 1024]);
        std::fs::write(folder.join("test/tree.tar"), &archive).unwrap();
        run("sh", &["-c", "sha256sum manifest.json test/* > SHA256SUMS"], &folder).await;
        let reader = BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap();
        let mut tree = reader.tree(&artifact("tree")).await.unwrap();
        let error = loop {
            match tree.next().await {
                Ok(Some(stored)) => assert!(["a", "b"].contains(&stored.entry.path.to_string().as_str()), "{number}"),
                Ok(None) => panic!("archive {number} was accepted"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Damaged, "{number}: {error:?}");
    }
}

#[tokio::test]
async fn a_manifest_or_sums_that_point_elsewhere_are_refused() {
    let (keep, sink, manifest, folder) = made(CompressionConfig::None).await;
    std::fs::write(keep.path().join("outside"), "secret").unwrap();
    let whole = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    for path in ["../outside", "/etc/passwd", "test/../../outside"] {
        std::fs::write(folder.join("manifest.json"), whole.replace("test/tree.tar", path)).unwrap();
        run("sh", &["-c", "sha256sum manifest.json test/* > SHA256SUMS"], &folder).await;
        assert_eq!(sink.open(&manifest.id).await.expect_err(path).kind(), ErrorKind::Damaged);
    }
    std::fs::write(folder.join("manifest.json"), &whole).unwrap();
    run("sh", &["-c", "sha256sum manifest.json test/* ../outside > SHA256SUMS"], &folder).await;
    let found = damage(&*sink, CheckDepth::Data, &manifest).await;
    assert!(found.iter().any(|damage| damage.problem.contains("../outside")), "{found:?}");
    // A snapshot under another's name is not taken for it.
    let id = backup_core::SnapshotId::new("20200101-000000-aaaaaaaa").unwrap();
    std::fs::rename(&folder, keep.path().join(id.as_str())).unwrap();
    assert_eq!(sink.open(&id).await.expect_err("the manifest is of another").kind(), ErrorKind::Damaged);
}
