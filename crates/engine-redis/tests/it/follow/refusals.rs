//! Moments that cannot be reached, and archives that are not whole: refused by name, before anything is touched.

use backup_core::engine::{Moment, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_testkit::{MemorySink, PrivateRedis};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;

use super::support::{Archive, QUICK, offset, position};
use crate::support::{back_up_into, context, engine, sample, source};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moments_outside_the_window_are_refused() {
    let server = sample(&[]);
    let archive = Archive::default();
    let engine = engine(&server, QUICK);
    let before = Timestamp::now() - SignedDuration::from_secs(1);
    let error = archive.choose(&engine, &Moment::Latest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let following = archive.follow(&engine);
    following.tells("following").await;
    server.call(&["SET", "a", "1"]);
    following.archived(&server).await;
    following.stop().await.unwrap();
    let cases = [
        (Moment::Time(before), ErrorKind::NotFound),
        (Moment::Time(Timestamp::now() + SignedDuration::from_secs(60)), ErrorKind::NotFound),
        (position(offset(&server) + 1_000_000), ErrorKind::NotFound),
        (Moment::Position("another-server:5".to_owned()), ErrorKind::NotFound),
        (Moment::Position("16/B374D848".to_owned()), ErrorKind::Usage),
        (Moment::Transaction(7), ErrorKind::Unsupported),
        (Moment::Name("before".to_owned()), ErrorKind::Unsupported),
    ];
    for (moment, kind) in cases {
        let error = archive.choose(&engine, &moment).await.unwrap_err();
        assert!(error.kind() == kind && error.remedy().is_some(), "{moment}: {error:?}");
    }
}

/// Six segments, and a target to recover to.
async fn archived() -> (PrivateRedis, MemorySink, Archive) {
    let server = sample(&[]);
    let sink = MemorySink::default();
    let archive = Archive { sink: Arc::new(sink.clone()) };
    let following = archive.follow(&engine(&server, "follow: { segment_age: 1s, segment_bytes: 65536 }"));
    following.tells("following").await;
    let value = "x".repeat(40_000);
    for round in 0..5 {
        server.pipe(&format!("SET round {round}\nSET a {value}\nSET b {value}\n"));
        following.archived(&server).await;
    }
    following.stop().await.unwrap();
    (server, sink, archive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_segment_is_named_before_anything_is_written() {
    let (server, sink, archive) = archived().await;
    let records = archive.records().await;
    assert!(records.len() >= 5);
    let (target, whole) = (PrivateRedis::start(), offset(&server));
    let into = engine(&target, "");
    let reached = records[1].meta.span.unwrap().end;
    let id = archive.choose(&into, &Moment::Latest).await.unwrap();
    for lost in [&records[2], &records[0]] {
        sink.log().lose(&source(), &lost.id).unwrap();
        for moment in [Moment::Latest, position(whole), Moment::Time(records[4].meta.marks[0].time)] {
            let error = archive.choose(&into, &moment).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Incomplete, "{error:?}");
            assert!(error.chain().contains(&lost.id.to_string()), "{error:?}");
            let error = archive.recover_from(&id, &into, moment, RestoreTarget::default()).await.unwrap_err();
            assert!(error.chain().contains(&lost.id.to_string()), "{error:?}");
        }
        assert_eq!(target.call(&["DBSIZE"]), "0");
        if lost.id == records[2].id {
            archive.recover(&into, position(reached), RestoreTarget::default()).await.unwrap();
            target.call(&["FLUSHALL"]);
            target.call(&["FUNCTION", "FLUSH"]);
        }
    }
}

/// A segment whose bytes are no commands: the store found nothing wrong, the replay does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_no_stream_is_refused_by_name() {
    let (_server, sink, archive) = archived().await;
    let records = archive.records().await;
    let bad = &records[3];
    sink.log().lose(&source(), &bad.id).unwrap();
    let junk = vec![b'x'; bad.bytes as usize];
    archive.log().put(&bad.id, bad.meta.clone(), Box::new(std::io::Cursor::new(junk))).await.unwrap();
    let target = PrivateRedis::start();
    let error = archive.recover(&engine(&target, ""), Moment::Latest, RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(error.to_string().contains(&bad.id.to_string()), "{}: {error:?}", bad.id);
    assert_eq!(target.call(&["DBSIZE"]), "0");
    let drilled = engine(&target, "");
    let id = archive.choose(&drilled, &Moment::Latest).await.unwrap();
    let report = drilled.driller.drill(&context(), &archive.reader(&id).await).await.unwrap();
    assert!(report.findings.iter().any(|finding| finding.contains("does not replay")), "{report:?}");
}

/// A snapshot that BGSAVE made has no place in the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_a_position_leads_nowhere() {
    let server = PrivateRedis::with_options(&[("rename-command", "PSYNC \"\""), ("rename-command", "SYNC \"\"")]);
    let archive = Archive::default();
    let engine = engine(&server, "");
    let manifest = back_up_into(&engine, archive.sink.as_ref()).await.unwrap();
    let error = archive.choose(&engine, &Moment::Latest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let error =
        archive.recover_from(&manifest.id, &engine, Moment::Latest, RestoreTarget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
}
