//! The receiver: follows a server's write-ahead log through a replication slot into the archive.
//!
//! Invariant: the server is told that a position is flushed only when everything before it is durable in the archive, so the
//! slot keeps what a crash of ours, at any moment, would lose.

mod begin;
mod depot;
mod join;
mod stage;
mod timelines;

use std::time::Duration;

use async_trait::async_trait;
use backup_core::engine::{Follower, Snapshots, Source};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use backup_core::{RunContext, SegmentLog};
use std::sync::Arc;

use super::chain::Chain;
use super::names::{SegmentSize, WalSegment};
use crate::server::Server;
use crate::wire::{Connection, Purpose, Received, Reply, Started, SystemIdentity, WalStream, server_error};
use begin::Begin;
use depot::Depot;
use join::Join;
use stage::Stage;

/// The waits between attempts to reach a server, or a sink, that is away: this, doubled each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A sign of life goes to the server this often: well below its `wal_sender_timeout`, by default a minute.
const STATUS: Duration = Duration::from_secs(10);
/// The SQLSTATE of a log that is not there any more.
const GONE: &str = "58P01";
/// The SQLSTATE of something that is not there.
const UNDEFINED: &str = "42704";

/// How to receive.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveOptions {
    /// The slot.
    pub(crate) slot: String,
    /// What is younger than this waits for its segment to be full; then it is archived as a piece.
    pub(crate) piece_age: Duration,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Receiver {
    server: Server,
    options: ReceiveOptions,
    /// What takes a full backup after a gap, when the plan has physical backups.
    base: Option<Arc<dyn Source>>,
}

impl Receiver {
    pub(crate) fn new(server: Server, options: ReceiveOptions, base: Option<Arc<dyn Source>>) -> Self {
        Self { server, options, base }
    }

    /// One session, from where the archive ends to whatever ends it. `Ok` means that it was cancelled.
    async fn session(
        &self,
        cx: &RunContext,
        log: &SegmentLog,
        snapshots: &dyn Snapshots,
        reached: &mut u64,
    ) -> Result<()> {
        let mut connection = cx.unless_cancelled(Connection::connect(&self.server, Purpose::Replication)).await?;
        let identity = connection.identify_system().await?;
        let size = segment_size(&mut connection).await?;
        let chain = Chain::read(log).await?;
        if let Some(chain) = &chain {
            same_server(chain, &identity, size, &self.server)?;
            let join = Join { cx, server: &self.server, log, chain, identity: &identity };
            join.check(&mut connection).await?;
        }
        timelines::archive_histories(&mut connection, log, chain.as_ref(), identity.timeline).await?;
        let restart = self.slot(&mut connection, cx, chain.is_some()).await?;
        let begin = Begin::find(&mut connection, chain.as_ref(), &identity, restart, size).await?;
        if let Some(why) = &begin.gap {
            self.tell_gap(cx, snapshots, why).await?;
        }
        let mut session = Session { receiver: self, cx, log, snapshots, identity, size, chain, reached };
        session.run(connection, begin.segment).await
    }

    /// The position from which the slot keeps the log; makes the slot when it is not there.
    async fn slot(&self, connection: &mut Connection, cx: &RunContext, archived: bool) -> Result<Option<Lsn>> {
        let name = &self.options.slot;
        if let Some(slot) = timelines::slot(connection, &self.server, name).await? {
            return Ok(slot.restart);
        }
        if archived {
            cx.warn(format!("the replication slot `{name}` was dropped on the server; it is made anew"));
        }
        connection.create_slot(name, crate::wire::SlotKind::Permanent).await?;
        Ok(timelines::slot(connection, &self.server, name).await?.and_then(|slot| slot.restart))
    }

