//! The built binary over the real engines and a real repository on disk: the stories that operators live through.

use crate::binary::kill;
use crate::machine::assert_shown;
use crate::support::{Machine, files_below, flip_a_bit, noise, stackward};

#[test]
fn a_tree_is_backed_up_lost_and_put_back() {
    let machine = Machine::backed_up();
    machine.good("verify --depth structure");
    machine.good("drill");
    std::fs::remove_dir_all(machine.path("tree")).unwrap();
    machine.good("restore");
    assert_eq!(std::fs::read(machine.path("tree/docs/a.txt")).unwrap(), b"one\ntwo\n");
    assert_eq!(std::fs::read(machine.path("tree/big")).unwrap(), noise(3_000_000));
    let second = machine.run("backup --json");
    let result = String::from_utf8(second.stdout).unwrap();
    let result: serde_json::Value = serde_json::from_str(result.lines().last().unwrap()).unwrap();
    assert_eq!(result["snapshot"]["outcome"], "complete");
    assert!(result["snapshot"]["stored_bytes"].as_u64().unwrap() < 100_000, "{result}");
}

#[test]
fn a_session_at_a_terminal() {
    let machine = Machine::new();
    let lines = ["list", "init", "init", "validate --online", "list", "backup", "list", "ls", "key list"];
    assert_shown("real_session", &hide_sizes(&machine.shown(&lines)));
}

/// What is stored depends on compression, which may change between versions of its library.
fn hide_sizes(text: &str) -> String {
    let size = |word: &str| matches!(word, "KiB" | "MiB" | "B");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hidden: Vec<&str> = words
            .iter()
            .enumerate()
            .map(|(at, word)| match words.get(at + 1) {
                Some(next) if size(next) => "#",
                _ => word,
            })
            .collect();
        hidden.join(" ") + "\n"
    };
    text.lines().map(line).collect()
}

/// Whatever the engines find on the machine that runs this test, the plan that comes of it is valid.
#[test]
fn init_writes_a_plan_that_validates() {
    let machine = Machine::new();
    std::fs::remove_file(machine.path("stackward.yaml")).unwrap();
    let preview: serde_json::Value = serde_json::from_str(&machine.good("init --dry-run --json")).unwrap();
    std::fs::write(machine.path("stackward.yaml"), preview["plan_text"].as_str().unwrap()).unwrap();
    machine.good("validate");
}

#[test]
fn a_machine_without_the_private_key_backs_up_and_checks_but_does_not_read() {
    let machine = Machine::backed_up();
    std::fs::rename(machine.path("stackward.key"), machine.path("elsewhere.key")).unwrap();
    machine.good("backup");
    assert!(machine.good("list").contains("complete"));
    machine.good("verify");
    let (code, stderr) = machine.bad("restore --target out");
    assert_eq!(code, 12, "{stderr}");
    assert!(!machine.path("out").exists());
    machine.good("restore --target out --identity elsewhere.key");
    machine.good("key generate --output other.key");
    let (code, stderr) = machine.bad("restore --target out2 --identity other.key");
    assert_eq!(code, 12, "{stderr}");
}

#[test]
fn keys_are_added_and_removed() {
    let machine = Machine::backed_up();
    let other = machine.good("key generate --output other.key").trim().to_owned();
    machine.good(&format!("key add {other}"));
    assert!(machine.good("key list").contains(&other));
    machine.good("restore --target with-other --identity other.key");
    machine.good(&format!("key remove {other}"));
    assert!(!machine.good("key list").contains(&other));
    let (code, stderr) = machine.bad("restore --target without --identity other.key");
    assert_eq!(code, 12, "{stderr}");
    std::fs::remove_dir_all(machine.path("state")).unwrap();
    assert_ne!(machine.bad("backup").0, 0, "without its writer key the machine does not write");
    machine.good("key enroll");
    machine.good("backup");
}

#[test]
fn one_flipped_bit_is_found_named_and_kept_out_of_a_restore() {
    let machine = Machine::backed_up();
    let packs = machine.objects("packs");
    flip_a_bit(packs.last().unwrap());
    let name = packs.last().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let output = machine.run("verify");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(20), "{stdout}");
    assert!(stdout.contains(&name), "{stdout}");
    assert!(stdout.contains("tree/"), "{stdout}");
    let (code, stderr) = machine.bad("restore --target out");
    assert_eq!(code, 20, "{stderr}");
}

