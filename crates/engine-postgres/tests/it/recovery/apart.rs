//! A copy reaches nobody: not when Stackward starts it, not when it is stopped and started by hand, not when it is moved, not in
//! a drill; and what a drill says of it holds for the copy that is started.

use std::path::{Path, PathBuf};

use backup_core::engine::{Afterwards, Existing, Moment, RestoreTarget};
use backup_core::error::ErrorKind;
use backup_testkit::{LiveGuard, PrivatePostgres};

use super::support::{ARCHIVING, Archived, Restored, SMALL_SEGMENTS, archived, archived_by, into};
use crate::support::{context, drill};

const BLOCK: (&str, &str) = ("# stackward: a copy, kept apart", "# stackward: end of what keeps the copy apart\n");

/// A server whose configuration leads out of its data directory in many ways, and that subscribes to `publisher`.
fn outward(publisher: &PrivatePostgres) -> (Archived, PathBuf) {
    publisher.sql("postgres", "create table letters (n int primary key); create publication letters for table letters");
    let db = archived_by(PrivatePostgres::with_initdb(SMALL_SEGMENTS, ARCHIVING), "");
    let outside = db.server.make_folder("outside");
    let libraries = PathBuf::from(db.server.sql("postgres", "select setting from pg_config where name = 'PKGLIBDIR'"));
    std::fs::copy(libraries.join("auth_delay.so"), outside.join("away.so")).unwrap();
    let shown = outside.display();
    let live = format!(
        "external_pid_file = '{shown}/live.pid'\nlogging_collector = on\nlog_directory = '{shown}/log'\nlog_filename = 'live.log'\n\
         dynamic_library_path = '$libdir:{shown}'\nshared_preload_libraries = 'auto_explain, away'\nwork_mem = 7MB\n"
    );
    std::fs::write(outside.join("live.conf"), live).unwrap();
    let main = db.server.data_folder().join("postgresql.conf");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, format!("{text}include '{shown}/live.conf'\n")).unwrap();
    db.server.sql("postgres", "checkpoint");
    db.server.stop_immediately();
    db.server.launch();
    assert!(outside.join("live.pid").exists() && outside.join("log/live.log").exists());
    db.server.sql("postgres", "create table letters (n int primary key)");
    let connection = format!("host={} user=postgres dbname=postgres", publisher.socket_folder().display());
    db.server.sql("postgres", &format!("create subscription letters connection '{connection}' publication letters"));
    publisher.sql("postgres", "insert into letters values (1)");
    while db.server.sql("postgres", "select count(*) from letters") != "1" {}
    (db, outside)
}

/// Starts the copy as its operator would, and waits until it takes connections.
fn start_by_hand(like: &PrivatePostgres, data: &Path) {
    let mut start = like.program("pg_ctl");
    let started = start.args(["start", "-s", "-w", "-l", "/dev/null", "-D"]).arg(data).status().unwrap();
    assert!(started.success());
    // Without hot standby, `pg_ctl` does not wait for the end of a recovery.
    loop {
        let text = std::fs::read_to_string(data.join("postmaster.pid")).expect("it runs");
        if text.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
            return;
        }
    }
}

fn keeps_to_itself(copy: &Restored<'_>, steps: &str) {
    for (setting, value) in [
        ("archive_mode", "off"),
        ("archive_command", "(disabled)"),
        ("listen_addresses", ""),
        ("unix_socket_directories", "stackward-run"),
        ("external_pid_file", ""),
        ("logging_collector", "off"),
        ("log_directory", "log"),
        ("dynamic_library_path", "$libdir"),
        ("shared_preload_libraries", "\"auto_explain\""),
        ("work_mem", "7MB"),
    ] {
        assert_eq!(copy.sql(&format!("show {setting}")), value, "{setting}");
    }
    assert_eq!(copy.steps(), steps);
    let workers = "select count(*) from pg_stat_activity where backend_type like 'logical%'";
    assert_eq!((copy.sql(workers).as_str(), copy.sql("select count(*) from letters").as_str()), ("0", "1"));
}

