//! Snapshots written by hand to escape the target folder are refused, and nothing is written outside of it.

use std::path::Path;

use crate::support::tree::describe;
use crate::support::{Machine, Readers, run_tool, text, tool};

/// Each attack, and what the person who restores is told.
const CASES: [(&str, &str); 9] = [
    ("climbs", "is not a path inside a tree"),
    ("climbs-later", "is not a path inside a tree"),
    ("is-absolute", "is not a path inside a tree"),
    ("through-a-link", "does not lie in a folder of the same tree"),
    ("links-to-above", "is not a path inside a tree"),
    ("links-through-a-link", "is a link that leaves its tree"),
    ("comes-twice", "out of order"),
    ("artifact-climbs", "manifest is not usable"),
    ("lies-about-a-length", "bytes short"),
];

fn machine() -> Machine {
    let machine = Machine::with_sources("  tree:\n    files: { paths: [tree] }\n", Readers::Everybody);
    std::fs::create_dir(machine.path("tree")).unwrap();
    std::fs::write(machine.path("tree/good"), "good\n").unwrap();
    std::fs::create_dir(machine.path("outside")).unwrap();
    std::fs::write(machine.path("outside/secret"), "secret\n").unwrap();
    machine.good("init");
    machine.good("backup");
    machine
}

fn craft(machine: &Machine, case: &str) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = tool("/usr/bin/python3");
    python.arg(here.join("tests/endtoend/hostile.py")).arg(here.join("../../docs/recover.py"));
    python.arg("repository").arg(&machine.snapshots()[0]).arg(case).arg(machine.path("outside"));
    run_tool(python.current_dir(machine.root())).trim().to_owned()
}

/// The same snapshot without an attack restores: the others are refused for what they do.
#[test]
fn a_snapshot_that_was_written_by_hand_restores() {
    let machine = machine();
    let id = craft(&machine, "is-good");
    machine.good(&format!("restore {id} --target out"));
    let restored = machine.path("out/tree").join(machine.root().strip_prefix("/").unwrap()).join("~");
    assert_eq!(std::fs::read(restored).unwrap(), b"escaped\n");
}

#[test]
fn a_snapshot_that_wants_to_escape_is_refused() {
    for (case, said) in CASES {
        let machine = machine();
        let before = describe(&machine.path("outside"));
        let id = craft(&machine, case);
        let output = machine.run(&format!("restore {id} --target out"));
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 20)), "{case}: {stderr}");
        assert!(stderr.contains(said), "{case}: {stderr}");
        assert_eq!(describe(&machine.path("outside")), before, "{case}");
        assert!(!machine.path("escaped").exists() && !machine.path("out/escaped").exists(), "{case}");
        let left = crate::support::files_below(&machine.path("out"));
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{case}: nothing half-made is left");
    }
}

/// The same attacks on the reader without Stackward.
#[test]
fn recover_py_refuses_the_same() {
    for (case, _) in CASES {
        let machine = machine();
        let before = describe(&machine.path("outside"));
        let id = craft(&machine, case);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recover.py");
        let artifact = if case == "artifact-climbs" { "../../escaped" } else { "tree" };
        let mut python = tool("/usr/bin/python3");
        python.arg(script).args(["repository", &id, "tree", artifact, "out"]).current_dir(machine.root());
        let output = python.output().unwrap();
        // It never uses an artifact's name as a path: the target is what its user named.
        assert_eq!(output.status.success(), case == "artifact-climbs", "{case}: {}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("Traceback"), "{case}: {}", text(&output.stderr));
        assert_eq!(describe(&machine.path("outside")), before, "{case}");
        assert!(!machine.path("escaped").exists(), "{case}");
    }
}

#[test]
fn a_plain_directory_whose_manifest_climbs_is_refused() {
    let machine = machine();
    machine.plan("directory: { path: ./plain, compression: none }\n", "  tree:\n    files: { paths: [tree] }\n");
    machine.good("init");
    machine.good("backup");
    let id = machine.snapshots().remove(0);
    let path = machine.path("plain").join(&id).join("manifest.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&good).unwrap();
    let file = manifest["sources"][0]["artifacts"][0]["content"]["path"].as_str().unwrap();
    for bad in ["../../../outside/secret", "/etc/passwd"] {
        std::fs::write(&path, good.replace(&format!("\"{file}\""), &format!("\"{bad}\""))).unwrap();
        let (code, stderr) = machine.bad("restore --target out");
        assert_eq!(code, 20, "{stderr}");
        assert!(!machine.path("out").exists());
    }
    std::fs::write(&path, good).unwrap();
    machine.good("restore --target out");
}
