//! Two backups at once into one repository, from two processes.

use rustix::process::{Pid, Signal, kill_process};

use crate::support::tree::describe;
use crate::support::{Machine, text, write_random};

/// One run stands still in its middle, with objects written and nothing committed, while the other runs from its
/// beginning to its end; then the first goes on.
#[test]
fn two_backups_at_once_both_succeed_and_restore() {
    let machine = Machine::with_sources(
        "  one:\n    files: { paths: [one, shared] }\n  two:\n    files: { paths: [two, shared] }\n",
        crate::support::Readers::Key,
    );
    for name in ["one", "two", "shared"] {
        std::fs::create_dir(machine.path(name)).unwrap();
        write_random(&machine.path(name).join("file"), 20 << 20);
    }
    machine.good("init");
    let before = machine.objects("packs").len();
    let mut first = machine.command("backup one").spawn().unwrap();
    while machine.objects("packs").len() == before {
        assert!(first.try_wait().unwrap().is_none(), "it writes packs before it ends");
    }
    kill_process(Pid::from_child(&first), Signal::STOP).unwrap();
    assert_eq!(machine.snapshots(), Vec::<String>::new());
    machine.good("backup two");
    let second = machine.snapshots();
    assert_eq!(second.len(), 1);
    assert!(first.try_wait().unwrap().is_none(), "it stands still");
    kill_process(Pid::from_child(&first), Signal::CONT).unwrap();
    let ended = first.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(machine.snapshots().len(), 2);
    machine.good("verify --all");
    for source in ["one", "two"] {
        machine.good(&format!("restore --source {source} --target out"));
        for name in [source, "shared"] {
            assert_eq!(describe(&machine.restored("out", source, name)), describe(&machine.path(name)));
        }
    }
}
