//! The write-ahead log as the server streams it: `START_REPLICATION` (PostgreSQL manual, "Streaming Replication Protocol").
//!
//! Invariant: a position is confirmed only when the caller says so; the server may forget what lies before it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use bytes::{BufMut, Bytes, BytesMut};

use super::connection::{Connection, RawRows};
use super::copy::{Answer, Flow};
use super::frame::Body;
use super::replication::{lsn, number, slot_name};

/// 2000-01-01, from which the server counts microseconds, in seconds of Unix time.
const EPOCH_SECONDS: u64 = 946_684_800;
const STATUS_BYTES: usize = 34;

/// Where the log goes on after the end of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextTimeline {
    pub(crate) timeline: u32,
    /// Where the next timeline begins: the end of this one.
    pub(crate) start: Lsn,
}

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    /// A piece of the log, of up to 128 KiB. Pieces follow one another without gaps, and may cross a segment's border
    /// only at their own borders: a piece never spans two segments.
    Wal {
        /// The position of its first byte.
        start: Lsn,
        /// Up to where the server has log to send.
        end: Lsn,
        data: Bytes,
    },
    /// A sign of life. When `reply` is set, the server wants one, too: send [`WalStream::confirm`] soon.
    Keepalive { end: Lsn, reply: bool },
    /// The timeline ended: [`WalStream::finish`] tells where the log goes on.
    Ended,
    /// The server stops. It waited until everything that it sent was confirmed.
    Stopped,
}

/// How `START_REPLICATION` begins.
#[derive(Debug)]
pub(crate) enum Started {
    Streaming(WalStream),
    /// There is nothing to stream: the timeline ends exactly where it should begin.
    Ended(Connection, Option<NextTimeline>),
}

/// Whether the server shall answer a confirmation at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    NotNeeded,
    Requested,
}

/// A running stream. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct WalStream {
    connection: Connection,
    ended: bool,
}

impl WalStream {
    /// Begins at `from`, which should be the start of a segment, on `timeline`. With a slot the server keeps what is not
    /// confirmed; without one, what it happens to have.
    ///
    /// # Errors
    /// The SQLSTATE 58P01 ([`ErrorKind::NotFound`]) when the log at `from` is gone; 55006 ([`ErrorKind::Busy`]) when
    /// somebody else reads the slot.
    pub(crate) async fn start(
        mut connection: Connection,
        slot: Option<&str>,
        from: Lsn,
        timeline: u32,
    ) -> Result<Started> {
        let slot =
            slot.map(|name| slot_name(name).map(|name| format!("SLOT {name} "))).transpose()?.unwrap_or_default();
        connection.begin(&format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}")).await?;
        match connection.answer().await? {
            Answer::CopyBoth => Ok(Started::Streaming(Self { connection, ended: false })),
            Answer::Rows(rows) => {
                let next = next_timeline(&rows)?;
                finish(&mut connection, None).await?;
                Ok(Started::Ended(connection, next))
            }
            _ => Err(Error::new(ErrorKind::Unsupported, "the server does not stream its log")),
        }
    }

    /// What comes next. Cancel safe.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the connection ended; what the server reports.
    pub(crate) async fn next(&mut self) -> Result<Received> {
        if self.ended {
            return Err(Error::new(ErrorKind::Internal, "a stream is read past its end"));
        }
        let data = match self.connection.flow().await? {
            Flow::Data(data) => data,
            end => {
                self.ended = true;
                return Ok(if matches!(end, Flow::Stopped) { Received::Stopped } else { Received::Ended });
            }
        };
        let mut body = Body(data);
        match body.u8()? {
            b'w' => {
                let (start, end, _sent) = (Lsn(body.u64()?), Lsn(body.u64()?), body.i64()?);
                Ok(Received::Wal { start, end, data: body.0 })
            }
            b'k' => {
                let (end, _sent) = (Lsn(body.u64()?), body.i64()?);
                Ok(Received::Keepalive { end, reply: body.u8()? != 0 })
            }
            other => {
                let other = char::from(other).escape_default().to_string();
                Err(Error::new(ErrorKind::Unsupported, format!("the log has a message of type `{other}`")))
            }
        }
    }

    /// Tells the server how far the log is written and how far it is on disk: from `flushed` on, the slot keeps it. Say so
    /// only after an `fsync`. Not cancel safe.
    pub(crate) async fn confirm(&mut self, written: Lsn, flushed: Lsn, reply: Reply) -> Result<()> {
        let mut status = BytesMut::with_capacity(STATUS_BYTES);
        status.put_u8(b'r');
        status.put_u64(written.0);
        status.put_u64(flushed.0);
        // We apply nothing.
        status.put_u64(0);
        status.put_i64(server_time(SystemTime::now()));
        status.put_u8(u8::from(reply == Reply::Requested));
        self.connection.send_data(&status).await?;
        self.connection.flush().await
    }

    /// Stops in order, and takes the session back. What the server sends meanwhile is dropped.
    pub(crate) async fn stop(mut self) -> Result<Connection> {
        if !self.ended {
            self.connection.end_data().await?;
            loop {
                match self.connection.flow().await? {
                    Flow::Data(_) => {}
                    Flow::Done => break,
                    Flow::Stopped => return Ok(self.connection),
                }
            }
            finish(&mut self.connection, None).await?;
        }
        Ok(self.connection)
    }

    /// After [`Received::Ended`]: the session, and where the log goes on; nowhere when the server says no more.
    pub(crate) async fn finish(mut self) -> Result<(Connection, Option<NextTimeline>)> {
        self.connection.end_data().await?;
        let next = finish(&mut self.connection, None).await?;
        Ok((self.connection, next))
    }
}

/// Reads up to `ReadyForQuery`; the rows before it, when there are any, tell the next timeline.
async fn finish(connection: &mut Connection, mut next: Option<NextTimeline>) -> Result<Option<NextTimeline>> {
    loop {
        match connection.answer().await? {
            Answer::Rows(rows) => next = next_timeline(&rows)?.or(next),
            Answer::Ready => return Ok(next),
            _ => return Err(Error::new(ErrorKind::Unsupported, "the end of the log was not understood")),
        }
    }
}

fn next_timeline(rows: &RawRows) -> Result<Option<NextTimeline>> {
    let Some(row) = rows.first() else { return Ok(None) };
    let text =
        |column: usize| row.get(column).cloned().flatten().map(|text| String::from_utf8_lossy(&text).into_owned());
    let start = lsn(text(1).as_deref(), "the next timeline's start")?;
    Ok(Some(NextTimeline { timeline: number(text(0), "the next timeline")?, start }))
}

/// As the server counts.
fn server_time(time: SystemTime) -> i64 {
    let epoch = UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS);
    time.duration_since(epoch).ok().and_then(|since| i64::try_from(since.as_micros()).ok()).unwrap_or(0)
}
