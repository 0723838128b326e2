//! What a person reads, and a script sees, when the plan, the files or the repository are not what they should be.

use crate::support::{Machine, Readers, run_tool, shown, text, tool};

/// Compares with the snapshot `name`, without what differs from run to run.
fn assert_shown(name: &str, text: &str) {
    insta::with_settings!({ filters => vec![
        (r"\d{8}-\d{6}-[0-9a-z]{8}", "20261120-063551-7k3q9xwm"),
        (r"age1[0-9a-z]{58}", "age1publickey"),
        (r"\b[0-9a-f]{32}\b", "00112233445566778899aabbccddeeff"),
        (r"\b\d+\.\d s\b", "0.0 s"),
        (r"\b\d+ s\b", "0 s"),
    ], snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}

fn session(machine: &Machine, line: &str) -> String {
    shown(machine.root(), &line.split(' ').collect::<Vec<_>>())
}

#[test]
fn plans_that_are_wrong_have_code_two() {
    let machine = Machine::backed_up();
    let plan = std::fs::read_to_string(machine.path("stackward.yaml")).unwrap();
    let cases = [
        ("wrong type", plan.replace("paths: [tree]", "paths: 7"), "backup"),
        ("unknown field of an engine", plan.replace("paths:", "path:"), "backup"),
        ("duplicate source", format!("{plan}  tree:\n    files: {{ paths: [tree] }}\n"), "backup"),
        ("missing secret", plan.replace("  state:", "  passphrase: { env: NO_SUCH_VARIABLE }\n  state:"), "list"),
        ("missing secret file", plan.replace("  state:", "  passphrase: { file: nowhere }\n  state:"), "list"),
        ("not a key", plan.replace("recipients: [", "recipients: [age1nonsense, "), "backup"),
        ("unencrypted by mistake", plan.replace("  state:", "  encryption: none\n  state:"), "backup"),
    ];
    let mut all = String::new();
    for (what, plan, line) in cases {
        std::fs::write(machine.path("stackward.yaml"), plan).unwrap();
        let text = session(&machine, line);
        assert!(text.ends_with("[exit 2]\n"), "{what}: {text}");
        all.push_str(&format!("# {what}\n{text}\n"));
    }
    assert_shown("wrong_plans", &all);
    std::fs::write(machine.path("stackward.yaml"), plan).unwrap();
    assert_eq!(machine.snapshots().len(), 1);
}

#[test]
fn a_repository_that_is_not_there_not_whole_or_not_ours_has_its_code() {
    let mut all = String::new();
    let mut show = |what: &str, machine: &Machine, lines: &[&str], code: i32| {
        for line in lines {
            let text = session(machine, line);
            assert!(text.ends_with(&format!("[exit {code}]\n")), "{what}: {text}");
            all.push_str(&format!("# {what}\n{text}\n"));
        }
    };
    show("missing", &Machine::new(), &["backup"], 10);
    let half = Machine::backed_up();
    std::fs::remove_file(half.path("repository/config")).unwrap();
    show("half initialised", &half, &["backup", "restore"], 10);
    let newer = Machine::backed_up();
    let config = newer.path("repository/config");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    show("newer format", &newer, &["backup", "list"], 1);
    let locked = Machine::backed_up();
    locked.good("key generate --output other.key");
    show("wrong key", &locked, &["restore --identity other.key --target out"], 12);
    std::fs::remove_file(locked.path("stackward.key")).unwrap();
    show("no key", &locked, &["restore --target out"], 12);
    std::fs::remove_dir_all(locked.path("state")).unwrap();
    show("no key at all", &locked, &["backup", "list"], 12);
    assert_shown("repositories", &all);
}

/// A creation that died before its `config` is taken up by the next `init`.
#[test]
fn the_remains_of_an_init_that_died_are_no_obstacle() {
    let machine = Machine::new();
    machine.good("init");
    std::fs::remove_file(machine.path("repository/config")).unwrap();
    let (code, stderr) = machine.bad("backup");
    assert_eq!(code, 10, "{stderr}");
    machine.good("init");
    machine.good("backup");
    machine.good("restore --target out");
}

/// As a user who may not read everything: the source fails and is named, nothing is committed in silence.
#[test]
fn an_unreadable_file_fails_its_source() {
    use std::os::unix::fs::PermissionsExt;
    assert!(rustix::process::geteuid().is_root(), "run the tests as root: it becomes another user");
    let machine = Machine::with_sources("  tree:\n    files: { paths: [tree] }\n", Readers::Key);
    let program = machine.path("stackward");
    std::fs::copy(env!("CARGO_BIN_EXE_stackward"), &program).unwrap();
    std::fs::create_dir(machine.path("tree")).unwrap();
    std::fs::write(machine.path("tree/mine"), "for all\n").unwrap();
    std::fs::write(machine.path("tree/secret"), "for root\n").unwrap();
    machine.good("init");
    run_tool(tool("chown").args(["-R", "nobody:nogroup"]).arg(machine.root()));
    std::os::unix::fs::chown(machine.path("tree/secret"), Some(0), Some(0)).unwrap();
    std::fs::set_permissions(machine.path("tree/secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut as_nobody = tool("setpriv");
    as_nobody.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(&program).arg("backup");
    let output = as_nobody.current_dir(machine.root()).env("NO_COLOR", "").output().unwrap();
    let said = text(&output.stderr).replace(&machine.root().display().to_string(), "/stack");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_shown("unreadable", &said);
    assert_eq!(machine.snapshots(), Vec::<String>::new());
}
