//! A process that cannot write outside of its own folders and has no network, whatever it is told: in namespaces of its own, in
//! which everything else is mounted read-only (`isolate.sh`).
//!
//! Invariant: the process is isolated when [`Isolation::Namespace`] says so: the very same walls were tried before, on a
//! program that does nothing, and held.

use std::fmt;
use std::path::Path;

use backup_core::error::Result;
use backup_core::host::{Host, HostCommand};

/// Everything is done here, after the namespaces were made and before the process begins.
const SCRIPT: &str = include_str!("isolate.sh");

/// What keeps a scratch server from what is not its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// The kernel.
    Namespace,
    /// What it is told, and what was taken out of its log; the reason why there is no more.
    Configuration(String),
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace => f.write_str(
                "the scratch server could write nothing outside of its folder and had no network: it ran in namespaces of its own",
            ),
            Self::Configuration(why) => write!(
                f,
                "the scratch server was kept in its folder by its configuration and its log alone; no namespaces: {why}"
            ),
        }
    }
}

/// The command, isolated where we may, with these folders to write to.
///
/// # Errors
/// When no process can be started.
pub(crate) async fn isolate(host: &dyn Host, command: HostCommand, own: &[&Path]) -> Result<(HostCommand, Isolation)> {
    if !rustix::process::geteuid().is_root() {
        return Ok((command, Isolation::Configuration("that takes root".to_owned())));
    }
    let nothing = HostCommand { user: command.user.clone(), ..HostCommand::new("true") };
    let trial = match host.spawn(behind_walls(nothing, own).null_stdout()).await {
        Ok(process) => process.finish().await.map(|_| ()),
        Err(error) => Err(error),
    };
    Ok(match trial {
        Ok(()) => (behind_walls(command, own), Isolation::Namespace),
        Err(error) => (command, Isolation::Configuration(error.chain())),
    })
}

fn behind_walls(command: HostCommand, own: &[&Path]) -> HostCommand {
    let mut isolated = HostCommand::new("unshare").args(["--mount", "--net", "--propagation", "private", "--"]);
    isolated = isolated.args(["sh", "-c", SCRIPT, "isolate"]).args(own).arg("--");
    // The walls are built by root, so the user changes behind them.
    if let Some(user) = &command.user {
        isolated = isolated.arg("setpriv").args([format!("--reuid={user}"), format!("--regid={user}")]);
        isolated = isolated.args(["--init-groups", "--no-new-privs", "--"]);
    }
    isolated = isolated.arg(&command.program).args(&command.arguments);
    HostCommand { program: isolated.program, arguments: isolated.arguments, user: None, ..command }
}

#[cfg(test)]
mod tests {
    use backup_core::host::LocalHost;

    use super::*;

    #[tokio::test]
    async fn nothing_outside_can_be_written_whoever_it_is() {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root: walls need it");
        let own = tempfile::tempdir_in("/tmp").unwrap();
        let live = tempfile::tempdir_in("/tmp").unwrap();
        // A disk of its own, too, whose name is hard on quoting.
        let disk = live.path().join("a disk\t\\134");
        std::fs::create_dir(&disk).unwrap();
        let mount = |program: &str, arguments: &[&str]| {
            let command = HostCommand::new(program).args(arguments).arg(&disk);
            async { LocalHost.spawn(command).await.unwrap().finish().await.unwrap() }
        };
        mount("mount", &["-t", "tmpfs", "stackward-test"]).await;
        let script =
            "for folder; do echo x 2>/dev/null >\"$folder/file\" && echo \"$folder\"; done; cat /proc/net/dev | wc -l";
        let command = HostCommand::new("sh").args(["-c", script, "sh"]).arg(own.path()).arg(live.path()).arg(&disk);
        let (command, isolation) =
            isolate(&LocalHost, command.arg("/dev/shm").arg("/root"), &[own.path()]).await.unwrap();
        let told = LocalHost.spawn(command).await.unwrap().output(4096).await;
        let left = std::fs::read_dir(&disk).unwrap().count();
        mount("umount", &[]).await;
        assert_eq!(isolation, Isolation::Namespace);
        // Of networks there is the loopback, which is down, behind two lines of titles.
        assert_eq!(told.unwrap(), format!("{}\n/dev/shm\n3\n", own.path().display()));
        assert_eq!((left, std::fs::read_dir(live.path()).unwrap().count()), (0, 1));
        let _ours = std::fs::remove_file("/dev/shm/file");
    }

    #[tokio::test]
    async fn walls_that_cannot_be_built_are_told_and_the_command_stays_as_it_was() {
        let command = HostCommand::new("sh").args(["-c", "echo here"]);
        let nowhere = Path::new("/no/such/folder");
        let (command, isolation) = isolate(&LocalHost, command, &[nowhere]).await.unwrap();
        let Isolation::Configuration(why) = &isolation else { panic!("{isolation:?}") };
        assert!(why.contains("/no/such/folder") && isolation.to_string().contains(why), "{why}");
        assert_eq!(LocalHost.spawn(command).await.unwrap().output(100).await.unwrap(), "here\n");
    }
}
