//! Snapshots key by key, for servers that let nobody replicate or save.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::engine::RestoreTarget;
use backup_core::error::ErrorKind;
use backup_core::run::run;
use backup_core::sink::{Sink, SnapshotFilter};
use backup_testkit::{Action, Disturbance, DisturbedSink, MemorySink, PrivateRedis};

use crate::support::{Saved, back_up, build, context, engine, fill, options, password, restore, sample, task};

const EXPORT: &str = "modes: [export]";

/// Restores `saved` into an empty server by commands, and into another by its file.
async fn assert_holds_what(server: &PrivateRedis, saved: &Saved) {
    let target = PrivateRedis::start();
    restore(&engine(&target, ""), saved, &RestoreTarget::default()).await.unwrap();
    let loaded = PrivateRedis::start();
    loaded.kill();
    let rdb = saved.reader().await.read(&crate::support::artifact("dump.rdb"), 1 << 30).await.unwrap();
    std::fs::write(loaded.data_folder().join("dump.rdb"), rdb).unwrap();
    loaded.launch();
    for other in [&target, &loaded] {
        assert_eq!(other.digest(), server.digest());
        assert_eq!(other.call(&["FUNCTION", "LIST", "WITHCODE"]), server.call(&["FUNCTION", "LIST", "WITHCODE"]));
        assert_eq!(other.call(&["PEXPIRETIME", "later"]), server.call(&["PEXPIRETIME", "later"]));
        assert_eq!(other.call(&["XPENDING", "stream", "group"]), server.call(&["XPENDING", "stream", "group"]));
    }
}

#[tokio::test]
async fn an_export_holds_everything_and_says_that_it_is_fuzzy() {
    let server = sample(&[]);
    let engine = engine(&server, EXPORT);
    let preflight = engine.source.preflight(&context()).await.unwrap();
    assert!(preflight.warnings.iter().any(|warning| warning.contains("fuzzy")), "{preflight:?}");
    let saved = back_up(&engine).await.unwrap();
    assert_eq!((saved.detail("way"), saved.detail("fuzzy")), (&"export".into(), &true.into()));
    assert_eq!(saved.record().mode.as_deref(), Some("export"));
    assert!(saved.warnings().contains("fuzzy"), "{}", saved.warnings());
    assert_eq!(saved.record().position, None);
    assert_eq!(saved.record().fingerprint.total("keys of db0"), 3011);
    assert_eq!(engine.verifier.verify(&context(), &saved.reader().await).await.unwrap().findings, []);
    let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    assert_holds_what(&server, &saved).await;
    assert!(!server.data_folder().join("dump.rdb").exists());
    assert!(server.call(&["INFO", "commandstats"]).contains("cmdstat_dump"), "the way that was meant");
    assert!(!server.call(&["INFO", "commandstats"]).contains("sync"));
}

/// What servers before 7.0 do not know is done without.
#[tokio::test]
async fn an_export_needs_no_new_command() {
    let options = [("rename-command", "PEXPIRETIME \"\""), ("rename-command", "FUNCTION \"\"")];
    let server = PrivateRedis::with_options(&options);
    fill(&server);
    let saved = back_up(&engine(&server, EXPORT)).await.unwrap();
    let target = PrivateRedis::start();
    restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    assert_eq!(target.digest(), server.digest());
    let ttl = |server: &PrivateRedis| server.call(&["PTTL", "later"]).parse::<i64>().unwrap();
    assert!((ttl(&server) - ttl(&target)).abs() < 60_000);
}

