//! Following a Redis server with the built binary, into an encrypted repository on disk, and coming back to moments.

use std::process::Child;
use std::time::{Duration, Instant};

use backup_testkit::PrivateRedis;
use rustix::process::{Pid, Signal};

use crate::support::{Machine, Readers, flip_a_bit, run_tool, text, tool};

/// Whatever is waited for is there by then.
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(5);
/// What a follower may take, in KiB: two segments on their way into the repository, and the program itself unoptimised.
const MEMORY_LIMIT_KIB: u64 = 192 * 1024;

/// A server, and a machine whose plan follows it.
pub(crate) struct Followed {
    pub(crate) machine: Machine,
    pub(crate) server: PrivateRedis,
}

impl Followed {
    /// `settings` are those of `follow`.
    pub(crate) fn new(settings: &str) -> Self {
        let server = PrivateRedis::with_options(&[("repl-backlog-size", "64mb")]);
        let source = format!(
            "  cache:\n    redis: {{ socket: {}, follow: {{ {settings} }} }}\n  note:\n    files: {{ paths: [note] }}\n",
            server.socket().display()
        );
        let machine = Machine::with_sources(&source, Readers::Key);
        std::fs::write(machine.path("note"), "a note").unwrap();
        machine.good("init");
        Self { machine, server }
    }

    pub(crate) fn follow(&self) -> Follower {
        Follower(Some(self.machine.command("follow").spawn().unwrap()))
    }

    pub(crate) fn offset(&self) -> u64 {
        self.info("master_repl_offset").unwrap().parse().unwrap()
    }

    /// What the follower said is durable.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        let replica = self.info("slave0")?;
        replica.split(',').find_map(|field| field.strip_prefix("offset="))?.parse().ok()
    }

    fn info(&self, field: &str) -> Option<String> {
        let all = self.server.call(&["INFO", "replication"]);
        all.lines().find_map(|line| line.trim_end().strip_prefix(field)?.strip_prefix(':').map(str::to_owned))
    }

    /// Waits until everything that the server wrote so far is durable; returns the offset.
    pub(crate) fn archived(&self) -> u64 {
        let offset = self.offset();
        wait(|| self.acknowledged() >= Some(offset));
        offset
    }

    /// The digest of a server that starts on what a restore with these words wrote into a folder.
    pub(crate) fn digest_of(&self, words: &str) -> String {
        self.machine.good(&format!("restore --source cache --target out {words}"));
        let target = PrivateRedis::with_options(&[("appendonly", "yes")]);
        target.kill();
        let to = target.data_folder().join("appendonlydir");
        std::fs::remove_dir_all(&to).unwrap();
        run_tool(tool("cp").arg("-r").arg(self.machine.path("out/cache/appendonlydir")).arg(&to));
        std::fs::remove_dir_all(self.machine.path("out")).unwrap();
        target.launch();
        target.digest()
    }
}

pub(crate) fn wait(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "waited in vain");
        std::thread::sleep(POLL);
    }
}

/// A running `stackward follow`; killed when dropped.
pub(crate) struct Follower(Option<Child>);

