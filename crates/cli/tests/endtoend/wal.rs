//! `stackward wal`: a real server archives through `wal push`, another one recovers through `wal fetch`.

mod agree;
mod estranged;
mod followers;
mod full_disk;

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
        Self::of("{ socket: /nowhere }")
    }

    /// An archive for a server with these settings.
    fn of(settings: &str) -> Self {
        let machine = Machine::with_sources(&format!("  main-db:\n    postgres: {settings}\n"), Readers::Key);
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

    let target = format!("recovery_target_lsn = '{lsn}'\nrecovery_target_action = 'promote'\narchive_mode = 'off'");
    let recovered = recover(&archive, &base, &target);
    assert_eq!(recovered.sql("postgres", "select count(*), sum(n) from t"), "6000|21000");
    assert!(recovered.log().contains("restored log file"), "{}", recovered.log());

    // A segment in the midst of them is damaged: the server stops, and does not come up with what it had so far.
    let damaged = &archive.segments()[3];
    crate::support::flip_a_bit(damaged);
    let stopped = std::panic::catch_unwind(|| recover(&archive, &base, "archive_mode = 'off'"));
    let said = stopped.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("exit code 220") && !said.contains("selected new timeline"), "{said}");
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

    // Another plan with a source of this name.
    let plan = std::fs::read_to_string(archive.path("stackward.yaml")).unwrap();
    std::fs::write(archive.path("other.yaml"), plan.replace("name: small", "name: other")).unwrap();
    let (code, said) = archive.bad(&["--plan", "other.yaml", "wal", "push", &name]);
    assert!(code == 1 && said.contains("is that of the plan `small`, not of `other`"), "{code} {said}");
    assert!(said.contains("give the source another name"), "{said}");

    // The stored copy is not sound any more: it is repaired while the server has the segment.
    let stored = archive.segments().remove(0);
    let sound = std::fs::read(&stored).unwrap();
    for hurt in [&sound[..sound.len() - 1], &[]] {
        std::fs::write(&stored, hurt).unwrap();
        let pushed = archive.run(&["wal", "push", &name, "--json"]);
        let (told, warned) = (text(&pushed.stdout), text(&pushed.stderr));
        assert!(pushed.status.success() && told.contains("\"repaired\":true"), "{told}{warned}");
        assert!(archive.good(&["--json", "wal", "push", &name]).contains("\"new\":false"));
        archive.good(&["--identity", "stackward.key", "wal", "fetch", &name, "fetched"]);
        assert!(std::fs::read(archive.path("fetched")).unwrap() == std::fs::read(&segment).unwrap());
    }

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
    assert!(code == 22 && said.contains(&format!("{} is missing", names[1])), "{code} {said}");
    assert!(said.contains("`stackward log accept-gap`"), "{said}");
    let fetch = |name: &str| archive.bad(&["--identity", "stackward.key", "wal", "fetch", name, "fetched"]);
    // Only what is not there ends with 1; at what is missing in the midst, and at every failure, a server must stop.
    let (code, said) = fetch(&names[1]);
    assert!(code == 222 && said.contains("goes on after it"), "{code} {said}");
    std::fs::write(archive.path("standby.signal"), "").unwrap();
    std::fs::create_dir(archive.path("pg_wal")).unwrap();
    run_tool(tool("chown").arg("postgres:postgres").arg(archive.path("pg_wal")));
    assert_eq!(
        archive.bad(&["--identity", "stackward.key", "wal", "fetch", &names[1], "pg_wal/fetched"]).0,
        1,
        "a standby"
    );
    assert_eq!(fetch("00000002.history").0, 1);
    assert_eq!(fetch("0000000100000000000000F0").0, 1);
    assert_eq!(fetch("nonsense").0, 202);
    for (words, code) in [
        (&["wal", "fetch", &names[3]][..], 202),
        (&["wal", "fetsch", &names[3], "fetched"], 202),
        (&["--plan", "nowhere.yaml", "wal", "fetch", &names[3], "fetched"], 202),
        (&["wal", "fetch", &names[3], "fetched", "--source", "nobody"], 202),
        (&["--identity", "stackward.yaml", "wal", "fetch", &names[3], "fetched"], 212),
        (&["--identity", "stackward.key", "wal", "fetch", &names[3], "no/such/folder/fetched"], 200),
    ] {
        let (found, said) = archive.bad(words);
        assert!(found == code || (found > 125 && code == 212), "{words:?}: {found} {said}");
    }
    assert!(!archive.path("fetched").exists());
    assert_eq!(fetch(&names[2]).0, 0);
    assert!(std::fs::read(archive.path("fetched")).unwrap() == std::fs::read(&again).unwrap());

    // Fetched ahead: the next one is delivered although the archive is gone.
    std::fs::rename(archive.path("repository"), archive.path("gone")).unwrap();
    assert_eq!(fetch(&names[3]).0, 0);
    assert!(!archive.path("stackward-ahead-main-db").exists());
    assert_eq!(fetch(&names[2]).0, 210);
    std::fs::rename(archive.path("gone"), archive.path("repository")).unwrap();
    crate::support::flip_a_bit(&timeline.join(&names[3]));
    assert_eq!(fetch(&names[3]).0, 220);

    // Somebody says that the gap is known.
    archive.good(&["log", "accept-gap", "main-db"]);
    let status = archive.run(&["wal", "status"]);
    let told = text(&status.stdout) + &text(&status.stderr);
    assert!(status.status.success() && told.contains("accepted on 20"), "{told}");
    let (code, said) = archive.bad(&["log", "accept-gap", "main-db", "--before", "00000001/nothing"]);
    assert!(code == 1 && said.contains("has no gap before"), "{code} {said}");
}

