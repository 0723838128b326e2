//! `stackward wal fetch`: one file of the log from the archive, for `restore_command`.
//!
//! Invariant: a file appears under its name only when it is whole and checked. It ends with 1 only when the archive was looked
//! at and has none of this name: the server takes every code up to 125 for that, ends its recovery, and comes up with what it
//! has. Every failure ends above 125 (`Exit::of_fetch`), at which the server stops.

use std::path::{Path, PathBuf};

use backup_core::{Error, ErrorKind, Result, SegmentLog, SourceName};
use engine_postgres::wal::{self, SegmentSize, WalFile, WalSegment};
use serde_json::json;

use super::{log, server};
use crate::exit::Exit;
use crate::session::Session;
use crate::stack::{Access, Stack};

/// What the server asks for.
pub(super) struct Request<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    pub(super) source: Option<&'a SourceName>,
    pub(super) ahead: u8,
}

pub(super) async fn run(session: &Session<'_>, request: &Request<'_>) -> Result<Exit> {
    let file: WalFile = request.name.parse()?;
    let stack = Stack::load(session)?;
    let source = server(&stack, request.source)?.name().clone();
    let waiting = Waiting::beside(request.path, &source);
    let from = if waiting.deliver(file, request.path)? {
        "fetched ahead"
    } else {
        let log = self::log(session, &stack, &source, Access::Read).await?;
        let wanted = fetch_all(session, &log, file, request, &waiting).await;
        match wanted {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A disk that was unmounted meanwhile has no segments, either.
                let again = self::log(session, &stack, &source, Access::Read).await?;
                return not_there(session, &again, file, request.path).await;
            }
            other => other?,
        }
        "fetched"
    };
    session.output.summary(format!("{file} {from}"));
    let body = json!({ "source": source, "file": file.to_string(), "found": true });
    session.output.result("wal fetch", Exit::Done, &body);
    Ok(Exit::Done)
}

async fn not_there(session: &Session<'_>, log: &SegmentLog, file: WalFile, path: &Path) -> Result<Exit> {
    let source = log.source();
    let (exit, what) = if session.unless_interrupted(is_gap(log, file, path)).await? {
        let message = format!("{file} is missing in the archive of `{source}`, which goes on after it");
        let hint = "recover to a moment before it, or from a snapshot that was taken after it";
        session.output.complain(&message, Some(hint));
        (Exit::FetchGap, "gap")
    } else {
        session.output.summary(format!("{file} is not in the archive of `{source}`"));
        (Exit::Failed, "end")
    };
    let body = json!({ "source": source, "file": file.to_string(), "found": false, "because": what });
    session.output.result("wal fetch", exit, &body);
    Ok(exit)
}

/// Whether the archive has segments before and after this one, on its timeline, and nobody else has it: a recovery would end far
/// before the end of the archive, and nobody would know.
async fn is_gap(log: &SegmentLog, file: WalFile, path: &Path) -> Result<bool> {
    let WalFile::Segment(segment) = file else { return Ok(false) };
    // `path` lies in `pg_wal`: the server's own copy will do, and a standby asks its primary.
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.join(segment.to_string()).exists() || folder.join("../standby.signal").exists() {
        return Ok(false);
    }
    let whole = log.segments(&file.id()?.timeline).await?.into_iter();
    let whole: Vec<WalFile> = whole.filter_map(|entry| entry.id.name.as_str().parse().ok()).collect();
    let lies = |before: bool| {
        whole.iter().any(|other| match other {
            WalFile::Segment(other) => {
                if before {
                    *other < segment
                } else {
                    *other > segment
                }
            }
            _ => false,
        })
    };
    Ok(lies(true) && lies(false))
}

/// Fetches the file and, at the same time, those that the server will ask for next. Only the first must be there.
async fn fetch_all(
    session: &Session<'_>,
    log: &SegmentLog,
    file: WalFile,
    request: &Request<'_>,
    waiting: &Waiting,
) -> Result<()> {
    let first = session.unless_interrupted(wal::fetch(log, file, request.path));
    let WalFile::Segment(segment) = file else { return first.await };
    let id = file.id()?;
    // The server waits for the first: nothing is asked before it.
    let ahead = async {
        // The last one, in pieces perhaps, has no record: nothing comes after it.
        let record = session.unless_interrupted(log.record(&id)).await;
        if let Some(size) = record.ok().and_then(|record| SegmentSize::new(record.bytes).ok()) {
            waiting.fill(log, segment, size, request.ahead).await;
        }
    };
    let (result, ()) = tokio::join!(first, ahead);
    result
}

/// Segments that were fetched ahead, in a folder beside the file that the server asked for: on the same disk, so that they are
/// delivered by a rename. The server does not look at names that it does not know.
struct Waiting(PathBuf);

impl Waiting {
    fn beside(path: &Path, source: &SourceName) -> Self {
        Self(path.parent().unwrap_or(Path::new("")).join(format!("stackward-ahead-{source}")))
    }

    /// Moves the file into its place if it waits.
    fn deliver(&self, file: WalFile, to: &Path) -> Result<bool> {
        match std::fs::rename(self.0.join(file.to_string()), to) {
            Ok(()) => {
                // When it was the last one, the folder goes, too.
                let _not_empty = std::fs::remove_dir(&self.0);
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("cannot put the file of the write-ahead log in place", to, error)),
        }
    }

    /// Fetches up to `count` segments after `segment`. What cannot be had is left for when it is asked for.
    async fn fill(&self, log: &SegmentLog, segment: WalSegment, size: SegmentSize, count: u8) {
        // What waited for another way of recovery is of no use any more.
        let _none = std::fs::remove_dir_all(&self.0);
        if count == 0 || std::fs::create_dir(&self.0).is_err() {
            return;
        }
        let mut next = segment;
        let mut fetches = Vec::new();
        for _ in 0..count {
            next = next.next(size);
            let to = self.0.join(next.to_string());
            // Whole ones alone: what is in pieces now may be whole when it is asked for.
            fetches.push(async move { wal::fetch_whole(log, next, &to).await });
        }
        let _others = futures::future::join_all(fetches).await;
        let _not_empty = std::fs::remove_dir(&self.0);
    }
}
