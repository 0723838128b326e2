//! Backups: every way in which a server hands out an RDB, and what belongs to a server besides.

use std::sync::Arc;

use backup_core::error::ErrorKind;
use backup_core::evidence::EvidenceRecord;
use backup_core::position::Position;
use backup_testkit::PrivateRedis;

use crate::support::{artifact, back_up, build, context, engine, fill, password, product, sample};

/// The counts of the sample and the filling.
const COUNTS: [(&str, &str, u64); 9] = [
    ("keys of db0", "string", 3000 + 5),
    ("keys of db0", "list", 1),
    ("keys of db0", "set", 2),
    ("keys of db0", "zset", 1),
    ("keys of db0", "hash", 1),
    ("keys of db0", "stream", 1),
    ("keys of db9", "string", 1),
    ("keys of db15", "string", 1),
    ("functions", "libraries", 1),
];

#[tokio::test]
async fn a_snapshot_counts_everything_and_a_drill_agrees() {
    let server = sample(&[]);
    server.call(&["ACL", "SETUSER", "ann", "on", ">hunter2", "(~a* +get)", "~b:*", "+@read"]);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    for (group, item, count) in COUNTS {
        assert_eq!(saved.record().fingerprint.0[group][item], count, "{group} {item}");
    }
    assert!(matches!(saved.record().position, Some(Position::Replication { .. })));
    assert_eq!(saved.record().server.as_ref().unwrap().product, product().0);
    assert_eq!(saved.detail("way"), "replication");
    assert_eq!(saved.warnings(), "");
    let from = saved.reader().await;
    let report = engine.verifier.verify(&context(), &from).await.unwrap();
    assert_eq!(report.findings, []);
    let drill = engine.driller.drill(&context(), &from).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    assert!(drill.checked.iter().any(|line| line.contains("access rules of 2 users")), "{drill:?}");
    assert_eq!(drill.items, saved.record().fingerprint.0.values().flat_map(|group| group.values()).sum::<u64>());
    assert!(!server.data_folder().join("dump.rdb").exists(), "the server's own dump file is not written");
}

/// Diskless or not, rdb-only or PSYNC or SYNC: what the server does not know, or renames, is done without.
#[tokio::test]
async fn every_handshake_ends_in_a_whole_snapshot() {
    let gone = |name: &str| ("rename-command".to_owned(), format!("{name} \"\""));
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let cases = [
        (vec![], "replication", true),
        (vec![set("repl-diskless-sync", "no")], "replication", false),
        (vec![gone("PSYNC")], "replication", true),
        (vec![gone("PSYNC"), set("repl-diskless-sync", "no")], "replication", false),
        (vec![gone("SYNC")], "replication", true),
        (vec![gone("SYNC"), gone("PSYNC")], "bgsave", false),
        (vec![gone("REPLCONF")], "bgsave", false),
        (vec![gone("INFO")], "replication", true),
        (vec![gone("CONFIG")], "replication", true),
        (vec![set("rename-command", "PSYNC elsewhere")], "replication", true),
        (vec![set("rdbchecksum", "no")], "replication", true),
        (vec![set("repl-diskless-sync-delay", "1")], "replication", true),
    ];
    for (options, way, marked) in cases {
        let borrowed: Vec<(&str, &str)> = options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let server = sample(&borrowed);
        let saved = back_up(&engine(&server, "")).await.unwrap();
        assert_eq!(saved.detail("way"), way, "{options:?}");
        let ends_with_mark = matches!(saved.dump().evidence, EvidenceRecord::EndMarker { .. });
        assert_eq!(ends_with_mark, marked, "{options:?}");
        assert_eq!(
            std::fs::read_dir(server.data_folder()).unwrap().count(),
            0,
            "{options:?}: what the server wrote is gone"
        );
        assert_eq!(saved.record().fingerprint.total("keys of db0"), 3011, "{options:?}");
        assert_eq!(
            saved.warnings().is_empty(),
            options.is_empty() || way == "replication" && marked && !loses(&options),
            "{options:?}"
        );
    }
}

/// Whether an operator must be told: a file is written, a companion is missing, a check is off.
fn loses(options: &[(String, String)]) -> bool {
    options
        .iter()
        .any(|(name, value)| name == "rdbchecksum" || value.starts_with("INFO") || value.starts_with("CONFIG"))
}

#[tokio::test]
async fn a_renamed_command_is_used_under_its_new_name() {
    let server = sample(&[("rename-command", "PSYNC elsewhere"), ("rename-command", "SYNC \"\"")]);
    let saved = back_up(&engine(&server, "commands: { psync: elsewhere }")).await.unwrap();
    assert_eq!(saved.detail("way"), "replication");
}

