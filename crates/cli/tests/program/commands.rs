//! The commands from plan to rendering, in this process, over a sink in memory: what people see, word for word.

use crate::machine::Program;
use backup_core::sink::{Damage, Hurt};
use stackward::exit::Exit;

#[test]
fn init_writes_a_plan_and_a_key_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let program = Program::bare();
    let preview = program.run("init --dry-run");
    assert!(!program.path("stackward.yaml").exists() && !program.path("stackward.key").exists());
    let first = program.run("init --repository /backups/all");
    let plan = program.read("stackward.yaml");
    let key = program.read("stackward.key");
    assert_eq!(std::fs::metadata(program.path("stackward.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!plan.contains("AGE-SECRET-KEY") && !first.to_string().contains("AGE-SECRET-KEY"));
    let again = program.run("init");
    let refused = program.run("init --repository /elsewhere");
    assert_eq!((program.read("stackward.yaml"), program.read("stackward.key")), (plan.clone(), key.clone()));
    program.assert(
        "init",
        format!("{preview}\n{first}\n# stackward.yaml\n{plan}\n# stackward.key\n{key}\n{again}\n{refused}"),
    );
}

#[test]
fn init_takes_up_a_key_that_a_first_run_left() {
    let program = Program::bare();
    assert_eq!(program.run("key generate --output {}/stackward.key").exit, Exit::Done);
    let key = program.read("stackward.key");
    let public = key.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    assert_eq!(program.run("init").exit, Exit::Done);
    assert_eq!(program.read("stackward.key"), key);
    assert!(program.read("stackward.yaml").contains(&public));
}

#[test]
fn validate_says_whether_a_backup_would_work() {
    let program = Program::ready();
    let good = program.session(&["validate", "validate --online"]);
    program.remove("second.txt");
    let bad = program.session(&["validate --online", "validate --online --json"]);
    program.assert("validate", format!("{good}\n{bad}"));
}

#[test]
fn backup_commits_and_tells() {
    let program = Program::ready();
    let shown =
        program.session(&["backup --dry-run", "backup", "backup second", "backup --quiet", "backup --json first"]);
    program.assert("backup", shown);
    assert_eq!(program.snapshots().len(), 4);
}

#[test]
fn a_source_that_fails_makes_the_snapshot_partial() {
    let program = Program::ready();
    program.remove("second.txt");
    let shown = program.run("backup");
    assert_eq!(shown.exit, Exit::Partial);
    program.assert(
        "backup_partial",
        format!("{shown}\n{}", program.session(&["list", "show", "ls latest", "backup second"])),
    );
    assert_eq!(program.snapshots().len(), 1);
}

#[test]
fn a_source_may_demand_that_nothing_is_committed() {
    let program = Program::ready();
    program.plan("on_failure: abort\n");
    program.remove("second.txt");
    let shown = program.run("backup");
    assert_eq!(shown.exit, Exit::Failed);
    assert!(program.snapshots().is_empty());
    program.assert("backup_abort", shown);
}

#[test]
fn an_engine_that_panics_is_reported_as_a_defect_of_it() {
    let program = Program::ready();
    program.plan("  third:\n    note: { path: first.txt, fault: panic }\n");
    let shown = program.run("backup third");
    assert_eq!(shown.exit, Exit::Failed);
    assert!(shown.stderr.contains("this is a defect of it"), "{shown}");
    assert!(program.snapshots().is_empty());
}

#[test]
fn an_interrupted_backup_commits_nothing() {
    let program = Program::ready();
    program.plan("  third:\n    note: { path: first.txt, fault: hang }\n");
    let cancel = program.cancel.clone();
    let shown = std::thread::scope(|scope| {
        // However the two threads are scheduled, the backup cannot end by itself.
        scope.spawn(move || cancel.cancel());
        program.run("backup")
    });
    assert_eq!(shown.exit, Exit::Interrupted);
    // A source may have warned before it was interrupted.
    assert!(shown.stderr.ends_with("error: interrupted; nothing was committed\n"), "{shown}");
    let restore = program.run("restore");
    assert_eq!(
        (restore.exit, restore.stderr.as_str()),
        (Exit::Interrupted, "error: interrupted; the restore is not complete\n")
    );
}

#[test]
fn list_and_show() {
    let program = Program::ready();
    let empty = program.session(&["list", "show"]);
    program.run("backup");
    let full = program.session(&["list", "list --all-plans", "list --json", "show", "show --json"]);
    program.assert("list_and_show", format!("{empty}\n{full}"));
}

#[test]
fn snapshots_are_named_by_unique_beginnings() {
    let program = Program::ready();
    program.run("backup");
    program.run("backup second");
    let ids = program.snapshots();
    let shortest =
        (1..ids[0].as_str().len()).find(|end| !ids[1].as_str().starts_with(&ids[0].as_str()[..*end])).unwrap();
    let unique = &ids[0].as_str()[..shortest];
    assert!(program.run(&format!("show {unique}")).text().contains(ids[0].as_str()));
    let ambiguous = program.run("show 2");
    assert_eq!(ambiguous.exit, Exit::Usage);
    assert!(ambiguous.stderr.contains("2 snapshots' ids begin with `2`"), "{ambiguous}");
    let none = program.run("show 1999");
    assert_eq!(none.exit, Exit::Failed);
    assert!(none.stderr.contains("no snapshot's id begins with `1999`"), "{none}");
    program.assert("snapshot_names", program.session(&["show nonsense", "show 19990101-000000-00000000"]));
}

#[test]
fn ls_and_cat() {
    let program = Program::ready();
    program.run("backup");
    let shown = program.session(&[
        "ls",
        "ls latest first",
        "ls latest first files",
        "ls latest first files dir",
        "ls -R latest first files",
        "ls latest first files --json",
        "ls latest first note.txt",
        "ls latest third",
        "ls latest first files nowhere",
        "cat latest first note.txt",
        "cat latest first files",
        "cat latest first files link",
        "cat latest first files nowhere",
        "cat latest first note.txt x",
        "cat latest first nothing",
        "cat latest first note.txt --json",
    ]);
    program.assert("ls_and_cat", shown);
    for path in ["dir/sparse", "/dir/sparse", "same"] {
        assert_eq!(program.run(&format!("cat latest first files {path}")).stdout, b"head\0\0\0\0", "{path}");
    }
}

#[test]
fn verify_finds_nothing_in_a_good_snapshot() {
    let program = Program::ready();
    program.run("backup");
    program.run("backup");
    let lines =
        ["verify", "verify --depth manifest --all", "verify --depth structure", "verify --json --depth structure"];
    program.assert("verify_good", program.session(&lines));
    assert_eq!(program.run("verify --all --latest").exit, Exit::Usage);
}

#[test]
fn verify_names_what_damage_hurts() {
    let program = Program::ready();
    program.run("backup");
    let snapshot = program.snapshots().remove(0);
    let hurt = |source: &str, artifact: Option<&str>, files: &[&str]| Hurt {
        snapshot: snapshot.clone(),
        source: Some(source.parse().unwrap()),
        artifact: artifact.map(|name| name.parse().unwrap()),
        files: files.iter().map(ToString::to_string).collect(),
    };
    program.damage(Damage {
        object: "packs/ab/ab12".to_owned(),
        problem: "its checksum is wrong".to_owned(),
        hurts: vec![hurt("first", Some("files"), &["dir/sparse"]), hurt("first", Some("note.txt"), &[])],
    });
    let shown = program.run("verify");
    assert_eq!(shown.exit, Exit::Damage);
    let json = program.run("verify --json");
    // What is undamaged can be restored; what is damaged is refused before the first write.
    program.remove("first.txt");
    program.remove("second.txt");
    let refused = program.run("restore");
    assert_eq!(refused.exit, Exit::Damage);
    assert!(!program.path("first.txt").exists() && !program.path("second.txt").exists());
    let other = program.run("restore --source second");
    assert_eq!(program.read("second.txt"), "three\n");
    program.assert("verify_damage", format!("{shown}\n{json}\n{refused}\n{other}"));
}

#[test]
fn verify_asks_the_engines_about_structure() {
    let program = Program::ready();
    program.write("second.txt", "cut in the midd");
    program.run("backup");
    let shown = program.session(&["verify", "verify --depth structure"]);
    program.assert("verify_structure", shown);
}

#[test]
fn restore_round_trips_and_refuses_what_is_in_its_way() {
    let program = Program::ready();
    program.run("backup");
    program.write("first.txt", "changed\n");
    program.remove("second.txt");
    let refused = program.run("restore");
    assert_eq!(refused.exit, Exit::Failed);
    assert!(!program.path("second.txt").exists(), "all checks come before the first write");
    let rest = program.session(&[
        "restore --dry-run --force",
        "restore --force",
        "restore --source first --target {}/elsewhere",
        "restore --source first --target {}/elsewhere --json --force",
        "restore --select x",
        "restore --source frist",
    ]);
    assert_eq!(program.read("first.txt"), "one\ntwo\n");
    assert_eq!(program.read("second.txt"), "three\n");
    assert_eq!(program.read("elsewhere/first/note.txt"), "one\ntwo\n");
    program.assert("restore", format!("{refused}\n{rest}"));
}

#[test]
fn latest_is_the_newest_that_holds_what_is_restored() {
    let program = Program::ready();
    program.run("backup");
    program.remove("second.txt");
    program.write("first.txt", "newer\n");
    assert_eq!(program.run("backup").exit, Exit::Partial);
    assert_eq!(program.run("restore --force").exit, Exit::Done);
    assert_eq!(program.read("first.txt"), "one\ntwo\n");
    assert_eq!(program.run("restore --force --source first").exit, Exit::Done);
    assert_eq!(program.read("first.txt"), "newer\n");
    let ids = program.snapshots();
    let partial = program.run(&format!("restore {} --force", ids[1]));
    assert_eq!(partial.exit, Exit::Failed);
    program.assert("restore_partial", partial);
}

#[test]
fn drills_prove_and_judge_promises() {
    let program = Program::ready();
    program.run("backup");
    let good = program.session(&["drill", "drill --source first --json"]);
    program.plan("promise: { rpo: 1d, rto: 1h }\n");
    let kept = program.run("drill");
    program.plan("promise: { rto: 0s }\n");
    let missed = program.run("drill");
    assert_eq!(missed.exit, Exit::DrillFailed);
    program.assert("drill", format!("{good}\n{kept}\n{missed}"));
}

#[test]
fn wrong_answers_fail_a_drill() {
    let program = Program::bare();
    program.run("init");
    program.write("first.txt", "one\n");
    let plan = "version: 1\nname: demo\nrepository: { url: /x }\nsources:\n  first:\n    note: { path: first.txt, fault: drill }\n";
    program.write("stackward.yaml", plan);
    program.run("backup");
    let shown = program.session(&["drill", "drill --json"]);
    program.assert("drill_wrong", shown);
}

#[test]
fn one_engines_error_does_not_keep_the_others_from_being_checked() {
    let program = Program::bare();
    program.run("init");
    program.write("first.txt", "one\n");
    program.write("second.txt", "two\n");
    let plan = "version: 1\nname: demo\nrepository: { url: /x }\nsources:\n  first:\n    note: { path: first.txt, fault: sick }\n  second:\n    note: { path: second.txt }\n";
    program.write("stackward.yaml", plan);
    program.run("backup");
    for command in ["verify --depth structure --json", "drill --json"] {
        let shown = program.run(command);
        assert_eq!(shown.exit, Exit::Failed, "{shown}");
        let result = shown.result();
        assert!(result["failed"][0].as_str().unwrap().contains("shorthand"), "{shown}");
        assert_eq!(result["failed"].as_array().unwrap().len(), 1, "{shown}");
        let second = if command.starts_with("drill") { &result["sources"][0]["name"] } else { &result["checked"][0] };
        assert!(second.as_str().unwrap().contains("second"), "the other one was looked at: {shown}");
    }
    let shown = program.run("verify --depth structure");
    assert!(shown.stderr.contains("shorthand") && shown.stderr.contains("ask whoever wrote it"), "{shown}");
    let shown = program.run("drill");
    assert!(shown.stderr.contains("shorthand") && !shown.text().contains("proven\n"), "{shown}");
    let alone = program.run("drill --source first");
    assert!(alone.exit == Exit::Failed && alone.stderr.contains("shorthand"), "{alone}");
}

#[test]
fn each_way_to_have_no_sink_has_its_code() {
    let program = Program::bare();
    program.plan("");
    let none = program.run("list");
    assert_eq!(none.exit, Exit::NoRepository);
    let program = Program::ready();
    program.lock();
    let wrong = program.run("backup --json");
    assert_eq!(wrong.exit, Exit::WrongKey);
    program.assert("no_sink", format!("{none}\n{wrong}"));
}

#[test]
fn keys() {
    let program = Program::ready();
    let shown = program.session(&[
        "key generate",
        "key generate --json",
        "key generate --output {}/new.key --json",
        "key generate --output {}/new.key",
        "key add nonsense",
        "--identity {}/missing.key key list",
    ]);
    program.assert("keys", shown);
}

#[test]
fn a_plain_directory_has_no_keys() {
    let program = Program::bare();
    let plan = "version: 1\nname: demo\ndirectory: { path: out }\nsources:\n  first:\n    note: { path: first.txt }\n";
    program.write("stackward.yaml", plan);
    let shown = program.run("key list");
    assert_eq!(shown.exit, Exit::Usage);
    assert!(shown.stderr.contains("a plain directory has no keys"), "{shown}");
}
