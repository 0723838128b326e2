//! Files in the scratch folder for tools that cannot take a stream.
//!
//! Invariant: only the tools' user can read them, and they are gone when their value is dropped.

use std::path::{Path, PathBuf};

use backup_core::RunContext;
use backup_core::error::{Error, Result};

use crate::handover::{give, let_in, test};
use crate::server::Server;

/// How every dump since the minor releases of February 2018 empties the search path (CVE-2018-1058), and where at the latest.
const EMPTY_PATH: &[u8] = b"SELECT pg_catalog.set_config('search_path', '', false);";
const HEAD_BYTES: usize = 64 * 1024;

/// A dump in a file of the scratch folder, for a restore by several jobs. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: tempfile::TempDir,
}

impl Spool {
    pub(crate) fn new(cx: &RunContext) -> Result<Self> {
        Self::below(cx.scratch())
    }

    pub(crate) fn below(scratch: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("stackward-dump-").tempdir_in(scratch);
        let folder = folder.map_err(|source| Error::io("cannot make a scratch folder", scratch, source))?;
        Ok(Self { folder })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("dump")
    }

    pub(crate) async fn fill(&self, cx: &RunContext, artifact: backup_core::reader::ArtifactReader) -> Result<()> {
        let path = self.path();
        let file = tokio::fs::File::create(&path).await;
        let file = file.map_err(|source| Error::io("cannot write the scratch file", &path, source))?;
        artifact.copy_to(cx, file).await.map(|_| ())
    }

    /// Lets the search path be that of the session: the statement that empties it becomes one of the same length. Whether it
    /// was found, which is near the beginning of every dump.
    pub(crate) fn free_path(&self) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        let path = self.path();
        let failed = |source| Error::io("cannot change the scratch file", &path, source);
        let file = std::fs::File::options().read(true).write(true).open(&path).map_err(failed)?;
        let mut head =
            vec![0; HEAD_BYTES.min(usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or(HEAD_BYTES))];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let Some(at) = head.windows(EMPTY_PATH.len()).position(|window| window == EMPTY_PATH) else { return Ok(false) };
        let mut other = b"RESET search_path;".to_vec();
        other.resize(EMPTY_PATH.len(), b' ');
        file.write_all_at(&other, at as u64).map_err(failed)?;
        Ok(true)
    }

    /// Lets the tools' user read the dump; whether it can.
    pub(crate) async fn give_to(&self, cx: &RunContext, server: &Server) -> Result<bool> {
        self.give_below(cx.scratch(), server).await
    }

    pub(crate) async fn give_below(&self, scratch: &Path, server: &Server) -> Result<bool> {
        let passable = let_in(server, scratch).await?;
        give(server, self.folder.path()).await?;
        give(server, &self.path()).await?;
        Ok(passable && test(server, "-r", &self.path()).await)
    }
}
