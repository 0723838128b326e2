//! Followers and what befalls them: servers that stop and come back, or do not; a second follower; kill -9; a slot that lost
//! its log; a repository that is not there any more.

use std::process::Output;

use backup_testkit::PrivatePostgres;
use serde_json::Value;

use super::{Archive, Receiver, streamed, switch, text};
use crate::support::{Machine, Readers, stackward};

/// What `status` says of each source, and how `status --check` ends.
fn status(machine: &Machine) -> (i32, Vec<Value>) {
    let output = machine.run("status --check --json");
    let printed = text(&output.stdout);
    let last: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    (output.status.code().unwrap(), last["sources"].as_array().unwrap().clone())
}

fn problems(source: &Value) -> String {
    let problem = |problem: &Value| format!("{}: {}\n", problem["gravity"], problem["what"]).replace('"', "");
    source["problems"].as_array().unwrap().iter().map(problem).collect()
}

/// Looks again and again until the sources' followers are in these states.
fn wait_for_states(machine: &Machine, states: &[&str]) -> Vec<Value> {
    loop {
        let sources = status(machine).1;
        if sources.iter().map(|source| source["follower"]["state"].as_str().unwrap()).eq(states.iter().copied()) {
            return sources;
        }
    }
}

fn follow(machine: &Machine) -> Receiver {
    Receiver::run({
        let mut command = stackward(machine.root(), &["--quiet", "follow"]);
        command.stdout(std::process::Stdio::null());
        command
    })
}

/// What `pg_controldata` calls so.
fn control(server: &PrivatePostgres, field: &str) -> String {
    let mut command = server.program("pg_controldata");
    let output: Output = command.arg(server.data_folder()).env("LC_ALL", "C").output().unwrap();
    let said = text(&output.stdout);
    let line = said.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn wal_status(archive: &Archive) -> Value {
    let printed = text(&archive.machine.run("wal status --json").stdout);
    let status: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    status["sources"][0].clone()
}

/// Where the archive ends.
fn archive_end(archive: &Archive) -> backup_core::position::Lsn {
    wal_status(archive)["timelines"][0]["end"].as_str().unwrap().parse().unwrap()
}

/// How a server is stopped.
type Stop = fn(&PrivatePostgres);

/// Every orderly restart: the receiver lives on, and has the log up to the record that the server wrote last.
#[test]
fn a_server_that_stops_in_whatever_way_is_waited_for() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    let stops: [(&str, Stop); 3] = [
        ("fast", PrivatePostgres::stop_fast),
        ("smart", PrivatePostgres::stop_smart),
        ("immediate", PrivatePostgres::stop_immediately),
    ];
    for (how, stop) in stops {
        server.sql("postgres", "insert into t select generate_series(1, 10000)");
        stop(&server);
        if how != "immediate" {
            // The server waited for it.
            let checkpoint: backup_core::position::Lsn =
                control(&server, "Latest checkpoint location").parse().unwrap();
            assert!(archive_end(&archive) > checkpoint, "{how}: {checkpoint}");
        }
        let waiting = wait_for_states(&archive.machine, &["waiting"]).remove(0);
        assert!(problems(&waiting).contains("warning: process"), "{how}: {waiting}");
        assert_eq!(receiver.0.try_wait().unwrap(), None, "{how}");
        server.launch();
        receiver.reads(&server);
        receiver.has_archived(&server);
        wait_for_states(&archive.machine, &["following"]);
    }
    let (code, said) = receiver.stop();
    assert_eq!(code, 0, "{said}");
    let status = wal_status(&archive);
    assert_eq!(
        (&status["timelines"][0]["holes"], &status["lag_bytes"]),
        (&serde_json::json!([]), &0.into()),
        "{status}"
    );
}