#[test]
fn no_repository_has_its_code() {
    let machine = Machine::new();
    for line in ["backup", "list", "restore", "verify", "drill", "key list"] {
        let (code, stderr) = machine.bad(line);
        assert_eq!(code, 10, "{line}: {stderr}");
        assert!(stderr.contains("hint: "), "{line}: {stderr}");
    }
}

#[test]
fn cat_prints_the_very_bytes_and_a_reader_may_leave() {
    let machine = Machine::backed_up();
    let listed = machine.good("ls latest tree --json");
    let listed: serde_json::Value = serde_json::from_str(listed.lines().last().unwrap()).unwrap();
    let artifact = listed["artifacts"][0]["artifact"].as_str().unwrap().to_owned();
    let entries = machine.good(&format!("ls -R latest tree {artifact} --json"));
    let big = entries
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find_map(|entry| entry["path"].as_str().filter(|path| path.ends_with("tree/big")).map(str::to_owned));
    let line = format!("cat latest tree {artifact} {}", big.unwrap());
    assert_eq!(machine.run(&line).stdout, noise(3_000_000));
    let mut child = stackward(machine.root(), &line.split(' ').collect::<Vec<_>>()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}

/// The first signal stops a backup cleanly: nothing is committed, and the next run succeeds.
#[test]
fn an_interrupted_backup_commits_nothing_and_harms_nothing() {
    use std::io::{BufRead, BufReader};
    let machine = Machine::backed_up();
    // Far more than can be read before the signal comes.
    let huge = noise(1_000_000).repeat(400);
    std::fs::write(machine.path("tree/huge"), huge).unwrap();
    let mut child = stackward(machine.root(), &["backup", "--json"]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("\"started\""), "{line}");
    kill(&child, rustix::process::Signal::INT);
    let rest: Vec<String> = stdout.lines().map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.last().unwrap().contains("interrupted; nothing was committed"), "{rest:?}");
    std::fs::remove_file(machine.path("tree/huge")).unwrap();
    let snapshots = |machine: &Machine| machine.good("list").lines().count() - 1;
    assert_eq!(snapshots(&machine), 1);
    machine.good("backup");
    assert_eq!(snapshots(&machine), 2);
    machine.good("verify --all");
}

