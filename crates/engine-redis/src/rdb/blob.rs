//! A string of an RDB (rdb.c, `rdbGenericLoadStringObject`): plain, an integer, or compressed with LZF.
//!
//! Invariant: a compressed string is decompressed through a window, never as a whole.

use backup_core::{Error, Result};

use super::input::{Input, Length};
use super::lzf;
use super::pull::{Elements, Item, Pull};

/// How a string is stored: the answer of [`head`].
enum Head {
    Plain(u64),
    Integer(i64),
    Compressed { stored: u64, plain: u64 },
}

/// Reads what precedes a string's bytes (an integer has none).
fn head(input: &mut Input<'_>) -> Result<Head> {
    let kind = match input.length()? {
        Length::Number(length) => return Ok(Head::Plain(length)),
        Length::Encoding(kind) => kind,
    };
    Ok(match kind {
        0 => Head::Integer(i64::from(i8::from_le_bytes(input.array()?))),
        1 => Head::Integer(i64::from(i16::from_le_bytes(input.array()?))),
        2 => Head::Integer(i64::from(i32::from_le_bytes(input.array()?))),
        3 => {
            let (stored, plain) = (input.number()?, input.number()?);
            if !lzf::plausible(stored, plain) {
                return Err(input.damaged("a compressed string claims a length that it cannot have"));
            }
            Head::Compressed { stored, plain }
        }
        _ => return Err(input.damaged(format!("a string has the unknown encoding {kind}"))),
    })
}

/// Passes over a string without decompressing it.
pub(super) fn skip(input: &mut Input<'_>) -> Result<()> {
    match head(input)? {
        Head::Plain(length) | Head::Compressed { stored: length, .. } => input.skip(length),
        Head::Integer(_) => Ok(()),
    }
}

/// A string of which at most the first `limit` bytes are kept; the rest is passed over. Also returns its whole length.
pub(super) fn prefix(input: &mut Input<'_>, limit: usize) -> Result<(Vec<u8>, u64)> {
    let mut blob = Blob::open(input)?;
    let item = blob.item();
    let length = item.len();
    let mut kept = Vec::new();
    item.each(&mut |piece| {
        let room = limit - kept.len();
        kept.extend_from_slice(&piece[..piece.len().min(room)]);
        Ok(())
    })?;
    blob.close()?;
    Ok((kept, length))
}

/// The state before the first string and between two of them.
const NOTHING: State = State::Integer(0);

enum State {
    Integer(i64),
    Plain { left: u64 },
    Compressed(lzf::Progress),
}

/// An open string. [`Blob::close`] must be called after its last byte.
pub(super) struct Blob<'a, 'r> {
    input: &'a mut Input<'r>,
    state: State,
}

impl<'a, 'r> Blob<'a, 'r> {
    /// Begins to read a string.
    pub(super) fn open(input: &'a mut Input<'r>) -> Result<Self> {
        let state = begin(input)?;
        Ok(Self { input, state })
    }

    /// Ends this string and begins to read the one that follows.
    fn reopen(&mut self) -> Result<()> {
        self.finish()?;
        self.state = begin(self.input)?;
        Ok(())
    }

    /// The whole string as an element.
    pub(super) fn item(&mut self) -> Item<'_> {
        match self.state {
            State::Integer(number) => Item::Integer(number),
            _ => Item::Bytes(self),
        }
    }

    /// The string as packed bytes; an integer is none.
    pub(super) fn packed(&mut self) -> Result<&mut (dyn Pull + '_)> {
        match self.state {
            State::Integer(_) => Err(self.input.damaged("an integer stands where a packed value belongs")),
            _ => Ok(self),
        }
    }

    /// Checks that the string was whole, and passes over what nobody read.
    pub(super) fn close(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        while self.left() > 0 {
            self.pull(usize::MAX)?;
        }
        match &self.state {
            State::Compressed(progress) if progress.stored_left() > 0 => {
                Err(self.input.damaged("a compressed string is longer than it claims"))
            }
            _ => Ok(()),
        }
    }
}

