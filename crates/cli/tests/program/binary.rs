//! The built binary: what only a process shows, exit codes, streams, signals and closed pipes.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;

use crate::machine::assert_shown;
use crate::support::{run, shown, stackward};

#[test]
fn help_is_short_and_names_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let all = ["--help", "backup --help", "restore --help", "verify --help", "key --help"]
        .map(|line| shown(folder.path(), &line.split(' ').collect::<Vec<_>>()))
        .join("\n");
    assert_shown("help", &all);
    assert_eq!(run(folder.path(), &[]).status.code(), Some(2), "no command is a usage error");
}

#[test]
fn faults_of_usage_and_plan_have_code_two() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [
        ("no plan", "", "list"),
        ("unknown command", "", "bakcup"),
        ("unknown option", "", "backup --fast"),
        ("unknown field", "version: 1\nname: x\nrepository: { url: /x }\nsources: {}\nzebra: 1\n", "validate"),
        ("unknown engine", "version: 1\nname: x\nrepository: { url: /x }\nsources: { a: { zebra: {} } }\n", "validate"),
        ("not YAML", "[", "backup --json"),
        ("bad source name", "", "backup ../etc"),
    ];
    let mut all = String::new();
    for (what, plan, line) in lines {
        let path = folder.path().join("stackward.yaml");
        if plan.is_empty() {
            std::fs::remove_file(&path).unwrap_or_default();
        } else {
            std::fs::write(&path, plan).unwrap();
        }
        let text = shown(folder.path(), &line.split(' ').collect::<Vec<_>>());
        assert!(text.ends_with("[exit 2]\n"), "{what}: {text}");
        all.push_str(&format!("# {what}\n{text}\n"));
    }
    // The list of engines depends on the features.
    let all = cut_lines(&all, "hint: engines: ", "hint: engines: …");
    assert_shown("usage_and_plan", &all);
}

/// Replaces the rest of every line from `from` on.
fn cut_lines(text: &str, from: &str, with: &str) -> String {
    let line = |line: &str| line.find(from).map_or(line.to_owned(), |at| format!("{}{with}", &line[..at]));
    text.lines().map(|text| line(text) + "\n").collect()
}

#[test]
fn the_plan_can_be_named_by_option_and_environment() {
    let folder = tempfile::tempdir().unwrap();
    let option = run(folder.path(), &["--plan", "nowhere.yaml", "validate"]);
    let environment = stackward(folder.path(), &["validate"]).env("STACKWARD_PLAN", "nowhere.yaml").output().unwrap();
    for output in [option, environment] {
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("the plan nowhere.yaml cannot be read"));
    }
}

#[test]
fn schemas_and_completions_go_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [["schema", "plan"], ["schema", "manifest"]] {
        let output = run(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(0));
        let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["properties"].is_object());
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(folder.path(), &["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("recursive"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = stackward(folder.path(), &["schema", "plan"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}

#[test]
fn colours_are_for_those_who_ask() {
    let folder = tempfile::tempdir().unwrap();
    let stderr = |arguments: &[&str]| String::from_utf8(run(folder.path(), arguments).stderr).unwrap();
    assert!(!stderr(&["list"]).contains('\u{1b}'));
    assert!(stderr(&["list", "--color", "always"]).contains("\u{1b}[1;31merror:\u{1b}[0m"));
    assert!(!stderr(&["list", "--color", "never"]).contains('\u{1b}'));
}

#[test]
fn a_private_key_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["key", "generate", "--output", "new.key"]);
    assert_eq!(output.status.code(), Some(0));
    let mode = std::fs::metadata(folder.path().join("new.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("age1"));
}

/// Two signals end the program even when it hangs where nothing can be cancelled: in the opening of a fifo.
#[test]
fn a_second_signal_ends_the_program_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("stackward.yaml");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut child = stackward(folder.path(), &["list"]).spawn().unwrap();
        // Once the fifo's reader is there, the program has its signal handlers.
        let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        kill(&child, signal);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert_eq!(line, "note: stopping cleanly; once more to stop at once\n");
        kill(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        drop(writer);
    }
}

pub(crate) fn kill(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}
