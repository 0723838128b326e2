//! Commands as a stream or an append-only file has them, read piece by piece without holding them.
//!
//! Invariant: memory does not depend on what is read: of a command, the beginnings of its first words are kept.

use std::io;

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

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Unknown,
    Kept,
    LeftOut,
}

/// Reads one command: `*COUNT`, then `$LENGTH` and the bytes of each word.
#[derive(Debug, Default)]
pub(super) struct Parser {
    place: Within,
    line: Vec<u8>,
    words_left: u64,
    words_seen: usize,
    /// The first words, cut.
    pub(super) words: Vec<Vec<u8>>,
    /// Everything, until it is known what becomes of the command.
    pub(super) raw: Vec<u8>,
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

pub(super) struct Step {
    pub(super) bytes: usize,
    pub(super) ended: bool,
}

impl Parser {
    /// Takes some of `data`, at least a byte.
    pub(super) fn step(&mut self, data: &[u8]) -> std::result::Result<Step, &'static str> {
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

    pub(super) fn fate(&self) -> Fate {
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
    use super::*;

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
}
