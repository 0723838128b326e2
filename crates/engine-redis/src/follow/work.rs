//! What outlives a connection of a follower, and the receiving on one.
//!
//! Invariant: segments are held back until the snapshot that they follow is committed, and the server learns only of what
//! is durable.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use backup_core::engine::Snapshots;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::Manifest;
use backup_core::position::Position;
use backup_core::{RunContext, Timeline};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use super::intake::{Intake, Waiting};
use super::keeper::Keeper;
use super::{Limits, described};
use crate::connection::{Connection, Replies};
use crate::server::Info;

/// The server learns so often how far the archive is; it drops a replica that is silent for `repl-timeout`.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_secs(1);
/// A server that sends nothing, not even its PINGs, for so long is gone.
const SILENCE_LIMIT: Duration = Duration::from_mins(1);
/// A server that does not take our few bytes for so long is gone, too.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// After a cancellation we go on receiving what was sent: at most so long, and until nothing came for so long.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
const DRAIN_PAUSE: Duration = Duration::from_millis(20);
/// So many segments may wait: each is an open file.
const MAX_WAITING: u64 = 512;
/// What is read at once.
const READ_BYTES: usize = 256 * 1024;

/// A snapshot on its way into the sink.
pub(super) type Taking<'a> = Pin<Box<dyn Future<Output = Result<Manifest>> + Send + 'a>>;

/// What outlives a connection.
pub(super) struct Work<'a> {
    pub(super) cx: &'a RunContext,
    pub(super) snapshots: &'a dyn Snapshots,
    pub(super) keeper: Keeper,
    /// `None`: there is nothing to go on from.
    pub(super) intake: Option<Intake>,
    /// Segments that a snapshot must come before.
    pub(super) held: VecDeque<Waiting>,
    pub(super) epoch: u64,
    /// Everything before this offset of the epoch is durable.
    pub(super) durable: u64,
    /// Why a new snapshot is needed, until there is one.
    pub(super) because: Option<String>,
    /// Whether the server sent anything since we connected.
    pub(super) received: bool,
}

impl<'a> Work<'a> {
    /// The server goes on where we are, perhaps under another replication id.
    pub(super) async fn go_on(&mut self, id: String, info: &Info) -> Result<()> {
        let Some(intake) = &mut self.intake else {
            return Err(Error::new(ErrorKind::Tool, "the server goes on with a replica that has nothing"));
        };
        let (offset, before) = (intake.place().offset, intake.place().timeline.clone());
        intake.describe(described(info));
        if id == before.as_str() {
            self.cx.step(format!("following from offset {offset}"));
            return Ok(());
        }
        self.cx.warn(format!(
            "the server goes on from offset {offset} under the replication id {id} instead of {before}: it was \
             restarted, or another one took over; nothing is missing"
        ));
        let last = intake.rename(Timeline::new(id)?).await?;
        self.keep(last, Commit::Done);
        Ok(())
    }

    /// The history ends here: what was received of it is stored. Tells why.
    pub(super) async fn leave(&mut self, id: &str) -> Result<String> {
        let Some(mut old) = self.intake.take() else {
            return Ok(self.because.clone().unwrap_or_else(|| "it is the first".to_owned()));
        };
        let place = old.place().clone();
        let last = old.cut().await?;
        self.keep(last, Commit::Done);
        let because = format!(
            "the server (replication id {id}) does not have the stream after offset {} of {}",
            place.offset, place.timeline
        );
        self.cx
            .warn(format!("{because}: what it did since then cannot be recovered, and a new full snapshot is taken"));
        self.because = Some(because.clone());
        Ok(because)
    }

    fn keep(&mut self, segment: Option<Waiting>, commit: Commit) {
        match commit {
            Commit::Done => segment.into_iter().for_each(|segment| self.keeper.keep(segment)),
            Commit::Open => self.held.extend(segment),
        }
    }

    /// How many bytes wait in the scratch folder.
    fn spooled(&self) -> u64 {
        let held: u64 = self.held.iter().map(Waiting::bytes).sum();
        self.keeper.backlog() + held + self.intake.as_ref().map_or(0, Intake::bytes)
    }

    /// How many segments wait.
    fn waiting(&self) -> u64 {
        self.keeper.waiting() + self.held.len() as u64
    }

    /// Receives until the connection breaks (an error) or the work is cancelled. Segments are held back until `taking`,
    /// the snapshot that they follow, is committed.
    pub(super) async fn receive(
        &mut self,
        connection: Connection,
        rest: Bytes,
        mut taking: Option<Taking<'a>>,
        limits: Limits,
    ) -> Result<()> {
        let received = self.receive_while(connection, rest, &mut taking, limits).await;
        if self.cx.cancellation().is_cancelled() {
            match taking {
                // A snapshot that is not committed takes what follows it along.
                Some(_) => self.give_up(),
                None => self.held.drain(..).for_each(|segment| self.keeper.keep(segment)),
            }
            return Ok(());
        }
        if let Some(taking) = taking {
            // The connection broke, but the snapshot was received whole.
            let taken = taking.await;
            self.committed(taken)?;
        }
        received
    }

