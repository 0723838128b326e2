//! Base backups of real servers under load: saved, placed again, started, and compared row by row.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use backup_core::engine::{Place, RestoreTarget};
use backup_core::error::{Error, ErrorKind};
use backup_core::event::Event;
use backup_core::manifest::Manifest;
use backup_core::position::Position;
use backup_core::run::run;
use backup_core::sink::Sink;
use backup_core::{ArtifactName, BackupReader};
use backup_testkit::{Action, Disturbance, DisturbedSink, MemorySink, PrivatePostgres};

use crate::support::{Saved, back_up, back_up_while, context, engine, open_folder, options, restore, source, task};

const PHYSICAL: &str = "modes: [physical]";

fn into(folder: &Path) -> RestoreTarget {
    RestoreTarget { place: Place::Folder(folder.to_owned()), ..RestoreTarget::default() }
}

fn details(saved: &Saved) -> serde_json::Value {
    saved.record().details["physical"].clone()
}

/// A server on a restored data directory, with what it must have of its own; the log is played to its end.
fn start(server: &PrivatePostgres, data: &Path) -> PrivatePostgres {
    server.on_data(data)
}

/// `pg_verifybackup` of the server's version.
fn verify_backup(server: &PrivatePostgres, data: &Path) {
    let output = server.program("pg_verifybackup").arg(data).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "pg_verifybackup: {text}");
}

/// A server with rows in the data directory and in a tablespace.
fn filled(settings: &[(&str, &str)]) -> PrivatePostgres {
    let server = PrivatePostgres::with_settings(settings);
    server.pgbench("postgres", &["-i", "-q", "-s", "2"]);
    let space = server.make_folder("space one");
    server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    server.sql(
        "postgres",
        "create table spaced (n int, t text) tablespace fast; insert into spaced select n, md5(n::text) from \
         generate_series(1, 20000) n; create unlogged table gone as select 1 as one; create database app; checkpoint",
    );
    server
}

const SPACED: &str = "select count(*), sum(hashtext(t)) from spaced";
const ACCOUNTS: &str =
    "select count(*), sum(abalance) = (select sum(bbalance) from pgbench_branches) from pgbench_accounts";

