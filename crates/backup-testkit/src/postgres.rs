//! Private PostgreSQL servers for tests: real, in a temporary folder, on a unix socket only, gone when dropped.
//!
//! Invariant: a server listens on no network (but for the loopback, when told so), shares nothing with other servers, and
//! does not outlive its value.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Selects another folder of server programs than [`DEFAULT_BIN`].
pub const BIN_VARIABLE: &str = "STACKWARD_POSTGRES_BIN";
/// Where Debian 12 installs the server.
pub const DEFAULT_BIN: &str = "/usr/lib/postgresql/15/bin";
/// The user that servers run as when the tests run as root, which PostgreSQL refuses.
const SERVER_USER: &str = "postgres";
/// A server that needs longer than this to start will not start.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How often a condition is looked at again while waiting for the server.
const POLL: Duration = Duration::from_millis(10);

/// A running server. The superuser is `postgres`; whoever reaches the socket is trusted, unless [`set_hba`](Self::set_hba) says otherwise.
pub struct PrivatePostgres {
    folder: tempfile::TempDir,
    bin: PathBuf,
    settings: Vec<(String, String)>,
    port: u16,
    data: PathBuf,
    /// The folder of its configuration, when that is not the data directory.
    etc: Option<PathBuf>,
}

/// The first and the last line of what keeps a copy apart from the living.
const COPY_BEGIN: &str = "# stackward: a copy, kept apart";
const COPY_END: &str = "# stackward: end of what keeps the copy apart\n";

/// The port, where it is only a part of the socket's name.
const PORT: u16 = 5432;