#[tokio::test]
async fn a_user_with_few_rights_is_enough() {
    let server = sample(&[("aclfile", "/dev/null")]);
    server.call(&["ACL", "SETUSER", "few", "on", ">hunter2", "+psync", "+sync", "+replconf", "+ping", "+info"]);
    let (few, _kept) = password("hunter2");
    let saved = back_up(&engine(&server, &format!("user: few, {few}"))).await.unwrap();
    assert_eq!(saved.detail("way"), "replication");
    assert!(saved.warnings().contains("ACL LIST"), "{}", saved.warnings());
    assert_eq!(saved.record().artifacts.len(), 2, "the dump and INFO");
}

#[tokio::test]
async fn a_user_that_may_not_replicate_saves_by_bgsave() {
    let server = sample(&[]);
    server.call(&[
        "ACL",
        "SETUSER",
        "saver",
        "on",
        ">hunter2",
        "+bgsave",
        "+ping",
        "+info",
        "+config|get",
        "+acl|list",
    ]);
    let (few, _kept) = password("hunter2");
    let engine = engine(&server, &format!("user: saver, {few}"));
    let saved = back_up(&engine).await.unwrap();
    assert_eq!(saved.detail("way"), "bgsave");
    assert!(saved.warnings().contains("BGSAVE was used"), "{}", saved.warnings());
    let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
}

#[tokio::test]
async fn a_user_that_may_nothing_is_told_what_it_needs() {
    let server = sample(&[]);
    server.call(&["ACL", "SETUSER", "none", "on", ">hunter2", "+ping"]);
    let (none, _kept) = password("hunter2");
    let engine = engine(&server, &format!("user: none, {none}"));
    let error = back_up(&engine).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.remedy().is_some_and(|hint| hint.contains("+psync")), "{error:?}");
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    let server = PrivateRedis::with_options(&[("requirepass", "hunter2")]);
    for (more, kept) in [(String::new(), None), {
        let (text, kept) = password("sesame-wrong");
        (text, Some(kept))
    }] {
        let error = back_up(&engine(&server, &more)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        assert!(!format!("{error:?}").contains("sesame-wrong"));
        drop(kept);
    }
    // A server whose AUTH is renamed quotes what it was sent in its complaint.
    let server = PrivateRedis::with_options(&[("rename-command", "AUTH elsewhere")]);
    let (text, _kept) = password("sesame-wrong");
    let error = back_up(&engine(&server, &text)).await.unwrap_err();
    assert!(!format!("{error:?}").contains("sesame-wrong"), "{error:?}");
}

