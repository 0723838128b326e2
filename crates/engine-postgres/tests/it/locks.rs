//! A dump that waits for somebody says for whom, and for how long it will.

use std::process::Stdio;

use backup_core::ErrorKind;
use backup_core::event::Event;
use backup_testkit::PrivatePostgres;

use crate::support::{back_up_while, engine};

/// Somebody who holds a table until they are told to end: by closing their input.
fn holder(server: &PrivatePostgres) -> std::process::Child {
    use std::io::{BufRead, Write};
    let mut psql = server.program("psql");
    psql.args(["-XqAt", "-h"]).arg(server.socket_folder()).args(["-U", "postgres", "-d", "postgres"]);
    let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lock = "SET application_name = 'migration';\nBEGIN;\nLOCK TABLE \"Held\";\n\\echo locked\n";
    child.stdin.as_mut().unwrap().write_all(lock.as_bytes()).unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

#[tokio::test]
async fn whoever_holds_a_lock_is_named() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE TABLE \"Held\" AS SELECT 1 AS id");
    // It waits in our own session, and, where nothing is counted, in `pg_dump`. The holder lets go as soon as it is named.
    for fingerprint in ["exact", "none"] {
        let held = std::sync::Mutex::new(Some(holder(&server)));
        let pid = server.sql("postgres", "SELECT pid FROM pg_stat_activity WHERE application_name = 'migration'");
        let engine = engine(&server, &format!("fingerprint: {fingerprint}"));
        let let_go = move |event: &Event| {
            if let Event::Warned { .. } = event
                && let Some(mut child) = held.lock().unwrap().take()
            {
                drop(child.stdin.take());
                child.wait().unwrap();
            }
        };
        let saved = back_up_while(&engine, let_go).await.unwrap();
        let warnings = &saved.record().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let parts =
            ["`postgres` waits for public.\"Held\"", "migration", "idle in transaction", &format!("pid {pid} ")];
        assert!(parts.iter().all(|part| warnings[0].contains(part)), "{warnings:?}");
    }
}

#[tokio::test]
async fn a_lock_timeout_ends_the_wait() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE TABLE \"Held\" AS SELECT 1 AS id");
    let mut held = holder(&server);
    for fingerprint in ["exact", "none"] {
        let engine = engine(&server, &format!("fingerprint: {fingerprint}, lock_timeout: 1s"));
        let error = back_up_while(&engine, |_| {}).await.unwrap_err();
        assert!(error.chain().contains("timeout"), "{fingerprint}: {error:?}");
        assert_eq!(error.kind(), ErrorKind::Busy, "{fingerprint}: {error:?}");
        assert!(error.remedy().unwrap().contains("`lock_timeout`"), "{error:?}");
    }
    drop(held.stdin.take());
    held.wait().unwrap();
}
