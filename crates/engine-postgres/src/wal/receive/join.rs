//! Whether the server that is to be received from wrote what is archived: what it still has of that is asked of it again, and
//! compared, before anything is archived, made or confirmed.
//!
//! Invariant: no replication slot is used, and no position is told, so that this leaves no trace on the server.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::begin::Begin;
use super::{GONE, timelines};
use crate::server::Server;
use crate::wal::chain::Chain;
use crate::wal::fetch::pieces;
use crate::wal::history::History;
use crate::wal::join::{estranged, other_content};
use crate::wal::names::{WalFile, WalSegment};
use crate::wal::records::Walker;
use crate::wire::{Connection, Purpose, Received, Reply, Started, SystemIdentity, WalStream, server_error};

/// So many pieces of up to 128 KiB wait to be compared.
const ARRIVING: usize = 8;

/// What is compared.
pub(super) struct Join<'a> {
    pub(super) cx: &'a RunContext,
    pub(super) server: &'a Server,
    pub(super) log: &'a SegmentLog,
    pub(super) chain: &'a Chain,
    pub(super) identity: &'a SystemIdentity,
}

impl Join<'_> {
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when another state of the server wrote what is archived; [`ErrorKind::Unreachable`] for
    /// a standby that has not come so far.
    pub(super) async fn check(&self, connection: &mut Connection) -> Result<()> {
        let (size, timeline) = (self.chain.segment_size(), self.identity.timeline);
        if let Some(end) = self.chain.end(timeline).filter(|end| self.identity.flushed < *end) {
            return Err(self.behind(end).await?);
        }
        let history = timelines::history(connection, timeline).await?;
        let fresh = WalSegment::containing(timeline, self.identity.flushed, size);
        let begin = Begin::after(self.chain, timeline, &history, fresh);
        if begin.gap.is_some() {
            return Ok(());
        }
        self.compare_before(begin.segment, &history).await?;
        self.compare_pieces(begin.segment).await
    }

    async fn behind(&self, end: Lsn) -> Result<Error> {
        let flushed = self.identity.flushed;
        let (server, source) = (self.server.describe(), self.log.source());
        let what =
            format!("the server at {server} has its log up to {flushed}, and the archive of `{source}` goes to {end}");
        let database = self.server.endpoint.database.clone().unwrap_or_else(|| "postgres".to_owned());
        let mut session = self.cx.unless_cancelled(Connection::connect(self.server, Purpose::Sql(&database))).await?;
        let standby = session.value("select pg_is_in_recovery()").await?.is_some_and(|answer| answer == "t");
        session.close().await;
        if standby {
            return Ok(Error::new(ErrorKind::Unreachable, format!("{what}: it is a standby that has not come so far")));
        }
        Ok(estranged(&what))
    }

    /// The whole segment before `begin`.
    async fn compare_before(&self, begin: WalSegment, history: &History) -> Result<()> {
        let size = self.chain.segment_size();
        let Some(before) = begin.previous(size) else { return Ok(()) };
        // On its own timeline, or on one that it comes from and that was not left before.
        let ancestors =
            history.0.iter().filter(|switch| switch.timeline < begin.timeline && switch.at >= before.end(size));
        let mut line: Vec<u32> = ancestors.map(|switch| switch.timeline).chain([begin.timeline]).collect();
        line.reverse();
        let on = |timeline| WalSegment { timeline, ..before };
        let Some(before) = line.into_iter().map(on).find(|segment| self.chain.has(*segment)) else { return Ok(()) };
        // It is compared as it comes: nothing is kept of it.
        let (sender, arriving) = mpsc::channel(ARRIVING);
        let content = Arriving { pieces: arriving, piece: Bytes::new() }.take(size.bytes());
        let received = self.receive(before, before.end(size), Keep::Sent(sender));
        let (received, same) = tokio::join!(received, self.same(WalFile::Segment(before), Box::new(content)));
        match received? {
            Some(count) if count >= size.bytes() => same,
            // The timeline was left before.
            Some(_) => Ok(()),
            None => self.compare_records(before, begin).await,
        }
    }

    /// When the server has no more of `before`: what its next record says.
    async fn compare_records(&self, before: WalSegment, begin: WalSegment) -> Result<()> {
        let record = match self.log.record(&WalFile::Segment(before).id()?).await {
            Ok(record) => record,
            Err(error) if error.kind() == ErrorKind::Damaged => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(last) = record.meta.last_record.map(Lsn) else { return Ok(()) };
        let mut walker = Walker::new(
            begin.start(self.chain.segment_size()),
            self.chain.segment_size(),
            self.identity.system_identifier,
        );
        let on_this = begin.timeline == self.identity.timeline;
        let until = if on_this { self.identity.flushed } else { Lsn(u64::MAX) };
        self.receive(begin, until, Keep::Walked(&mut walker)).await?;
        match walker.first_follows() {
            Some(after) if after != last => Err(estranged(&format!(
                "the server goes on in {begin} after the record at {after}, and the last one of {before} in the archive is at {last}"
            ))),
            _ => Ok(()),
        }
    }

    /// What is archived of the segment that the server goes on in.
    async fn compare_pieces(&self, begin: WalSegment) -> Result<()> {
        let archived = u64::from(self.chain.pieces_of(begin));
        if archived == 0 {
            return Ok(());
        }
        let until = Lsn(begin.start(self.chain.segment_size()).0 + archived);
        let mut bytes = tempfile::tempfile_in(self.cx.scratch())
            .map_err(|error| Error::io("cannot make a temporary file for the log", self.cx.scratch(), error))?;
        let Some(count) = self.receive(begin, until, Keep::Written(&mut bytes)).await? else { return Ok(()) };
        for piece in pieces(self.log, begin).await? {
            let WalFile::Piece(_, from, to) = piece else { continue };
            if u64::from(to) <= count {
                let mut part = bytes.try_clone().map_err(unreadable)?;
                part.seek(SeekFrom::Start(u64::from(from))).map_err(unreadable)?;
                self.same(piece, Box::new(part.take(u64::from(to - from)))).await?;
            }
        }
        Ok(())
    }

    async fn same(&self, file: WalFile, content: Box<dyn Read + Send>) -> Result<()> {
        match self.log.holds(&file.id()?, content).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(other_content(file)),
            // Damage is no stranger; checks of the archive tell it.
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                self.cx.warn(format!("{file} in the archive cannot be compared with the server: {}", error.chain()));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The log from the beginning of `segment` up to `until` at least, when the server has so much, and how much came; `None`
    /// when the server has removed it.
    async fn receive(&self, segment: WalSegment, until: Lsn, mut keep: Keep<'_>) -> Result<Option<u64>> {
        let from = segment.start(self.chain.segment_size());
        let connection = self.cx.unless_cancelled(Connection::connect(self.server, Purpose::Replication)).await?;
        let mut stream = match WalStream::start(connection, None, from, segment.timeline).await {
            Ok(Started::Streaming(stream)) => stream,
            Ok(Started::Ended(..)) => return Ok(Some(0)),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut count = 0;
        while from.0 + count < until.0 {
            match self.cx.unless_cancelled(stream.next()).await {
                Ok(Received::Wal { start, data, .. }) => {
                    if start.0 != from.0 + count {
                        let message = format!("the server sent the log from {start} on, after {}", Lsn(from.0 + count));
                        return Err(Error::new(ErrorKind::Unreachable, message));
                    }
                    count += data.len() as u64;
                    if keep.take(data).await?.is_break() {
                        break;
                    }
                }
                Ok(Received::Keepalive { reply: true, .. }) => {
                    stream.confirm(Lsn(0), Lsn(0), Reply::NotNeeded).await?;
                }
                Ok(Received::Keepalive { .. }) => {}
                // The end of the timeline, or of the server.
                Ok(_) => return Ok(Some(count)),
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        drop(keep);
        // In order, so that the server's log does not complain; how it ends means nothing here.
        if let Ok(connection) = stream.stop().await {
            connection.close().await;
        }
        Ok(Some(count))
    }
}

/// What is done with the log that comes.
enum Keep<'a> {
    Sent(mpsc::Sender<Bytes>),
    Written(&'a mut File),
    /// Up to the first record.
    Walked(&'a mut Walker),
}

impl Keep<'_> {
    /// Breaks when no more is needed.
    async fn take(&mut self, data: Bytes) -> Result<ControlFlow<()>> {
        let enough = match self {
            Self::Sent(sender) => sender.send(data).await.is_err(),
            Self::Written(file) => file.write_all(&data).map(|()| false).map_err(unreadable)?,
            Self::Walked(walker) => {
                walker.push(&data, &mut |_| {});
                walker.first_follows().is_some() || walker.fault().is_some()
            }
        };
        Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

/// What was received, for a thread that may block.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() {
            let Some(next) = self.pieces.blocking_recv() else { return Ok(0) };
            self.piece = next;
        }
        let count = self.piece.len().min(out.len());
        out[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

fn is_gone(error: &Error) -> bool {
    server_error(error).is_some_and(|server| server.code == GONE)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::from_io("cannot keep the log until it is compared", error)
}
