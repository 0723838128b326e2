//! A machine for tests of the built binary: a folder with a plan, a key pair and a repository, and what stands there.
#![expect(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The program, with its streams piped.
#[expect(clippy::disallowed_methods, reason = "the test runs the program itself, as a user's shell would")]
pub(crate) fn stackward(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stackward"));
    command.current_dir(folder).args(arguments).env_remove("STACKWARD_PLAN").env_remove("STACKWARD_IDENTITY");
    command.env("NO_COLOR", "").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    stackward(folder, arguments).output().unwrap()
}

/// A standard program of the machine.
#[expect(clippy::disallowed_methods, reason = "the test does by hand what an operator does in a shell")]
pub(crate) fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a standard program, which must succeed, and returns what it printed.
pub(crate) fn run_tool(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command printed, as a session at a terminal shows it.
pub(crate) fn shown(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let stderr = text(&output.stderr).lines().fold(String::new(), |all, line| all + "[stderr] " + line + "\n");
    let code = output.status.code().unwrap();
    let all = format!("$ stackward {}\n{}{stderr}[exit {code}]\n", arguments.join(" "), text(&output.stdout));
    all.replace(&folder.display().to_string(), "/stack")
}

/// Who can read a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// The key in `stackward.key`.
    Key,
    /// Whoever knows the passphrase in the environment variable `PHRASE`.
    Passphrase,
    /// Everybody.
    Everybody,
}

/// The passphrase of machines with [`Readers::Passphrase`].
pub(crate) const PHRASE: &str = "correct horse battery staple";

/// See the module.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    /// A machine with the folder `tree` and a plan that saves it; no repository yet.
    pub(crate) fn new() -> Self {
        let machine = Self::with_sources("  tree:\n    files: { paths: [tree] }\n", Readers::Key);
        std::fs::create_dir_all(machine.path("tree/docs")).unwrap();
        std::fs::write(machine.path("tree/docs/a.txt"), "one\ntwo\n").unwrap();
        std::fs::write(machine.path("tree/big"), noise(3_000_000)).unwrap();
        machine
    }

    /// The same, with one snapshot.
    pub(crate) fn backed_up() -> Self {
        let machine = Self::new();
        machine.good("init");
        machine.good("backup");
        machine
    }

    /// A machine with a plan of these sources, indented by two; no repository yet.
    pub(crate) fn with_sources(sources: &str, readers: Readers) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        let readers = match readers {
            Readers::Key => {
                let output = machine.run("key generate --output stackward.key");
                format!("recipients: [{}]", text(&output.stdout).trim())
            }
            Readers::Passphrase => "passphrase: { env: PHRASE }".to_owned(),
            Readers::Everybody => "encryption: none".to_owned(),
        };
        machine.plan(&format!("repository:\n  url: ./repository\n  state: state\n  {readers}\n"), sources);
        machine
    }

    /// Writes the plan.
    pub(crate) fn plan(&self, sink: &str, sources: &str) {
        let plan = format!("version: 1\nname: small\n{sink}sources:\n{sources}");
        std::fs::write(self.path("stackward.yaml"), plan).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The program with a command line whose words are separated by spaces.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = stackward(self.root(), &line.split(' ').collect::<Vec<_>>());
        command.env("PHRASE", PHRASE);
        command
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// The standard output of a command that succeeds.
    pub(crate) fn good(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The result of a command that succeeds, as JSON.
    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        let printed = self.good(&format!("{line} --json"));
        serde_json::from_str(printed.lines().last().unwrap()).unwrap()
    }

    /// The exit code and standard error of a command that fails.
    pub(crate) fn bad(&self, line: &str) -> (i32, String) {
        let output = self.run(line);
        (output.status.code().unwrap(), text(&output.stderr))
    }

    pub(crate) fn shown(&self, lines: &[&str]) -> String {
        let show = |line: &&str| shown(self.root(), &line.split(' ').collect::<Vec<_>>());
        lines.iter().map(show).collect::<Vec<_>>().join("\n")
    }

    /// The ids of the snapshots, oldest first. Each is complete.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let listed = self.json("list");
        let complete = |snapshot: &serde_json::Value| {
            assert_eq!(snapshot["outcome"], "complete", "{snapshot}");
            snapshot["id"].as_str().unwrap().to_owned()
        };
        listed["snapshots"].as_array().unwrap().iter().map(complete).collect()
    }

    /// The files of the repository below `folder`.
    pub(crate) fn objects(&self, folder: &str) -> Vec<PathBuf> {
        files_below(&self.path("repository").join(folder))
    }

    /// Where a source that saved the folder `name` of this machine is, once it is restored to `target`.
    pub(crate) fn restored(&self, target: &str, source: &str, name: &str) -> PathBuf {
        self.path(target).join(source).join(self.path(name).strip_prefix("/").unwrap())
    }
}

/// Every file below `folder`; what goes away meanwhile is left out.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for item in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = item.path();
            if path.is_dir() { todo.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Bytes that do not compress, the same every time.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x5eed_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// Writes a file of bytes that nothing can deduplicate: other ones for each file, and the same in each run of the test.
pub(crate) fn write_random(path: &Path, count: u64) {
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};
    static FILES: AtomicU64 = AtomicU64::new(1);
    let mut state = FILES.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut left = count;
    while left > 0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let length = left.min(8);
        file.write_all(&state.to_le_bytes()[..length as usize]).unwrap();
        left -= length;
    }
    file.flush().unwrap();
}

pub(crate) fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
