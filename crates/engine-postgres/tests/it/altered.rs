//! Snapshots of base backups that lack something, or have something else: what `verify` says of each.
//!
//! A sink finds flipped bits by itself. These are whole as far as a sink can see, and useless to a server: what a defect of
//! ours, or of the server, would make.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{Preflight, Source, SourceSummary};
use backup_core::error::Result;
use backup_core::evidence::Evidence;
use backup_core::plan::OnFailure;
use backup_core::run::{Task, run};
use backup_core::sink::{ChunkHint, Piece, Sink};
use backup_core::tree::EntryKind;
use backup_core::{ArtifactName, BackupReader, BackupWriter, RunContext};
use backup_testkit::{MemorySink, PrivatePostgres};
use bytes::Bytes;

use crate::support::{back_up, context, engine, options, source};

/// What becomes of a file: `None` leaves it out.
type Change = fn(&str, Vec<u8>) -> Option<Vec<u8>>;
/// What becomes of the details.
type Tell = fn(&mut serde_json::Value);

/// Writes a snapshot's base backup again, changed.
#[derive(Debug)]
struct Altered {
    from: BackupReader,
    change: Change,
    tell: Tell,
}

#[async_trait]
impl Source for Altered {
    async fn preflight(&self, _: &RunContext) -> Result<Preflight> {
        Ok(Preflight::default())
    }

    async fn backup(&self, _: &RunContext, out: &BackupWriter) -> Result<SourceSummary> {
        let name = ArtifactName::new("base")?;
        let mut from = self.from.tree(&name).await?;
        let mut to = out.tree_in_any_order(name).await?;
        let mut entries = 0;
        while let Some(stored) = from.next().await? {
            let Some(content) = stored.content else {
                to.entry(stored.entry).await?;
                entries += 1;
                continue;
            };
            let mut bytes = Vec::new();
            let mut pieces = content.open().await?;
            while let Some(piece) = pieces.next().await? {
                match piece {
                    Piece::Data(data) => bytes.extend_from_slice(&data),
                    Piece::Hole(length) => bytes.resize(bytes.len() + length as usize, 0),
                }
            }
            let Some(bytes) = (self.change)(&stored.entry.path.to_string(), bytes) else { continue };
            let mut entry = stored.entry;
            entry.kind = EntryKind::File { size: bytes.len() as u64 };
            let mut file = to.file(entry.path.clone(), ChunkHint::Stream).await?;
            file.write(Bytes::from(bytes)).await?;
            file.finish(entry).await?;
            entries += 1;
        }
        to.seal(Evidence::Listing { entries }).await?;
        let mut details = self.from.record().details.clone();
        (self.tell)(details.get_mut("physical").unwrap());
        Ok(SourceSummary { details, ..SourceSummary::default() })
    }
}

#[tokio::test]
async fn whatever_would_be_lost_silently_is_named() {
    let server = PrivatePostgres::start();
    let space = server.make_folder("space");
    server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    server.sql("postgres", "create table t tablespace fast as select generate_series(1, 5000) n; checkpoint");
    let engine = engine(&server, "modes: [physical]");
    let saved = back_up(&engine).await.unwrap();
    let same: Tell = |_| {};
    let untouched: Change = |_, bytes| Some(bytes);
    let cases: [(Change, Tell, &str); 9] = [
        (untouched, same, ""),
        // A segment of the log is missing: the server would promote without what is in it.
        (|path, bytes| (!path.starts_with("pg_wal/0")).then_some(bytes), same, "which the backup needs, is missing"),
        // The tablespace is missing: the server would start without it.
        (|path, bytes| (!path.starts_with("pg_tblspc/")).then_some(bytes), same, "in the manifest and not in the tree"),
        (
            |path, mut bytes| {
                if path == "PG_VERSION" {
                    bytes[0] ^= 1;
                }
                Some(bytes)
            },
            same,
            "PG_VERSION does not have the checksum of the server's manifest",
        ),
        (
            |path, mut bytes| {
                if path == "global/pg_control" {
                    bytes.pop();
                }
                Some(bytes)
            },
            same,
            "global/pg_control has 8191 bytes, not 8192",
        ),
        // The log of another server, under the right name.
        (
            |path, mut bytes| {
                if path.starts_with("pg_wal/0") {
                    bytes[24] ^= 1;
                }
                Some(bytes)
            },
            same,
            "belongs to another server",
        ),
        (|path, bytes| (path != "backup_manifest").then_some(bytes), same, "the server's manifest is missing"),
        (
            |path, mut bytes| {
                if path == "backup_manifest" {
                    let at = bytes.len() / 2;
                    bytes[at] ^= 1;
                }
                Some(bytes)
            },
            same,
            "manifest",
        ),
        // It needs more of the log than it has.
        (untouched, |details| details["stop_lsn"] = "0/7000000".into(), "which the backup needs, is missing"),
    ];
    for (change, tell, problem) in cases {
        let sink = MemorySink::default();
        let altered = Arc::new(Altered { from: saved.reader().await, change, tell });
        let task = Task { name: source(), engine: "postgres".into(), source: altered, on_failure: OnFailure::Continue };
        let manifest = run(vec![task], &sink, &options()).await.unwrap();
        let reader = BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap();
        let findings = engine.verifier.verify(&context(), &reader).await.unwrap().findings;
        let told: Vec<&str> = findings.iter().map(|finding| finding.problem.as_str()).collect();
        if problem.is_empty() {
            assert_eq!(told, [""; 0]);
        } else {
            assert!(told.iter().any(|told| told.contains(problem)), "{problem}: {told:?}");
        }
    }
}

#[tokio::test]
async fn a_standby_is_saved_too() {
    // Without it a standby refuses: its backup could not be repaired by the log.
    let primary = PrivatePostgres::with_settings(&[("full_page_writes", "on")]);
    primary.sql("postgres", "create table t as select generate_series(1, 5000) n");
    let standby = primary.standby();
    let engine = engine(&standby, "modes: [physical]");
    let preflight = engine.source.preflight(&context()).await.unwrap();
    // Older servers do not tell in a replication session.
    let told = preflight.warnings.iter().any(|warning| warning.contains("standby"));
    assert!(told || standby.major() < 14, "{preflight:?}");
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.record().details["physical"]["standby"], true);
    let report = engine.verifier.verify(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(report.findings, [], "{report:?}");
}