    /// Says that the chain is broken, and takes what makes the archive useful again: a full backup.
    async fn tell_gap(&self, cx: &RunContext, snapshots: &dyn Snapshots, why: &str) -> Result<()> {
        cx.warn(format!("the archived log has a gap: {why}"));
        match &self.base {
            Some(source) => {
                cx.step("taking a full backup, because of the gap");
                let manifest = snapshots.take(cx, Arc::clone(source)).await?;
                cx.warn(format!("a full backup was taken after the gap: {}", manifest.id));
            }
            None => {
                cx.warn("moments after the gap can be reached only from a physical backup taken after it");
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Follower for Receiver {
    async fn follow(&self, cx: &RunContext, log: &SegmentLog, snapshots: &dyn Snapshots) -> Result<()> {
        let mut wait = RETRY.0;
        loop {
            let mut reached = 0;
            let ended = self.session(cx, log, snapshots, &mut reached).await;
            if cx.check_cancelled().is_err() {
                // What was received is archived; an error on the way out would only repeat that it was told to stop.
                return Ok(());
            }
            let error = match ended {
                Ok(()) => Error::new(ErrorKind::Unreachable, "the server ended the session"),
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(error.during(format!("follow the log of `{}`", cx.source()))),
            };
            if reached > 0 {
                wait = RETRY.0;
            }
            cx.warn(format!("{}; trying again in {} s", error.chain(), wait.as_secs()));
            let pause = async {
                tokio::time::sleep(wait).await;
                Ok(())
            };
            if cx.unless_cancelled(pause).await.is_err() {
                return Ok(());
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }
}

/// Whether the cause may pass by itself: the server or the sink is away, restarts, or is full.
fn is_passing(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::Busy | ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Interrupted
    )
}

/// The length of the server's segments: `SHOW wal_segment_size` prints `16MB`.
async fn segment_size(connection: &mut Connection) -> Result<SegmentSize> {
    let shown = connection.show("wal_segment_size").await?;
    let bytes = match (shown.strip_suffix("MB"), shown.strip_suffix("GB")) {
        (Some(number), _) => number.parse::<u64>().ok().map(|number| number << 20),
        (_, Some(number)) => number.parse::<u64>().ok().map(|number| number << 30),
        _ => None,
    };
    SegmentSize::new(bytes.unwrap_or_default()).map_err(|error| error.with("wal_segment_size", shown))
}

fn same_server(chain: &Chain, identity: &SystemIdentity, size: SegmentSize, server: &Server) -> Result<()> {
    let mine = identity.system_identifier.to_string();
    if let Some(theirs) = chain.system()
        && theirs != mine
    {
        let message = format!(
            "the server at {} has the identifier {mine}, and the archive is that of the server {theirs}",
            server.describe()
        );
        return Err(Error::new(ErrorKind::AlreadyExists, message)
            .hint("it was set up anew, or another one listens there: give it a source name of its own"));
    }
    if chain.segment_size() != size {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            "the server's segments have another length than the archive's",
        )
        .hint("give it a source name of its own"));
    }
    Ok(())
}

/// What one session works with.
struct Session<'a> {
    receiver: &'a Receiver,
    cx: &'a RunContext,
    log: &'a SegmentLog,
    snapshots: &'a dyn Snapshots,
    identity: SystemIdentity,
    size: SegmentSize,
    /// What the archive held when the session began.
    chain: Option<Chain>,
    /// Bytes that were received.
    reached: &'a mut u64,
}

/// Why the stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Cancelled,
    Ended,
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
    async fn run(&mut self, connection: Connection, begin: WalSegment) -> Result<()> {
        let (mut connection, mut begin) = (connection, begin);
        loop {
            let from = begin.start(self.size);
            self.cx.step(format!("archiving the log from {from} on, timeline {}", begin.timeline));
            let slot = Some(self.receiver.options.slot.as_str());
            let streamed = match WalStream::start(connection, slot, from, begin.timeline).await {
                Ok(Started::Streaming(stream)) => self.stream(stream, begin).await,
                Ok(Started::Ended(connection, Some(next))) => {
                    let segment = WalSegment::containing(next.timeline, next.start, self.size);
                    Ok(Ended::Switched(Box::new(connection), segment))
                }
                Ok(Started::Ended(_, None)) => Ok(Ended::Closed),
                Err(error) => Err(error),
            };
            let ended = match streamed {
                // The server notices it when it comes to read the file, which may be after streaming began.
                Err(error) if server_error(&error).is_some_and(|server| server.code == GONE) => {
                    let why = format!("the server has removed {begin} before it was archived");
                    self.receiver.tell_gap(self.cx, self.snapshots, &why).await?;
                    (connection, begin) = self.after_gap().await?;
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

    /// A new session at the oldest segment that the slot keeps, or the one that is being written.
    async fn after_gap(&self) -> Result<(Connection, WalSegment)> {
        let server = &self.receiver.server;
        let mut connection = Connection::connect(server, Purpose::Replication).await?;
        let identity = connection.identify_system().await?;
        let slot = timelines::slot(&mut connection, server, &self.receiver.options.slot).await?;
        let from = slot.and_then(|slot| slot.restart).unwrap_or(identity.flushed);
        Ok((connection, WalSegment::containing(identity.timeline, from, self.size)))
    }

    async fn stream(&mut self, mut stream: WalStream, begin: WalSegment) -> Result<Ended> {
        let archived = self.chain.as_ref().map_or(0, |chain| chain.pieces_of(begin));
        let mut stage = Stage::new(self.cx.scratch(), begin, self.size, archived)?;
        let mut depot = Depot::new(self.cx.clone(), self.log.clone(), self.identity.system_identifier);
        let mut durable = begin.start(self.size);
        let mut status = tokio::time::interval(STATUS);
        let why = loop {
            let piece_due = stage.waiting_since().map(|since| since + self.receiver.options.piece_age);
            tokio::select! {
                biased;
                () = self.cx.cancellation().cancelled() => break Why::Cancelled,
                archived = depot.next(), if !depot.is_empty() => {
                    durable = archived?;
                    stream.confirm(stage.position(), durable, Reply::NotNeeded).await?;
                }
                received = stream.next(), if depot.has_room() => match received? {
                    Received::Wal { start, data, .. } => {
                        *self.reached += data.len() as u64;
                        self.cx.progress(data.len() as u64, 0);
                        stage.write(start, &data, &mut depot)?;
                    }
                    Received::Keepalive { reply: true, .. } => {
                        // A server that shuts down waits until all of its log is flushed here.
                        stage.ship_piece(&mut depot);
                        stream.confirm(stage.position(), durable, Reply::NotNeeded).await?;
                    }
                    Received::Keepalive { .. } => {}
                    Received::Ended => break Why::Ended,
                },
                () = sleep_until(piece_due), if piece_due.is_some() => stage.ship_piece(&mut depot),
                _ = status.tick() => stream.confirm(stage.position(), durable, Reply::NotNeeded).await?,
            }
        };
        self.flush(&mut stage, &mut depot).await?;
        if why == Why::Cancelled {
            stream.confirm(stage.position(), stage.position(), Reply::NotNeeded).await?;
            stream.stop().await?.close().await;
            return Ok(Ended::Cancelled);
        }
        let (connection, next) = stream.finish().await?;
        let Some(next) = next else { return Ok(Ended::Closed) };
        Ok(Ended::Switched(Box::new(connection), WalSegment::containing(next.timeline, next.start, self.size)))
    }

    /// Archives everything that was received.
    async fn flush(&self, stage: &mut Stage, depot: &mut Depot) -> Result<()> {
        stage.ship_piece(depot);
        while !depot.is_empty() {
            depot.next().await?;
        }
        Ok(())
    }
}

/// Never, when there is nothing to wait for.
async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Whether the server does not know what it was asked about.
fn is_undefined(error: &Error) -> bool {
    server_error(error).is_some_and(|server| server.code == UNDEFINED)
}
