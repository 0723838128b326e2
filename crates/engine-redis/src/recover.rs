//! Recovery to a moment: a snapshot and the stream that follows it become the data set of that moment.
//!
//! A scratch server loads both as append-only files, as the server itself would after a crash: keys whose time has passed
//! meanwhile live as long as they lived then, which commands sent to a running server could not bring about. What it then
//! holds is taken as an RDB, and put back like any other.
//! Invariant: everything is read and checked before anything is changed, and a moment that is not reached is an error.

mod aim;
mod aof;
pub(crate) mod chain;
pub(crate) mod choose;
mod command;
mod drill;
pub(crate) mod files;
mod replay;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::log::{SegmentId, Span};
use backup_core::manifest::SourceRecord;
use backup_core::position::Position;
use backup_core::{BackupReader, RunContext, SegmentLog};
use jiff::Timestamp;

use crate::Redis;
use crate::details::Details;
use crate::rdb::RdbSummary;
use crate::scratch::{Folder, Load, Program, Scratch};
use crate::server::Info;

use aim::Aim;
pub(crate) use aim::parse_position;
use aof::AofMoment;
use chain::{Chain, span};
pub(crate) use command::first_second;
use files::{Assembled, write_files};
pub(crate) use replay::Reached;
use replay::{Replay, Spool};

/// A server has at least so many databases.
const LEAST_DATABASES: u32 = 16;

/// What a recovery reads: the segments after a snapshot, as far as they are needed.
#[derive(Debug, Clone)]
pub(crate) struct Recovery {
    log: Option<SegmentLog>,
    /// The replication id and the offset of the snapshot.
    pub(crate) id: String,
    pub(crate) base: u64,
    pub(crate) segments: Vec<(SegmentId, Span)>,
    /// No command is replayed that ends after this.
    limit: u64,
    /// When the stream had come to the limit, at the latest.
    pub(crate) time: Option<Timestamp>,
}

/// The position of a snapshot that a stream can follow.
pub(crate) fn position(record: &SourceRecord) -> Option<(&str, u64)> {
    match &record.position {
        Some(Position::Replication { id, offset }) => Some((id, *offset)),
        _ => None,
    }
}

/// When the server had come to the position of a snapshot, at the latest.
pub(crate) fn position_time(record: &SourceRecord) -> Timestamp {
    Details::of(record).ok().and_then(|details| details.position_time).unwrap_or(record.finished)
}

impl Recovery {
    /// Finds what is needed to bring the snapshot of `record` to `moment`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the log does not reach the moment, [`ErrorKind::Incomplete`] when a segment before it is
    /// missing, [`ErrorKind::Unsupported`] for moments that this engine does not know.
    pub(crate) async fn find(
        cx: &RunContext,
        record: &SourceRecord,
        log: Option<&SegmentLog>,
        moment: &Moment,
    ) -> Result<Self> {
        refuse_branch(log)?;
        let Some((id, base)) = position(record) else {
            return Err(Error::new(ErrorKind::Unsupported, "the snapshot has no position in a replication stream")
                .hint("BGSAVE and exports have none, and a whole cluster has several: choose one that `stackward follow` took"));
        };
        let aim = Aim::of(moment, id, base, position_time(record))?;
        let (id, time) = (id.to_owned(), Some(position_time(record)));
        let mut recovery = Self { log: log.cloned(), id, base, segments: Vec::new(), limit: base, time };
        if aim.is_met_by(&recovery) {
            return Ok(recovery);
        }
        if let Some(log) = log {
            let mut chain = Chain::after(cx, log, &recovery.id, base).await?;
            while let Some(link) = chain.next().await? {
                let covers = span(&link)?;
                let passed = aim.advance(&mut recovery, &link.meta.marks, covers.end);
                if recovery.limit > covers.start {
                    recovery.segments.push((link.id, covers));
                }
                if passed {
                    return Ok(recovery);
                }
            }
        }
        if aim == Aim::End { Ok(recovery) } else { Err(recovery.outside(moment)) }
    }