/// The README's first command, whole.
#[cfg(feature = "demo")]
#[test]
fn the_demo_loses_nothing_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // PostgreSQL's user must be able to enter it.
    let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let output = stackward(folder.path(), &["demo", "--json"]).env("TMPDIR", folder.path()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(result["differences"], 0);
    assert!(result["compared_rows"].as_u64().unwrap() > 500_000, "PostgreSQL and SQLite took part: {result}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

/// A database inside a folder that another source saves, in the plan before it.
#[test]
fn sources_that_lie_in_one_another_restore_together_and_take_nothing_from_each_other() {
    let saved_twice = "  db:\n    sqlite: { path: d/app.sqlite }\n  inner:\n    files: { paths: [d/in] }\n  \
                       d:\n    files: { paths: [d] }\n";
    let excluded = saved_twice.replace("[d] }", "[d], exclude: ['*.sqlite', '*.sqlite-*', in] }");
    for sources in [saved_twice, excluded.as_str()] {
        let machine = Machine::with_sources(sources, crate::support::Readers::Key);
        std::fs::create_dir_all(machine.path("d/in")).unwrap();
        std::fs::write(machine.path("d/a"), "saved").unwrap();
        std::fs::write(machine.path("d/in/b"), "saved").unwrap();
        let rows = || -> i64 {
            let database = rusqlite::Connection::open(machine.path("d/app.sqlite")).unwrap();
            database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
        };
        let sql = |text: &str| {
            rusqlite::Connection::open(machine.path("d/app.sqlite")).unwrap().execute_batch(text).unwrap();
        };
        sql("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2), (3)");
        machine.good("init");
        machine.good("backup");
        // An empty machine, in one go.
        std::fs::remove_dir_all(machine.path("d")).unwrap();
        machine.good("restore");
        let read = |path: &str| std::fs::read_to_string(machine.path(path)).unwrap();
        assert_eq!((read("d/a"), read("d/in/b"), rows()), ("saved".to_owned(), "saved".to_owned(), 3));
        // One source around the others: theirs stays as it is, newer rows and files too.
        sql("INSERT INTO t VALUES (4)");
        for path in ["d/a", "d/in/new", "d/new"] {
            std::fs::write(machine.path(path), "mine").unwrap();
        }
        assert_eq!(machine.bad("restore --source d").0, 1);
        machine.good("restore --source d --force");
        assert_eq!((read("d/a"), read("d/new"), rows()), ("saved".to_owned(), "mine".to_owned(), 4));
        let plan = machine.good("restore --source d --force --delete --dry-run");
        assert!(plan.contains("d/new") && !plan.contains("d/in/new"), "{plan}");
        assert!(plan.contains("the source `db`"), "{plan}");
        let json = machine.json("restore --source d --force --delete --dry-run");
        assert_eq!(json["sources"][0]["changes"]["removed"]["count"], 1, "{json}");
        assert_eq!(read("d/new"), "mine", "a dry run changes nothing");
        machine.good("restore --source d --force --delete");
        assert!(!machine.path("d/new").exists());
        assert_eq!((read("d/in/new"), rows()), ("mine".to_owned(), 4));
        machine.good("restore --force");
        assert_eq!((read("d/in/new"), rows()), ("mine".to_owned(), 3));
        let (code, stderr) = machine.bad("restore --delta");
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("--delta") && stderr.contains("--force"), "{stderr}");
    }
}

/// A repository inside what is saved: an old state of it must not come over the new one.
#[test]
fn a_restore_around_the_repository_leaves_it_alone() {
    let machine = Machine::with_sources(
        "  all:\n    files: { paths: ['.'], exclude: [stackward.key] }\n",
        crate::support::Readers::Key,
    );
    std::fs::write(machine.path("a"), "saved").unwrap();
    machine.good("init");
    machine.good("backup");
    machine.good("backup");
    std::fs::write(machine.path("a"), "mine").unwrap();
    let before = machine.objects("");
    machine.good("restore --force --delete");
    assert_eq!(machine.objects(""), before);
    assert_eq!(std::fs::read_to_string(machine.path("a")).unwrap(), "saved");
    assert_eq!(machine.snapshots().len(), 2);
    machine.good("backup");
}

/// The plan and the private key that this very restore needs: an old state of them must not come over the ones in use.
#[test]
fn a_restore_around_the_plan_and_the_key_leaves_them_alone() {
    let machine = Machine::with_sources("  all:\n    files: { paths: ['.'] }\n", crate::support::Readers::Key);
    std::fs::write(machine.path("a"), "saved").unwrap();
    machine.good("init");
    machine.good("backup");
    std::fs::write(machine.path("a"), "mine").unwrap();
    let (plan, key) = (machine.path("stackward.yaml"), machine.path("stackward.key"));
    for path in [&plan, &key] {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, format!("{text}# newer\n")).unwrap();
    }
    machine.good("restore --force --delete");
    assert_eq!(std::fs::read_to_string(machine.path("a")).unwrap(), "saved");
    for path in [&plan, &key] {
        assert!(std::fs::read_to_string(path).unwrap().ends_with("# newer\n"), "{}", path.display());
    }
    // A key that was not there when the snapshot was made, under a name of its own.
    let other = machine.path("other.key");
    std::fs::rename(&key, &other).unwrap();
    let said = machine.good("restore --force --delete --identity other.key --dry-run");
    assert!(said.contains("stackward.yaml") && said.contains("the private key"), "{said}");
    machine.good("restore --force --delete --identity other.key");
    assert!(other.exists() && key.exists(), "the one in use stays, and the saved one comes back");
}

/// A clock that was wrong once must not keep everything green for years.
#[test]
fn a_snapshot_from_the_future_is_not_the_latest_and_is_an_alarm() {
    let machine = Machine::backed_up();
    machine.plan("directory: { path: ./plain, compression: none }\n", "  tree:\n    files: { paths: [tree] }\n");
    machine.good("init");
    machine.good("backup");
    machine.good("status --check");
    let id = machine.snapshots().remove(0);
    let (old, ahead) = (machine.path("plain").join(&id), id.replacen(&id[..4], "2999", 1));
    let new = machine.path("plain").join(&ahead);
    for file in files_below(&old) {
        let to = new.join(file.strip_prefix(&old).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
    let manifest = std::fs::read_to_string(new.join("manifest.json")).unwrap();
    let manifest = manifest.replace(&id, &ahead).replace(&format!("\"{}-", &id[..4]), "\"2999-");
    std::fs::write(new.join("manifest.json"), manifest).unwrap();
    // It is no concern of this test, and the manifest is not what it was.
    std::fs::remove_file(new.join("SHA256SUMS")).unwrap();
    assert!(machine.good("list").contains(&ahead));
    assert!(machine.good("show latest").contains(&id), "the latest is the one from today");
    let output = machine.run("status --check");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&ahead) && said.contains("clock"), "{said}");
    let output = machine.run("drill");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(21), "{said}");
    assert!(said.contains(&ahead), "{said}");
    // On a machine whose own clock is behind, the older one would be restored without a word.
    let (code, stderr) = machine.bad("restore --target older");
    assert!(code == 1 && stderr.contains(&ahead) && stderr.contains(&format!("wrong, {id}")), "{code} {stderr}");
    machine.good(&format!("restore {id} --target older"));
    std::fs::remove_dir_all(&old).unwrap();
    let (code, stderr) = machine.bad("restore --target out");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("clock") && stderr.contains(&ahead), "{stderr}");
}

