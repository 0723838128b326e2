//! kill -9 at any moment: what was complete stays whole, and the next run succeeds.

#[cfg(feature = "redis")]
mod follow;

use std::os::unix::process::CommandExt;
use std::process::Child;

use rustix::process::{Pid, Signal};

use crate::support::tree::describe;
use crate::support::{Machine, write_random};

/// Kills per machine: each leaves its remains to the next.
const KILLS: u64 = 5;
const MIB: u64 = 1 << 20;

fn machine() -> Machine {
    let machine = Machine::with_sources("  tree:\n    files: { paths: [tree] }\n", crate::support::Readers::Key);
    std::fs::create_dir_all(machine.path("tree/small")).unwrap();
    for number in 0..200 {
        std::fs::write(machine.path("tree/small").join(number.to_string()), format!("file {number}\n")).unwrap();
    }
    machine.good("init");
    machine
}

/// About 40 MiB that are not in the repository yet: three packs.
fn fill(machine: &Machine) {
    for (name, size) in [("a", 17 * MIB), ("b", 9 * MIB), ("c", 14 * MIB)] {
        write_random(&machine.path("tree").join(name), size);
    }
}

fn start(machine: &Machine) -> Child {
    machine.command("backup").process_group(0).spawn().unwrap()
}

/// Kills the run once it has added `objects` files to the repository (those that are being written among them),
/// unless it ended before. Returns whether it had succeeded.
fn kill_after(machine: &Machine, mut child: Child, objects: usize) -> bool {
    let before = machine.objects("").len();
    while machine.objects("").len() < before + objects {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return true;
        }
    }
    let _ended_meanwhile = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
    child.wait().unwrap().success()
}

/// Whatever was written when the run died: earlier snapshots are listed and whole, no other is visible, and the next
/// run saves everything.
fn survives(seed: u64) {
    let machine = machine();
    fill(&machine);
    machine.good("backup");
    let mut known = machine.snapshots();
    let mut killed = 0;
    for number in 0..KILLS {
        fill(&machine);
        // Spread over a whole run, whose objects are about a dozen; odd multiples visit each once.
        let point = (seed + number * 5) % 12;
        let succeeded = kill_after(&machine, start(&machine), point as usize);
        killed += u64::from(!succeeded);
        let listed = machine.snapshots();
        assert!(listed.starts_with(&known), "{listed:?} after {known:?}");
        // A run may have committed before it could say so; it has never committed without being whole.
        assert!(listed.len() - known.len() <= 1 && (listed.len() > known.len() || !succeeded), "{listed:?}");
        machine.good("verify --all --depth manifest");
        machine.good("backup");
        known = machine.snapshots();
        assert_eq!(known.len(), listed.len() + 1);
        machine.good("restore --target out");
        let restored = machine.restored("out", "tree", "tree");
        assert!(describe(&restored) == describe(&machine.path("tree")), "after {point} objects");
        std::fs::remove_dir_all(machine.path("out")).unwrap();
    }
    assert!(killed > 0, "every run ended before it could be killed");
    machine.good("verify --all");
}

#[test]
fn a_killed_backup_harms_nothing_1() {
    survives(0);
}

#[test]
fn a_killed_backup_harms_nothing_2() {
    survives(1);
}

#[test]
fn a_killed_backup_harms_nothing_3() {
    survives(2);
}

#[test]
fn a_killed_backup_harms_nothing_4() {
    survives(3);
}

#[test]
fn a_killed_backup_harms_nothing_5() {
    survives(4);
}

/// A restore over what is there that dies at any moment: each file is the old one or the new one, what the snapshot does
/// not have is untouched, and the next restore tidies up.
#[test]
fn a_restore_that_is_killed_leaves_every_file_old_or_new() {
    const FILES: usize = 700;
    let machine = Machine::with_sources("  tree:\n    files: { paths: [tree] }\n", crate::support::Readers::Key);
    let file = |number: usize| machine.path(&format!("tree/{}/{number}", number % 7));
    (0..7).for_each(|folder| std::fs::create_dir_all(machine.path(&format!("tree/{folder}"))).unwrap());
    let write_all = |content: &str| (0..FILES).for_each(|number| std::fs::write(file(number), content).unwrap());
    write_all("saved");
    machine.good("init");
    machine.good("backup");
    let staging = || {
        let names = std::fs::read_dir(machine.root()).unwrap().map(|item| item.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".tree.stackward-")).count()
    };
    let is_saved = |number: usize| std::fs::read_to_string(file(number)).is_ok_and(|text| text == "saved");
    let mut halfway = 0;
    // Killed when it begins to stage; when the first file has its place; in the middle.
    for point in [None, Some(0), Some(FILES / 2)] {
        write_all("mine");
        std::fs::write(machine.path("tree/0/new"), "new").unwrap();
        let mut child = machine.command("restore --force").process_group(0).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            let reached = match point {
                None => staging() > 0,
                Some(number) => is_saved(number),
            };
            if reached {
                let _ended_meanwhile = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
            }
        }
        let mut saved = 0;
        for number in 0..FILES {
            let text = std::fs::read_to_string(file(number)).unwrap();
            assert!(text == "saved" || text == "mine", "{number}: {text:?}");
            saved += usize::from(text == "saved");
        }
        halfway += usize::from(saved > 0 && saved < FILES);
        assert_eq!(std::fs::read_to_string(machine.path("tree/0/new")).unwrap(), "new");
        machine.good("restore --force");
        assert_eq!(staging(), 0, "what the killed restore left is gone");
        assert!((0..FILES).all(is_saved));
    }
    assert!(halfway > 0, "no restore was killed between its first file and its last");
}
