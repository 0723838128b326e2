//! An RDB that a follower receives on a connection which it keeps, and hands over piece by piece.
//!
//! Invariant: the end comes only with the evidence; a follower that fails before is an error here.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::position::Position;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::Replication;

/// How many pieces of [`PIECE_BYTES`](super::PIECE_BYTES) may wait.
const QUEUE: usize = 4;

#[derive(Debug)]
enum Message {
    Piece(Bytes),
    End(Evidence),
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Handed {
    messages: mpsc::Receiver<Message>,
    evidence: Option<Evidence>,
    position: Position,
    told: Timestamp,
}

/// The giving end.
#[derive(Debug)]
pub(crate) struct Hand(mpsc::Sender<Message>);

/// Both ends, for an RDB of this position, which the server had come to by `told`.
pub(crate) fn hand_over(position: Position, told: Timestamp) -> (Hand, Handed) {
    let (sender, messages) = mpsc::channel(QUEUE);
    (Hand(sender), Handed { messages, evidence: None, position, told })
}

impl Hand {
    /// Hands over the whole RDB.
    ///
    /// # Errors
    /// Those of the connection, and when nobody takes it any more.
    pub(crate) async fn give(self, rdb: &mut Replication) -> Result<()> {
        while let Some(piece) = rdb.next().await? {
            self.send(Message::Piece(piece)).await?;
        }
        self.send(Message::End(rdb.evidence())).await
    }

    async fn send(&self, message: Message) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::Incomplete, "the snapshot was given up");
        self.0.send(message).await.map_err(gone)
    }
}

impl Handed {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.evidence.is_some() {
            return Ok(None);
        }
        match self.messages.recv().await {
            Some(Message::Piece(piece)) => Ok(Some(piece)),
            Some(Message::End(evidence)) => {
                self.evidence = Some(evidence);
                Ok(None)
            }
            None => {
                Err(Error::new(ErrorKind::Incomplete, "the follower lost the server before the snapshot was whole")
                    .retry_later())
            }
        }
    }

    pub(crate) fn evidence(&self) -> Evidence {
        // Asked for before the end, it contradicts whatever was written.
        self.evidence.clone().unwrap_or(Evidence::ExactLength(u64::MAX))
    }

    pub(crate) fn position(&self) -> Position {
        self.position.clone()
    }

    pub(crate) fn told(&self) -> Timestamp {
        self.told
    }
}
