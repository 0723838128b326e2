//! A PostgreSQL server that is brought back to a moment by the program, as an operator does it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use backup_testkit::PrivatePostgres;

use crate::support::{Machine, Readers, run, run_tool, text, tool};

/// Ends the segment that is being written, and waits until the server copied it.
fn switch(server: &PrivatePostgres) {
    let name = server.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
    while server.sql("postgres", "select coalesce(max(last_archived_wal), '') from pg_stat_archiver") < name {}
}

#[test]
fn a_dropped_table_is_brought_back_beside_the_server() {
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
    server.sql("postgres", "create table letters as select n from generate_series(1, 500) n");
    machine.good("backup");
    server.sql("postgres", "insert into letters values (501)");
    let lsn = server.sql("postgres", "select pg_current_wal_insert_lsn()");
    let zones = "select at::text || '+00', to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), (at + interval '1 hour')::text || '+01:00' \
                 from (select clock_timestamp() at time zone 'utc' as at) t";
    let times = server.sql("postgres", zones);
    server.sql("postgres", "drop table letters");
    switch(&server);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&archive).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in &files {
        machine.good(&format!("wal push {}", file.display()));
    }

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

    machine.good(&format!("restore --source db --target out --to-lsn {lsn} --start"));
    let mut psql = tool("runuser");
    psql.args(["-u", "postgres", "--"]).arg(server.bin().join("psql")).args([
        "-XqAt",
        "-c",
        "select count(*) from letters",
        "-h",
    ]);
    let count = run_tool(psql.arg(machine.path("out/db/run")));
    let mut stop = tool("runuser");
    stop.args(["-u", "postgres", "--"]).arg(server.bin().join("pg_ctl")).args(["stop", "-s", "-m", "immediate", "-D"]);
    run_tool(stop.arg(machine.path("out/db/data")));
    assert_eq!(count.trim(), "501");
}