impl PrivatePostgres {
    /// Starts an empty server.
    ///
    /// # Panics
    /// When PostgreSQL is not installed (the message has the command that installs it), or does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::with_settings(&[])
    }

    /// Starts an empty server with these settings in its `postgresql.conf`, values as SQL would write them.
    ///
    /// # Panics
    /// As [`PrivatePostgres::start`].
    #[must_use]
    pub fn with_settings(settings: &[(&str, &str)]) -> Self {
        Self::with_initdb(&[], settings)
    }

    /// Starts an empty server made with additional options for `initdb`.
    ///
    /// # Panics
    /// As [`PrivatePostgres::start`].
    #[must_use]
    pub fn with_initdb(options: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::make(options, settings, PORT)
    }

    /// Starts an empty server that listens on the loopback, too, on a port that was free.
    ///
    /// # Panics
    /// As [`PrivatePostgres::start`].
    #[must_use]
    pub fn on_loopback(settings: &[(&str, &str)]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("its address").port();
        drop(free);
        let settings: Vec<_> = [("listen_addresses", "'127.0.0.1'")].iter().chain(settings).copied().collect();
        Self::make(&[], &settings, port)
    }

    /// Starts an empty server as Debian's: its configuration lies outside of the data directory, and includes what is in
    /// `conf.d` there; one file in it says `work_mem = 7MB`.
    ///
    /// # Panics
    /// As [`PrivatePostgres::start`].
    #[must_use]
    pub fn like_debian(options: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut server = Self::initialised(options, settings, PORT);
        let etc = server.make_folder("etc");
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            std::fs::rename(server.data.join(name), etc.join(name)).expect("move the configuration");
        }
        let parts = server.make_folder("etc/conf.d");
        std::fs::write(parts.join("10-memory.conf"), "work_mem = 7MB\n").expect("write a part of it");
        let (data, etc_shown) = (server.data.display(), etc.display());
        let text = format!(
            "data_directory = '{data}'\nhba_file = '{etc_shown}/pg_hba.conf'\nident_file = '{etc_shown}/pg_ident.conf'\n\
             include_dir = 'conf.d'\n"
        );
        let mut file =
            std::fs::OpenOptions::new().append(true).open(etc.join("postgresql.conf")).expect("postgresql.conf");
        file.write_all(text.as_bytes()).expect("write postgresql.conf");
        server.etc = Some(etc);
        server.launch();
        server
    }

    fn make(options: &[&str], settings: &[(&str, &str)], port: u16) -> Self {
        let server = Self::initialised(options, settings, port);
        server.launch();
        server
    }

    /// One that is not started yet.
    fn initialised(options: &[&str], settings: &[(&str, &str)], port: u16) -> Self {
        let folder = private_folder();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let data = folder.path().join("data");
        let server = Self { folder, bin: bin(), settings, port, data, etc: None };
        let mut initdb = server.as_server("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"]);
        run(initdb.arg("--data-checksums").arg("-D").arg(server.data_folder()).args(options));
        server.write_settings();
        server
    }

    /// Starts a standby of this server, which streams from it.
    ///
    /// # Panics
    /// When the base backup fails, or the standby does not start.
    #[must_use]
    pub fn standby(&self) -> Self {
        let (bin, settings, port) = (self.bin.clone(), self.settings.clone(), self.port);
        let folder = private_folder();
        let data = folder.path().join("data");
        let standby = Self { folder, bin, settings, port, data, etc: None };
        let mut copy = self.client("pg_basebackup", "");
        run(copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-D"]).arg(standby.data_folder()));
        standby.write_settings();
        standby.launch();
        standby
    }

    /// Starts a server on a copy of this one's data directory, as somebody who copies a machine does. This one must be stopped.
    ///
    /// # Panics
    /// When it cannot be copied, or does not start.
    #[must_use]
    pub fn clone_of_stopped(&self) -> Self {
        let (bin, settings, port) = (self.bin.clone(), self.settings.clone(), self.port);
        let folder = private_folder();
        let data = folder.path().join("data");
        let clone = Self { folder, bin, settings, port, data, etc: None };
        run(command(Path::new("cp")).arg("-a").arg(self.data_folder()).arg(clone.data_folder()));
        clone.write_settings();
        clone.launch();
        clone
    }

    /// Starts it again after it was stopped.
    ///
    /// # Panics
    /// When it does not start.
    pub fn launch(&self) {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log file");
        let mut postgres = self.as_server("postgres");
        postgres.arg("-D").arg(self.etc()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = postgres.spawn().expect("start the server");
        let started = Instant::now();
        while !self.is_ready() {
            let ended = child.try_wait().expect("the server's state").is_some();
            assert!(!ended && started.elapsed() < START_LIMIT, "the server does not start:\n{}", self.log());
            std::thread::sleep(POLL);
        }
        crate::live_guard::register(self.folder.path(), &self.data);
        // Somebody must reap it; this thread ends with the server.
        std::thread::spawn(move || child.wait());
    }

    /// Stops it without a checkpoint, as a crash would, and waits until it is gone.
    pub fn stop_immediately(&self) {
        self.stop_by(rustix::process::Signal::QUIT);
    }

    /// Stops it as `pg_ctl stop -m fast` does, which is an orderly restart's first half, and waits until it is gone.
    pub fn stop_fast(&self) {
        self.stop_by(rustix::process::Signal::INT);
    }

    /// Stops it as `pg_ctl stop -m smart` does, once its clients are gone, and waits for that.
    pub fn stop_smart(&self) {
        self.stop_by(rustix::process::Signal::TERM);
    }

    fn stop_by(&self, signal: rustix::process::Signal) {
        let Some(pid) = self.pid() else { return };
        let _gone = rustix::process::kill_process(pid, signal);
        let started = Instant::now();
        while rustix::process::test_kill_process(pid).is_ok() && started.elapsed() < START_LIMIT {
            std::thread::sleep(POLL);
        }
    }

    /// The folder of the server's unix socket.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// The port, which is part of the socket's name.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.data.clone()
    }

    /// The folder of its configuration.
    #[must_use]
    pub fn etc(&self) -> PathBuf {
        self.etc.clone().unwrap_or_else(|| self.data_folder())
    }

    /// The major version of its programs.
    ///
    /// # Panics
    /// When they do not tell.
    #[must_use]
    pub fn major(&self) -> u32 {
        let output = run(command(&self.bin.join("postgres")).arg("--version"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
        version.and_then(|version| version.parse().ok()).expect("a version")
    }

    /// Starts a server of the same version on a data directory that was restored, and waits until it is consistent. It is made
    /// live as an operator does it: what keeps a copy apart is taken out; it archives nothing and subscribes to nothing.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn on_data(&self, data: &Path) -> Self {
        let auto = data.join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&auto).unwrap_or_default();
        if let (Some(begin), Some(end)) = (text.find(COPY_BEGIN), text.find(COPY_END)) {
            let live = format!("{}{}", &text[..begin], &text[end + COPY_END.len()..]);
            std::fs::write(&auto, live).expect("write postgresql.auto.conf");
        }
        let (bin, data) = (self.bin.clone(), data.to_owned());
        let settings = [("archive_mode", "off"), ("max_logical_replication_workers", "0")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let server = Self { folder: private_folder(), bin, settings, port: PORT, data, etc: None };
        server.write_settings();
        server.launch();
        server
    }

    /// The folder of the server's programs.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// What the server logged since it was launched.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs SQL as the superuser in `database` and returns what it answers: fields joined by `|`, a row per line.
    ///
    /// # Panics
    /// When a statement fails.
    #[expect(clippy::must_use_candidate, reason = "most statements answer nothing")]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|error| panic!("{error}\nin {database}: {sql}"))
    }

    /// As [`sql`](Self::sql), but a failure is returned: what `psql` complained about.
    ///
    /// # Panics
    /// When `psql` cannot be run.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.client("psql", database);
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        // What a test saves for a role must not end the test's own questions on a busy machine.
        psql.env("PGOPTIONS", "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0");
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn().expect("start psql");
        let mut stdin = child.stdin.take().expect("piped");
        let text = sql.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().expect("psql ends");
        let _closed_early = writer.join().expect("the writer of psql's input");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What `pg_dump` says of `database`, line by line and sorted: equal for two databases that are the same.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn dump(&self, database: &str) -> Vec<String> {
        sorted(&run(self.client("pg_dump", database).arg("--no-comments")))
    }

    /// What `pg_dumpall` says of roles and tablespaces, line by line and sorted.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn dump_globals(&self) -> Vec<String> {
        sorted(&run(self.client("pg_dumpall", "").args(["--globals-only", "--no-comments"])))
    }

    /// Runs `pgbench` on `database` and waits for it.
    ///
    /// # Panics
    /// When it fails.
    pub fn pgbench(&self, database: &str, arguments: &[&str]) {
        run(self.client("pgbench", "").args(arguments).arg(database));
    }

    /// Starts `pgbench` on `database` and lets it run.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn pgbench_in_background(&self, database: &str, arguments: &[&str]) -> Background {
        let mut pgbench = self.client("pgbench", "");
        pgbench.args(arguments).arg(database).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Background(pgbench.spawn().expect("start pgbench"))
    }

    /// Replaces `pg_hba.conf` and makes the server read it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn set_hba(&self, text: &str) {
        std::fs::write(self.etc().join("pg_hba.conf"), text).expect("write pg_hba.conf");
        let pid = self.pid().expect("the server runs");
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signal the server");
    }

    /// Starts a server on a copy of the base backup `base`, with these lines of configuration, and waits until its recovery
    /// has ended.
    ///
    /// # Panics
    /// When it does not recover; the message has its log.
    #[must_use]
    pub fn recovered_from(base: &Path, settings: &str) -> Self {
        let folder = private_folder();
        let data = folder.path().join("data");
        let server = Self { folder, bin: bin(), settings: Vec::new(), port: PORT, data, etc: None };
        run(command(Path::new("cp")).arg("-a").arg(base).arg(server.data_folder()));
        server.write_settings();
        let append = |name: &str, text: &str| {
            let path = server.data_folder().join(name);
            let mut file =
                std::fs::OpenOptions::new().append(true).create(true).open(path).expect("a file of the server");
            file.write_all(text.as_bytes()).expect("write it");
        };
        append("postgresql.conf", settings);
        append("recovery.signal", "");
        server.launch();
        loop {
            match server.try_sql("postgres", "select pg_is_in_recovery()") {
                Ok(answer) if answer == "f" => return server,
                Ok(_) => {}
                Err(why) => panic!("it does not recover: {why}\n{}", server.log()),
            }
        }
    }

    /// Makes a standby a primary, on a new timeline, and waits until it is one.
    ///
    /// # Panics
    /// When it does not work.
    pub fn promote(&self) {
        assert_eq!(self.sql("postgres", "select pg_promote()"), "t");
    }

    /// Adds this to its configuration and makes the server read it. What needs a restart takes effect with the next.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn set(&self, name: &str, value: &str) {
        self.sql("postgres", &format!("alter system set {name} = {value}"));
        self.sql("postgres", "select pg_reload_conf()");
    }

    /// Copies a file (a key, say) to where the server can read it, and nobody else.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn adopt(&self, file: &Path) -> PathBuf {
        let copy = self.folder.path().join(file.file_name().expect("a file"));
        std::fs::copy(file, &copy).expect("copy the file");
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        own(&copy);
        copy
    }

    /// Makes an empty folder that belongs to the server, for a tablespace.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn make_folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir(&path).expect("make a folder");
        own(&path);
        path
    }

    /// A program of the server's, to be run as its user.
    #[must_use]
    pub fn program(&self, program: &str) -> Command {
        self.as_server(program)
    }

    fn write_settings(&self) {
        let mut text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nport = {}\nfsync = off\nfull_page_writes = off\n\
             synchronous_commit = off\nmax_connections = 50\nshared_buffers = 16MB\nlc_messages = 'C'\n",
            self.folder.path().display(),
            self.port()
        );
        for (name, value) in &self.settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
        let path = self.data_folder().join("postgresql.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("postgresql.conf");
        file.write_all(text.as_bytes()).expect("write postgresql.conf");
    }

    fn is_ready(&self) -> bool {
        let mut probe = command(&self.bin.join("pg_isready"));
        probe.arg("-q").arg("-h").arg(self.folder.path()).arg("-p").arg(self.port.to_string());
        probe.status().is_ok_and(|status| status.success())
    }

    fn pid(&self) -> Option<rustix::process::Pid> {
        let text = std::fs::read_to_string(self.data_folder().join("postmaster.pid")).ok()?;
        rustix::process::Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
    }

    /// A program that must run as the server's user.
    fn as_server(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut built = if let Some(user) = server_user() {
            let mut wrapped = command(Path::new("setpriv"));
            wrapped.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--init-groups").arg(program);
            wrapped
        } else {
            command(&program)
        };
        built.current_dir("/");
        built
    }

    fn client(&self, program: &str, database: &str) -> Command {
        let mut built = self.as_server(program);
        built.env("PGHOST", self.folder.path()).env("PGUSER", "postgres").env("PGPORT", self.port().to_string());
        if !database.is_empty() {
            built.env("PGDATABASE", database);
        }
        built
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.stop_immediately();
    }
}

