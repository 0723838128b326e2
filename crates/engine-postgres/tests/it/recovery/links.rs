//! A log on a disk of its own, and a folder that several versions share for their tablespaces: in place, nothing is touched that is
//! not this cluster's, and links stay links.

use std::os::unix::fs::symlink;

use backup_core::engine::{Afterwards, Existing, Moment, RestoreTarget};
use backup_core::error::ErrorKind;

use super::support::{archived, into};
use crate::support::context;

#[tokio::test]
async fn only_what_is_this_clusters_is_removed_and_links_stay() {
    let db = archived("");
    let space = db.server.make_folder("space");
    db.server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    db.server.sql("postgres", "create table spaced tablespace fast as select n from generate_series(1, 5000) n");
    // Another version's part of the same folder, and something of nobody's.
    let others = [space.join("PG_14_202107181/5/1"), space.join("letter"), space.join("PG_15_1/x")];
    for other in &others {
        std::fs::create_dir_all(other.parent().unwrap()).unwrap();
        std::fs::write(other, "dear").unwrap();
    }
    // The log on another disk, which has something of its own.
    db.server.sql("postgres", "checkpoint");
    db.server.stop_immediately();
    let (log, disk) = (db.server.data_folder().join("pg_wal"), db.server.socket_folder().join("disk"));
    std::fs::rename(&log, &disk).unwrap();
    symlink(&disk, &log).unwrap();
    std::fs::create_dir(disk.join("lost+found")).unwrap();
    std::fs::write(disk.join("lost+found/keep"), "kept").unwrap();
    db.server.launch();
    let saved = db.back_up().await;
    assert_eq!(saved.sources[0].details["physical"]["log_folder"], disk.to_str().unwrap());
    db.step(1);
    let good = db.lsn();
    db.step(2);
    db.push().await;

    let (engine, reader) = (db.engine(), db.reader(&saved.id).await);
    let plan = async |target: &RestoreTarget| {
        engine.restorer.plan_restore(&context(), &reader, target).await.map(|plan| plan.warnings.join("\n"))
    };
    let elsewhere = plan(&into(&db.server.socket_folder().join("new"), Moment::Latest)).await.unwrap();
    assert!(elsewhere.contains(&format!("`pg_wal` was a link to {}", disk.display())), "{elsewhere}");

    db.server.stop_immediately();
    for existing in [Existing::Update, Existing::Replace] {
        let afterwards = Afterwards::Start;
        let target = RestoreTarget { existing, afterwards, moment: good.clone(), ..RestoreTarget::default() };
        let told = plan(&target).await.unwrap();
        assert!(told.contains(&format!("stays a link to {}", disk.display())), "{told}");
        std::fs::write(disk.join("0000000900000000000000FF"), "").unwrap();
        std::fs::write(space.join("PG_15_1/x"), "dear").unwrap();
        db.recover_as(&target).await.unwrap();
        assert_eq!(db.server.sql("postgres", "select string_agg(n::text, ',') from steps"), "1");
        assert_eq!(db.server.sql("postgres", "select count(*) from spaced"), "5000");
        assert_eq!(std::fs::read_link(&log).unwrap(), disk);
        assert_eq!(std::fs::read_to_string(disk.join("lost+found/keep")).unwrap(), "kept");
        assert!(!disk.join("0000000900000000000000FF").exists(), "what was there of the log is gone");
        assert!(disk.join("stackward-start.log").exists(), "no base backup has it");
        for other in &others {
            assert_eq!(std::fs::read_to_string(other).unwrap(), "dear", "{existing:?}: {}", other.display());
        }
        db.server.stop_immediately();
    }

    // The log of another server there: nobody empties it.
    let foreign = disk.join("000000010000000000000001");
    std::fs::write(&foreign, [7; 1 << 13]).unwrap();
    for existing in [Existing::Update, Existing::Replace] {
        let error = plan(&RestoreTarget { existing, ..RestoreTarget::default() }).await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::AlreadyExists && error.to_string().contains("is of the server"),
            "{error:?}"
        );
    }
    assert!(foreign.exists() && db.server.data_folder().join("global/pg_control").exists());
}
