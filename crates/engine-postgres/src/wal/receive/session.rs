//! One session with the server: streams from where the archive ends, timeline after timeline, until one of the two stops.
//!
//! Invariant: a position is confirmed when it is archived, also to a server that is stopping; one that stops while nothing
//! can be archived is let go unconfirmed, and keeps what it has.

use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};

use super::depot::Depot;
use super::gap::Closing;
use super::slot::Slot;
use super::stage::Stage;
use super::{GONE, Receiver, timelines};
use crate::wal::chain::Chain;
use crate::wal::names::{SegmentSize, WalSegment};
use crate::wire::{Connection, Purpose, Received, Reply, Started, SystemIdentity, WalStream, server_error};

/// A sign of life goes to the server this often: well below its `wal_sender_timeout`, by default a minute.
const STATUS: Duration = Duration::from_secs(10);
/// A server that asks so often in a row whether all is flushed, and sends nothing meanwhile, waits for us to stop: else it
/// asks twice per `wal_sender_timeout`.
const ASKED_TO_STOP: u32 = 100;
/// So often in a row the server may not have the log from which its own slot says that it keeps it.
const GONE_AT_MOST: u32 = 2;

/// What outlives a session.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// Bytes that were received in the session.
    pub(super) received: u64,
    /// Why recoveries need a new full backup, until there is one.
    pub(super) gap: Option<String>,
    /// Whether the archive was looked at for a gap that was left open.
    pub(super) looked: bool,
    /// Whether anything was streamed, ever.
    pub(super) followed: bool,
    /// Whether something that was received could not be archived on the way out.
    pub(super) is_unarchived: bool,
}

/// What one session works with.
pub(super) struct Session<'a> {
    pub(super) receiver: &'a Receiver,
    pub(super) cx: &'a RunContext,
    pub(super) log: &'a SegmentLog,
    pub(super) slot: Slot<'a>,
    pub(super) identity: SystemIdentity,
    pub(super) size: SegmentSize,
    /// What the archive held when the session began.
    pub(super) chain: Option<Chain>,
    pub(super) course: &'a mut Course,
    pub(super) closing: Closing<'a>,
}

/// Why the stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Cancelled,
    Ended,
    /// The server stops, in order.
    Stopped,
}

/// How streaming of one timeline ended.
enum Ended {
    Cancelled,
    /// The server goes on with another timeline, from there.
    Switched(Box<Connection>, WalSegment),
    /// The server stops.
    Closed,
}

