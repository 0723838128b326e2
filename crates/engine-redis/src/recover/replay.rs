//! The replication stream as a server wrote it, cut where a recovery ends, in the form of an append-only file.
//!
//! Both are the same thing, commands in RESP; only what concerns the link itself (PING, REPLCONF, messages) is left out.
//! Invariant: what is written ends after a whole command, and never within a transaction.

use std::io::{self, Seek, Write};

use backup_core::error::{Error, ErrorKind, Result};
use serde::Serialize;

/// Enough of a command's first words to know what it is.
const KEPT_WORDS: usize = 2;
const KEPT_BYTES: usize = 64;
/// The longest line of a header: a kind, a number, its end.
const MAX_HEADER: usize = 32;
/// The most words of a command, and the most bytes of a word, that a server takes.
const MAX_WORDS: u64 = 1 << 31;
const MAX_WORD_BYTES: u64 = 1 << 40;
/// Commands of the link, of messages that nobody hears any more, and of another server's place in a cluster.
const LEFT_OUT: [&str; 5] = ["PING", "REPLCONF", "PUBLISH", "SPUBLISH", "CLUSTER"];

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

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unknown,
    Kept,
    LeftOut,
}

/// Reads one command: `*COUNT`, then `$LENGTH` and the bytes of each word.
#[derive(Debug, Default)]
struct Parser {
    place: Within,
    line: Vec<u8>,
    words_left: u64,
    words_seen: usize,
    /// The first words, cut.
    words: Vec<Vec<u8>>,
    /// Everything, until it is known what becomes of the command.
    raw: Vec<u8>,
    known: bool,
}

/// What comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Within {
    #[default]
    Count,
    Length,
    /// The bytes of a word that are left, its end included.
    Word(u64),
}

struct Step {
    bytes: usize,
    ended: bool,
}

impl Parser {
    /// Takes some of `data`, at least a byte.
    fn step(&mut self, data: &[u8]) -> std::result::Result<Step, &'static str> {
        let step = match self.place {
            Within::Word(left) => self.word(left, data)?,
            Within::Count | Within::Length => self.header(data)?,
        };
        if !self.known {
            self.raw.extend_from_slice(&data[..step.bytes]);
            let told = |word: &Vec<u8>| word.len() >= KEPT_BYTES;
            self.known = self.words_seen > 0 || step.ended || self.words.first().is_some_and(told);
        }
        Ok(step)
    }

    fn fate(&self) -> Fate {
        if !self.known {
            return Fate::Unknown;
        }
        let left_out = |word: &Vec<u8>| LEFT_OUT.iter().any(|name| word.eq_ignore_ascii_case(name.as_bytes()));
        // No word at all: an empty line, which keeps a link alive.
        if self.words.first().is_none_or(left_out) { Fate::LeftOut } else { Fate::Kept }
    }

    fn header(&mut self, data: &[u8]) -> std::result::Result<Step, &'static str> {
        let first = self.line.first().or(data.first());
        let expected: &[u8] = if self.place == Within::Count { b"*\r\n" } else { b"$" };
        if first.is_some_and(|byte| !expected.contains(byte)) {
            return Err("a command is expected");
        }
        let end = data.iter().position(|byte| *byte == b'\n');
        let bytes = end.map_or(data.len(), |end| end + 1);
        self.line.extend_from_slice(&data[..bytes]);
        if self.line.len() > MAX_HEADER {
            return Err("a header is too long");
        }
        if end.is_none() {
            return Ok(Step { bytes, ended: false });
        }
        let line = std::mem::take(&mut self.line);
        if self.place == Within::Count && (line == b"\n" || line == b"\r\n") {
            return Ok(Step { bytes, ended: true });
        }
        let text =
            line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or("a header is no text")?;
        let number = |kind: char| text.strip_prefix(kind).and_then(|digits| digits.parse::<u64>().ok());
        if self.place == Within::Count {
            self.words_left =
                number('*').filter(|count| (1..=MAX_WORDS).contains(count)).ok_or("a command is expected")?;
            self.place = Within::Length;
        } else {
            let length = number('$').filter(|length| *length <= MAX_WORD_BYTES).ok_or("a word is expected")?;
            if self.words_seen < KEPT_WORDS {
                self.words.push(Vec::new());
            }
            self.place = Within::Word(length + 2);
        }
        Ok(Step { bytes, ended: false })
    }

    fn word(&mut self, left: u64, data: &[u8]) -> std::result::Result<Step, &'static str> {
        let bytes = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
        let left_after = left - bytes as u64;
        // The last two bytes are its end.
        for (position, byte) in data[..bytes].iter().enumerate().rev().take(2) {
            match left - position as u64 {
                2 if *byte != b'\r' => return Err("a word is longer than it says"),
                1 if *byte != b'\n' => return Err("a word is longer than it says"),
                _ => {}
            }
        }
        let content = usize::try_from(left.saturating_sub(2)).map_or(bytes, |content| content.min(bytes));
        if let Some(word) = self.words.get_mut(self.words_seen) {
            let room = KEPT_BYTES.saturating_sub(word.len());
            word.extend_from_slice(&data[..content.min(room)]);
        }
        self.place = Within::Word(left_after);
        if left_after == 0 {
            self.words_seen += 1;
            self.words_left -= 1;
            self.place = Within::Length;
        }
        Ok(Step { bytes, ended: left_after == 0 && self.words_left == 0 })
    }
}

/// How a server with `aof-timestamp-enabled yes` says in an append-only file that a second has begun: this, the seconds
/// since 1970, and the end of the line.
const SECOND: &[u8] = b"#TS:";

/// The first second that an append-only file tells, looked for in what `reader` gives. `None` also for what is no such file.
pub(crate) fn first_second(mut reader: impl io::Read) -> io::Result<Option<i64>> {
    let mut parser = Parser::default();
    let mut note: Option<Vec<u8>> = None;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = reader.read(&mut buffer)?;
        let mut data = &buffer[..count];
        if data.is_empty() {
            return Ok(None);
        }
        while let Some(first) = data.first() {
            let between = parser.place == Within::Count && parser.line.is_empty();
            if note.is_none() && !(between && *first == b'#') {
                let Ok(step) = parser.step(data) else { return Ok(None) };
                data = &data[step.bytes..];
                if step.ended {
                    parser = Parser::default();
                }
                continue;
            }
            let line = note.get_or_insert_default();
            let end = data.iter().position(|byte| *byte == b'\n');
            let bytes = end.map_or(data.len(), |end| end + 1);
            line.extend_from_slice(&data[..bytes.min(MAX_HEADER)]);
            data = &data[bytes..];
            if end.is_some() {
                let told = line.strip_prefix(SECOND).and_then(|rest| std::str::from_utf8(rest).ok());
                if let Some(second) = told.and_then(|digits| digits.trim_end().parse().ok()) {
                    return Ok(Some(second));
                }
                note = None;
            }
        }
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
    fn the_first_second_is_told_between_commands_not_within() {
        let cases = [
            ("#TS:17\r\n*1\r\n$4\r\nPING\r\n", Some(17)),
            ("*2\r\n$3\r\nGET\r\n$10\r\n#TS:5\r\n#TS\r\n#TS:18\r\n#TS:19\r\n", Some(18)),
            ("# a remark\r\n#TS:20\r\n", Some(20)),
            ("*1\r\n$4\r\nPING\r\n", None),
            ("REDIS0010", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(first_second(text.as_bytes()).unwrap(), expected, "{text}");
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