    async fn receive_while(
        &mut self,
        connection: Connection,
        rest: Bytes,
        taking: &mut Option<Taking<'a>>,
        limits: Limits,
    ) -> Result<()> {
        let Connection { mut reader, mut writer } = connection;
        let cx = self.cx;
        let mut buffer = BytesMut::from(&rest[..]);
        let mut acknowledge = tokio::time::interval(ACKNOWLEDGE_EVERY);
        acknowledge.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told_full = false;
        loop {
            if !buffer.is_empty() {
                self.take_in(&buffer, taking.is_some()).await?;
                buffer.clear();
            }
            let room = self.spooled() < limits.spool && self.waiting() < MAX_WAITING;
            if room == told_full {
                told_full = !room;
                self.tell_of_room(room);
            }
            // Segments that must wait may as well grow.
            let due = self.intake.as_ref().filter(|_| self.waiting() == 0).and_then(Intake::due);
            tokio::select! {
                biased;
                () = cx.cancellation().cancelled() => return self.drain(&mut reader, &mut buffer).await,
                taken = async { match taking { Some(taking) => taking.await, None => std::future::pending().await } } => {
                    *taking = None;
                    self.committed(taken)?;
                }
                stored = self.keeper.stored() => stored?,
                _ = acknowledge.tick() => {
                    let offset = self.durable().to_string();
                    let message = ["REPLCONF", "ACK", &offset];
                    let send = writer.send(&message);
                    let slow = |_| Error::new(ErrorKind::Unreachable, "the server does not read what it is told");
                    tokio::time::timeout(WRITE_LIMIT, send).await.map_err(slow)??;
                }
                () = until(due) => self.cut(taking.is_some()).await?,
                read = reader.read(&mut buffer, SILENCE_LIMIT), if room => {
                    if read? == 0 {
                        return Err(Error::new(ErrorKind::Incomplete, "the server closed the connection").retry_later());
                    }
                    self.received = true;
                }
            }
            buffer.reserve(READ_BYTES);
        }
    }

    /// After a cancellation: what the server has sent already is received, for a short while.
    async fn drain(&mut self, reader: &mut Replies, buffer: &mut BytesMut) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < DRAIN_LIMIT {
            buffer.clear();
            buffer.reserve(READ_BYTES);
            match reader.read(buffer, DRAIN_PAUSE).await {
                Ok(0) | Err(_) => break,
                Ok(_) => self.take_in(buffer, true).await?,
            }
        }
        Ok(())
    }

    async fn take_in(&mut self, data: &[u8], open: bool) -> Result<()> {
        let Some(intake) = &mut self.intake else { return Ok(()) };
        let full = intake.push(Timestamp::now(), data).await?;
        self.keep(full, Commit::of(open));
        Ok(())
    }

    async fn cut(&mut self, open: bool) -> Result<()> {
        let Some(intake) = &mut self.intake else { return Ok(()) };
        let old = intake.cut().await?;
        self.keep(old, Commit::of(open));
        Ok(())
    }

    fn tell_of_room(&self, room: bool) {
        if room {
            self.cx.step("the spool has room again");
        } else {
            self.cx.warn(format!(
                "{} bytes wait to be archived, as many as may: nothing more is received until the repository takes \
                 some, and the server drops us when its output buffer for replicas is full",
                self.spooled()
            ));
        }
    }

    /// The snapshot that the held segments follow is there, or is not.
    fn committed(&mut self, taken: Result<Manifest>) -> Result<()> {
        match taken {
            Ok(manifest) => {
                self.because = None;
                self.cx.step(format!("took the snapshot {}; following", manifest.id));
                if let Some(position) = manifest.source(self.cx.source()).and_then(|record| record.position.clone())
                    && let Position::Replication { offset, .. } = position
                {
                    self.durable = offset;
                }
                while let Some(segment) = self.held.pop_front() {
                    self.keeper.keep(segment);
                }
                Ok(())
            }
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    fn give_up(&mut self) {
        self.held.clear();
        self.intake = None;
    }

    /// The offset that the server may know of.
    fn durable(&mut self) -> u64 {
        let progress = self.keeper.progress();
        let epoch = self.intake.as_ref().map_or(self.epoch, Intake::epoch);
        if progress.epoch == epoch && progress.bytes > 0 {
            self.durable = self.durable.max(progress.end);
        }
        self.durable
    }

    /// What was received becomes the last segment.
    pub(super) async fn finish(mut self) -> Result<()> {
        let last = match &mut self.intake {
            Some(intake) => intake.cut().await?,
            None => None,
        };
        self.keep(last, Commit::Done);
        self.keeper.finish().await
    }
}

/// Whether the snapshot that a segment follows is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    Done,
    Open,
}

impl Commit {
    fn of(open: bool) -> Self {
        if open { Self::Open } else { Self::Done }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
