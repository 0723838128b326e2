//! LZF, as LibLZF writes it (redis/src/lzf_d.c): runs of literals, and copies of at most 264 bytes from at most 8 KiB back.
//!
//! Invariant: the window holds what copies may refer to and what nobody has drawn yet, and never more than
//! [`WINDOW_BYTES`] plus one copy.

use backup_core::Result;

use super::input::Input;

/// How far back a copy may reach.
const REACH_BYTES: usize = 8 * 1024;
/// When the window has grown so long, it is cut back to what copies may reach.
const WINDOW_BYTES: usize = 64 * 1024;
/// The most that three stored bytes can become.
const COPY_MAX: u64 = 264;

/// Whether `stored` compressed bytes can become `plain` ones: each three become 264 at most.
pub(super) fn plausible(stored: u64, plain: u64) -> bool {
    plain <= stored.saturating_mul(COPY_MAX / 3) && (stored == 0) == (plain == 0)
}

/// How far a compressed string was read. Its window is the input's.
pub(super) struct Progress {
    stored: u64,
    /// Plain bytes that were not produced yet.
    to_make: u64,
    /// Where in the window the bytes begin that were produced but not drawn.
    drawn: usize,
    /// Plain bytes not drawn yet.
    left: u64,
}

impl Progress {
    pub(super) fn new(stored: u64, plain: u64) -> Self {
        Self { stored, to_make: plain, drawn: 0, left: plain }
    }

    /// Plain bytes still to be drawn.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Stored bytes that were not used.
    pub(super) fn stored_left(&self) -> u64 {
        self.stored
    }

    /// Draws at least one and at most `max` plain bytes.
    pub(super) fn pull<'w>(&mut self, input: &'w mut Input<'_>, max: usize) -> Result<&'w [u8]> {
        if self.drawn == input.window.len() {
            self.cut(&mut input.window);
            while input.window.len() < WINDOW_BYTES && self.to_make > 0 {
                self.step(input)?;
            }
        }
        let end = input.window.len().min(self.drawn.saturating_add(max));
        let piece = &input.window[self.drawn..end];
        self.drawn = end;
        self.left -= piece.len() as u64;
        Ok(piece)
    }

    fn cut(&mut self, window: &mut Vec<u8>) {
        if window.len() >= WINDOW_BYTES {
            window.drain(..window.len() - REACH_BYTES);
            self.drawn = window.len();
        }
    }

    fn byte(&mut self, input: &mut Input<'_>) -> Result<usize> {
        if self.stored == 0 {
            return Err(input.damaged("a compressed string is shorter than it claims"));
        }
        self.stored -= 1;
        Ok(usize::from(input.byte()?))
    }

    /// One literal run or one copy.
    fn step(&mut self, input: &mut Input<'_>) -> Result<()> {
        let control = self.byte(input)?;
        if control < 32 {
            self.literals(input, control + 1)
        } else {
            let mut length = control >> 5;
            if length == 7 {
                length += self.byte(input)?;
            }
            let distance = ((control & 0x1f) << 8 | self.byte(input)?) + 1;
            self.copy(input, length + 2, distance)
        }
    }

    fn made(&mut self, input: &Input<'_>, count: usize) -> Result<()> {
        let left = self.to_make.checked_sub(count as u64);
        self.to_make = left.ok_or_else(|| input.damaged("a compressed string is longer than it claims"))?;
        Ok(())
    }

    fn literals(&mut self, input: &mut Input<'_>, count: usize) -> Result<()> {
        self.made(input, count)?;
        let left = self.stored.checked_sub(count as u64);
        self.stored = left.ok_or_else(|| input.damaged("a compressed string is shorter than it claims"))?;
        let mut bytes = [0; 32];
        input.fill(&mut bytes[..count])?;
        input.window.extend_from_slice(&bytes[..count]);
        Ok(())
    }

    fn copy(&mut self, input: &mut Input<'_>, count: usize, distance: usize) -> Result<()> {
        self.made(input, count)?;
        let Some(from) = input.window.len().checked_sub(distance) else {
            return Err(input.damaged("a compressed string refers to what lies before its beginning"));
        };
        if distance >= count {
            input.window.extend_from_within(from..from + count);
        } else {
            // The copy overlaps what it writes: byte by byte it repeats itself.
            for position in from..from + count {
                input.window.push(input.window[position]);
            }
        }
        Ok(())
    }
}
