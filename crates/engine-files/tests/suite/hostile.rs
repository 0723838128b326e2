//! Trees and manifests that somebody made by hand to write outside the target: refused, and nothing is written.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{Preflight, RestoreTarget, Source, SourceSummary};
use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::Manifest;
use backup_core::sink::ChunkHint;
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use backup_core::{ArtifactName, BackupReader, BackupWriter, Evidence, RunContext};
use backup_testkit::MemorySink;
use bytes::Bytes;

use crate::support::{back_up, engine, files, into_folder, name, reader, restore};

/// A source that saves whatever entries it was given.
#[derive(Debug)]
struct HandMade {
    entries: Vec<TreeEntry>,
    details: serde_json::Value,
}

#[async_trait]
impl Source for HandMade {
    async fn preflight(&self, _: &RunContext) -> Result<Preflight> {
        Ok(Preflight::default())
    }

    async fn backup(&self, _: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        let mut tree = out.tree(ArtifactName::new("tree")?).await?;
        for entry in &self.entries {
            if matches!(entry.kind, EntryKind::File { .. }) {
                let mut file = tree.file(entry.path.clone(), ChunkHint::Stream).await?;
                file.write(Bytes::from_static(b"evil")).await?;
                file.finish(entry.clone()).await?;
            } else {
                tree.entry(entry.clone()).await?;
            }
        }
        tree.seal(Evidence::Listing { entries: self.entries.len() as u64 }).await?;
        let details = self.details.as_object().unwrap().clone().into_iter().collect();
        Ok(SourceSummary { details, ..SourceSummary::default() })
    }
}

