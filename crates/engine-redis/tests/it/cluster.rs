//! A real cluster of three masters: saved as a whole, restored into a cluster, one server, a folder.

use backup_core::engine::RestoreTarget;
use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;
use backup_testkit::redis::PrivateCluster;

use crate::support::{artifact, back_up, build, context, engine, folder, replacing, restore, select};

const LIBRARY: &str = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";

/// A cluster with a few thousand keys of several types, and a library on every master.
fn filled() -> PrivateCluster {
    let cluster = PrivateCluster::start(3);
    for number in 0..3000 {
        cluster.queue(&format!("key:{number}"), &format!("SET key:{number} {number}\n"));
    }
    for number in 0..100 {
        cluster.queue(
            &format!("h:{number}"),
            &format!("HSET h:{number} f {number}\nPEXPIREAT h:{number} 4102444800000\n"),
        );
        cluster.queue("tag", &format!("ZADD z:{{tag}}:{number} 1 a 2 b\n"));
    }
    cluster.send();
    for node in cluster.nodes() {
        node.call(&["FUNCTION", "LOAD", LIBRARY]);
    }
    cluster
}

fn engine_of(cluster: &PrivateCluster, node: usize, more: &str) -> backup_core::engine::Engine {
    build(&format!("{{ url: 'redis://127.0.0.1:{}', {more} }}", cluster.nodes()[node].port())).unwrap()
}

fn digests(cluster: &PrivateCluster) -> Vec<String> {
    cluster.nodes().iter().map(PrivateRedis::digest).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_names_the_whole_cluster() {
    let cluster = filled();
    for node in [0, 2] {
        let engine = engine_of(&cluster, node, "");
        engine.source.preflight(&context()).await.unwrap();
        let saved = back_up(&engine).await.unwrap();
        for number in 1..=3 {
            assert!(saved.record().artifact(&artifact(&format!("shards/{number}/dump.rdb"))).is_some());
        }
        assert_eq!(saved.record().fingerprint.total("keys of db0"), 3200);
        let slots: Vec<&str> =
            saved.detail("shards").as_array().unwrap().iter().map(|shard| shard["slots"].as_str().unwrap()).collect();
        assert_eq!(slots, ["0-5460", "5461-10922", "10923-16383"]);
        assert!(saved.warnings().contains("a moment of its own"), "{}", saved.warnings());
        let from = saved.reader().await;
        assert_eq!(engine.verifier.verify(&context(), &from).await.unwrap().findings, []);
        let drill = engine.driller.drill(&context(), &from).await.unwrap();
        assert_eq!(drill.findings, Vec::<String>::new());
        assert_eq!(drill.items, 3203);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_restored_into_another_with_other_slots() {
    let cluster = filled();
    let saved = back_up(&engine_of(&cluster, 0, "")).await.unwrap();
    // The same number of masters, and fewer.
    for masters in [3, 2] {
        let target = PrivateCluster::start(masters);
        let into = engine_of(&target, 1, "");
        let report = restore(&into, &saved, &RestoreTarget::default()).await.unwrap();
        assert_eq!(report.items, 3200);
        if masters == 3 {
            assert_eq!(digests(&target), digests(&cluster));
        }
        let total: u64 = target.nodes().iter().map(|node| node.call(&["DBSIZE"]).parse::<u64>().unwrap()).sum();
        assert_eq!(total, 3200);
        for node in target.nodes() {
            assert!(node.call(&["FUNCTION", "LIST"]).contains("lib"));
        }
        // What is there is replaced only when told.
        let error = restore(&into, &saved, &RestoreTarget::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        target.nodes()[0].pipe("FLUSHALL\n");
        restore(&into, &saved, &replacing()).await.unwrap();
        let again: u64 = target.nodes().iter().map(|node| node.call(&["DBSIZE"]).parse::<u64>().unwrap()).sum();
        assert_eq!(again, 3200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_restored_into_one_server_and_into_a_folder() {
    let cluster = filled();
    let saved = back_up(&engine_of(&cluster, 1, "")).await.unwrap();
    let target = PrivateRedis::start();
    restore(&engine(&target, ""), &saved, &select(&["z:*"])).await.unwrap();
    assert_eq!(target.call(&["DBSIZE"]), "100");
    restore(&engine(&target, ""), &saved, &replacing()).await.unwrap();
    assert_eq!(target.call(&["DBSIZE"]), "3200");
    assert_eq!(target.call(&["GET", "key:77"]), "77");
    let place = tempfile::tempdir().unwrap();
    restore(&engine(&target, ""), &saved, &folder(place.path())).await.unwrap();
    let text = std::fs::read_to_string(place.path().join("HOW-TO-RESTORE.txt")).unwrap();
    for words in ["CLUSTER ADDSLOTSRANGE 0 5460", "CLUSTER ADDSLOTSRANGE 10923 16383", "CLUSTER MEET"] {
        assert!(text.contains(words), "{text}");
    }
    // The files are what a master of the same slots loads.
    for (number, node) in cluster.nodes().iter().enumerate() {
        let again = PrivateRedis::start();
        again.kill();
        let rdb = place.path().join(format!("shards/{}/dump.rdb", number + 1));
        std::fs::copy(rdb, again.data_folder().join("dump.rdb")).unwrap();
        again.launch();
        assert_eq!(again.digest(), node.digest());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_a_cluster_that_fails_sets_every_master_back() {
    let cluster = filled();
    for number in 0..3000 {
        cluster.queue(&format!("large:{number}"), &format!("SET large:{number} {}\n", "x".repeat(2000)));
    }
    cluster.send();
    let saved = back_up(&engine_of(&cluster, 0, "")).await.unwrap();
    let target = PrivateCluster::start(3);
    for number in 0..50 {
        target.queue(&format!("old:{number}"), &format!("SET old:{number} x\n"));
    }
    target.send();
    let before = digests(&target);
    // The last master has no room.
    let used: u64 = target.nodes()[2]
        .call(&["INFO", "memory"])
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    target.nodes()[2].call(&["CONFIG", "SET", "maxmemory", &(used + 1_000_000).to_string()]);
    let error = restore(&engine_of(&target, 0, ""), &saved, &replacing()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(digests(&target), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_are_not_saved_meanwhile() {
    let cluster = PrivateCluster::start(2);
    let ids: Vec<String> = cluster.nodes().iter().map(|node| node.call(&["CLUSTER", "MYID"])).collect();
    cluster.nodes()[0].call(&["CLUSTER", "SETSLOT", "100", "MIGRATING", &ids[1]]);
    let error = back_up(&engine_of(&cluster, 1, "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    cluster.nodes()[0].call(&["CLUSTER", "SETSLOT", "100", "STABLE"]);
    back_up(&engine_of(&cluster, 1, "")).await.unwrap();
}

#[tokio::test]
async fn append_only_files_of_a_whole_cluster_are_refused() {
    let cluster = PrivateCluster::start(1);
    let engine = engine_of(&cluster, 0, "modes: [rdb, aof]");
    for error in [back_up(&engine).await.unwrap_err(), engine.source.preflight(&context()).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.remedy().is_some_and(|hint| hint.contains("cluster: node")), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_slots_of_nobody_takes_no_restore() {
    let (cluster, target) = (filled(), PrivateCluster::start(2));
    let saved = back_up(&engine_of(&cluster, 0, "")).await.unwrap();
    for node in target.nodes() {
        node.call(&["CLUSTER", "DELSLOTS", "7"]);
    }
    let error = restore(&engine_of(&target, 0, ""), &saved, &RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
}
