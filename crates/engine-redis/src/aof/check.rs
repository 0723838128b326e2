//! Reading an append-only file to its end: an RDB in front when it has one, then commands (RESP), with marks of time.
//!
//! Invariant: whatever the server would refuse to load is damage; an end in the middle of a command is told, because the
//! server leaves such a command out.

use std::io::{self, BufRead, BufReader, Read};

use backup_core::error::{Error, ErrorKind, Result};

use crate::rdb::{RdbSummary, scan_preamble};

/// The longest line: a count, a length, a mark.
const LINE_BYTES: u64 = 1024;
/// The longest name that is looked at.
const NAME_BYTES: u64 = 8;
const BUFFER_BYTES: usize = 256 * 1024;
/// How an RDB begins.
const MAGICS: [&[u8]; 2] = [b"REDIS", b"VALKEY"];

/// What is in an append-only file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// The RDB that it begins with.
    pub(crate) preamble: Option<RdbSummary>,
    /// Whole commands after it.
    pub(crate) commands: u64,
    /// Whether a transaction is open at the end, or a command is cut: the server leaves that out.
    pub(crate) torn: bool,
}

/// Reads it.
///
/// # Errors
/// [`ErrorKind::Damaged`] for what is neither an RDB nor commands.
pub(crate) fn read(reader: impl Read, now_ms: i64) -> Result<Content> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    let mut content = Content::default();
    let start = reader.fill_buf().map_err(failed)?;
    if MAGICS.iter().any(|magic| start.starts_with(magic)) {
        let (summary, rest) = scan_preamble(reader, now_ms)?;
        content.preamble = Some(summary);
        commands(&mut BufReader::with_capacity(BUFFER_BYTES, rest), &mut content)?;
    } else {
        commands(&mut reader, &mut content)?;
    }
    Ok(content)
}

fn commands(reader: &mut impl BufRead, content: &mut Content) -> Result<()> {
    loop {
        match command(reader) {
            Ok(None) => return Ok(()),
            Ok(Some(name)) => {
                content.commands += 1;
                match &name.to_ascii_uppercase()[..] {
                    b"MULTI" => content.torn = true,
                    b"EXEC" => content.torn = false,
                    _ => {}
                }
            }
            Err(Fault::Cut) => {
                content.torn = true;
                return Ok(());
            }
            Err(Fault::Nonsense) => {
                let what = format!("something else than a command stands after {} commands", content.commands);
                return Err(Error::new(ErrorKind::Damaged, what));
            }
            Err(Fault::Failed(source)) => return Err(failed(source)),
        }
    }
}

enum Fault {
    /// The file ends here.
    Cut,
    Nonsense,
    Failed(io::Error),
}

/// The beginning of the name of the next command; `None` at the end.
fn command(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>, Fault> {
    let count = loop {
        let Some(line) = line(reader)? else { return Ok(None) };
        match line.split_first() {
            Some((b'#', _)) => {}
            Some((b'*', count)) => break number(count)?,
            _ => return Err(Fault::Nonsense),
        }
    };
    let mut name = Vec::new();
    for position in 0..count {
        let Some(line) = line(reader)? else { return Err(Fault::Cut) };
        let length = match line.split_first() {
            Some((b'$', length)) => number(length)?,
            _ => return Err(Fault::Nonsense),
        };
        let mut text = reader.by_ref().take(length);
        if position == 0 {
            text.by_ref().take(NAME_BYTES).read_to_end(&mut name).map_err(Fault::Failed)?;
        }
        io::copy(&mut text, &mut io::sink()).map_err(Fault::Failed)?;
        if text.limit() > 0 {
            return Err(Fault::Cut);
        }
        let mut end = Vec::new();
        reader.by_ref().take(2).read_to_end(&mut end).map_err(Fault::Failed)?;
        match &end[..] {
            b"\r\n" => {}
            b"" | b"\r" => return Err(Fault::Cut),
            _ => return Err(Fault::Nonsense),
        }
    }
    Ok(Some(name))
}

/// The next line without its end; `None` at the end of the file.
fn line(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>, Fault> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).map_err(Fault::Failed)?;
    if line.is_empty() {
        return Ok(None);
    }
    match line.strip_suffix(b"\r\n") {
        Some(whole) => Ok(Some(whole.to_vec())),
        None if line.len() as u64 >= LINE_BYTES || line.last() == Some(&b'\n') => Err(Fault::Nonsense),
        None => Err(Fault::Cut),
    }
}

fn number(digits: &[u8]) -> Result<u64, Fault> {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(Fault::Nonsense)
}

fn failed(source: io::Error) -> Error {
    Error::from_io("cannot read the append-only file", source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_and_torn_ends_are_told() {
        const SET: &str = "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n\r\n\r\n";
        const MULTI: &str = "*1\r\n$5\r\nMULTI\r\n";
        const EXEC: &str = "*1\r\n$4\r\nexec\r\n";
        let cases = [
            (String::new(), 0, false),
            (SET.repeat(3), 3, false),
            (format!("#TS:1700000000\r\n{SET}#TS:1700000001\r\n{SET}"), 2, false),
            (format!("{SET}{MULTI}{SET}{EXEC}"), 4, false),
            (format!("{SET}{MULTI}{SET}"), 3, true),
        ];
        for (text, commands, torn) in cases {
            let content = read(text.as_bytes(), 0).unwrap();
            assert_eq!((content.commands, content.torn), (commands, torn), "{text:?}");
        }
        // Cut anywhere, it is never damage, and whole only between two commands.
        let text = SET.repeat(2);
        for end in 1..text.len() {
            let content = read(&text.as_bytes()[..end], 0).unwrap();
            assert_eq!(content.torn, end != SET.len(), "cut at {end}");
        }
        for wrong in ["SET a b\r\n", "*1\r\n:3\r\n", "*x\r\n", "*1\r\n$1\r\na\r\ngarbage\n", "*1\n", "*1\r\n$1\r\nabc"]
        {
            assert_eq!(read(wrong.as_bytes(), 0).unwrap_err().kind(), ErrorKind::Damaged, "{wrong:?}");
        }
    }
}
