//! This machine as a host: child processes in process groups of their own.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_trait::async_trait;
use tokio::process::{Child, Command};

use super::process::{HostProcess, ProcessControl};
use super::{Host, HostCommand, Stdin, Stdout};
use crate::error::{Error, ErrorKind, Result};

/// The machine that this program runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalHost;

/// Folders searched after `PATH`: distributions keep server programs outside of it.
const EXTRA_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

#[async_trait]
impl Host for LocalHost {
    fn describe(&self) -> String {
        "this machine".to_owned()
    }

    async fn spawn(&self, command: HostCommand) -> Result<HostProcess> {
        let name = command.name();
        let mut child = build(&command).spawn().map_err(|source| spawn_error(&name, source))?;
        let stdin = child.stdin.take().map(|stdin| Box::pin(stdin) as _);
        let stdout = child.stdout.take().map(|stdout| Box::pin(stdout) as _);
        let stderr = child.stderr.take().map(|stderr| Box::pin(stderr) as _);
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        Ok(HostProcess::new(name, stdin, stdout, stderr, Box::new(LocalProcess { child, group })))
    }

    async fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        use tokio::io::AsyncReadExt;
        let failed = |source| Error::io("cannot read the file", path, source);
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).await.map_err(failed)?;
        if content.len() as u64 > limit {
            return Err(Error::new(ErrorKind::Unsupported, format!("{} is longer than {limit} bytes", path.display())));
        }
        Ok(content)
    }

    fn local_path(&self, path: &Path) -> Option<PathBuf> {
        Some(path.to_owned())
    }
}

/// `tokio::process` is used here and nowhere else; `clippy.toml` says why.
#[expect(clippy::disallowed_methods, reason = "the host module is the one place that starts processes")]
fn build(command: &HostCommand) -> Command {
    let program = search(&command.program);
    let mut built = if let Some(user) = &command.user {
        // `setpriv` needs no session, no password and no shell, and keeps the environment.
        let mut wrapped = Command::new("setpriv");
        wrapped
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={user}"))
            .arg("--init-groups")
            .arg("--")
            .arg(program);
        wrapped
    } else {
        Command::new(program)
    };
    built.args(&command.arguments).envs(&command.environment);
    for (name, value) in &command.secrets {
        built.env(name, value.expose());
    }
    if let Some(folder) = &command.folder {
        built.current_dir(folder);
    }
    built.stdin(match command.stdin {
        Stdin::Null => Stdio::null(),
        Stdin::Piped => Stdio::piped(),
    });
    built.stdout(match command.stdout {
        Stdout::Null => Stdio::null(),
        Stdout::Piped => Stdio::piped(),
    });
    built.stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    built
}

fn search(program: &std::ffi::OsStr) -> PathBuf {
    let plain = PathBuf::from(program);
    if plain.components().count() > 1 {
        return plain;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(EXTRA_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file()).unwrap_or(plain)
}

fn spawn_error(name: &str, source: std::io::Error) -> Error {
    let missing = source.kind() == std::io::ErrorKind::NotFound;
    let error = Error::from_io(format!("cannot start `{name}`"), source);
    if missing {
        error.hint(format!("install the package that provides `{name}`, or put its folder into PATH"))
    } else {
        error
    }
}

#[derive(Debug)]
struct LocalProcess {
    child: Child,
    group: Option<rustix::process::Pid>,
}

#[async_trait]
impl ProcessControl for LocalProcess {
    async fn wait(&mut self) -> Result<Option<i32>> {
        let status = self.child.wait().await.map_err(|source| Error::from_io("cannot wait for the process", source))?;
        Ok(status.code())
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            // It may have ended already; then there is no such group, and nothing to do.
            let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::error::ErrorKind;

    fn shell(script: &str) -> HostCommand {
        HostCommand::new("sh").arg("-c").arg(script)
    }

    #[tokio::test]
    async fn streams_pass_unchanged_and_status_zero_is_evidence() {
        let mut process = LocalHost.spawn(HostCommand::new("cat").piped_stdin()).await.unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let mut stdout = process.take_stdout().unwrap();
        let sent: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            stdin.write_all(&copy).await.unwrap();
            stdin.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        stdout.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert_eq!(received, sent);
        assert_eq!(process.finish().await.unwrap().program(), "cat");
    }

    #[tokio::test]
    async fn a_failure_after_the_last_byte_is_a_failure_with_the_tail_of_stderr() {
        let process = LocalHost.spawn(shell("echo whole; echo 'disk on fire' >&2; exit 3")).await.unwrap();
        let error = process.output(100).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tool);
        assert_eq!(error.chain(), "`sh` ended with status 3: disk on fire");
    }

    #[tokio::test]
    async fn a_killed_process_is_a_failure() {
        let process = LocalHost.spawn(shell("kill -9 $$")).await.unwrap();
        let error = process.finish().await.unwrap_err();
        assert!(error.to_string().contains("was killed"));
    }

    #[tokio::test]
    async fn stderr_keeps_only_its_tail() {
        let process = LocalHost.spawn(shell("yes x | head -c 1000000 >&2; echo last >&2; exit 1")).await.unwrap();
        let error = process.finish().await.unwrap_err().chain();
        assert!(error.ends_with("last") && error.len() < STDERR_LIMIT);
    }
    const STDERR_LIMIT: usize = super::super::STDERR_TAIL_BYTES + 100;

    #[tokio::test]
    async fn dropping_kills_the_whole_group() {
        let mut process = LocalHost.spawn(shell("sleep 1000 & echo $!; wait")).await.unwrap();
        let mut line = [0u8; 32];
        let count = process.take_stdout().unwrap().read(&mut line).await.unwrap();
        let grandchild: i32 = std::str::from_utf8(&line[..count]).unwrap().trim().parse().unwrap();
        drop(process);
        let pid = rustix::process::Pid::from_raw(grandchild).unwrap();
        // An orphan is reaped by init in its own time: a zombie counts as dead.
        let alive = || {
            let state = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            rustix::process::test_kill_process(pid).is_ok() && !state.contains(") Z ")
        };
        while alive() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_missing_program_says_so() {
        let error = LocalHost.spawn(HostCommand::new("no-such-program-here")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.remedy().unwrap().contains("no-such-program-here"));
    }

    #[tokio::test]
    async fn a_secret_is_in_the_environment_and_not_in_the_command() {
        let command = shell("printf %s \"$PW\"").secret_env("PW", crate::secret::Secret::new("hunter2"));
        assert!(!format!("{command:?}").contains("hunter2"));
        assert_eq!(LocalHost.spawn(command).await.unwrap().output(100).await.unwrap(), "hunter2");
    }
}
