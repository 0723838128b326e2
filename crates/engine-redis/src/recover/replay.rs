//! The replication stream as a server wrote it, cut where a recovery ends, in the form of an append-only file.
//!
//! Both are the same thing, commands in RESP; only what concerns the link itself (PING, REPLCONF, messages) is left out.
//! Invariant: what is written ends after a whole command, and never within a transaction.

use std::io::{self, Seek, Write};

use backup_core::error::{Error, ErrorKind, Result};
use serde::Serialize;

use super::command::{Fate, Parser};

/// Where a replay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Reached {
    /// The offset after the last command.
    pub(crate) offset: u64,
    /// Commands that change data.
    pub(crate) commands: u64,
    /// The highest database that was selected.
    pub(crate) database: u32,
    /// Whether a transaction, or a command, had only begun, and was left out.
    pub(crate) torn: bool,
}

/// A place to write to that can be set back.
pub(crate) trait Spool: Write + Send {
    /// Forgets what was written after the first `length` bytes.
    fn set_length(&mut self, length: u64) -> io::Result<()>;
}

impl Spool for io::BufWriter<std::fs::File> {
    fn set_length(&mut self, length: u64) -> io::Result<()> {
        self.flush()?;
        let file = self.get_mut();
        file.set_len(length)?;
        file.seek(io::SeekFrom::Start(length)).map(|_| ())
    }
}

impl Spool for io::Sink {
    fn set_length(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// See the module. Bytes go in by [`Write`].
pub(crate) struct Replay {
    out: Box<dyn Spool>,
    /// Bytes that are not to be looked at.
    skip: u64,
    position: u64,
    limit: u64,
    parser: Parser,
    /// Written, and written up to the last border.
    written: u64,
    kept: u64,
    transaction: Transaction,
    /// Commands since the last border.
    open: u64,
    reached: Reached,
    /// What is wrong with the stream.
    failure: Option<Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
}

impl Replay {
    /// From `offset`, a border between commands, to `limit` at most. `begin` is written first.
    pub(crate) fn new(mut out: Box<dyn Spool>, offset: u64, limit: u64, begin: &[u8]) -> Result<Self> {
        out.write_all(begin).map_err(|source| Error::from_io("cannot write the stream", source))?;
        let written = begin.len() as u64;
        Ok(Self {
            out,
            skip: 0,
            position: offset,
            limit,
            parser: Parser::default(),
            written,
            kept: written,
            transaction: Transaction::None,
            open: 0,
            reached: Reached { offset, ..Reached::default() },
            failure: None,
        })
    }

    /// The next `bytes` that come are not looked at.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.skip = bytes;
    }

    /// Why a write failed, when it was not for the disk.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Cuts what was written after the last border.
    pub(crate) fn finish(&mut self) -> Result<Reached> {
        let failed = |source| Error::from_io("cannot write the stream", source);
        self.out.set_length(self.kept).map_err(failed)?;
        self.out.flush().map_err(failed)?;
        let torn = self.transaction == Transaction::Open || self.reached.offset != self.position;
        Ok(Reached { torn, ..self.reached })
    }

    fn take(&mut self, mut data: &[u8]) -> io::Result<()> {
        let skipped = usize::try_from(self.skip).map_or(data.len(), |skip| skip.min(data.len()));
        self.skip -= skipped as u64;
        data = &data[skipped..];
        let room = usize::try_from(self.limit - self.position).unwrap_or(usize::MAX);
        data = &data[..data.len().min(room)];
        while !data.is_empty() {
            let step = match self.parser.step(data) {
                Ok(step) => step,
                Err(why) => {
                    let message = format!("what was archived is no replication stream: {why}");
                    self.failure = Some(Error::new(ErrorKind::Damaged, message).with("offset", self.position));
                    return Err(io::ErrorKind::InvalidData.into());
                }
            };
            let (piece, rest) = data.split_at(step.bytes);
            self.position += piece.len() as u64;
            data = rest;
            match self.parser.fate() {
                Fate::Unknown => {}
                Fate::LeftOut => self.parser.raw.clear(),
                Fate::Kept => self.write_piece(piece)?,
            }
            if step.ended {
                self.end_command();
            }
        }
        Ok(())
    }

    /// What was held until the command was known, or the next piece of it.
    fn write_piece(&mut self, piece: &[u8]) -> io::Result<()> {
        let held = std::mem::take(&mut self.parser.raw);
        let bytes = if held.is_empty() { piece } else { &held };
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn end_command(&mut self) {
        let kept = self.parser.fate() == Fate::Kept;
        let words = std::mem::take(&mut self.parser).words;
        let is = |name: &str| words.first().is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes()));
        if is("SELECT") {
            let database = words.get(1).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
            self.reached.database = self.reached.database.max(database.unwrap_or(0));
        } else if is("MULTI") {
            self.transaction = Transaction::Open;
        } else if is("EXEC") {
            self.transaction = Transaction::None;
        } else {
            self.open += u64::from(kept);
        }
        if self.transaction == Transaction::None {
            self.kept = self.written;
            self.reached.offset = self.position;
            self.reached.commands += std::mem::take(&mut self.open);
        }
    }
}

