//! Servers of other kinds than the plain one: configured as Debian does, a standby, one with prepared transactions, one whose
//! log is received while it works.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::engine::{Afterwards, Candidate, Existing, Moment, RestoreTarget, Snapshots, Source};
use backup_core::error::{ErrorKind, Result};
use backup_core::manifest::Manifest;
use backup_core::{RunContext, SegmentLog};
use backup_testkit::{MemorySink, PrivatePostgres};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::support::{ARCHIVING, Archived, BALANCED, Restored, SMALL_SEGMENTS, archived, archived_by, empty_log};
use crate::support::{context, drill, engine};

#[tokio::test]
async fn configuration_outside_of_the_data_directory_comes_back_with_it() {
    let db = archived_by(PrivatePostgres::like_debian(SMALL_SEGMENTS, ARCHIVING), "");
    assert!(!db.server.data_folder().join("postgresql.conf").exists());
    db.back_up().await;
    db.step(1);
    let good = db.lsn();
    db.step(2);
    db.push().await;

    // A copy has a configuration of its own, and nothing of it leads to the live server.
    let restored = Restored::new(&db.server);
    db.recover(good.clone(), &restored.target()).await.unwrap();
    assert_eq!((restored.steps().as_str(), restored.sql("show work_mem").as_str()), ("1", "7MB"));
    let own = |setting: &str| PathBuf::from(restored.sql(&format!("show {setting}")));
    for setting in ["data_directory", "config_file", "hba_file", "ident_file"] {
        assert!(own(setting).starts_with(restored.target()), "{setting}: {}", own(setting).display());
    }
    let kept = std::fs::read_dir(restored.target().join("config")).unwrap().count();
    assert!(kept >= 4, "as they lay on the server: {kept}");
    let id = db.candidates().await[0].id.clone();
    assert_eq!(drill(&db.engine(), &db.reader(&id).await).await.findings, [] as [String; 0]);

    // In place, it is that of the machine again.
    db.server.stop_immediately();
    let (existing, afterwards) = (Existing::Replace, Afterwards::Start);
    let place = RestoreTarget { moment: good, existing, afterwards, ..RestoreTarget::default() };
    db.recover_as(&place).await.unwrap();
    assert_eq!(db.server.sql("postgres", "select string_agg(n::text, ',') from steps"), "1");
    let shown = db.server.sql("postgres", "show config_file");
    assert_eq!(PathBuf::from(shown), db.server.etc().join("postgresql.conf"));
    assert_eq!(db.server.sql("postgres", "show work_mem"), "7MB");
    assert!(!db.server.data_folder().join("postgresql.conf").exists());
    // And it starts as it always did.
    db.server.stop_immediately();
    db.server.launch();
    assert_eq!(db.server.sql("postgres", "select string_agg(n::text, ',') from steps"), "1");
}

#[tokio::test]
async fn a_backup_of_a_standby_recovers_along_the_log_of_its_primary() {
    let db = archived("");
    // Without whole pages in the log, a standby refuses to be backed up.
    db.server.set("full_page_writes", "on");
    db.server.sql("postgres", "checkpoint");
    let standby = db.server.standby();
    db.step(1);
    let saved = db.back_up_by(&engine(&standby, "modes: [physical], wal: push")).await;
    assert_eq!(saved.sources[0].details["physical"]["standby"], true, "{saved:?}");
    db.step(2);
    let good = db.lsn();
    db.step(3);
    db.push().await;
    for (moment, steps) in [(good, "1,2"), (Moment::Latest, "1,2,3")] {
        let restored = Restored::new(&db.server);
        db.recover(moment, &restored.target()).await.unwrap();
        assert_eq!(restored.steps(), steps);
        assert_eq!(restored.sql("select pg_is_in_recovery()"), "f", "it follows nobody");
        assert!(!restored.data().join("standby.signal").exists());
    }
    let report = drill(&db.engine(), &db.reader(&saved.id).await).await;
    assert_eq!(report.findings, [] as [String; 0], "{report:?}");
    assert_eq!(report.fingerprint.0["tables of postgres"]["public.steps"], 3);
    // Without a log it is what it was, and waits for nobody.
    let report = drill(&db.engine(), &db.reader(&saved.id).await.with_log(None)).await;
    assert_eq!(report.findings, [] as [String; 0], "{report:?}");
}