impl Follower {
    fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().unwrap())
    }

    /// The most memory that it has taken, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Ends it as an operator does; returns its exit code and what it said.
    pub(crate) fn stop(mut self) -> (i32, String) {
        rustix::process::kill_process(self.pid(), Signal::TERM).unwrap();
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn a_server_is_followed_and_comes_back_as_it_was_at_a_moment() {
    let stack = Followed::new("segment_age: 1s");
    let (machine, server) = (&stack.machine, &stack.server);
    assert_eq!(machine.run("status cache --check").status.code(), Some(2), "there is nothing yet");
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    server.pipe("SELECT 3\nSET a 1\nRPUSH l x y\n");
    let early = (stack.archived(), server.digest(), jiff::Timestamp::now());
    server.pipe("FLUSHALL\nSET oops 1\n");
    let late = (stack.archived(), server.digest());
    assert_eq!(machine.run("status cache --check").status.code(), Some(0));
    let (code, said) = follower.stop();
    assert!(code == 0 && said.contains("what was received is archived"), "{code}: {said}");
    assert_eq!(stack.digest_of(&format!("--to-offset {}", early.0)), early.1);
    assert_eq!(stack.digest_of(&format!("--to-time {}", early.2)), early.1);
    assert_eq!(stack.digest_of("--to-latest"), late.1);
    let shown = machine.good(&format!("restore --source cache --target out --dry-run --to-lsn {}", early.0));
    assert!(
        shown.contains(&format!("up to offset {}", early.0)) && shown.contains("segments of the stream"),
        "{shown}"
    );
    assert!(!machine.path("out").exists());
    // In place, over what the server holds.
    machine.good(&format!("restore --source cache --force --to-offset {}", early.0));
    assert_eq!(server.digest(), early.1);
    let drilled = machine.json("drill --source cache");
    assert!(drilled["sources"][0]["reached"].is_string(), "{drilled}");
    assert!(machine.good("verify").contains("cache: log: "));
    let status = machine.json("status");
    assert_eq!(
        (status["sources"][0]["windows"].as_array().unwrap().len(), &status["sources"][1]["followed"]),
        (1, &false.into())
    );
}

#[test]
fn what_cannot_be_is_refused_plainly() {
    let stack = Followed::new("segment_age: 1s");
    let machine = &stack.machine;
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    stack.server.call(&["SET", "a", "1"]);
    let end = stack.archived();
    follower.stop();
    machine.good("backup note");
    let cases = [
        ("follow note", 2, "cannot be followed"),
        ("redis follow note", 2, "served by the engine `files`"),
        ("follow nonsense", 2, "no source `nonsense`"),
        ("restore --to-latest --to-offset 1", 2, "cannot be used with"),
        ("restore --to-offset 1", 2, "several are chosen"),
        ("restore --source cache --to-time 2026-11-20T10:00:00", 2, "time zone"),
        ("restore --source cache --to-offset 16/B374", 2, "no replication offset"),
        ("restore --source cache --to-xid 7", 1, "cannot be recovered to the transaction 7"),
        ("restore --source cache --to-name release", 1, "the point named `release`"),
        ("restore --source note --to-latest", 1, "keeps no log"),
        ("restore --source cache --to-time 2020-01-01T00:00:00Z", 1, "comes before the snapshot"),
        (&format!("restore --source cache --to-offset {}", end + 1), 1, "does not reach the position"),
    ];
    for (line, code, words) in cases {
        let (exit, stderr) = machine.bad(line);
        assert!(exit == code && stderr.contains(words), "{line}: {exit}: {stderr}");
    }
}

#[test]
fn a_flipped_bit_and_a_lost_segment_are_refused_by_name() {
    let stack = Followed::new("segment_age: 1s");
    let machine = &stack.machine;
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    for round in 0..3 {
        stack.server.call(&["SET", "round", &round.to_string()]);
        stack.archived();
    }
    follower.stop();
    machine.good("verify");
    let segments = machine.objects("logs");
    assert!(segments.len() >= 3, "{segments:?}");
    let victim = &segments[1];
    let name = victim.file_name().unwrap().to_str().unwrap();
    let whole = std::fs::read(victim).unwrap();
    flip_a_bit(victim);
    let (code, stderr) = machine.bad("restore --source cache --to-latest --target out");
    assert!(code == 20 && stderr.contains(name), "{code}: {stderr}");
    let verified = machine.run("verify");
    assert_eq!(verified.status.code(), Some(20));
    assert!(text(&verified.stdout).contains(name), "{}", text(&verified.stdout));
    std::fs::remove_file(victim).unwrap();
    let (code, stderr) = machine.bad("restore --source cache --to-latest --target out");
    assert!(code == 1 && stderr.contains(name), "{code}: {stderr}");
    let verified = machine.run("verify");
    assert_eq!(verified.status.code(), Some(22), "a gap is no damage");
    assert!(text(&verified.stdout).contains(name), "{}", text(&verified.stdout));
    let status = machine.run("status cache --check");
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status.stdout).contains(name), "{}", text(&status.stdout));
    assert!(!machine.path("out").exists(), "nothing was written");
    std::fs::write(victim, whole).unwrap();
    machine.good("verify");
    assert_eq!(stack.digest_of("--to-latest"), stack.server.digest());
    std::fs::remove_dir_all(machine.path("repository")).unwrap();
    assert_eq!(machine.run("status --check").status.code(), Some(3));
}

#[test]
fn memory_does_not_grow_with_the_stream() {
    let stack = Followed::new("segment_age: 1s");
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    for round in 0..40 {
        // 10 MB at a time, of which the server keeps one.
        let value = "v".repeat(50_000);
        let commands: Vec<String> = (0..200).map(|key| format!("SET key:{} {value}{round}\n", key % 20)).collect();
        stack.server.pipe(&commands.concat());
    }
    stack.archived();
    let peak = follower.peak_kib();
    assert!(peak < MEMORY_LIMIT_KIB, "{peak} KiB");
    assert_eq!(follower.stop().0, 0);
}

/// Every command of the runbook that is ours, in its order, with a time of this test and a folder of this machine.
#[test]
fn the_runbook_brings_a_server_back() {
    let stack = Followed::new("segment_age: 1s");
    let (machine, server) = (&stack.machine, &stack.server);
    let follower = stack.follow();
    wait(|| stack.acknowledged().is_some());
    server.pipe("SET user:1 ann\nSET user:2 bob\n");
    stack.archived();
    let (moment, digest) = (jiff::Timestamp::now().to_string(), server.digest());
    server.pipe("FLUSHALL\nSET oops 1\n");
    stack.archived();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/runbooks/recover-redis-to-a-moment.md");
    let page = std::fs::read_to_string(page).unwrap();
    let commands: Vec<String> = page
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("stackward "))
        .map(|line| line.replace("'2026-11-20 14:30:00+00'", &moment).replace("/srv/look", "look"))
        .collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in &commands {
        machine.good(command);
        if command.starts_with("restore") && !command.contains("--dry-run") && !command.contains("--target") {
            assert_eq!(server.digest(), digest, "{command}");
        }
    }
    assert!(machine.path("look/cache/appendonlydir").is_dir());
    assert_eq!(follower.stop().0, 0);
}
