//! A disk that is full: the backup fails and says so, what was complete restores, and a restore leaves nothing half-made.

use std::path::{Path, PathBuf};

use crate::support::tree::describe;
use crate::support::{Machine, files_below, run_tool, tool, write_random};

/// A small file system in memory, unmounted when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(folder: &Path, mebibytes: u32) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root: a full disk needs a mount");
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={mebibytes}m,mode=755");
        run_tool(tool("mount").args(["-t", "tmpfs", "-o", &options, "stackward-test"]).arg(folder));
        Self(folder.to_owned())
    }

    /// Makes room.
    pub(crate) fn grow(&self, mebibytes: u32) {
        run_tool(tool("mount").args(["-o", &format!("remount,size={mebibytes}m")]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run_tool(tool("umount").arg("-l").arg(&self.0));
    }
}

fn machine() -> Machine {
    let machine = Machine::with_sources("  tree:\n    files: { paths: [tree] }\n", crate::support::Readers::Key);
    std::fs::create_dir(machine.path("tree")).unwrap();
    write_random(&machine.path("tree/first"), 6 << 20);
    machine
}

#[test]
fn a_full_repository_fails_the_backup_and_keeps_what_was_complete() {
    let machine = machine();
    let disk = SmallDisk::mount(&machine.path("repository"), 20);
    machine.good("init");
    machine.good("backup");
    let before = describe(&machine.path("tree"));
    let known = machine.snapshots();
    write_random(&machine.path("tree/second"), 40 << 20);
    let (code, stderr) = machine.bad("backup");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("No space left on device") && stderr.contains("hint: free some space"), "{stderr}");
    assert_eq!(machine.snapshots(), known);
    machine.good("verify --all");
    machine.good("restore --target out");
    assert_eq!(describe(&machine.restored("out", "tree", "tree")), before);
    // Once there is room, the next run succeeds without any repair.
    std::fs::remove_file(machine.path("tree/second")).unwrap();
    disk.grow(60);
    machine.good("backup");
    machine.good("verify --all");
}

#[test]
fn a_restore_onto_a_full_disk_leaves_nothing_half_made() {
    let machine = machine();
    machine.good("init");
    machine.good("backup");
    let disk = SmallDisk::mount(&machine.path("small"), 3);
    std::fs::write(disk.0.join("mine"), "not to be touched").unwrap();
    let (code, stderr) = machine.bad("restore --target small/out");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("No space left on device") && stderr.contains("hint: "), "{stderr}");
    assert_eq!(files_below(&disk.0), [disk.0.join("mine")]);
    // The same in the place where the tree was, with a folder in the way that is to be replaced.
    let (code, stderr) = machine.bad("restore --target small --force");
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(files_below(&disk.0), [disk.0.join("mine")]);
    drop(disk);
    machine.good("restore --target out");
    assert_eq!(describe(&machine.restored("out", "tree", "tree")), describe(&machine.path("tree")));
}
