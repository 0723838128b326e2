//! Everything that can go wrong while a dump is made: the source fails, and nothing stays behind.

use std::sync::Arc;

use async_trait::async_trait;
use backup_core::error::Result;
use backup_core::manifest::{ArtifactRecord, Manifest};
use backup_core::sink::{EntryReader, Piece, PieceReader, Sink, SnapshotReader};
use backup_core::{BackupReader, ErrorKind, SourceName};
use backup_testkit::PrivatePostgres;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::support::{Saved, back_up, build, engine, fill, options, set_password, source, task, tools_with};

/// How an artifact is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// One bit of the stored bytes, in the middle.
    FlipByte,
    /// The second half is missing; manifest and checksum were made to agree, as if the dump had been cut when it was made.
    Cut,
    /// Some rows were taken out, with manifest and checksum made to agree: only the fingerprint knows.
    LoseRows,
}

/// A reader of `saved` in which one artifact is damaged.
pub(crate) async fn damaged(saved: &Saved, artifact: &str, damage: Damage) -> BackupReader {
    let inner = saved.sink.open(&saved.manifest.id).await.unwrap();
    let mut manifest = saved.manifest.clone();
    let record = manifest.sources[0].artifacts.iter_mut().find(|record| record.name.as_str() == artifact).unwrap();
    let mut pieces = inner.stream(&source(), record).await.unwrap();
    let mut content = Vec::new();
    while let Some(Piece::Data(data)) = pieces.next().await.unwrap() {
        content.extend_from_slice(&data);
    }
    let middle = content.len() / 2;
    match damage {
        Damage::FlipByte => content[middle] ^= 1,
        Damage::Cut => content.truncate(middle),
        Damage::LoseRows => lose_rows(&mut content),
    }
    if damage != Damage::FlipByte {
        record.bytes = content.len() as u64;
        record.sha256 = Some(hex::encode(Sha256::digest(&content)));
    }
    let damaged = Some((artifact.to_owned(), Bytes::from(content)));
    BackupReader::new(Arc::new(Changed { inner, manifest, damaged }), source()).unwrap()
}

/// Turns one chunk of rows into an end of data, and takes out the rest of that table's data.
fn lose_rows(content: &mut Vec<u8>) {
    let row = content.windows(9).position(|window| window == b"\tuser 500").expect("the row is there");
    // A chunk is one row: a sign, four bytes of length, the row.
    let start = content[..row].iter().rposition(|byte| *byte == b'\n').expect("an earlier row") + 1;
    let length = u32::from_le_bytes(content[start + 1..start + 5].try_into().unwrap()) as usize;
    content.drain(start..start + 5 + length);
}

/// A reader of `saved` whose details were changed.
pub(crate) async fn with_details(saved: &Saved, change: impl Fn(String) -> String) -> BackupReader {
    let inner = saved.sink.open(&saved.manifest.id).await.unwrap();
    let mut manifest = saved.manifest.clone();
    let details = &mut manifest.sources[0].details;
    let before = serde_json::to_string(details).unwrap();
    let after = change(before.clone());
    assert_ne!(before, after, "the details were changed");
    *details = serde_json::from_str(&after).unwrap();
    BackupReader::new(Arc::new(Changed { inner, manifest, damaged: None }), source()).unwrap()
}

#[derive(Debug)]
struct Changed {
    inner: Arc<dyn SnapshotReader>,
    manifest: Manifest,
    damaged: Option<(String, Bytes)>,
}

#[async_trait]
impl SnapshotReader for Changed {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn stream(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn PieceReader>> {
        match &self.damaged {
            Some((name, content)) if name == artifact.name.as_str() => Ok(Box::new(Whole(Some(content.clone())))),
            _ => self.inner.stream(source, artifact).await,
        }
    }

    async fn tree(&self, source: &SourceName, artifact: &ArtifactRecord) -> Result<Box<dyn EntryReader>> {
        self.inner.tree(source, artifact).await
    }
}

struct Whole(Option<Bytes>);

#[async_trait]
impl PieceReader for Whole {
    async fn next(&mut self) -> Result<Option<Piece>> {
        Ok(self.0.take().map(Piece::Data))
    }
}

/// Runs a backup that must fail, and returns its error; nothing may be visible afterwards.
async fn fails(engine: &backup_core::engine::Engine) -> backup_core::Error {
    let sink = backup_testkit::MemorySink::default();
    let error = backup_core::run::run(vec![task(engine)], &sink, &options()).await.unwrap_err();
    assert!(sink.snapshots(&backup_core::sink::SnapshotFilter::default()).await.unwrap().is_empty());
    error
}

#[tokio::test]
async fn late_failure_is_not_committed() {
    let server = PrivatePostgres::start();
    fill(&server);
    let cases = [
        ("pg_dump", "\"$real\" \"$@\"; [ \"$1\" = --version ]", "status 1", ErrorKind::Tool),
        ("pg_dump", "\"$real\" \"$@\"; [ \"$1\" = --version ] || kill -9 $$", "was killed", ErrorKind::Tool),
        ("pg_dump", "\"$real\" \"$@\" | head -c 20000", "cut", ErrorKind::Incomplete),
        ("pg_dump", "[ \"$1\" = --version ] && exec \"$real\" \"$@\"; exit 0", "cut", ErrorKind::Incomplete),
        ("pg_dump", "[ \"$1\" = --version ] && exec \"$real\" \"$@\"; echo hello", "PGDMP", ErrorKind::Damaged),
        ("pg_dumpall", "\"$real\" \"$@\"; exit 1", "status 1", ErrorKind::Tool),
        ("pg_dumpall", "\"$real\" \"$@\" | head -n 20", "last line", ErrorKind::Incomplete),
    ];
    for (program, script, words, kind) in cases {
        let (_folder, bin) = tools_with(&server, &[(program, script)]);
        let error = fails(&engine(&server, &format!("bin: {}", bin.display()))).await;
        assert!(error.chain().contains(words), "{program}: {script}: {}", error.chain());
        assert_eq!(error.kind(), kind, "{script}: {error:?}");
    }
}

#[tokio::test]
async fn an_old_pg_dump_is_refused() {
    let server = PrivatePostgres::start();
    let (_folder, bin) = tools_with(&server, &[("pg_dump", "echo 'pg_dump (PostgreSQL) 12.2'")]);
    let error = fails(&engine(&server, &format!("bin: {}", bin.display()))).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.remedy().unwrap().contains(&format!("postgresql-client-{}", server.major())), "{error:?}");
}

