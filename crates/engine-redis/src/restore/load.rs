//! Loading a running server: the RDB as commands, sent without waiting, every answer read.
//!
//! Invariant: the first error that the server answers ends the load; it succeeds only when the server holds the keys.

use std::io::{self, Write};
use std::path::Path;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::connection::{Commands, Connection, Replies, Reply, refusal};
use crate::rdb::{ExportOptions, ExportSummary, RefusedKey, export};
use crate::server::{Info, Server};

/// Commands are sent in pieces of this size; so many may wait.
const PIECE_BYTES: usize = 256 * 1024;
const QUEUE: usize = 4;
/// How many keys that cannot be loaded an error names.
const NAMED: usize = 3;
/// What the server is asked to repeat after the last command, so that its answer tells that all were answered.
const END: &str = "stackward: the end of the load";

/// What was loaded.
#[derive(Debug)]
pub(crate) struct Loaded(ExportSummary);

impl Loaded {
    pub(crate) fn keys(&self) -> u64 {
        self.0.keys.values().sum()
    }

    pub(crate) fn restored(&self, server: &str) -> Vec<String> {
        let database = |(database, keys): (&u32, &u64)| format!("{keys} keys of db{database} on {server}");
        let mut restored: Vec<String> = self.0.keys.iter().map(database).collect();
        if self.0.functions > 0 {
            restored.push(format!("{} libraries of functions on {server}", self.0.functions));
        }
        if restored.is_empty() {
            restored.push(format!("nothing was selected that the backup has; {server} holds what it held"));
        }
        restored
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let named = self.0.incomplete.iter().take(NAMED);
        let mut warnings: Vec<String> =
            named.map(|key| format!("db{}: `{}`: {}", key.database, key.key, key.why)).collect();
        if self.0.incomplete_total > NAMED as u64 {
            warnings.push(format!("{} keys were restored without something that they had", self.0.incomplete_total));
        }
        if self.0.skipped_expired > 0 {
            warnings.push(format!("{} keys had expired and were left out", self.0.skipped_expired));
        }
        warnings
    }
}

/// Loads the RDB at `path` into `server`, and looks over `observer` whether the keys are there.
///
/// # Errors
/// What the server refuses; keys that commands cannot express; keys that the server dropped again.
pub(crate) async fn load(
    cx: &RunContext,
    server: &Server,
    path: &Path,
    options: &ExportOptions,
    observer: &mut Connection,
) -> Result<Loaded> {
    let evicted_before = evicted(observer).await?;
    let mut connection = server.connect(cx).await?;
    let file = std::fs::File::open(path).map_err(|source| Error::io("cannot read the RDB", path, source))?;
    let (pieces, queue) = mpsc::channel(QUEUE);
    let options = options.clone();
    let exporting = tokio::task::spawn_blocking(move || {
        let mut out = Pieces { pieces, piece: BytesMut::with_capacity(PIECE_BYTES) };
        let summary = export(file, &options, &mut out)?;
        out.flush().map_err(|source| Error::from_io("the load stopped", source))?;
        Ok(summary)
    });
    let Connection { reader, writer } = &mut connection;
    let send = async {
        send_all(cx, writer, queue).await?;
        let summary: Result<ExportSummary> = exporting
            .await
            .map_err(|source| Error::new(ErrorKind::Internal, "the export of the RDB panicked").caused_by(source))?;
        let summary = summary?;
        writer.send(&["ECHO", END]).await?;
        Ok(summary)
    };
    let outcome = tokio::try_join!(send, read_answers(reader));
    // This first: keys that vanish meanwhile make later commands fail in ways that say nothing of the cause.
    let dropped = evicted(observer).await.unwrap_or(evicted_before).saturating_sub(evicted_before);
    if dropped > 0 {
        return Err(memory_full(dropped));
    }
    let (summary, answers) = outcome?;
    if answers != summary.commands {
        let message = format!("{} commands were sent, {answers} were answered", summary.commands);
        return Err(Error::new(ErrorKind::Internal, message));
    }
    refuse_incomplete(&summary)?;
    Ok(Loaded(summary))
}

async fn send_all(cx: &RunContext, writer: &mut Commands, mut queue: mpsc::Receiver<Bytes>) -> Result<()> {
    while let Some(piece) = queue.recv().await {
        writer.write(&piece).await?;
        cx.progress(piece.len() as u64, 0);
    }
    Ok(())
}

/// Counts the answers before the one that marks the end.
async fn read_answers(reader: &mut Replies) -> Result<u64> {
    let mut answers = 0;
    loop {
        match reader.next().await? {
            Reply::Error(text) => return Err(refusal("a command of the load", &text)),
            Reply::Bulk(text) if text == END.as_bytes() => return Ok(answers),
            _ => answers += 1,
        }
    }
}

fn refuse_incomplete(summary: &ExportSummary) -> Result<()> {
    if summary.refused_total == 0 {
        return Ok(());
    }
    let key = |key: &RefusedKey| format!("db{}: `{}`: {}", key.database, key.key, key.why);
    let named: Vec<String> = summary.refused.iter().take(NAMED).map(key).collect();
    let message = format!("{} keys cannot be loaded by commands: {}", summary.refused_total, named.join("; "));
    Err(Error::new(ErrorKind::Unsupported, message).hint(
        "restore into a folder and let a server of the same version start on it, or name `stop` and `start` in the plan",
    ))
}

/// A server whose memory is full may drop keys without a word.
fn memory_full(dropped: u64) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("the server's memory is full: it dropped {dropped} keys while it was loaded"),
    )
    .hint("raise `maxmemory` of the server, or set `maxmemory-policy noeviction` for the restore")
}

async fn evicted(observer: &mut Connection) -> Result<u64> {
    Ok(Info::ask(observer, Some("stats")).await?.number("evicted_keys").unwrap_or(0))
}

/// Collects what is exported into pieces, and waits when the server is behind.
struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    piece: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(data);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE_BYTES)).freeze();
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