    fn outside(&self, moment: &Moment) -> Error {
        let time = self.time.map_or_else(String::new, |time| format!(" ({time:.0})"));
        Error::new(ErrorKind::NotFound, format!("the archive does not reach {moment}"))
            .with("it ends at offset", format!("{}{time}", self.limit))
            .hint("`--to-latest` recovers to its end; `stackward status` shows the windows")
    }

    /// Reads every segment to its end into `out`, as an append-only file that begins with `begin`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] and [`ErrorKind::NotFound`], with the segment's name.
    async fn replay(&self, cx: &RunContext, out: Box<dyn Spool>, begin: &[u8]) -> Result<Reached> {
        let replay = Arc::new(Mutex::new(Replay::new(out, self.base, self.limit, begin)?));
        let locked = || replay.lock().unwrap_or_else(PoisonError::into_inner);
        for (segment, covers) in &self.segments {
            locked().skip(self.base.saturating_sub(covers.start));
            let Some(log) = &self.log else { break };
            let read = cx.unless_cancelled(log.read(segment, Box::new(Shared(Arc::clone(&replay)))));
            let record = match read.await {
                Ok(record) => record,
                Err(error) => return Err(name_segment(locked().failure().unwrap_or(error), segment)),
            };
            cx.progress(record.bytes, 0);
        }
        let reached = locked().finish()?;
        if reached.torn {
            cx.step("a transaction or a command that was not whole at the end was left out");
        }
        Ok(reached)
    }

    /// Reads everything, and tells where it would end.
    pub(crate) async fn survey(&self, cx: &RunContext) -> Result<Reached> {
        cx.step("reading the archived stream");
        self.replay(cx, Box::new(std::io::sink()), &[]).await
    }

    /// What is read, and where it ends.
    pub(crate) fn steps(&self, reached: &Reached) -> Vec<String> {
        let bytes: u64 = self.segments.iter().map(|(_, span)| span.end - span.start).sum();
        let mut steps = Vec::new();
        if let (Some((first, _)), Some((last, _))) = (self.segments.first(), self.segments.last()) {
            let count = self.segments.len();
            steps.push(format!("read {count} segments of the stream, {bytes} bytes: {first} to {last}"));
        }
        steps.push(format!(
            "replay {} commands after offset {} of {}, {}",
            reached.commands,
            self.base,
            self.id,
            self.describe(reached)
        ));
        steps
    }

    /// The moment that is reached.
    pub(crate) fn describe(&self, reached: &Reached) -> String {
        let time = self.time.map_or_else(String::new, |time| format!(", the last state that came by {time:.3}"));
        let torn = if reached.torn { "; an unfinished transaction or command after it is left out" } else { "" };
        format!("up to offset {}{time}{torn}", reached.offset)
    }
}

fn name_segment(error: Error, segment: &SegmentId) -> Error {
    if error.message().contains(segment.name.as_str()) { error } else { error.with("segment", segment) }
}

/// A replay that segments are written into, one after the other.
struct Shared(Arc<Mutex<Replay>>);

