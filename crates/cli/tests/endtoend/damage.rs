//! A damaged object of each kind: `verify` names it and what it hurts, what is whole restores, what is not leaves no target.

use std::path::PathBuf;

use crate::support::tree::describe;
use crate::support::{Machine, Readers, flip_a_bit, text, write_random};

/// Two sources in snapshots of their own: no pack, index or session is shared.
struct Two {
    machine: Machine,
    left: String,
    right: String,
}

fn two() -> Two {
    let sources = "  left:\n    files: { paths: [left] }\n  right:\n    files: { paths: [right] }\n";
    let machine = Machine::with_sources(sources, Readers::Key);
    for name in ["left", "right"] {
        std::fs::create_dir(machine.path(name)).unwrap();
        write_random(&machine.path(name).join("file"), 300_000);
    }
    machine.good("init");
    machine.good("backup left");
    let left = machine.snapshots().remove(0);
    machine.good("backup right");
    let right = machine.snapshots().into_iter().find(|id| *id != left).unwrap();
    Two { machine, left, right }
}

impl Two {
    /// The objects in `folder` that the backup of `right` added: those of `left` are older.
    fn of_right(&self, folder: &str, starts: &str) -> Vec<PathBuf> {
        let mut objects = self.machine.objects(folder);
        objects.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(starts));
        objects.sort_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap());
        let half = objects.len() / 2;
        objects.split_off(half)
    }

    fn restores(&self, id: &str, source: &str) {
        self.machine.good(&format!("restore {id} --source {source} --target out"));
        assert_eq!(describe(&self.machine.restored("out", source, source)), describe(&self.machine.path(source)));
        std::fs::remove_dir_all(self.machine.path("out")).unwrap();
    }

    fn refuses(&self, id: &str, source: &str) {
        let (code, stderr) = self.machine.bad(&format!("restore {id} --source {source} --target out"));
        assert_eq!(code, 20, "{stderr}");
        assert!(stderr.contains("error: "), "{stderr}");
        assert!(!self.machine.path("out").exists(), "nothing is left of a restore that was refused");
    }

    /// The output of `verify` for both snapshots, which must find damage.
    fn verify(&self) -> String {
        let output = self.machine.run(&format!("verify {} {}", self.left, self.right));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(20), "{said}");
        said
    }
}

fn name(path: &std::path::Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// A pack of contents, one of listings, and the keys of a run: all of them hurt `right`, none of them `left`.
#[test]
fn damage_to_one_run_spares_the_other() {
    let two = two();
    let mut damaged = two.of_right("packs", "");
    assert_eq!(damaged.len(), 2, "one pack of contents, one of listings");
    damaged.extend(two.of_right("keys", "session-"));
    // Its second copy would serve.
    for copy in two.of_right("key-copies", "session-") {
        std::fs::remove_file(copy).unwrap();
    }
    for object in damaged {
        let good = std::fs::read(&object).unwrap();
        flip_a_bit(&object);
        let said = two.verify();
        assert!(said.contains(&name(&object)), "{} is not named: {said}", name(&object));
        assert!(said.contains(&two.right) && !said.contains(&two.left), "the snapshot it hurts, and no other: {said}");
        two.restores(&two.left, "left");
        two.refuses(&two.right, "right");
        std::fs::write(&object, good).unwrap();
    }
    two.restores(&two.right, "right");
}

/// An index object holds nothing that the packs do not: everything restores.
#[test]
fn a_damaged_index_is_named_and_hurts_nothing() {
    let two = two();
    let object = two.of_right("index", "").remove(0);
    flip_a_bit(&object);
    assert!(two.verify().contains(&name(&object)));
    two.restores(&two.left, "left");
    two.restores(&two.right, "right");
}

#[test]
fn a_damaged_snapshot_is_named_and_the_other_restores() {
    let two = two();
    flip_a_bit(&two.machine.path("repository/snapshots").join(&two.right));
    let said = two.verify();
    assert!(said.contains(&format!("snapshots/{}", two.right)), "{said}");
    two.restores(&two.left, "left");
    two.refuses(&two.right, "right");
    // The newest one is damaged: it is told, the other is listed, and `latest` does not quietly mean the other.
    let listed = two.machine.good("list");
    assert!(listed.contains(&two.left) && !listed.contains(&two.right), "{listed}");
    for line in ["restore --target out", "restore --source left --target out", "show"] {
        let (code, stderr) = two.machine.bad(line);
        assert_eq!(code, 20, "{line}: {stderr}");
        assert!(stderr.contains(&two.right), "{line}: {stderr}");
    }
}

/// `config` and the repository's own key: nothing can be read until they are restored from a copy, and that is said.
#[test]
fn a_damaged_head_of_the_repository_is_named() {
    let two = two();
    let key = two.of_right("keys", "repository-").remove(0);
    // Its second copy would serve.
    std::fs::remove_file(two.of_right("key-copies", "repository-").remove(0)).unwrap();
    for (object, said) in [(two.machine.path("repository/config"), "config"), (key, "wrapped key")] {
        let good = std::fs::read(&object).unwrap();
        flip_a_bit(&object);
        let output = two.machine.run("verify");
        assert_eq!(output.status.code(), Some(20), "{said}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
        two.refuses(&two.left, "left");
        std::fs::write(&object, good).unwrap();
    }
    two.restores(&two.left, "left");
}