/// A receiver beside the test; killed when dropped.
struct Receiver(std::process::Child);

impl Receiver {
    fn start(archive: &Archive) -> Self {
        Self::start_with(archive, &std::env::temp_dir())
    }

    /// With this folder for temporary files.
    fn start_with(archive: &Archive, temporary: &Path) -> Self {
        let mut command = crate::support::stackward(archive.machine.root(), &["--quiet", "wal", "receive"]);
        command.env("TMPDIR", temporary);
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        Self(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap())
    }

    /// Waits until `condition`, which only a receiver that runs can bring about.
    fn wait(&mut self, server: &PrivatePostgres, condition: &str) {
        while server.sql("postgres", &format!("select {condition}")) != "t" {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.said());
        }
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        std::io::Read::read_to_string(self.0.stderr.as_mut().unwrap(), &mut said).unwrap();
        said
    }

    /// Reads what it says until it has said these words.
    fn says(&mut self, words: &str) -> String {
        let (mut said, mut byte) = (Vec::new(), [0]);
        let stderr = self.0.stderr.as_mut().unwrap();
        while !text(&said).ends_with(words) {
            assert_eq!(std::io::Read::read(stderr, &mut byte).unwrap(), 1, "it ended: {}", text(&said));
            said.push(byte[0]);
        }
        text(&said)
    }

    /// Waits until it reads the slot.
    fn reads(&mut self, server: &PrivatePostgres) {
        self.wait(server, "exists (select from pg_replication_slots where slot_name = 'stackward_main_db' and active)");
    }

    /// Waits until what is in the log now is archived; returns where that ends.
    fn has_archived(&mut self, server: &PrivatePostgres) -> String {
        let lsn = server.sql("postgres", "select pg_current_wal_flush_lsn()");
        let confirmed = "select restart_lsn from pg_replication_slots where slot_name = 'stackward_main_db'";
        self.wait(server, &format!("({confirmed}) >= '{lsn}'"));
        lsn
    }

    /// Waits until what is in the log now was sent, if not archived.
    fn was_sent(&mut self, server: &PrivatePostgres) {
        let lsn = server.sql("postgres", "select pg_current_wal_flush_lsn()");
        let ours = "pid = (select active_pid from pg_replication_slots where slot_name = 'stackward_main_db')";
        self.wait(server, &format!("(select sent_lsn >= '{lsn}' from pg_stat_replication where {ours})"));
    }

    /// As `kill -9` does.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// As Ctrl-C does; returns what it said.
    fn stop(mut self) -> (i32, String) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let said = self.said();
        (self.0.wait().unwrap().code().unwrap(), said)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A server whose log is streamed, and the archive that it is streamed to.
fn streamed() -> (PrivatePostgres, Archive) {
    streamed_keeping("0")
}

/// The same; the server keeps so much log besides what the slot needs.
fn streamed_keeping(wal_keep_size: &str) -> (PrivatePostgres, Archive) {
    let server = PrivatePostgres::with_settings(&[
        ("wal_level", "replica"),
        ("max_wal_senders", "4"),
        ("max_replication_slots", "4"),
        ("wal_sender_timeout", "5s"),
        ("wal_keep_size", wal_keep_size),
        // Else rows are committed before their log is flushed, and flushed log is all that is ever sent.
        ("synchronous_commit", "local"),
    ]);
    let archive = Archive::of(&format!("{{ socket: {}, wal: stream }}", server.socket_folder().display()));
    (server, archive)
}