#[tokio::test]
async fn transactions_that_were_prepared_can_be_ended_either_way() {
    let db = archived("");
    let prepare = |name: &str, number: u32| {
        let sql = format!("begin; insert into steps values ({number}); prepare transaction '{name}'");
        db.server.sql("postgres", &sql);
    };
    prepare("before", 10);
    db.back_up().await;
    db.step(1);
    prepare("after", 20);
    prepare("undone", 30);
    let good = db.lsn();
    for end in ["commit prepared 'before'", "commit prepared 'after'", "rollback prepared 'undone'"] {
        db.server.sql("postgres", end);
    }
    db.push().await;
    let restored = Restored::new(&db.server);
    db.recover(good, &restored.target()).await.unwrap();
    let pending = restored.sql("select string_agg(gid, ',' order by gid) from pg_prepared_xacts");
    assert_eq!((pending.as_str(), restored.steps().as_str()), ("after,before,undone", "1"));
    restored.sql("commit prepared 'before'");
    restored.sql("commit prepared 'undone'");
    restored.sql("rollback prepared 'after'");
    assert_eq!(restored.steps(), "1,10,30");

    let latest = Restored::new(&db.server);
    db.recover(Moment::Latest, &latest.target()).await.unwrap();
    let pending = latest.sql("select count(*) from pg_prepared_xacts");
    assert_eq!((pending.as_str(), latest.steps().as_str()), ("0", "1,10,20"));
}

/// A follower that must not need a snapshot.
#[derive(Debug)]
struct NoSnapshots;

#[async_trait]
impl Snapshots for NoSnapshots {
    async fn take(&self, _: &RunContext, _: Arc<dyn Source>) -> Result<Manifest> {
        panic!("there was a gap")
    }

    async fn candidates(&self) -> Result<Vec<Candidate>> {
        Ok(Vec::new())
    }
}

/// A server whose log is received, and pgbench on it that makes a numbered row a transaction.
fn received() -> Archived {
    let settings = &[("track_commit_timestamp", "on")];
    let server = PrivatePostgres::with_initdb(SMALL_SEGMENTS, settings);
    let archive = server.make_folder("archive");
    server.pgbench("postgres", &["-i", "-q", "-s", "1"]);
    server.sql("postgres", "create table ticks (n bigserial primary key)");
    Archived { server, sink: MemorySink::default(), archive, more: ", wal: stream".into() }
}

/// Those that had ended before `time` on the server, by the server's own account.
fn ended(db: &Archived, time: &str) -> Vec<i64> {
    let list = format!("select n from ticks where pg_xact_commit_timestamp(xmin) < {time} order by n");
    db.server.sql("postgres", &list).lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_log_that_is_being_received_leads_to_a_moment_row_by_row() {
    let db = received();
    let log: SegmentLog = empty_log();
    let cancel = CancellationToken::new();
    let follower = db.engine().follower.unwrap();
    let cx = context().cancelled_by(cancel.clone());
    let archive = log.clone();
    let following = tokio::spawn(async move { follower.follow(&cx, &archive, &NoSnapshots).await });
    while db.server.sql("postgres", "select count(*) from pg_stat_replication where state = 'streaming'") == "0" {
        tokio::task::yield_now().await;
    }
    let script = db.server.socket_folder().join("tick.sql");
    std::fs::write(&script, "insert into ticks default values;\n").unwrap();
    let _ticking = db.server.pgbench_in_background("postgres", &["-n", "-f", script.to_str().unwrap(), "-T", "1000"]);
    db.back_up().await;
    let _busy = db.server.pgbench_in_background("postgres", &["-c", "2", "-T", "1000"]);
    let count = || db.server.sql("postgres", "select count(*) from ticks").parse::<u64>().unwrap();
    let enough = count() + 200;
    while count() < enough {}
    let time = db
        .server
        .sql("postgres", "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    let enough = count() + 200;
    while count() < enough {}

    // As soon as the log is archived that far, while everything goes on.
    let moment = Moment::Time(time.parse::<Timestamp>().unwrap());
    let engine = db.engine();
    loop {
        match engine.restorer.choose(&context(), &db.candidates().await, Some(&log), &moment).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        }
        assert!(!following.is_finished());
        tokio::task::yield_now().await;
    }
    let restored = Restored::new(&db.server);
    let target = RestoreTarget { afterwards: Afterwards::Start, ..super::support::into(&restored.target(), moment) };
    db.recover_with(&log, &target).await.unwrap();
    let there: Vec<i64> =
        restored.sql("select n from ticks order by n").lines().map(|line| line.parse().unwrap()).collect();
    let quoted = format!("timestamptz '{time}'");
    let expected = ended(&db, &quoted);
    assert!(there.len() > 200 && there.iter().all(|tick| expected.contains(tick)), "nothing of later");
    // Whose commit was written later than it was timed may have come after the first that is too late.
    let sure = ended(&db, &format!("{quoted} - interval '1 second'"));
    assert!(sure.iter().all(|tick| there.contains(tick)), "{} of {}", there.len(), expected.len());
    assert!(expected.starts_with(&there), "without a gap");
    assert_eq!(restored.sql(BALANCED), "t");
    cancel.cancel();
    following.await.unwrap().unwrap();
}
