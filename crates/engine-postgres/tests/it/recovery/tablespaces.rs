//! Tablespaces that the log makes: a copy makes them in folders of its own, and what the live server has in its folders stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use backup_core::engine::{Afterwards, Existing, Moment, RestorePlan, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_core::event::Event;
use backup_testkit::{LiveGuard, PrivatePostgres};

use super::support::{Archived, Restored, archived, into};
use crate::support::{back_up_while, context, drill, engine, restore};

const ROWS: &str = "select count(*), sum(n), max(note) from a";

/// A server that made tablespaces since its snapshot, and changed everything after the point `rp`.
struct Spacious {
    db: Archived,
    /// The folder of a tablespace that is there.
    live: PathBuf,
    /// That of one that was dropped, and of another after it.
    twice: PathBuf,
    databases: Vec<&'static str>,
}

async fn spacious() -> Spacious {
    let db = archived("");
    db.back_up().await;
    let (live, twice) = (db.server.make_folder("live space"), db.server.make_folder("twice"));
    let sql = |text: &str| db.server.sql("postgres", text);
    let make = |name: &str, folder: &Path| sql(&format!("create tablespace {name} location '{}'", folder.display()));
    make("live", &live);
    sql("create table a tablespace live as select n, 'before' as note from generate_series(1, 50000) n");
    make("dropped", &twice);
    sql("create table passing tablespace dropped as select n from generate_series(1, 1000) n");
    sql("drop table passing");
    sql("drop tablespace dropped");
    make("again", &twice);
    sql("create table b tablespace again as select 1 as n");
    // 15 was the first to have the choice.
    let strategies: &[(&str, &str)] =
        if db.server.major() < 15 { &[("copied", "")] } else { &[("copied", "file_copy"), ("logged", "wal_log")] };
    for (name, strategy) in strategies {
        let strategy = if strategy.is_empty() { String::new() } else { format!("strategy {strategy}") };
        sql(&format!("create database {name} tablespace live template template0 {strategy}"));
        db.server.sql(name, "create table t as select 7 as n");
    }
    sql("select pg_create_restore_point('rp')");
    sql("update a set n = n + 1, note = 'later'");
    sql("insert into b values (2)");
    sql("checkpoint");
    db.push().await;
    let databases = strategies.iter().map(|(name, _)| *name).collect();
    Spacious { db, live, twice, databases }
}

impl Spacious {
    async fn plan(&self, target: &RestoreTarget) -> backup_core::Result<RestorePlan> {
        let (engine, log) = (self.db.engine(), self.db.log());
        let id =
            engine.restorer.choose(&context(), &self.db.candidates().await, Some(&log), &target.moment).await.unwrap();
        engine.restorer.plan_restore(&context(), &self.db.reader(&id).await, target).await
    }

    fn oid(&self, name: &str) -> String {
        self.db.server.sql("postgres", &format!("select oid from pg_tablespace where spcname = '{name}'"))
    }

    /// What a server that is at the point has, and where.
    #[track_caller]
    fn is_at_the_point(&self, sql: &dyn Fn(&str, &str) -> String, live: &Path, again: &Path) {
        assert_eq!(sql("postgres", ROWS), "50000|1250025000|before");
        assert_eq!(sql("postgres", "select string_agg(n::text, ',') from b"), "1");
        for database in &self.databases {
            assert_eq!(sql(database, "select n from t"), "7", "{database}");
        }
        let places =
            "select string_agg(pg_tablespace_location(oid), '|' order by spcname) from pg_tablespace where oid > 16383";
        assert_eq!(sql("postgres", places), format!("{}|{}", again.display(), live.display()));
        let links = "select count(*) from pg_ls_dir('pg_tblspc')";
        assert_eq!(sql("postgres", links), "2", "what was dropped is gone");
    }
}

fn to_point(folder: &Path) -> RestoreTarget {
    into(folder, Moment::Name("rp".into()))
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn asks(server: &PrivatePostgres) -> impl Fn(&str, &str) -> String + '_ {
    |database, sql| server.sql(database, sql)
}

#[tokio::test]
async fn a_copy_makes_them_in_folders_of_its_own_and_the_living_is_not_touched() {
    let spacious = spacious().await;
    let Spacious { db, live, .. } = &spacious;
    let (live_oid, again_oid) = (spacious.oid("live"), spacious.oid("again"));
    let restored = Restored::new(&db.server);
    let below = |oid: &str| restored.target().join("tablespaces").join(oid);
    let target = RestoreTarget { afterwards: Afterwards::Start, ..to_point(&restored.target()) };

    // It is known before the first write.
    let steps = spacious.plan(&target).await.unwrap().steps.join("\n");
    let told = format!("make the tablespace {live_oid} in {}: the log makes it at", below(&live_oid).display());
    assert!(steps.contains(&told) && steps.contains(&format!("it was in {}", live.display())), "{steps}");
    assert!(steps.contains("and drops it again"), "{steps}");

    let guard = LiveGuard::all();
    let (id, report) = db.recover_as(&target).await.unwrap();
    guard.check();
    assert!(report.restored.join("\n").contains(&told), "{report:?}");
    spacious.is_at_the_point(&|database, sql| restored.sql_in(database, sql), &below(&live_oid), &below(&again_oid));
    assert_eq!(entries(&restored.target().join("tablespaces")), [&*live_oid, &*again_oid]);

    // Again, by hand.
    restored.stop();
    let guard = LiveGuard::all();
    let by_hand = db.server.on_data(&restored.data());
    guard.check();
    spacious.is_at_the_point(&asks(&by_hand), &below(&live_oid), &below(&again_oid));
    drop(by_hand);

    let (engine, reader) = (db.engine(), db.reader(&id).await);
    let guard = LiveGuard::all();
    let report = drill(&engine, &reader).await;
    guard.check();
    assert_eq!(report.findings, [] as [String; 0], "{report:?}");
    assert_eq!(report.fingerprint.0["tables of postgres"]["public.a"], 50_000);
    let checked = report.checked.join("\n");
    assert!(checked.contains("could write nothing outside of its folder"), "run the tests as root: {checked}");
}