fn recover(archive: &Archive, base: &Path, more: &str) -> PrivatePostgres {
    let restore = archive.command("--identity");
    let restore = format!("{restore} {} wal fetch %f %p", archive.path("stackward.key").display());
    PrivatePostgres::recovered_from(base, &format!("restore_command = '{restore}'\n{more}\n"))
}

#[test]
fn a_receiver_archives_the_last_byte_and_another_server_recovers_it() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    let base = archive.path("base");
    base_backup(&server, &base);
    server.sql("postgres", "insert into t select generate_series(1, 100000)");
    server.sql("postgres", "select pg_switch_wal()");
    server.sql("postgres", "insert into t values (-1)");
    let lsn = server.sql("postgres", "select pg_current_wal_flush_lsn()");
    // A target must be passed to be reached.
    server.sql("postgres", "insert into t values (-2)");
    receiver.was_sent(&server);
    // What it has is archived before it stops, and confirmed.
    let (code, said) = receiver.stop();
    assert_eq!((code, said.as_str()), (0, ""));
    let confirmed = "select restart_lsn from pg_replication_slots where slot_name = 'stackward_main_db'";
    assert_eq!(server.sql("postgres", &format!("select ({confirmed}) >= '{lsn}'")), "t");
    server.stop_immediately();
    let target =
        format!("recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = off\nrecovery_target_action = 'promote'");
    let recovered = recover(&archive, &base, &target);
    assert_eq!(recovered.sql("postgres", "select count(*), min(n) from t"), "100001|-1");
    let status = archive.machine.json("wal status");
    assert_eq!(status["sources"][0]["timelines"][0]["holes"], serde_json::json!([]));
}

#[test]
fn segments_are_byte_for_byte_what_the_server_wrote() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.pgbench("postgres", &["-i", "-s", "3", "-q"]);
    let name = server.sql("postgres", "select pg_walfile_name(pg_switch_wal())");
    receiver.has_archived(&server);
    drop(receiver);
    run_tool(tool("chown").args(["-R", "postgres:postgres"]).arg(archive.machine.root()));
    let whole: Vec<String> =
        archive.segments().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(whole.contains(&name) && whole.len() >= 2, "{whole:?}");
    for name in whole.iter().filter(|name| name.len() == 24) {
        archive.good(&["--identity", "stackward.key", "wal", "fetch", name, "fetched"]);
        let original = server.data_folder().join("pg_wal").join(name);
        assert!(std::fs::read(archive.path("fetched")).unwrap() == std::fs::read(original).unwrap(), "{name}");
    }
}

#[test]
fn a_receiver_follows_a_promotion() {
    let (server, archive) = streamed_keeping("1GB");
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    // It keeps what the archive lacks when its turn comes.
    let standby = server.standby();
    server.sql("postgres", "create table t (n int)");
    let base = archive.path("base");
    base_backup(&server, &base);
    server.sql("postgres", "insert into t select generate_series(1, 1000)");
    receiver.has_archived(&server);
    receiver.kill();
    // The server dies; what it wrote recovers elsewhere and becomes a primary on timeline 2, at the same place.
    server.sql("postgres", "insert into t values (7)");
    server.sql("postgres", "insert into t values (8)");
    while standby.sql("postgres", "select count(*) from t where n = 8") != "2" {}
    server.stop_immediately();
    standby.promote();
    standby.sql("postgres", "insert into t values (9)");
    let plan = std::fs::read_to_string(archive.path("stackward.yaml")).unwrap();
    let moved =
        plan.replace(&server.socket_folder().display().to_string(), &standby.socket_folder().display().to_string());
    std::fs::write(archive.path("stackward.yaml"), moved).unwrap();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&standby);
    standby.sql("postgres", "insert into t values (10)");
    receiver.has_archived(&standby);
    drop(receiver);
    run_tool(tool("chown").args(["-R", "postgres:postgres"]).arg(archive.machine.root()));
    let recovered = recover(&archive, &base, "recovery_target_timeline = 'latest'");
    let listed = run_tool(tool("find").arg(archive.path("repository/logs")));
    assert_eq!(recovered.sql("postgres", "select count(*) from t"), "1004", "{listed}\n{}", recovered.log());
    let status = archive.machine.json("wal status");
    let timelines = status["sources"][0]["timelines"].as_array().unwrap().len();
    assert_eq!(timelines, 2, "{status}");
}

