//! Restores: into running servers, by files, into folders; and what they refuse.

use backup_core::RunContext;
use backup_core::engine::{Existing, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;
use tokio_util::sync::CancellationToken;

use crate::support::{back_up, context, engine, folder, replacing, restore, sample, select, service, source};

#[tokio::test]
async fn a_running_server_gets_everything_by_commands() {
    let (server, target) = (sample(&[]), PrivateRedis::start());
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let report = restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    assert_eq!(target.digest(), server.digest());
    assert_eq!(target.call(&["FUNCTION", "LIST"]), server.call(&["FUNCTION", "LIST"]));
    assert_eq!(target.call(&["XINFO", "STREAM", "stream"]), server.call(&["XINFO", "STREAM", "stream"]));
    assert_eq!(report.items, 3000 + 14);
}

#[tokio::test]
async fn a_server_with_append_only_files_still_has_the_data_after_a_restart() {
    let (server, target) = (sample(&[]), PrivateRedis::with_options(&[("appendonly", "yes")]));
    let saved = back_up(&engine(&server, "")).await.unwrap();
    restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    target.call(&["SHUTDOWN"]);
    target.kill();
    target.launch();
    assert_eq!(target.digest(), server.digest());
}

#[tokio::test]
async fn what_a_server_holds_is_replaced_only_when_told() {
    let (server, target) = (sample(&[]), PrivateRedis::start());
    target.fill(10, 3);
    let (saved, into) = (back_up(&engine(&server, "")).await.unwrap(), engine(&target, ""));
    let before = target.digest();
    let error = restore(&into, &saved, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let comparing = RestoreTarget { existing: Existing::Update, ..RestoreTarget::default() };
    let error = restore(&into, &saved, &comparing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("--delta") && error.remedy().unwrap().contains("--force"), "{error}");
    assert_eq!(target.digest(), before);
    restore(&into, &saved, &replacing()).await.unwrap();
    assert_eq!(target.digest(), server.digest());
}

#[tokio::test]
async fn a_load_that_fails_leaves_what_was_there() {
    let server = sample(&[]);
    server.fill(50_000, 100);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    for (options, kind) in [
        (vec![("maxmemory", "5mb")], ErrorKind::NoSpace),
        (vec![("maxmemory", "5mb"), ("maxmemory-policy", "allkeys-random")], ErrorKind::NoSpace),
        (vec![("databases", "4")], ErrorKind::Tool),
    ] {
        for filled in [0, 500] {
            // The backlog for replicas counts as memory, too, and ours is one for a moment.
            let target = PrivateRedis::with_options(&[&options[..], &[("repl-backlog-size", "16kb")]].concat());
            target.fill(filled, 3);
            target.call(&["FUNCTION", "LOAD", "#!lua name=old\nredis.register_function('g', function() return 2 end)"]);
            let (before, functions) = (target.digest(), target.call(&["FUNCTION", "LIST"]));
            let error = restore(&engine(&target, ""), &saved, &replacing()).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{options:?}: {error:?}");
            assert_eq!(target.digest(), before, "{options:?}");
            assert_eq!(target.call(&["FUNCTION", "LIST"]), functions, "{options:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_cancelled_leaves_what_was_there() {
    let (server, target) = (sample(&[]), PrivateRedis::start());
    server.fill(200_000, 100);
    target.fill(500, 3);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let (into, before) = (engine(&target, ""), target.digest());
    let (from, cancel) = (saved.reader().await, CancellationToken::new());
    // Cancelled as soon as the first commands were sent.
    let observer = Canceller { cancel: cancel.clone(), loading: false.into() };
    let cx = RunContext::new(source()).cancelled_by(cancel).observed_by(std::sync::Arc::new(observer));
    let plan = into.restorer.plan_restore(&cx, &from, &replacing()).await.unwrap();
    let error = into.restorer.restore(&cx, &from, plan).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!(target.digest(), before);
}

struct Canceller {
    cancel: CancellationToken,
    loading: std::sync::atomic::AtomicBool,
}

impl backup_core::Observer for Canceller {
    fn event(&self, event: &backup_core::Event) {
        use std::sync::atomic::Ordering::Relaxed;
        match event {
            backup_core::Event::Step { what, .. } if what.starts_with("loading") => self.loading.store(true, Relaxed),
            backup_core::Event::Progress { .. } if self.loading.load(Relaxed) => self.cancel.cancel(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn parts_are_restored_beside_what_is_there() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let target = PrivateRedis::start();
    let into = engine(&target, "");
    target.pipe("SET mine 1\nSELECT 9\nSET mine 2\n");
    restore(&into, &saved, &select(&["db15"])).await.unwrap();
    assert_eq!(target.call(&["-n", "15", "GET", "last"]), "one");
    restore(&into, &saved, &select(&["key:1?", "db0"])).await.unwrap();
    assert_eq!(target.call(&["DBSIZE"]), "11");
    let error = restore(&into, &saved, &select(&["db9"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = restore(&into, &saved, &select(&["key:*"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "some of them are there now");
    let everything = RestoreTarget { select: vec!["key:*".to_owned()], ..replacing() };
    restore(&into, &saved, &everything).await.unwrap();
    assert_eq!((target.call(&["DBSIZE"]), target.call(&["GET", "mine"])), ("3001".to_owned(), "1".to_owned()));
    assert_eq!(target.call(&["FUNCTION", "LIST"]), "", "functions belong to the whole");
}

#[tokio::test]
async fn a_replica_and_a_forbidden_flush_are_refused_before_anything_happens() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let replica = PrivateRedis::start();
    replica.call(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = restore(&engine(&replica, ""), &saved, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let careful = PrivateRedis::with_options(&[("rename-command", "FLUSHALL \"\"")]);
    let error = restore(&engine(&careful, ""), &saved, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert_eq!(careful.call(&["DBSIZE"]), "0");
}

#[tokio::test]
async fn files_in_a_folder_are_what_a_server_loads() {
    for append_only in ["no", "yes"] {
        let server = sample(&[("appendonly", append_only)]);
        let saved = back_up(&engine(&server, "")).await.unwrap();
        let again = PrivateRedis::with_options(&[("appendonly", append_only)]);
        again.kill();
        std::fs::remove_dir_all(again.data_folder()).unwrap();
        restore(&engine(&server, ""), &saved, &folder(&again.data_folder())).await.unwrap();
        again.launch();
        assert_eq!(again.digest(), server.digest(), "appendonly {append_only}");
        let error = restore(&engine(&server, ""), &saved, &folder(&again.data_folder())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    }
}

#[tokio::test]
async fn a_stopped_server_gets_files_where_it_looks_for_them() {
    for append_only in ["no", "yes"] {
        let (server, target) = (sample(&[]), PrivateRedis::with_options(&[("appendonly", append_only)]));
        target.fill(7, 3);
        let saved = back_up(&engine(&server, "")).await.unwrap();
        let into = engine(&target, &service(&target, None));
        let error = restore(&into, &saved, &RestoreTarget::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        let plan = into.restorer.plan_restore(&context(), &saved.reader().await, &replacing()).await.unwrap();
        assert!(plan.steps.iter().any(|step| step.contains("append-only") == (append_only == "yes")), "{plan:?}");
        restore(&into, &saved, &replacing()).await.unwrap();
        assert_eq!(target.digest(), server.digest(), "appendonly {append_only}");
        target.call(&["SET", "written", "after"]);
        let _gone = target.try_call(&["SHUTDOWN", "NOSAVE"]);
        target.kill();
        target.launch();
        assert_eq!(target.call(&["DBSIZE"]) == "3012", append_only == "yes", "appendonly {append_only}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_start_again_is_set_back() {
    for append_only in ["no", "yes"] {
        let (server, target) = (sample(&[]), PrivateRedis::with_options(&[("appendonly", append_only)]));
        // Not `fill`: a server does not write that into its append-only file. Without one, this is in memory alone.
        target.pipe("SET a 1\nSET b 2\n");
        let before = target.digest();
        let saved = back_up(&engine(&server, "")).await.unwrap();
        // The first start fails, the second one works.
        let flag = target.data_folder().join("tried");
        let script = target.data_folder().join("start.sh");
        let text = format!(
            "#!/bin/sh\n[ -e {0} ] || {{ touch {0}; exit 1; }}\nexec {1} \"$@\"\n",
            flag.display(),
            backup_testkit::redis::program().display()
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let into = engine(&target, &service(&target, Some(&script)));
        let error = restore(&into, &saved, &replacing()).await.unwrap_err();
        assert!(error.remedy().is_some_and(|hint| hint.contains("what it held before")), "{error:?}");
        while target.try_call(&["PING"]).is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(target.digest(), before, "appendonly {append_only}");
        let _gone = target.try_call(&["SHUTDOWN", "NOSAVE"]);
    }
}
