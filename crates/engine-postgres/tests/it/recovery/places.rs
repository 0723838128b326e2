//! Where a cluster goes: beside the server, to where it was, over what is there, with its tablespaces.

use std::collections::BTreeMap;

use backup_core::engine::{Afterwards, Existing, Moment, Place, RestoreTarget};
use backup_core::error::ErrorKind;

use super::support::{Restored, SmallDisk, archived, into};

const SPACED: &str = "select count(*), sum(n) from spaced";

#[tokio::test]
async fn tablespaces_go_where_they_are_told_and_never_to_live_ones() {
    let db = archived("");
    let space = db.server.make_folder("space one");
    db.server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    db.server.sql("postgres", "create table spaced tablespace fast as select n from generate_series(1, 5000) n");
    db.back_up().await;
    db.step(1);
    db.server.sql("postgres", "insert into spaced values (7000)");
    db.push().await;
    let restored = Restored::new(&db.server);
    db.recover(Moment::Latest, &restored.target()).await.unwrap();
    assert_eq!(restored.sql(SPACED), db.server.sql("postgres", SPACED));
    let place = restored.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
    assert!(place.starts_with(restored.target().to_str().unwrap()), "{place}");

    let told = Restored::new(&db.server);
    let new = told.target().join("elsewhere");
    let relocate = BTreeMap::from([(space.clone(), new.clone())]);
    let target = RestoreTarget { relocate, afterwards: Afterwards::Start, ..into(&told.target(), Moment::Latest) };
    db.recover_as(&target).await.unwrap();
    let place = told.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
    assert_eq!((place.as_str(), told.sql(SPACED)), (new.to_str().unwrap(), db.server.sql("postgres", SPACED)));

    let third = Restored::new(&db.server);
    let relocate = BTreeMap::from([("/nowhere".into(), new)]);
    let target = RestoreTarget { relocate, ..into(&third.target(), Moment::Latest) };
    let error = db.recover_as(&target).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.remedy().unwrap().contains("space one"), "{error:?}");
    assert!(!third.target().exists());
}

#[tokio::test]
async fn it_comes_back_to_where_it_was_and_only_what_differs_is_written() {
    let db = archived("");
    let space = db.server.make_folder("space");
    db.server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    db.server.sql("postgres", "create table spaced tablespace fast as select n from generate_series(1, 5000) n");
    db.back_up().await;
    db.step(1);
    let good = db.lsn();
    db.step(2);
    db.push().await;
    let original = RestoreTarget { moment: good, ..RestoreTarget::default() };

    // The server runs: nothing replaces it, not even by force.
    for existing in [Existing::Refuse, Existing::Replace, Existing::Update] {
        let error = db.recover_as(&RestoreTarget { existing, ..original.clone() }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    }
    assert_eq!(db.server.sql("postgres", "select max(n) from steps"), "2");
    db.server.stop_immediately();
    let error = db.recover_as(&original).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");

    for (existing, kept) in [(Existing::Update, true), (Existing::Replace, false)] {
        let target = RestoreTarget { existing, afterwards: Afterwards::Start, ..original.clone() };
        let (_, report) = db.recover_as(&target).await.unwrap();
        let said = report.restored.iter().any(|line| line.contains("were the same already"));
        assert_eq!(said, kept, "{report:?}");
        assert_eq!(db.server.sql("postgres", "select string_agg(n::text, ',') from steps"), "1");
        assert_eq!(db.server.sql("postgres", SPACED), "5000|12502500");
        assert_eq!(db.server.sql("postgres", "show archive_mode"), "on", "it is the server");
        let auto = std::fs::read_to_string(db.server.data_folder().join("postgresql.auto.conf")).unwrap();
        assert!(!auto.contains("recovery_target") && auto.contains("archive_command"), "{auto}");
        db.server.stop_immediately();
    }
}

#[tokio::test]
async fn a_folder_of_something_else_is_not_emptied_and_a_full_one_is_told() {
    let db = archived("");
    db.back_up().await;
    db.push().await;
    let restored = Restored::new(&db.server);
    std::fs::create_dir_all(restored.data()).unwrap();
    std::fs::write(restored.data().join("letter"), "dear").unwrap();
    for existing in [Existing::Refuse, Existing::Replace, Existing::Update] {
        let target = RestoreTarget { existing, ..into(&restored.target(), Moment::Latest) };
        let error = db.recover_as(&target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    }
    assert_eq!(std::fs::read_to_string(restored.data().join("letter")).unwrap(), "dear");

    let small = SmallDisk::mount(4);
    let target = into(&small.path().join("x"), Moment::Latest);
    assert_eq!(target.place, Place::Folder(small.path().join("x")));
    let error = db.recover_as(&target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0, "before the first write");
}