#[tokio::test]
async fn passwords_are_not_in_what_is_saved_of_the_configuration() {
    let server = sample(&[("requirepass", "hunter2"), ("masterauth", "hunter3")]);
    let (text, _kept) = password("hunter2");
    let saved = back_up(&engine(&server, &text)).await.unwrap();
    let configuration = saved.text("config.txt").await;
    assert!(configuration.contains("maxmemory-policy noeviction\n"), "{configuration}");
    for artifact in ["config.txt", "acl.txt", "info.txt"] {
        let text = saved.text(artifact).await;
        assert!(!text.contains("hunter2") && !text.contains("hunter3"), "{artifact}: {text}");
    }
    let command_line = std::fs::read(format!("/proc/{}/cmdline", std::process::id())).unwrap();
    assert!(!String::from_utf8_lossy(&command_line).contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_load_is_whole() {
    let server = sample(&[]);
    let load = server.benchmark_in_background(&["-t", "set,lpush,hset,zadd", "-r", "10000", "-n", "100000000", "-q"]);
    let engine = engine(&server, "");
    for _ in 0..3 {
        let saved = back_up(&engine).await.unwrap();
        let drill = engine.driller.drill(&context(), &saved.reader().await).await.unwrap();
        assert_eq!(drill.findings, Vec::<String>::new());
    }
    drop(load);
}

#[tokio::test]
async fn an_empty_server_and_an_evicting_one_are_remarked() {
    let server = PrivateRedis::with_options(&[("maxmemory", "1gb"), ("maxmemory-policy", "allkeys-lru")]);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    assert!(
        saved.warnings().contains("holds no keys") && saved.warnings().contains("allkeys-lru"),
        "{}",
        saved.warnings()
    );
    let preflight = engine.source.preflight(&context()).await.unwrap();
    assert!(preflight.description.starts_with(product().0) && preflight.expected_bytes.is_some(), "{preflight:?}");
    assert!(preflight.warnings.iter().any(|warning| warning.contains("allkeys-lru")));
}

#[tokio::test]
async fn a_preflight_tells_what_the_backup_will_do() {
    let server = sample(&[("rename-command", "SYNC \"\""), ("rename-command", "PSYNC \"\"")]);
    let preflight = engine(&server, "").source.preflight(&context()).await.unwrap();
    assert!(preflight.warnings.iter().any(|warning| warning.contains("BGSAVE")), "{preflight:?}");
    let server = sample(&[("repl-diskless-sync", "no")]);
    let preflight = engine(&server, "").source.preflight(&context()).await.unwrap();
    assert!(preflight.warnings.iter().any(|warning| warning.contains("repl-diskless-sync")), "{preflight:?}");
    let nobody = build("socket: /tmp/no/such/socket").unwrap();
    let error = nobody.source.preflight(&context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn a_replica_is_saved_and_said_to_be_one() {
    let master = sample(&[]);
    let replica = PrivateRedis::start();
    // Private servers have no port to follow; this one stays without its master.
    replica.fill(10, 3);
    replica.call(&["REPLICAOF", "127.0.0.1", "1"]);
    replica.call(&["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    let error = back_up(&engine(&replica, "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    drop(master);
}

#[tokio::test]
async fn append_only_files_are_saved_and_load() {
    let server = PrivateRedis::with_options(&[("appendonly", "yes")]);
    fill(&server);
    let digest = server.digest();
    let saved = back_up(&engine(&server, "modes: [rdb, aof]")).await.unwrap();
    let again = PrivateRedis::with_options(&[("appendonly", "yes")]);
    again.kill();
    let folder = again.data_folder().join("appendonlydir");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let mut names = Vec::new();
    for record in &saved.record().artifacts {
        if let Some(name) = record.name.as_str().strip_prefix("aof/") {
            let bytes = saved.reader().await.read(&artifact(record.name.as_str()), 1 << 24).await.unwrap();
            std::fs::write(folder.join(name), bytes).unwrap();
            names.push(name.to_owned());
        }
    }
    assert!(names.contains(&"appendonly.aof.manifest".to_owned()) && names.len() == 3, "{names:?}");
    again.launch();
    assert_eq!(again.digest(), digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_only_files_are_a_set_however_often_they_are_rewritten() {
    let server = Arc::new(sample(&[("appendonly", "yes")]));
    let load = server.benchmark_in_background(&["-t", "set,lpush", "-r", "1000", "-n", "100000000", "-q"]);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let rewriter = std::thread::spawn({
        let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _busy = server.try_call(&["BGREWRITEAOF"]);
            }
        }
    });
    let engine = engine(&server, "modes: [rdb, aof]");
    for _ in 0..5 {
        let saved = back_up(&engine).await.unwrap();
        assert_eq!(engine.verifier.verify(&context(), &saved.reader().await).await.unwrap().findings, []);
        let manifest = saved.text("aof/appendonly.aof.manifest").await;
        for line in manifest.lines().filter(|line| !line.ends_with("type h")) {
            let name = line.split(' ').nth(1).unwrap();
            assert!(saved.record().artifact(&artifact(&format!("aof/{name}"))).is_some(), "{manifest}");
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    rewriter.join().unwrap();
    drop(load);
}

#[tokio::test]
async fn without_append_only_files_the_mode_is_refused() {
    let server = sample(&[]);
    let error = back_up(&engine(&server, "modes: [rdb, aof]")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.remedy().is_some());
}

#[tokio::test]
async fn a_node_of_a_cluster_is_saved_with_the_clusters_map() {
    // A node of a cluster cannot be without a port: one of its own, on the loopback interface.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let server =
        PrivateRedis::with_options(&[("cluster-enabled", "yes"), ("bind", "127.0.0.1"), ("cluster-port", &port)]);
    server.call(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    while !server.call(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
        tokio::task::yield_now().await;
    }
    server.call(&["SET", "key", "value"]);
    let saved = back_up(&engine(&server, "cluster: node")).await.unwrap();
    assert!(saved.text("cluster-nodes.txt").await.contains("0-16383"));
    assert!(saved.warnings().contains("each master needs a source"), "{}", saved.warnings());
    assert_eq!(saved.detail("cluster"), true);
    assert!(saved.record().artifact(&artifact("dump.rdb")).is_some());
}
