//! Servers of other versions, for the nightly tests: from Debian's other releases, unpacked beside, never installed.
//!
//! apt resolves, downloads and verifies what a server needs (with folders of its own, so the machine's packages are not
//! touched); the packages are unpacked into the cache, and a script starts the program with its own loader and libraries.
//! Invariant: nothing outside the cache is changed; a server that is there already is used as it is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::process::{Result, Run};
use crate::steps::{Steps, say};

/// What tests read to find another PostgreSQL than Debian 12's: the folder of its programs.
pub(crate) const POSTGRES_VARIABLE: &str = "STACKWARD_POSTGRES_BIN";
/// What tests read to find another Redis server than that in `PATH`: the program.
pub(crate) const REDIS_VARIABLE: &str = "STACKWARD_REDIS_SERVER";

/// A server of another version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    /// What it is called here.
    pub(crate) name: &'static str,
    /// The releases that have it, or had it: asked in this order. What is new is in `sid` first and leaves it when a newer
    /// one comes; what is old is in one release for ever.
    suites: &'static [&'static str],
    /// Debian's package.
    package: &'static str,
    kind: Kind,
    /// Which tests run on it, as nextest's filters say it.
    pub(crate) tests: &'static str,
}

/// What kind of server it is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// One program, called as its package is.
    Redis,
    /// A folder of programs of this version, which run as another user when we are root.
    Postgres(u32),
}

impl Server {
    /// The variable that tells the tests of it.
    pub(crate) const fn variable(self) -> &'static str {
        match self.kind {
            Kind::Redis => REDIS_VARIABLE,
            Kind::Postgres(_) => POSTGRES_VARIABLE,
        }
    }

    /// The packages of this workspace whose tests run on it.
    pub(crate) const fn packages(self) -> &'static [&'static str] {
        match self.kind {
            Kind::Redis => &["engine-redis"],
            Kind::Postgres(_) => &["engine-postgres", "stackward"],
        }
    }
}

/// Those that the nightly tests run on.
pub(crate) const SERVERS: [Server; 6] = [
    Server { name: "redis-6", suites: &["bullseye"], package: "redis-server", kind: Kind::Redis, tests: OLD },
    Server { name: "redis-8", suites: &["trixie"], package: "redis-server", kind: Kind::Redis, tests: ALL },
    Server { name: "valkey-8", suites: &["trixie"], package: "valkey-server", kind: Kind::Redis, tests: ALL },
    Server { name: "valkey-9", suites: &["forky", "sid"], package: "valkey-server", kind: Kind::Redis, tests: ALL },
    Server {
        name: "postgres-17",
        suites: &["trixie"],
        package: "postgresql-17",
        kind: Kind::Postgres(17),
        tests: POSTGRES,
    },
    Server {
        name: "postgres-18",
        suites: &["forky", "sid"],
        package: "postgresql-18",
        kind: Kind::Postgres(18),
        tests: POSTGRES,
    },
];

/// Every one of them.
pub(crate) const ALL_SERVERS: &str = "all";

/// What can be chosen: all, or one by its name.
pub(crate) const CHOICES: [&str; SERVERS.len() + 1] = {
    let mut choices = [ALL_SERVERS; SERVERS.len() + 1];
    let mut number = 0;
    while number < SERVERS.len() {
        choices[number] = SERVERS[number].name;
        number += 1;
    }
    choices
};

/// The whole engine, and what the program does with its log.
const POSTGRES: &str = "(package(engine-postgres) & binary(it)) \
    | (package(stackward) & binary(endtoend) & test(/^(wal|base_backup|moments)::/))";

/// Not what needs a program that every user may run: the cache is that of one.
const ALL: &str = "binary(it) - test(a_fork_that_fails)";
/// What does not ask for functions, selectors of access rules, or several append-only files.
const OLD: &str = "binary(it) & (test(wire::) + test(own_dump::) + test(every_handshake) + test(stopped_server_gets) \
    + test(start_again) + test(files_in_a_folder) + test(replaced_only_when_told) + test(shrinking_server) + test(that_change))";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LOADERS: &str = "ld-linux";

/// What [`Server::variable`] is set to: the program of a server, or the folder of its programs; fetched when it is not in the
/// cache.
pub(crate) fn program(cache: &Cache, server: Server) -> Result<PathBuf> {
    let servers = match server.kind {
        Kind::Redis => cache.folder("servers")?,
        // The server refuses root: others must be able to run it.
        Kind::Postgres(_) => cache.open_folder("servers")?,
    };
    let root = servers.join(server.name);
    let programs = match server.kind {
        Kind::Redis => Programs { real: root.join("usr/bin"), scripts: root.join("bin") },
        Kind::Postgres(version) => {
            let folder = root.join(format!("usr/lib/postgresql/{version}"));
            Programs { real: folder.join("bin.real"), scripts: folder.join("bin") }
        }
    };
    let (first, told) = match server.kind {
        Kind::Redis => (server.package, programs.scripts.join(server.package)),
        Kind::Postgres(_) => ("postgres", programs.scripts.clone()),
    };
    if programs.real.join(first).is_file() && programs.scripts.join(first).is_file() {
        return Ok(told);
    }
    if root.exists() {
        std::fs::remove_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    }
    for package in fetch(cache, server)? {
        Run::new("dpkg-deb").args(["-x".as_ref(), package.as_os_str(), root.as_os_str()]).run()?;
    }
    let names = match server.kind {
        Kind::Redis => vec![first.to_owned()],
        Kind::Postgres(_) => set_aside(&programs)?,
    };
    let starter = Starter::find(&root)?;
    for name in names.iter().filter(|name| *name != first) {
        starter.script(&programs, name)?;
    }
    // Last: without it the others are none. It runs, or it is no server: a half of one must not stay in the cache.
    let program = starter.script(&programs, first)?;
    let ran = Run::new(&program).args(["--version"]).output();
    ran.map(|version| say(&format!("    {}", version.trim()))).inspect_err(|_| {
        let _gone = std::fs::remove_file(&program);
    })?;
    Ok(told)
}

