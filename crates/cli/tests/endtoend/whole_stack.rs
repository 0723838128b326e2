//! A whole stack under load: files, SQLite and PostgreSQL in one plan, destroyed and put back as one.

use backup_testkit::{LiveGuard, PrivatePostgres};

use crate::support::tree::describe;
use crate::support::{Machine, Readers};

/// pgbench moves money about: whatever the moment, all four sums are the same in a consistent copy.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history) \
    and (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history) \
    and (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history), \
    (select count(*) > 0 from pgbench_history)";

#[test]
fn a_stack_is_backed_up_under_load_destroyed_and_put_back() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "create role app; create database app owner app");
    server.pgbench("app", &["-i", "-q", "-s", "1"]);
    let socket = server.socket_folder().display();
    let sources = format!(
        "  uploads:\n    files: {{ paths: [uploads] }}\n  notes:\n    sqlite: {{ path: notes.db }}\n  \
         db:\n    postgres: {{ socket: {socket} }}\n"
    );
    let machine = Machine::with_sources(&sources, Readers::Key);
    std::fs::create_dir(machine.path("uploads")).unwrap();
    std::fs::write(machine.path("uploads/photo"), crate::support::noise(500_000)).unwrap();
    let notes = rusqlite::Connection::open(machine.path("notes.db")).unwrap();
    notes.execute_batch("pragma journal_mode = wal; create table n (id integer primary key, text);").unwrap();
    let many = "with recursive c(x) as (select 1 union all select x + 1 from c where x < 1000) \
        insert into n (text) select 'before' from c";
    notes.execute_batch(many).unwrap();
    machine.good("init");
    let load = server.pgbench_in_background("app", &["-c", "2", "-T", "600", "-n"]);
    // The load must have begun: a copy of a server at rest would prove nothing.
    while server.sql("app", "select count(*) > 20 from pgbench_history") != "t" {}
    machine.good("backup");
    machine.good("verify --depth structure");
    let live = LiveGuard::all();
    machine.good("drill");
    live.check();
    drop(load);
    let uploads = describe(&machine.path("uploads"));
    drop(notes);
    for name in ["notes.db", "notes.db-wal", "notes.db-shm"] {
        std::fs::remove_file(machine.path(name)).unwrap_or_default();
    }
    std::fs::remove_dir_all(machine.path("uploads")).unwrap();
    server.sql("postgres", "drop database app with (force)");
    server.sql("postgres", "drop role app");
    let (code, stderr) = machine.bad("restore --source uploads --source db --rename other");
    assert_eq!(code, 2, "{stderr}");
    assert!(!machine.path("uploads").exists(), "nothing is written before everything is known to be possible");
    machine.good("restore");
    assert_eq!(describe(&machine.path("uploads")), uploads);
    let notes = rusqlite::Connection::open(machine.path("notes.db")).unwrap();
    let rows: i64 = notes.query_row("select count(*) from n where text = 'before'", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1000);
    assert_eq!(server.sql("app", SUMS), "t|t");
    assert_eq!(server.sql("postgres", "select pg_get_userbyid(datdba) from pg_database where datname = 'app'"), "app");
}
