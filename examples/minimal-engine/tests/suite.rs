//! What every engine is held to, on real notes; and the program with this engine in it, from backup to restore.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use backup_core::SourceName;
use backup_core::engine::{Engine, EngineSetup};
use backup_core::host::LocalHost;
use backup_core::plan::Node;
use backup_testkit::conformance::engine::Subject;
use backup_testkit::engine_conformance;
use example_minimal_engine::NOTES;
use tempfile::TempDir;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/notes");

struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(desk.scratch()).unwrap();
        std::fs::create_dir_all(desk.folder()).unwrap();
        let notes: Vec<String> = (0..20_000).map(|number| format!("note {number:05}\n")).collect();
        std::fs::write(desk.folder().join("notes.txt"), notes.concat()).unwrap();
        desk
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("home/notes")
    }

    fn engine_of(&self, folder: &Path) -> Engine {
        let config = Node::from_yaml(&format!("{{ folder: {}, program: {PROGRAM} }}", folder.display())).unwrap();
        let name = SourceName::new("desk").unwrap();
        let setup = EngineSetup { name: &name, config: &config, folder: self.0.path(), host: Arc::new(LocalHost) };
        (NOTES.build)(&setup).unwrap()
    }
}

#[async_trait]
impl Subject for Desk {
    fn engine(&self) -> Engine {
        self.engine_of(&self.folder())
    }

    fn engine_for_nothing(&self) -> Engine {
        self.engine_of(Path::new("/no/such/notes"))
    }

    async fn state(&self) -> String {
        std::fs::read_to_string(self.folder().join("notes.txt")).unwrap()
    }

    async fn destroy(&self) {
        let _absent = std::fs::remove_dir_all(self.folder());
    }

    fn scratch(&self) -> PathBuf {
        self.0.path().join("scratch")
    }

    fn surroundings(&self) -> Vec<PathBuf> {
        vec![self.0.path().join("home")]
    }
}

engine_conformance!(notes, Desk::new());

#[expect(clippy::disallowed_methods, reason = "the test runs the program itself, as a user's shell would")]
fn program(folder: &Path, line: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_example-minimal-engine"));
    let output = command.current_dir(folder).args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_program_with_this_engine_backs_up_proves_and_restores() {
    let desk = Desk::new();
    let folder = desk.0.path();
    let recipient = program(folder, "key generate --output stackward.key");
    let plan = format!(
        "version: 1\nname: desk\nrepository: {{ url: ./repository, state: state, recipients: [{}] }}\nsources:\n  \
         notes:\n    notes: {{ folder: home/notes, program: {PROGRAM} }}\n",
        recipient.trim()
    );
    std::fs::write(folder.join("stackward.yaml"), plan).unwrap();
    let before = std::fs::read(desk.folder().join("notes.txt")).unwrap();
    for line in ["init", "validate --online", "backup", "verify --depth structure", "drill"] {
        program(folder, line);
    }
    std::fs::write(desk.folder().join("notes.txt"), "lost\n").unwrap();
    program(folder, "restore --force");
    assert_eq!(std::fs::read(desk.folder().join("notes.txt")).unwrap(), before);
}
