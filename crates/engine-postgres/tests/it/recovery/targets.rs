//! Every kind of moment.

use backup_core::engine::{Afterwards, Moment, RestoreTarget};
use backup_core::log::SegmentMeta;
use engine_postgres::wal::WalFile;
use jiff::Timestamp;

use super::support::{BALANCED, Restored, archived, into};

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[tokio::test]
async fn every_kind_of_moment_is_reached_row_by_row() {
    let db = archived("");
    let first = db.back_up().await;
    db.step(1);
    db.step(2);
    let lsn = db.server.sql("postgres", "select pg_current_wal_insert_lsn()");
    db.step(3);
    let three = db.server.sql(
        "postgres",
        "select to_char(at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from steps where n = 3",
    );
    db.step(4);
    db.server.sql("postgres", "select pg_create_restore_point('before the release')");
    db.step(5);
    let xid = db.server.sql("postgres", "begin; insert into steps values (6); select pg_current_xact_id(); commit");
    let dropped = db.server.sql("postgres", "begin; drop table steps; select pg_current_xact_id(); commit");
    db.server.sql("postgres", "create table steps (n int primary key)");
    db.step(7);
    db.push().await;
    let cases = [
        (Moment::Position(lsn), "1,2"),
        // The row was made before its transaction ended.
        (Moment::Time(time(&three)), "1,2"),
        (Moment::Name("before the release".into()), "1,2,3,4"),
        (Moment::Transaction(xid.parse().unwrap()), "1,2,3,4,5"),
        (Moment::Transaction(dropped.parse().unwrap()), "1,2,3,4,5,6"),
        (Moment::Latest, "7"),
    ];
    let checks = cases.into_iter().map(|(moment, steps)| {
        let (db, first) = (&db, &first);
        async move {
            let restored = Restored::new(&db.server);
            let (id, report) = db.recover(moment.clone(), &restored.target()).await.unwrap();
            assert_eq!(id, first.id);
            assert_eq!(restored.steps(), steps, "{moment}: {report:?}");
            assert_eq!(restored.sql(BALANCED), "t", "{moment}");
            assert_eq!(restored.sql("select pg_is_in_recovery(), timeline_id from pg_control_checkpoint()"), "f|2");
            assert_eq!(restored.sql("show archive_mode"), "off");
            assert!(!restored.data().join("pg_wal/stackward").exists(), "the staged log is gone");
        }
    });
    futures::future::join_all(checks).await;
}

#[tokio::test]
async fn the_end_of_the_log_may_be_there_in_pieces_and_in_the_midst_of_a_record() {
    let db = archived("");
    db.back_up().await;
    db.step(1);
    db.push().await;
    let segment = db.segment();
    db.step(2);
    db.push().await;
    let log = db.archive_with(|name, content| (name < segment.as_str()).then_some(content)).await;
    let bytes = std::fs::read(db.archive.join(&segment)).unwrap();
    let system = db.server.sql("postgres", "select system_identifier from pg_control_system()");
    // As the receiver keeps them: they overlap, and end anywhere.
    for (from, to) in [(0_usize, 20_001), (10_000, 40_003)] {
        let id = format!("{segment}.{from:08X}-{to:08X}.piece").parse::<WalFile>().unwrap().id().unwrap();
        let details = [("system", serde_json::json!(system)), ("segment_size", serde_json::json!(1 << 20))];
        let details = details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let meta = SegmentMeta { details, ..SegmentMeta::default() };
        log.put(&id, meta, Box::new(std::io::Cursor::new(bytes[from..to].to_vec()))).await.unwrap();
    }
    let restored = Restored::new(&db.server);
    let latest = RestoreTarget { afterwards: Afterwards::Start, ..into(&restored.target(), Moment::Latest) };
    let (_, report) = db.recover_with(&log, &latest).await.unwrap();
    assert_eq!((restored.steps().as_str(), restored.sql(BALANCED).as_str()), ("1", "t"), "{report:?}");
    let told = report.restored.join("\n");
    let begin = u64::from_str_radix(&segment[16..], 16).unwrap() << 20;
    let lsn = told.split("the record at 0/").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    let lsn = u64::from_str_radix(lsn, 16).unwrap();
    assert!((begin + 20_001..begin + 40_003).contains(&lsn), "{told}");
}
