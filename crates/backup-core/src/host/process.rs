//! A running process: its streams, its end, and the tail of what it complained about.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::evidence::CleanExit;

/// How much of the end of stderr is kept for the error.
pub const STDERR_TAIL_BYTES: usize = 8 * 1024;

/// A boxed stream of bytes to read.
pub type BoxRead = Pin<Box<dyn AsyncRead + Send + Sync>>;
/// A boxed stream of bytes to write.
pub type BoxWrite = Pin<Box<dyn AsyncWrite + Send + Sync>>;

/// What a host implements to let a process be waited for and killed.
#[async_trait]
pub trait ProcessControl: Send + Sync + fmt::Debug {
    /// Waits for the end and returns the exit status: `None` when killed or unknown.
    async fn wait(&mut self) -> Result<Option<i32>>;
    /// Kills the process and all its children, at once. Called at most once, and never after [`ProcessControl::wait`] returned.
    fn kill(&mut self);
}

/// A process that runs on a host.
///
/// Dropping it before [`HostProcess::finish`] returned kills its whole process group.
pub struct HostProcess {
    name: String,
    stdin: Option<BoxWrite>,
    stdout: Option<BoxRead>,
    tail: Arc<Mutex<Vec<u8>>>,
    drain: Option<JoinHandle<()>>,
    control: Box<dyn ProcessControl>,
    ended: bool,
}

impl HostProcess {
    /// For hosts: wraps a started process. `stderr` is drained in the background, its tail kept.
    pub fn new(
        name: String,
        stdin: Option<BoxWrite>,
        stdout: Option<BoxRead>,
        stderr: Option<BoxRead>,
        control: Box<dyn ProcessControl>,
    ) -> Self {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let drain = stderr.map(|stderr| tokio::spawn(keep_tail(stderr, Arc::clone(&tail))));
        Self { name, stdin, stdout, tail, drain, control, ended: false }
    }

    /// The standard input, once. Shut it down to let the process see its end.
    pub fn take_stdin(&mut self) -> Option<BoxWrite> {
        self.stdin.take()
    }

    /// The standard output, once. Read it to its end before [`HostProcess::finish`].
    pub fn take_stdout(&mut self) -> Option<BoxRead> {
        self.stdout.take()
    }

    /// Waits for the end. Cancel safe: when dropped, the process is killed.
    ///
    /// # Errors
    /// [`ErrorKind::Tool`] with the tail of stderr unless the status is zero.
    pub async fn finish(mut self) -> Result<CleanExit> {
        let code = self.status().await?;
        CleanExit::confirm(self.name.clone(), code, &self.stderr_tail())
    }

    /// Waits for the end and returns the status without judging it, for programs whose other statuses mean something.
    ///
    /// # Errors
    /// When the status cannot be learned.
    pub async fn status(&mut self) -> Result<Option<i32>> {
        self.stdin = None;
        let code = self.control.wait().await?;
        self.ended = true;
        if let Some(drain) = self.drain.take() {
            drain
                .await
                .map_err(|source| Error::new(ErrorKind::Internal, "the reader of stderr failed").caused_by(source))?;
        }
        Ok(code)
    }

    /// Reads the whole standard output as text and waits for a clean end: for short answers.
    ///
    /// # Errors
    /// As [`HostProcess::finish`]; also when the answer is longer than `limit` bytes or not UTF-8.
    pub async fn output(mut self, limit: usize) -> Result<String> {
        let mut bytes = Vec::new();
        if let Some(stdout) = self.take_stdout() {
            let mut limited = stdout.take(limit as u64 + 1);
            limited
                .read_to_end(&mut bytes)
                .await
                .map_err(|source| Error::from_io(format!("cannot read the output of `{}`", self.name), source))?;
        }
        if bytes.len() > limit {
            return Err(Error::new(ErrorKind::Tool, format!("`{}` printed more than {limit} bytes", self.name)));
        }
        let name = self.name.clone();
        self.finish().await?;
        String::from_utf8(bytes).map_err(|source| {
            Error::new(ErrorKind::Tool, format!("`{name}` printed what is not UTF-8")).caused_by(source)
        })
    }

    /// The last of what the process wrote to stderr so far.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        self.tail.lock().map(|tail| String::from_utf8_lossy(&tail).into_owned()).unwrap_or_default()
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        if !self.ended {
            self.control.kill();
        }
    }
}

impl fmt::Debug for HostProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostProcess").field("name", &self.name).field("ended", &self.ended).finish_non_exhaustive()
    }
}

async fn keep_tail(mut stderr: BoxRead, tail: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0u8; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        let Ok(mut tail) = tail.lock() else { return };
        tail.extend_from_slice(&buffer[..count]);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}