impl Write for Replay {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.take(data).map(|()| data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("position", &self.position).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Spool for Kept {
        fn set_length(&mut self, length: u64) -> io::Result<()> {
            self.0.lock().unwrap().truncate(length as usize);
            Ok(())
        }
    }

    fn resp(command: &str) -> Vec<u8> {
        let words: Vec<&str> = command.split(' ').collect();
        let word = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
        (format!("*{}\r\n", words.len()) + &words.iter().map(word).collect::<String>()).into_bytes()
    }

    /// What is kept of `commands` up to `limit`, handed over in pieces of `piece` bytes.
    fn replay(commands: &[&str], limit: usize, piece: usize) -> (String, Reached) {
        let kept = Kept::default();
        let mut replay = Replay::new(Box::new(kept.clone()), 100, 100 + limit as u64, b"").unwrap();
        let stream: Vec<u8> = commands.iter().flat_map(|command| resp(command)).collect();
        for piece in stream.chunks(piece) {
            replay.write_all(piece).unwrap();
        }
        let reached = replay.finish().unwrap();
        let bytes = kept.0.lock().unwrap().clone();
        (String::from_utf8(bytes).unwrap(), reached)
    }

    fn joined(commands: &[&str]) -> String {
        String::from_utf8(commands.iter().flat_map(|command| resp(command)).collect()).unwrap()
    }

    const STREAM: [&str; 12] = [
        "SELECT 3",
        "SET a 1",
        "PING",
        "multi",
        "SET b 2",
        "PUBLISH c hello",
        "SET d 4",
        "EXEC",
        "REPLCONF GETACK *",
        "SELECT 12",
        "DEL a",
        "SPUBLISH c x",
    ];

    #[test]
    fn it_ends_after_whole_commands_and_never_within_a_transaction() {
        // After which number of commands of the stream each border lies.
        let borders = [1, 2, 3, 8, 9, 10, 11, 12];
        let total = joined(&STREAM).len();
        for limit in 0..=total {
            let whole = |count: &&usize| joined(&STREAM[..**count]).len() <= limit;
            let count = borders.iter().take_while(whole).last().copied().unwrap_or(0);
            let expected: Vec<&str> = STREAM[..count]
                .iter()
                .copied()
                .filter(|command| {
                    !["PING", "PUBLISH", "REPLCONF", "SPUBLISH"].iter().any(|name| command.starts_with(name))
                })
                .collect();
            for piece in [1, 3, 7, 1000] {
                let (kept, reached) = replay(&STREAM, limit, piece);
                assert_eq!(kept, joined(&expected), "{limit} in pieces of {piece}");
                assert_eq!(reached.offset, 100 + joined(&STREAM[..count]).len() as u64, "{limit}");
                assert_eq!(reached.torn, limit != joined(&STREAM[..count]).len(), "{limit}");
            }
        }
        let (_, reached) = replay(&STREAM, total, 5);
        assert_eq!((reached.commands, reached.database), (4, 12));
    }

    #[test]
    fn what_is_no_stream_is_refused_with_its_offset() {
        for text in [
            "+OK\r\n",
            "*0\r\n",
            "*1\r\n:1\r\n",
            "*1\r\n$1\r\nabc\r\n",
            "*x\r\n",
            "*1\n",
            "****************************************",
        ] {
            let mut replay = Replay::new(Box::new(io::sink()), 7, u64::MAX, b"").unwrap();
            replay.write_all(text.as_bytes()).unwrap_err();
            let error = replay.failure().unwrap();
            assert!(error.to_string().contains("no replication stream"), "{text}: {error}");
        }
    }

    #[test]
    fn words_of_any_length_pass() {
        let long = "x".repeat(100_000);
        let command = format!("SET {long} {long}");
        let (kept, reached) = replay(&[&command, ""], 1 << 20, 999);
        assert_eq!(kept.len(), resp(&command).len() + resp("").len());
        assert_eq!(reached.commands, 2);
    }
}
