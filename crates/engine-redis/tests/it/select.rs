//! Restores of parts: functions, access rules, the append-only files, files of commands.

use backup_core::engine::{Place, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;

use crate::support::{
    Saved, artifact, back_up, context, engine, fill, folder, password, replacing, restore, sample, select, service,
};

fn select_into(path: &std::path::Path, items: &[&str]) -> RestoreTarget {
    RestoreTarget { place: Place::Folder(path.to_owned()), ..select(items) }
}

/// The file goes through `redis-cli --pipe`, as an operator would send it.
#[tokio::test]
async fn a_file_of_commands_loads_into_any_server() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let (path, engine) = (place.path().join("new"), engine(&server, ""));
    let report = restore(&engine, &saved, &select_into(&path, &["commands"])).await.unwrap();
    assert_eq!(report.warnings, Vec::<String>::new());
    assert_eq!(report.items, 3014 + 1);
    let target = PrivateRedis::start();
    target.pipe_file(&path.join("commands.resp"));
    assert_eq!(target.digest(), server.digest());
    assert_eq!(target.call(&["FUNCTION", "LIST", "WITHCODE"]), server.call(&["FUNCTION", "LIST", "WITHCODE"]));
    // For an older one: what it does not have is named.
    let path = place.path().join("old");
    let report = restore(&engine, &saved, &select_into(&path, &["commands=redis-6.0"])).await.unwrap();
    assert!(
        report.warnings.iter().any(|warning| warning.contains("not in the file") && warning.contains("lib")),
        "{report:?}"
    );
    let text = std::fs::read(path.join("commands.resp")).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("PXAT") && text.contains("PEXPIREAT"), "words that 6.0 knows");
    // Some keys only.
    let path = place.path().join("some");
    restore(&engine, &saved, &select_into(&path, &["commands", "db0", "key:1?"])).await.unwrap();
    let target = PrivateRedis::start();
    target.pipe_file(&path.join("commands.resp"));
    assert_eq!(target.call(&["DBSIZE"]), "10");
    let error = restore(&engine, &saved, &select_into(&path, &["commands"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    for (target, what) in
        [(select(&["commands"]), "no folder"), (select_into(&place.path().join("x"), &["db0"]), "an RDB is whole")]
    {
        let error = restore(&engine, &saved, &target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{what}");
    }
}

#[tokio::test]
async fn functions_are_restored_beside_what_is_there() {
    let server = sample(&[]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    let target = PrivateRedis::start();
    target.pipe("SET mine 1\n");
    let into = engine(&target, "");
    restore(&into, &saved, &select(&["functions"])).await.unwrap();
    assert_eq!(target.call(&["FUNCTION", "LIST"]), server.call(&["FUNCTION", "LIST"]));
    assert_eq!(target.call(&["DBSIZE"]), "1");
    target.call(&["FUNCTION", "LOAD", "#!lua name=other\nredis.register_function('g', function() return 2 end)"]);
    let error = restore(&into, &saved, &select(&["functions"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    restore(&into, &saved, &RestoreTarget { select: vec!["functions".into()], ..replacing() }).await.unwrap();
    assert_eq!(target.call(&["FUNCTION", "LIST"]), server.call(&["FUNCTION", "LIST"]));
    assert_eq!(target.call(&["GET", "mine"]), "1");
}

/// All rules, without the flag that a server adds when a user is made anew; it means what having none means.
fn list(server: &PrivateRedis) -> String {
    server.call(&["ACL", "LIST"]).replace(" sanitize-payload", "")
}

/// A user's line of `ACL LIST`.
fn rules(server: &PrivateRedis, user: &str) -> String {
    let list = list(server);
    list.lines().find(|line| line.starts_with(&format!("user {user} "))).unwrap_or_default().to_owned()
}

async fn with_users() -> (PrivateRedis, Saved) {
    let server = sample(&[]);
    server.call(&["ACL", "SETUSER", "ann", "on", ">hunter2", "(~a* +get)", "~b:*", "+@read", "-keys"]);
    server.call(&["ACL", "SETUSER", "bob", "off", "nopass", "&news.*", "~*", "+@all", "-@dangerous"]);
    server.call(&["ACL", "SETUSER", "default", "-debug"]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    (server, saved)
}

#[tokio::test]
async fn access_rules_are_put_onto_a_live_server_when_asked_for() {
    let (server, saved) = with_users().await;
    let target = PrivateRedis::start();
    let into = engine(&target, "");
    // Not by themselves.
    restore(&into, &saved, &RestoreTarget::default()).await.unwrap();
    assert_eq!(rules(&target, "ann"), "");
    let report = restore(&into, &saved, &select(&["acl"])).await.unwrap();
    for user in ["ann", "bob", "default"] {
        assert_eq!(rules(&target, user), rules(&server, user));
    }
    assert!(report.warnings.iter().any(|warning| warning.contains("CONFIG REWRITE")), "{report:?}");
    assert!(!format!("{report:?}").contains(&rules(&server, "ann")[9..]), "no hash is shown");
    // Users that are there are replaced as a whole, when told, and others stay.
    target.call(&["ACL", "SETUSER", "ann", "+flushall", "allkeys"]);
    target.call(&["ACL", "SETUSER", "eve", "on"]);
    let error = restore(&into, &saved, &select(&["acl"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("ann") && error.message().contains("eve"), "{error:?}");
    let report = restore(&into, &saved, &RestoreTarget { select: vec!["acl".into()], ..replacing() }).await.unwrap();
    assert_eq!(rules(&target, "ann"), rules(&server, "ann"));
    assert!(!rules(&target, "eve").is_empty());
    assert!(report.warnings.iter().any(|warning| warning.contains("eve")), "{report:?}");
}

#[tokio::test]
async fn access_rules_go_into_the_servers_own_file() {
    let (server, saved) = with_users().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let target = PrivateRedis::with_options(&[("aclfile", file.path().to_str().unwrap())]);
    let report = restore(&engine(&target, ""), &saved, &select(&["acl"])).await.unwrap();
    assert_eq!(report.warnings, Vec::<String>::new());
    target.kill();
    target.launch();
    assert_eq!(rules(&target, "ann"), rules(&server, "ann"));
}

#[tokio::test]
async fn rules_that_the_server_does_not_accept_leave_all_users_as_they_were() {
    let (server, saved) = with_users().await;
    server.call(&["ACL", "SETUSER", "zoe", "+get"]);
    let target = PrivateRedis::start();
    target.call(&["ACL", "SETUSER", "ann", "~mine:*"]);
    let before = list(&target);
    // As if by a newer server: a command that this one does not have.
    let broken = saved
        .with_bytes("acl.txt", |text| {
            String::from_utf8(text).unwrap().replace("user bob off", "user bob off +nosuchcommand").into()
        })
        .await;
    let into = engine(&target, "");
    let forced = RestoreTarget { select: vec!["acl".into()], ..replacing() };
    let from = broken.reader().await;
    let plan = into.restorer.plan_restore(&context(), &from, &forced).await.unwrap();
    let error = into.restorer.restore(&context(), &from, plan).await.unwrap_err();
    assert!(error.message().contains("bob"), "{error:?}");
    assert_eq!(list(&target), before);
}

#[tokio::test]
async fn access_rules_can_be_restored_by_a_user_of_them() {
    let (server, saved) = with_users().await;
    let target = PrivateRedis::start();
    target.call(&["ACL", "SETUSER", "ann", "on", ">hunter2", "+@all", "~*", "&*"]);
    let (text, _kept) = password("hunter2");
    let forced = RestoreTarget { select: vec!["acl".into()], ..replacing() };
    restore(&engine(&target, &format!("user: ann, {text}")), &saved, &forced).await.unwrap_or_default();
    assert_eq!(rules(&target, "ann"), rules(&server, "ann"));
    assert_eq!(rules(&target, "bob"), rules(&server, "bob"));
}

/// A server that keeps append-only files, with data that came after the RDB.
async fn saved_set() -> (PrivateRedis, Saved) {
    let server = PrivateRedis::with_options(&[("appendonly", "yes")]);
    fill(&server);
    let saved = back_up(&engine(&server, "modes: [rdb, aof]")).await.unwrap();
    (server, saved)
}

#[tokio::test]
async fn saved_append_only_files_are_put_onto_a_stopped_server() {
    let (server, saved) = saved_set().await;
    let target = PrivateRedis::with_options(&[
        ("appendonly", "yes"),
        ("appendfilename", "other.aof"),
        ("appenddirname", "logs"),
    ]);
    target.pipe("SET old 1\n");
    let into = engine(&target, &service(&target, None));
    let chosen = RestoreTarget { select: vec!["aof".into()], ..replacing() };
    let error = restore(&into, &saved, &select(&["aof"])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let report = restore(&into, &saved, &chosen).await.unwrap();
    assert_eq!(target.digest(), server.digest());
    assert_eq!(report.items, 15 + 2 - 3);
    target.call(&["SET", "written", "after"]);
    let _gone = target.try_call(&["SHUTDOWN", "NOSAVE"]);
    target.kill();
    target.launch();
    assert_eq!(target.call(&["GET", "written"]), "after");
    // Not where nobody would look at them, and not without a way to stop the server.
    let plain = PrivateRedis::start();
    for (engine, kind) in
        [(engine(&plain, &service(&plain, None)), ErrorKind::Unsupported), (engine(&plain, ""), ErrorKind::Usage)]
    {
        let error = restore(&engine, &saved, &chosen).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
    }
    let without = back_up(&crate::support::engine(&plain, "")).await.unwrap();
    let error = restore(&into, &without, &chosen).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// The form of servers before 7.0: one file, an RDB in front or not. A newer server finds it at its first start and takes it over.
#[tokio::test]
async fn data_written_in_the_old_form_is_saved_and_restored() {
    for preamble in [true, false] {
        let origin = sample(&[]);
        origin.call(&["SAVE"]);
        let server = PrivateRedis::with_options(&[("appendonly", "yes"), ("aof-use-rdb-preamble", "no")]);
        server.kill();
        std::fs::remove_dir_all(server.data_folder().join("appendonlydir")).unwrap();
        let old = server.data_folder().join("appendonly.aof");
        let tail = "*3\r\n$3\r\nSET\r\n$4\r\ntail\r\n$1\r\nx\r\n";
        let front = if preamble { std::fs::read(origin.data_folder().join("dump.rdb")).unwrap() } else { Vec::new() };
        std::fs::write(&old, [&front, tail.as_bytes()].concat()).unwrap();
        server.launch();
        assert_eq!(server.call(&["GET", "tail"]), "x");
        let source = engine(&server, "modes: [rdb, aof]");
        let saved = back_up(&source).await.unwrap();
        assert!(saved.record().artifact(&artifact("aof/appendonly.aof")).is_some(), "{:?}", saved.record().artifacts);
        let report = source.verifier.verify(&context(), &saved.reader().await).await.unwrap();
        assert_eq!(report.findings, []);
        let line = report.checked.iter().find(|line| line.starts_with("aof/appendonly.aof:")).unwrap();
        assert_eq!(line.contains("an RDB of "), preamble, "{line}");
        let target = PrivateRedis::with_options(&[("appendonly", "yes")]);
        restore(&engine(&target, &service(&target, None)), &saved, &select(&["aof"])).await.unwrap();
        assert_eq!(target.digest(), server.digest(), "preamble {preamble}");
    }
}

/// A set of a newer server, kept as one file by an older one: as if saved there.
#[tokio::test]
async fn a_single_file_becomes_the_base_of_a_set() {
    let (server, saved) = saved_set().await;
    let single = saved.as_single_file("aof/appendonly.aof").await;
    let target = PrivateRedis::with_options(&[("appendonly", "yes")]);
    restore(&engine(&target, &service(&target, None)), &single, &select(&["aof"])).await.unwrap();
    assert_eq!(target.digest(), server.digest());
    assert!(target.data_folder().join("appendonlydir/appendonly.aof.1.base.aof").exists());
}

#[tokio::test]
async fn damage_in_an_append_only_file_is_found() {
    let (_server, saved) = saved_set().await;
    let verifier = engine(&PrivateRedis::start(), "").verifier;
    let incr = "aof/appendonly.aof.1.incr.aof";
    let torn = saved.with_bytes(incr, |text| text[..text.len() - 3].to_vec()).await;
    let report = verifier.verify(&context(), &torn.reader().await).await.unwrap();
    assert!(report.findings.is_empty() && report.checked.iter().any(|line| line.contains("is cut")), "{report:?}");
    let broken = saved.with_bytes(incr, |text| [&b"*x"[..], &text[2..]].concat()).await;
    let report = verifier.verify(&context(), &broken.reader().await).await.unwrap();
    assert!(report.findings.iter().any(|finding| finding.artifact.as_str() == incr), "{report:?}");
}

#[tokio::test]
async fn a_folder_has_instructions_for_what_is_in_it() {
    let (server, saved) = saved_set().await;
    let place = tempfile::tempdir().unwrap();
    restore(&engine(&server, ""), &saved, &folder(&place.path().join("all"))).await.unwrap();
    let text = std::fs::read_to_string(place.path().join("all/HOW-TO-RESTORE.txt")).unwrap();
    for words in ["dump.rdb", "appendonlydir", "aof/", "acl.txt", "config.txt"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("ADDSLOTSRANGE") && !text.contains("Sentinel"), "{text}");
}

#[tokio::test]
async fn sentinels_are_told_of() {
    let server = PrivateRedis::listening(backup_testkit::redis::Listen::Plain, &[]);
    fill(&server);
    let sentinel = PrivateRedis::sentinel_of(&server);
    while server.call(&["PUBSUB", "NUMSUB", "__sentinel__:hello"]).ends_with('0') {
        tokio::task::yield_now().await;
    }
    let saved = back_up(&engine(&server, "")).await.unwrap();
    assert_eq!(saved.detail("sentinels"), 1);
    assert!(saved.warnings().contains("1 Sentinels watch"), "{}", saved.warnings());
    let error = back_up(&crate::support::engine_by_port(&sentinel, "redis", "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
}
