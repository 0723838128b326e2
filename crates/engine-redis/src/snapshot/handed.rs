//! An RDB that a follower receives on a connection which it keeps, and hands over piece by piece. What the taker is too
//! slow for waits in files without names: the server must get rid of its snapshot before it can send the stream, and gives a
//! replica up for which it must keep too much of that.
//!
//! Invariant: the end comes only with the evidence; a follower that fails before is an error here.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::position::Position;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Notify;

use super::{PIECE_BYTES, Replication};

/// So many pieces wait in memory; more wait in files.
const IN_MEMORY: usize = 4;
/// A file is gone once it is read: so large it gets.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Handed {
    queue: Arc<Queue>,
    evidence: Option<Evidence>,
    position: Position,
    told: Timestamp,
}

/// The giving end.
#[derive(Debug)]
pub(crate) struct Hand(Arc<Queue>);

/// What lies between the two.
#[derive(Debug)]
struct Queue {
    folder: PathBuf,
    /// The bytes that may wait in files.
    limit: u64,
    state: Mutex<State>,
    /// There is something to take, or there never will be.
    filled: Notify,
    /// There is room again, or nobody takes any more.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    in_files: u64,
    end: Option<Evidence>,
    giver_is_gone: bool,
    taker_is_gone: bool,
}

#[derive(Debug)]
enum Waiting {
    Piece(Bytes),
    Spooled { file: File, written: u64, read: u64 },
}

/// Both ends, for an RDB of this position, which the server had come to by `told`. Up to `limit` bytes wait in `folder`.
pub(crate) fn hand_over(position: Position, told: Timestamp, folder: &Path, limit: u64) -> (Hand, Handed) {
    let queue = Arc::new(Queue {
        folder: folder.to_owned(),
        limit,
        state: Mutex::default(),
        filled: Notify::new(),
        emptied: Notify::new(),
    });
    (Hand(Arc::clone(&queue)), Handed { queue, evidence: None, position, told })
}

impl Hand {
    /// Hands over the whole RDB.
    ///
    /// # Errors
    /// Those of the connection and of the disk, and when nobody takes it any more.
    pub(crate) async fn give(self, cx: &RunContext, rdb: &mut Replication) -> Result<()> {
        let mut told = false;
        while let Some(piece) = rdb.next().await? {
            while !self.0.put(&piece)? {
                if !std::mem::replace(&mut told, true) {
                    cx.warn("the repository takes the snapshot slowly and the spool is full: the server has to wait");
                }
                self.0.emptied.notified().await;
            }
        }
        self.0.state().end = Some(rdb.evidence());
        Ok(())
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.0.state().giver_is_gone = true;
        self.0.filled.notify_one();
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.queue.state().taker_is_gone = true;
        self.queue.emptied.notify_one();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece; `false` when there is no room.
    fn put(&self, piece: &Bytes) -> Result<bool> {
        let failed = |source| Error::io("cannot spool the snapshot", &self.folder, source);
        let mut state = self.state();
        if state.taker_is_gone {
            return Err(Error::new(ErrorKind::Incomplete, "the snapshot was given up"));
        }
        if state.in_files == 0 && state.waiting.len() < IN_MEMORY {
            state.waiting.push_back(Waiting::Piece(piece.clone()));
        } else {
            let length = piece.len() as u64;
            if state.in_files + length > self.limit {
                return Ok(false);
            }
            let has_room =
                matches!(state.waiting.back(), Some(Waiting::Spooled { written, .. }) if *written < FILE_BYTES);
            if !has_room {
                let file = tempfile::tempfile_in(&self.folder).map_err(failed)?;
                state.waiting.push_back(Waiting::Spooled { file, written: 0, read: 0 });
            }
            if let Some(Waiting::Spooled { file, written, .. }) = state.waiting.back_mut() {
                file.write_all_at(piece, *written).map_err(failed)?;
                *written += length;
            }
            state.in_files += length;
        }
        drop(state);
        self.filled.notify_one();
        Ok(true)
    }

    /// Takes the next piece; `None` when there is none now.
    fn take(&self) -> Result<Option<Bytes>> {
        let mut state = self.state();
        let piece = match state.waiting.front_mut() {
            None => return Ok(None),
            Some(Waiting::Piece(piece)) => std::mem::take(piece),
            Some(Waiting::Spooled { file, written, read }) => {
                let mut piece = vec![0; PIECE_BYTES.min((*written - *read) as usize)];
                let failed = |source| Error::io("cannot read the spooled snapshot", &self.folder, source);
                file.read_exact_at(&mut piece, *read).map_err(failed)?;
                *read += piece.len() as u64;
                if *read < *written {
                    state.in_files -= piece.len() as u64;
                    drop(state);
                    self.emptied.notify_one();
                    return Ok(Some(piece.into()));
                }
                state.in_files -= piece.len() as u64;
                piece.into()
            }
        };
        state.waiting.pop_front();
        drop(state);
        self.emptied.notify_one();
        Ok(Some(piece))
    }
}

impl Handed {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.evidence.is_none() {
            if let Some(piece) = self.queue.take()? {
                return Ok(Some(piece));
            }
            {
                let mut state = self.queue.state();
                if !state.waiting.is_empty() {
                    continue;
                }
                if let Some(end) = state.end.take() {
                    self.evidence = Some(end);
                    break;
                }
                if state.giver_is_gone {
                    let message = "the follower lost the server before the snapshot was whole";
                    return Err(Error::new(ErrorKind::Incomplete, message).retry_later());
                }
            }
            self.queue.filled.notified().await;
        }
        Ok(None)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(folder: &Path, limit: u64) -> (Hand, Handed) {
        hand_over(Position::Replication { id: "x".to_owned(), offset: 0 }, Timestamp::UNIX_EPOCH, folder, limit)
    }

    /// Pieces of every size come out as they went in, whoever is faster; and no more wait than may.
    #[tokio::test]
    async fn what_goes_in_comes_out_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for (limit, taken_between) in [(1 << 30, 0), (1 << 20, 1), (1 << 20, 7)] {
            let (hand, mut handed) = ends(folder.path(), limit);
            let (mut given, mut taken) = (Vec::new(), Vec::new());
            for number in 0..60usize {
                let piece = Bytes::from(vec![number as u8; 1000 * number + 1]);
                while !hand.0.put(&piece).unwrap() {
                    taken.extend_from_slice(&handed.next().await.unwrap().unwrap());
                }
                given.extend_from_slice(&piece);
                for _ in 0..taken_between {
                    if let Some(piece) = handed.queue.take().unwrap() {
                        taken.extend_from_slice(&piece);
                    }
                }
                assert!(hand.0.state().in_files <= limit);
            }
            hand.0.state().end = Some(Evidence::ExactLength(1));
            drop(hand);
            while let Some(piece) = handed.next().await.unwrap() {
                taken.extend_from_slice(&piece);
            }
            assert!(given == taken, "limit {limit}, {taken_between} taken between");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "spool files have no names");
    }

    #[tokio::test]
    async fn either_end_learns_that_the_other_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (hand, mut handed) = ends(folder.path(), 1000);
        hand.0.put(&Bytes::from_static(b"begun")).unwrap();
        drop(hand);
        assert!(handed.next().await.unwrap().is_some());
        assert_eq!(handed.next().await.unwrap_err().kind(), ErrorKind::Incomplete);
        let (hand, handed) = ends(folder.path(), 1000);
        drop(handed);
        assert_eq!(hand.0.put(&Bytes::from_static(b"x")).unwrap_err().kind(), ErrorKind::Incomplete);
    }
}
