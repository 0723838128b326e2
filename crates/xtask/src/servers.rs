//! Servers of other versions, for the nightly tests: from Debian's other releases, unpacked beside, never installed.
//!
//! apt resolves, downloads and verifies what a server needs (with folders of its own, so the machine's packages are not
//! touched); the packages are unpacked into the cache, and a script starts the program with its own loader and libraries.
//! Invariant: nothing outside the cache is changed; a server that is there already is used as it is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::process::{Result, Run};
use crate::steps::say;

/// A server of another version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    /// What it is called here.
    pub(crate) name: &'static str,
    /// The release that has it.
    suite: &'static str,
    /// Debian's package, and the program in it.
    package: &'static str,
    /// Which of the engine's tests run on it, as nextest's filters say it.
    pub(crate) tests: &'static str,
}

/// Those that the nightly tests run on.
pub(crate) const SERVERS: [Server; 4] = [
    Server { name: "redis-6", suite: "bullseye", package: "redis-server", tests: OLD },
    Server { name: "redis-8", suite: "trixie", package: "redis-server", tests: ALL },
    Server { name: "valkey-8", suite: "trixie", package: "valkey-server", tests: ALL },
    Server { name: "valkey-9", suite: "sid", package: "valkey-server", tests: ALL },
];

/// Not what needs a program that every user may run: the cache is that of one.
const ALL: &str = "binary(it) - test(a_fork_that_fails)";
/// What does not ask for functions, selectors of access rules, or several append-only files.
const OLD: &str = "binary(it) & (test(wire::) + test(own_dump::) + test(every_handshake) + test(stopped_server_gets) \
    + test(start_again) + test(files_in_a_folder) + test(replaced_only_when_told) + test(shrinking_server) + test(that_change))";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LOADERS: &str = "ld-linux";

/// The program of a server; fetched when it is not in the cache.
pub(crate) fn program(cache: &Cache, server: Server) -> Result<PathBuf> {
    let root = cache.folder("servers")?.join(server.name);
    let program = root.join("bin").join(server.package);
    if program.is_file() {
        return Ok(program);
    }
    say(&format!("    fetching {} from Debian {}", server.name, server.suite));
    if root.exists() {
        std::fs::remove_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    }
    let apt = Apt::prepare(&cache.folder("servers")?.join("apt").join(server.name), server.suite)?;
    for package in apt.download(server.package)? {
        Run::new("dpkg-deb").args(["-x".as_ref(), package.as_os_str(), root.as_os_str()]).run()?;
    }
    script(&root, server.package, &program)?;
    Ok(program)
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

/// Writes a program that starts the unpacked one with its own loader and libraries.
fn script(root: &Path, name: &str, program: &Path) -> Result {
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
    let text = format!(
        "#!/bin/sh\nexec {} --library-path {} {} \"$@\"\n",
        loader.display(),
        path.join(":"),
        root.join("usr/bin").join(name).display()
    );
    make(program.parent().unwrap_or(root))?;
    write(program, &text)?;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("{}: {error}", program.display()))?;
    // It runs, or it is no server: a half of one must not stay in the cache.
    Run::new(program).args(["--version"]).output().map(|version| say(&format!("    {}", version.trim()))).inspect_err(
        |_| {
            let _gone = std::fs::remove_file(program);
        },
    )
}

fn make(folder: &Path) -> Result {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn write(path: &Path, text: &str) -> Result {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
