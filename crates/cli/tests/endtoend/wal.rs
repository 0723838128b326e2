//! `stackward wal`: a real server archives through `wal push`, another one recovers through `wal fetch`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backup_testkit::PrivatePostgres;

use crate::support::{Machine, Readers, run_tool, text, tool};

/// A folder that PostgreSQL's user owns, with a copy of the program that this user can run, a plan and a repository.
struct Archive {
    machine: Machine,
}

impl Archive {
    fn new() -> Self {
        let machine = Machine::with_sources("  main-db:\n    postgres: { socket: /nowhere }\n", Readers::Key);
        machine.good("init");
        let program = machine.path("stackward");
        std::fs::copy(env!("CARGO_BIN_EXE_stackward"), &program).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        run_tool(tool("chown").args(["-R", "postgres:postgres"]).arg(machine.root()));
        Self { machine }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.path(name)
    }

    /// `archive_command` or `restore_command` with these words at its end.
    fn command(&self, words: &str) -> String {
        format!("{} --plan {} {words}", self.path("stackward").display(), self.path("stackward.yaml").display())
    }

    /// A server that archives here.
    fn server(&self) -> PrivatePostgres {
        let archive = format!("'{}'", self.command("wal push %p"));
        PrivatePostgres::with_settings(&[
            ("archive_mode", "on"),
            ("archive_command", &archive),
            ("wal_level", "replica"),
            ("max_wal_senders", "4"),
        ])
    }

    /// As PostgreSQL's user.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = tool("runuser");
        command.args(["-u", "postgres", "--"]).arg(self.path("stackward")).args(words).current_dir(self.machine.root());
        command.output().unwrap()
    }

    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn bad(&self, words: &[&str]) -> (i32, String) {
        let output = self.run(words);
        (output.status.code().unwrap(), text(&output.stderr))
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = std::fs::read_dir(self.path("repository/logs/main-db/00000001"))
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        found.sort();
        found
    }
}

/// Ends the segment that is being written and waits until it is archived.
fn switch(server: &PrivatePostgres) -> String {
    let name = server.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
    let archived = "select last_archived_wal >= '{}' or failed_count > 0 from pg_stat_archiver".replace("{}", &name);
    while server.sql("postgres", &archived) != "t" {}
    let failed = server.sql("postgres", "select last_failed_wal from pg_stat_archiver where failed_count > 0");
    assert_eq!(failed, "", "{}", server.log());
    name
}

/// A base backup, made by the server's own tool, ready to recover with `restore_command` to the end of the archive.
fn base_backup(server: &PrivatePostgres, to: &Path) {
    let mut command: Command = tool("runuser");
    command.args(["-u", "postgres", "--"]).arg(server.bin().join("pg_basebackup"));
    command.args(["--checkpoint=fast", "-U", "postgres", "-h"]).arg(server.socket_folder()).arg("-D").arg(to);
    run_tool(&mut command);
}

#[test]
fn a_server_archives_and_another_recovers_from_what_it_archived() {
    let archive = Archive::new();
    let server = archive.server();
    server.sql("postgres", "create table t (n int)");
    let base = archive.path("base");
    base_backup(&server, &base);
    for n in 1..=6 {
        server.sql("postgres", &format!("insert into t select {n} from generate_series(1, 1000)"));
        switch(&server);
    }
    assert_eq!(archive.bad(&["wal", "status"]).0, 0);
    let lsn = server.sql("postgres", "select pg_current_wal_lsn()");
    server.sql("postgres", "drop table t");
    switch(&server);

    let restore = archive.command("--identity");
    let restore = format!("{restore} {} wal fetch %f %p", archive.path("stackward.key").display());
    let settings = format!(
        "restore_command = '{restore}'\nrecovery_target_lsn = '{lsn}'\nrecovery_target_action = 'promote'\n\
         archive_mode = 'off'\n"
    );
    let recovered = PrivatePostgres::recovered_from(&base, &settings);
    assert_eq!(recovered.sql("postgres", "select count(*), sum(n) from t"), "6000|21000");
    assert!(recovered.log().contains("restored log file"), "{}", recovered.log());
}

