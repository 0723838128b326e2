//! The conformance suite of log stores. `log_conformance!(make)` runs all of it; the names of the tests are the contract.

use std::io::{Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{LogStore, Mark, SegmentId, SegmentMeta, SegmentRecord, Span, Stored};
use backup_core::sink::CheckDepth;
use backup_core::{RunContext, SegmentName, SourceName, Timeline};
use bytes::Bytes;
use jiff::Timestamp;

use crate::noise;

/// Makes the suite's tests; `$make` is an async function that returns a fresh `Arc<dyn LogStore>` and whatever keeps it alive.
#[macro_export]
macro_rules! log_conformance {
    ($make:path) => {
        $crate::log_conformance!(@tests $make,
            segments_round_trip, the_same_bytes_again_are_welcome, other_bytes_under_a_name_are_refused,
            of_two_writers_at_once_one_wins, listings_are_sorted_and_apart, what_is_missing_is_named,
            a_source_of_bytes_that_fails_stores_nothing, check_finds_nothing_wrong_with_segments,
            what_a_segment_was_made_of_is_known, notes_are_kept_and_never_replaced
        );
    };
    (@tests $make:path, $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (log, _keep) = $make().await;
                $crate::log_suite::$name(log).await;
            }
        )+
    };
}

type Log = Arc<dyn LogStore>;

fn source() -> SourceName {
    SourceName::new("main-db").expect("a valid name")
}

/// The id of a segment.
///
/// # Panics
/// When the texts are no names.
#[must_use]
pub fn segment(timeline: &str, name: &str) -> SegmentId {
    let timeline = Timeline::new(timeline).expect("a valid timeline");
    SegmentId { timeline, name: SegmentName::new(name).expect("a valid name") }
}

/// Bytes to store.
#[must_use]
pub fn content(bytes: &Bytes) -> Box<dyn Read + Send> {
    Box::new(Cursor::new(bytes.clone()))
}

fn meta(start: u64, end: u64) -> SegmentMeta {
    SegmentMeta {
        predecessor: Some(segment("1", "before")),
        span: Some(Span { start, end }),
        marks: vec![Mark { time: Timestamp::UNIX_EPOCH, position: end }],
        after: Some(start.saturating_sub(8)),
        last_record: Some(end.saturating_sub(8)),
        details: [("system".to_owned(), 7.into())].into(),
    }
}

/// A place to read a segment into.
#[derive(Debug, Clone, Default)]
pub struct Into(Arc<Mutex<Vec<u8>>>);

impl Into {
    /// As a writer.
    #[must_use]
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(self.clone())
    }

    /// What was written.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no writer panicked").clone()
    }
}

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn read(log: &Log, id: &SegmentId) -> Result<(SegmentRecord, Vec<u8>)> {
    let into = Into::default();
    let record = log.read(&source(), id, into.writer()).await?;
    Ok((record, into.bytes()))
}

/// See its name.
pub async fn segments_round_trip(log: Log) {
    let cases = [
        ("empty", Bytes::new()),
        ("small", Bytes::from_static(b"x")),
        ("zeroes", Bytes::from(vec![0; 1 << 20])),
        ("noise", noise((3 << 20) + 17, 1)),
    ];
    for (name, bytes) in cases {
        let id = segment("1", name);
        let meta = meta(100, 100 + bytes.len() as u64);
        let stored = log.put(&source(), &id, meta.clone(), content(&bytes)).await.expect("stored");
        let Stored::New { stored_bytes } = stored else { panic!("{name}: it was not there before") };
        let (record, back) = read(&log, &id).await.expect("read");
        assert!(back == bytes, "{name}");
        assert_eq!((record.bytes, record.stored_bytes), (bytes.len() as u64, stored_bytes), "{name}");
        assert_eq!((&record.id, &record.meta), (&id, &meta), "{name}");
        assert_eq!(log.record(&source(), &id).await.expect("its record"), record, "{name}");
    }
}

/// See its name.
pub async fn the_same_bytes_again_are_welcome(log: Log) {
    let (id, bytes) = (segment("1", "a"), noise(100_000, 2));
    log.put(&source(), &id, meta(0, 9), content(&bytes)).await.expect("stored");
    let first = log.record(&source(), &id).await.expect("its record");
    let again = log.put(&source(), &id, meta(0, 9), content(&bytes)).await.expect("the same again");
    assert_eq!(again, Stored::Same);
    assert_eq!(log.record(&source(), &id).await.expect("its record"), first, "nothing was written");
}

/// See its name.
pub async fn other_bytes_under_a_name_are_refused(log: Log) {
    let (id, bytes) = (segment("1", "a"), noise(100_000, 3));
    log.put(&source(), &id, meta(0, 9), content(&bytes)).await.expect("stored");
    let mut other = bytes.to_vec();
    other[99_999] ^= 1;
    for other in [other.into(), bytes.slice(..99_999), Bytes::new(), noise(100_000, 4)] {
        let error = log.put(&source(), &id, meta(0, 9), content(&other)).await.expect_err("other bytes");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("1/a"), "{error}");
    }
    assert!(read(&log, &id).await.expect("read").1 == bytes);
}

