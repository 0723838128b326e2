//! Timelines: a promotion makes a new one, and recoveries follow it.

use backup_core::Timeline;
use backup_core::engine::{Afterwards, Moment, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_testkit::PrivatePostgres;

use super::support::{Archived, Restored, archive_into, archived, flush, into, push_all};
use crate::support::{context, drill, engine, open_folder};

#[tokio::test]
async fn a_recovery_follows_the_newest_timeline_and_wants_its_history() {
    let db = archived("");
    db.back_up().await;
    db.step(1);
    let fork = db.lsn();
    let between = db
        .server
        .sql("postgres", "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    db.step(2);
    db.server.sql("postgres", "select pg_create_restore_point('left behind')");
    // Further than the other one will come.
    db.server
        .sql("postgres", "create table filler as select n, repeat('x', 100) as t from generate_series(1, 40000) n");
    let far = db.lsn();
    db.push().await;
    // Somebody recovers to the first step, and goes on with it.
    let went_on = Restored::new(&db.server);
    db.recover(fork, &went_on.target()).await.unwrap();
    went_on.stop();
    let second = db.server.on_data(&went_on.data());
    second.sql("postgres", "alter system set archive_mode = on");
    second.stop_immediately();
    second.launch();
    archive_into(&second, &db.archive);
    second.sql("postgres", "insert into steps values (20)");
    flush(&second);
    // It did not archive when it was promoted, so that it did not write into the archive of the server that went on.
    std::fs::copy(went_on.data().join("pg_wal/00000002.history"), db.archive.join("00000002.history")).unwrap();
    push_all(&db.log(), &db.archive).await;

    let restored = Restored::new(&db.server);
    db.recover(Moment::Latest, &restored.target()).await.unwrap();
    assert_eq!(restored.steps(), "1,20");
    let timeline = restored.sql("select timeline_id from pg_control_checkpoint()");
    assert_eq!(timeline, "3", "a number that nobody has taken");

    what_the_branch_that_was_left_has_is_told(&db, &between, far).await;

    // Either branch, when it is asked for; neither when it is no branch of this server.
    for (timeline, steps) in [("1", "1,2"), ("2", "1,20"), ("00000002", "1,20")] {
        let restored = Restored::new(&db.server);
        let log = db.log().along(Timeline::new(timeline).unwrap());
        let target = RestoreTarget { afterwards: Afterwards::Start, ..into(&restored.target(), Moment::Latest) };
        let (_, report) = db.recover_with(&log, &target).await.unwrap();
        assert_eq!(restored.steps(), steps, "{timeline}: {report:?}");
        assert_eq!(restored.sql("select timeline_id from pg_control_checkpoint()"), "3", "{timeline}");
    }
    let home = open_folder();
    for (timeline, kind, words) in [
        ("3", ErrorKind::NotFound, "there is no timeline 3"),
        ("0", ErrorKind::Usage, "`0` is no timeline"),
        ("main", ErrorKind::Usage, "`main` is no timeline"),
    ] {
        let folder = home.path().join(timeline);
        let log = db.log().along(Timeline::new(timeline).unwrap());
        let error = db.recover_with(&log, &into(&folder, Moment::Latest)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(words) && !folder.exists(), "{error:?}");
        assert!(kind == ErrorKind::Usage || error.remedy().unwrap().contains("1; 2 (left 1 at "), "{error:?}");
    }
    a_drill_follows_the_branch(&db).await;
    a_snapshot_of_another_branch(&db, &second).await;

    // Without its history nobody knows where the second timeline comes from.
    let without = db.archive_with(|name, content| (name != "00000002.history").then_some(content)).await;
    let folder = home.path().join("x");
    let error = db.recover_with(&without, &into(&folder, Moment::Latest)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete, "{error:?}");
    assert!(error.to_string().contains("00000002.history") && !folder.exists(), "{error:?}");
}

/// The new branch was not there yet, or does not come so far, and the old one has it: nobody gets less without a word.
async fn what_the_branch_that_was_left_has_is_told(db: &Archived, between: &str, far: Moment) {
    let home = open_folder();
    let moments = [Moment::Time(between.parse().unwrap()), far, Moment::Name("left behind".to_owned())];
    for (number, moment) in moments.into_iter().enumerate() {
        let folder = home.path().join(number.to_string());
        let error = db.recover_with(&db.log(), &into(&folder, moment.clone())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{moment}: {error:?}");
        assert!(error.to_string().contains("timeline 1 has it") && !folder.exists(), "{moment}: {error:?}");
        assert!(error.remedy().unwrap().contains("`--timeline 1`"), "{moment}: {error:?}");
        let along = db.log().along(Timeline::new("1").unwrap());
        db.recover_with(&along, &into(&folder, moment.clone())).await.unwrap();
        // The snapshot that somebody names himself.
        let reader = db.reader(&db.candidates().await[0].id).await.with_log(Some(db.log()));
        let target = into(&home.path().join("named"), moment.clone());
        let error = db.engine().restorer.plan_restore(&context(), &reader, &target).await.unwrap_err();
        assert!(error.remedy().unwrap().contains("`--timeline 1`"), "{moment}: {error:?}");
    }
}

async fn a_drill_follows_the_branch(db: &Archived) {
    let id = db.candidates().await[0].id.clone();
    for timeline in ["1", "2"] {
        let log = db.log().along(Timeline::new(timeline).unwrap());
        let report = drill(&db.engine(), &db.reader(&id).await.with_log(Some(log))).await;
        assert_eq!(report.findings, [] as [String; 0], "{report:?}");
        assert!(report.checked.join("\n").contains(&format!("segments of timeline {timeline}, ")), "{report:?}");
        assert_eq!(report.fingerprint.0["tables of postgres"]["public.steps"], 2);
    }
    let nowhere = db.reader(&id).await.with_log(Some(db.log().along(Timeline::new("7").unwrap())));
    let error = db.engine().driller.drill(&context(), &nowhere).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("no timeline 7"), "{error:?}");
}

/// A snapshot that was taken on the second timeline leads along the second alone; to the first leads the one before.
async fn a_snapshot_of_another_branch(db: &Archived, second: &PrivatePostgres) {
    let engine = engine(second, "modes: [physical], wal: push");
    let later = db.back_up_by(&engine).await;
    second.sql("postgres", "insert into steps values (21)");
    flush(second);
    push_all(&db.log(), &db.archive).await;
    let log = db.log().along(Timeline::new("1").unwrap());
    let restored = Restored::new(&db.server);
    let target = RestoreTarget { afterwards: Afterwards::Start, ..into(&restored.target(), Moment::Latest) };
    let (id, _) = db.recover_with(&log, &target).await.unwrap();
    assert!(id != later.id && restored.steps() == "1,2", "{id}");
    // When it is named, it is refused.
    let reader = db.reader(&later.id).await.with_log(Some(log));
    let (target, cx) = (into(&db.archive.join("x"), Moment::Latest), context());
    let error = db.engine().restorer.plan_restore(&cx, &reader, &target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("timeline 1 does not come from the base backup"), "{error:?}");
    let both = db.log().along(Timeline::new("2").unwrap());
    let restored = Restored::new(&db.server);
    let target = RestoreTarget { afterwards: Afterwards::Start, ..into(&restored.target(), Moment::Latest) };
    let (id, _) = db.recover_with(&both, &target).await.unwrap();
    assert!(id == later.id && restored.steps() == "1,20,21", "{id}");
}
