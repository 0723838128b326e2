//! Reads the archives that the server sends: plain `ustar`, as `src/port/tar.c` of PostgreSQL writes it.
//!
//! Invariant: bytes in, events out, without waiting and without keeping more than one header; a header that does not have
//! its own checksum, or a path that would leave the tree, is damage.

use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Buf, Bytes, BytesMut};

/// Everything in an archive is padded to multiples of this.
pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarKind {
    File,
    Directory,
    /// With its target.
    Symlink(Vec<u8>),
}

/// One entry's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// Without `./` before it and a slash behind it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: TarKind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    /// Seconds since the Unix epoch.
    pub(crate) modified: i64,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarEvent {
    /// An entry begins. For a file, data and then [`TarEvent::FileEnd`] follow.
    Entry(TarEntry),
    /// A piece of the file's content.
    Data(Bytes),
    FileEnd,
    /// Everything that was pushed is used up.
    More,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Header,
    /// Within a file: what is left of it, then of its padding.
    Content {
        left: u64,
        padding: u64,
    },
    Padding(u64),
    /// Two blocks of zeroes, or one, ended the archive.
    Ended,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct TarReader {
    state: State,
    /// What was pushed and not used.
    data: Bytes,
    /// The beginning of a header that did not arrive whole.
    header: BytesMut,
}

impl TarReader {
    /// Adds bytes. Those before must be used up: the last event was [`TarEvent::More`].
    pub(crate) fn push(&mut self, data: Bytes) {
        self.data = data;
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when this is no archive.
    pub(crate) fn event(&mut self) -> Result<TarEvent> {
        loop {
            match self.state {
                State::Content { left: 0, padding } => {
                    self.state = State::Padding(padding);
                    return Ok(TarEvent::FileEnd);
                }
                _ if self.data.is_empty() => return Ok(TarEvent::More),
                State::Content { left, padding } => {
                    let count = usize::try_from(left).map_or(self.data.len(), |left| left.min(self.data.len()));
                    self.state = State::Content { left: left - count as u64, padding };
                    return Ok(TarEvent::Data(self.data.split_to(count)));
                }
                State::Padding(0) => self.state = State::Header,
                State::Padding(left) => {
                    let count = usize::try_from(left).map_or(self.data.len(), |left| left.min(self.data.len()));
                    self.data.advance(count);
                    self.state = State::Padding(left - count as u64);
                }
                State::Header => {
                    let count = (BLOCK - self.header.len()).min(self.data.len());
                    self.header.extend_from_slice(&self.data.split_to(count));
                    if self.header.len() == BLOCK {
                        let header = self.header.split();
                        if header.iter().all(|byte| *byte == 0) {
                            self.state = State::Ended;
                        } else {
                            return self.begin(&header).map(TarEvent::Entry);
                        }
                    }
                }
                State::Ended if self.data.iter().all(|byte| *byte == 0) => self.data.clear(),
                State::Ended => return Err(damaged("something follows its end")),
            }
        }
    }

    /// Ends the archive. Archives of servers before 15 have no end of their own, but they end between two entries.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when it ends within an entry.
    pub(crate) fn finish(self) -> Result<()> {
        match self.state {
            State::Header | State::Padding(0) if self.header.is_empty() => Ok(()),
            State::Ended => Ok(()),
            _ => Err(Error::new(ErrorKind::Incomplete, "the server's archive ends within a file")),
        }
    }

    fn begin(&mut self, header: &[u8]) -> Result<TarEntry> {
        let entry = parse(header)?;
        if entry.kind == TarKind::File {
            let padding = entry.size.wrapping_neg() % BLOCK as u64;
            self.state = State::Content { left: entry.size, padding };
        } else if entry.size != 0 {
            return Err(damaged("a folder or a link has content"));
        }
        Ok(entry)
    }
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("the server's archive is not understood: {why}"))
}

fn parse(header: &[u8]) -> Result<TarEntry> {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    // The sum of all bytes, those of the sum itself taken as spaces.
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(position, byte)| if CHECKSUM.contains(&position) { u64::from(b' ') } else { u64::from(*byte) })
        .sum();
    if &header[257..262] != b"ustar" || number(&header[CHECKSUM])? != sum {
        return Err(damaged("an entry's header has a wrong checksum"));
    }
    let mut path = text(&header[345..500]).to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(text(&header[..100]));
    // Some folders of the log have their path so.
    if path.starts_with(b"./") {
        path.drain(..2);
    }
    while path.last() == Some(&b'/') {
        path.pop();
    }
    let kind = match header[156] {
        b'0' | 0 => TarKind::File,
        b'5' => TarKind::Directory,
        b'2' => TarKind::Symlink(text(&header[157..257]).to_vec()),
        other => return Err(damaged(&format!("an entry is of type `{}`", char::from(other).escape_default()))),
    };
    let small = |field: &[u8]| number(field).map(|number| u32::try_from(number).unwrap_or_default());
    let name = |field: &[u8]| Some(String::from_utf8_lossy(text(field)).into_owned()).filter(|name| !name.is_empty());
    Ok(TarEntry {
        path,
        kind,
        size: number(&header[124..136])?,
        mode: small(&header[100..108])? & 0o7777,
        uid: small(&header[108..116])?,
        gid: small(&header[116..124])?,
        user: name(&header[265..297]),
        group: name(&header[297..329]),
        modified: i64::try_from(number(&header[136..148])?).unwrap_or_default(),
    })
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or, with the first bit set, a big-endian number (for files above eight gigabytes).
fn number(field: &[u8]) -> Result<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let bytes = std::iter::once(first & 0x7f).chain(rest.iter().copied());
        return bytes.into_iter().try_fold(0_u64, |number, byte| {
            let shifted = number.checked_mul(256).ok_or_else(|| damaged("a number is too large"))?;
            Ok(shifted | u64::from(byte))
        });
    }
    let digits = field.iter().copied().skip_while(|byte| *byte == b' ').take_while(|byte| !matches!(byte, b' ' | 0));
    digits.into_iter().try_fold(0_u64, |number, digit| {
        let value = digit.wrapping_sub(b'0');
        let fits = value < 8 && number < 1 << 60;
        if fits { Ok(number * 8 + u64::from(value)) } else { Err(damaged("a number is not octal")) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, b"0000600 ");
        put(108, b"0000101 ");
        put(116, b"0000102 ");
        if size < 1 << 33 {
            put(124, format!("{size:011o} ").as_bytes());
        } else {
            put(124, &[&[0x80, 0, 0, 0], size.to_be_bytes().as_slice()].concat());
        }
        put(136, b"14000000000 ");
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(265, b"postgres");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o} \0").as_bytes());
        block
    }

    /// Everything in the archive, pushed in pieces of `step` bytes.
    fn read(archive: &[u8], step: usize) -> Result<Vec<(TarEntry, Vec<u8>)>> {
        let (mut reader, mut found) = (TarReader::default(), Vec::new());
        for piece in archive.chunks(step) {
            reader.push(Bytes::copy_from_slice(piece));
            loop {
                match reader.event()? {
                    TarEvent::More => break,
                    TarEvent::Entry(entry) => found.push((entry, Vec::new())),
                    TarEvent::Data(data) => found.last_mut().unwrap().1.extend_from_slice(&data),
                    TarEvent::FileEnd => {}
                }
            }
        }
        reader.finish().map(|()| found)
    }

    fn archive() -> Vec<u8> {
        let content = |bytes: &[u8]| {
            let mut padded = bytes.to_vec();
            padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
            padded
        };
        [
            header("./base/1/", b'5', 0, ""),
            header("base/1/16384", b'0', 700, ""),
            content(&[7; 700]),
            header("empty", b'0', 0, ""),
            header("pg_tblspc/1", b'2', 0, "/mnt/fast"),
            header("whole", b'0', 512, ""),
            content(&[9; 512]),
        ]
        .concat()
    }

    #[test]
    fn archives_are_read_with_and_without_an_end() {
        let whole = [archive(), vec![0; 2 * BLOCK]].concat();
        for archive in [archive(), whole] {
            let found = read(&archive, 100_000).unwrap();
            let names: Vec<_> = found.iter().map(|(entry, data)| (entry.path.as_slice(), data.len())).collect();
            let expected: [(&[u8], usize); 5] =
                [(b"base/1", 0), (b"base/1/16384", 700), (b"empty", 0), (b"pg_tblspc/1", 0), (b"whole", 512)];
            assert_eq!(names, expected);
            assert_eq!(found[3].0.kind, TarKind::Symlink(b"/mnt/fast".to_vec()));
            let (entry, _) = &found[1];
            assert_eq!((entry.mode, entry.uid, entry.gid, entry.modified), (0o600, 65, 66, 1_610_612_736));
            assert_eq!((entry.user.as_deref(), entry.group.as_deref()), (Some("postgres"), None));
        }
    }

    #[test]
    fn sizes_above_eight_gigabytes_are_read() {
        let mut reader = TarReader::default();
        reader.push(Bytes::from(header("big", b'0', 1 << 40, "")));
        let TarEvent::Entry(entry) = reader.event().unwrap() else { panic!("an entry") };
        assert_eq!(entry.size, 1 << 40);
        assert!(reader.finish().is_err());
    }

    #[test]
    fn what_is_cut_or_changed_is_refused() {
        let archive = archive();
        for cut in [1, 511, 513, 1024, 1100, 2047] {
            assert_eq!(read(&archive[..cut], 64).unwrap_err().kind(), ErrorKind::Incomplete, "{cut}");
        }
        let mut changed = archive.clone();
        changed[3] ^= 1;
        assert_eq!(read(&changed, 64).unwrap_err().kind(), ErrorKind::Damaged);
        let more = [archive, vec![0; BLOCK], vec![1; BLOCK]].concat();
        assert_eq!(read(&more, 64).unwrap_err().kind(), ErrorKind::Damaged);
    }

    proptest! {
        #[test]
        fn how_it_arrives_does_not_matter(step in 1usize..3000) {
            prop_assert_eq!(read(&archive(), step).unwrap(), read(&archive(), 1 << 20).unwrap());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _refused = read(&bytes, 512);
        }
    }
}
