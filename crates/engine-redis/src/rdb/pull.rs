//! Bytes of a known length that are drawn piece by piece: a string of an RDB, or an element inside a packed one.
//!
//! Invariant: nothing here allocates by a length that the data claims; only what arrived is held.

use std::io::Write;

use backup_core::{Error, ErrorKind, Result};

/// The longest text that a number may have, in bytes.
const NUMBER_TEXT_MAX: u64 = 128;

/// A run of bytes whose length is known before it is read.
pub(super) trait Pull {
    /// How many bytes are still to come.
    fn left(&self) -> u64;
    /// At least one and at most `max` of them; never called with nothing left.
    fn pull(&mut self, max: usize) -> Result<&[u8]>;
    /// Damage at the place that was just read.
    fn damaged(&self, what: &'static str) -> Error;
}

impl dyn Pull + '_ {
    /// `N` bytes, or damage.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while filled < N {
            if self.left() == 0 {
                return Err(self.damaged("a packed value ends in the middle"));
            }
            let piece = self.pull(N - filled)?;
            bytes[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        Ok(bytes)
    }

    /// One byte, or damage.
    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Passes over the next `count` bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            if self.left() == 0 {
                return Err(self.damaged("a packed value ends in the middle"));
            }
            count -= self.pull(usize::try_from(count).unwrap_or(usize::MAX))?.len() as u64;
        }
        Ok(())
    }
}

/// A packed value, and the element of it that is being drawn.
pub(super) struct Within<'a> {
    pub(super) packed: &'a mut (dyn Pull + 'a),
    /// Bytes of the element that nobody drew yet.
    left: u64,
}

impl<'a> Within<'a> {
    pub(super) fn new(packed: &'a mut (dyn Pull + 'a)) -> Self {
        Self { packed, left: 0 }
    }

    /// Passes over what nobody drew of the element.
    pub(super) fn leave(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.left);
        self.packed.skip(left)
    }

    /// The next `length` bytes as an element; `too_long` is what is damaged when there are fewer.
    pub(super) fn enter(&mut self, length: u64, too_long: &'static str) -> Result<Item<'_>> {
        if length > self.packed.left() {
            return Err(self.packed.damaged(too_long));
        }
        self.left = length;
        Ok(Item::Bytes(self))
    }
}

impl Pull for Within<'_> {
    fn left(&self) -> u64 {
        self.left
    }

    fn pull(&mut self, max: usize) -> Result<&[u8]> {
        let piece = self.packed.pull(usize::try_from(self.left).unwrap_or(usize::MAX).min(max))?;
        self.left -= piece.len() as u64;
        Ok(piece)
    }

    fn damaged(&self, what: &'static str) -> Error {
        self.packed.damaged(what)
    }
}

/// One element: an integer, which Redis stores as such, or bytes.
pub(super) enum Item<'a> {
    /// A number; its text is its decimal form.
    Integer(i64),
    /// Bytes, to be drawn from the source.
    Bytes(&'a mut (dyn Pull + 'a)),
}

impl Item<'_> {
    /// Its length as text.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Integer(number) => decimal_width(*number),
            Self::Bytes(source) => source.left(),
        }
    }

    /// Hands out its bytes, piece by piece.
    pub(super) fn each(self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Integer(number) => take(number.to_string().as_bytes()),
            Self::Bytes(source) => {
                while source.left() > 0 {
                    take(source.pull(usize::MAX)?)?;
                }
                Ok(())
            }
        }
    }

    /// Writes its bytes.
    pub(super) fn copy_to(self, out: &mut dyn Write) -> Result<()> {
        self.each(&mut |piece| out.write_all(piece).map_err(cannot_write))
    }

    /// Its bytes, which are few: nothing above `limit` is read.
    pub(super) fn small(self, limit: u64, what: &'static str) -> Result<Vec<u8>> {
        if let Self::Bytes(source) = &self
            && source.left() > limit
        {
            return Err(source.damaged(what));
        }
        let mut bytes = Vec::new();
        self.each(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The integer that it is, or whose text it is.
    pub(super) fn integer(self) -> Result<i64> {
        match self {
            Self::Integer(number) => Ok(number),
            Self::Bytes(source) => {
                let what = "an integer was expected";
                let text = Item::Bytes(source).small(NUMBER_TEXT_MAX, what)?;
                let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
                number.ok_or_else(|| Error::new(ErrorKind::Damaged, what))
            }
        }
    }

    /// The text of a floating-point number that it must be.
    pub(super) fn number_text(self) -> Result<Vec<u8>> {
        if let Self::Integer(number) = self {
            return Ok(number.to_string().into_bytes());
        }
        let what = "a score is not a number";
        let text = self.small(NUMBER_TEXT_MAX, what)?;
        let number: Option<f64> = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        if number.is_some_and(|number| !number.is_nan()) { Ok(text) } else { Err(Error::new(ErrorKind::Damaged, what)) }
    }
}

/// A row of elements.
pub(super) trait Elements {
    /// The next element, when there is one. What is left of the one before is passed over.
    fn next(&mut self) -> Result<Option<Item<'_>>>;
    /// Damage at the place that was just read.
    fn damage(&self, what: &'static str) -> Error;

    /// The next element, which must be there.
    fn must(&mut self) -> Result<Item<'_>> {
        // The walk adds the offset: asking for it here would borrow twice.
        self.next()?.ok_or_else(|| Error::new(ErrorKind::Damaged, "a packed value ends in the middle of an element"))
    }
}

/// The output refused what we wrote.
pub(super) fn cannot_write(error: std::io::Error) -> Error {
    Error::from_io("cannot write the commands", error)
}

/// The temporary file of something that is too large to be held failed.
pub(super) fn cannot_spool(error: std::io::Error) -> Error {
    let kind = Error::from_io("", error);
    Error::new(
        if kind.kind() == ErrorKind::NoSpace { ErrorKind::NoSpace } else { ErrorKind::Io },
        "cannot hold a large element in a temporary file",
    )
    .hint("free some space in the folder for temporary files, or set TMPDIR to another one")
    .caused_by(kind)
}

fn decimal_width(number: i64) -> u64 {
    let digits = number.unsigned_abs().checked_ilog10().unwrap_or(0) + 1;
    u64::from(digits) + u64::from(number < 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_an_integer_is_that_of_its_text() {
        for number in [0, 1, 9, 10, 99, 100, -1, -9, -10, i64::MAX, i64::MIN] {
            assert_eq!(decimal_width(number), number.to_string().len() as u64, "{number}");
        }
    }
}
