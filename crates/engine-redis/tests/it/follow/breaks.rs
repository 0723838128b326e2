//! Ends and beginnings: of the follower, of the server, of their connection.

use backup_core::engine::Moment;
use backup_core::error::ErrorKind;
use backup_core::log::{SegmentId, SegmentMeta};
use backup_core::{SegmentName, Timeline};
use backup_testkit::redis::{ClientCertificate, Listen, PrivateCluster};
use backup_testkit::{Certificates, PrivateRedis};

use super::support::{Archive, QUICK, info, offset, position, until};
use crate::support::{engine, engine_by_port, password, sample};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_goes_on_where_the_archive_ends() {
    let server = sample(&[]);
    let archive = Archive::default();
    let engine = engine(&server, QUICK);
    let mut states = Vec::new();
    for round in 0..4 {
        let following = archive.follow(&engine);
        following.tells("following").await;
        server.pipe(&format!("SELECT 4\nSET round {round}\n"));
        following.archived(&server).await;
        states.push((offset(&server), server.digest()));
        if round % 2 == 0 {
            following.stop().await.unwrap();
        } else {
            // As a crash does: no goodbye.
            following.task.abort();
            following.task.await.unwrap_err();
        }
        server.pipe(&format!("SELECT 2\nINCR between\nSET meanwhile {round}\n"));
    }
    archive.assert_no_holes().await;
    assert_eq!(archive.candidates().await.len(), 1, "no new snapshot was needed");
    for (offset, digest) in states {
        assert_eq!(archive.digest_at(position(offset)).await, digest, "offset {offset}");
    }
}

