//! Scratch servers: a private data directory, a unix socket, no network, no archiving, nothing preloaded; and where we may, a
//! view of the machine in which there is nothing else to write to.
//!
//! Invariant: a scratch server reaches no other server and is gone, with its files, when its value is dropped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::{Host, HostProcess};

use crate::handover::{give, let_in};
use crate::isolation::{Isolation, isolate};
use crate::psql::Psql;
use crate::server::Server;
use crate::session::silence;
use crate::tools::Tools;

/// The path of a unix socket has at most 107 bytes; the name of PostgreSQL's takes 15 of them.
const MAX_SOCKET_FOLDER: usize = 90;
/// Where the socket goes when the scratch folder's path is too long.
const SHORT_FOLDER: &str = "/tmp";
const PORT: u16 = 5432;
/// A server on an empty or a freshly loaded directory that takes longer does not start.
const START_LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(50);
/// The system user that it runs as when we are root, which PostgreSQL refuses.
const SERVER_USER: &str = "postgres";

/// What makes an empty server harmless and quick. The last ones keep restored subscriptions and libraries asleep. The copy of a cluster
/// has its own configuration (`recovery/conf.rs`), so that a drill of it proves what a copy does.
const SETTINGS: [&str; 15] = [
    "archive_mode=off",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "ssl=off",
    "huge_pages=off",
    "shared_buffers=128MB",
    "max_wal_size=4GB",
    "hot_standby=off",
    "autovacuum=off",
    "synchronous_standby_names=",
    "max_logical_replication_workers=0",
    "shared_preload_libraries=",
    "max_prepared_transactions=16",
    "log_min_messages=fatal",
];

/// A running scratch server.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) server: Server,
    tools: Tools,
    data: PathBuf,
    process: HostProcess,
    pub(crate) isolation: Isolation,
    /// Removed when dropped, after the process was killed.
    _folders: Vec<tempfile::TempDir>,
}

/// Where a scratch server will be.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) server: Server,
    /// The folder of everything.
    pub(crate) folder: PathBuf,
    socket: PathBuf,
    folders: Vec<tempfile::TempDir>,
}

impl Site {
    /// Makes its folders below `cx.scratch()`.
    pub(crate) async fn prepare(
        cx: &RunContext,
        host: &Arc<dyn Host>,
        superuser: &str,
        run_as: Option<&str>,
    ) -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let run_as = run_as.or(root.then_some(SERVER_USER)).map(str::to_owned);
        let home = private_folder(cx.scratch())?;
        let folder = home.path().to_owned();
        let mut folders = Vec::new();
        let socket = if folder.as_os_str().len() <= MAX_SOCKET_FOLDER {
            folder.clone()
        } else {
            let short = private_folder(Path::new(SHORT_FOLDER))?;
            let path = short.path().to_owned();
            folders.push(short);
            path
        };
        folders.push(home);
        let server = Server::scratch(Arc::clone(host), &socket, PORT, superuser, run_as);
        if !let_in(&server, cx.scratch()).await? {
            return Err(closed(&server, cx.scratch()));
        }
        for folder in &folders {
            give(&server, folder.path()).await?;
        }
        Ok(Self { server, folder, socket, folders })
    }

    /// Starts the server on `data`, with these settings before those in its own files.
    pub(crate) async fn launch(self, tools: Tools, data: PathBuf, settings: &[String]) -> Result<Scratch> {
        let Self { server, socket, folders, .. } = self;
        let mut postgres = server.plain_command(tools.program("postgres")).arg("-D").arg(&data);
        // A trigger at login, say, must not keep us out, whoever we are.
        let (name, value) = silence(tools.version);
        postgres = postgres.arg("-c").arg(format!("{name}={value}"));
        for setting in settings {
            postgres = postgres.arg("-c").arg(setting);
        }
        postgres = postgres.arg("-c").arg("listen_addresses=");
        postgres = postgres.arg("-c").arg(format!("unix_socket_directories={}", socket.display()));
        let own: Vec<&Path> = folders.iter().map(tempfile::TempDir::path).collect();
        let (postgres, isolation) = isolate(&*server.host, postgres.arg("-p").arg(PORT.to_string()), &own).await?;
        let process = server.host.spawn(postgres.null_stdout()).await?;
        Ok(Scratch { server, tools, data, process, isolation, _folders: folders })
    }
}

