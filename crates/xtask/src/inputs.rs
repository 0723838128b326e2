//! Inputs for the fuzz targets that are the same on every machine and after every change of the code.
//!
//! Invariant: they depend on the committed seeds and on nothing else: not on time, not on coverage (a change of a parser
//! would steer it elsewhere), and those of one seed not on the other seeds. So a change fails for its own faults only;
//! looking for old ones is what `cargo xtask fuzz` is for.

use std::path::Path;

use crate::process::Result;

/// So many inputs are made of each seed, beside the seed itself.
const FROM_EACH: u64 = 500;
/// At most so many changes make an input of a seed.
const MAX_CHANGES: u64 = 5;
/// At most so many bytes are inserted or repeated at once.
const MAX_PIECE: u64 = 64;

/// Numbers at which parsers err.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    u64::MAX >> 1,
    u64::MAX,
];

/// Writes the seeds below `seeds`, and what is made of them, into the empty folder `into`. Returns how many.
pub(crate) fn write(seeds: &Path, into: &Path) -> Result<usize> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut count = 0;
    for entry in std::fs::read_dir(seeds).map_err(|error| failed(seeds, error))? {
        let entry = entry.map_err(|error| failed(seeds, error))?;
        let seed = std::fs::read(entry.path()).map_err(|error| failed(&entry.path(), error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let made = (0..FROM_EACH).map(|number| made(&seed, number));
        for (number, input) in std::iter::once(seed.clone()).chain(made).enumerate() {
            let path = into.join(format!("{name}-{number:04}"));
            std::fs::write(&path, input).map_err(|error| failed(&path, error))?;
            count += 1;
        }
    }
    Ok(count)
}

/// The input of this number.
fn made(seed: &[u8], number: u64) -> Vec<u8> {
    let mut dice = Dice(number);
    let mut input = seed.to_vec();
    for _ in 0..=dice.below(MAX_CHANGES) {
        change(&mut input, &mut dice);
    }
    input
}

fn change(input: &mut Vec<u8>, dice: &mut Dice) {
    let length = input.len();
    if length == 0 {
        let count = 1 + dice.below(MAX_PIECE);
        input.extend((0..count).map(|_| dice.byte()));
        return;
    }
    let at = dice.index(length);
    let end = (at + 1 + dice.index(MAX_PIECE as usize)).min(length);
    match dice.below(9) {
        0 => input[at] ^= 1 << dice.below(8),
        1 => input[at] = dice.byte(),
        2 => {
            let number = NUMBERS[dice.index(NUMBERS.len())];
            let width = 1 << dice.below(4);
            let bytes =
                if dice.below(2) == 0 { number.to_le_bytes() } else { number.rotate_right(8 * width).to_be_bytes() };
            let width = (width as usize).min(length - at);
            input[at..at + width].copy_from_slice(&bytes[..width]);
        }
        3 => drop(input.drain(at..end)),
        4 => {
            let piece = input[at..end].to_vec();
            let to = dice.index(length);
            input.splice(to..to, piece);
        }
        5 => {
            let piece: Vec<u8> = (at..end).map(|_| dice.byte()).collect();
            input.splice(at..at, piece);
        }
        6 => input.truncate(at),
        7 => {
            let to = dice.index(length);
            input.swap(at, to);
        }
        // Texts hold numbers, too.
        _ => {
            if let Some(digit) = input[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                *digit = b'0' + dice.below(10) as u8;
            }
        }
    }
}

/// SplitMix64: the same numbers for the same beginning.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn written(seeds: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, bytes) in seeds {
            std::fs::write(from.path().join(name), bytes).unwrap();
        }
        let count = write(from.path(), into.path()).unwrap();
        let entries = std::fs::read_dir(into.path()).unwrap().map(|entry| entry.unwrap());
        let read =
            |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
        let inputs: BTreeMap<_, _> = entries.map(read).collect();
        assert_eq!(inputs.len(), count);
        inputs
    }

    #[test]
    fn inputs_are_the_same_each_time_and_do_not_depend_on_other_seeds() {
        let one: (&str, &[u8]) = ("one", b"12 bytes are here, and some more \0\xff");
        let alone = written(&[one]);
        assert_eq!(alone.len(), 501);
        assert_eq!(written(&[one]), alone);
        let mut beside = written(&[one, ("empty", b""), ("another", b"x")]);
        beside.retain(|name, _| name.starts_with("one-"));
        assert_eq!(beside, alone);
        assert_eq!(alone["one-0000"], one.1, "the seed itself is among them");
    }

    #[test]
    fn they_differ_and_do_not_run_away() {
        for seed in [b"".as_slice(), b"x", &[7; 3000]] {
            let inputs: Vec<Vec<u8>> = (0..FROM_EACH).map(|number| made(seed, number)).collect();
            let different: std::collections::BTreeSet<_> = inputs.iter().collect();
            assert!(different.len() > 250, "{} of a seed of {} bytes", different.len(), seed.len());
            assert!(inputs.iter().all(|input| input.len() <= seed.len() + (MAX_CHANGES * MAX_PIECE) as usize));
        }
    }
}
