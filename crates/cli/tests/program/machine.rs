//! What the tests of the command line share: the program in this process over a sink in memory, and what it printed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backup_core::engine::EngineDescriptor;
use backup_core::manifest::Manifest;
use backup_core::plan::{RepositoryConfig, SinkConfig};
use backup_core::sink::{
    CheckDepth, CheckReport, Damage, Sink, SnapshotFilter, SnapshotHeader, SnapshotReader, SnapshotSummary,
    SnapshotWriter, UnreadableSnapshot,
};
use backup_core::{Error, ErrorKind, Result, RunContext, SnapshotId};
use backup_testkit::MemorySink;
use stackward::World;
use stackward::exit::Exit;
use stackward::output::Terminal;
use stackward::sinks::{Created, Repository, Sinks, Unlock};
use tokio_util::sync::CancellationToken;

const ENGINES: &[EngineDescriptor] = &[crate::note::NOTE];

/// Damage that a check reports: an object, what is wrong, and the sources of the newest snapshot that it hurts.
type Injected = Arc<Mutex<Vec<Damage>>>;

/// A sink in memory that keeps its content between commands, and can be told to be damaged.
#[derive(Debug, Clone, Default)]
struct Kept {
    memory: MemorySink,
    damage: Injected,
}

#[async_trait]
impl Sink for Kept {
    fn describe(&self) -> String {
        "repository in memory".to_owned()
    }
    async fn begin(&self, header: SnapshotHeader) -> Result<Arc<dyn SnapshotWriter>> {
        self.memory.begin(header).await
    }
    async fn snapshots(&self, filter: &SnapshotFilter) -> Result<Vec<SnapshotSummary>> {
        self.memory.snapshots(filter).await
    }
    async fn unreadable(&self) -> Result<Vec<UnreadableSnapshot>> {
        self.memory.unreadable().await
    }

    async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        self.memory.manifest(id).await
    }
    async fn open(&self, id: &SnapshotId) -> Result<Arc<dyn SnapshotReader>> {
        self.memory.open(id).await
    }
    async fn check(&self, cx: &RunContext, depth: CheckDepth, of: &[SnapshotId]) -> Result<CheckReport> {
        let report = self.memory.check(cx, depth, of).await?;
        Ok(CheckReport { damage: self.damage.lock().unwrap().clone(), bytes: 4096, ..report })
    }
}

#[derive(Debug, Default)]
struct InMemory {
    sink: Kept,
    created: AtomicBool,
    locked: AtomicBool,
}

#[async_trait]
impl Sinks for InMemory {
    async fn create(&self, _: &SinkConfig, _: &Path) -> Result<Created> {
        let created = !self.created.swap(true, Ordering::SeqCst);
        Ok(Created { description: self.sink.describe(), created, notes: Vec::new() })
    }

