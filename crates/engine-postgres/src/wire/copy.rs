//! Commands that answer with data besides rows: step by step, so that whoever reads them decides what comes next.
//!
//! Invariant: [`Answer::Ready`] is the only proof of success; everything before it is preliminary.

use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use postgres_protocol::message::frontend::{self, CopyData};

use super::connection::{Connection, MAX_ROWS, RawRows, raw_row};
use super::frame::unexpected;

/// What a command answers next.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The rows of one result, which is complete. Empty, too, when a step ended that has no rows.
    Rows(RawRows),
    /// Data follows: read it with [`Connection::copy_data`].
    CopyOut,
    /// Data is wanted: send it with [`Connection::send_data`].
    CopyIn,
    /// Data flows both ways.
    CopyBoth,
    /// The command has succeeded.
    Ready,
}

/// What the server sends after [`Answer::CopyBoth`].
#[derive(Debug)]
pub(crate) enum Flow {
    Data(Bytes),
    /// It has no more data; the command goes on.
    Done,
    /// It stops, in order: the command was completed in the midst of the data, and the session is over.
    Stopped,
}

impl Connection {
    /// Begins a command; its answers follow one by one.
    pub(crate) async fn begin(&mut self, command: &str) -> Result<()> {
        self.send(command).await
    }

    /// The next answer.
    ///
    /// # Errors
    /// What the server refused; the session is ready again then, unless the server ended it.
    pub(crate) async fn answer(&mut self) -> Result<Answer> {
        let mut rows = RawRows::new();
        loop {
            let frame = self.next("the server does not do what it was asked").await?;
            match frame.tag {
                b'T' | b'I' => {}
                b'D' if rows.len() == MAX_ROWS => {
                    return Err(Error::new(ErrorKind::Unsupported, format!("an answer has more than {MAX_ROWS} rows")));
                }
                b'D' => rows.push(raw_row(frame.body)?),
                b'C' => return Ok(Answer::Rows(rows)),
                b'H' => return Ok(Answer::CopyOut),
                b'G' => return Ok(Answer::CopyIn),
                b'W' => return Ok(Answer::CopyBoth),
                b'Z' => return Ok(Answer::Ready),
                _ => return Err(unexpected(&frame, "an answer")),
            }
        }
    }

    /// The next piece of data after [`Answer::CopyOut`]; `None` when the server says that it was
    /// the last, which proves nothing. Cancel safe.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) async fn copy_data(&mut self) -> Result<Option<Bytes>> {
        let frame = self.next("the server broke off").await?;
        match frame.tag {
            b'd' => Ok(Some(frame.body)),
            b'c' => Ok(None),
            _ => Err(unexpected(&frame, "data")),
        }
    }

    /// What comes next after [`Answer::CopyBoth`]. A server that is stopped sends no end of data, but that the command is
    /// complete, once everything that it had was confirmed (`WalSndDone` in its `walsender.c`). Cancel safe.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) async fn flow(&mut self) -> Result<Flow> {
        let frame = self.next("the server broke off").await?;
        match frame.tag {
            b'd' => Ok(Flow::Data(frame.body)),
            b'c' => Ok(Flow::Done),
            b'C' => {
                self.is_over();
                Ok(Flow::Stopped)
            }
            _ => Err(unexpected(&frame, "data")),
        }
    }

    /// Sends a piece of data after [`Answer::CopyIn`] or [`Answer::CopyBoth`]. It may wait in a buffer: see
    /// [`flush`](Self::flush).
    pub(crate) async fn send_data(&mut self, data: &[u8]) -> Result<()> {
        let too_long = |source| Error::new(ErrorKind::Internal, "a piece of data is too long").caused_by(source);
        CopyData::new(data).map_err(too_long)?.write(self.framed.outbox());
        if self.framed.is_full() { self.framed.flush().await } else { Ok(()) }
    }

    /// Says that no more data comes.
    pub(crate) async fn end_data(&mut self) -> Result<()> {
        frontend::copy_done(self.framed.outbox());
        self.framed.flush().await
    }

    /// Sends what waits.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.framed.flush().await
    }
}
