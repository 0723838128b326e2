//! Private Redis (or Valkey) servers for tests: real, in a temporary folder, on a unix socket, gone when dropped.
//!
//! Invariant: a server listens on no network (the loopback interface when it was asked to), shares nothing with other
//! servers, and does not outlive its value.

mod cluster;

use std::fmt;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::certificates::{Certificates, Identity};

pub use cluster::PrivateCluster;

/// Selects another server program than `redis-server` in `PATH`: another version, or Valkey.
pub const SERVER_VARIABLE: &str = "STACKWARD_REDIS_SERVER";
const DEFAULT_SERVER: &str = "redis-server";
const CLIENT: &str = "redis-cli";
/// A server that needs longer than this to start will not start.
const START_LIMIT: Duration = Duration::from_mins(1);
/// The user without rights.
const NOBODY: u32 = 65_534;
/// Where ports are taken from.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// How often a condition is looked at again while waiting for the server.
const POLL: Duration = Duration::from_millis(5);

/// A running server that saves nothing by itself.
pub struct PrivateRedis {
    folder: tempfile::TempDir,
    child: Mutex<Option<Child>>,
    password: Option<String>,
    port: Option<u16>,
    arguments: Vec<&'static str>,
    user: Option<u32>,
}

/// What a server speaks on its port of the loopback interface.
#[derive(Debug, Clone, Copy)]
pub enum Listen<'a> {
    /// Plain TCP.
    Plain,
    /// TLS, with this identity, trusting the authority for clients; and whether those must show a certificate.
    Tls(&'a Certificates, &'a Identity, ClientCertificate),
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// They must.
    Required,
    /// They need not.
    NotAsked,
}