#[tokio::test]
async fn elsewhere_they_go_where_they_are_told_and_in_place_to_where_they_were() {
    let spacious = spacious().await;
    let Spacious { db, live, twice, .. } = &spacious;
    let again_oid = spacious.oid("again");
    db.server.stop_immediately();

    // In place it would write over what is there.
    let moment = Moment::Name("rp".into());
    let in_place = RestoreTarget { moment, afterwards: Afterwards::Start, ..RestoreTarget::default() };
    assert_eq!(spacious.plan(&in_place).await.unwrap_err().kind(), ErrorKind::AlreadyExists);

    // On another machine there are no such folders.
    let away = |folder: &Path| folder.with_extension("away");
    for folder in [live, twice] {
        std::fs::rename(folder, away(folder)).unwrap();
    }
    let restored = Restored::new(&db.server);
    let new = restored.target().join("elsewhere");
    let relocate = BTreeMap::from([(live.clone(), new.clone())]);
    let target = RestoreTarget { relocate, ..to_point(&restored.target()) };
    db.recover_as(&target).await.unwrap();
    let by_hand = db.server.on_data(&restored.data());
    while by_hand.sql("postgres", "select pg_is_in_recovery()") == "t" {}
    spacious.is_at_the_point(&asks(&by_hand), &new, &restored.target().join("tablespaces").join(again_oid));
    drop(by_hand);
    assert!(!live.exists() && !twice.exists());
    for folder in [live, twice] {
        std::fs::rename(away(folder), folder).unwrap();
    }

    let relocate = BTreeMap::from([(PathBuf::from("/nowhere"), new)]);
    let nowhere = RestoreTarget { relocate, ..to_point(&restored.target().join("free")) };
    let error = spacious.plan(&nowhere).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.remedy().unwrap().contains("live space"), "{error:?}");

    for existing in [Existing::Update, Existing::Replace] {
        let (_, report) = db.recover_as(&RestoreTarget { existing, ..in_place.clone() }).await.unwrap();
        assert!(report.restored.join("\n").contains(&live.display().to_string()), "{report:?}");
        spacious.is_at_the_point(&asks(&db.server), live, twice);
        db.server.sql("postgres", "update a set note = 'spoiled'");
        db.server.sql("postgres", "checkpoint");
        db.server.stop_immediately();
    }
}

#[tokio::test]
async fn one_that_is_made_during_the_base_backup_is_known_by_the_log_that_it_brings() {
    let server = PrivatePostgres::start();
    let folder = server.make_folder("during");
    let (socket, program) = (server.socket_folder().to_owned(), server.bin().join("psql"));
    let (making, sql) = (OnceLock::new(), format!("create tablespace during location '{}'", folder.display()));
    let saved = back_up_while(&engine(&server, "modes: [physical]"), move |event| {
        if matches!(event, Event::Progress { .. }) {
            making.get_or_init(|| {
                let table =
                    "create table a tablespace during as select n, 'before' as note from generate_series(1, 5000) n";
                run(&program, &socket, &[&sql, table]);
            });
        }
    })
    .await
    .unwrap();
    assert_eq!(saved.record().details["physical"]["tablespaces"].as_array().unwrap().len(), 0);
    server.sql("postgres", "update a set note = 'later'");
    let restored = Restored::new(&server);
    let engine = engine(&server, "modes: [physical]");
    let guard = LiveGuard::all();
    restore(&engine, &saved.reader().await, &into(&restored.target(), Moment::Snapshot)).await.unwrap();
    let by_hand = server.on_data(&restored.data());
    guard.check();
    assert_eq!(by_hand.sql("postgres", ROWS), "5000|12502500|before");
    let place =
        by_hand.sql("postgres", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'during'");
    assert!(Path::new(&place).starts_with(restored.target().join("tablespaces")), "{place}");
    drop(by_hand);
    let reader = saved.reader().await;
    let guard = LiveGuard::all();
    let report = drill(&engine, &reader).await;
    guard.check();
    assert_eq!(report.findings, [] as [String; 0], "{report:?}");
    assert_eq!(report.fingerprint.0["tables of postgres"]["public.a"], 5000);
}

#[expect(clippy::disallowed_methods, reason = "what a user does meanwhile is done outside of any host")]
fn run(psql: &Path, socket: &Path, commands: &[&str]) {
    let mut psql = std::process::Command::new(psql);
    psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]).arg(socket);
    let status = psql.args(commands.iter().flat_map(|sql| ["-c", sql])).status().unwrap();
    assert!(status.success());
}