#[tokio::test]
async fn a_copy_reaches_nobody_whoever_starts_it() {
    let publisher = PrivatePostgres::with_settings(&[("wal_level", "logical")]);
    let (db, outside) = outward(&publisher);
    db.back_up().await;
    db.step(1);
    db.push().await;
    publisher.sql("postgres", "insert into letters values (2)");
    while db.server.sql("postgres", "select count(*) from letters") != "2" {}
    let live = LiveGuard::all();

    let copy = Restored::new(&db.server);
    let engine = db.engine();
    let target = RestoreTarget { afterwards: Afterwards::Start, ..into(&copy.target(), Moment::Latest) };
    let id = db.candidates().await[0].id.clone();
    let (reader, cx) = (db.reader(&id).await, context());
    let plan = engine.restorer.plan_restore(&cx, &reader, &target).await.unwrap();
    let told = plan.warnings.join("\n");
    let shown = outside.display();
    for word in [
        BLOCK.0,
        &format!("`include = '{shown}/live.conf'`"),
        &format!("`external_pid_file = '{shown}/live.pid'` ({shown}/live.conf:1)"),
        &format!("`log_directory = '{shown}/log'`"),
        "`dynamic_library_path = ",
        "the library `away` of `shared_preload_libraries`, which is not installed here",
    ] {
        assert!(told.contains(word), "{word} in {told}");
    }
    let report = engine.restorer.restore(&cx, &reader, plan).await.unwrap();
    assert!(report.warnings.join("\n").contains("external_pid_file"), "{report:?}");
    keeps_to_itself(&copy, "1");

    // Stopped and started by hand, with nothing but what stands in its own files.
    let mut stop = db.server.program("pg_ctl");
    assert!(stop.args(["stop", "-s", "-w", "-m", "fast", "-D"]).arg(copy.data()).status().unwrap().success());
    start_by_hand(&db.server, &copy.data());
    keeps_to_itself(&copy, "1");
    copy.stop();

    // One that Stackward never started, after it was moved.
    let moved = Restored::new(&db.server);
    let first = moved.target().with_file_name("first");
    db.recover_as(&into(&first, Moment::Latest)).await.unwrap();
    std::fs::rename(&first, moved.target()).unwrap();
    start_by_hand(&db.server, &moved.data());
    keeps_to_itself(&moved, "1");
    moved.stop();

    let report = drill(&engine, &reader).await;
    assert_eq!(report.findings, [] as [String; 0], "{report:?}");
    live.check();
    drop(publisher);

    // The block is all that keeps it apart: without it, it is the server.
    let auto = copy.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    let (before, rest) = text.split_once(BLOCK.0).unwrap();
    let (_, after) = rest.split_once(BLOCK.1).unwrap();
    assert!(before.contains("archive_command") && !format!("{before}{after}").contains("stackward"), "{text}");
    std::fs::write(&auto, format!("{before}{after}")).unwrap();
    db.server.stop_immediately();
    start_by_hand(&db.server, &copy.data());
    assert_eq!(db.server.sql("postgres", "show archive_mode"), "on");
    assert_eq!(db.server.sql("postgres", "show shared_preload_libraries"), "auto_explain, away");
    copy.stop();
}

#[tokio::test]
async fn what_stops_a_copy_stops_the_drill_and_its_words_are_of_this_start() {
    let db = archived("");
    let main = db.server.data_folder().join("postgresql.conf");
    let text = std::fs::read_to_string(&main).unwrap();
    // The server would not come up with it either; it was never asked to.
    std::fs::write(&main, format!("{text}work_mem = nonsense\n")).unwrap();
    db.back_up().await;
    db.push().await;
    let id = db.candidates().await[0].id.clone();
    let report = drill(&db.engine(), &db.reader(&id).await).await;
    assert!(report.findings.join("\n").contains("work_mem"), "{report:?}");

    let copy = Restored::new(&db.server);
    let target = RestoreTarget { afterwards: Afterwards::Start, ..into(&copy.target(), Moment::Latest) };
    let mut words = Vec::new();
    for existing in [Existing::Refuse, Existing::Replace] {
        let error = db.recover_as(&RestoreTarget { existing, ..target.clone() }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool, "{error:?}");
        words.push(error.chain().matches("work_mem").count());
    }
    assert!(words[0] > 0 && words[0] == words[1], "what an earlier start said is not said again: {words:?}");
    assert!(!copy.data().join("stackward-start.log").exists() && copy.target().join("stackward-start.log").exists());
}
