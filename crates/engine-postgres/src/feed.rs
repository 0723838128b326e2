//! Handing an artifact to a tool's standard input, and telling apart whose fault a broken pipe is.
//!
//! Invariant: a tool that ended well is believed only when the artifact was read to its end and found undamaged.

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::CleanExit;
use backup_core::host::HostCommand;
use backup_core::reader::ArtifactReader;
use tokio::io::AsyncWriteExt;

use crate::server::Server;

/// Runs `command` with the artifact as its input. `watch` sees every piece before the tool does.
///
/// # Errors
/// What is wrong with the artifact, before what the tool says of it; then the tool's failure. The tool is killed when
/// the artifact turns out to be damaged, so that it never sees a clean end of damaged data.
pub(crate) async fn feed(
    cx: &RunContext,
    server: &Server,
    command: HostCommand,
    mut artifact: ArtifactReader,
    mut watch: impl FnMut(&[u8]) -> Result<()>,
) -> Result<CleanExit> {
    let name = command.name();
    let mut process = server.host.spawn(command.piped_stdin().null_stdout()).await?;
    let mut stdin = process.take_stdin().ok_or_else(|| Error::new(ErrorKind::Internal, "a tool has no input"))?;
    let mut refused = false;
    while let Some(data) = artifact.next().await? {
        cx.check_cancelled()?;
        watch(&data)?;
        cx.progress(data.len() as u64, 0);
        // A tool that stopped reading has a reason, which its status tells; the rest is read for its checksum.
        refused = refused || stdin.write_all(&data).await.is_err();
    }
    refused = refused || stdin.shutdown().await.is_err();
    drop(stdin);
    let code = process.status().await?;
    let exit = server.confirm(&name, code, &process.stderr_tail())?;
    if refused {
        let message = format!("`{name}` did not read its input to the end");
        return Err(Error::new(ErrorKind::Tool, message));
    }
    Ok(exit)
}
