//! Timelines: a promotion makes a new one, and recoveries follow it.

use backup_core::engine::Moment;
use backup_core::error::ErrorKind;

use super::support::{Restored, archive_into, archived, flush, into, push_all};
use crate::support::open_folder;

#[tokio::test]
async fn a_recovery_follows_the_newest_timeline_and_wants_its_history() {
    let db = archived("");
    db.back_up().await;
    db.step(1);
    let fork = db.lsn();
    db.step(2);
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

    // Without its history nobody knows where the second timeline comes from.
    let without = db.archive_with(|name, content| (name != "00000002.history").then_some(content)).await;
    let home = open_folder();
    let folder = home.path().join("x");
    let error = db.recover_with(&without, &into(&folder, Moment::Latest)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete, "{error:?}");
    assert!(error.to_string().contains("00000002.history") && !folder.exists(), "{error:?}");
}
