//! What comes back, and what is refused before the first write.

use std::collections::BTreeMap;

use backup_core::ErrorKind;
use backup_core::engine::{Existing, Place, RestoreTarget};
use backup_testkit::PrivatePostgres;

use crate::support::{
    SAMPLE_DATABASES, Saved, WEIRD, back_up, bin_of, build, context, databases, engine, fill, properties, quoted,
    restore, select, set_password,
};

async fn saved_sample() -> (PrivatePostgres, Saved) {
    let server = PrivatePostgres::start();
    fill(&server);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    (server, saved)
}

fn assert_same(name: &str, from: &PrivatePostgres, to: &PrivatePostgres, as_name: &str) {
    assert_eq!(from.dump(name), to.dump(as_name), "the content of {name}");
    assert_eq!(properties(from, name), properties(to, as_name), "the properties of {name}");
}

#[tokio::test]
async fn restore_round_trips_a_cluster() {
    let (source, saved) = saved_sample().await;
    let target = PrivatePostgres::start();
    let report = restore(&engine(&target, ""), &saved.reader().await, &RestoreTarget::default()).await.unwrap();
    assert_eq!(databases(&target), databases(&source));
    for name in SAMPLE_DATABASES {
        assert_same(name, &source, &target, name);
    }
    assert_eq!(source.dump_globals(), target.dump_globals());
    assert!(report.items > 1000 && report.restored.len() == SAMPLE_DATABASES.len(), "{report:?}");
    // ANALYZE has run.
    assert_eq!(target.sql("app", "select reltuples from pg_class where oid = 'users'::regclass"), "1000");
    // Again, onto what is there now: refused, and nothing changes.
    let error = restore(&engine(&target, ""), &saved.reader().await, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    assert!(error.remedy().unwrap().contains("--force"));
    assert_eq!(databases(&target), databases(&source));
}

#[tokio::test]
async fn one_database_comes_back_alone_or_under_another_name() {
    let (source, saved) = saved_sample().await;
    let engine = engine(&source, "jobs: 1");
    let reader = saved.reader().await;
    let renamed = RestoreTarget { rename: Some("new \"name".into()), ..select(WEIRD) };
    restore(&engine, &reader, &renamed).await.unwrap();
    assert_same(WEIRD, &source, &source, "new \"name");

    let before = source.dump("app");
    source.sql("postgres", "DROP DATABASE app");
    restore(&engine, &reader, &select("app")).await.unwrap();
    assert_eq!(source.dump("app"), before);

    for (target, kind) in [
        (RestoreTarget { rename: Some("x".into()), ..RestoreTarget::default() }, ErrorKind::Usage),
        (RestoreTarget { rename: Some("x".repeat(64)), ..select("app") }, ErrorKind::Usage),
        (RestoreTarget { rename: Some("new \"name".into()), ..select("app") }, ErrorKind::AlreadyExists),
        (select("no such"), ErrorKind::NotFound),
    ] {
        assert_eq!(restore(&engine, &reader, &target).await.unwrap_err().kind(), kind, "{target:?}");
    }
}

#[tokio::test]
async fn replacing_waits_until_the_successor_is_complete() {
    let (source, saved) = saved_sample().await;
    let engine = engine(&source, "");
    let reader = saved.reader().await;
    let before = (source.dump("app"), properties(&source, "app"));
    source.sql("app", "DROP TABLE events CASCADE; UPDATE users SET name = name || '!'; CREATE TABLE later (id int)");
    let changed = source.dump("app");

    let error = restore(&engine, &reader, &select("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(source.dump("app"), changed);

    // Somebody is connected; with `--force` they are disconnected at the moment of the swap.
    let sleep = source.socket_folder().join("sleep.sql");
    std::fs::write(&sleep, "SELECT pg_sleep(1000);").unwrap();
    let _client = source.pgbench_in_background("app", &["-n", "-f", sleep.to_str().unwrap()]);
    let connected = "select count(*) from pg_stat_activity where datname = 'app' and query like '%sleep(1000)%'";
    while source.sql("postgres", connected) == "0" {}
    let replace = RestoreTarget { existing: Existing::Replace, ..select("app") };
    restore(&engine, &reader, &replace).await.unwrap();
    assert_eq!((source.dump("app"), properties(&source, "app")), before);
    assert_eq!(databases(&source), SAMPLE_DATABASES, "nothing is left over");
}

#[tokio::test]
async fn trouble_is_found_before_the_first_write() {
    let (_source, saved) = saved_sample().await;
    let reader = saved.reader().await;
    let target = PrivatePostgres::start();
    let engine = engine(&target, "");
    let untouched = (target.dump_globals(), databases(&target));

    let error = engine.restorer.plan_restore(&context(), &reader, &select("app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("`app`, `o'brien`"), "{error}");
    assert!(error.remedy().unwrap().contains("CREATE ROLE \"o'brien\";"), "{error:?}");

    let [version, dumped] = ["version", "dump_version"].map(|what| format!("\"{what}_number\":{}", target.major()));
    let cases: [(&str, &str, ErrorKind); 4] = [
        ("\"citext\"", "\"no_such_extension\"", ErrorKind::NotFound),
        (&version, "\"version_number\":99", ErrorKind::Unsupported),
        (&dumped, "\"dump_version_number\":99", ErrorKind::Unsupported),
        ("\"collate\":\"C.UTF-8\"", "\"collate\":\"xx_XX.UTF-8\"", ErrorKind::NotFound),
    ];
    for (from, to, kind) in cases {
        let changed = crate::faults::with_details(&saved, |details| details.replace(from, to)).await;
        let error = restore(&engine, &changed, &RestoreTarget::default()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{from}: {error:?}");
        assert!(error.remedy().is_some(), "{error:?}");
        assert_eq!((target.dump_globals(), databases(&target)), untouched, "{from}");
    }

    target.sql("postgres", "CREATE ROLE weak LOGIN");
    let weak =
        build(&format!("{{ socket: {}, user: weak{} }}", target.socket_folder().display(), bin_of(&target))).unwrap();
    let error = restore(&weak, &reader, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    let error = restore(&weak, &reader, &select("postgres")).await.unwrap_err();
    assert!(error.remedy().unwrap().contains("CREATEDB"), "{error:?}");
    assert_eq!(databases(&target), untouched.1);
}

#[tokio::test]
async fn a_restore_that_fails_half_way_leaves_what_was_there() {
    let (source, saved) = saved_sample().await;
    let engine = engine(&source, "");
    let before = source.dump("app");
    for damage in [crate::faults::Damage::FlipByte, crate::faults::Damage::Cut] {
        let reader = crate::faults::damaged(&saved, "databases/app.dump", damage).await;
        let replace = RestoreTarget { existing: Existing::Replace, ..select("app") };
        let error = restore(&engine, &reader, &replace).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Tool), "{error:?}");
        assert_eq!(source.dump("app"), before, "{damage:?}");
        assert_eq!(databases(&source), SAMPLE_DATABASES, "{damage:?}: nothing is left over");
    }
}

#[tokio::test]
async fn a_folder_receives_ordinary_files() {
    let (source, saved) = saved_sample().await;
    let reader = saved.reader().await;
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(&source, "");
    let target = RestoreTarget { place: Place::Folder(folder.path().join("out")), ..RestoreTarget::default() };
    let report = restore(&engine, &reader, &target).await.unwrap();
    assert_eq!(report.restored.len(), saved.record().artifacts.len());
    let mut sizes = BTreeMap::new();
    for artifact in &saved.record().artifacts {
        let length = std::fs::metadata(folder.path().join("out").join(artifact.name.as_str())).unwrap().len();
        sizes.insert(artifact.name.as_str(), length == artifact.bytes);
    }
    assert!(sizes.values().all(|same| *same), "{sizes:?}");
    let hba = std::fs::read_to_string(folder.path().join("out/config/pg_hba.conf")).unwrap();
    assert_eq!(hba, std::fs::read_to_string(source.data_folder().join("pg_hba.conf")).unwrap());
    assert_eq!(restore(&engine, &reader, &target).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let again = RestoreTarget { existing: Existing::Replace, ..target };
    assert_eq!(restore(&engine, &reader, &again).await.unwrap().restored.len(), saved.record().artifacts.len());
}

#[tokio::test]
async fn a_large_dump_is_loaded_by_several_jobs() {
    let source = PrivatePostgres::start();
    source.sql("postgres", "CREATE DATABASE big");
    let fill = "CREATE TABLE a AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 30000) n; \
                CREATE TABLE b AS SELECT * FROM a; CREATE INDEX ON a (t); CREATE INDEX ON b (n)";
    source.sql("big", fill);
    let saved = back_up(&engine(&source, "")).await.unwrap();
    let big = saved.record().artifacts.iter().map(|artifact| artifact.bytes).max().unwrap();
    assert!(big > 16 * 1024 * 1024, "the dump has {big} bytes and would be streamed");
    let target = PrivatePostgres::start();
    let outer = tempfile::tempdir_in("/tmp").unwrap();
    let scratch = outer.path().join("private");
    std::fs::create_dir(&scratch).unwrap();
    for (name, mode) in [("closed to postgres", 0o700), ("open", 0o711)] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let cx = context().scratch_in(&scratch);
        let engine = engine(&target, "jobs: 3");
        let goal = RestoreTarget { rename: Some(name.into()), ..select("big") };
        let plan = engine.restorer.plan_restore(&cx, &saved.reader().await, &goal).await.unwrap();
        engine.restorer.restore(&cx, &saved.reader().await, plan).await.unwrap();
        assert_eq!(target.dump(name), source.dump("big"), "{name}");
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "the scratch file is gone");
        assert_eq!(cx.warnings().len(), usize::from(mode == 0o700), "{:?}", cx.warnings());
    }
}

#[tokio::test]
async fn tablespaces_are_made_when_their_folder_is_there() {
    let source = PrivatePostgres::start();
    let location = source.socket_folder().join("fast");
    let make = || {
        source.sql("postgres", &format!("COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; mkdir -p {}'", location.display()))
    };
    make();
    source.sql("postgres", &format!("CREATE TABLESPACE \"fast disk\" LOCATION '{}'", location.display()));
    source.sql("postgres", &format!("CREATE DATABASE {} TABLESPACE \"fast disk\"", quoted("on fast")));
    source.sql("on fast", "CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    source.sql("postgres", "CREATE DATABASE other");
    source.sql("other", "CREATE TABLE t (id int) TABLESPACE \"fast disk\"; INSERT INTO t VALUES (1)");
    let saved = back_up(&engine(&source, "")).await.unwrap();
    let tablespace = "select coalesce((select spcname from pg_tablespace where oid = c.reltablespace), '') from \
                      pg_class c where relname = 't'";
    for (there, expected) in [(true, "fast disk"), (false, "")] {
        let target = PrivatePostgres::start();
        source.sql("postgres", "DROP DATABASE IF EXISTS other");
        source.sql("postgres", "DROP DATABASE IF EXISTS \"on fast\"");
        source.sql("postgres", "DROP TABLESPACE IF EXISTS \"fast disk\"");
        if !there {
            source
                .sql("postgres", &format!("COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; rm -r {}'", location.display()));
        }
        let report = restore(&engine(&target, ""), &saved.reader().await, &RestoreTarget::default()).await.unwrap();
        assert_eq!(target.sql("other", tablespace), expected);
        assert_eq!(target.sql("on fast", "select count(*) from t"), "1");
        assert_eq!(report.warnings.iter().any(|warning| warning.contains("fast disk")), !there, "{report:?}");
        drop(target);
        make();
    }
}

#[tokio::test]
async fn the_maintenance_database_is_replaced_only_when_it_is_unused() {
    let source = PrivatePostgres::start();
    source.sql("postgres", "CREATE TABLE t AS SELECT 1 AS id; CREATE ROLE someone");
    let saved = back_up(&engine(&source, "")).await.unwrap();
    let target = PrivatePostgres::start();
    let engine = engine(&target, "");
    let whole = RestoreTarget::default();
    target.sql("postgres", "CREATE TABLE mine (id int)");
    let error = restore(&engine, &saved.reader().await, &whole).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    target.sql("postgres", "DROP TABLE mine");
    restore(&engine, &saved.reader().await, &whole).await.unwrap();
    assert_eq!(target.dump("postgres"), source.dump("postgres"));
    let force = RestoreTarget { existing: Existing::Replace, ..whole };
    target.sql("postgres", "CREATE TABLE mine (id int)");
    restore(&engine, &saved.reader().await, &force).await.unwrap();
    assert_eq!(target.dump("postgres"), source.dump("postgres"));
}

#[tokio::test]
async fn a_restore_by_password_does_not_lock_itself_out() {
    let source = PrivatePostgres::start();
    source.sql("postgres", "ALTER ROLE postgres PASSWORD 'of-the-source'; CREATE DATABASE app; CREATE ROLE someone");
    let saved = back_up(&engine(&source, "")).await.unwrap();
    let target = PrivatePostgres::start();
    set_password(&target, "of-the-target");
    target.set_hba("local all all scram-sha-256\n");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&secret, "of-the-target").unwrap();
    let engine = engine(&target, &format!("password: {{ file: {} }}", secret.path().display()));
    let report = restore(&engine, &saved.reader().await, &RestoreTarget::default()).await.unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("keeps its password")), "{report:?}");
    engine.source.preflight(&context()).await.unwrap();
    target.set_hba("local all all trust\n");
    while target.try_sql("postgres", "select 1").is_err() {}
    assert_eq!(databases(&target), ["app", "postgres"]);
}

#[tokio::test]
async fn a_cancelled_restore_takes_back_what_it_began() {
    let (source, saved) = saved_sample().await;
    let started = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(started.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let flag = started.path().join("flag");
    let script = format!("[ \"$1\" = --version ] && exec \"$real\" \"$@\"\ntouch {}; sleep 1000", flag.display());
    let (_tools, bin) = crate::support::tools_with(&source, &[("pg_restore", &script)]);
    let engine = engine(&source, &format!("bin: {}", bin.display()));
    let before = (databases(&source), source.dump("app"));
    let cancel = tokio_util::sync::CancellationToken::new();
    let cx = context().cancelled_by(cancel.clone());
    let goal = RestoreTarget { existing: Existing::Replace, ..select("app") };
    let reader = saved.reader().await;
    let restoring = tokio::spawn(async move {
        let plan = engine.restorer.plan_restore(&cx, &reader, &goal).await?;
        engine.restorer.restore(&cx, &reader, plan).await
    });
    while !flag.exists() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    assert_eq!(restoring.await.unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!((databases(&source), source.dump("app")), before);
}

#[tokio::test]
async fn who_may_create_databases_restores_its_own() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE ROLE own LOGIN CREATEDB; CREATE ROLE other LOGIN CREATEDB");
    server.sql("postgres", "CREATE DATABASE app OWNER own");
    server.sql("app", "SET ROLE own; CREATE SCHEMA s; CREATE TABLE s.t AS SELECT n FROM generate_series(1, 9) n");
    let saved = back_up(&engine(&server, "databases: [app]")).await.unwrap();
    let before = server.dump("app");
    server.sql("postgres", "DROP DATABASE app");
    let goal = select("app");
    let error = restore(&engine(&server, "user: other"), &saved.reader().await, &goal).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.remedy().unwrap().contains("GRANT \"own\" TO \"other\""), "{error:?}");
    restore(&engine(&server, "user: own"), &saved.reader().await, &goal).await.unwrap();
    assert_eq!(server.dump("app"), before);
}