impl Session<'_> {
    pub(super) async fn run(&mut self, connection: Connection, begin: WalSegment) -> Result<()> {
        let ended = self.follow_timelines(connection, begin).await;
        // A backup that was told to stop cleans up.
        self.closing.end(self.cx).await;
        ended
    }

    async fn follow_timelines(&mut self, connection: Connection, begin: WalSegment) -> Result<()> {
        let (mut connection, mut begin) = (connection, begin);
        let mut gone = 0;
        loop {
            let from = begin.start(self.size);
            self.cx.step(format!("archiving the log from {from} on, timeline {}", begin.timeline));
            let received = self.course.received;
            let streamed = match WalStream::start(connection, Some(self.slot.name), from, begin.timeline).await {
                Ok(Started::Streaming(stream)) => self.stream(stream, begin).await,
                Ok(Started::Ended(connection, Some(next))) => {
                    let segment = WalSegment::containing(next.timeline, next.start, self.size);
                    Ok(Ended::Switched(Box::new(connection), segment))
                }
                Ok(Started::Ended(_, None)) => Ok(Ended::Closed),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    Err(self.slot.refused(self.cx, error, self.course.followed).await)
                }
                Err(error) => Err(error),
            };
            let ended = match streamed {
                // The server notices it when it comes to read the file, which may be after streaming began.
                Err(error) if server_error(&error).is_some_and(|server| server.code == GONE) => {
                    gone = if self.course.received > received { 1 } else { gone + 1 };
                    if gone > GONE_AT_MOST {
                        return Err(error);
                    }
                    self.course.gap = Some(format!("the server has removed {begin} before it was archived"));
                    (connection, begin) = self.after_gap(begin).await?;
                    continue;
                }
                other => other?,
            };
            match ended {
                Ended::Cancelled | Ended::Closed => return Ok(()),
                Ended::Switched(back, next) => {
                    connection = *back;
                    timelines::archive_history(&mut connection, self.log, next.timeline).await?;
                    self.cx.warn(format!("the server went over to timeline {}", next.timeline));
                    begin = next;
                }
            }
        }
    }

    /// A new session at the oldest segment that the slot keeps: what it does not keep is made anew, first of all, so that
    /// nothing more is lost while a full backup is taken.
    async fn after_gap(&mut self, gone: WalSegment) -> Result<(Connection, WalSegment)> {
        let server = self.slot.server;
        let mut connection = Connection::connect(server, Purpose::Replication).await?;
        let identity = connection.identify_system().await?;
        let after = gone.end(self.size);
        let from = self.slot.hold_after(&mut connection, self.cx, after).await?.unwrap_or(identity.flushed);
        let history = timelines::history(&mut connection, identity.timeline).await?;
        let timeline = history.timeline_of(from, identity.timeline);
        Ok((connection, WalSegment::containing(timeline, from, self.size)))
    }

    async fn stream(&mut self, mut stream: WalStream, begin: WalSegment) -> Result<Ended> {
        let cx = self.cx;
        let archived = self.chain.as_ref().map_or(0, |chain| chain.pieces_of(begin));
        let mut stage = Stage::new(cx.scratch(), begin, self.size, archived)?;
        let mut depot = Depot::new(cx.clone(), self.log.clone(), self.identity.system_identifier);
        let mut durable = begin.start(self.size);
        let mut status = tokio::time::interval(STATUS);
        let mut asked = 0;
        self.course.followed = true;
        cx.waits_no_more();
        if let Some(why) = &self.course.gap {
            self.closing.begin(why, durable);
        }
        if self.receiver.base.is_none() {
            // Nothing here closes it, and it was told.
            self.course.gap = None;
        }
        let why = loop {
            let piece_due = stage.waiting_since().map(|since| since + self.receiver.options.piece_age);
            tokio::select! {
                biased;
                () = cx.cancellation().cancelled() => break Why::Cancelled,
                taken = self.closing.next() => {
                    self.closing.taken(cx, taken)?;
                    self.close_gap(durable);
                }
                archived = depot.next(), if !depot.is_empty() => {
                    durable = archived.inspect_err(|_| self.course.is_unarchived = true)?;
                    asked = 0;
                    stream.confirm(stage.position(), durable, Reply::NotNeeded).await?;
                    self.close_gap(durable);
                }
                received = stream.next(), if depot.has_room() => match received? {
                    Received::Wal { start, data, .. } => {
                        self.course.received += data.len() as u64;
                        asked = 0;
                        cx.progress(data.len() as u64, 0);
                        stage.write(start, &data, &mut depot)?;
                    }
                    Received::Keepalive { reply: true, .. } => {
                        // A server that stops waits until all of its log is flushed here.
                        asked += 1;
                        if asked >= ASKED_TO_STOP && depot.is_failing() {
                            return Err(let_go());
                        }
                        stage.ship_piece(&mut depot);
                        stream.confirm(stage.position(), durable, Reply::NotNeeded).await?;
                    }
                    Received::Keepalive { .. } => {}
                    Received::Ended => break Why::Ended,
                    Received::Stopped => break Why::Stopped,
                },
                () = sleep_until(piece_due), if piece_due.is_some() => stage.ship_piece(&mut depot),
                _ = status.tick() => stream.confirm(stage.position(), durable, Reply::NotNeeded).await?,
            }
        };
        flush(&mut stage, &mut depot).await.inspect_err(|_| self.course.is_unarchived = true)?;
        self.close_gap(stage.position());
        match why {
            Why::Cancelled => {
                stream.confirm(stage.position(), stage.position(), Reply::NotNeeded).await?;
                stream.stop().await?.close().await;
                Ok(Ended::Cancelled)
            }
            Why::Stopped => Ok(Ended::Closed),
            Why::Ended => {
                let (connection, next) = stream.finish().await?;
                let Some(next) = next else { return Ok(Ended::Closed) };
                let segment = WalSegment::containing(next.timeline, next.start, self.size);
                Ok(Ended::Switched(Box::new(connection), segment))
            }
        }
    }

    /// Says that the gap is closed once the log is archived from before the backup that closes it to its end.
    fn close_gap(&mut self, durable: Lsn) {
        if self.closing.is_closed(durable) {
            self.course.gap = None;
        }
    }
}

/// Archives everything that was received.
async fn flush(stage: &mut Stage, depot: &mut Depot) -> Result<()> {
    stage.ship_piece(depot);
    while !depot.is_empty() {
        depot.next().await?;
    }
    Ok(())
}

fn let_go() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the server stops and is not kept from it, although the end of its log cannot be archived now: it keeps that",
    )
}

/// Never, when there is nothing to wait for.
async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
