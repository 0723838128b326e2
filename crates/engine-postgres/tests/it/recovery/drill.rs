//! Drills of base backups: to the end of the log, and what they find.

use super::support::archived;
use crate::support::{amcheck_says, drill};

#[tokio::test]
async fn a_drill_recovers_to_the_end_of_the_log_and_finds_what_is_wrong() {
    let db = archived("");
    db.back_up().await;
    db.step(1);
    db.push().await;
    let segment = db.segment();
    db.step(2);
    db.push().await;
    db.step(3);
    db.push().await;
    let last = db.server.sql("postgres", "select floor(extract(epoch from max(at)))::bigint from steps");
    let id = db.candidates().await[0].id.clone();
    let report = drill(&db.engine(), &db.reader(&id).await).await;
    assert_eq!(report.findings, [] as [String; 0], "{report:?}");
    assert!(report.reached.unwrap().as_second() >= last.parse().unwrap(), "{report:?}");
    let checked = report.checked.join("\n");
    for word in
        [amcheck_says(&db.server), "pg_checksums found every page", "5 tables in 2 databases have", "timeline 1"]
    {
        assert!(checked.contains(word), "`{word}` in {checked}");
    }
    assert!(report.bytes > 1_000_000 && !report.restore_time.is_zero());
    let counted = &report.fingerprint.0["tables of postgres"];
    assert_eq!((counted["public.steps"], counted["public.pgbench_accounts"]), (3, 100_000));
    let history = db.server.sql("postgres", "select count(*) from pgbench_history");
    assert_eq!(counted["public.pgbench_history"].to_string(), history, "the end of the log, row by row");
    assert_eq!(report.items, 100_014 + counted["public.pgbench_history"]);

    // A hole: what is there is proven, and what is missing is told.
    let hole = db.archive_with(|name, content| (name != segment).then_some(content)).await;
    let report = drill(&db.engine(), &db.reader(&id).await.with_log(Some(hole))).await;
    assert!(report.findings.join("\n").contains(&segment), "{report:?}");
}