#[tokio::test]
async fn a_user_that_may_neither_replicate_nor_save_exports() {
    let server = sample(&[]);
    let rights = "+scan +dump +multi +exec +watch +pexpiretime +pttl +time +select +ping +info +memory|usage +function|dump \
        +acl|whoami +acl|dryrun +command|info";
    let mut words = vec!["ACL", "SETUSER", "reader", "on", ">hunter2", "~*"];
    words.extend(rights.split(' '));
    server.call(&words);
    let (few, _kept) = password("hunter2");
    let engine = engine(&server, &format!("user: reader, {few}"));
    let preflight = engine.source.preflight(&context()).await.unwrap();
    assert!(preflight.warnings.iter().any(|warning| warning.contains("fuzzy")), "{preflight:?}");
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.detail("way"), "export");
    assert!(saved.warnings().contains("NOPERM") && saved.warnings().contains("fuzzy"), "{}", saved.warnings());
    assert_holds_what(&server, &saved).await;
    // Without INFO, every database is tried.
    server.call(&["ACL", "SETUSER", "reader", "-info"]);
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.record().fingerprint.total("keys of db15"), 1);
    assert_holds_what(&server, &saved).await;
}

#[tokio::test]
async fn a_key_that_may_not_be_read_is_named_and_nothing_is_left_out() {
    let server = sample(&[]);
    server.call(&["ACL", "SETUSER", "half", "on", ">hunter2", "~key:*", "+@all", "-sync", "-psync", "-bgsave"]);
    let (few, _kept) = password("hunter2");
    let error = back_up(&engine(&server, &format!("user: half, {few}"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert!(error.context().iter().any(|(name, _)| *name == "key"), "{error:?}");
    assert!(error.remedy().is_some_and(|hint| hint.contains("~*")), "{error:?}");
}

/// One collection of each type that is too large to be asked for at once, and a few small keys.
const LARGE: &str = "local pad = string.rep('x', 500) \
    for n = 1, 40000 do \
        redis.call('RPUSH', 'list', n .. pad) \
        redis.call('SADD', 'set', n .. pad) \
        redis.call('HSET', 'hash', n .. pad, n) \
        redis.call('ZADD', 'zset', n / 7 - 100, n .. pad) \
    end \
    redis.call('ZADD', 'zset', 'inf', 'top', '-inf', 'bottom') redis.call('PEXPIREAT', 'list', 4102444800000)";

fn calls(server: &PrivateRedis, command: &str) -> u64 {
    let statistics = server.call(&["INFO", "commandstats"]);
    let line = statistics.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn large_collections_are_read_in_pieces_and_are_whole() {
    let server = PrivateRedis::start();
    server.call(&["EVAL", LARGE, "0"]);
    server.fill(100, 10);
    let saved = back_up(&engine(&server, EXPORT)).await.unwrap();
    assert_eq!(calls(&server, "dump"), 100, "only the small ones at once");
    for command in ["lrange", "sscan", "hscan", "zscan"] {
        assert!(calls(&server, command) > 10, "{command}");
    }
    assert_eq!(saved.record().fingerprint.total("keys of db0"), 104);
    let target = PrivateRedis::start();
    restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    assert_eq!(target.digest(), server.digest());
    assert_eq!(target.call(&["PEXPIRETIME", "list"]), "4102444800000");
}

/// What changes all the time is asked for at once: it is whole, and of one moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_collections_that_change_are_read_at_once() {
    let server = Arc::new(PrivateRedis::start());
    server.call(&["EVAL", LARGE, "0"]);
    let stop = Arc::new(AtomicBool::new(false));
    // A list that turns has each element once, and two fields that grow together are equal, at every moment.
    let changes = "RPOPLPUSH list list\nMULTI\nHINCRBY hash left 1\nHINCRBY hash right 1\nEXEC\n".repeat(500);
    server.pipe(&changes);
    let turning = std::thread::spawn({
        let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                server.pipe(&changes);
            }
        }
    });
    let saved = back_up(&engine(&server, EXPORT)).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    turning.join().unwrap();
    assert!(calls(&server, "lrange") > 10, "it was tried");
    let target = PrivateRedis::start();
    restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
    let distinct = "local seen, count = {}, 0 for _, e in ipairs(redis.call('LRANGE', 'list', 0, -1)) do \
        if not seen[e] then seen[e] = true count = count + 1 end end return {count, redis.call('LLEN', 'list')}";
    assert_eq!(target.call(&["EVAL", distinct, "0"]), "40000\n40000");
    assert_eq!(target.call(&["HGET", "hash", "left"]), target.call(&["HGET", "hash", "right"]));
}

/// SCAN may name a key twice: here the second step of each listing begins at the first one again.
#[tokio::test]
async fn keys_that_a_listing_names_twice_are_saved_once() {
    let server = sample(&[]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("between");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let behind = server.socket();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(between(client, behind.clone()));
        }
    });
    let engine = build(&format!("{{ socket: {}, {EXPORT} }}", socket.display())).unwrap();
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.record().fingerprint.total("keys of db0"), 3011);
    let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    let asked = calls(&server, "scan");
    assert!(asked > 3011 / 1000 + 2, "{asked} steps: none was repeated");
}

