//! Drills: what they prove, what they find, and what they leave behind.

use backup_core::RunContext;
use backup_core::engine::RestoreTarget;
use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;

use crate::support::{artifact, back_up, context, engine, product, restore, sample, source};

#[tokio::test]
async fn keys_that_expired_meanwhile_are_no_finding() {
    let server = sample(&[("hz", "1")]);
    server.call(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let soon: Vec<String> = (0..500).map(|number| format!("SET soon:{number} x PX 400\n")).collect();
    server.pipe(&soon.concat());
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.record().fingerprint.total("keys of db0"), 3011 + 500);
    while server.call(&["EXISTS", "soon:499"]) == "1" {
        tokio::task::yield_now().await;
    }
    let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    assert!(drill.checked.iter().any(|line| line.contains("left out 500")), "{drill:?}");
    let target = PrivateRedis::start();
    let report = restore(&crate::support::engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    assert!(report.warnings.iter().any(|warning| warning.starts_with("500 keys had expired")), "{report:?}");
}

#[tokio::test]
async fn a_drill_works_in_a_folder_with_a_long_name_and_leaves_nothing() {
    let server = sample(&[]);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let long = scratch.path().join("long".repeat(40));
    std::fs::create_dir(&long).unwrap();
    let cx = RunContext::new(source()).scratch_in(&long);
    let drill = engine.driller.drill(&cx, &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
}

#[tokio::test]
async fn without_a_server_program_the_drill_says_what_to_install() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let nowhere = engine(&server, "bin: /no/such/folder");
    let error = nowhere.driller.drill(&context(), &saved.reader().await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.remedy().is_some_and(|hint| hint.contains(&format!("apt-get install {}", product().1))), "{error:?}");
}

/// A server that loads less than it was given must not pass.
#[tokio::test]
async fn a_server_that_loses_keys_is_found_out() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    // Evicts while it loads: `--maxmemory` comes last, so it counts.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(product().1);
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec {0} --version\n\
         exec {0} \"$@\" --maxmemory 1000000 --maxmemory-policy allkeys-random\n",
        backup_testkit::redis::program().display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let forgetful = engine(&server, &format!("bin: {}", folder.path().display()));
    let drill = forgetful.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert!(drill.findings.iter().any(|finding| finding.contains("string")), "{drill:?}");
    assert!(saved.record().artifact(&artifact("dump.rdb")).is_some());
}

/// An RDB that is whole, but is not what was counted, must not pass.
#[tokio::test]
async fn counts_that_do_not_fit_are_found_everywhere() {
    let server = sample(&[]);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let from = saved.reader_with(|record| record.fingerprint.count("keys of db9", "list", 2)).await;
    let report = engine.verifier.verify(&context(), &from).await.unwrap();
    assert!(report.findings.iter().any(|finding| finding.problem.contains("2 saved, 1 restored")), "{report:?}");
    let drill = engine.driller.drill(&context(), &from).await.unwrap();
    assert!(drill.findings.iter().any(|finding| finding.contains("2 saved, 1 restored")), "{drill:?}");
    let target = PrivateRedis::start();
    let into = crate::support::engine(&target, "");
    let plan = into.restorer.plan_restore(&context(), &from, &RestoreTarget::default()).await.unwrap();
    let error = into.restorer.restore(&context(), &from, plan).await.unwrap_err();
    assert_eq!((error.kind(), target.call(&["DBSIZE"]).as_str()), (ErrorKind::Damaged, "0"));
}

#[tokio::test]
async fn an_append_only_file_that_is_missing_is_found() {
    let server = sample(&[("appendonly", "yes")]);
    let engine = engine(&server, "modes: [rdb, aof]");
    let saved = back_up(&engine).await.unwrap();
    let from = saved.reader_with(|record| record.artifacts.retain(|it| !it.name.as_str().ends_with("incr.aof"))).await;
    let report = engine.verifier.verify(&context(), &from).await.unwrap();
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert!(report.findings[0].problem.contains("incr.aof"), "{report:?}");
}

/// An RDB that the program here cannot read is not called damaged.
#[tokio::test]
async fn a_backup_that_is_too_new_for_the_program_is_said_to_be() {
    let server = sample(&[]);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    let from = saved.reader_with(|record| *record.details.get_mut("rdb_version").unwrap() = 99.into()).await;
    let error = engine.driller.drill(&context(), &from).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let stoppable = crate::support::engine(&server, "stop: ['false'], start: ['false']");
    let error = stoppable.restorer.plan_restore(&context(), &from, &crate::support::replacing()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "refused before the server is stopped");
}

/// The second server of a drill has something else than the first: a program that brings a key of its own.
#[tokio::test]
async fn contents_that_differ_are_found() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let other = PrivateRedis::start();
    other.call(&["SET", "of its own", "1"]);
    other.call(&["SAVE"]);
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(product().1);
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] || [ -e dump.rdb ] || cp {} dump.rdb\nexec {} \"$@\"\n",
        other.data_folder().join("dump.rdb").display(),
        backup_testkit::redis::program().display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let strange = engine(&server, &format!("bin: {}", folder.path().display()));
    let drill = strange.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert!(drill.findings.iter().any(|finding| finding.contains("other contents")), "{drill:?}");
    let sound = engine(&server, "").driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert!(sound.checked.iter().any(|line| line.contains("the same contents")), "{sound:?}");
}