impl PrivateRedis {
    /// Starts an empty server.
    ///
    /// # Panics
    /// When Redis is not installed (the message has the command that installs it), or does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::with_options(&[])
    }

    /// Starts an empty server with these directives in its configuration file, values as the file would have them.
    ///
    /// # Panics
    /// As [`PrivateRedis::start`].
    #[must_use]
    pub fn with_options(options: &[(&str, &str)]) -> Self {
        let server = Self::prepare(options, None);
        server.launch();
        server
    }

    /// Starts an empty server that also listens on a port of 127.0.0.1.
    ///
    /// # Panics
    /// As [`PrivateRedis::start`].
    #[must_use]
    pub fn listening(listen: Listen<'_>, options: &[(&str, &str)]) -> Self {
        for port in ports() {
            let directives = listen.directives(port);
            let mut all: Vec<(&str, &str)> = directives.iter().map(|(name, value)| (*name, value.as_str())).collect();
            all.extend(options);
            let server = Self::prepare(&all, Some(port));
            server.spawn();
            if server.answers(|error| error.contains("onnect") || error.contains("LOADING")) {
                return server;
            }
            assert!(server.log().contains("in use"), "the server does not start:\n{}", server.log());
        }
        unreachable!("there is always another port")
    }

    /// Starts an empty server that has no rights of root, so that limits hold for it.
    ///
    /// # Panics
    /// As [`PrivateRedis::start`].
    #[must_use]
    pub fn of_nobody(options: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare(options, None);
        if rustix::process::getuid().is_root() {
            for path in [server.folder.path().to_owned(), server.data_folder()] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("give the folder to nobody");
            }
            server.user = Some(NOBODY);
        }
        server.launch();
        server
    }

    /// Starts a Sentinel that watches `master`.
    ///
    /// # Panics
    /// As [`PrivateRedis::start`].
    #[must_use]
    pub fn sentinel_of(master: &Self) -> Self {
        let port = ports().next().expect("there is always another port");
        let mut sentinel = Self::prepare(&[], Some(port));
        sentinel.arguments = vec!["--sentinel"];
        let text = format!(
            "bind 127.0.0.1\nport {port}\nunixsocket {}\ndir {}\nsentinel monitor watched 127.0.0.1 {} 1\n",
            sentinel.socket().display(),
            sentinel.data_folder().display(),
            master.port()
        );
        std::fs::write(sentinel.configuration(), text).expect("write the configuration");
        sentinel.launch();
        sentinel
    }

    fn prepare(options: &[(&str, &str)], port: Option<u16>) -> Self {
        // The path of a unix socket has at most 107 bytes: a short folder.
        let folder = tempfile::Builder::new().prefix("swrd-").tempdir_in("/tmp").expect("a temporary folder");
        let password = options.iter().find(|(name, _)| *name == "requirepass").map(|(_, value)| (*value).to_owned());
        let server = Self { folder, child: Mutex::default(), password, port, arguments: Vec::new(), user: None };
        server.write_configuration(options);
        std::fs::create_dir(server.data_folder()).expect("a data folder");
        server
    }

    /// The port that it listens on.
    ///
    /// # Panics
    /// When it listens on none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.expect("the server listens on a port")
    }

    /// Starts it again after [`kill`](Self::kill), on the files that it left, and waits until it has loaded them.
    ///
    /// # Panics
    /// When it does not start.
    pub fn launch(&self) {
        self.launch_loading();
        self.wait_while(|error| error.contains("LOADING"));
    }

    /// As [`launch`](Self::launch), but returns when it answers, though it may still load its data.
    ///
    /// # Panics
    /// When it does not start.
    pub fn launch_loading(&self) {
        self.spawn();
        // An answer of any kind: a password may be asked for.
        self.wait_while(|error| error.contains("onnect"));
    }

    fn spawn(&self) {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log file");
        let mut command = command(&program());
        command.arg(self.configuration()).args(&self.arguments).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        *self.child.lock().expect("nobody panicked") = Some(command.spawn().expect("start the server"));
    }

    fn wait_while(&self, condition: impl Fn(&str) -> bool) {
        assert!(self.answers(condition), "the server does not start:\n{}", self.log());
    }

    /// Waits while its answer meets `condition`; `false` when it ended instead.
    fn answers(&self, condition: impl Fn(&str) -> bool) -> bool {
        let started = Instant::now();
        while self.try_call(&["PING"]).is_err_and(|error| condition(&error)) {
            if !self.runs() || started.elapsed() > START_LIMIT {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    fn runs(&self) -> bool {
        let mut child = self.child.lock().expect("nobody panicked");
        child.as_mut().is_some_and(|child| child.try_wait().expect("the server's state").is_none())
    }

    /// Kills it, as a crash would, and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().expect("nobody panicked").take() {
            child.kill().expect("kill the server");
            child.wait().expect("the server ends");
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("signal the server");
    }

    /// Lets it start no child from now on, or lets it again. It must have been started by [`of_nobody`](Self::of_nobody).
    ///
    /// # Panics
    /// When prlimit(1) fails.
    pub fn allow_children(&self, allowed: bool) {
        let pid = self.pid().as_raw_nonzero().to_string();
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
        let line = limits.lines().find(|line| line.starts_with("Max processes")).expect("a limit of processes");
        let most = line.split_whitespace().nth(3).expect("the hard limit");
        let soft = if allowed { most } else { "0" };
        let mut prlimit = command(Path::new("prlimit"));
        prlimit.args(["--pid", &pid, &format!("--nproc={soft}:{most}")]);
        if let Some(user) = self.user {
            // Whoever is not that user may not, without rights that even root may lack.
            prlimit.uid(user).gid(user);
        }
        assert!(prlimit.status().expect("run prlimit").success());
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> rustix::process::Pid {
        let child = self.child.lock().expect("nobody panicked");
        rustix::process::Pid::from_child(child.as_ref().expect("the server runs"))
    }

    /// The path of its unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The folder that the server saves into.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its configuration file.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("conf")
    }

    /// What it logged since it was launched.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs one command and returns the answer as `redis-cli` prints it.
    ///
    /// # Panics
    /// When the server answers with an error.
    pub fn call(&self, arguments: &[&str]) -> String {
        self.try_call(arguments).unwrap_or_else(|error| panic!("{error}: {arguments:?}"))
    }

    /// As [`call`](Self::call), but an error is returned.
    ///
    /// # Panics
    /// When `redis-cli` cannot be run.
    pub fn try_call(&self, arguments: &[&str]) -> Result<String, String> {
        let mut client = self.client();
        client.arg("-e").args(arguments);
        let output = client.stdin(Stdio::null()).output().expect("run redis-cli");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    }

    /// Sends commands in bulk: one per line, words separated by spaces, as `redis-cli --pipe` takes them.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn pipe(&self, commands: &str) {
        let mut client = self.client();
        client.arg("--pipe").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = client.spawn().expect("start redis-cli");
        let mut stdin = child.stdin.take().expect("piped");
        let text = commands.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().expect("redis-cli ends");
        writer.join().expect("the writer of redis-cli's input").expect("redis-cli reads its input");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// Sends a file of commands, as `redis-cli --pipe < FILE` does.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn pipe_file(&self, path: &Path) {
        let mut client = self.client();
        let file = std::fs::File::open(path).expect("the file");
        let output = client.arg("--pipe").stdin(file).output().expect("run redis-cli");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("errors: 0"), "{text}");
    }

    /// Fills database 0 with `count` strings `key:N` of `size` bytes each.
    ///
    /// # Panics
    /// When the server refuses them.
    pub fn fill(&self, count: usize, size: usize) {
        self.call(&["DEBUG", "POPULATE", &count.to_string(), "key", &size.to_string()]);
    }

    /// The server's digest of all its data: equal for two servers of one version that hold the same.
    #[must_use]
    pub fn digest(&self) -> String {
        self.call(&["DEBUG", "DIGEST"])
    }

    /// Starts `redis-benchmark` on this server and lets it run.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn benchmark_in_background(&self, arguments: &[&str]) -> crate::postgres::Background {
        let mut benchmark = command(Path::new("redis-benchmark"));
        benchmark.arg("-s").arg(self.socket()).args(arguments);
        benchmark.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        crate::postgres::Background::new(benchmark.spawn().expect("start redis-benchmark"))
    }

    fn client(&self) -> Command {
        let mut client = command(Path::new(CLIENT));
        client.arg("-s").arg(self.socket());
        if let Some(password) = &self.password {
            client.env("REDISCLI_AUTH", password);
        }
        client
    }

    fn write_configuration(&self, options: &[(&str, &str)]) {
        let mut text = format!(
            "port 0\nunixsocket {}\ndir {}\nsave \"\"\nrepl-diskless-sync-delay 0\n",
            self.socket().display(),
            self.data_folder().display()
        );
        text.push_str(if major_version() >= 7 { "enable-debug-command local\n" } else { "repl-diskless-sync yes\n" });
        for (name, value) in options {
            text.push_str(&format!("{name} {value}\n"));
        }
        std::fs::write(self.configuration(), text).expect("write the configuration");
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        if !self.runs() {
            // What was tested may have started another one in its place.
            let _gone = self.try_call(&["SHUTDOWN", "NOSAVE"]);
        }
        self.kill();
    }
}

