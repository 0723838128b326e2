//! What goes wrong on the way: servers that die, children that fail, consumers that stall, cancellation.

use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::run::{RunOptions, run};
use backup_core::sink::{Sink, SnapshotFilter};
use backup_testkit::{Action, Disturbance, DisturbedSink, MemorySink, PrivateRedis};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::support::{back_up, engine, options, password, sample, task};

/// A server with so much data that buffers on the way do not swallow it.
fn large(options: &[(&str, &str)]) -> PrivateRedis {
    let server = PrivateRedis::with_options(&[&[("rdbcompression", "no")], options].concat());
    server.fill(400, 100_000);
    server
}

/// A backup into a sink at whose third operation, once, `action` happens.
async fn disturbed(server: &PrivateRedis, action: impl Fn() + Send + Sync + 'static) -> (Result<()>, MemorySink) {
    let memory = MemorySink::default();
    let happens = Action::new(move |number| {
        if number == 3 {
            action();
        }
    });
    let sink = DisturbedSink::new(Arc::new(memory.clone()), Disturbance::Act(happens));
    let result = run(vec![task(&engine(server, ""))], &sink, &options()).await.map(|_| ());
    (result, memory)
}

async fn assert_nothing_committed(result: Result<()>, memory: &MemorySink, kind: ErrorKind) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(memory.snapshots(&SnapshotFilter::default()).await.unwrap(), []);
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_while_it_sends_fails_the_backup() {
    let server = Arc::new(large(&[]));
    let killed = Arc::clone(&server);
    let (result, memory) = disturbed(&server, move || {
        // The child goes on sending without its parent: it dies with it.
        for child in children(&killed) {
            rustix::process::kill_process(child, Signal::KILL).unwrap();
        }
        killed.kill();
    })
    .await;
    assert_nothing_committed(result, &memory, ErrorKind::Incomplete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_dies_while_it_sends_fails_the_backup() {
    let server = Arc::new(large(&[]));
    let killed = Arc::clone(&server);
    let (result, memory) = disturbed(&server, move || {
        for child in children(&killed) {
            rustix::process::kill_process(child, Signal::KILL).unwrap();
        }
    })
    .await;
    let error = assert_nothing_committed(result, &memory, ErrorKind::Incomplete).await;
    assert!(error.remedy().is_some_and(|hint| hint.contains("log")));
    back_up(&engine(&server, "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_stalls_too_long_is_told_of_the_timeout() {
    let server = Arc::new(large(&[("repl-timeout", "1")]));
    let watched = Arc::clone(&server);
    let (result, memory) = disturbed(&server, move || {
        // Until the server has given up, and its child is gone.
        while !watched.log().contains("Disconnecting timedout replica") || !children(&watched).is_empty() {
            std::thread::yield_now();
        }
    })
    .await;
    let error = assert_nothing_committed(result, &memory, ErrorKind::Incomplete).await;
    assert!(error.remedy().is_some_and(|hint| hint.contains("repl-timeout")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_cancelled_leaves_no_child_and_no_connection() {
    let server = large(&[]);
    let cancel = CancellationToken::new();
    let sink = DisturbedSink::new(Arc::new(MemorySink::default()), Disturbance::Cancel(3, cancel.clone()));
    let options = RunOptions { cancel, ..options() };
    let error = run(vec![task(&engine(&server, ""))], &sink, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    // The server notices at its next turn; it would never, were a connection left open.
    while !children(&server).is_empty() || server.call(&["CLIENT", "LIST"]).lines().count() > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_save_that_runs_already_is_waited_for() {
    let server = sample(&[("rename-command", "PSYNC \"\""), ("rename-command", "SYNC \"\"")]);
    server.call(&["CONFIG", "SET", "rdb-key-save-delay", "100"]);
    let before = saves(&server);
    server.call(&["BGSAVE"]);
    let saved = back_up(&engine(&server, "")).await.unwrap();
    assert_eq!(saved.detail("way"), "bgsave");
    assert_eq!(saves(&server), before + 2, "the one that ran was not taken for ours");
}

#[tokio::test]
async fn a_save_that_fails_is_a_failure_however_it_looks() {
    let server = sample(&[("rename-command", "PSYNC \"\""), ("rename-command", "SYNC \"\"")]);
    server.call(&["SAVE"]);
    let dump = server.data_folder().join("dump.rdb");
    let good = std::fs::read(&dump).unwrap();
    // A folder stands where the file shall go: the child fails, and the old time of LASTSAVE stays.
    std::fs::remove_file(&dump).unwrap();
    std::fs::create_dir_all(dump.join("in the way")).unwrap();
    let error = back_up(&engine(&server, "")).await.unwrap_err();
    assert!(error.message().contains("BGSAVE failed"), "{error:?}");
    std::fs::remove_dir_all(&dump).unwrap();
    std::fs::write(&dump, good).unwrap();
    back_up(&engine(&server, "")).await.unwrap();
}

#[tokio::test]
async fn a_dump_file_of_another_server_is_not_taken_for_this_ones() {
    let (server, other) = (sample(&[("rename-command", "PSYNC \"\""), ("rename-command", "SYNC \"\"")]), sample(&[]));
    other.call(&["SAVE"]);
    let dump = other.data_folder().join("dump.rdb");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    std::fs::File::options().write(true).open(&dump).unwrap().set_modified(long_ago).unwrap();
    let folder = other.data_folder();
    let error = back_up(&engine(&server, &format!("data_dir: {}", folder.display()))).await.unwrap_err();
    assert!(error.message().contains("older than the save"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_waited_for() {
    let server =
        PrivateRedis::with_options(&[("key-load-delay", "50"), ("loading-process-events-interval-bytes", "1024")]);
    server.call(&["CONFIG", "SET", "key-load-delay", "0"]);
    server.fill(20_000, 40);
    server.call(&["SAVE"]);
    server.kill();
    server.launch_loading();
    let saved = back_up(&engine(&server, "")).await.unwrap();
    assert_eq!(saved.record().fingerprint.total("keys of db0"), 20_000);
}

#[tokio::test]
async fn a_password_is_in_no_event_and_in_no_file_of_the_snapshot() {
    let server = sample(&[("requirepass", "hunter2-of-this-test")]);
    let (text, _kept) = password("hunter2-of-this-test");
    let saved = back_up(&engine(&server, &text)).await.unwrap();
    let events = format!("{:?}{}", saved.recorder.events(), serde_json::to_string(&saved.manifest).unwrap());
    assert!(!events.contains("hunter2-of-this-test"));
}

/// How many saves the server counts.
fn saves(server: &PrivateRedis) -> u64 {
    let info = server.call(&["INFO", "persistence"]);
    info.lines().find_map(|line| line.strip_prefix("rdb_saves:")).unwrap().trim().parse().unwrap()
}

/// The processes that the server forked. A thread lists its own, so all are asked.
fn children(server: &PrivateRedis) -> Vec<rustix::process::Pid> {
    let tasks =
        std::fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_nonzero())).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.trim().parse().ok()).collect::<Vec<_>>()).collect();
    pids.into_iter().filter_map(rustix::process::Pid::from_raw).collect()
}

#[tokio::test]
async fn a_disk_backed_snapshot_whose_child_fails_fails_the_backup() {
    let server = sample(&[("repl-diskless-sync", "no")]);
    std::fs::create_dir_all(server.data_folder().join("dump.rdb/in the way")).unwrap();
    let error = back_up(&engine(&server, "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete, "{error:?}");
    assert!(error.remedy().is_some_and(|hint| hint.contains("log")), "{error:?}");
}
