//! What would lose data without a word is refused before the first write, with the name of what is missing.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::{ArtifactRecord, Manifest};
use backup_core::sink::{EntryReader, PieceReader, Sink, SnapshotReader, StoredEntry};
use backup_core::{BackupReader, SourceName};
use jiff::{SignedDuration, Timestamp};

use super::support::{archived, empty_log, into, push_all};
use crate::support::{open_folder, restore, source};

/// The error of a recovery, which left nothing behind.
#[track_caller]
fn refused<T: std::fmt::Debug>(folder: &std::path::Path, result: Result<T>, kind: ErrorKind, word: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.chain().contains(word), "`{word}` in {error:?}");
    assert!(!folder.exists(), "nothing was written: {error:?}");
}

#[tokio::test]
async fn what_is_missing_or_damaged_in_the_log_is_named() {
    let db = archived("");
    db.back_up().await;
    db.step(1);
    let before = db.lsn();
    db.push().await;
    let segment = db.segment();
    db.step(2);
    db.push().await;
    db.step(3);
    db.push().await;
    let home = open_folder();
    let target = |name: &str| home.path().join(name);

    let lacking = db.archive_with(|name, content| (name != segment).then_some(content)).await;
    let latest = into(&target("hole"), Moment::Latest);
    refused(&target("hole"), db.recover_with(&lacking, &latest).await, ErrorKind::Incomplete, &segment);
    // Before the hole nothing is missing.
    db.recover_with(&lacking, &into(&target("before"), before.clone())).await.unwrap();

    // In the midst of the records, before it came to the archive, which therefore has its checksum.
    let flip = |name: &str, mut content: Vec<u8>| {
        if name == segment {
            content[40_000] ^= 4;
        }
        Some(content)
    };
    let flipped = db.archive_with(flip).await;
    let latest = into(&target("flipped"), Moment::Latest);
    refused(&target("flipped"), db.recover_with(&flipped, &latest).await, ErrorKind::Damaged, &segment);
    db.recover_with(&flipped, &into(&target("again"), before)).await.unwrap();

    let nothing = into(&target("nothing"), Moment::Latest);
    refused(&target("nothing"), db.recover_with(&empty_log(), &nothing).await, ErrorKind::NotFound, "no archived log");
}

#[tokio::test]
async fn moments_outside_of_the_window_are_refused_with_the_window() {
    let db = archived("");
    let started = Timestamp::now();
    let before = db.lsn();
    let first = db.back_up().await;
    db.step(1);
    db.server.sql("postgres", "select pg_create_restore_point('one')");
    db.push().await;
    let home = open_folder();
    let folder = home.path().join("x");
    let first_end = first.source(&source()).unwrap().details["physical"]["stopped"].as_str().unwrap().to_owned();
    let year = first_end[..10].to_owned();
    for (moment, kind, word) in [
        (Moment::Time(started), ErrorKind::NotFound, year.as_str()),
        (Moment::Time(Timestamp::now() + SignedDuration::from_hours(1)), ErrorKind::NotFound, &year),
        (before, ErrorKind::NotFound, &year),
        (Moment::Position("F/0".into()), ErrorKind::NotFound, &year),
        (Moment::Name("two".into()), ErrorKind::NotFound, "`two`"),
        (Moment::Transaction(4_000_000_000), ErrorKind::NotFound, "4000000000"),
        (Moment::Position("yesterday".into()), ErrorKind::Usage, "yesterday"),
    ] {
        refused(&folder, db.recover_as(&into(&folder, moment)).await, kind, word);
    }
}

#[tokio::test]
async fn the_archive_of_another_server_is_refused() {
    let (db, other) = (archived(""), archived(""));
    db.back_up().await;
    other.push().await;
    let foreign = empty_log();
    push_all(&foreign, &other.archive).await;
    let home = open_folder();
    let folder = home.path().join("x");
    let system = other.server.sql("postgres", "select system_identifier from pg_control_system()");
    let result = db.recover_with(&foreign, &into(&folder, Moment::Latest)).await;
    refused(&folder, result, ErrorKind::Unsupported, &system);
}

/// A snapshot that lost a part of its tree, and does not know.
#[derive(Debug)]
struct Without {
    inner: Arc<dyn SnapshotReader>,
    manifest: Manifest,
    prefix: &'static str,
}

struct Entries(Box<dyn EntryReader>, &'static str);

#[async_trait]
impl EntryReader for Entries {
    async fn next(&mut self) -> Result<Option<StoredEntry>> {
        while let Some(entry) = self.0.next().await? {
            if !entry.entry.path.to_string().starts_with(self.1) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl SnapshotReader for Without {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn stream(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        self.inner.stream(source, artifact).await
    }

    async fn tree(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        Ok(Box::new(Entries(self.inner.tree(source, artifact).await?, self.prefix)))
    }
}

#[tokio::test]
async fn a_tablespace_without_its_files_is_refused() {
    let db = archived("");
    let space = db.server.make_folder("space");
    db.server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    db.server.sql("postgres", "create table spaced tablespace fast as select 1 as one");
    let saved = db.back_up().await;
    let inner = db.sink.open(&saved.id).await.unwrap();
    let mut manifest = inner.manifest().clone();
    for artifact in &mut manifest.sources[0].artifacts {
        artifact.entries = None;
    }
    let without = Without { inner, manifest, prefix: "pg_tblspc/" };
    let reader = BackupReader::new(Arc::new(without), source()).unwrap();
    let home = open_folder();
    let folder = home.path().join("x");
    let result: Result<_, Error> = restore(&db.engine(), &reader, &into(&folder, Moment::Snapshot)).await;
    refused(&folder, result, ErrorKind::Incomplete, "pg_tblspc/");
}
