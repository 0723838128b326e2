//! Native increments, which servers have since version 17: what they make of every change, and what becomes of them when
//! something is in their way. `cargo xtask test --postgres FOLDER` runs these tests on a server that has them.

use backup_core::engine::{Place, RestoreTarget};
use backup_core::manifest::{Manifest, SourceRecord};
use backup_core::run::run;
use backup_core::sink::Sink;
use backup_core::{BackupReader, SnapshotId};
use backup_testkit::{MemorySink, PrivatePostgres};

use crate::support::{context, engine, open_folder, options, restore, source, task};

const PHYSICAL: &str = "modes: [physical]";

fn server() -> PrivatePostgres {
    let server = PrivatePostgres::with_settings(&[("summarize_wal", "on")]);
    assert!(server.major() >= 17, "name the programs of PostgreSQL 17 or newer: cargo xtask test --postgres FOLDER");
    server.sql("postgres", "create table t as select n, md5(n::text) as m from generate_series(1, 50000) n");
    server
}

async fn back_up(server: &PrivatePostgres, more: &str, sink: &MemorySink) -> Manifest {
    run(vec![task(&engine(server, &format!("{PHYSICAL}{more}")))], sink, &options()).await.unwrap()
}

fn record(manifest: &Manifest) -> &SourceRecord {
    manifest.source(&source()).unwrap()
}

fn increment_of(manifest: &Manifest) -> Option<SnapshotId> {
    serde_json::from_value(record(manifest).details["physical"]["increment_of"].clone()).unwrap()
}

/// Restores and starts it, after both we and `pg_verifybackup` looked at it.
async fn start(
    server: &PrivatePostgres,
    sink: &MemorySink,
    manifest: &Manifest,
) -> (PrivatePostgres, tempfile::TempDir) {
    let reader = BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap();
    let engine = engine(server, PHYSICAL);
    let report = engine.verifier.verify(&context(), &reader).await.unwrap();
    assert_eq!(report.findings, [], "{report:?}");
    let folder = open_folder();
    let target = folder.path().join("restored");
    let to = RestoreTarget { place: Place::Folder(target.clone()), ..RestoreTarget::default() };
    restore(&engine, &reader, &to).await.unwrap();
    let output = server.program("pg_verifybackup").arg(target.join("data")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (server.on_data(&target.join("data")), folder)
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17 or newer: cargo xtask test --postgres FOLDER"]
async fn whatever_changed_the_result_is_the_cluster() {
    let server = server();
    let sink = MemorySink::default();
    let mut last = back_up(&server, "", &sink).await;
    let changes = [
        "update t set m = 'changed' where n % 5000 = 0",
        "delete from t where n > 20000; vacuum t",
        "insert into t select n, 'grown' from generate_series(1, 90000) n; create index on t (n)",
        "truncate t; insert into t values (1, 'few')",
        "drop table t; create table t as select n, 'new' as m from generate_series(1, 3000) n",
        "create database other; vacuum full t",
        "select 1",
    ];
    for change in changes {
        for statement in change.split("; ") {
            server.sql("postgres", statement);
        }
        let manifest = back_up(&server, "", &sink).await;
        assert_eq!(increment_of(&manifest), Some(last.id), "{change}: {:?}", record(&manifest).warnings);
        let (copy, _folder) = start(&server, &sink, &manifest).await;
        let sum = "select count(*), sum(n), sum(hashtext(m)) from t";
        assert_eq!(copy.sql("postgres", sum), server.sql("postgres", sum), "{change}");
        let indexed = "set enable_seqscan = off; select count(*) from t where n between 10 and 2000";
        assert_eq!(copy.sql("postgres", indexed), server.sql("postgres", indexed), "{change}");
        last = manifest;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17 or newer: cargo xtask test --postgres FOLDER"]
async fn whatever_is_in_the_way_costs_time_and_not_the_backup() {
    let server = server();
    let sink = MemorySink::default();
    back_up(&server, "", &sink).await;
    let full = async |server: &PrivatePostgres, more: &str, why: &str| {
        let manifest = back_up(server, more, &sink).await;
        assert_eq!(increment_of(&manifest), None, "{why}");
        let warnings = record(&manifest).warnings.join("\n");
        assert!(warnings.contains(why), "{why}: {warnings}");
        start(server, &sink, &manifest).await;
    };
    full(&server, ", increments: never", "").await;
    // The summaries are gone.
    let position = server.sql("postgres", "update t set m = 'x'; select pg_current_wal_insert_lsn()");
    server.sql("postgres", "checkpoint");
    let summarized = format!("select summarized_lsn >= '{position}' from pg_get_wal_summarizer_state()");
    while server.sql("postgres", &summarized) != "t" {
        server.sql("postgres", "select pg_switch_wal(); checkpoint");
    }
    for entry in std::fs::read_dir(server.data_folder().join("pg_wal/summaries")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    full(&server, "", "summaries").await;
    // Then it goes on.
    let manifest = back_up(&server, "", &sink).await;
    assert!(increment_of(&manifest).is_some(), "{:?}", record(&manifest).warnings);
    server.set("summarize_wal", "off");
    full(&server, "", "`summarize_wal` is off").await;
    // Another server under the name of this one.
    full(&self::server(), "", "another server").await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL 17 or newer: cargo xtask test --postgres FOLDER"]
async fn a_damaged_page_that_was_not_sent_again_is_still_told() {
    let server = server();
    let path = server.sql("postgres", "checkpoint; select pg_relation_filepath('t')");
    server.stop_immediately();
    let file = server.data_folder().join(&path);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8192 * 3 + 100] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    server.launch();
    let sink = MemorySink::default();
    let first = back_up(&server, "", &sink).await;
    let second = back_up(&server, "", &sink).await;
    assert_eq!(increment_of(&second), Some(first.id.clone()));
    for manifest in [&first, &second] {
        let damaged = &record(manifest).details["physical"]["damaged_pages"];
        assert_eq!(*damaged, serde_json::json!([{ "path": path, "block": 3 }]));
        let reader = BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap();
        let report = engine(&server, PHYSICAL).verifier.verify(&context(), &reader).await.unwrap();
        assert_eq!(report.findings.len(), 1, "{report:?}");
    }
}