/// A snapshot without a segment after it is where the archive ends, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_alone_is_gone_on_from() {
    let server = sample(&[]);
    let archive = Archive::default();
    let engine = engine(&server, QUICK);
    let following = archive.follow(&engine);
    following.tells("took the snapshot").await;
    following.task.abort();
    following.task.await.unwrap_err();
    server.pipe("SET between 1\n");
    let following = archive.follow(&engine);
    following.tells("following from offset").await;
    following.archived(&server).await;
    following.stop().await.unwrap();
    assert_eq!(archive.candidates().await.len(), 1);
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_saved_itself_and_came_back_is_followed_on() {
    let server = sample(&[("repl-backlog-size", "1mb")]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SELECT 7\nSET before 1\n");
    following.archived(&server).await;
    let (before, digest) = (offset(&server), server.digest());
    let old = info(&server, "master_replid").unwrap();
    server.call(&["SHUTDOWN", "SAVE"]);
    server.kill();
    following.tells("connecting again").await;
    server.launch();
    following.tells("under the replication id").await;
    assert_ne!(info(&server, "master_replid").unwrap(), old);
    server.pipe("SELECT 7\nSET after 1\n");
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    assert_eq!(archive.candidates().await.len(), 1, "no new snapshot was needed");
    assert_eq!(archive.log().timelines().await.unwrap().len(), 2);
    assert_eq!(archive.digest_at(position(before)).await, digest);
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

/// The loss is told, recorded, and both sides of it can be recovered to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_its_memory_begins_anew() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SET before 1\n");
    following.archived(&server).await;
    let (before, digest) = (offset(&server), server.digest());
    let old = info(&server, "master_replid").unwrap();
    server.kill();
    following.tells("connecting again").await;
    server.launch();
    server.pipe("SET anew 1\n");
    following.tells("cannot be recovered, and a new full snapshot is taken").await;
    until(|| following.told().matches("took the snapshot").count() == 2, || following.told()).await;
    server.pipe("SET anew 2\n");
    following.archived(&server).await;
    following.stop().await.unwrap();
    let candidates = archive.candidates().await;
    assert_eq!(candidates.len(), 2);
    let because = candidates[1].record.details["followed_because"].as_str().unwrap();
    assert!(because.contains(&old), "{because}");
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
    assert_eq!(archive.digest_at(Moment::Position(format!("{old}:{before}"))).await, digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_that_was_overrun_takes_a_new_snapshot_and_says_so() {
    let server = sample(&[("repl-backlog-size", "16kb")]);
    let archive = Archive::default();
    let engine = engine(&server, QUICK);
    let following = archive.follow(&engine);
    following.tells("following").await;
    server.pipe("SET before 1\n");
    following.archived(&server).await;
    let (before, digest) = (offset(&server), server.digest());
    following.stop().await.unwrap();
    for round in 0..100 {
        server.pipe(&format!("SET big:{round} {}\n", "x".repeat(10_000)));
    }
    let following = archive.follow(&engine);
    following.tells(&format!("does not have the stream after offset {before}")).await;
    following.tells("took the snapshot").await;
    server.pipe("SET after 1\n");
    following.archived(&server).await;
    following.stop().await.unwrap();
    assert_eq!(archive.digest_at(position(before)).await, digest);
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
    let error = archive.choose(&engine, &position(before + 1000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "what was lost is not made up: {error:?}");
}

/// Another receiver writes under the same names: neither overwrites the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_another_one_writes_ends_it() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SET a 1\n");
    let next = following.archived(&server).await;
    let id = SegmentId {
        timeline: Timeline::new(info(&server, "master_replid").unwrap()).unwrap(),
        name: SegmentName::new(format!("{next:020}")).unwrap(),
    };
    let other = Box::new(std::io::Cursor::new(b"something else".to_vec()));
    archive.log().put(&id, SegmentMeta::default(), other).await.unwrap();
    server.pipe("SET a 2\n");
    let error = following.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    assert!(error.to_string().contains(&id.to_string()), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_ends_it() {
    let server = PrivateRedis::with_options(&[("requirepass", "hunter2")]);
    server.call(&["ACL", "SETUSER", "weak", "on", ">hunter2", "+ping", "+replconf", "+info"]);
    let (wrong, _file) = password("wrong");
    let (right, _other_file) = password("hunter2");
    for more in [wrong, format!("user: weak, {right}")] {
        let following = Archive::default().follow(&engine(&server, &format!("{QUICK}, {more}")));
        let error = following.task.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        assert!(error.remedy().is_some() && !format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_waited_for() {
    let server = sample(&[]);
    let engine = engine(&server, QUICK);
    server.kill();
    let following = Archive::default().follow(&engine);
    following.tells("no server answers").await;
    server.launch();
    following.tells("took the snapshot").await;
    following.stop().await.unwrap();
}

/// A server that sends its dump file goes on with the stream at once, in the same breath.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_saves_to_its_disk_first_is_followed_too() {
    let server = sample(&[("repl-diskless-sync", "no"), ("save", "3600 1")]);
    let load = server.benchmark_in_background(&["-t", "set,incr", "-r", "1000", "-n", "100000000", "-c", "1", "-q"]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("took the snapshot").await;
    drop(load);
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

/// A replica passes its master's stream on; when it takes over, the history goes on under another name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_followed_and_followed_on_when_it_takes_over() {
    let master = PrivateRedis::listening(Listen::Plain, &[]);
    let replica = PrivateRedis::listening(Listen::Plain, &[]);
    master.pipe("SELECT 9\nSET early 1\n");
    replica.call(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    until(|| info(&replica, "master_link_status").as_deref() == Some("up"), || replica.log()).await;
    // The stream of a replica goes on in the database that its master had selected.
    master.pipe("SELECT 9\nSET selected 1\n");
    until(|| offset(&replica) >= offset(&master), || replica.log()).await;
    let archive = Archive::default();
    let following = archive.follow(&engine_by_port(&replica, "redis", QUICK));
    following.tells("following").await;
    master.pipe("SELECT 9\nSET later 1\nINCR n\n");
    until(|| offset(&replica) >= offset(&master), || replica.log()).await;
    let end = following.archived(&replica).await;
    let digest = replica.digest();
    replica.call(&["REPLICAOF", "NO", "ONE"]);
    following.tells("under the replication id").await;
    replica.pipe("SELECT 9\nSET own 1\n");
    following.archived(&replica).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    assert_eq!(archive.candidates().await.len(), 1, "no new snapshot was needed");
    assert_eq!(archive.digest_at(position(end)).await, digest);
    assert_eq!(archive.digest_at(Moment::Latest).await, replica.digest());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_followed_over_tls() {
    let authority = Certificates::new();
    let identity = authority.server();
    let server = PrivateRedis::listening(Listen::Tls(&authority, &identity, ClientCertificate::NotAsked), &[]);
    let tls = format!("{QUICK}, tls: {{ ca: {} }}", authority.ca().display());
    let archive = Archive::default();
    let following = archive.follow(&engine_by_port(&server, "rediss", &tls));
    following.tells("following").await;
    server.call(&["SET", "a", "1"]);
    following.archived(&server).await;
    following.stop().await.unwrap();
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_followed_node_by_node() {
    let cluster = PrivateCluster::start(3);
    let node = &cluster.nodes()[0];
    let following = Archive::default().follow(&engine_by_port(node, "redis", QUICK));
    let error = following.task.await.unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.remedy().unwrap().contains("cluster: node"), "{error:?}");
    let following = Archive::default().follow(&engine_by_port(node, "redis", &format!("{QUICK}, cluster: node")));
    following.tells("took the snapshot").await;
    following.stop().await.unwrap();
}
