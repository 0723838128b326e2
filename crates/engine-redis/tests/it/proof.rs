//! What must hold of data of every kind, under load, however often we or the server are disturbed.

use std::sync::Arc;

use backup_core::engine::RestoreTarget;
use backup_core::error::ErrorKind;
use backup_core::run::{RunOptions, run};
use backup_core::sink::{Sink, SnapshotFilter};
use backup_testkit::{Disturbance, DisturbedSink, MemorySink, PrivateRedis};
use tokio_util::sync::CancellationToken;

use crate::server::{Connection, DATABASES, Reply};
use crate::support::{back_up, context, engine, options, replacing, restore, select, service, task};
use crate::{fill, support};

/// How many keys had expired when they were saved.
const EXPIRED: u64 = 200;

/// Every type with everything that is hard about it, in 16 databases.
fn filled(options: &[(&str, &str)]) -> PrivateRedis {
    let server = PrivateRedis::with_options(options);
    fill::fill(&mut Connection::over(&server.socket()), fill::Amount::Little);
    server
}

/// Adds keys whose time has passed, and which are still in memory: looking at one would delete it.
fn add_expired(server: &PrivateRedis) {
    server.call(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let mut connection = Connection::over(&server.socket());
    connection.words("SELECT 7");
    for number in 0..EXPIRED {
        connection.words(&format!("SET past:{number} x PX 1"));
    }
    // The server does nothing else for longer than they last.
    connection.words("DEBUG SLEEP 0.01");
}

/// Of each key that [`fill`](fill::fill) makes: a digest of its value, when it expires, and what is known of a stream.
fn portrait(of: &PrivateRedis) -> Vec<(String, Vec<Reply>)> {
    let mut connection = Connection::over(&of.socket());
    let mut portrait = Vec::new();
    for database in 0..DATABASES {
        connection.words(&format!("SELECT {database}"));
        for key in connection.keys(None) {
            // Those of the benchmark change, those that expired vanish.
            if [&b"key:"[..], b"mylist", b"myset", b"myhash", b"myzset", b"past:"]
                .iter()
                .any(|other| key.starts_with(other))
            {
                continue;
            }
            let mut about = vec![
                connection.ok(&[&b"DEBUG"[..], b"DIGEST-VALUE", &key]),
                connection.ok(&[b"PEXPIRETIME", &key[..]]),
            ];
            if connection.ok(&[b"TYPE", &key[..]]) == Reply::Text(b"stream".to_vec()) {
                about.push(connection.ok(&[&b"XLEN"[..], &key]));
                let Reply::Row(groups) = connection.ok(&[&b"XINFO"[..], b"GROUPS", &key]) else { panic!("a row") };
                for group in groups {
                    let Reply::Row(group) = group else { panic!("a row") };
                    let Reply::Text(name) = &group[1] else { panic!("a name") };
                    about.push(connection.ok(&[&b"XPENDING"[..], &key, name]));
                    about.push(group[7].clone());
                }
            }
            portrait.push((format!("{database} {}", String::from_utf8_lossy(&key)), about));
        }
    }
    portrait
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_every_kind_survives_every_way_under_load() {
    let stopped = ("appendonly", "yes");
    for (modes, to_files) in [("modes: [rdb]", false), ("modes: [export]", false), ("modes: [rdb]", true)] {
        let server = filled(&[]);
        let expected = portrait(&server);
        assert!(expected.len() > 60, "{}", expected.len());
        add_expired(&server);
        let load =
            server.benchmark_in_background(&["-t", "set,lpush,hset,zadd,sadd", "-r", "10000", "-n", "100000000", "-q"]);
        let source = engine(&server, modes);
        let saved = back_up(&source).await.unwrap();
        let drill = source.driller.drill(&context(), &saved.reader().await).await.unwrap();
        assert_eq!(drill.findings, Vec::<String>::new());
        drop(load);
        if modes.contains("rdb") {
            // A server hands out what has expired when it is asked to dump it no more, but writes it into its RDB.
            assert!(saved.record().fingerprint.total("keys of db7") >= EXPIRED + 2);
        }
        assert!(saved.record().fingerprint.0.len() > DATABASES as usize, "16 databases and functions");
        let target = PrivateRedis::with_options(if to_files { std::slice::from_ref(&stopped) } else { &[] });
        let into = engine(&target, &if to_files { service(&target, None) } else { String::new() });
        restore(&into, &saved, &RestoreTarget::default()).await.unwrap();
        let found = portrait(&target);
        assert_eq!(found.len(), expected.len(), "{modes}");
        for (one, other) in found.iter().zip(&expected) {
            assert_eq!(one, other, "{modes}");
        }
        let functions = |server: &PrivateRedis| server.call(&["FUNCTION", "LIST", "WITHCODE"]);
        assert_eq!(functions(&target), functions(&server));
        assert_eq!(target.call(&["-n", "7", "EXISTS", "past:1"]), "0", "what had expired is not back");
    }
}

/// A child that cannot be started, as when memory is short: it fails with the remedy, and nothing else happens.
#[tokio::test]
async fn a_fork_that_fails_is_said_with_its_remedy() {
    let no_replica: &[(&str, &str)] = &[("rename-command", "PSYNC \"\""), ("rename-command", "SYNC \"\"")];
    for options in [&[][..], &[("repl-diskless-sync", "no")], no_replica] {
        let server = PrivateRedis::of_nobody(options);
        support::fill(&server);
        server.allow_children(false);
        let error = back_up(&engine(&server, "")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool, "{options:?}: {error:?}");
        assert!(error.remedy().is_some_and(|hint| hint.contains("overcommit_memory")), "{options:?}: {error:?}");
        assert_eq!(std::fs::read_dir(server.data_folder()).unwrap().count(), 0, "{options:?}");
        server.allow_children(true);
        back_up(&engine(&server, "")).await.unwrap();
    }
}

/// We die at any moment, a hundred times: the server goes on, keeps nothing for us, and the next backup is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_dies_a_hundred_times_does_no_harm() {
    let server = PrivateRedis::with_options(&[("rdbcompression", "no")]);
    server.fill(100, 50_000);
    let digest = server.digest();
    let memory = MemorySink::default();
    let mut interrupted = 0;
    for round in 0..100 {
        let cancel = CancellationToken::new();
        let disturbance = Disturbance::Cancel(round % 25, cancel.clone());
        let sink = DisturbedSink::new(Arc::new(memory.clone()), disturbance);
        let modes = if round % 2 == 0 { "modes: [rdb]" } else { "modes: [export]" };
        let result = run(vec![task(&engine(&server, modes))], &sink, &RunOptions { cancel, ..options() }).await;
        match result {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Interrupted, "{error:?}");
                interrupted += 1;
            }
            Ok(manifest) => assert_eq!(manifest.sources[0].fingerprint.total("keys of db0"), 100),
        }
    }
    assert!(interrupted >= 80, "{interrupted}");
    assert_eq!(memory.snapshots(&SnapshotFilter::default()).await.unwrap().len(), 100 - interrupted);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    assert_eq!(saved.record().fingerprint.total("keys of db0"), 100);
    assert_eq!(server.digest(), digest);
    assert_eq!(std::fs::read_dir(server.data_folder()).unwrap().count(), 0);
    while server.call(&["CLIENT", "LIST"]).lines().count() > 1 {
        tokio::task::yield_now().await;
    }
}

