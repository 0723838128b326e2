//! A PostgreSQL server that is brought back to a moment by the program, as an operator does it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backup_testkit::{LiveGuard, PrivatePostgres};
use rustix::process::{Pid, Signal};

use crate::support::{Machine, Readers, run, run_tool, text, tool};

/// Ends the segment that is being written, and waits until the server copied it.
fn switch(server: &PrivatePostgres) {
    let name = server.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
    while server.sql("postgres", "select coalesce(max(last_archived_wal), '') from pg_stat_archiver") < name {}
}

/// A server that archives into a folder, and a machine with a repository that backs it up.
fn archived() -> (PrivatePostgres, PathBuf, Machine) {
    let server =
        PrivatePostgres::with_initdb(&["--wal-segsize=1"], &[("archive_mode", "on"), ("archive_command", "'false'")]);
    let archive = server.make_folder("archive");
    server.set("archive_command", &format!("'cp %p {}/%f'", archive.display()));
    let (socket, bin) = (server.socket_folder().display().to_string(), server.bin().display().to_string());
    let machine = Machine::with_sources(
        &format!("  db:\n    postgres: {{ socket: {socket}, bin: {bin}, modes: [physical], wal: push }}\n"),
        Readers::Key,
    );
    std::fs::set_permissions(machine.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    machine.good("init");
    (server, archive, machine)
}

/// What the server archived so far, into the repository.
fn push(machine: &Machine, archive: &Path) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(archive).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in &files {
        machine.good(&format!("wal push {}", file.display()));
    }
}

/// A program of the server's, as its user.
fn program(server: &PrivatePostgres, name: &str) -> Command {
    let mut program = tool("runuser");
    program.args(["-u", "postgres", "--"]).arg(server.bin().join(name));
    program
}

fn ask(server: &PrivatePostgres, socket: &Path, sql: &str) -> String {
    run_tool(program(server, "psql").args(["-XqAt", "-c", sql, "-h"]).arg(socket)).trim().to_owned()
}

fn stop(server: &PrivatePostgres, data: &Path) {
    run_tool(program(server, "pg_ctl").args(["stop", "-s", "-m", "immediate", "-D"]).arg(data));
}

#[test]
fn a_dropped_table_is_brought_back_beside_the_server() {
    let (server, archive, machine) = archived();
    server.sql("postgres", "create table letters as select n from generate_series(1, 500) n");
    machine.good("backup");
    server.sql("postgres", "insert into letters values (501)");
    let lsn = server.sql("postgres", "select pg_current_wal_insert_lsn()");
    let zones = "select at::text || '+00', to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), (at + interval '1 hour')::text || '+01:00', \
                 (at at time zone 'UTC' at time zone 'Asia/Kathmandu')::text || ' Asia/Kathmandu' \
                 from (select clock_timestamp() at time zone 'utc' as at) t";
    let times = server.sql("postgres", zones);
    server.sql("postgres", "drop table letters");
    switch(&server);
    push(&machine, &archive);

    // The same moment, however its zone is written; without one it would be a guess.
    let dry = |time: &str| {
        let output =
            run(machine.root(), &["restore", "--source", "db", "--target", "out", "--dry-run", "--to-time", time]);
        (output.status.code().unwrap(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let told: Vec<(i32, String)> = times.split('|').map(dry).collect();
    assert!(told[0].0 == 0 && told[0].1.contains("stop before the record at"), "{told:?}");
    let steps = |told: &str| told.lines().filter(|line| line.contains("replay")).map(str::to_owned).collect::<Vec<_>>();
    assert!(told.iter().all(|other| steps(&other.1) == steps(&told[0].1)), "{told:?}");
    assert_eq!(dry("2026-11-20 14:30:00").0, 2);
    let (code, said) = dry("2199-01-01 00:00:00Z");
    assert!(code == 1 && said.contains("lies outside of what can be recovered: from 20"), "{said}");
    assert!(!machine.path("out").exists(), "nothing was written");

    let live = LiveGuard::all();
    machine.good(&format!("restore --source db --target out --to-lsn {lsn} --start"));
    live.check();
    let count = ask(&server, &machine.path("out/db/run"), "select count(*) from letters");
    stop(&server, &machine.path("out/db/data"));
    assert_eq!(count, "501");
}

#[test]
fn a_server_does_not_come_up_early_when_the_restore_is_killed() {
    let (server, archive, machine) = archived();
    machine.good("backup");
    server.sql("postgres", "create table filler as select n, repeat('x', 1000) as t from generate_series(1, 40000) n");
    let lsn = server.sql("postgres", "select pg_current_wal_insert_lsn()");
    switch(&server);
    push(&machine, &archive);
    let line = format!("restore --source db --target out --to-lsn {lsn} --start");
    let guard = LiveGuard::all();
    let mut restore = machine.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (data, pid) = (machine.path("out/db/data"), Pid::from_child(&restore));
    let log = || std::fs::read_to_string(data.with_file_name("stackward-start.log")).unwrap_or_default();
    while !log().contains("restored log file") {
        assert!(restore.try_wait().unwrap().is_none(), "it ended");
    }
    // It has some forty segments to hand over, eight at a time.
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    restore.wait().unwrap();
    while data.join("postmaster.pid").exists() {}
    let told = run_tool(program(&server, "pg_controldata").env("LC_ALL", "C").arg("-D").arg(&data));
    assert!(told.contains("in archive recovery") && !data.join("pg_wal/00000002.history").exists(), "{told}");
    assert!(log().contains("whoever handed over the log is gone; restore again with --delta"), "{}", log());

    let (code, said) = machine.bad(&line);
    assert!(code == 1 && said.contains("broke off before it reached its moment") && said.contains("--delta"), "{said}");
    machine.good(&format!("{line} --delta"));
    guard.check();
    let rows = ask(&server, &machine.path("out/db/run"), "select count(*), sum(n) from filler");
    stop(&server, &data);
    assert_eq!(rows, "40000|800020000");
}

#[test]
fn a_timeline_is_one_servers_and_needs_a_moment() {
    let machine = Machine::with_sources(
        "  tree:\n    files: { paths: [tree] }\n  db:\n    postgres: { socket: /nowhere }\n",
        Readers::Everybody,
    );
    for line in [
        "restore --to-latest --timeline 2",
        "restore --source tree --to-latest --timeline 2",
        "restore --source db --timeline 2",
        "drill --timeline 2",
        "drill --source tree --timeline 2",
    ] {
        let (code, said) = machine.bad(line);
        assert!(code == 2 && (said.contains("`--timeline`") || said.contains("--to-time")), "{line}: {said}");
    }
}