#[tokio::test]
async fn a_server_that_goes_away_fails_the_source() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE TABLE big AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 50000) n");
    // The dump stops in its midst until the server is gone.
    let pid = server.data_folder().join("postmaster.pid");
    let script = format!(
        "[ \"$1\" = --version ] && exec \"$real\" \"$@\"\n\
         \"$real\" \"$@\" | (head -c 1000000; kill -QUIT $(head -1 {pid}); cat)\nexit ${{PIPESTATUS[0]}}",
        pid = pid.display()
    );
    let (_folder, bin) = tools_with(&server, &[("pg_dump", &script)]);
    let error = fails(&engine(&server, &format!("bin: {}", bin.display()))).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
}

#[tokio::test]
async fn an_unreachable_server_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let engine = build(&format!("{{ socket: {} }}", folder.path().display())).unwrap();
    let error = fails(&engine).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.remedy().unwrap().contains("running"), "{error:?}");
}

#[tokio::test]
async fn cancellation_leaves_nothing_behind() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    // The wrapper tells when the dump is under way, and then never ends.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let fifo = folder.path().join("started");
    let script = format!(
        "[ \"$1\" = --version ] && exec \"$real\" \"$@\"\n\"$real\" \"$@\"; touch {}; sleep 1000",
        fifo.display()
    );
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (_tools, bin) = tools_with(&server, &[("pg_dump", &script)]);
    let engine = engine(&server, &format!("bin: {}", bin.display()));
    let options = options();
    let cancel = options.cancel.clone();
    let running = tokio::spawn(async move {
        let sink = backup_testkit::MemorySink::default();
        backup_core::run::run(vec![task(&engine)], &sink, &options).await.map(|_| ())
    });
    while !fifo.exists() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    assert_eq!(running.await.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    let sessions = "select count(*) from pg_stat_activity where application_name = 'stackward'";
    while server.sql("postgres", sessions) != "0" {
        tokio::task::yield_now().await;
    }
    let ours = bin.display().to_string();
    while processes().iter().any(|(command, _)| command.contains(&ours)) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_never_shown() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "ALTER ROLE postgres PASSWORD 'right-password'");
    server.set_hba("local all all scram-sha-256\n");
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "wrong-hunter2\n").unwrap();
    let engine = engine(&server, &format!("password: {{ file: {} }}", secret.display()));
    let error = fails(&engine).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("`password`"), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"));
    // Without a password at all.
    let error = fails(&crate::support::engine(&server, "")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
}

#[tokio::test]
async fn secrets_appear_nowhere() {
    let server = PrivatePostgres::start();
    fill(&server);
    set_password(&server, "right-hunter2");
    server.set_hba("local all all scram-sha-256\n");
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let log = folder.path().join("log");
    let record = format!(
        "tr '\\0' ' ' < /proc/$$/cmdline >> {log}; echo \"password in the environment: ${{#PGPASSWORD}}\" >> {log}\n\
         exec \"$real\" \"$@\"",
        log = log.display()
    );
    let programs = ["psql", "pg_dump", "pg_dumpall", "pg_restore", "vacuumdb"].map(|name| (name, record.as_str()));
    let (_tools, bin) = tools_with(&server, &programs);
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "right-hunter2").unwrap();
    let config = format!("bin: {}, password: {{ file: {} }}", bin.display(), secret.display());
    let engine = engine(&server, &config);
    let saved = back_up(&engine).await.unwrap();
    let goal = backup_core::engine::RestoreTarget { rename: Some("copy".into()), ..crate::support::select("app") };
    crate::support::restore(&engine, &saved.reader().await, &goal).await.unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    for name in ["psql", "pg_dump", "pg_dumpall", "pg_restore", "vacuumdb"] {
        assert!(log.contains(&format!("/{name} ")), "{name} was run: {log}");
    }
    assert!(log.contains("password in the environment: 13"));
    let manifest = serde_json::to_string(&saved.manifest).unwrap();
    let events = format!("{:?}", saved.recorder.events());
    for (what, text) in [("arguments", &log), ("manifest", &manifest), ("events", &events)] {
        assert!(!text.contains("hunter2"), "{what}");
        assert!(!text.contains("SCRAM-SHA-256"), "{what}");
    }
    assert!(!format!("{engine:?}").contains("hunter2"));
}

/// The running processes: command line and id.
fn processes() -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(command) = std::fs::read(entry.path().join("cmdline")) {
            found.push((String::from_utf8_lossy(&command).replace('\0', " "), id));
        }
    }
    found
}
