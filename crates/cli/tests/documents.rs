//! What the documents show is done: the commands of the README and of the runbook run, the example plans are read.
//!
//! A fenced block whose info string has the word `tested` is executed in a temporary folder, in the order in which it stands in its
//! page: a `yaml tested=FILE` block becomes that file, an `sh tested` block runs under `sh -eux`. The places that a reader
//! would have (`/srv/backups`, a socket, …) are replaced by private ones; nothing else is changed.
#![cfg(all(feature = "files", feature = "postgres"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backup_core::plan;
use backup_testkit::PrivatePostgres;
use stackward::engines::ENGINES;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A block of a page that is executed.
#[derive(Debug, PartialEq)]
enum Block {
    File { name: String, text: String },
    Script(String),
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: String =
            lines.by_ref().take_while(|line| *line != "```").map(|line| line.to_owned() + "\n").collect();
        let mark = info.split_whitespace().find_map(|word| word.strip_prefix("tested"));
        match mark.map(|mark| mark.strip_prefix('=')) {
            Some(Some(name)) => blocks.push(Block::File { name: name.to_owned(), text: body }),
            Some(None) => blocks.push(Block::Script(body)),
            None => {}
        }
    }
    blocks
}

/// A folder to work in, which the system user `postgres` can enter, and what stands in pages for what in it.
struct Desk {
    folder: tempfile::TempDir,
    places: Vec<(&'static str, String)>,
}

impl Desk {
    fn new(places: &[(&'static str, &str)]) -> Self {
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        let folder = tempfile::Builder::new().permissions(open).tempdir().unwrap();
        let below = |name: &str| folder.path().join(name).display().to_string();
        let places = places.iter().map(|(shown, name)| (*shown, below(name))).collect();
        Self { folder, places }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Executes what `page` shows, and returns what was printed.
    fn follow(&self, page: &str) -> String {
        let mut printed = String::new();
        for block in blocks(page) {
            let private = |text: &str| self.places.iter().fold(text.to_owned(), |text, (a, b)| text.replace(a, b));
            match block {
                Block::File { name, text } => self.write(&name, &private(&text)),
                Block::Script(script) => printed.push_str(&self.shell(&private(&script))),
            }
        }
        printed
    }

    #[expect(clippy::disallowed_methods, reason = "the test types what the page shows into a shell")]
    fn shell(&self, script: &str) -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_stackward")).parent().unwrap();
        // The distribution's Python has the packages that recover.py needs, whatever other one stands first.
        let path = format!("{}:/usr/bin:{}", program.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-eux", "-c", script]).current_dir(self.folder.path()).env("PATH", path);
        shell.env("STACKWARD_STATE", self.path("state")).env("NO_COLOR", "").stdin(Stdio::null());
        shell.env_remove("STACKWARD_PLAN").env_remove("STACKWARD_IDENTITY").env_remove("STACKWARD_PASSPHRASE");
        let output = shell.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}\n{stdout}\n{stderr}");
        stdout + &stderr
    }
}

#[test]
fn blocks_are_found_by_their_mark() {
    let page = "```sh\nno\n```\ntext\n```yaml tested=a.yaml\nx: 1\n```\n```sh tested\ntrue\nfalse\n```\n";
    let found = [
        Block::File { name: "a.yaml".to_owned(), text: "x: 1\n".to_owned() },
        Block::Script("true\nfalse\n".to_owned()),
    ];
    assert_eq!(blocks(page), found);
}

#[test]
fn the_readme_does_what_it_shows() {
    let server = PrivatePostgres::start();
    server.sql("postgres", "CREATE DATABASE app");
    server.sql("app", "CREATE TABLE orders AS SELECT n, md5(n::text) AS text FROM generate_series(1, 5000) n");
    let mut desk = Desk::new(&[("/srv/backups", "backups"), ("/srv/look", "look"), ("/etc/postgresql", "etc")]);
    desk.places.push(("/run/postgresql", server.socket_folder().display().to_string()));
    desk.write("etc/pg_hba.conf", "local all all peer\n");
    let readme = page("README.md");
    assert!(blocks(&readme).len() >= 2, "the README shows a plan and what to do with it");
    let printed = desk.follow(&readme);
    assert!(printed.contains("is proven"), "{printed}");
    assert_eq!(server.sql("app_yesterday", "SELECT count(*) FROM orders"), "5000");
    assert!(desk.path("look/main-db/globals.sql").is_file(), "{printed}");
}

#[test]
fn the_runbook_puts_a_stack_on_an_empty_machine() {
    let places = [("/mnt/backups", "mnt"), ("/safe", "safe"), ("/srv/uploads", "srv"), ("/etc/stackward", "etc")];
    let mut desk = Desk::new(&places);
    desk.places.push(("docs/recover.py", root().join("docs/recover.py").display().to_string()));
    // The machine that is lost: it saved its uploads and its plan.
    desk.write("srv/a.txt", "one\n");
    desk.write("old.yaml", "");
    desk.write("etc/.keep", "");
    desk.write("safe/.keep", "");
    let place = |name: &str| desk.path(name).display().to_string();
    let make = format!(
        "recipient=$(stackward key generate --output {safe}/stackward.key)\n\
         printf 'version: 1\\nname: web1\\nrepository: {{ url: {mnt}, recipients: [%s] }}\\nsources:\\n  plan:\\n    \
         files: {{ paths: [{etc}] }}\\n  uploads:\\n    files: {{ paths: [{srv}] }}\\n' $recipient >{etc}/stackward.yaml\n\
         stackward --plan {etc}/stackward.yaml init\nstackward --plan {etc}/stackward.yaml backup\n\
         rm -r {srv} {etc} state old.yaml\n",
        safe = place("safe"),
        mnt = place("mnt"),
        etc = place("etc"),
        srv = place("srv"),
    );
    desk.shell(&make);
    let printed = desk.follow(&page("docs/runbooks/restore-on-an-empty-machine.md"));
    assert!(printed.contains("is proven"), "{printed}");
    assert_eq!(std::fs::read_to_string(desk.path("srv/a.txt")).unwrap(), "one\n");
    assert_eq!(std::fs::read_to_string(desk.path(&format!("by-hand{}/a.txt", place("srv")))).unwrap(), "one\n");
    assert!(desk.path("etc/stackward.yaml").is_file());
}

#[test]
fn the_example_plans_are_plans() {
    let mut seen = 0;
    for file in std::fs::read_dir(root().join("examples/plans")).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let read = plan::parse(&text, ENGINES).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        for source in &read.sources {
            let engine = ENGINES.iter().find(|engine| engine.name == source.engine).unwrap();
            let host = std::sync::Arc::new(backup_core::host::LocalHost);
            let setup = backup_core::engine::EngineSetup {
                name: &source.name,
                config: &source.config,
                folder: Path::new("/etc/stackward"),
                host,
            };
            (engine.build)(&setup).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        }
        seen += 1;
    }
    assert_eq!(seen, 3);
}
