//! Handing files to the system user that the tools run as, when that is not us.
//!
//! Invariant: nothing becomes readable for anybody else; a scratch folder at most lets others pass through.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use backup_core::error::{Error, Result};
use backup_core::host::HostCommand;

use crate::server::Server;

/// The permission to pass through a folder, for others than its owner and group.
const OTHERS_PASS: u32 = 0o001;

/// Makes the tools' user the owner of `path`. Does nothing when the tools run as we do.
pub(crate) async fn give(server: &Server, path: &Path) -> Result<()> {
    let Some(user) = server.run_as() else { return Ok(()) };
    let command = HostCommand::new("chown").arg("--").arg(user).arg(path).null_stdout();
    server.host.spawn(command).await?.finish().await.map(|_| ())
}

/// Whether the tools' user can pass through the scratch folder; when it is ours and private, it lets others pass from now
/// on (temporary folders are made private, and what we put there is private by itself).
pub(crate) async fn let_in(server: &Server, folder: &Path) -> Result<bool> {
    if server.run_as().is_none() {
        return Ok(true);
    }
    let failed = |source| Error::io("cannot open the scratch folder to the tools' user", folder, source);
    let metadata = std::fs::metadata(folder).map_err(failed)?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if ours && metadata.mode() & OTHERS_PASS == 0 {
        let mode = std::fs::Permissions::from_mode((metadata.mode() & 0o7777) | OTHERS_PASS);
        std::fs::set_permissions(folder, mode).map_err(failed)?;
    }
    Ok(test(server, "-x", folder).await)
}

/// Asks `test` as the tools' user: `-r` readable, `-x` passable, `-d` a folder.
pub(crate) async fn test(server: &Server, question: &str, path: &Path) -> bool {
    match server.host.spawn(server.plain_command("test").arg(question).arg(path).null_stdout()).await {
        Ok(process) => process.finish().await.is_ok(),
        Err(_) => false,
    }
}