impl fmt::Debug for PrivatePostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivatePostgres").field("folder", &self.folder.path()).finish_non_exhaustive()
    }
}

/// A program that runs beside the test; killed when dropped.
#[derive(Debug)]
pub struct Background(std::process::Child);

impl Background {
    pub(crate) fn new(child: std::process::Child) -> Self {
        Self(child)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The lines of a dump without the comments, and without the random key of `\\restrict`.
fn sorted(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let told =
        |line: &&str| !line.starts_with("--") && !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
    let mut lines: Vec<String> = text.lines().filter(told).map(str::to_owned).collect();
    lines.sort();
    lines
}

fn bin() -> PathBuf {
    let bin = std::env::var_os(BIN_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_BIN), PathBuf::from);
    assert!(
        bin.join("postgres").is_file(),
        "there is no PostgreSQL server in {}: install it with `apt-get install postgresql-15`, or set {BIN_VARIABLE}",
        bin.display()
    );
    bin
}

/// A folder that belongs to the server's user, with a short path: that of a socket has at most 107 bytes.
fn private_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("swpg-").tempdir_in("/tmp").expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    own(folder.path());
    folder
}

/// Gives a file or a folder to the server's user.
fn own(path: &Path) {
    let Some(user) = server_user() else { return };
    let id = |flag: &str| -> u32 {
        let output = run(command(Path::new("id")).args([flag, user]));
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a numeric id")
    };
    chown(path, Some(id("-u")), Some(id("-g"))).expect("chown what belongs to the server");
}

fn server_user() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some(SERVER_USER)
}

#[expect(clippy::disallowed_methods, reason = "a test server is started and stopped outside of any host")]
fn command(program: &Path) -> Command {
    Command::new(program)
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_private_and_gone_after_the_drop() {
        let (one, other) = (PrivatePostgres::start(), PrivatePostgres::start());
        one.sql("postgres", "create database app");
        assert_eq!(one.sql("postgres", "select count(*) from pg_database where datname = 'app'"), "1");
        assert_eq!(other.sql("postgres", "select count(*) from pg_database where datname = 'app'"), "0");
        assert_eq!(one.sql("postgres", "show listen_addresses"), "");
        let (folder, pid) = (one.socket_folder().to_owned(), one.pid().unwrap());
        drop(one);
        assert!(!folder.exists());
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