/// See its name.
pub async fn of_two_writers_at_once_one_wins(log: Log) {
    for round in 0..8 {
        let id = segment("1", &format!("race-{round}"));
        let put = |seed| {
            let (log, id) = (Arc::clone(&log), id.clone());
            tokio::spawn(async move { log.put(&source(), &id, meta(0, 9), content(&noise(50_000, seed))).await })
        };
        let (a, b) = (put(10), put(11));
        let (a, b) = (a.await.expect("no panic"), b.await.expect("no panic"));
        let winner = match (&a, &b) {
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => {
                assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
                noise(50_000, if a.is_ok() { 10 } else { 11 })
            }
            other => panic!("one must win: {other:?}"),
        };
        assert!(read(&log, &id).await.expect("read").1 == winner);
    }
}

/// See its name.
pub async fn listings_are_sorted_and_apart(log: Log) {
    for (timeline, name) in [("2", "b"), ("1", "c"), ("1", "a"), ("2", "a"), ("1", "b")] {
        log.put(&source(), &segment(timeline, name), SegmentMeta::default(), content(&noise(10, 5)))
            .await
            .expect("stored");
    }
    let other = SourceName::new("main").expect("a valid name");
    log.put(&other, &segment("3", "x"), SegmentMeta::default(), content(&noise(10, 6))).await.expect("stored");
    let timelines = log.timelines(&source()).await.expect("timelines");
    assert_eq!(timelines.iter().map(Timeline::as_str).collect::<Vec<_>>(), ["1", "2"]);
    let listed = log.segments(&source(), &timelines[0]).await.expect("segments");
    assert_eq!(listed.iter().map(|entry| entry.id.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(listed.iter().all(|entry| entry.stored_bytes > 0 && entry.id.timeline == timelines[0]));
    assert!(log.segments(&source(), &Timeline::new("9").expect("valid")).await.expect("none").is_empty());
    let nobody = SourceName::new("nobody").expect("a valid name");
    assert!(log.timelines(&nobody).await.expect("none").is_empty());
}

/// See its name.
pub async fn what_is_missing_is_named(log: Log) {
    let id = segment("1", "000000010000000000000007");
    for error in [log.record(&source(), &id).await.expect_err("none"), read(&log, &id).await.expect_err("none")] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("000000010000000000000007"), "{error}");
    }
}

/// Fails after some bytes, as a disk does.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = out.len().min(self.0);
        if count == 0 {
            return Err(std::io::Error::other("the disk is gone"));
        }
        out[..count].fill(7);
        self.0 -= count;
        Ok(count)
    }
}

/// See its name.
pub async fn a_source_of_bytes_that_fails_stores_nothing(log: Log) {
    let id = segment("1", "a");
    let error: Error = log.put(&source(), &id, meta(0, 9), Box::new(Failing(200_000))).await.expect_err("it failed");
    assert!(error.chain().contains("the disk is gone"), "{}", error.chain());
    assert!(log.timelines(&source()).await.expect("timelines").is_empty());
    log.put(&source(), &id, meta(0, 9), content(&noise(10, 7))).await.expect("the name is free");
}

/// See its name.
pub async fn check_finds_nothing_wrong_with_segments(log: Log) {
    for name in ["a", "b"] {
        log.put(&source(), &segment("1", name), meta(0, 9), content(&noise(100_000, 8))).await.expect("stored");
    }
    let cx = RunContext::new(source());
    for depth in [CheckDepth::References, CheckDepth::Data] {
        assert!(log.check(&cx, &source(), depth).await.expect("checked").is_empty());
    }
}

/// Bytes are compared with what a segment was made of.
pub async fn what_a_segment_was_made_of_is_known(log: Log) {
    let id = segment("1", "a");
    let bytes = noise(100_000, 31);
    log.put(&source(), &id, meta(0, 10), content(&bytes)).await.expect("store it");
    assert!(log.holds(&source(), &id, content(&bytes)).await.expect("compare"));
    for other in [noise(100_000, 32), bytes.slice(..99_999), Bytes::new()] {
        assert!(!log.holds(&source(), &id, content(&other)).await.expect("compare"));
    }
    let missing = log.holds(&source(), &segment("1", "b"), content(&bytes)).await;
    assert_eq!(missing.expect_err("there is none").kind(), ErrorKind::NotFound);
}

/// Notes belong to one source, and stay as they are.
pub async fn notes_are_kept_and_never_replaced(log: Log) {
    let name = |name: &str| SegmentName::new(name).expect("a valid name");
    assert_eq!(log.notes(&source()).await.expect("there is none"), []);
    log.add_note(&source(), &name("owner"), "one").await.expect("keep it");
    log.add_note(&source(), &name("a"), "ä\n").await.expect("keep it");
    let again = log.add_note(&source(), &name("owner"), "other").await;
    assert_eq!(again.expect_err("it is there").kind(), ErrorKind::AlreadyExists);
    let kept = [(name("a"), "ä\n".to_owned()), (name("owner"), "one".to_owned())];
    assert_eq!(log.notes(&source()).await.expect("they are there"), kept);
    let other = SourceName::new("main").expect("a valid name");
    assert_eq!(log.notes(&other).await.expect("it has none"), []);
    assert_eq!(log.timelines(&source()).await.expect("they are no segments"), []);
}
