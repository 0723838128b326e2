//! `docs/recover.py`, the reader without Stackward: what it restores is what was saved, and its errors are plain.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backup_core::log::SegmentMeta;
use backup_testkit::log_suite::{content, segment};
use backup_testkit::{PrivatePostgres, noise};

use crate::support::tree::{describe, everything, set_times};
use crate::support::{Machine, PHRASE, Readers, flip_a_bit, run_tool, text, tool};

/// The distribution's Python, which has the package `cryptography`.
const PYTHON: &str = "/usr/bin/python3";

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recover.py")
}

/// recover.py on the repository of this machine.
fn recover(machine: &Machine, arguments: &[&str]) -> Command {
    let mut command = tool(PYTHON);
    command.arg(script()).arg("repository").args(arguments).current_dir(machine.root());
    command
}

fn refused(machine: &Machine, arguments: &[&str]) -> String {
    let output: Output = recover(machine, arguments).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(!said.contains("Traceback"), "{said}");
    said
}

/// A tree with every kind of entry and a database.
fn machine(readers: Readers, more: &str) -> Machine {
    let sources = format!("  tree:\n    files: {{ paths: [tree] }}\n  app:\n    sqlite: {{ path: app.db }}\n{more}");
    let machine = Machine::with_sources(&sources, readers);
    std::fs::create_dir(machine.path("tree")).unwrap();
    everything(&machine.path("tree"));
    let database = rusqlite::Connection::open(machine.path("app.db")).unwrap();
    database.execute_batch("create table t (a, b); insert into t values (1, 'one'), (2, zeroblob(100000));").unwrap();
    drop(database);
    machine.good("init");
    machine.good("backup");
    machine
}

/// Restores every artifact of every snapshot; streams must be what `stackward cat` prints, the tree what it was.
fn assert_all_recovered(machine: &Machine, key: &[&str]) -> usize {
    let listed = run_tool(&mut recover(machine, key));
    let ids: std::collections::BTreeSet<&str> = listed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(ids.into_iter().collect::<Vec<_>>(), machine.snapshots());
    let mut count = 0;
    for line in listed.lines() {
        let [snapshot, source, artifact, kind, bytes] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let target = machine.path("recovered");
        let name = [snapshot, source, artifact, "recovered"];
        run_tool(&mut recover(machine, &[key, &name].concat()));
        if kind == "tree" {
            let tree = target.join(machine.path("tree").strip_prefix("/").unwrap());
            assert_eq!(describe(&tree), describe(&machine.path("tree")));
            std::fs::remove_dir_all(&target).unwrap();
        } else {
            let expected = machine.run(&format!("cat {snapshot} {source} {artifact}")).stdout;
            assert_eq!(expected.len().to_string(), bytes, "{line}");
            assert!(std::fs::read(&target).unwrap() == expected, "{line}");
            std::fs::remove_file(&target).unwrap();
        }
        count += 1;
    }
    count
}

#[test]
fn every_artifact_of_an_encrypted_repository_is_recovered() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "create table t as select g, repeat('x', g) from generate_series(1, 1000) g");
    let socket = server.socket_folder().display();
    let machine = machine(Readers::Key, &format!("  db:\n    postgres: {{ socket: {socket} }}\n"));
    // The second snapshot refers to packs and keys of the first.
    std::fs::write(machine.path("tree/dir/new"), "new").unwrap();
    machine.good("backup");
    let first = machine.snapshots().remove(0);
    std::fs::remove_file(machine.path("tree/dir/new")).unwrap();
    set_times(&machine.path("tree/dir"), 1_234_567_890, 123_456_789);
    machine.good("backup");
    // What differs from the tree as it is now is not compared; what is left are the first and the third.
    let second = machine.snapshots().remove(1);
    std::fs::remove_file(machine.path("repository/snapshots").join(&second)).unwrap();
    let count = assert_all_recovered(&machine, &["--identity", "stackward.key"]);
    assert!(count >= 2 * 5, "a tree, a database, and the dump, globals and settings of a server, twice: {count}");
    assert_eq!(machine.snapshots()[0], first);
}

#[test]
fn every_artifact_of_an_open_repository_is_recovered() {
    let machine = machine(Readers::Everybody, "");
    assert_all_recovered(&machine, &[]);
}

/// A database of which a few pages changed: the second snapshot's are pieces of chunks of both.
#[test]
fn a_database_that_changed_in_a_few_pages_is_recovered() {
    let machine = machine(Readers::Key, "");
    let database = rusqlite::Connection::open(machine.path("app.db")).unwrap();
    let grow = "with recursive n(i) as (select 3 union all select i + 1 from n where i < 400)
        insert into t select i, randomblob(5000) from n";
    database.execute_batch(grow).unwrap();
    machine.good("backup");
    let stored = || -> u64 { machine.objects("packs").iter().map(|pack| pack.metadata().unwrap().len()).sum() };
    let before = stored();
    database.execute_batch("update t set b = randomblob(5000) where a % 50 = 7").unwrap();
    machine.good("backup");
    let added = stored() - before;
    assert!(added < 200_000, "{added} bytes for eight rows of 400");
    assert!(assert_all_recovered(&machine, &["--identity", "stackward.key"]) >= 6);
    machine.good("verify");
}