fn begin(input: &mut Input<'_>) -> Result<State> {
    Ok(match head(input)? {
        Head::Integer(number) => State::Integer(number),
        Head::Plain(left) => State::Plain { left },
        Head::Compressed { stored, plain } => {
            input.window.clear();
            State::Compressed(lzf::Progress::new(stored, plain))
        }
    })
}

impl Pull for Blob<'_, '_> {
    fn left(&self) -> u64 {
        match &self.state {
            State::Integer(_) => 0,
            State::Plain { left } => *left,
            State::Compressed(progress) => progress.left(),
        }
    }

    fn pull(&mut self, max: usize) -> Result<&[u8]> {
        match &mut self.state {
            State::Integer(_) => Ok(&[]),
            State::Plain { left } => {
                let max = usize::try_from(*left).unwrap_or(usize::MAX).min(max);
                let piece = self.input.chunk(max)?;
                *left -= piece.len() as u64;
                Ok(piece)
            }
            State::Compressed(progress) => progress.pull(self.input, max),
        }
    }

    fn damaged(&self, what: &'static str) -> Error {
        self.input.damaged(what)
    }
}

/// A row of strings, each stored by itself.
pub(super) struct Strings<'a, 'r> {
    blob: Blob<'a, 'r>,
    left: u64,
}

impl<'a, 'r> Strings<'a, 'r> {
    /// The next `count` strings.
    pub(super) fn new(input: &'a mut Input<'r>, count: u64) -> Self {
        Self { blob: Blob { input, state: NOTHING }, left: count }
    }

    /// Ends the last string and gives access to what lies between two strings.
    pub(super) fn between(&mut self) -> Result<&mut Input<'r>> {
        self.blob.finish()?;
        self.blob.state = NOTHING;
        Ok(self.blob.input)
    }
}

impl Elements for Strings<'_, '_> {
    fn next(&mut self) -> Result<Option<Item<'_>>> {
        if self.left == 0 {
            self.between()?;
            return Ok(None);
        }
        self.left -= 1;
        self.blob.reopen()?;
        Ok(Some(self.blob.item()))
    }

    fn damage(&self, what: &'static str) -> Error {
        self.blob.damaged(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Result<Vec<u8>> {
        prefix(&mut Input::new(bytes), usize::MAX).map(|(text, _)| text)
    }

    #[test]
    fn strings_of_every_encoding() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"\x03abc", b"abc"),
            (b"\x00", b""),
            (b"\xc0\xfe", b"-2"),
            (b"\xc1\x00\x80", b"-32768"),
            (b"\xc2\x15\xcd\x5b\x07", b"123456789"),
            // "a", then nine more bytes from one byte back.
            (b"\xc3\x05\x0a\x00a\xe0\x00\x00", b"aaaaaaaaaa"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(text(bytes).unwrap(), expected, "{bytes:x?}");
            let mut input = Input::new(bytes);
            skip(&mut input).unwrap();
            assert!(input.at_end().unwrap(), "{bytes:x?}");
        }
    }

    #[test]
    fn wrong_strings_are_damage() {
        let cases: [(&[u8], &str); 6] = [
            (b"\xc4", "unknown encoding"),
            (b"\x05abc", "ends in the middle"),
            (b"\xc3\x03\x04\x20\x05\x00", "before its beginning"),
            (b"\xc3\x05\x05\x00a\xe0\x00\x00", "longer than it claims"),
            (b"\xc3\x05\x20\x00a\xe0\x00\x00", "shorter than it claims"),
            (b"\xc3\x01\x81\x00\x00\xff\xff\xff\xff\xff\xff", "cannot have"),
        ];
        for (bytes, expected) in cases {
            let error = text(bytes).unwrap_err();
            assert!(error.to_string().contains(expected), "{bytes:x?}: {error}");
        }
    }
}
