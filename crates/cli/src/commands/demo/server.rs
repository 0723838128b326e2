//! The private PostgreSQL of the demo: its own data directory and socket, no network, pgbench as its users.
//!
//! Invariant: it is stopped before its folder is removed; dropped, it is killed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::host::{Host, HostCommand, HostProcess, LocalHost};
use backup_core::{Error, ErrorKind, Result};

use super::passable;

/// PostgreSQL refuses to run as root; packages make this user for it.
const USER: &str = "postgres";
const DATABASE: &str = "shop";
const SCALE: &str = "5";
/// A server that does not answer after so many attempts never will.
const ATTEMPTS: u32 = 300;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);
const MAX_ANSWER: usize = 64 * 1024;

/// The server, running.
pub(super) struct Server {
    folder: PathBuf,
    bin: PathBuf,
    user: Option<&'static str>,
    version: String,
    postmaster: Option<HostProcess>,
    load: Option<HostProcess>,
}

impl Server {
    /// Starts one below `folder`. The inner error says why there is none: PostgreSQL need not be installed.
    pub(super) async fn make(folder: &Path) -> Result<Result<Self, String>> {
        let Some(bin) = find_bin() else {
            return Ok(Err("its programs are not installed (Debian: apt-get install postgresql)".to_owned()));
        };
        let user = rustix::process::geteuid().is_root().then_some(USER);
        let failed = |source| Error::io("cannot prepare PostgreSQL's folder", folder, source);
        std::fs::create_dir_all(folder.join("socket")).map_err(failed)?;
        if let Some(user) = user {
            let owner = format!("{user}:{user}");
            if run(HostCommand::new("chown").args(["-R", owner.as_str()]).arg(folder)).await.is_err() {
                return Ok(Err(format!("it refuses to run as root, and there is no user `{user}`")));
            }
        }
        passable(folder)?;
        let mut server =
            Self { folder: folder.to_owned(), bin, user, version: String::new(), postmaster: None, load: None };
        server.begin().await?;
        server.version = format!("PostgreSQL {}", server.ask("postgres", "SHOW server_version").await?);
        Ok(Ok(server))
    }

    /// The folder of its socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// The folder of its programs.
    pub(super) fn bin(&self) -> &Path {
        &self.bin
    }

    /// Product and version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Fills a database, and starts to write to it.
    pub(super) async fn fill(&mut self) -> Result<()> {
        self.ask("postgres", "CREATE ROLE clerk LOGIN").await?;
        self.ask("postgres", &format!("CREATE DATABASE {DATABASE} OWNER clerk")).await?;
        let pgbench = |arguments: &[&str]| self.client("pgbench").args(arguments).args(["-U", "clerk", DATABASE]);
        run(pgbench(&["-i", "-q", "-s", SCALE])).await?;
        let load = pgbench(&["-n", "-c", "2", "-R", "100", "-T", "3600"]).null_stdout();
        self.load = Some(LocalHost.spawn(load).await?);
        Ok(())
    }

    /// Stops writing: the users are sent away, and what they had begun is rolled back.
    pub(super) async fn rest(&mut self) -> Result<()> {
        self.load = None;
        let others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        for _ in 0..ATTEMPTS {
            self.ask("postgres", &format!("SELECT count(pg_terminate_backend(pid)) {others}")).await?;
            if self.ask("postgres", &format!("SELECT count(*) {others}")).await? == "0" {
                return Ok(());
            }
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
        Err(Error::new(ErrorKind::Busy, "the demo's PostgreSQL did not come to rest"))
    }

    /// Throws everything away: afterwards it is a new, empty cluster.
    pub(super) async fn start_over(&mut self) -> Result<()> {
        self.stop().await?;
        let data = self.folder.join("data");
        std::fs::remove_dir_all(&data)
            .map_err(|source| Error::io("cannot destroy PostgreSQL's data", &data, source))?;
        self.begin().await
    }

    /// Stops it. Safe to call at any time.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.load = None;
        if let Some(postmaster) = self.postmaster.take() {
            run(self.program("pg_ctl").args(["stop", "-m", "fast", "-s", "-D"]).arg(self.folder.join("data"))).await?;
            // Stopped on request, it ends with status zero.
            postmaster.finish().await?;
        }
        Ok(())
    }

    /// The names of the tables of every database, with a command that prints a table's rows in one order.
    pub(super) async fn tables(&self) -> Result<Vec<(String, HostCommand)>> {
        let databases =
            self.ask("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1").await?;
        let mut tables = Vec::new();
        for database in databases.lines() {
            let question = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
                WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1";
            for table in self.ask(database, question).await?.lines() {
                let copy = format!("COPY (SELECT t::text COLLATE \"C\" FROM {table} t ORDER BY 1) TO STDOUT");
                tables.push((format!("{database}: {table}"), self.psql(database, &copy)));
            }
        }
        Ok(tables)
    }

    /// Makes a cluster and starts it.
    async fn begin(&mut self) -> Result<()> {
        let data = self.folder.join("data");
        let options = ["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions", "-D"];
        run(self.program("initdb").args(options).arg(&data)).await?;
        let settings = [
            format!("unix_socket_directories={}", self.socket().display()),
            "listen_addresses=".to_owned(),
            "fsync=off".to_owned(),
            "max_wal_size=256MB".to_owned(),
        ];
        let mut command = self.program("postgres").arg("-D").arg(&data).null_stdout();
        for setting in settings {
            command = command.arg("-c").arg(setting);
        }
        self.postmaster = Some(LocalHost.spawn(command).await?);
        for _ in 0..ATTEMPTS {
            if self.ask("postgres", "SELECT 1").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
        let said = self.postmaster.take().map(|postmaster| postmaster.stderr_tail()).unwrap_or_default();
        Err(Error::new(ErrorKind::Tool, "the demo's PostgreSQL does not start").caused_by(said))
    }

    async fn ask(&self, database: &str, question: &str) -> Result<String> {
        let process = LocalHost.spawn(self.psql(database, question)).await?;
        Ok(process.output(MAX_ANSWER).await?.trim().to_owned())
    }

    fn psql(&self, database: &str, question: &str) -> HostCommand {
        let options = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", database, "-c", question];
        self.client("psql").args(options)
    }

    /// A program that connects to this server.
    fn client(&self, name: &str) -> HostCommand {
        self.program(name).arg("-h").arg(self.socket())
    }

    fn program(&self, name: &str) -> HostCommand {
        // The folder we were started in may be closed to the server's user.
        let command = HostCommand::new(self.bin.join(name)).in_folder("/").env("LC_ALL", "C");
        match self.user {
            Some(user) => command.as_user(user),
            None => command,
        }
    }
}

async fn run(command: HostCommand) -> Result<()> {
    LocalHost.spawn(command.null_stdout()).await?.finish().await.map(|_| ())
}

/// The folder of the newest version's programs.
fn find_bin() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("STACKWARD_POSTGRES_BIN") {
        return Some(PathBuf::from(named));
    }
    let complete =
        |bin: &PathBuf| ["postgres", "initdb", "pg_ctl", "pgbench", "psql"].iter().all(|name| bin.join(name).is_file());
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |entry: &std::fs::DirEntry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
    let mut debian: Vec<(u32, PathBuf)> =
        versions.filter_map(|entry| Some((version(&entry)?, entry.path().join("bin")))).collect();
    debian.sort();
    let debian = debian.into_iter().rev().map(|(_, bin)| bin);
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.chain(std::env::split_paths(&path)).find(complete)
}