impl fmt::Debug for PrivateRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateRedis").field("folder", &self.folder.path()).finish_non_exhaustive()
    }
}

impl Listen<'_> {
    fn directives(self, port: u16) -> Vec<(&'static str, String)> {
        let port = port.to_string();
        let Self::Tls(authority, identity, clients) = self else {
            return vec![("bind", "127.0.0.1".to_owned()), ("port", port)];
        };
        let asked = if clients == ClientCertificate::Required { "yes" } else { "no" };
        let path = |path: &Path| path.display().to_string();
        vec![
            ("bind", "127.0.0.1".to_owned()),
            ("tls-port", port),
            ("tls-cert-file", path(&identity.certificate)),
            ("tls-key-file", path(&identity.key)),
            ("tls-ca-cert-file", path(&authority.ca())),
            ("tls-auth-clients", asked.to_owned()),
        ]
    }
}

/// Ports that nobody listens on just now, below those that the system gives to outgoing connections.
pub(crate) fn ports() -> impl Iterator<Item = u16> {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    // Each test is a process of its own: they begin at different places.
    let next = || {
        PORTS.start + ((std::process::id() * 37 + TAKEN.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32) as u16
    };
    std::iter::repeat_with(next).filter(free)
}

/// The folder of the server program that [`SERVER_VARIABLE`] selects; `None` for the one in `PATH`.
#[must_use]
pub fn selected_folder() -> Option<PathBuf> {
    let selected = PathBuf::from(std::env::var_os(SERVER_VARIABLE)?);
    selected.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_path_buf)
}

/// The server program that private servers run.
///
/// # Panics
/// When it is not installed.
#[must_use]
pub fn program() -> PathBuf {
    let program = std::env::var_os(SERVER_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_SERVER), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = program.is_file() || std::env::split_paths(&path).any(|folder| folder.join(&program).is_file());
    assert!(
        found,
        "there is no {}: install it with `apt-get install redis-server`, or set {SERVER_VARIABLE}",
        program.display()
    );
    program
}

/// The major version of [`program`]: what is the default since 7 must be said to older ones.
fn major_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let told = command(&program()).arg("--version").output().expect("ask the server for its version");
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let version = told.split_whitespace().find_map(|word| word.strip_prefix("v="));
        version.and_then(|version| version.split('.').next()?.parse().ok()).expect("a version")
    })
}

#[expect(clippy::disallowed_methods, reason = "a test server is started and stopped outside of any host")]
fn command(program: &Path) -> Command {
    Command::new(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_private_and_gone_after_the_drop() {
        let (one, other) = (PrivateRedis::start(), PrivateRedis::with_options(&[("requirepass", "hunter2")]));
        one.fill(10, 3);
        assert_eq!((one.call(&["DBSIZE"]), other.call(&["DBSIZE"])), ("10".to_owned(), "0".to_owned()));
        assert!(one.try_call(&["NONSENSE"]).unwrap_err().contains("unknown command"));
        let (folder, pid) = (one.data_folder(), one.pid());
        drop(one);
        assert!(!folder.exists());
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