/// A transaction that was not finished when the file was saved did not happen.
#[tokio::test]
async fn a_transaction_torn_at_the_end_is_left_out() {
    let server = PrivateRedis::with_options(&[("appendonly", "yes")]);
    support::fill(&server);
    let digest = server.digest();
    let saved = back_up(&engine(&server, "modes: [rdb, aof]")).await.unwrap();
    let incr = saved
        .record()
        .artifacts
        .iter()
        .find(|it| it.name.as_str().contains(".aof.1.incr") || it.name.as_str() == "aof/appendonly.aof");
    let incr = incr.unwrap().name.to_string();
    let torn = saved
        .with_bytes(&incr, |text| {
            [&text[..], b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n"].concat()
        })
        .await;
    let target = PrivateRedis::with_options(&[("appendonly", "yes")]);
    let into = engine(&target, &service(&target, None));
    let report = into.verifier.verify(&context(), &torn.reader().await).await.unwrap();
    assert!(report.checked.iter().any(|line| line.contains("is cut")), "{report:?}");
    restore(&into, &torn, &select(&["aof"])).await.unwrap();
    assert_eq!(target.digest(), digest);
}

/// Values of modules come back where the module is, and are refused by name where only commands could bring them. A server
/// without any module that defines a type (Redis before 8) has none to lose.
#[tokio::test]
async fn values_of_modules_come_back_as_files_and_are_refused_as_commands() {
    let server = PrivateRedis::start();
    support::fill(&server);
    if let Err(error) = server.try_call(&["VADD", "vectors", "VALUES", "3", "0.1", "1.2", "0.5", "element"]) {
        assert!(error.contains("unknown command"), "{error}");
        return;
    }
    for modes in ["modes: [rdb]", "modes: [export]"] {
        let source = engine(&server, modes);
        let saved = back_up(&source).await.unwrap();
        assert_eq!(saved.record().fingerprint.0["keys of db0"]["module"], 1);
        let drill = source.driller.drill(&context(), &saved.reader().await).await.unwrap();
        assert_eq!(drill.findings, Vec::<String>::new());
        let target = PrivateRedis::start();
        let error = restore(&engine(&target, ""), &saved, &RestoreTarget::default()).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("vectors"), "{error:?}");
        assert_eq!(target.call(&["DBSIZE"]), "0");
        restore(&engine(&target, &service(&target, None)), &saved, &replacing()).await.unwrap();
        assert_eq!(target.call(&["VCARD", "vectors"]), "1");
    }
}