impl std::io::Write for Shared {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(data)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// How a moment is reached.
#[derive(Debug)]
pub(crate) enum Way {
    /// From a snapshot, by the stream after it.
    Stream(Recovery),
    /// By the append-only files of a backup that is later.
    Aof(AofMoment),
}

/// A stream goes on under another name after a failover; it has no branches to choose from.
///
/// # Errors
/// [`ErrorKind::Unsupported`] when one was chosen.
pub(crate) fn refuse_branch(log: Option<&SegmentLog>) -> Result<()> {
    let Some(timeline) = log.and_then(SegmentLog::branch) else { return Ok(()) };
    Err(Error::new(ErrorKind::Unsupported, format!("Redis has no timelines, and so no timeline {timeline}"))
        .hint("leave `--timeline` out"))
}

impl Way {
    /// Finds it, for the backup of `record`.
    ///
    /// # Errors
    /// As [`Recovery::find`].
    pub(crate) async fn find(
        cx: &RunContext,
        record: &SourceRecord,
        log: Option<&SegmentLog>,
        moment: &Moment,
    ) -> Result<Self> {
        refuse_branch(log)?;
        match (Recovery::find(cx, record, log, moment).await, AofMoment::of(record, moment)) {
            (Ok(recovery), _) => Ok(Self::Stream(recovery)),
            (Err(error), Some(aof)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
                Ok(Self::Aof(aof))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// What is read, and the moment that it leads to. Reads everything.
    pub(crate) async fn survey(&self, cx: &RunContext, redis: &Redis, from: &BackupReader) -> Result<Vec<String>> {
        match self {
            Self::Stream(recovery) => Ok(recovery.steps(&recovery.survey(cx).await?)),
            Self::Aof(aof) => {
                let work = tempfile::Builder::new().prefix("swrestore-").tempdir_in(cx.scratch());
                let work = work.map_err(|source| Error::io("cannot make a scratch folder", cx.scratch(), source))?;
                let assembled = aof.assemble(cx, redis, from, &work.path().join(AOF_FOLDER)).await?;
                Ok(vec![format!("replay the append-only files {}", assembled.told)])
            }
        }
    }

    /// Writes a set of append-only files into `folder` that leads to the moment.
    pub(crate) async fn assemble(
        &self,
        cx: &RunContext,
        redis: &Redis,
        from: &BackupReader,
        folder: &Path,
    ) -> Result<Assembled> {
        match self {
            Self::Stream(recovery) => Ok(write_files(cx, from, recovery, folder).await?.1),
            Self::Aof(aof) => aof.assemble(cx, redis, from, folder).await,
        }
    }
}

impl Redis {
    /// Makes the RDB of `moment` at `dump`, with a scratch server below `work`; tells what it is.
    pub(crate) async fn make(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        moment: &Moment,
        work: &Path,
        dump: &Path,
    ) -> Result<(RdbSummary, String)> {
        let way = Way::find(cx, from.record(), from.log(), moment).await?;
        let program = self.recovery_program(from).await?;
        let folder = Folder::make(work)?;
        let assembled = way.assemble(cx, self, from, &folder.append_only()).await?;
        let told = assembled.told.clone();
        let (scratch, mut connection) = self.replayed(cx, &program, folder, assembled).await?;
        refuse_errors(&mut connection).await?;
        cx.step("taking the data of the moment");
        Ok((self.take(cx, scratch.server(), dump, crate::snapshot::Way::Best).await?, told))
    }

    /// A scratch server that has loaded the set in its folder.
    pub(crate) async fn replayed(
        &self,
        cx: &RunContext,
        program: &Program,
        folder: Folder,
        assembled: Assembled,
    ) -> Result<(Scratch, crate::connection::Connection)> {
        cx.step(format!("replaying in {}", program.shown));
        let load = Load::AppendOnly { name: assembled.name, databases: assembled.databases };
        Scratch::start(&*self.host, program, folder, load).await
    }

    /// The program that replays; looked for before anything is changed.
    pub(crate) async fn recovery_program(&self, from: &BackupReader) -> Result<Program> {
        let details = Details::of(from.record())?;
        let (bin, saved) = (self.settings.bin.as_deref(), from.record().server.as_ref());
        let program = Program::find(&*self.host, bin, saved, &details).await?;
        program.refuse_before_multi_part()?;
        Ok(program)
    }
}

/// A command that failed then would not be in the stream: one that fails now means that the data is another.
pub(crate) async fn refuse_errors(connection: &mut crate::connection::Connection) -> Result<()> {
    let info = Info::ask(connection, Some("stats")).await?;
    match info.number("unexpected_error_replies") {
        Some(0) | None => Ok(()),
        Some(count) => Err(Error::new(
            ErrorKind::Damaged,
            format!("{count} commands of the stream failed when they were replayed"),
        )
        .hint("the scratch server has another version, other modules or settings than the one that was followed; name its \
               programs' folder as `bin` in the plan")),
    }
}

/// Where append-only files of a scratch server lie.
pub(crate) const AOF_FOLDER: &str = "appendonlydir";
