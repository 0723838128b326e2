//! Starting a restored server through its host, and waiting until its recovery has ended where it was told to.
//!
//! Invariant: a server that did not reach its target is not running afterwards, and its own words say why.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};

use crate::server::Server;
use crate::tools::Tools;

/// A recovery may take as long as it takes; whoever waits can cancel.
const FOREVER_SECONDS: &str = "31536000";
/// So much of the end of the server's log goes into an error.
const TOLD_BYTES: u64 = 8 * 1024;
const POLL: Duration = Duration::from_millis(50);
/// What a server that we start says, in a file that no base backup has.
pub(crate) const LOG: &str = "stackward-start.log";
/// `pg_controldata` prints some fifty lines.
const CONTROL_BYTES: usize = 64 * 1024;

/// How a server is started.
#[derive(Debug, Clone)]
pub(crate) struct Started<'a> {
    pub(crate) data: &'a Path,
    /// The configuration of the server that it takes the place of, when that is not in the data directory.
    pub(crate) config: Option<PathBuf>,
    /// Where what it says goes: a file that is empty yet.
    pub(crate) log: &'a Path,
}

/// Starts it and waits until it has recovered and takes connections. Returns what `pg_controldata` says of where it is now.
///
/// # Errors
/// [`ErrorKind::Tool`] with what the server said last.
pub(crate) async fn start(cx: &RunContext, server: &Server, tools: &Tools, how: &Started<'_>) -> Result<String> {
    let mut options = String::new();
    if let Some(config) = &how.config {
        options.push_str(&format!("-c config_file={} -c data_directory={}", quoted(config), quoted(how.data)));
    }
    let command = server
        .plain_command(tools.program("pg_ctl"))
        .args(["start", "--wait", "--silent"])
        .arg(format!("--timeout={FOREVER_SECONDS}"))
        .arg("--log")
        .arg(how.log)
        .arg("-D")
        .arg(how.data)
        .arg("-o")
        .arg(options);
    cx.step("starting the server; it replays the log");
    let mut process = server.host.spawn(command.null_stdout()).await?;
    let waited = cx.unless_cancelled(async {
        let mut state = match process.status().await? {
            Some(0) => State::of(how.data),
            _ => State::Gone,
        };
        // Without hot standby, `pg_ctl` does not wait for the end of a recovery.
        while state == State::Recovering {
            tokio::time::sleep(POLL).await;
            state = State::of(how.data);
        }
        Ok(state)
    });
    let state = waited.await;
    if state.is_err() {
        halt(server, tools, how.data).await;
    }
    if state? == State::Gone {
        let tail = server.plain_command("tail").arg("-c").arg(TOLD_BYTES.to_string()).arg(how.log);
        let told = server.host.spawn(tail).await?.output(TOLD_BYTES as usize + 1).await.unwrap_or_default();
        return Err(Error::new(ErrorKind::Tool, "the restored server does not start, or did not reach the moment")
            .with("log", how.log.display())
            .caused_by(format!("{}{}", told.trim(), process.stderr_tail().trim()))
            .hint("its data directory is complete and stays; its log says what it lacks"));
    }
    place_of(server, tools, how.data).await
}

/// Stops a server that nobody waits for any more. When it cannot be stopped, it stops by itself: it gets no more of the log.
async fn halt(server: &Server, tools: &Tools, data: &Path) {
    let stop =
        server.plain_command(tools.program("pg_ctl")).args(["stop", "--mode=immediate", "--silent", "-D"]).arg(data);
    if let Ok(process) = server.host.spawn(stop.null_stdout()).await {
        let _may_be_gone = process.finish().await;
    }
}

/// What a server says of itself in `postmaster.pid` (`utils/pidfile.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Recovering,
    Gone,
}

impl State {
    const LINE: usize = 8;

    pub(crate) fn of(data: &Path) -> Self {
        match std::fs::read_to_string(data.join("postmaster.pid")) {
            Ok(text) if text.lines().nth(Self::LINE - 1).is_some_and(|line| line.trim() == "ready") => Self::Ready,
            Ok(_) => Self::Recovering,
            Err(_) => Self::Gone,
        }
    }
}

/// Where the log of the server is, in the words of `pg_controldata`, which needs no connection.
async fn place_of(server: &Server, tools: &Tools, data: &Path) -> Result<String> {
    let command = server.plain_command(tools.program("pg_controldata")).env("LC_ALL", "C").arg("-D").arg(data);
    let text = server.host.spawn(command).await?.output(CONTROL_BYTES).await?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(String::new, |value| value.trim().to_owned())
    };
    Ok(format!(
        "timeline {}, checkpoint at {}",
        field("Latest checkpoint's TimeLineID:"),
        field("Latest checkpoint location:")
    ))
}

/// Whether a server runs on this data directory. When in doubt, it does.
pub(crate) fn is_running(data: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else { return true };
    // A server stands in its data directory. Another process may have its number since it crashed.
    match (std::fs::read_link(format!("/proc/{pid}/cwd")), data.canonicalize()) {
        (Ok(stands), Ok(data)) => stands == data,
        (Err(error), _) => error.kind() != std::io::ErrorKind::NotFound,
        _ => true,
    }
}

/// A path within the options of a server, which `pg_ctl` hands to a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
