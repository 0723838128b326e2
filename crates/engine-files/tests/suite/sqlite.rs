//! Databases: live, locked, damaged, and put back where an older one left its traces.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backup_core::RunContext;
use backup_core::engine::{Engine, Existing, RestoreTarget};
use backup_core::error::{Error, ErrorKind};
use backup_core::host::{Host, HostCommand, LocalHost};
use backup_testkit::MemorySink;
use rusqlite::Connection;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{back_up, engine, into_folder, name, reader, replacing, restore};

fn sqlite(yaml: &str) -> Engine {
    engine(&engine_files::SQLITE, yaml).unwrap()
}

fn of(path: &Path) -> Engine {
    sqlite(&format!("path: {}\nbusy_timeout: 0s", path.display()))
}

/// Accounts of 100 each, in WAL mode.
fn bank(path: &Path, accounts: u32) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(std::time::Duration::from_mins(1)).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE account (id INTEGER PRIMARY KEY, balance INT, padding BLOB);
             CREATE TABLE transfer (id INTEGER PRIMARY KEY, note TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {accounts})
             INSERT INTO account SELECT i, 100, randomblob(3000) FROM n;"
        ))
        .unwrap();
    connection
}

fn query(path: &Path, sql: &str) -> String {
    let connection = Connection::open(path).unwrap();
    let value: rusqlite::types::Value = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    match value {
        rusqlite::types::Value::Integer(number) => number.to_string(),
        rusqlite::types::Value::Text(text) => text,
        other => format!("{other:?}"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_database_is_copied_consistently_under_load() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("bank.db");
    // Many steps of the copy, with commits between them: without its read transaction the copy would begin again at each.
    let writer = bank(&path, 5000);
    let (stop, transfers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&transfers));
    let thread = std::thread::spawn(move || {
        let mut number = 0u64;
        while !stopped.load(Ordering::Acquire) {
            number += 1;
            let (from, to) = (number * 7 % 1000 + 1, number * 13 % 1000 + 1);
            writer
                .execute_batch(&format!(
                    "BEGIN IMMEDIATE; UPDATE account SET balance = balance - 1, padding = randomblob(3000) WHERE id = {from};
                     UPDATE account SET balance = balance + 1 WHERE id = {to}; INSERT INTO transfer (note) VALUES ('{number}'); COMMIT"
                ))
                .unwrap();
            counted.store(number, Ordering::Release);
        }
    });
    let sink = MemorySink::default();
    let engine = sqlite(&format!("path: {}", path.display()));
    let mut seen = 0;
    for round in 0..5 {
        let before = transfers.load(Ordering::Acquire);
        let manifest = back_up(&engine, &sink).await.unwrap();
        let from = reader(&sink, &manifest).await;
        let to = home.path().join(format!("copy-{round}"));
        restore(&engine, &from, &into_folder(&to)).await.unwrap();
        let copy = to.join("bank.db");
        assert_eq!(query(&copy, "PRAGMA integrity_check"), "ok");
        assert_eq!(query(&copy, "SELECT sum(balance) FROM account"), "500000", "no half of a transfer");
        let rows: u64 = query(&copy, "SELECT count(*) FROM transfer").parse().unwrap();
        assert!(rows >= before && rows >= seen, "everything that was committed before is in it");
        seen = rows;
        let counts = &manifest.sources[0].fingerprint.0[&format!("rows in {}", path.display())];
        assert_eq!((counts["account"], counts["transfer"]), (5000, rows), "the counts are those of the copy");
        assert_eq!(engine.verifier.verify(&RunContext::new(name()), &from).await.unwrap().findings, []);
        assert_eq!(query(&copy, "PRAGMA journal_mode"), "wal");
        // Writers went on meanwhile: wait for a transfer that began after the copy did.
        while transfers.load(Ordering::Acquire) <= before {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::Release);
    thread.join().unwrap();
    assert_eq!(query(&path, "PRAGMA integrity_check"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_undone_in_a_copy() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("live.db");
    let connection = Connection::open(&path).unwrap();
    // A transaction that is larger than the cache spills into the file before it is committed.
    connection
        .execute_batch(
            "PRAGMA cache_size = 10; CREATE TABLE t (x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
             INSERT INTO t SELECT zeroblob(1000) FROM n; BEGIN; UPDATE t SET x = randomblob(1000); DELETE FROM t WHERE rowid > 10;",
        )
        .unwrap();
    // What a crash leaves, as the lock of the process that wrote it is gone.
    let crashed = home.path().join("crashed.db");
    fs::copy(&path, &crashed).unwrap();
    fs::copy(home.path().join("live.db-journal"), home.path().join("crashed.db-journal")).unwrap();
    drop(connection);
    let (before, sink, engine) = (names(home.path()), MemorySink::default(), of(&crashed));
    engine.source.preflight(&RunContext::new(name())).await.unwrap();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let source = &manifest.sources[0];
    assert!(
        source.warnings.iter().any(|warning| warning.contains("cannot be read in its place")),
        "{:?}",
        source.warnings
    );
    assert_eq!(source.fingerprint.0[&format!("rows in {}", crashed.display())]["t"], 200);
    assert_eq!(names(home.path()), before, "the original is left as it was");
    let to = tempfile::tempdir().unwrap();
    restore(&engine, &reader(&sink, &manifest).await, &into_folder(&to.path().join("x"))).await.unwrap();
    assert_eq!(query(&to.path().join("x/crashed.db"), "SELECT sum(x = zeroblob(1000)) FROM t"), "200", "rolled back");
}

#[test]
fn a_database_in_wal_mode_needs_no_folder_that_can_be_written() {
    let home = tempfile::tempdir().unwrap();
    let (closed, left) = (home.path().join("closed.db"), home.path().join("left.db"));
    drop(bank(&closed, 10));
    let open = home.path().join("open.db");
    let connection = bank(&open, 10);
    fs::copy(&open, &left).unwrap();
    fs::copy(home.path().join("open.db-wal"), home.path().join("left.db-wal")).unwrap();
    drop(connection);
    for path in [home.path(), &closed, &left, &home.path().join("left.db-wal")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let before = names(home.path());
    let databases = [closed, left];
    crate::changes::as_nobody(async move {
        for path in databases {
            let (engine, sink) = (of(&path), MemorySink::default());
            engine.source.preflight(&RunContext::new(name())).await.unwrap();
            let manifest = back_up(&engine, &sink).await.unwrap();
            let source = &manifest.sources[0];
            let rows = &source.fingerprint.0[&format!("rows in {}", path.display())];
            assert_eq!(rows["account"], 10, "{}", path.display());
            assert_eq!(source.details["databases"][0]["journal_mode"], "wal", "{}", path.display());
        }
    });
    assert_eq!(names(home.path()), before);
}

async fn verified(engine: &Engine, from: &backup_core::BackupReader) -> backup_core::engine::VerifyReport {
    engine.verifier.verify(&RunContext::new(name()), from).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_told_by_the_backup_and_not_by_verify() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("bank.db");
    let connection = bank(&path, 100);
    connection
        .execute_batch("CREATE INDEX by_balance ON account (balance, padding); PRAGMA journal_mode = DELETE")
        .unwrap();
    let sql = "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?";
    let place =
        |name: &str| connection.query_row(sql, [name], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?)));
    let (index, table) = (place("by_balance").unwrap(), place("transfer").unwrap());
    drop(connection);
    let whole = fs::read(&path).unwrap();
    for ((page, size), what) in [(index, "an index"), (table, "a table")] {
        let mut bytes = whole.clone();
        let start = usize::try_from((page - 1) * size).unwrap();
        bytes[start..start + 100].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let (engine, sink) = (of(&path), MemorySink::default());
        let manifest = back_up(&engine, &sink).await.unwrap();
        let source = &manifest.sources[0];
        assert!(source.is_complete(), "{what}: {:?}", source.outcome);
        assert!(source.warnings.iter().any(|warning| warning.contains("is damaged")), "{what}: {:?}", source.warnings);
        assert!(!source.details["databases"][0]["faults"].as_array().unwrap().is_empty(), "{what}");
        let from = reader(&sink, &manifest).await;
        let report = verified(&engine, &from).await;
        assert_eq!(report.findings, [], "{what}: the backup is whole");
        assert!(
            report.checked.iter().any(|line| line.contains("was damaged when it was saved")),
            "{:?}",
            report.checked
        );
        let drilled = engine.driller.drill(&RunContext::new(name()), &from).await.unwrap();
        assert!(drilled.findings[0].contains("as it was when it was saved"), "{what}: {:?}", drilled.findings);
        let to = tempfile::tempdir().unwrap();
        restore(&engine, &from, &into_folder(&to.path().join("x"))).await.unwrap();
        let (restored, original) = (fs::read(to.path().join("x/bank.db")).unwrap(), fs::read(&path).unwrap());
        // A copy counts one change more in its header.
        assert!(restored[100..] == original[100..], "{what}: as it was");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_application_knows_is_no_fault() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    // What an application would have made with its own collation, function, tokenizer and module.
    connection
        .execute_batch(
            "CREATE TABLE plain (x); INSERT INTO plain VALUES (1), (2);
             CREATE TABLE sorted (x TEXT COLLATE NOCASE); CREATE INDEX by_x ON sorted (x); INSERT INTO sorted VALUES ('a'), ('b');
             CREATE TABLE keyed (x TEXT PRIMARY KEY COLLATE NOCASE) WITHOUT ROWID; INSERT INTO keyed VALUES ('a');
             CREATE TABLE computed (x, y AS (abs(x))); CREATE INDEX by_abs ON computed (abs(x)); INSERT INTO computed VALUES (1), (2), (3);
             CREATE TABLE checked (x CHECK (lower(x) <> '')); INSERT INTO checked VALUES ('a');
             CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'unicode61'); INSERT INTO words VALUES ('one two');
             PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(replace(replace(replace(sql, 'NOCASE', 'german'), 'abs(', 'mine('), 'lower(', 'own('), 'unicode61', 'stems');
             PRAGMA writable_schema = RESET;",
        )
        .unwrap();
    drop(connection);
    let (engine, sink) = (of(&path), MemorySink::default());
    let manifest = back_up(&engine, &sink).await.unwrap();
    let source = &manifest.sources[0];
    assert!(source.is_complete(), "{:?}", source.outcome);
    let rows = &source.fingerprint.0[&format!("rows in {}", path.display())];
    assert_eq!(
        (rows["plain"], rows["sorted"], rows["computed"], rows["checked"]),
        (2, 2, 3, 1),
        "{:?}",
        source.warnings
    );
    assert!(source.warnings.iter().any(|warning| warning.contains("german")), "{:?}", source.warnings);
    assert!(!source.warnings.iter().any(|warning| warning.contains("damaged")), "{:?}", source.warnings);
    let from = reader(&sink, &manifest).await;
    let report = verified(&engine, &from).await;
    assert_eq!(report.findings, [], "{:?}", report.checked);
    let drilled = engine.driller.drill(&RunContext::new(name()), &from).await.unwrap();
    assert_eq!(drilled.findings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_wal_of_the_old_database_does_not_reach_the_new_one() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("bank.db");
    let connection = bank(&path, 1000);
    let engine = of(&path);
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let from = reader(&sink, &manifest).await;
    // The application writes on, then dies without a checkpoint: its -wal holds committed pages.
    connection
        .execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE account SET balance = 999, padding = randomblob(3500)")
        .unwrap();
    let dead = home.path().join("dead");
    fs::create_dir(&dead).unwrap();
    for ending in ["", "-wal"] {
        fs::copy(format!("{}{ending}", path.display()), dead.join(format!("bank.db{ending}"))).unwrap();
    }
    drop(connection);
    let stale = dead.join("bank.db");
    assert!(fs::metadata(dead.join("bank.db-wal")).unwrap().len() > 1_000_000);
    // What goes wrong without care: the restored file under the old -wal is not what was saved.
    let trap = home.path().join("trap");
    restore(&engine, &from, &into_folder(&trap)).await.unwrap();
    fs::copy(dead.join("bank.db-wal"), trap.join("bank.db-wal")).unwrap();
    let fooled =
        Connection::open(trap.join("bank.db"))
            .unwrap()
            .query_row("SELECT sum(balance) FROM account", [], |row| row.get::<_, i64>(0));
    assert_ne!(fooled, Ok(100_000), "the trap is real");
    // The database is gone, its -wal is not: that is something, too.
    let stale_engine = of(&stale);
    let only_wal = fs::read(&stale).unwrap();
    fs::remove_file(&stale).unwrap();
    let error = restore(&stale_engine, &from, &RestoreTarget::default()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::AlreadyExists && error.to_string().contains("-wal"), "{error:?}");
    fs::write(&stale, only_wal).unwrap();
    let error = restore(&stale_engine, &from, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let comparing = RestoreTarget { existing: Existing::Update, ..RestoreTarget::default() };
    let error = restore(&stale_engine, &from, &comparing).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("--delta"), "{error:?}");
    // A folder that somebody else prepared: no link in it, and not itself, is followed.
    let elsewhere = tempfile::tempdir().unwrap();
    let planted = elsewhere.path().join("planted");
    std::os::unix::fs::symlink(&dead, &planted).unwrap();
    let to = replacing(crate::support::into_folder(&planted));
    let error = restore(&stale_engine, &from, &to).await.unwrap_err();
    assert!(error.kind() == ErrorKind::AlreadyExists && error.to_string().contains("planted"), "{error:?}");
    restore(&stale_engine, &from, &replacing(RestoreTarget::default())).await.unwrap();
    assert_eq!(names(&dead), ["bank.db"], "the old -wal is gone, nothing temporary is left");
    assert_eq!(query(&stale, "SELECT sum(balance) FROM account"), "100000");
    assert_eq!(query(&stale, "PRAGMA integrity_check"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_mode_and_journal_mode_come_back() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("app.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA page_size = 8192; PRAGMA journal_mode = DELETE; CREATE TABLE t (x)")
        .unwrap();
    std::os::unix::fs::chown(&path, Some(4711), Some(4712)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let engine = of(&path);
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    assert_eq!(names(home.path()), ["app.db"], "a backup leaves nothing beside the database");
    let record = &manifest.sources[0].details["databases"][0];
    assert_eq!(
        (&record["page_size"], &record["journal_mode"], &record["mode"]),
        (&8192.into(), &"delete".into(), &0o640.into())
    );
    fs::remove_file(&path).unwrap();
    restore(&engine, &reader(&sink, &manifest).await, &RestoreTarget::default()).await.unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (4711, 4712, 0o640));
    assert_eq!(query(&path, "PRAGMA journal_mode"), "delete");
    assert_eq!(query(&path, "PRAGMA page_size"), "8192");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_databases_are_told_apart() {
    let home = tempfile::tempdir().unwrap();
    let at = |path: &str| home.path().join(path);
    for (folder, rows) in [("a", 1), ("b", 2), ("c d", 3)] {
        fs::create_dir(at(folder)).unwrap();
        let file = if folder == "c d" { "other.db" } else { "same.db" };
        let connection = Connection::open(at(folder).join(file)).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        (0..rows).for_each(|row| connection.execute_batch(&format!("INSERT INTO t VALUES ({row})")).unwrap());
    }
    let engine =
        sqlite(&format!("paths: ['{0}/a/same.db', '{0}/b/same.db', '{0}/c d/other.db']", home.path().display()));
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let from = reader(&sink, &manifest).await;
    let drill = engine.driller.drill(&RunContext::new(name()), &from).await.unwrap();
    assert_eq!((drill.findings, drill.items), (Vec::new(), 6));
    let to = at("to");
    restore(&engine, &from, &into_folder(&to)).await.unwrap();
    let below = |path: &str| to.join(at(path).strip_prefix("/").unwrap());
    assert_eq!(query(&below("b/same.db"), "SELECT count(*) FROM t"), "2");
    assert_eq!(query(&to.join("other.db"), "SELECT count(*) FROM t"), "3");
    fs::remove_file(at("b/same.db")).unwrap();
    let select = RestoreTarget { select: vec![at("b/same.db").display().to_string()], ..RestoreTarget::default() };
    restore(&engine, &from, &select).await.unwrap();
    assert_eq!(query(&at("b/same.db"), "SELECT count(*) FROM t"), "2");
    let wrong = RestoreTarget { select: vec!["nothing.db".into()], ..RestoreTarget::default() };
    assert_eq!(restore(&engine, &from, &wrong).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_saved_is_said_clearly() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    fs::write(at("text"), "this is no database, but long enough to look at").unwrap();
    fs::write(at("encrypted"), (0..8192u32).map(|number| (number * 31 % 251) as u8).collect::<Vec<u8>>()).unwrap();
    fs::write(at("empty"), "").unwrap();
    let locked = Connection::open(at("locked")).unwrap();
    locked.execute_batch("CREATE TABLE t (x); BEGIN EXCLUSIVE").unwrap();
    Connection::open(at("torn")).unwrap().execute_batch("CREATE TABLE t (x); CREATE TABLE u (x)").unwrap();
    fs::File::options().write(true).open(at("torn")).unwrap().set_len(4096).unwrap();
    let cases = [
        ("missing", ErrorKind::NotFound),
        ("text", ErrorKind::Unsupported),
        ("encrypted", ErrorKind::Unsupported),
        ("empty", ErrorKind::Incomplete),
        (".", ErrorKind::Unsupported),
        ("locked", ErrorKind::Busy),
        ("torn", ErrorKind::Damaged),
    ];
    for (name, kind) in cases {
        let error: Error = back_up(&of(&at(name)), &MemorySink::default()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error:?}");
        assert!(error.remedy().is_some(), "{name}: {error:?}");
        // A preflight reads the beginning only; what is torn off the end is found by the copy.
        if name != "torn" {
            let preflight = of(&at(name)).source.preflight(&RunContext::new(crate::support::name())).await.unwrap_err();
            assert_eq!(preflight.kind(), kind, "{name}: {preflight:?}");
        }
    }
}

#[test]
fn a_wrong_configuration_is_an_error_of_the_plan() {
    for (yaml, expected) in [
        ("{}", "names a database"),
        ("path: /a\npaths: [/a]", "named twice"),
        ("path: ''", "a path is empty"),
        ("path: /a\nbusy_timeout: soon", "busy_timeout"),
        ("file: /a", "unknown field `file`"),
    ] {
        let error = engine(&engine_files::SQLITE, yaml).unwrap_err();
        assert!(error.kind() == ErrorKind::Plan && error.chain().contains(expected), "{yaml}: {error:?}");
    }
}

/// Not a test: another process that has a database open, for the test below.
#[test]
#[ignore = "a helper that another test starts as a process"]
fn holds_a_database_open() {
    let Some(path) = std::env::var_os("STACKWARD_TEST_DATABASE") else { return };
    let connection = Connection::open(PathBuf::from(path)).unwrap();
    let _rows: i64 = connection.query_row("SELECT count(*) FROM account", [], |row| row.get(0)).unwrap();
    std::io::stdout().write_all(b"\nit is open\n").unwrap();
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_use_is_not_replaced() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("bank.db");
    drop(bank(&path, 1000));
    let engine = of(&path);
    let sink = MemorySink::default();
    let manifest = back_up(&engine, &sink).await.unwrap();
    let from = reader(&sink, &manifest).await;
    let to = replacing(RestoreTarget::default());
    let command = HostCommand::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::holds_a_database_open", "--ignored", "--nocapture"])
        .env("STACKWARD_TEST_DATABASE", path.as_os_str())
        .piped_stdin();
    let mut holder = LocalHost.spawn(command).await.unwrap();
    let mut lines = BufReader::new(holder.take_stdout().unwrap()).lines();
    while lines.next_line().await.unwrap().expect("the helper says that it is open") != "it is open" {}
    let before = names(home.path());
    let error = restore(&engine, &from, &to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert_eq!(names(home.path()), before);
    drop(holder.take_stdin());
    while lines.next_line().await.unwrap().is_some() {}
    holder.finish().await.unwrap();
    restore(&engine, &from, &to).await.unwrap();
}
