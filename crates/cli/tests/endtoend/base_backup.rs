//! Base backups through the program: a cluster with a tablespace, saved twice under load into an encrypted repository, and
//! started again from what `restore` puts into a folder.

use std::os::unix::fs::PermissionsExt;

use backup_testkit::{LiveGuard, PrivatePostgres};

use crate::support::{Machine, Readers, text};

/// pgbench moves money about: whatever the moment, the sums are the same in a consistent copy.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches), \
    (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history), \
    (select count(*) from spaced)";

#[test]
fn a_cluster_is_saved_twice_under_load_and_started_again() {
    let server = PrivatePostgres::start();
    server.pgbench("postgres", &["-i", "-q", "-s", "3"]);
    let space = server.make_folder("space");
    server.sql("postgres", &format!("create tablespace fast location '{}'", space.display()));
    server.sql(
        "postgres",
        "create table spaced tablespace fast as select n, md5(n::text) || md5((-n)::text) as t \
         from generate_series(1, 200000) n; checkpoint",
    );
    let sources =
        format!("  db:\n    postgres: {{ socket: {}, modes: [physical] }}\n", server.socket_folder().display());
    let machine = Machine::with_sources(&sources, Readers::Key);
    machine.good("init");
    machine.good("validate --online");
    machine.good("backup");
    let load = server.pgbench_in_background("postgres", &["-c", "2", "-T", "600", "-n"]);
    while server.sql("postgres", "select count(*) > 200 from pgbench_history") != "t" {}
    // With the private key far away, as on a machine that backs up.
    let key = machine.path("stackward.key");
    let away = machine.path("away");
    std::fs::rename(&key, &away).unwrap();
    machine.good("backup");
    std::fs::rename(&away, &key).unwrap();
    drop(load);
    let listed = machine.json("list");
    let [first, second] = listed["snapshots"].as_array().unwrap().as_slice() else { panic!("two: {listed}") };
    let number = |snapshot: &serde_json::Value, name: &str| snapshot[name].as_u64().unwrap();
    assert!(number(second, "stored_bytes") * 2 < number(first, "stored_bytes"), "{listed}");
    assert!(number(second, "bytes") > 60_000_000, "{listed}");
    machine.good("verify --depth structure");
    // The server's user must reach the folder.
    std::fs::set_permissions(machine.root(), PermissionsExt::from_mode(0o755)).unwrap();
    let live = LiveGuard::all();
    machine.good("restore --target out");
    live.check();
    let data = machine.path("out/db/data");
    let output = server.program("pg_verifybackup").arg(&data).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let copy = server.on_data(&data);
    assert_eq!(copy.sql("postgres", SUMS), "t|t|200000");
}