#[test]
fn a_second_backup_of_the_same_sources_is_busy() {
    let machine = Machine::backed_up();
    let locks: Vec<_> = std::fs::read_dir(machine.path("state/running")).unwrap().collect();
    assert_eq!(locks.len(), 1, "one source");
    let held = std::fs::File::open(locks[0].as_ref().unwrap().path()).unwrap();
    held.lock().unwrap();
    let (code, stderr) = machine.bad("backup");
    assert_eq!(code, 11, "{stderr}");
    assert!(stderr.contains("another backup of `tree` is running"), "{stderr}");
    drop(held);
    machine.good("backup");
}

#[test]
fn what_is_our_own_is_not_saved_into_itself() {
    let machine = Machine::backed_up();
    let plan = std::fs::read_to_string(machine.path("stackward.yaml")).unwrap();
    std::fs::write(machine.path("stackward.yaml"), plan.replace("paths: [tree]", "paths: [.]")).unwrap();
    let output = machine.run("backup");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("/repository` is the repository") && said.contains("not saved into itself"), "{said}");
    let listed = machine.good("ls -R latest tree tree");
    assert!(listed.contains("a.txt"), "{listed}");
    assert!(!listed.contains("packs") && !listed.contains("writer-key"), "{listed}");
    for own in ["repository", "repository/packs", "state"] {
        std::fs::write(machine.path("stackward.yaml"), plan.replace("[tree]", &format!("[{own}]"))).unwrap();
        let (code, stderr) = machine.bad("backup");
        assert_eq!(code, 2, "{own}: {stderr}");
        assert!(stderr.contains("saved into itself"), "{own}: {stderr}");
    }
}

/// An unmounted disk: the empty mount point is no directory.
#[test]
fn an_empty_folder_in_the_place_of_a_directory_ends_with_10() {
    let machine = Machine::backed_up();
    machine.plan("directory: { path: ./plain, compression: none }\n", "  tree:\n    files: { paths: [tree] }\n");
    machine.good("init");
    machine.good("backup");
    std::fs::rename(machine.path("plain"), machine.path("disk")).unwrap();
    std::fs::create_dir(machine.path("plain")).unwrap();
    let (code, stderr) = machine.bad("backup");
    assert_eq!(code, 10, "{stderr}");
    assert_eq!(std::fs::read_dir(machine.path("plain")).unwrap().count(), 0);
}

/// A slip of the pen makes no folder, and `validate` knows it before a night's backup does.
#[test]
fn a_place_that_is_misspelled_is_refused_by_validate_as_by_opening() {
    let machine = Machine::new();
    let sources = "  tree:\n    files: { paths: [tree] }\n";
    let repository = |url: &str| format!("repository: {{ url: '{url}', state: state, encryption: none }}\n");
    let directory = |path: &str| format!("directory: {{ path: '{path}' }}\n");
    let names = ["s3:bucket/x", "~/repo", "ann@host:/srv/x", "repo", "sftp://host/x", "file://host/x"];
    let mut plans: Vec<String> = names.iter().map(|url| repository(url)).collect();
    plans.extend(names.iter().map(|path| directory(path)));
    plans.extend([repository("s3://bucket/a/../b"), repository("s3://bucket#x"), directory("s3://bucket/x")]);
    let before = files_below(machine.root()).len();
    let folders = || std::fs::read_dir(machine.root()).unwrap().count();
    let entries = folders();
    for plan in plans {
        machine.plan(&plan, sources);
        let (code, said) = machine.bad("validate");
        assert_eq!(code, 2, "{plan}: {said}");
        for line in ["init", "backup", "list"] {
            assert_eq!(machine.bad(line), (code, said.clone()), "{line}: {plan}");
        }
    }
    machine.plan(&repository("s3://bucket/x"), sources);
    let output = machine.command("validate").env("AWS_ENDPOINT", "minio:9000").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("AWS_ENDPOINT") && said.contains("https://"), "{said}");
    assert_eq!((files_below(machine.root()).len(), folders()), (before, entries), "nothing was made");
}
