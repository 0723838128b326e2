//! `status` and `wal status` say the same of one archive, and what they say is so.

use backup_testkit::PrivatePostgres;
use serde_json::Value;

use super::{Archive, Receiver, text};

/// A server with base backups and a streamed log, and its archive with a first snapshot. It keeps so much log besides what
/// the slot needs.
fn saved(wal_keep_size: &str) -> (PrivatePostgres, Archive) {
    let server = PrivatePostgres::with_settings(&[
        ("wal_level", "replica"),
        ("max_wal_senders", "8"),
        ("max_replication_slots", "4"),
        ("wal_keep_size", wal_keep_size),
        ("synchronous_commit", "local"),
    ]);
    let settings = format!("{{ socket: {}, modes: [physical], wal: stream }}", server.socket_folder().display());
    let archive = Archive::of(&settings);
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    archive.machine.good("backup");
    server.sql("postgres", "create table t (n int)");
    receiver.was_sent(&server);
    receiver.stop();
    (server, archive)
}

/// Receives what one more segment has, and a beginning of the next.
fn receive_more(server: &PrivatePostgres, archive: &Archive) {
    let mut receiver = Receiver::start(archive);
    receiver.reads(server);
    server.sql("postgres", "insert into t values (1)");
    server.sql("postgres", "select pg_switch_wal()");
    server.sql("postgres", "insert into t values (2)");
    receiver.was_sent(server);
    receiver.stop();
}

/// What both say, when they agree: the windows, the gaps, and whether `wal status` ends with 22.
fn both(archive: &Archive) -> (Vec<Value>, Vec<Value>, bool) {
    let ask = |line: &str| {
        let output = archive.machine.run(line);
        let printed = text(&output.stdout);
        let source = serde_json::from_str::<Value>(printed.lines().last().unwrap()).unwrap()["sources"][0].clone();
        (output.status.code().unwrap(), source)
    };
    let ((_, status), (code, wal)) = (ask("status --json"), ask("wal status --json"));
    assert_eq!(status["windows"], wal["windows"], "{status}\n{wal}");
    assert_eq!(status["gaps"], wal["gaps"], "{status}\n{wal}");
    let list = |value: &Value| value.as_array().unwrap().clone();
    (list(&wal["windows"]), list(&wal["gaps"]), code == 22)
}

fn now(server: &PrivatePostgres) -> String {
    server.sql("postgres", "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

#[test]
fn of_a_whole_archive_and_of_one_with_a_hole() {
    let (server, archive) = saved("0");
    receive_more(&server, &archive);
    let before = now(&server);
    receive_more(&server, &archive);
    let (windows, gaps, is_lost) = both(&archive);
    assert_eq!((windows.len(), gaps.len(), is_lost), (1, 0, false), "{windows:?} {gaps:?}");
    assert!(windows[0]["to"].as_str().unwrap() > before.as_str(), "up to the last piece: {windows:?}, {before}");
    let whole: Vec<_> = archive.segments().into_iter().filter(|path| path.extension().is_none()).collect();
    std::fs::remove_file(&whole[whole.len() - 2]).unwrap();
    let (windows, gaps, is_lost) = both(&archive);
    assert_eq!((windows.len(), gaps.len(), is_lost), (1, 1, true), "{windows:?} {gaps:?}");
    assert!(windows[0]["to"].as_str().unwrap() < before.as_str(), "up to the hole: {windows:?}");
}

#[test]
fn of_an_archive_whose_slot_was_dropped() {
    let (server, archive) = saved("0");
    receive_more(&server, &archive);
    server.sql("postgres", "select pg_drop_replication_slot('stackward_main_db')");
    for _ in 0..4 {
        server.sql("postgres", "insert into t values (3)");
        server.sql("postgres", "select pg_switch_wal()");
        server.sql("postgres", "checkpoint");
    }
    // It takes a full backup, from which a second window begins, once more follows it.
    let mut receiver = Receiver::start(&archive);
    receiver.says("the gap is closed");
    receiver.stop();
    receive_more(&server, &archive);
    let (windows, gaps, is_lost) = both(&archive);
    assert_eq!((windows.len(), gaps.len(), is_lost), (2, 1, false), "{windows:?} {gaps:?}");
    assert_eq!(gaps[0]["accepted"], "a snapshot was taken after it");
    assert_eq!(archive.machine.run("verify").status.code(), Some(0));
}

#[test]
fn of_an_archive_after_a_promotion() {
    let (server, archive) = saved("1GB");
    // It keeps what the archive lacks when its turn comes.
    let standby = server.standby();
    receive_more(&server, &archive);
    server.sql("postgres", "insert into t values (8)");
    while standby.sql("postgres", "select count(*) from t where n = 8") != "1" {}
    server.stop_immediately();
    standby.promote();
    let before = now(&standby);
    let plan = std::fs::read_to_string(archive.path("stackward.yaml")).unwrap();
    let moved =
        plan.replace(&server.socket_folder().display().to_string(), &standby.socket_folder().display().to_string());
    std::fs::write(archive.path("stackward.yaml"), moved).unwrap();
    receive_more(&standby, &archive);
    let (windows, gaps, is_lost) = both(&archive);
    assert_eq!((windows.len(), gaps.len(), is_lost), (1, 0, false), "{windows:?} {gaps:?}");
    assert!(windows[0]["to"].as_str().unwrap() > before.as_str(), "on the new timeline: {windows:?}, {before}");
    // Every record is walked, over both timelines; a server's own log joins everywhere.
    let verified = archive.machine.run("verify --depth structure");
    assert_eq!(verified.status.code(), Some(0), "{}{}", text(&verified.stdout), text(&verified.stderr));
}
