//! The server's own dump file: never lost to a backup.

use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;

use crate::support::{back_up, context, engine, sample};

const DISK: (&str, &str) = ("repl-diskless-sync", "no");
const NO_REPLICA: [(&str, &str); 2] = [("rename-command", "PSYNC \"\""), ("rename-command", "SYNC \"\"")];

/// The files of the server's folder, with their contents.
fn files(server: &PrivateRedis) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(server.data_folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn an_old_dump_file_outlives_a_snapshot_that_the_server_writes_to_its_disk() {
    for (options, way) in [(vec![DISK], "replication"), (NO_REPLICA.to_vec(), "bgsave")] {
        let server = sample(&options);
        server.call(&["SAVE"]);
        server.call(&["FLUSHALL"]);
        server.call(&["SET", "only", "this"]);
        let before = files(&server);
        assert_eq!(before.len(), 1);
        let saved = back_up(&engine(&server, "")).await.unwrap();
        assert_eq!(saved.detail("way"), way);
        assert_eq!(saved.record().fingerprint.total("keys of db0"), 1, "what the server holds now is saved");
        assert!(files(&server) == before, "{way}: the last good copy is still the server's");
    }
}

/// Such a server replaces its file by itself, and counts on what the newest save put there.
#[tokio::test]
async fn a_server_with_save_points_keeps_its_newest_save() {
    let server = sample(&[DISK, ("save", "3600 1000000")]);
    server.call(&["SAVE"]);
    server.call(&["FLUSHALL"]);
    let before = files(&server);
    back_up(&engine(&server, "")).await.unwrap();
    assert!(files(&server) != before && files(&server).len() == 1);
}

#[tokio::test]
async fn a_dump_file_out_of_reach_is_not_written_over_unless_the_plan_says_so() {
    for options in [vec![DISK], NO_REPLICA.to_vec()] {
        let server = sample(&options);
        server.call(&["SAVE"]);
        let before = files(&server);
        let elsewhere = "data_dir: /no/such/folder";
        if options == [DISK] {
            let error = back_up(&engine(&server, elsewhere)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
            assert!(error.remedy().is_some_and(|hint| hint.contains("dump_file: replace")), "{error:?}");
            back_up(&engine(&server, &format!("{elsewhere}, dump_file: replace"))).await.unwrap();
            assert!(files(&server) != before);
        } else {
            // BGSAVE's file could not be read: the keys are read instead.
            let saved = back_up(&engine(&server, elsewhere)).await.unwrap();
            assert_eq!(saved.detail("way"), "export");
            assert!(files(&server) == before);
        }
    }
}

#[tokio::test]
async fn a_save_that_fails_leaves_the_old_file_alone() {
    let server = sample(&NO_REPLICA);
    server.call(&["SAVE"]);
    let before = files(&server);
    // Slow enough for its child to be killed.
    server.call(&["CONFIG", "SET", "rdb-key-save-delay", "1000"]);
    let engine = engine(&server, "");
    let saving = back_up(&engine);
    let killer = async {
        loop {
            let children =
                std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid().as_raw_nonzero())).unwrap();
            if let Some(child) =
                children.split(' ').find_map(|pid| pid.parse().ok()).and_then(rustix::process::Pid::from_raw)
            {
                rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let (result, ()) = tokio::join!(saving, killer);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Tool);
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let after: Vec<_> = files(&server).into_iter().filter(|(name, _)| !name.starts_with("temp-")).collect();
    assert!(after == before, "{:?}", names(&after));
}

#[tokio::test]
async fn a_preflight_tells_of_the_disk() {
    let server = sample(&[DISK]);
    let preflight = engine(&server, "").source.preflight(&context()).await.unwrap();
    assert!(preflight.warnings.iter().any(|warning| warning.contains("repl-diskless-sync")), "{preflight:?}");
}