#[test]
fn pushing_again_succeeds_and_what_does_not_belong_is_refused() {
    let archive = Archive::new();
    let server = archive.server();
    server.sql("postgres", "create table t (n int)");
    let name = switch(&server);
    let segment = server.data_folder().join("pg_wal").join(&name);
    let copy = |as_name: &str| {
        let to = archive.path(as_name);
        std::fs::copy(&segment, &to).unwrap();
        run_tool(tool("chown").arg("postgres:postgres").arg(&to));
        to
    };
    let again = copy(&name);
    assert!(archive.good(&["--json", "wal", "push", again.to_str().unwrap()]).contains("\"new\":false"));

    // Other bytes under the same name.
    let mut bytes = std::fs::read(&again).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&again, &bytes).unwrap();
    let (code, said) = archive.bad(&["wal", "push", &name]);
    assert!(code == 1 && said.contains("with other content"), "{code} {said}");

    // Under another name, cut short, no segment at all.
    let elsewhere = copy("0000000100000000000000F3");
    let (code, said) = archive.bad(&["wal", "push", elsewhere.to_str().unwrap()]);
    assert!(code == 20 && said.contains("not from"), "{code} {said}");
    std::fs::write(&again, &bytes[..bytes.len() - 1]).unwrap();
    assert!(archive.bad(&["wal", "push", &name]).1.contains("bytes, not 16777216"));
    std::fs::write(&again, vec![0; bytes.len()]).unwrap();
    assert!(archive.bad(&["wal", "push", &name]).1.contains("magic"));
    assert_eq!(archive.bad(&["wal", "push", "stackward.yaml"]).0, 2);
    assert_eq!(archive.segments().len(), 1);
}

#[test]
fn a_server_of_another_identifier_cannot_archive_under_the_same_source() {
    let archive = Archive::new();
    let first = archive.server();
    first.sql("postgres", "create table t (n int)");
    switch(&first);
    let second = archive.server();
    second.sql("postgres", "create table t (n int)");
    second.sql("postgres", "select pg_switch_wal()");
    while second.sql("postgres", "select failed_count > 0 from pg_stat_archiver") != "t" {}
    assert!(second.log().contains("give it a source name of its own"), "{}", second.log());
    assert_eq!(archive.segments().len(), 1);
}

#[test]
fn what_is_missing_is_told_at_the_push_by_status_and_by_fetch() {
    let archive = Archive::new();
    let server = archive.server();
    let mut names = Vec::new();
    for n in 1..=4 {
        server.sql("postgres", &format!("create table t{n} (n int)"));
        names.push(switch(&server));
    }
    let timeline = archive.path("repository/logs/main-db/00000001");
    std::fs::remove_file(timeline.join(&names[1])).unwrap();
    std::fs::remove_file(timeline.join(&names[2])).unwrap();
    let again = archive.path(&names[2]);
    std::fs::copy(server.data_folder().join("pg_wal").join(&names[2]), &again).unwrap();
    run_tool(tool("chown").arg("postgres:postgres").arg(&again));
    let pushed = archive.run(&["wal", "push", &names[2]]);
    assert!(pushed.status.success());
    assert!(text(&pushed.stderr).contains(&format!("{} is not in the archive", names[1])), "{}", text(&pushed.stderr));

    let (code, said) = archive.bad(&["wal", "status"]);
    assert!(code == 20 && said.contains(&format!("{} is missing", names[1])), "{code} {said}");
    let fetch = |name: &str| archive.bad(&["--identity", "stackward.key", "wal", "fetch", name, "fetched"]);
    assert_eq!(fetch(&names[1]).0, 1);
    assert_eq!(fetch("00000002.history").0, 1);
    assert_eq!(fetch("nonsense").0, 2);
    assert!(!archive.path("fetched").exists());
    assert_eq!(fetch(&names[2]).0, 0);
    assert!(std::fs::read(archive.path("fetched")).unwrap() == std::fs::read(&again).unwrap());

    // Fetched ahead: the next one is delivered although the archive is gone.
    std::fs::rename(archive.path("repository"), archive.path("gone")).unwrap();
    assert_eq!(fetch(&names[3]).0, 0);
    assert!(!archive.path("stackward-ahead-main-db").exists());
    assert_eq!(fetch(&names[2]).0, 10);
}
