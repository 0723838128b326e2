//! Scratch servers: a private folder, a unix socket, no network, nothing saved.
//!
//! Invariant: a scratch server reaches no other server and is gone, with its files, when its value is dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::{Host, HostCommand, HostProcess};
use backup_core::manifest::ServerRecord;

use crate::connection::Connection;
use crate::details::Details;
use crate::recover::AOF_FOLDER;
use crate::server::Server;
use crate::versions::reads;

/// The path of a unix socket has at most 107 bytes; its name takes 7 of them.
const MAX_SOCKET_FOLDER: usize = 100;
/// Where the socket goes when the scratch folder's path is too long.
const SHORT_FOLDER: &str = "/tmp";
const POLL: Duration = Duration::from_millis(20);
/// Enough of the end of the log to say why a server does not start.
const LOG_TAIL_BYTES: usize = 2048;
const VERSION_BYTES: usize = 4096;

/// A folder for a scratch server, made before the server so that its data can be put there.
#[derive(Debug)]
pub(crate) struct Folder {
    data: tempfile::TempDir,
    short: Option<tempfile::TempDir>,
}

impl Folder {
    pub(crate) fn make(parent: &Path) -> Result<Self> {
        let data = private_folder(parent)?;
        let long = data.path().as_os_str().len() > MAX_SOCKET_FOLDER;
        let short = if long { Some(private_folder(Path::new(SHORT_FOLDER))?) } else { None };
        Ok(Self { data, short })
    }

    /// The RDB that the server will load.
    pub(crate) fn dump(&self) -> PathBuf {
        self.data.path().join("dump.rdb")
    }

    /// Where a set of append-only files goes that the server will load instead.
    pub(crate) fn append_only(&self) -> PathBuf {
        self.data.path().join(AOF_FOLDER)
    }

    fn socket(&self) -> PathBuf {
        self.short.as_ref().unwrap_or(&self.data).path().join("socket")
    }

    fn log(&self) -> PathBuf {
        self.data.path().join("log")
    }
}

/// What a scratch server loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Load {
    /// [`Folder::dump`].
    Rdb,
    /// The set of this name in [`Folder::append_only`], with so many databases.
    AppendOnly { name: String, databases: u32 },
}

impl Load {
    fn arguments(self) -> Vec<String> {
        let words: &[&str] = match &self {
            Self::Rdb => &["--appendonly", "no"],
            Self::AppendOnly { .. } => &[
                "--appendonly",
                "yes",
                "--appenddirname",
                AOF_FOLDER,
                "--appendfsync",
                "no",
                "--auto-aof-rewrite-percentage",
                "0",
                // What we wrote is whole; a cut would be damage.
                "--aof-load-truncated",
                "no",
                "--repl-diskless-sync",
                "yes",
                "--repl-diskless-sync-delay",
                "0",
            ],
        };
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if let Self::AppendOnly { name, databases } = self {
            arguments.extend(["--appendfilename".to_owned(), name, "--databases".to_owned(), databases.to_string()]);
        }
        arguments
    }
}

/// A running scratch server. The process dies before the folder is removed: fields are dropped in order.
#[derive(Debug)]
pub(crate) struct Scratch {
    process: HostProcess,
    folder: Folder,
    server: Server,
}

impl Scratch {
    /// Starts `program` on what lies in `folder`, and waits until it has loaded it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the server ends instead of loading its data, with the end of its log.
    pub(crate) async fn start(
        host: &dyn Host,
        program: &Program,
        folder: Folder,
        load: Load,
    ) -> Result<(Self, Connection)> {
        let command = HostCommand::new(&program.path)
            .args(["--port", "0", "--save", "", "--daemonize", "no"])
            .args(load.arguments())
            .args(["--dbfilename", "dump.rdb", "--unixsocketperm", "700", "--rdb-save-incremental-fsync", "no"])
            .arg("--dir")
            .arg(folder.data.path())
            .arg("--unixsocket")
            .arg(folder.socket())
            .arg("--logfile")
            .arg(folder.log())
            .in_folder(folder.data.path())
            .null_stdout();
        let command = if program.hides_debug() { command.args(["--enable-debug-command", "local"]) } else { command };
        let process = host.spawn(command).await?;
        let server = Server::scratch(folder.socket());
        let mut scratch = Self { process, folder, server };
        let connection = scratch.wait_until_loaded().await?;
        Ok((scratch, connection))
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    async fn wait_until_loaded(&mut self) -> Result<Connection> {
        loop {
            match self.server.try_connect().await {
                Ok(connection) => return Ok(connection),
                Err(error)
                    if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unreachable | ErrorKind::Incomplete) => {}
                Err(error) => return Err(error),
            }
            // A server that ended will never answer: say why it ended.
            if let Ok(status) = tokio::time::timeout(POLL, self.process.status()).await {
                let _ended = status?;
                let error = Error::new(ErrorKind::Damaged, "the scratch server does not load the backup");
                return Err(error.caused_by(tail(&self.folder.log())));
            }
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]).trim().to_owned()
}

fn private_folder(parent: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("swdrill-").tempdir_in(parent);
    folder.map_err(|source| Error::io("cannot make a scratch folder", parent, source))
}

/// A server program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    pub(crate) product: String,
    pub(crate) version: String,
    /// Product and version.
    pub(crate) shown: String,
    /// Whether it has the major and minor version that was saved.
    pub(crate) same: bool,
}

impl Program {
    /// Looks, in `bin` or in `PATH`, for the program that `saved` ran.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it is not installed, or too old to read the backup.
    pub(crate) async fn find(
        host: &dyn Host,
        bin: Option<&Path>,
        saved: Option<&ServerRecord>,
        details: &Details,
    ) -> Result<Self> {
        let product = saved.map_or("Redis", |saved| saved.product.as_str());
        let saved_version = saved.map_or("", |saved| saved.version.as_str());
        let name = if product == "Valkey" { "valkey-server" } else { "redis-server" };
        let path = bin.map_or_else(|| PathBuf::from(name), |bin| bin.join(name));
        let hint = format!(
            "install {product} {saved_version} (`apt-get install {name}`), or name its folder as `bin` in the plan"
        );
        let started = host.spawn(HostCommand::new(&path).arg("--version")).await.map_err(|source| {
            let message = format!("there is no `{name}` here to load the backup with");
            Error::new(ErrorKind::Unsupported, message).hint(hint.clone()).caused_by(source)
        })?;
        let told = started.output(VERSION_BYTES).await?;
        let version = told.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("?");
        if !reads(product, version, &details.rdb_format, details.rdb_version) {
            let message = format!("{product} {version} cannot read RDB version {}", details.rdb_version);
            return Err(Error::new(ErrorKind::Unsupported, message).hint(hint));
        }
        let (product, version) = (product.to_owned(), version.to_owned());
        Ok(Self {
            path,
            shown: format!("{product} {version}"),
            same: minor(saved_version) == minor(&version),
            product,
            version,
        })
    }

    /// Fails for a server that knows no sets of append-only files.
    pub(crate) fn refuse_before_multi_part(&self) -> Result<()> {
        if self.major().is_none_or(|major| major >= 7) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, format!("{} cannot replay a stream: it is older than 7.0", self.shown))
            .hint("install a newer one, and name its folder as `bin` in the plan"))
    }

    fn major(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }

    /// Whether DEBUG must be allowed: since 7.0 it is not by itself.
    fn hides_debug(&self) -> bool {
        self.major().is_some_and(|major| major >= 7)
    }
}

/// Major and minor version.
fn minor(version: &str) -> Vec<&str> {
    version.split('.').take(2).collect()
}