/// One server stays away: the other is followed on, and both are told. It comes back as another one, which no waiting mends:
/// the process ends, and the other source is closed in order.
#[test]
fn of_two_sources_one_stays_away_and_one_comes_back_as_another_server() {
    let settings =
        [("wal_level", "replica"), ("max_wal_senders", "4"), ("synchronous_commit", "local"), ("autovacuum", "off")];
    let (server, other) = (PrivatePostgres::with_settings(&settings), PrivatePostgres::with_settings(&settings));
    let source = |name: &str, server: &PrivatePostgres| {
        format!("  {name}:\n    postgres: {{ socket: {}, wal: stream }}\n", server.socket_folder().display())
    };
    let sources = source("main-db", &server) + &source("other-db", &other);
    let machine = Machine::with_sources(&sources, Readers::Key);
    machine.good("init");
    let mut follower = follow(&machine);
    wait_for_states(&machine, &["following", "following"]);
    other.stop_fast();
    let sources = wait_for_states(&machine, &["following", "waiting"]);
    assert!(problems(&sources[1]).contains("cannot be asked"), "{sources:?}");
    server.sql("postgres", "create table t (n int)");
    follower.has_archived(&server);
    let (data, kept) = (other.data_folder(), other.socket_folder().join("kept"));
    std::fs::create_dir(&kept).unwrap();
    std::fs::rename(data.join("postgresql.conf"), kept.join("postgresql.conf")).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    let mut initdb = other.program("initdb");
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "-D"]).arg(&data);
    crate::support::run_tool(&mut initdb);
    std::fs::copy(kept.join("postgresql.conf"), data.join("postgresql.conf")).unwrap();
    other.launch();
    let said = follower.said();
    assert!(said.contains("has the identifier"), "{said}");
    assert_eq!(follower.0.wait().unwrap().code(), Some(1), "{said}");
    let sources = wait_for_states(&machine, &["ended", "ended"]);
    assert!(problems(&sources[0]).contains("nobody follows it here"), "{sources:?}");
    assert!(problems(&sources[1]).contains("has the identifier"), "{sources:?}");
    let lsn = server.sql("postgres", "select pg_current_wal_flush_lsn()");
    let confirmed = "select restart_lsn from pg_replication_slots where slot_name = 'stackward_main_db'";
    assert_eq!(server.sql("postgres", &format!("select ({confirmed}) >= '{lsn}'")), "t", "it was closed in order");
}

/// Whoever comes second is told who was first, before anything is touched; a follower that was killed is seen at once, and
/// its place is free.
#[test]
fn a_second_follower_is_refused_and_a_killed_one_is_seen() {
    let (server, archive) = streamed();
    assert_eq!(status(&archive.machine).1[0]["follower"]["state"], "never");
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    receiver.has_archived(&server);
    let seen = wait_for_states(&archive.machine, &["following"]).remove(0);
    let pid = receiver.0.id();
    assert_eq!(seen["follower"]["pid"], pid, "{seen}");
    assert!(seen["follower"]["archived"]["segment"].as_str().unwrap().starts_with("00000001/"), "{seen}");
    let host = seen["follower"]["host"].as_str().unwrap();
    let reader = server.sql("postgres", "select active_pid from pg_replication_slots");
    for line in ["wal receive", "follow", "follow main-db"] {
        let (code, said) = archive.machine.bad(line);
        assert!(code == 11 && said.contains(&format!("by process {pid} on {host}")), "{line}: {code}: {said}");
    }
    assert_eq!(server.sql("postgres", "select active_pid from pg_replication_slots"), reader);
    receiver.kill();
    let died = wait_for_states(&archive.machine, &["died"]).remove(0);
    assert!(problems(&died).contains(&format!("process {pid} on {host}")), "{died}");
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    wait_for_states(&archive.machine, &["following"]);
    assert_eq!(receiver.stop().0, 0);
    wait_for_states(&archive.machine, &["ended"]);
}

/// Log that nobody reads is written until the slot has lost what it should keep.
fn lose(server: &PrivatePostgres) {
    while server.sql("postgres", "select wal_status from pg_replication_slots") != "lost" {
        server.sql("postgres", "insert into t select generate_series(1, 1000)");
        server.sql("postgres", "select pg_switch_wal()");
        server.sql("postgres", "checkpoint");
    }
}