#[tokio::test]
async fn a_cluster_comes_back_whole_while_it_is_worked_on() {
    let server = filled(&[]);
    let busy = server.pgbench_in_background("postgres", &["-c", "2", "-T", "1000"]);
    let saved = back_up(&engine(&server, PHYSICAL)).await.unwrap();
    drop(busy);
    assert_eq!(saved.record().mode.as_deref(), Some("physical"));
    let details = details(&saved);
    assert_eq!(
        details["system_identifier"],
        server.sql("postgres", "select system_identifier from pg_control_system()")
    );
    assert_eq!(details["tablespaces"].as_array().unwrap().len(), 1);
    assert_eq!(details["data_checksums"], true);
    assert_eq!(details["settings"]["max_connections"], 50);
    let Some(Position::Wal { timeline: 1, lsn }) = saved.record().position else { panic!("a position") };
    assert_eq!(details["stop_lsn"], lsn.to_string());

    let folder = open_folder();
    let target = folder.path().join("restored");
    let report = restore(&engine(&server, PHYSICAL), &saved.reader().await, &into(&target)).await.unwrap();
    assert!(report.items > 900, "{report:?}");
    let data = target.join("data");
    let space = details["tablespaces"][0]["oid"].to_string();
    let link = std::fs::read_link(data.join("pg_tblspc").join(&space)).unwrap();
    assert_eq!(link, target.join("tablespaces").join(&space), "never the live one");
    verify_backup(&server, &data);
    let copy = start(&server, &data);
    assert_eq!(copy.sql("postgres", SPACED), server.sql("postgres", SPACED));
    assert_eq!(copy.sql("postgres", ACCOUNTS), "200000|t", "balances fit together");
    assert_eq!(copy.sql("postgres", "select count(*) from gone"), "0", "unlogged tables are empty");
    let place = copy.sql("postgres", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
    assert_eq!(Path::new(&place), link);
    // A restore never goes over what is there.
    let error = restore(&engine(&server, PHYSICAL), &saved.reader().await, &into(&target)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn verify_reads_everything_and_finds_nothing() {
    let server = filled(&[]);
    let engine = engine(&server, PHYSICAL);
    let saved = back_up(&engine).await.unwrap();
    let report = engine.verifier.verify(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(report.findings, [], "{report:?}");
    assert!(report.checked.iter().any(|what| what.contains("segments of the log")), "{report:?}");
    assert!(report.checked.iter().any(|what| what.contains("by their checksums")), "{report:?}");
}

/// Changes bytes in the second half of a file's first page, below the server, which has the page in memory.
fn tear(server: &PrivatePostgres, table: &str) -> String {
    server.sql("postgres", &format!("vacuum freeze {table}; checkpoint; select count(*) from {table}"));
    let path = server.sql("postgres", &format!("select pg_relation_filepath('{table}')"));
    let file = server.data_folder().join(&path);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[7000..7100].fill(0xa5);
    std::fs::write(&file, &bytes).unwrap();
    path
}

/// A page of which one half is older than the other, and that was changed while the backup ran, is whole in the log.
#[tokio::test]
async fn a_torn_page_that_the_log_puts_back_is_not_called_damaged() {
    let server = filled(&[("bgwriter_lru_maxpages", "0")]);
    for table in ["torn", "rotten"] {
        server.sql(
            "postgres",
            &format!("create table {table} as select n, md5(n::text) t from generate_series(1, 5000) n"),
        );
    }
    tear(&server, "torn");
    let rotten = tear(&server, "rotten");
    let engine = engine(&server, PHYSICAL);
    let server = Arc::new(server);
    let changing = Arc::clone(&server);
    // The backup has begun, and nothing of it was read.
    let saved = back_up_while(&engine, move |event| {
        if matches!(event, Event::Step { what, .. } if what.starts_with("receiving")) {
            changing.sql("postgres", "update torn set t = 'new' where n = 1");
        }
    });
    let saved = saved.await.unwrap();
    assert_eq!(details(&saved)["damaged_pages"], serde_json::json!([{ "path": rotten, "block": 0 }]));
    let report = engine.verifier.verify(&context(), &saved.reader().await).await.unwrap();
    let findings: Vec<&str> = report.findings.iter().map(|finding| finding.problem.as_str()).collect();
    assert!(matches!(findings[..], [only] if only.contains(&rotten)), "{findings:?}");
    let folder = open_folder();
    let target = folder.path().join("restored");
    restore(&engine, &saved.reader().await, &into(&target)).await.unwrap();
    let copy = start(&server, &target.join("data"));
    assert_eq!(copy.sql("postgres", "select count(*), count(*) filter (where t = 'new') from torn"), "5000|1");
}

#[tokio::test]
async fn a_damaged_page_is_told_with_file_and_block_and_does_not_lose_the_rest() {
    let server = filled(&[]);
    let path = server.sql("postgres", "select pg_relation_filepath('pgbench_tellers')");
    server.sql("postgres", "checkpoint");
    let file = server.data_folder().join(&path);
    // Below the server: it has no idea, as with a disk that rots.
    server.stop_immediately();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100..200].fill(0xa5);
    std::fs::write(&file, &bytes).unwrap();
    server.launch();
    let engine = engine(&server, PHYSICAL);
    let saved = back_up(&engine).await.unwrap();
    let details = details(&saved);
    let expected = serde_json::json!([{ "path": path, "block": 0 }]);
    assert_eq!(details["damaged_pages"], expected);
    let warnings = saved.record().warnings.join("\n");
    assert!(warnings.contains(&format!("{path} has damaged pages: block 0")), "{warnings}");
    let report = engine.verifier.verify(&context(), &saved.reader().await).await.unwrap();
    let findings: Vec<&str> = report.findings.iter().map(|finding| finding.problem.as_str()).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains(&path), "{findings:?}");
    let folder = open_folder();
    let target = folder.path().join("restored");
    let restored = restore(&engine, &saved.reader().await, &into(&target)).await.unwrap();
    assert!(restored.warnings[0].contains(&path), "{restored:?}");
    let copy = start(&server, &target.join("data"));
    assert_eq!(copy.sql("postgres", SPACED), server.sql("postgres", SPACED));
}

async fn fails(server: &PrivatePostgres, more: &str) -> Error {
    let sink = MemorySink::default();
    let error = run(vec![task(&engine(server, more))], &sink, &options()).await.unwrap_err();
    assert!(sink.snapshots(&backup_core::sink::SnapshotFilter::default()).await.unwrap().is_empty());
    error
}

#[tokio::test]
async fn a_role_for_backups_can_do_this_and_nothing_else() {
    let server = filled(&[]);
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&secret, "hunter2-of-the-role").unwrap();
    // What `stackward init` writes.
    for (statement, _) in engine_postgres::BACKUP_ROLE {
        let method = "set password_encryption = 'scram-sha-256'; ".to_owned();
        server.sql("postgres", &(method + &statement.replace('…', "hunter2-of-the-role")));
    }
    server.set_hba(
        "local all postgres trust\nlocal replication stackward scram-sha-256\nlocal postgres stackward scram-sha-256\n",
    );
    let role = format!("{PHYSICAL}, user: stackward, password: {{ file: {} }}", secret.path().display());
    let engine = engine(&server, &role);
    let preflight = engine.source.preflight(&context()).await.unwrap();
    assert!(!preflight.warnings.iter().any(|warning| warning.contains("GRANT")), "{preflight:?}");
    let saved = back_up(&engine).await.unwrap();
    assert!(saved.record().warnings.is_empty(), "{:?}", saved.record().warnings);
    let config = ArtifactName::new("config/postgresql.conf").unwrap();
    assert!(saved.record().artifact(&config).is_some());
    let denied = server.try_sql("postgres", "set role stackward; select * from pgbench_accounts").unwrap_err();
    assert!(denied.contains("permission denied"), "{denied}");
    // Before 15 everybody may create tables.
    if server.major() >= 15 {
        let denied = server.try_sql("postgres", "set role stackward; create table mine ()").unwrap_err();
        assert!(denied.contains("permission denied"), "{denied}");
    }
    let manifest = serde_json::to_string(&saved.manifest).unwrap();
    assert!(!manifest.contains("hunter2") && !format!("{:?}", saved.recorder.events()).contains("hunter2"));
}

#[tokio::test]
async fn what_stands_in_the_way_is_told_with_the_remedy() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "create role plain login; create role backup login replication");
    let error = fails(&server, &format!("{PHYSICAL}, user: plain")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("ALTER ROLE plain REPLICATION"), "{error:?}");
    server.set_hba("local all all trust\n");
    let error = fails(&server, &format!("{PHYSICAL}, user: backup")).await;
    assert!(error.remedy().unwrap().contains("pg_hba.conf"), "{error:?}");
    drop(server);

    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[("wal_level", "minimal"), ("max_wal_senders", "0")], "max_wal_senders"),
        (&[("max_wal_senders", "1")], "max_wal_senders"),
        (&[("max_replication_slots", "0")], "max_replication_slots"),
        (&[("max_connections", "10"), ("superuser_reserved_connections", "2"), ("max_wal_senders", "2")], ""),
    ];
    for (settings, remedy) in cases {
        let server = PrivatePostgres::with_settings(settings);
        let result = engine(&server, PHYSICAL).source.preflight(&context()).await;
        if remedy.is_empty() {
            let preflight = result.unwrap();
            let told = preflight.warnings.join("\n");
            assert!(told.contains("max_slot_wal_keep_size") && told.contains("archive_mode"), "{told}");
            assert!(preflight.expected_bytes.unwrap() > 1_000_000);
        } else {
            let error = result.unwrap_err();
            assert!(error.remedy().unwrap().contains(remedy), "{settings:?}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_dies_fails_the_source_and_a_cancelled_backup_leaves_nothing() {
    let server = filled(&[]);
    let server = std::sync::Arc::new(server);
    let cancelled = options();
    let victim = std::sync::Arc::clone(&server);
    let kill = Action::new(move |number| {
        if number == OPERATION {
            victim.stop_immediately();
        }
    });
    let cases = [
        (Disturbance::Act(kill), options(), ErrorKind::Unreachable),
        (Disturbance::Cancel(OPERATION, cancelled.cancel.clone()), cancelled, ErrorKind::Interrupted),
        (Disturbance::Fail(OPERATION), options(), ErrorKind::NoSpace),
    ];
    for (disturbance, options, kind) in cases {
        let sink = MemorySink::default();
        let disturbed = DisturbedSink::new(std::sync::Arc::new(sink.clone()), disturbance);
        let error = run(vec![task(&engine(&server, PHYSICAL))], &disturbed, &options).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(sink.snapshots(&backup_core::sink::SnapshotFilter::default()).await.unwrap().is_empty());
        if kind == ErrorKind::Unreachable {
            server.launch();
        }
        while server.sql("postgres", "select count(*) from pg_stat_replication") != "0" {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.sql("postgres", "select count(*) from pg_replication_slots"), "0");
    }
}

/// In the midst of the data: the first hundreds are the catalogues of the first databases.
const OPERATION: u64 = 700;

#[tokio::test]
async fn dumps_and_files_stand_in_one_snapshot() {
    let server = filled(&[]);
    let engine = engine(&server, "modes: [physical, logical]");
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.record().mode.as_deref(), Some("physical, logical"));
    let report = engine.verifier.verify(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(report.findings, [], "{report:?}");
    let folder = open_folder();
    let target = folder.path().join("restored");
    restore(&engine, &saved.reader().await, &into(&target)).await.unwrap();
    assert!(target.join("globals.sql").is_file() && target.join("databases/postgres.dump").is_file());
    let copy = start(&server, &target.join("data"));
    assert_eq!(copy.sql("postgres", SPACED), server.sql("postgres", SPACED));
    // One database from its dump, onto the live server.
    let rename = RestoreTarget { rename: Some("again".into()), ..crate::support::select("postgres") };
    restore(&engine, &saved.reader().await, &rename).await.unwrap();
    assert_eq!(server.sql("again", SPACED), server.sql("postgres", SPACED));
}

/// Every file of the tree, with its content's length, as the snapshot has it.
async fn files(reader: &BackupReader) -> BTreeMap<String, u64> {
    let mut tree = reader.tree(&ArtifactName::new("base").unwrap()).await.unwrap();
    let mut files = BTreeMap::new();
    while let Some(stored) = tree.next().await.unwrap() {
        if stored.content.is_some() {
            files.insert(stored.entry.path.to_string(), stored.entry.size());
        }
    }
    files
}

async fn reader(sink: &MemorySink, manifest: &Manifest) -> BackupReader {
    BackupReader::new(sink.open(&manifest.id).await.unwrap(), source()).unwrap()
}

#[tokio::test]
async fn increments_make_whole_snapshots() {
    let server = filled(&[]);
    let native = server.major() >= 17;
    if native {
        server.set("summarize_wal", "on");
    }
    let engine = engine(&server, PHYSICAL);
    let sink = MemorySink::default();
    let first = run(vec![task(&engine)], &sink, &options()).await.unwrap();
    let mut last = first;
    for round in 0..3 {
        let busy = server.pgbench_in_background("postgres", &["-c", "2", "-T", "1000"]);
        server.pgbench("postgres", &["-c", "2", "-t", "300"]);
        server.sql("postgres", &format!("delete from spaced where n % 7 = {round}; vacuum spaced; create table new{round} as select * from spaced"));
        let manifest = run(vec![task(&engine)], &sink, &options()).await.unwrap();
        drop(busy);
        let record = manifest.source(&source()).unwrap();
        let increment = &record.details["physical"]["increment_of"];
        if native {
            assert_eq!(increment, last.id.as_str(), "{:?}", record.warnings);
        } else {
            assert!(increment.is_null());
        }
        last = manifest;
    }
    let reader = reader(&sink, &last).await;
    assert!(files(&reader).await.keys().all(|path| !path.contains("INCREMENTAL")));
    let report = engine.verifier.verify(&context(), &reader).await.unwrap();
    assert_eq!(report.findings, [], "{report:?}");
    let folder = open_folder();
    let target = folder.path().join("restored");
    restore(&engine, &reader, &into(&target)).await.unwrap();
    verify_backup(&server, &target.join("data"));
    let copy = start(&server, &target.join("data"));
    for query in [SPACED, ACCOUNTS, "select count(*) from new2"] {
        let expected = if query == ACCOUNTS { "200000|t".to_owned() } else { server.sql("postgres", query) };
        assert_eq!(copy.sql("postgres", query), expected, "{query}");
    }
}