/// Segments of a log, sealed and not, long and empty: what the script restores is what was stored.
#[tokio::test]
async fn a_log_is_recovered() {
    for readers in [Readers::Key, Readers::Everybody] {
        let machine = machine(readers, "");
        let plan = backup_core::plan::parse(
            &std::fs::read_to_string(machine.path("stackward.yaml")).unwrap(),
            stackward::engines::ENGINES,
        )
        .unwrap();
        let sink = storage::open(&plan.sink, machine.root(), &storage::Unlock::default()).await.unwrap();
        let source = backup_core::SourceName::new("db").unwrap();
        let cases = [("a", noise(300_000, 1)), ("b", noise(0, 1)), ("c.history", noise(10, 2))];
        for (name, bytes) in &cases {
            let put = sink.logs().unwrap();
            put.put(&source, &segment("00000001", name), SegmentMeta::default(), content(bytes)).await.unwrap();
        }
        let key: &[&str] = if readers == Readers::Key { &["--identity", "stackward.key"] } else { &[] };
        let listed = run_tool(&mut recover(&machine, &[key, &["--log", "db"]].concat()));
        assert_eq!(listed.lines().count(), 3, "{listed}");
        run_tool(&mut recover(&machine, &[key, &["--log", "db", "recovered"]].concat()));
        for (name, bytes) in &cases {
            assert!(std::fs::read(machine.path("recovered/00000001").join(name)).unwrap() == *bytes, "{name}");
        }
        assert_eq!(std::fs::read_dir(machine.path("recovered/00000001")).unwrap().count(), 3);
        flip_a_bit(&machine.path("repository/logs/db/00000001/a"));
        let said = refused(&machine, &[key, &["--log", "db", "again"]].concat());
        assert!(said.contains("damaged"), "{said}");
    }
}

/// `age` asks for the passphrase at the terminal; `script` gives it one.
#[test]
fn a_passphrase_opens_the_key_that_recovers() {
    let machine = machine(Readers::Passphrase, "");
    let mut by_hand = tool("script");
    by_hand.args(["-qec", "age --decrypt -o unlocked.key repository/keys/passphrase-*.age", "/dev/null"]);
    let mut child = by_hand.current_dir(machine.root()).stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("{PHRASE}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    // Its plan asks for the passphrase, whose derivation is slow on purpose: no more commands than needed.
    let key = ["--identity", "unlocked.key"];
    let snapshot = run_tool(&mut recover(&machine, &key)).split(' ').next().unwrap().to_owned();
    run_tool(&mut recover(&machine, &[&key[..], &[&snapshot, "tree", "tree", "recovered"]].concat()));
    let tree = machine.path("recovered").join(machine.path("tree").strip_prefix("/").unwrap());
    assert_eq!(describe(&tree), describe(&machine.path("tree")));
}

#[test]
fn its_errors_name_the_thing() {
    let machine = Machine::backed_up();
    machine.good("key generate --output other.key");
    let key = ["--identity", "stackward.key"];
    let with_key = |more: &[&str]| refused(&machine, &[&key[..], more].concat());
    assert!(refused(&machine, &[]).contains("--identity KEYFILE"));
    assert!(refused(&machine, &["--identity", "other.key"]).contains("other.key does not open"));
    let snapshot = machine.snapshots().remove(0);
    let missing = with_key(&["20260101-000000-00000000", "tree", "tree", "out"]);
    assert!(missing.contains("there is no snapshot 20260101-000000-00000000") && missing.contains(&snapshot));
    assert!(with_key(&[&snapshot, "wood", "tree", "out"]).contains("no source wood; it has: tree"));
    assert!(with_key(&[&snapshot, "tree", "twig", "out"]).contains("no artifact twig; it has: "));
    assert!(with_key(&[&snapshot, "tree", "twig", "tree"]).contains("tree exists"));
    let no_tools = recover(&machine, &key).env("PATH", "/nowhere").output().unwrap();
    assert!(text(&no_tools.stderr).contains("is missing: apt install"), "{}", text(&no_tools.stderr));
    let artifact = run_tool(&mut recover(&machine, &key)).split(' ').nth(2).unwrap().to_owned();
    let packs = machine.objects("packs");
    let largest = packs.iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    flip_a_bit(largest);
    assert!(with_key(&[&snapshot, "tree", &artifact, "out"]).contains("damaged: a chunk of "));
    flip_a_bit(&machine.path("repository/snapshots").join(&snapshot));
    assert!(with_key(&[&snapshot, "tree", &artifact, "out2"]).contains("damaged"));
    std::fs::remove_file(machine.path("repository/config")).unwrap();
    assert!(with_key(&[]).contains("there is no repository in repository"));
}
