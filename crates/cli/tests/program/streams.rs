//! Standard output and standard error that cannot be written: a full disk, a reader that went away, a closed stream.
//!
//! Invariant: no command hangs, and a result that could not be written is no success.

use std::fs::OpenOptions;
use std::process::{Output, Stdio};

use crate::support::{Machine, text, tool};

/// Every command that prints a result, with a machine that has a snapshot.
const LINES: [&str; 21] = [
    "--help",
    "--version",
    "backup --help",
    "schema plan",
    "schema manifest",
    "completions bash",
    "list",
    "list --json",
    "show latest",
    "show latest --json",
    "ls latest",
    "ls latest tree --json",
    "cat latest tree BIG",
    "status",
    "status --json",
    "validate",
    "key list",
    "verify",
    "verify --json",
    "drill",
    "backup --json",
];

fn with_full_stdout(machine: &Machine, line: &str) -> Output {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    machine.command(line).stdout(full).output().unwrap()
}

/// A guard that was held while the failure was told made all of these hang.
#[test]
fn a_full_standard_output_is_a_failure_that_is_told_once() {
    let machine = Machine::backed_up();
    for line in lines(&machine) {
        let output = with_full_stdout(&machine, &line);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {told}");
        assert_eq!(told.matches("standard output cannot be written: No space left").count(), 1, "{line}: {told}");
    }
    // The work itself was done: only its report is lost.
    let before = machine.snapshots().len();
    assert_eq!(with_full_stdout(&machine, "backup").status.code(), Some(1));
    assert_eq!(machine.snapshots().len(), before + 1);
    // A failure keeps its own code.
    assert_eq!(with_full_stdout(&machine, "show nothing --json").status.code(), Some(2));
}

/// The lines, with the place of a file for `cat`.
fn lines(machine: &Machine) -> impl Iterator<Item = String> {
    let big = machine.path("tree/big").canonicalize().unwrap();
    let big = format!("tree {}", big.strip_prefix("/").unwrap().display());
    LINES.into_iter().map(move |line| line.replace("BIG", &big))
}

#[test]
fn streams_that_are_closed_or_full_keep_nobody_waiting() {
    let machine = Machine::backed_up();
    for line in lines(&machine) {
        // The reader goes away at once.
        let mut child = machine.command(&line).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{line}");
        // Never opened: descriptor 1 must not become a file of the repository.
        let shell = format!("exec \"$0\" {line} >&-");
        let closed =
            tool("sh").args(["-c", &shell, env!("CARGO_BIN_EXE_stackward")]).current_dir(machine.root()).output();
        assert_eq!(closed.unwrap().status.code(), Some(0), "{line}");
    }
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    for (line, code) in [("list", 0), ("list nothing", 2), ("show nothing", 2), ("backup", 0)] {
        let output = machine.command(line).stderr(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
    }
    assert_eq!(machine.json("verify")["exit_code"], 0, "nothing was written into the repository by mistake");
}

#[test]
fn what_is_wrong_with_a_command_line_is_json_for_those_who_asked_for_it() {
    let machine = Machine::new();
    for line in ["--json backup --fast", "bakcup --json", "restore --json --nonsense=1"] {
        let output = machine.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&result["result"], &result["exit_code"]), (&"error".into(), &2.into()), "{line}: {result}");
        assert_eq!(result["kind"], "usage");
        assert!(!result["message"].as_str().unwrap().is_empty());
        assert!(text(&output.stderr).starts_with("error: "), "{line}");
    }
    // Behind `--` it is no option.
    assert!(machine.run("bakcup -- --json").stdout.is_empty());
}
