//! What a drill proves.

use backup_core::ErrorKind;
use backup_testkit::{LiveGuard, PrivatePostgres};

use crate::faults::{Damage, damaged};
use crate::support::{amcheck_says, back_up, context, drill, drill_below, engine, fill, is_empty, open_folder};

#[tokio::test]
async fn a_drill_under_load_proves_every_row() {
    let server = PrivatePostgres::start();
    fill(&server);
    // A view that a restore cannot compute to the same: not a false alarm.
    server.sql("app", "CREATE TABLE switch AS SELECT 1; CREATE MATERIALIZED VIEW fickle AS SELECT FROM switch");
    server.sql("app", "INSERT INTO switch VALUES (2)");
    server.sql("postgres", "CREATE DATABASE bench");
    server.pgbench("bench", &["-i", "-q", "-s", "2"]);
    let load = server.pgbench_in_background("bench", &["-n", "-c", "2", "-T", "1000"]);
    while server.sql("bench", "select count(*) > 20 from pgbench_history") != "t" {}
    let engine = engine(&server, "databases: [app, bench]");
    let saved = back_up(&engine).await.unwrap();
    drop(load);
    let report = drill(&engine, &saved.reader().await).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(report.checked.iter().any(|line| line.contains("public.fickle: 1 saved, 2 restored")), "{report:?}");
    assert!(report.items > 200_000 && report.bytes > 0, "{report:?}");
    assert!(!report.restore_time.is_zero() && !report.check_time.is_zero());
    assert!(report.checked.iter().any(|line| line.contains(amcheck_says(&server))), "{:?}", report.checked);
    // What was saved under load is consistent in itself: pgbench's invariant.
    let target = PrivatePostgres::start();
    let goal = crate::support::select("bench");
    crate::support::restore(&crate::support::engine(&target, ""), &saved.reader().await, &goal).await.unwrap();
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
                (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)";
    assert_eq!(target.sql("bench", sums), "t|t");
}

#[tokio::test]
async fn a_drill_of_a_damaged_backup_is_a_finding() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "databases: [app]");
    let saved = back_up(&engine).await.unwrap();
    let scratch = open_folder();
    // Too long for a socket's path.
    let deep = scratch.path().join("x".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let cases = [
        ("databases/app.dump", Damage::FlipByte, "does not restore"),
        ("databases/app.dump", Damage::Cut, "does not restore"),
        ("databases/app.dump", Damage::LoseRows, "public.users: 1000 saved, 999 restored"),
        ("globals.sql", Damage::Cut, "globals.sql"),
    ];
    for (artifact, damage, words) in cases {
        let reader = damaged(&saved, artifact, damage).await;
        let report = drill_below(&engine, &reader, &deep).await;
        assert!(report.findings.iter().any(|line| line.contains(words)), "{damage:?}: {:?}", report.findings);
    }
}

#[tokio::test]
async fn a_cancelled_drill_leaves_nothing_behind() {
    let server = PrivatePostgres::start();
    fill(&server);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let scratch = open_folder();
    let cancel = tokio_util::sync::CancellationToken::new();
    let cx = context().scratch_in(scratch.path()).cancelled_by(cancel.clone());
    let reader = saved.reader().await;
    let live = LiveGuard::all();
    let drilling = tokio::spawn(async move { engine.driller.drill(&cx, &reader).await });
    let running = || {
        let mut folders = std::fs::read_dir(scratch.path()).unwrap().flatten();
        folders.any(|folder| folder.path().join("data/postmaster.pid").exists())
    };
    while !running() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    assert_eq!(drilling.await.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    live.check();
    assert!(is_empty(scratch.path()));
}

#[tokio::test]
async fn a_scratch_folder_that_the_server_cannot_enter_is_an_error_with_a_remedy() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let server = PrivatePostgres::start();
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let outer = tempfile::tempdir_in("/tmp").unwrap();
    let scratch = outer.path().join("private");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let result = engine.driller.drill(&context().scratch_in(&scratch), &saved.reader().await).await;
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        assert!(error.remedy().unwrap().contains("scratch folder"), "{error:?}");
    }
    assert!(is_empty(&scratch));
}

#[tokio::test]
async fn a_cluster_with_large_segments_is_drilled_in_both_modes() {
    let server = PrivatePostgres::with_initdb(&["--wal-segsize=64"], &[]);
    server.sql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id");
    let engine = engine(&server, "modes: [logical, physical]");
    let saved = back_up(&engine).await.unwrap();
    let report = drill(&engine, &saved.reader().await).await;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}
