//! The server's own programs: where they are, which version they have, and which of them fits a server.
//!
//! Invariant: `pg_dump` is never older than the server that it dumps.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::{Host, HostCommand};

/// The newest major version that is looked for in the distributions' folders.
const NEWEST_MAJOR: u32 = 24;
/// The oldest major version that this engine works with.
pub(crate) const OLDEST_MAJOR: u32 = 10;
/// The answer of `--version` is one line.
const VERSION_BYTES: usize = 4096;
const LISTING_BYTES: usize = 64 * 1024;

/// A version of PostgreSQL, as `server_version_num` counts since version 10: `150018` is 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PgVersion(pub(crate) u32);

impl PgVersion {
    pub(crate) const fn new(major: u32, minor: u32) -> Self {
        Self(major * 10_000 + minor)
    }

    pub(crate) const fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Reads `pg_dump (PostgreSQL) 15.18 (Debian …)`, and `15.18 (Debian …)`; betas count as minor version 0.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.split_once("(PostgreSQL)").map_or(text, |(_, version)| version).trim_start();
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let beta = text.contains("beta") || text.contains("rc");
        let minor = if beta { 0 } else { numbers.next().and_then(Result::ok).unwrap_or(0) };
        ((1..1000).contains(&major) && minor < 10_000).then(|| Self::new(major, minor))
    }

    /// Whether this `psql` knows `\restrict`, which dumps begin with since the minor releases of August 2025
    /// (CVE-2025-8714).
    pub(crate) fn knows_restrict(self) -> bool {
        let since = [(13, 22), (14, 19), (15, 14), (16, 10), (17, 6)];
        let (major, minor) = (self.major(), self.0 % 10_000);
        major >= 18 || since.iter().any(|(known, first)| *known == major && minor >= *first)
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 10_000)
    }
}

/// A folder of client programs of one version.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    folder: Option<PathBuf>,
    pub(crate) version: PgVersion,
}

impl Tools {
    /// The program's path, or its bare name when it is found in `PATH`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
    }

    /// Whether the folder has this program.
    pub(crate) async fn has(&self, host: &dyn Host, name: &str) -> bool {
        match host.spawn(HostCommand::new(self.program(name)).arg("--version").in_folder("/")).await {
            Ok(process) => process.output(VERSION_BYTES).await.is_ok(),
            Err(_) => false,
        }
    }
}

/// Finds client programs on a host.
#[derive(Debug, Clone)]
pub(crate) struct ToolBox {
    host: Arc<dyn Host>,
    bin: Option<PathBuf>,
}

impl ToolBox {
    /// `bin`: the folder that the plan names.
    pub(crate) fn new(host: Arc<dyn Host>, bin: Option<PathBuf>) -> Self {
        Self { host, bin }
    }