impl Scratch {
    /// Makes and starts an empty server below `cx.scratch()`, with `superuser` as its superuser, whose shared names are in
    /// `encoding`.
    pub(crate) async fn start(
        cx: &RunContext,
        host: &Arc<dyn Host>,
        tools: Tools,
        (superuser, encoding): (&str, &str),
        run_as: Option<&str>,
    ) -> Result<Self> {
        let site = Site::prepare(cx, host, superuser, run_as).await?;
        let data = site.folder.join("data");
        init(&site.server, &tools, &data, (superuser, encoding)).await?;
        let mut scratch = site.launch(tools, data, &SETTINGS.map(str::to_owned)).await?;
        scratch.server = scratch.server.knowing(scratch.tools.version, true);
        scratch.wait_until_ready().await?;
        Ok(scratch)
    }

    /// Why the server ended, in its own words; `None` while it runs.
    pub(crate) async fn ended(&mut self) -> Result<Option<String>> {
        match tokio::time::timeout(POLL, self.process.status()).await {
            Ok(status) => status.map(|_| Some(self.process.stderr_tail().trim().to_owned())),
            Err(_) => Ok(None),
        }
    }

    /// Stops it with a checkpoint, and keeps its files until the value is dropped: for programs that look at them.
    pub(crate) async fn rest(&mut self) -> Result<()> {
        let stop = self.server.plain_command(self.tools.program("pg_ctl"));
        let stop = stop.args(["stop", "--mode=fast", "--silent", "--wait", "--timeout=3600", "-D"]).arg(&self.data);
        self.server.host.spawn(stop.null_stdout()).await?.finish().await?;
        self.process.status().await.map(|_| ())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let attempt = async {
                let session = Psql::connect(&self.server, &self.tools, "template1").await?;
                session.close().await
            };
            let Err(error) = attempt.await else { return Ok(()) };
            // A server that ended will never answer: say why it ended.
            if let Ok(status) = tokio::time::timeout(POLL, self.process.status()).await {
                let _ended = status?;
                return Err(Error::new(ErrorKind::Tool, "the scratch server does not start")
                    .caused_by(self.process.stderr_tail().trim().to_owned()));
            }
            if started.elapsed() > START_LIMIT {
                return Err(error);
            }
        }
    }

    /// Stops it at once, without a checkpoint: nobody will want its data.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let stop = self.server.plain_command(self.tools.program("pg_ctl")).args([
            "stop",
            "--mode=immediate",
            "--silent",
            "-D",
        ]);
        let process = self.server.host.spawn(stop.arg(&self.data).null_stdout()).await?;
        process.finish().await?;
        let _immediate_shutdown_has_a_status_of_its_own = self.process.status().await?;
        Ok(())
    }
}

async fn init(server: &Server, tools: &Tools, data: &Path, (superuser, encoding): (&str, &str)) -> Result<()> {
    let command = server
        .plain_command(tools.program("initdb"))
        .args(["--no-sync", "--auth=trust", "--no-locale", "--data-checksums"])
        .arg(format!("--encoding={encoding}"))
        .arg(format!("--username={superuser}"))
        .arg("-D")
        .arg(data);
    let process = server.host.spawn(command.null_stdout()).await?;
    process.finish().await.map(|_| ()).map_err(|error| error.during("make a scratch server"))
}

fn closed(server: &Server, folder: &Path) -> Error {
    let user = server.run_as().unwrap_or_default();
    let message = format!("the user `{user}` cannot enter the scratch folder {}", folder.display());
    Error::new(ErrorKind::PermissionDenied, message)
        .hint("choose a scratch folder whose parents everybody may pass, like one below /var/tmp")
}

fn private_folder(parent: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("swdrill-").tempdir_in(parent);
    folder.map_err(|source| Error::io("cannot make a scratch folder", parent, source))
}