    async fn open(&self, _: &SinkConfig, _: &Path, _: &Unlock) -> Result<Arc<dyn Sink>> {
        if !self.created.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::NoRepository, "there is no repository in memory")
                .hint("`stackward init` creates it"));
        }
        if self.locked.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::WrongKey, "the key at hand does not open the repository in memory"));
        }
        Ok(Arc::new(self.sink.clone()))
    }

    async fn repository(&self, _: &RepositoryConfig, _: &Path, _: &Unlock) -> Result<Repository> {
        Err(Error::new(ErrorKind::Unsupported, "a sink in memory has no keys"))
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a command printed and how it ended.
pub(crate) struct Shown {
    pub(crate) command: String,
    pub(crate) exit: Exit,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Shown {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The last line of standard output as JSON: the result.
    pub(crate) fn result(&self) -> serde_json::Value {
        serde_json::from_str(self.text().lines().last().expect("a result")).expect("JSON")
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "$ stackward {}", self.command)?;
        f.write_str(&self.text())?;
        for line in self.stderr.lines() {
            writeln!(f, "[stderr] {line}")?;
        }
        writeln!(f, "[exit {}]", self.exit.code())
    }
}

/// The program on a machine of its own: a folder with a plan, and a sink in memory.
pub(crate) struct Program {
    folder: tempfile::TempDir,
    world: World,
    sinks: Arc<InMemory>,
    pub(crate) cancel: CancellationToken,
}

impl Program {
    /// A machine without a plan.
    pub(crate) fn bare() -> Self {
        let sinks = Arc::new(InMemory::default());
        let world = World { engines: ENGINES, sinks: Arc::clone(&sinks) as Arc<dyn Sinks>, host: "web1".to_owned() };
        Self { folder: tempfile::tempdir().unwrap(), world, sinks, cancel: CancellationToken::new() }
    }

    /// A machine with the sources `first` and `second`, and an empty repository.
    pub(crate) fn ready() -> Self {
        let program = Self::bare();
        program.write("first.txt", "one\ntwo\n");
        program.write("second.txt", "three\n");
        program.plan("");
        program.sinks.created.store(true, Ordering::SeqCst);
        program
    }

    /// Writes the plan, with `more` lines at its end.
    pub(crate) fn plan(&self, more: &str) {
        let text = "version: 1\nname: demo\nrepository: { url: /srv/backups }\nsources:\n  \
            first:\n    note: { path: first.txt }\n  second:\n    note: { path: second.txt }\n";
        self.write("stackward.yaml", &format!("{text}{more}"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// From now on checks find this.
    pub(crate) fn damage(&self, damage: Damage) {
        self.sinks.sink.damage.lock().unwrap().push(damage);
    }

    /// From now on the key does not fit.
    pub(crate) fn lock(&self) {
        self.sinks.locked.store(true, Ordering::SeqCst);
    }

    /// The ids of the snapshots, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotId> {
        let listed = self.run("list --json").result();
        let ids = listed["snapshots"].as_array().unwrap().iter();
        ids.map(|snapshot| SnapshotId::new(snapshot["id"].as_str().unwrap()).unwrap()).collect()
    }

    /// Runs a command line whose words are separated by spaces; `{}` stands for the machine's folder.
    pub(crate) fn run(&self, line: &str) -> Shown {
        let folder = self.folder.path().display().to_string();
        let plan = self.path("stackward.yaml").display().to_string();
        let words: Vec<String> = line.split(' ').map(|word| word.replace("{}", &folder)).collect();
        let mut arguments = vec!["stackward".to_owned(), "--plan".to_owned(), plan];
        arguments.extend(words);
        let (stdout, stderr) = (Captured::default(), Captured::default());
        let terminal = Terminal {
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        };
        let exit = stackward::run(arguments, &self.world, terminal, &self.cancel);
        let stderr = String::from_utf8(stderr.0.lock().unwrap().clone()).unwrap();
        let stdout = stdout.0.lock().unwrap().clone();
        Shown { command: line.to_owned(), exit, stdout, stderr }
    }

    /// Runs several commands and shows them as a session at a terminal, without what differs from run to run.
    pub(crate) fn session(&self, lines: &[&str]) -> String {
        lines.iter().map(|line| self.run(line).to_string()).collect::<Vec<_>>().join("\n")
    }

    /// Compares with the snapshot `name`, without what differs from run to run.
    pub(crate) fn assert(&self, name: &str, shown: impl std::fmt::Display) {
        let folder = self.folder.path().display().to_string();
        assert_shown(name, &shown.to_string().replace(&folder, "/stack"));
    }
}

/// Compares with the snapshot `name`, without what differs from run to run.
pub(crate) fn assert_shown(name: &str, text: &str) {
    insta::with_settings!({ filters => vec![
        (r"\d{8}-\d{6}-[0-9a-z]{8}", "20261120-063551-7k3q9xwm"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-20 06:35:51"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "2026-11-20T06:35:51Z"),
        (r"\b\d+\.\d s\b", "0.0 s"),
        (r"\b\d+ s\b \(", "0 s ("),
        (r#"(seconds": ?)[\d.]+"#, "${1}0.0"),
        (r#"(secs": ?)\d+"#, "${1}0"),
        (r#"(nanos": ?)\d+"#, "${1}0"),
        (r"age1[0-9a-z]{58}", "age1publickey"),
        (r"AGE-SECRET-KEY-1[0-9A-Z]{58}", "AGE-SECRET-KEY-1PRIVATE"),
        (r"stackward 0\.\d+\.\d+", "stackward 0.0.0"),
        (r#"(tool_version": ?")[\d.]+"#, "${1}0.0.0"),
        (r"/root/stackward-backups|/var/backups/stackward|/home/[a-z0-9]+/stackward-backups", "/backups"),
    ], snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, text);
    });
}