/// The slot first, then the log, then the backup; and only then is it said that the gap is closed. Killed in between, the gap
/// is found again.
#[test]
fn after_a_lost_slot_recoveries_work_as_soon_as_the_gap_is_called_closed() {
    let server = PrivatePostgres::with_settings(&[
        ("wal_level", "replica"),
        ("max_wal_senders", "8"),
        ("max_slot_wal_keep_size", "'16MB'"),
        ("synchronous_commit", "local"),
    ]);
    let settings = format!("{{ socket: {}, modes: [physical], wal: stream }}", server.socket_folder().display());
    let archive = Archive::of(&settings);
    let machine = &archive.machine;
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    machine.good("backup");
    receiver.has_archived(&server);
    assert_eq!(status(machine).0, 0, "{:?}", status(machine));
    receiver.kill();
    lose(&server);
    let (code, sources) = status(machine);
    assert_eq!(code, 2, "{sources:?}");
    assert!(problems(&sources[0]).contains("critical: the replication slot"), "{sources:?}");
    let output = machine.run("wal status");
    assert_eq!(output.status.code(), Some(20));
    assert!(!text(&output.stdout).contains("is archived\n"), "{}", text(&output.stdout));

    // Killed while it takes the backup.
    let mut receiver = Receiver::start(&archive);
    let said = receiver.says("the archived log has a gap");
    assert!(said.contains("it is made anew"), "{said}");
    receiver.reads(&server);
    receiver.kill();
    assert_eq!(machine.snapshots().len(), 1);

    let mut receiver = Receiver::start(&archive);
    receiver.says("the gap is closed");
    assert_eq!(machine.snapshots().len(), 2);
    server.sql("postgres", "insert into t values (-1)");
    receiver.has_archived(&server);
    assert_eq!(receiver.stop().0, 0);
    let drilled = machine.json("drill --source main-db");
    assert!(drilled["sources"][0]["reached"].is_string(), "{drilled}");
    // And it is not taken again.
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "insert into t values (-2)");
    receiver.has_archived(&server);
    receiver.stop();
    assert_eq!(machine.snapshots().len(), 2);
}

/// An archiver that fails is told with its reason and its distance.
#[test]
fn an_archiver_that_fails_is_a_warning_with_the_reason() {
    let archive = Archive::new();
    let server = archive.server();
    let sources = format!("  main-db:\n    postgres: {{ socket: {}, wal: push }}\n", server.socket_folder().display());
    let plan = std::fs::read_to_string(archive.path("stackward.yaml")).unwrap();
    let plan = plan.split_once("sources:\n").unwrap().0.to_owned() + "sources:\n" + &sources;
    std::fs::write(archive.path("stackward.yaml"), plan).unwrap();
    server.sql("postgres", "create table t (n int)");
    switch(&server);
    archive.good(&["backup"]);
    let (code, sources) = status(&archive.machine);
    assert_eq!((code, sources[0]["follower"].is_null()), (0, true), "{sources:?}");
    server.set("archive_command", "'false'");
    for _ in 0..5 {
        server.sql("postgres", "insert into t values (1)");
        server.sql("postgres", "select pg_switch_wal()");
    }
    while server.sql("postgres", "select failed_count > 0 from pg_stat_archiver") != "t" {}
    let (code, sources) = status(&archive.machine);
    let said = problems(&sources[0]);
    assert!(code == 1 && said.contains("warning: the server cannot archive 0000000100000"), "{code}: {said}");
    assert!(said.contains("MiB of log that the archive does not have"), "{said}");
}

/// The repository goes away under a running follower, and an empty folder stands in its place, as where a disk is mounted no
/// more: nothing is written there, nothing confirmed, and the process ends with the code for it.
#[test]
fn nothing_is_confirmed_into_a_place_that_is_not_the_repository() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    receiver.has_archived(&server);
    std::fs::rename(archive.path("repository"), archive.path("elsewhere")).unwrap();
    std::fs::create_dir(archive.path("repository")).unwrap();
    server.sql("postgres", "insert into t select generate_series(1, 1000)");
    server.sql("postgres", "select pg_switch_wal()");
    let said = receiver.said();
    assert_eq!(receiver.0.wait().unwrap().code(), Some(10), "{said}");
    assert_eq!(std::fs::read_dir(archive.path("repository")).unwrap().count(), 0, "{said}");
    std::fs::remove_dir(archive.path("repository")).unwrap();
    std::fs::rename(archive.path("elsewhere"), archive.path("repository")).unwrap();
    let end = archive_end(&archive);
    let confirmed = "select restart_lsn from pg_replication_slots where slot_name = 'stackward_main_db'";
    assert_eq!(server.sql("postgres", &format!("select ({confirmed}) <= '{end}'")), "t", "{said}");
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    receiver.has_archived(&server);
    assert_eq!(receiver.stop().0, 0);
    assert_eq!(wal_status(&archive)["timelines"][0]["holes"], serde_json::json!([]));
}
