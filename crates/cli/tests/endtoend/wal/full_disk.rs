//! Full disks: at the receiver of the log, and where a base backup is restored to.

use std::path::Path;

use backup_testkit::PrivatePostgres;

use super::{Archive, Receiver, base_backup, recover, streamed};
use crate::full_disk::SmallDisk;
use crate::support::{Machine, Readers, files_below, run_tool, text, tool};

/// Log that hardly compresses: so many megabytes, about.
fn write_log(server: &PrivatePostgres, megabytes: u32) {
    let rows = format!("insert into t select md5(g::text) from generate_series(1, {megabytes} * 10000) g");
    server.sql("postgres", &rows);
}

const CONFIRMED: &str = "(select restart_lsn from pg_replication_slots where slot_name = 'stackward_main_db')";

/// Receives while the folder is on a disk that is too small for what comes, and grows later; `told` is what is said of it.
fn receive_onto_a_full_disk(folder: &str, mebibytes: u32, told: &str) {
    let (server, archive) = streamed();
    let kept = archive.path("kept");
    if archive.path(folder).exists() {
        std::fs::rename(archive.path(folder), &kept).unwrap();
    }
    let disk = SmallDisk::mount(&archive.path(folder), mebibytes);
    if kept.exists() {
        run_tool(tool("cp").arg("-a").arg(kept.join(".")).arg(archive.path(folder)));
    }
    let temporary = if folder == "repository" { std::env::temp_dir() } else { archive.path(folder) };
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (note text)");
    let base = archive.path("base");
    base_backup(&server, &base);
    receiver.was_sent(&server);
    receiver.stop();
    // More than fits at any moment waits for it.
    write_log(&server, 80);
    let mut receiver = Receiver::start_with(&archive, &temporary);
    let said = receiver.says("No space left on device");
    assert!(said.contains(told), "{said}");
    assert!(receiver.says("trying again in").len() < 2000, "it says when");
    // What is not archived is not confirmed: the server keeps it.
    let end = archive_end(&archive);
    assert_eq!(server.sql("postgres", &format!("select {CONFIRMED} <= '{end}'")), "t", "{end}");
    assert_eq!(server.sql("postgres", &format!("select {CONFIRMED} < pg_current_wal_flush_lsn() - 16777216")), "t");
    assert!(files_below(&archive.path("repository/logs")).iter().all(|file| !file.display().to_string().contains('#')));
    // It goes on by itself.
    disk.grow(400);
    write_log(&server, 1);
    let lsn = receiver.has_archived(&server);
    server.sql("postgres", "create table passed ()");
    receiver.was_sent(&server);
    assert_eq!(receiver.stop().0, 0);
    let status = archive.machine.json("wal status");
    assert_eq!(status["sources"][0]["timelines"][0]["holes"], serde_json::json!([]), "{status}");
    let expected = server.sql("postgres", "select count(*), md5(string_agg(note, '' order by note)) from t");
    run_tool(tool("chown").args(["-R", "postgres:postgres"]).arg(archive.machine.root()));
    let target =
        format!("recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = off\nrecovery_target_action = 'promote'");
    let recovered = recover(&archive, &base, &target);
    let found = recovered.sql("postgres", "select count(*), md5(string_agg(note, '' order by note)) from t");
    assert_eq!(found, expected);
}

/// Where the archive ends, or its first hole begins: of two segments on their way, the second may fit and the first not yet.
fn archive_end(archive: &Archive) -> String {
    let printed = text(&archive.machine.run("wal status --json").stdout);
    let status: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let timeline = &status["sources"][0]["timelines"][0];
    match timeline["holes"][0]["first"].as_str() {
        Some(name) => format!("0/{}000000", &name[22..]),
        None => timeline["end"].as_str().unwrap().to_owned(),
    }
}

#[test]
fn a_receiver_waits_for_room_in_the_repository() {
    receive_onto_a_full_disk("repository", 12, "is not archived");
}

#[test]
fn a_receiver_waits_for_room_for_what_it_keeps_meanwhile() {
    receive_onto_a_full_disk("temporary", 12, "cannot keep the log until it is archived");
}

/// Restores that do not fit leave nothing, name the place, and hurt nothing.
#[test]
fn a_restore_of_a_base_backup_onto_a_full_disk_leaves_nothing() {
    let server = PrivatePostgres::start();
    let space = server.make_folder("space");
    server.sql("postgres", &format!("create tablespace large location '{}'", space.display()));
    server.sql("postgres", "create table t tablespace large as select md5(n::text) from generate_series(1, 500000) n");
    let sources =
        format!("  db:\n    postgres: {{ socket: {}, modes: [physical] }}\n", server.socket_folder().display());
    let machine = Machine::with_sources(&sources, Readers::Key);
    machine.good("init");
    machine.good("backup");
    let refused = |line: &str, place: &Path, words: &str| {
        let (code, said) = machine.bad(line);
        assert_eq!(code, 1, "{line}: {said}");
        for words in [words, &place.display().to_string(), "hint: free some space"] {
            assert!(said.contains(words), "{line}: `{words}` is missing: {said}");
        }
    };
    let disk = SmallDisk::mount(&machine.path("small"), 12);
    let (small, mine) = (machine.path("small"), machine.path("small/mine"));
    std::fs::write(&mine, "not to be touched").unwrap();
    // It is known before the first write.
    refused("restore --target small/out", &small, "do not fit into");
    assert_eq!(files_below(&small), std::slice::from_ref(&mine));
    // Each disk is looked at for what comes onto it.
    let moved = format!("restore --target out --tablespace {}={}", space.display(), small.join("space").display());
    refused(&moved, &small, "do not fit into");
    assert_eq!(files_below(&small), std::slice::from_ref(&mine));
    assert!(!machine.path("small/space").exists() && !machine.path("out/db").exists());
    // What is written over is not looked at; no server can start on what is left.
    std::fs::create_dir_all(machine.path("small/over/db/data")).unwrap();
    refused("restore --target small/over --force", &small.join("over"), "No space left on device");
    assert!(!machine.path("small/over/db/data/global/pg_control").exists() && mine.exists());
    machine.good("verify --all --depth structure");
    disk.grow(400);
    machine.good("restore --target small/over --force");
    machine.good(&moved);
    assert!(machine.path("small/space").read_dir().unwrap().count() > 0);
}