    /// Any `psql`: it talks to servers of every version.
    pub(crate) async fn any(&self) -> Result<Tools> {
        let mut found = self.candidates("psql").await?;
        found.pop().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no `psql` on {}", self.host.describe()))
                .hint("install the client: `apt-get install postgresql-client`; or name its folder: `bin: …`")
        })
    }

    /// The clients for a server of version `server`: of its own major version when they are here, else the next newer.
    pub(crate) async fn matching(&self, server: PgVersion) -> Result<Tools> {
        self.at_least(server, "pg_dump").await
    }

    /// The programs of a server that can load what a server of version `saved` dumped: for a drill.
    pub(crate) async fn server(&self, saved: PgVersion) -> Result<Tools> {
        self.at_least(saved, "postgres").await.map_err(|error| {
            error.hint(format!(
                "a drill needs the server's programs on this machine: `apt-get install postgresql-{}`; or name their \
                 folder: `bin: …`",
                saved.major()
            ))
        })
    }

    async fn at_least(&self, wanted: PgVersion, program: &str) -> Result<Tools> {
        let major = wanted.major();
        let found = self.candidates(program).await?;
        let newest = found.iter().map(|tools| tools.version).max();
        let fitting = found.into_iter().filter(|tools| tools.version.major() >= major);
        if let Some(tools) = fitting.min_by_key(|tools| tools.version.major()) {
            return Ok(tools);
        }
        let error = match newest {
            Some(newest) => Error::new(
                ErrorKind::Unsupported,
                format!("`{program}` has version {newest}, which is older than the server's {wanted}"),
            ),
            None => Error::new(ErrorKind::NotFound, format!("there is no `{program}` on {}", self.host.describe())),
        };
        Err(error.hint(format!(
            "install the client of the server's version: `apt-get install postgresql-client-{major}`; or name its \
             folder: `bin: …`"
        )))
    }

    /// The folders that have `program`, oldest version first; with `bin`, only that.
    async fn candidates(&self, program: &str) -> Result<Vec<Tools>> {
        if let Some(bin) = &self.bin {
            let version = self.version_of(&bin.join(program)).await.map_err(|error| {
                error.hint(format!("the plan names the folder {} as `bin`; it must hold `{program}`", bin.display()))
            })?;
            return Ok(vec![Tools { folder: Some(bin.clone()), version }]);
        }
        let mut found = Vec::new();
        for path in self.installed(program).await? {
            if let Ok(version) = self.version_of(&path).await {
                found.push(Tools { folder: path.parent().map(Path::to_owned), version });
            }
        }
        // A wrapper in PATH (Debian's pg_wrapper) chooses a version of its own: last resort.
        if found.is_empty()
            && let Ok(version) = self.version_of(Path::new(program)).await
        {
            found.push(Tools { folder: None, version });
        }
        found.sort_by_key(|tools| tools.version);
        Ok(found)
    }

    async fn version_of(&self, program: &Path) -> Result<PgVersion> {
        let command = HostCommand::new(program).arg("--version").in_folder("/");
        let text = self.host.spawn(command).await?.output(VERSION_BYTES).await?;
        PgVersion::parse(&text).filter(|version| version.major() >= OLDEST_MAJOR).ok_or_else(|| {
            let text = text.trim();
            Error::new(ErrorKind::Unsupported, format!("`{}` has an unknown version: {text}", program.display()))
        })
    }

    /// Where Debian, Red Hat and Alpine put the programs of each version. `ls` prints those that exist.
    async fn installed(&self, program: &str) -> Result<Vec<PathBuf>> {
        let mut ls = HostCommand::new("ls").arg("-d");
        for major in OLDEST_MAJOR..=NEWEST_MAJOR {
            for folder in [
                format!("/usr/lib/postgresql/{major}/bin"),
                format!("/usr/pgsql-{major}/bin"),
                format!("/usr/libexec/postgresql{major}"),
            ] {
                ls = ls.arg(format!("{folder}/{program}"));
            }
        }
        let mut process = self.host.spawn(ls).await?;
        let mut listing = String::new();
        if let Some(stdout) = process.take_stdout() {
            use tokio::io::AsyncReadExt;
            let failed = |source| Error::from_io("cannot list the installed programs", source);
            stdout.take(LISTING_BYTES as u64).read_to_string(&mut listing).await.map_err(failed)?;
        }
        // Its status tells only that some of the candidates do not exist.
        let _some_are_missing = process.status().await?;
        Ok(listing.lines().map(PathBuf::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_printed() {
        let cases = [
            ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some((15, 18))),
            ("postgres (PostgreSQL) 19beta1", Some((19, 0))),
            ("16.4", Some((16, 4))),
            ("psql (PostgreSQL) 18", Some((18, 0))),
            ("something else", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(major, minor)| PgVersion::new(major, minor));
            assert_eq!(PgVersion::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn restrict_is_known_since_august_2025() {
        for (major, minor, known) in [(15, 13, false), (15, 14, true), (17, 5, false), (18, 0, true), (12, 99, false)] {
            assert_eq!(PgVersion::new(major, minor).knows_restrict(), known, "{major}.{minor}");
        }
    }
}