/// Hands everything on, but for the first cursor that is not 0.
async fn between(client: tokio::net::UnixStream, server: std::path::PathBuf) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const SCAN: &[u8] = b"$4\r\nSCAN\r\n";
    let server = tokio::net::UnixStream::connect(server).await?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let (mut piece, mut changed) = (vec![0; 65_536], false);
    loop {
        let count = from_client.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        let mut message = piece[..count].to_vec();
        if let Some(at) = message.windows(SCAN.len()).position(|window| window == SCAN).map(|at| at + SCAN.len()) {
            // Behind it: `$`, the cursor's length, the cursor.
            let ends: Vec<usize> = (at..count).filter(|place| message[*place] == b'\n').take(2).collect();
            if !changed && message[ends[0] + 1..ends[1] - 1] != *b"0" {
                message.splice(at..=ends[1], *b"$1\r\n0\r\n");
                changed = true;
            }
        }
        to_server.write_all(&message).await?;
    }
}

/// Keys vanish, and the server's table shrinks, while it is listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_a_shrinking_server_loads() {
    let server = Arc::new(sample(&[]));
    server.fill(120_000, 10);
    let remover = std::thread::spawn({
        let server = Arc::clone(&server);
        move || {
            let names =
                |chunk: u32| (0..5000).map(move |n| ["UNLINK key:", &(chunk * 5000 + n).to_string(), "\n"].concat());
            for chunk in 0..23 {
                server.pipe(&names(chunk).collect::<String>());
            }
        }
    });
    let engine = engine(&server, EXPORT);
    let saved = back_up(&engine).await.unwrap();
    remover.join().unwrap();
    let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    assert_eq!(saved.record().fingerprint.0["keys of db0"]["hash"], 1, "what was there all the time is in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_it_is_exported_fails_the_backup() {
    let server = Arc::new(PrivateRedis::start());
    server.fill(400, 100_000);
    let killed = Arc::clone(&server);
    let memory = MemorySink::default();
    let happens = Action::new(move |number| {
        if number == 3 {
            killed.kill();
        }
    });
    let sink = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::Act(happens));
    let error = run(vec![task(&engine(&server, EXPORT))], &sink, &options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete, "{error:?}");
    assert_eq!(memory.snapshots(&SnapshotFilter::default()).await.unwrap(), []);
}

/// Fields that expire come with their expiry, however large their hash is. Servers that know none have nothing to lose.
#[tokio::test]
async fn fields_that_expire_keep_their_expiry() {
    let server = PrivateRedis::start();
    server.call(&["EVAL", LARGE, "0"]);
    server.pipe("HSET small f 1 g 2\n");
    let far = "4102444800000";
    if server
        .try_call(&["HPEXPIREAT", "small", far, "FIELDS", "1", "f"])
        .is_err_and(|error| error.contains("unknown command"))
    {
        return;
    }
    server.call(&["HSET", "hash", "field", "x"]);
    server.call(&["HPEXPIREAT", "hash", far, "FIELDS", "1", "field"]);
    for modes in [EXPORT, "modes: [rdb]"] {
        let saved = back_up(&engine(&server, modes)).await.unwrap();
        let target = PrivateRedis::start();
        restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap();
        for key in ["small", "hash"] {
            let fields = |server: &PrivateRedis| server.call(&["HPEXPIRETIME", key, "FIELDS", "3", "f", "g", "field"]);
            assert_eq!(fields(&target), fields(&server));
        }
        assert_eq!(target.digest(), server.digest(), "{modes}");
    }
}