fn entry(path: &str, kind: EntryKind) -> TreeEntry {
    let mode = if kind == EntryKind::Directory { 0o755 } else { 0o644 };
    TreeEntry {
        path: TreePath::new(path).unwrap(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        user: None,
        group: None,
        modified: FileTime::default(),
        xattrs: Vec::new(),
        identity: FileIdentity::default(),
    }
}

pub(crate) fn dir(path: &str) -> TreeEntry {
    entry(path, EntryKind::Directory)
}

fn file(path: &str) -> TreeEntry {
    entry(path, EntryKind::File { size: 4 })
}

fn symlink(path: &str, target: &Path) -> TreeEntry {
    entry(path, EntryKind::Symlink { target: target.as_os_str().as_encoded_bytes().to_vec() })
}

fn hard_link(path: &str, target: &str) -> TreeEntry {
    entry(path, EntryKind::Hardlink { target: TreePath::new(target).unwrap() })
}

async fn hand_made(entries: Vec<TreeEntry>, details: serde_json::Value) -> (MemorySink, Manifest) {
    let mut engine = files("paths: [/srv]");
    engine.source = Arc::new(HandMade { entries, details });
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    (sink, manifest)
}

pub(crate) async fn hand_made_reader(entries: Vec<TreeEntry>, details: serde_json::Value) -> BackupReader {
    let (sink, manifest) = hand_made(entries, details).await;
    reader(&sink, &manifest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_entry_leads_out_of_the_target() {
    let home = tempfile::tempdir().unwrap();
    let outside = home.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "unharmed").unwrap();
    let up = Path::new("../../outside");
    let cases = [
        ("a link, then a file in it", vec![symlink("a", &outside), file("a/b")]),
        ("a link, then a folder in it", vec![symlink("a", &outside), dir("a/b"), file("a/b/c")]),
        ("a relative link", vec![dir("d"), symlink("d/a", up), file("d/a/b")]),
        ("a link, then a link in it", vec![symlink("a", &outside), symlink("a/b", Path::new("/etc"))]),
        ("a link, then a hard link in it", vec![file("0"), symlink("a", &outside), hard_link("a/b", "0")]),
        ("a hard link through a link", vec![symlink("a", &outside), hard_link("b", "a/victim")]),
        ("a file in a file", vec![file("a"), file("a/b")]),
        ("a file in no folder", vec![file("a/b/c")]),
        ("a hard link to what comes later", vec![hard_link("a", "b"), file("b")]),
        ("a hard link to itself", vec![hard_link("a", "a")]),
    ];
    for (what, entries) in cases {
        let from = hand_made_reader(entries, serde_json::json!({ "roots": ["/"] })).await;
        let target = home.path().join("inside/target");
        let error = restore(&files("paths: [/srv]"), &from, &into_folder(&target)).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error:?}");
        assert!(!target.exists() && !home.path().join("inside").exists(), "{what}: nothing is written");
        let found: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert_eq!(found, ["victim"], "{what}");
        assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "unharmed", "{what}");
        assert_eq!(std::fs::metadata(outside.join("victim")).unwrap().nlink(), 1, "{what}");
    }
    // The harness itself restores what is harmless, so the refusals above are not its own.
    let harmless = vec![dir("d"), file("d/a"), hard_link("d/b", "d/a"), symlink("z", &outside)];
    let from = hand_made_reader(harmless, serde_json::json!({ "roots": ["/d", "/z"] })).await;
    restore(&files("paths: [/srv]"), &from, &into_folder(&home.path().join("ok"))).await.unwrap();
    assert_eq!(std::fs::read_to_string(home.path().join("ok/d/b")).unwrap(), "evil");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_entries_that_lie_in_no_folder() {
    for entries in [vec![symlink("a", Path::new("/tmp")), file("a/b")], vec![file("x/y")]] {
        let from = hand_made_reader(entries, serde_json::json!({ "roots": ["/"] })).await;
        let report = files("paths: [/srv]").verifier.verify(&RunContext::new(name()), &from).await.unwrap();
        assert!(
            report.findings.iter().any(|finding| finding.problem.contains("does not lie in a folder")),
            "{report:?}"
        );
    }
}

/// Links that only a restore of a part meets: their targets are left out, so these are made anew from the listing.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_what_is_not_restored_is_never_followed() {
    let home = tempfile::tempdir().unwrap();
    let part = |target: &str| RestoreTarget { select: vec!["/d".into()], ..into_folder(&home.path().join(target)) };
    let engine = files("paths: [/srv]");
    let entries = vec![symlink("a", Path::new("/etc/passwd")), dir("d"), hard_link("d/b", "a"), hard_link("d/c", "a")];
    let from = hand_made_reader(entries, serde_json::json!({ "roots": ["/"] })).await;
    restore(&engine, &from, &part("link")).await.unwrap();
    for name in ["b", "c"] {
        let link = std::fs::read_link(home.path().join("link/d").join(name)).unwrap();
        assert_eq!(link, Path::new("/etc/passwd"), "it is the link itself, not what it leads to");
    }
    let entries = vec![dir("a"), dir("d"), hard_link("d/b", "a")];
    let from = hand_made_reader(entries, serde_json::json!({ "roots": ["/"] })).await;
    restore(&engine, &from, &part("folder")).await.unwrap_err();
    assert!(!home.path().join("folder").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_does_not_decide_where_files_go() {
    let home = tempfile::tempdir().unwrap();
    let victim = home.path().join("victim");
    let path = victim.to_str().unwrap().trim_start_matches('/').to_owned();
    let folders: Vec<TreeEntry> =
        Path::new(&path).parent().unwrap().ancestors().map(|folder| dir(folder.to_str().unwrap())).collect();
    let mut entries: Vec<TreeEntry> = folders.into_iter().filter(|entry| !entry.path.is_root()).collect();
    entries.reverse();
    entries.push(file(&path));
    let from = hand_made_reader(entries.clone(), serde_json::json!({ "roots": [victim] })).await;
    let error = restore(&files("paths: [/srv/elsewhere]"), &from, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Plan, "{error:?}");
    assert!(!victim.exists() && error.remedy().is_some());
    for roots in [
        serde_json::json!(["/../etc"]),
        serde_json::json!(["a/../../etc"]),
        serde_json::json!([1]),
        serde_json::json!(null),
    ] {
        let from = hand_made_reader(entries.clone(), serde_json::json!({ "roots": roots })).await;
        let error = restore(&files("paths: [/]"), &from, &RestoreTarget::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{roots}: {error:?}");
    }
    let from = hand_made_reader(entries, serde_json::json!({ "roots": [victim] })).await;
    restore(&files(&format!("paths: [{}]", home.path().display())), &from, &RestoreTarget::default()).await.unwrap();
    assert!(victim.exists(), "where the plan says, it goes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_does_not_decide_where_databases_go() {
    let sqlite = engine(&engine_files::SQLITE, "paths: [/srv/a.db, /srv/b.db]").unwrap();
    let record = |path: &str| {
        serde_json::json!({ "databases": [{ "artifact": "a", "path": path, "page_size": 4096, "journal_mode": "wal", "encoding": "UTF-8",
            "application_id": 0, "user_version": 0, "mode": 0o644, "uid": 0, "gid": 0, "user": null, "group": null }] })
    };
    for (path, kind) in [
        ("/etc/cron.d/x", ErrorKind::Plan),
        ("/srv/../etc/x", ErrorKind::Damaged),
        ("x", ErrorKind::Damaged),
        ("/", ErrorKind::Damaged),
    ] {
        let from = hand_made_reader(vec![file("a")], record(path)).await;
        let cx = RunContext::new(name());
        let error = sqlite.restorer.plan_restore(&cx, &from, &RestoreTarget::default()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error:?}");
    }
}
