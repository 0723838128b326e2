//! An RDB by BGSAVE, for servers that let nobody replicate: the server writes its dump file, and we read that.
//!
//! Invariant: the file is believed only when `rdb_saves` and `rdb_last_bgsave_status` say that a save of ours succeeded.
//! `LASTSAVE` is no such sign: it counts seconds, and does not move after a save that failed.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::PIECE_BYTES;
use super::own_dump::{self, Kept};
use crate::Redis;
use crate::connection::{Connection, NO_CHILD, Reply, refusal};
use crate::server::{Info, POLL, Server, allowed};

/// How often a save that others keep getting ahead of is asked for again.
const ATTEMPTS: usize = 20;
/// The clocks of the server's INFO and of its RDB are read at different moments.
const CLOCK_SLACK_SECONDS: u64 = 1;

/// The server's dump file, opened: a later save replaces its name, not its content.
pub(crate) struct SavedFile {
    file: tokio::fs::File,
    path: PathBuf,
    length: u64,
    passed: u64,
}

impl SavedFile {
    /// Makes the server save, waits until it has, and opens the file.
    pub(crate) async fn make(cx: &RunContext, redis: &Redis, server: &Server) -> Result<Self> {
        let mut connection = server.connect(cx).await?;
        let (host, data_dir) = (&*redis.host, redis.settings.data_dir.as_deref());
        let path = own_dump::path(&mut connection, host, data_dir).await?;
        allowed(&mut connection, &["BGSAVE"]).await?;
        let kept = Kept::begin(&mut connection, host, data_dir, redis.settings.dump_file).await?;
        cx.step("waiting for BGSAVE");
        let began = cx.unless_cancelled(save(&mut connection)).await?;
        let failed = |source| Error::io("cannot read the server's dump file", &path, source);
        let file = tokio::fs::File::open(&path).await.map_err(failed)?;
        let metadata = file.metadata().await.map_err(failed)?;
        if let Some(kept) = kept {
            kept.put_back(Some(metadata.ino()))?;
        }
        let written = metadata.modified().map_err(failed)?;
        let since_epoch = written.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if began.is_some_and(|began| since_epoch + CLOCK_SLACK_SECONDS < began) {
            return Err(Error::new(ErrorKind::Incomplete, "the dump file is older than the save")
                .with("path", path.display())
                .hint("the server runs on another machine, or in a container: name the folder that this machine sees as `data_dir`"));
        }
        Ok(Self { file, length: metadata.len(), path, passed: 0 })
    }

    /// The next bytes; `None` once the length that the file had is reached.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        let left = usize::try_from(self.length - self.passed).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(None);
        }
        let mut piece = BytesMut::with_capacity(left.min(PIECE_BYTES));
        let failed = |source| Error::io("cannot read the server's dump file", &self.path, source);
        let count = (&mut self.file).take(left as u64).read_buf(&mut piece).await.map_err(failed)?;
        if count == 0 {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("{} became shorter while it was read", self.path.display()),
            ));
        }
        self.passed += count as u64;
        Ok(Some(piece.freeze()))
    }

    pub(crate) const fn length(&self) -> u64 {
        self.length
    }
}

impl fmt::Debug for SavedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedFile").field("path", &self.path).field("length", &self.length).finish_non_exhaustive()
    }
}

/// Saves, and returns the server's time in seconds at which that began, when it tells.
async fn save(connection: &mut Connection) -> Result<Option<u64>> {
    for _ in 0..ATTEMPTS {
        let before = settled(connection).await?;
        let began = match before.number("server_time_usec") {
            Some(micros) => Some(micros / 1_000_000),
            // Before 7.0.
            None => {
                connection.ask(&["TIME"]).await?.items().first().and_then(Reply::text).and_then(|it| it.parse().ok())
            }
        };
        match connection.ask(&["BGSAVE"]).await? {
            // Somebody was faster: wait for that child, and ask again.
            Reply::Error(text) if text.contains("in progress") || text.contains("child process") => continue,
            Reply::Error(text) if text == "ERR" => return Err(no_child()),
            Reply::Error(text) => return Err(refusal("BGSAVE", &text)),
            _ => {}
        }
        let after = settled(connection).await?;
        if after.get("rdb_last_bgsave_status") != Some("ok") {
            return Err(Error::new(ErrorKind::Tool, "the server's BGSAVE failed").hint(
                "look into the server's log for why: most likely its disk is full, or its folder is not writable",
            ));
        }
        // Servers before 7.0 do not count; then the status, asked after the child's end, must do.
        if let (Some(before), Some(after)) = (before.number("rdb_saves"), after.number("rdb_saves"))
            && after <= before
        {
            return Err(Error::new(ErrorKind::Tool, "the server says that BGSAVE succeeded, but counts no new save"));
        }
        return Ok(began);
    }
    Err(Error::new(ErrorKind::Busy, "the server was always busy with another save").retry_later())
}

/// Waits until no child saves or rewrites.
async fn settled(connection: &mut Connection) -> Result<Info> {
    loop {
        let info = Info::ask(connection, None).await?;
        if !info.is_on("rdb_bgsave_in_progress") && !info.is_on("aof_rewrite_in_progress") {
            return Ok(info);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn no_child() -> Error {
    Error::new(ErrorKind::Tool, "the server cannot start a child process to save its data").hint(NO_CHILD).retry_later()
}