/// `cargo xtask servers`: fetches those of this name.
pub(crate) fn fetch_all(steps: &mut Steps, name: &str) {
    for server in SERVERS.iter().filter(|server| name == ALL_SERVERS || server.name == name) {
        steps.step(server.name, &format!("cargo xtask servers {}", server.name), |cache| {
            let program = program(cache, *server)?;
            say(&format!("    {}={}", server.variable(), program.display()));
            Ok(())
        });
    }
}

/// The packages of a server, from the first release that has it.
fn fetch(cache: &Cache, server: Server) -> Result<Vec<PathBuf>> {
    let folder = cache.folder("servers")?.join("apt").join(server.name);
    let mut faults = Vec::new();
    for suite in server.suites {
        say(&format!("    fetching {} from Debian {suite}", server.name));
        // The lists and packages of another release must not be mixed with this one's.
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        match Apt::prepare(&folder, suite).and_then(|apt| apt.download(server.package)) {
            Ok(packages) => return Ok(packages),
            Err(why) => faults.push(format!("Debian {suite}: {why}")),
        }
    }
    Err(faults.join("\n"))
}

/// Where unpacked programs are, and where the scripts that start them go.
struct Programs {
    real: PathBuf,
    scripts: PathBuf,
}

/// Moves the programs to make room for scripts under their names: PostgreSQL's look for each other, and for their other
/// files, from where they are. Returns the names.
fn set_aside(programs: &Programs) -> Result<Vec<String>> {
    let failed = |error| format!("{}: {error}", programs.scripts.display());
    std::fs::rename(&programs.scripts, &programs.real).map_err(failed)?;
    // Compiled queries would look for an LLVM of their own.
    if let Some(folder) = programs.scripts.parent() {
        let _none = std::fs::remove_file(folder.join("lib/llvmjit.so"));
    }
    let entries = std::fs::read_dir(&programs.real).map_err(failed)?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// apt with folders of its own.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn prepare(folder: &Path, suite: &str) -> Result<Self> {
        for below in ["state/lists/partial", "cache/archives/partial"] {
            make(&folder.join(below))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        write(&folder.join("sources.list"), &source)?;
        write(&folder.join("status"), "")?;
        let apt = Self { folder: folder.to_owned() };
        apt.run(&["update"])?;
        Ok(apt)
    }

    /// The package and everything that it depends on.
    fn download(&self, package: &str) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        self.run(&["install", "-y", "--no-install-recommends", "--download-only", package])?;
        let found = std::fs::read_dir(&archives).map_err(|error| format!("{}: {error}", archives.display()))?;
        let mut packages: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
        packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        packages.sort();
        Ok(packages)
    }

    fn run(&self, arguments: &[&str]) -> Result {
        let set = |name: &str, below: &str| format!("{name}={}", self.folder.join(below).display());
        let options = [
            set("Dir::State", "state"),
            set("Dir::State::status", "status"),
            set("Dir::Cache", "cache"),
            set("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Debug::NoLocking=1".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options = options.iter().flat_map(|option| ["-o", option]);
        Run::new("apt-get").args(["-qq"]).args(options).args(arguments).output().map(drop)
    }
}

/// Where this machine gets its packages from.
fn mirror() -> Result<String> {
    let told = Run::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"])
        .output()?;
    let own = told.lines().filter_map(|line| line.strip_prefix("Debian "));
    let mut own = own.filter(|site| !site.contains("security"));
    own.next()
        .map(str::to_owned)
        .ok_or_else(|| "servers of other versions come from Debian, and this machine knows no mirror of it".to_owned())
}

/// What starts programs that were unpacked: their own loader, with their own libraries.
struct Starter {
    loader: PathBuf,
    path: String,
}

impl Starter {
    fn find(root: &Path) -> Result<Self> {
        let libraries: Vec<PathBuf> = ["lib", "usr/lib"]
            .iter()
            .flat_map(|folder| std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains("-linux-gnu"))
            .flat_map(|path| [path.clone(), path.join("systemd")])
            .collect();
        let loader = libraries.iter().find_map(|folder| {
            let mut files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LOADERS)))
        });
        let loader = loader.ok_or_else(|| format!("{}: no loader was unpacked", root.display()))?;
        let path: Vec<String> = libraries.iter().map(|folder| folder.display().to_string()).collect();
        Ok(Self { loader, path: path.join(":") })
    }

    /// Writes a script that starts the program, which takes itself for one where the script is.
    fn script(&self, programs: &Programs, name: &str) -> Result<PathBuf> {
        let script = programs.scripts.join(name);
        // Loaders know `--argv0` since 2021; older releases have servers that need it not.
        let real = programs.real.join(name);
        let itself =
            if programs.real.ends_with("bin.real") { format!("--argv0 {} ", script.display()) } else { String::new() };
        let text = format!(
            "#!/bin/sh\nexec {} --library-path {} {itself}{} \"$@\"\n",
            self.loader.display(),
            self.path,
            real.display()
        );
        make(&programs.scripts)?;
        write(&script, &text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
            .map_err(|error| format!("{}: {error}", script.display()))?;
        Ok(script)
    }
}

fn make(folder: &Path) -> Result {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn write(path: &Path, text: &str) -> Result {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
