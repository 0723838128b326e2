//! Recovery to moments of the stream: offsets, times, the end; into servers, by files, into folders.

use backup_core::engine::{Existing, Moment, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_testkit::PrivateRedis;
use jiff::{SignedDuration, Timestamp};

use super::support::{Archive, QUICK, acknowledged, offset, position, sent, until};
use crate::support::{back_up_into, context, engine, folder, sample, select};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_recorded_offset_comes_back_with_an_equal_digest() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    let mut states = vec![(offset(&server), server.digest())];
    for round in 0..6 {
        server.pipe(&format!(
            "SELECT {round}\nSET round {round}\nINCR counter\nLPUSH list {round} a\nMULTI\nSADD set {round}\n\
             SELECT 0\nINCR total\nEXEC\nDEL key:{round}\nXADD log * round {round}\n"
        ));
        states.push((offset(&server), server.digest()));
    }
    following.archived(&server).await;
    following.stop().await.unwrap();
    archive.assert_no_holes().await;
    for (offset, digest) in &states {
        assert_eq!(archive.digest_at(position(*offset)).await, *digest, "offset {offset}");
    }
    assert_eq!(archive.digest_at(Moment::Latest).await, states.last().unwrap().1);
}

/// What was received when it was told to stop is archived, however young its segment is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_archives_what_was_received() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, "follow: { segment_age: 10m, segment_bytes: 65536 }"));
    following.tells("following").await;
    let begun = offset(&server);
    server.pipe(&format!("SET a {0}\nSET b {0}\n", "x".repeat(50_000)));
    until(|| acknowledged(&server) > Some(begun), || following.told()).await;
    server.call(&["SET", "last", "word"]);
    sent(&server).await;
    following.stop().await.unwrap();
    assert_eq!(archive.records().await.last().unwrap().meta.span.unwrap().end, offset(&server));
    assert_eq!(archive.digest_at(Moment::Latest).await, server.digest());
}

/// Each state is recovered to by the time between it and the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_is_the_last_state_that_came_before_it() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    let mut states = Vec::new();
    for round in 0..4 {
        server.pipe(&format!("SET round {round}\nINCR counter\n"));
        following.archived(&server).await;
        states.push((Timestamp::now(), server.digest()));
    }
    server.call(&["SET", "after", "all"]);
    following.archived(&server).await;
    following.stop().await.unwrap();
    for (time, digest) in &states {
        assert_eq!(archive.digest_at(Moment::Time(*time)).await, *digest, "{time}");
    }
}

/// A position within a transaction, or within a command, is that before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_transaction_is_rolled_back() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SET before 1\n");
    let (before, digest) = (offset(&server), server.digest());
    server.pipe("MULTI\nSET within 1\nDEL before\nINCR within\nEXEC\n");
    let after = following.archived(&server).await;
    following.stop().await.unwrap();
    assert!(after > before + 60);
    for torn in [before + 3, before + 40, after - 1] {
        assert_eq!(archive.digest_at(position(torn)).await, digest, "offset {torn}");
    }
    assert_eq!(archive.digest_at(position(after)).await, server.digest());
}

/// The key's time has passed when it is replayed, but had not when it was made to last: commands sent to a running server
/// would lose it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_outlived_their_time_then_do_so_again() {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SET lucky 5 PX 1200\nINCR lucky\nPERSIST lucky\nSET gone 1 PX 1200\n");
    following.archived(&server).await;
    until(|| server.call(&["EXISTS", "gone"]) == "0", || "the key never expires".to_owned()).await;
    following.archived(&server).await;
    following.stop().await.unwrap();
    let target = PrivateRedis::start();
    archive.recover(&engine(&target, ""), Moment::Latest, RestoreTarget::default()).await.unwrap();
    assert_eq!((target.call(&["GET", "lucky"]), target.call(&["EXISTS", "gone"])), ("6".to_owned(), "0".to_owned()));
    assert_eq!(target.digest(), server.digest());
}

/// A backup that was made beside the follower, in the middle of the stream, is as good a beginning, and nearer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_snapshot_is_chosen_whoever_took_it() {
    let server = sample(&[]);
    let archive = Archive::default();
    let engine = engine(&server, QUICK);
    let following = archive.follow(&engine);
    following.tells("following").await;
    server.pipe("SELECT 5\nSET a 1\n");
    let early = (offset(&server), server.digest());
    server.pipe("SELECT 5\nSET a 2\n");
    let manifest = back_up_into(&engine, archive.sink.as_ref()).await.unwrap();
    server.pipe("SELECT 5\nSET a 3\nSET b 4\n");
    let late = (offset(&server), server.digest());
    following.archived(&server).await;
    following.stop().await.unwrap();
    assert_eq!(archive.choose(&engine, &Moment::Latest).await.unwrap(), manifest.id);
    assert_eq!(archive.choose(&engine, &position(late.0)).await.unwrap(), manifest.id);
    assert_ne!(archive.choose(&engine, &position(early.0)).await.unwrap(), manifest.id);
    assert_eq!(archive.digest_at(position(late.0)).await, late.1);
    assert_eq!(archive.digest_at(position(early.0)).await, early.1);
}

