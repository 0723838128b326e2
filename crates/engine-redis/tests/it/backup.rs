//! Backups: every way in which a server hands out an RDB, and what belongs to a server besides.

use backup_core::error::ErrorKind;
use backup_core::evidence::EvidenceRecord;
use backup_core::position::Position;
use backup_testkit::PrivateRedis;

use crate::support::{SAMPLE, back_up, context, engine, sample};

/// The counts of [`SAMPLE`] and the filling.
const COUNTS: [(&str, &str, u64); 9] = [
    ("keys of db0", "string", 3000 + 5),
    ("keys of db0", "list", 1),
    ("keys of db0", "set", 2),
    ("keys of db0", "zset", 1),
    ("keys of db0", "hash", 1),
    ("keys of db0", "stream", 1),
    ("keys of db9", "string", 1),
    ("keys of db15", "string", 1),
    ("functions", "libraries", 1),
];

#[tokio::test]
async fn a_snapshot_counts_everything_and_a_drill_agrees() {
    let server = sample(&[]);
    let engine = engine(&server, "");
    let saved = back_up(&engine).await.unwrap();
    for (group, item, count) in COUNTS {
        assert_eq!(saved.record().fingerprint.0[group][item], count, "{group} {item}");
    }
    assert!(matches!(saved.record().position, Some(Position::Replication { .. })));
    assert_eq!(saved.record().server.as_ref().unwrap().product, "Redis");
    assert_eq!(saved.detail("way"), "replication");
    let from = saved.reader().await;
    let report = engine.verifier.verify(&context(), &from).await.unwrap();
    assert_eq!(report.findings, []);
    let drill = engine.driller.drill(&context(), &from).await.unwrap();
    assert_eq!(drill.findings, Vec::<String>::new());
    assert_eq!(drill.items, saved.record().fingerprint.0.values().flat_map(|group| group.values()).sum::<u64>());
    assert!(!server.data_folder().join("dump.rdb").exists(), "the server's own dump file is not written");
}