#[test]
fn a_slot_that_was_dropped_and_a_log_that_is_gone_are_told() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    server.sql("postgres", "select pg_switch_wal()");
    receiver.has_archived(&server);
    receiver.kill();
    let inactive = "select count(*) from pg_replication_slots where active";
    while server.sql("postgres", inactive) != "0" {}
    server.sql("postgres", "select pg_drop_replication_slot('stackward_main_db')");
    for _ in 0..4 {
        server.sql("postgres", "insert into t values (1)");
        server.sql("postgres", "select pg_switch_wal()");
        server.sql("postgres", "checkpoint");
    }
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "select pg_switch_wal()");
    receiver.has_archived(&server);
    let (code, said) = receiver.stop();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("was dropped on the server"), "{said}");
    assert!(said.contains("the archived log has a gap"), "{said}");
    assert_eq!(archive.machine.run("wal status").status.code(), Some(22));
}

#[test]
fn a_receiver_refuses_the_log_of_another_server() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    receiver.has_archived(&server);
    receiver.stop();
    let other = PrivatePostgres::start();
    let plan = std::fs::read_to_string(archive.path("stackward.yaml")).unwrap();
    let moved =
        plan.replace(&server.socket_folder().display().to_string(), &other.socket_folder().display().to_string());
    std::fs::write(archive.path("stackward.yaml"), moved).unwrap();
    let (code, said) = archive.machine.bad("wal receive");
    assert!(code == 1 && said.contains("give it a source name of its own"), "{code} {said}");
    assert_eq!(other.sql("postgres", "select count(*) from pg_replication_slots"), "0", "nothing was made there");
}

#[test]
fn status_compares_the_archive_with_the_server() {
    let (server, archive) = streamed();
    let status = || {
        let output = archive.machine.run("wal status --json");
        let printed = text(&output.stdout);
        (
            output.status.code().unwrap(),
            serde_json::from_str::<serde_json::Value>(printed.lines().last().unwrap()).unwrap(),
        )
    };
    let (code, said) = status();
    assert!(
        code == 20 && said["sources"][0]["complaints"][0]["told"].as_str().unwrap().contains("no replication slot"),
        "{said}"
    );
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.sql("postgres", "create table t (n int)");
    receiver.has_archived(&server);
    let (code, said) = status();
    assert_eq!((code, &said["sources"][0]["complaints"]), (0, &serde_json::json!([])), "{said}");
    assert_eq!(said["sources"][0]["server"]["slot"]["active"], true);
    receiver.kill();
    while server.sql("postgres", "select bool_or(active) from pg_replication_slots") != "f" {}
    server.sql("postgres", "insert into t select generate_series(1, 10000)");
    let (code, said) = status();
    let source = &said["sources"][0];
    assert!(code == 0 && source["complaints"][0]["told"].as_str().unwrap().contains("nobody reads"), "{said}");
    assert!(
        source["lag_bytes"].as_u64().unwrap() > 100_000 && source["lag_seconds"].as_f64().unwrap() >= 0.0,
        "{said}"
    );
    server.stop_immediately();
    let (code, said) = status();
    assert_eq!((code, &said["sources"][0]["server"]), (0, &serde_json::Value::Null), "the archive is whole: {said}");
}

/// Killed with -9 at moments of no choice, a hundred times, while rows are written: no hole, no row lost.
#[test]
fn a_receiver_that_is_killed_a_hundred_times_leaves_no_hole() {
    let (server, archive) = streamed();
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    server.pgbench("postgres", &["-i", "-s", "1", "-q"]);
    let base = archive.path("base");
    base_backup(&server, &base);
    receiver.kill();
    let load = server.pgbench_in_background("postgres", &["-c", "2", "-T", "600", "-n"]);
    let mut waited = 1u64;
    for round in 0..100u64 {
        let receiver = Receiver::start(&archive);
        // Between nothing and some hundred kilobytes of log later.
        waited = waited.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        let until = server.sql("postgres", "select pg_current_wal_lsn()");
        let more = (waited >> 33) % 400_000;
        let grown = format!("select pg_current_wal_lsn() - '{until}'::pg_lsn > {more}");
        while server.sql("postgres", &grown) != "t" {}
        receiver.kill();
    }
    drop(load);
    let mut receiver = Receiver::start(&archive);
    receiver.reads(&server);
    let lsn = receiver.has_archived(&server);
    server.sql("postgres", "create table passed ()");
    receiver.was_sent(&server);
    receiver.stop();
    let sums = "select count(*), sum(delta), (select sum(abalance) from pgbench_accounts) from pgbench_history";
    let expected = server.sql("postgres", sums);
    assert_eq!(archive.machine.run("wal status").status.code(), Some(0));
    run_tool(tool("chown").args(["-R", "postgres:postgres"]).arg(archive.machine.root()));
    let target =
        format!("recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = off\nrecovery_target_action = 'promote'");
    let recovered = recover(&archive, &base, &target);
    assert_eq!(recovered.sql("postgres", sums), expected);
}