/// An archive with a state to come back to, and one that is later.
async fn two_states() -> (PrivateRedis, Archive, u64, String) {
    let server = sample(&[]);
    let archive = Archive::default();
    let following = archive.follow(&engine(&server, QUICK));
    following.tells("following").await;
    server.pipe("SELECT 3\nSET a 1\nRPUSH l x y\n");
    let (offset, digest) = (offset(&server), server.digest());
    server.pipe("FLUSHALL\nSET oops 1\n");
    following.archived(&server).await;
    following.stop().await.unwrap();
    (server, archive, offset, digest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_holds_what_a_server_replays_when_it_starts() {
    let (server, archive, offset, digest) = two_states().await;
    let place = tempfile::tempdir().unwrap();
    let report = archive.recover(&engine(&server, ""), position(offset), folder(place.path())).await.unwrap();
    assert!(report.restored.iter().any(|line| line.contains(&offset.to_string())), "{report:?}");
    let note = std::fs::read_to_string(place.path().join("RECOVERY.txt")).unwrap();
    assert!(note.contains("appendonly yes") && note.contains(&offset.to_string()), "{note}");
    assert!(
        !place.path().join("dump.rdb").exists(),
        "a server without append-only files would start on another moment"
    );
    let target = PrivateRedis::with_options(&[("appendonly", "yes")]);
    target.kill();
    let (from, to) = (place.path().join("appendonlydir"), target.data_folder().join("appendonlydir"));
    std::fs::remove_dir_all(&to).unwrap();
    std::fs::rename(from, to).unwrap();
    target.launch();
    assert_eq!(target.digest(), digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_may_be_stopped_gets_the_moment_as_files() {
    let (_server, archive, offset, digest) = two_states().await;
    for append_only in ["no", "yes"] {
        let target = PrivateRedis::with_options(&[("appendonly", append_only)]);
        target.fill(10, 3);
        let commands = format!(
            "stop: [redis-cli, -s, {0}, shutdown, nosave], start: [redis-server, {1}, --daemonize, 'yes']",
            target.socket().display(),
            target.configuration().display()
        );
        let replacing = RestoreTarget { existing: Existing::Replace, ..RestoreTarget::default() };
        archive.recover(&engine(&target, &commands), position(offset), replacing).await.unwrap();
        assert_eq!(target.digest(), digest, "appendonly {append_only}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_moment_is_restored_beside_what_is_there() {
    let (_server, archive, offset, _) = two_states().await;
    let target = PrivateRedis::start();
    target.call(&["SET", "mine", "1"]);
    archive.recover(&engine(&target, ""), position(offset), select(&["db3"])).await.unwrap();
    let read = |words: &[&str]| target.call(words);
    assert_eq!(
        (read(&["-n", "3", "GET", "a"]), read(&["GET", "mine"]), read(&["DBSIZE"])),
        ("1".into(), "1".into(), "1".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_goes_to_the_end_of_the_window_and_says_when_that_was() {
    let (server, archive, _, _) = two_states().await;
    let engine = engine(&server, "");
    let id = archive.choose(&engine, &Moment::Latest).await.unwrap();
    let report = engine.driller.drill(&context(), &archive.reader(&id).await).await.unwrap();
    assert_eq!(report.findings, Vec::<String>::new());
    let last = archive.records().await.last().unwrap().meta.marks.last().unwrap().time;
    assert_eq!(report.reached, Some(last));
    assert!(report.checked.iter().any(|line| line.contains("commands replayed without an error")), "{report:?}");
}

/// Without a follower: append-only files that tell the time lead back to moments before the backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_only_files_with_times_are_cut_at_a_second() {
    let server = sample(&[("appendonly", "yes"), ("aof-timestamp-enabled", "yes")]);
    server.call(&["BGREWRITEAOF"]);
    let rewritten = || server.call(&["INFO", "persistence"]).contains("aof_rewrite_in_progress:0");
    until(rewritten, || "the rewrite does not end".to_owned()).await;
    let pass = async |seconds: i64| {
        let over = Timestamp::now().as_second() + seconds;
        until(|| Timestamp::now().as_second() >= over, || "the clock stands still".to_owned()).await;
    };
    // What comes in the second of the rewrite has no time of its own.
    pass(2).await;
    let mut states = Vec::new();
    for round in 0..3 {
        server.pipe(&format!("SELECT 13\nSET round {round}\n"));
        // Until the second of the write is over, and the one after it.
        pass(2).await;
        states.push((Timestamp::now(), server.digest()));
    }
    server.pipe("FLUSHALL\nSET oops 1\n");
    let archive = Archive::default();
    let engine = engine(&server, "modes: [rdb, aof]");
    back_up_into(&engine, archive.sink.as_ref()).await.unwrap();
    for (time, digest) in &states {
        assert_eq!(archive.digest_at(Moment::Time(*time)).await, *digest, "{time}");
    }
    let place = tempfile::tempdir().unwrap();
    let report = archive.recover(&engine, Moment::Time(states[1].0), folder(place.path())).await.unwrap();
    assert!(report.restored.iter().any(|line| line.contains("append-only files")), "{report:?}");
    for outside in [states[0].0 - SignedDuration::from_mins(10), Timestamp::now() + SignedDuration::from_mins(10)] {
        let error = archive.choose(&engine, &Moment::Time(outside)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
}
