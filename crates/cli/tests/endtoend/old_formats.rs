//! Formats that were ever written are read forever: fixtures, kept as they were made.
//!
//! `STACKWARD_WRITE_FIXTURES=1 cargo nextest run -p stackward old_formats` makes fixtures that are missing. It never
//! changes one that is there: a new version of the format gets a fixture of its own.

use std::path::{Path, PathBuf};

use crate::support::tree::{describe, set_times};
use crate::support::{Machine, Readers, noise, stackward, text};

/// Where the fixture's tree lay when it was made: its path is in the listing.
const MADE_IN: &str = "/tmp/stackward-fixture-v1";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_folder(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

/// A small tree; its list of extents nests, and yet it takes a few kilobytes.
fn make_tree(root: &Path) {
    use std::os::unix::fs::FileExt;
    std::fs::create_dir_all(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/text"), "known text\n".repeat(500)).unwrap();
    std::fs::write(root.join("noise"), noise(20_000)).unwrap();
    std::fs::write(root.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("dir/text", root.join("link")).unwrap();
    std::fs::hard_link(root.join("noise"), root.join("same noise")).unwrap();
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    for stretch in 0..300 {
        holes.write_all_at(&noise(4096), stretch * 65_536).unwrap();
    }
    for path in ["dir/text", "noise", "empty", "link", "holes", "dir", ""] {
        set_times(&root.join(path), 1_700_000_000, 123_456_789);
    }
}

fn write_fixture(fixture: &Path) {
    let made = Path::new(MADE_IN);
    std::fs::create_dir_all(made.join("tree")).unwrap();
    make_tree(&made.join("tree"));
    let database = rusqlite::Connection::open(made.join("app.db")).unwrap();
    database.execute_batch("create table t (a, b); insert into t values (1, 'one'), (2, 'two');").unwrap();
    drop(database);
    let machine = Machine::with_sources(
        &format!(
            "  tree:\n    files: {{ paths: [{MADE_IN}/tree] }}\n  app:\n    sqlite: {{ path: {MADE_IN}/app.db }}\n"
        ),
        Readers::Key,
    );
    machine.good("init");
    machine.good("backup");
    machine.good("backup");
    let expected = describe(&made.join("tree"));
    copy_folder(&machine.path("repository"), &fixture.join("repository"));
    std::fs::copy(machine.path("stackward.key"), fixture.join("identity.key")).unwrap();
    std::fs::write(fixture.join("expected.txt"), expected).unwrap();
    std::fs::remove_dir_all(made).unwrap();
}

#[test]
fn a_repository_of_version_1_restores() {
    let fixture = fixtures().join("repository-v1");
    if std::env::var_os("STACKWARD_WRITE_FIXTURES").is_some() && !fixture.exists() {
        write_fixture(&fixture);
    }
    let sources = "  tree:\n    files: { paths: [tree] }\n  app:\n    sqlite: { path: app.db }\n";
    let machine = Machine::with_sources(sources, Readers::Key);
    copy_folder(&fixture.join("repository"), &machine.path("repository"));
    std::fs::copy(fixture.join("identity.key"), machine.path("stackward.key")).unwrap();
    assert_eq!(machine.snapshots().len(), 2);
    machine.good("verify --all --depth structure");
    for (number, id) in machine.snapshots().iter().enumerate() {
        let out = format!("out{number}");
        machine.good(&format!("restore {id} --target {out}"));
        let tree = machine.path(&out).join("tree").join(MADE_IN.trim_start_matches('/')).join("tree");
        let expected = std::fs::read_to_string(fixture.join("expected.txt")).unwrap();
        assert_eq!(describe(&tree), expected);
        let databases = crate::support::files_below(&machine.path(&out).join("app"));
        assert_eq!(databases.len(), 1, "{databases:?}");
        let database = rusqlite::Connection::open(&databases[0]).unwrap();
        let rows: String = database.query_row("select group_concat(a || b, ' ') from t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, "1one 2two");
    }
    // Whoever has the private key can go on writing into it.
    machine.good("key enroll");
    let plan = std::fs::read_to_string(machine.path("stackward.yaml")).unwrap();
    let known = std::fs::read_to_string(machine.path("repository/config")).unwrap();
    let recipient = known.split('"').find(|word| word.starts_with("age1")).unwrap();
    let own = plan.split('[').nth(1).unwrap().split(']').next().unwrap().to_owned();
    std::fs::write(machine.path("stackward.yaml"), plan.replace(&own, recipient)).unwrap();
    copy_folder(&machine.path("out1/tree").join(MADE_IN.trim_start_matches('/')).join("tree"), &machine.path("tree"));
    machine.good("backup tree");
}

#[test]
fn manifests_of_version_1_parse() {
    let folder = fixtures().join("manifest-v1");
    if std::env::var_os("STACKWARD_WRITE_FIXTURES").is_some() && !folder.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let server = backup_testkit::PrivatePostgres::start();
        server.sql("postgres", "create table t as select 1 as a");
        let socket = server.socket_folder().display();
        let sources = format!(
            "  tree:\n    files: {{ paths: [tree] }}\n  app:\n    sqlite: {{ path: app.db }}\n  \
             gone:\n    files: {{ paths: [gone] }}\n  db:\n    postgres: {{ socket: {socket} }}\n"
        );
        let machine = Machine::with_sources(&sources, Readers::Key);
        machine.plan("directory: { path: ./plain, compression: gzip }\n", &sources);
        make_tree(&machine.path("tree"));
        let database = rusqlite::Connection::open(machine.path("app.db")).unwrap();
        database.execute_batch("create table t (a); insert into t values (1);").unwrap();
        machine.good("init");
        let run = |name: &str, code: i32| {
            let output = stackward(machine.root(), &["backup"]).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
            let newest = std::fs::read_dir(machine.path("plain")).unwrap().map(|item| item.unwrap().path()).max();
            std::fs::copy(newest.unwrap().join("manifest.json"), folder.join(name)).unwrap();
        };
        run("partial.json", 3);
        std::fs::write(machine.path("gone"), "here again").unwrap();
        std::fs::remove_dir_all(machine.path("plain")).unwrap();
        machine.good("init");
        run("complete.json", 0);
    }
    let mut parsed = 0;
    for item in std::fs::read_dir(&folder).unwrap() {
        let path = item.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let manifest = backup_core::manifest::parse(text.as_bytes()).unwrap();
        let again: serde_json::Value =
            serde_json::from_slice(&backup_core::manifest::render(&manifest).unwrap()).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(again, kept, "{}: nothing that was written is lost in reading", path.display());
        parsed += 1;
    }
    assert!(parsed >= 2, "fixtures of a complete and of a partial snapshot");
}
