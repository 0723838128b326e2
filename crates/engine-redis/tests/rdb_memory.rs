//! The largest values, and how much memory they take. A process of its own: it looks at its own peak.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::io::Read;

use engine_redis::rdb::{ExportOptions, Functions, Target, export, scan};

const MIB: usize = 1024 * 1024;
/// A value that no buffer of the allowed size could hold.
const LARGE: usize = 300 * MIB;
/// The same, for what takes longer: values that are decompressed, unpacked, or go through a temporary file.
const MEDIUM: usize = 100 * MIB;
const ALLOWED_KIB: u64 = 64 * 1024;

/// Parts of an RDB that are made as they are read.
enum Part {
    Bytes(Vec<u8>),
    /// One piece, so many times.
    Repeat(Vec<u8>, usize),
}

fn reader(parts: Vec<Part>) -> impl Read {
    struct Reader {
        parts: std::vec::IntoIter<Part>,
        piece: Vec<u8>,
        at: usize,
        times: usize,
    }
    impl Read for Reader {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            while self.at == self.piece.len() {
                if self.times > 1 {
                    (self.at, self.times) = (0, self.times - 1);
                    continue;
                }
                (self.piece, self.times, self.at) = match self.parts.next() {
                    Some(Part::Bytes(bytes)) => (bytes, 1, 0),
                    Some(Part::Repeat(bytes, times)) => (bytes, times, 0),
                    None => return Ok(0),
                };
            }
            let count = into.len().min(self.piece.len() - self.at);
            into[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
            self.at += count;
            Ok(count)
        }
    }
    Reader { parts: parts.into_iter(), piece: Vec::new(), at: 0, times: 0 }
}

fn length(length: usize) -> Vec<u8> {
    [&[0x80][..], &(length as u32).to_be_bytes()].concat()
}

/// A plain string of `size` bytes.
fn plain(size: usize) -> [Part; 2] {
    [Part::Bytes(length(size)), Part::Repeat(b"0123456789abcdef".repeat(4096), size / 65_536)]
}

/// One RDB: a string, one that is compressed, a list with a large element, a large member of a sorted set, a hash with
/// a large field and a large value, and a listpack with one large element.
fn rdb() -> Vec<Part> {
    let bytes = |bytes: &[u8]| Part::Bytes(bytes.to_vec());
    let copies = MEDIUM / 264;
    let packed = 6 + 5 + MEDIUM + 4 + 1;
    let mut parts = vec![bytes(b"REDIS0010\xfe\x00\x00\x06string")];
    parts.extend(plain(LARGE));
    parts.push(bytes(b"\x00\x0acompressed\xc3"));
    parts.push(Part::Bytes([length(2 + 3 * copies), length(1 + 264 * copies), b"\x00a".to_vec()].concat()));
    parts.push(Part::Repeat(b"\xe0\xff\x00".to_vec(), copies));
    parts.push(bytes(b"\x01\x04list\x02\x01a"));
    parts.extend(plain(MEDIUM));
    parts.push(bytes(b"\x05\x04zset\x01"));
    parts.extend(plain(MEDIUM));
    parts.push(Part::Bytes(1.5_f64.to_le_bytes().to_vec()));
    parts.push(bytes(b"\x04\x04hash\x01"));
    parts.extend(plain(MEDIUM));
    parts.extend(plain(MEDIUM));
    parts.push(bytes(b"\x14\x03set"));
    parts.push(Part::Bytes([length(packed), (packed as u32).to_le_bytes().to_vec()].concat()));
    parts.push(Part::Bytes([&[1, 0, 0xf0][..], &(MEDIUM as u32).to_le_bytes()].concat()));
    parts.push(Part::Repeat(b"0123456789abcdef".repeat(4096), MEDIUM / 65_536));
    let size = MEDIUM + 5;
    let behind = (0..4).rev().map(|group| (size >> (7 * group) & 0x7f) as u8 | if group == 3 { 0 } else { 0x80 });
    parts.push(Part::Bytes(behind.chain([0xff]).collect()));
    parts.push(bytes(b"\xff\0\0\0\0\0\0\0\0"));
    parts
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Counts what is written to it.
struct Count(usize);
impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn values_of_any_size_fit_into_little_memory() {
    let summary = scan(reader(rdb()), 0).unwrap();
    assert_eq!(summary.keys(), 6);
    assert!(summary.bytes > (LARGE + 5 * MEDIUM) as u64);
    let options = ExportOptions {
        databases: None,
        pattern: None,
        slots: None,
        functions: Functions::WithTheWhole,
        now_ms: 0,
        target: Target::redis(7, 0),
        chunk: 500,
        replace: true,
    };
    let mut count = Count(0);
    let summary = export(reader(rdb()), &options, &mut count).unwrap();
    assert_eq!(summary.keys[&0], 6);
    assert!(count.0 > LARGE + 6 * MEDIUM - 264, "everything was written: {}", count.0);
    assert!(peak_kib() < ALLOWED_KIB, "the peak is {} KiB", peak_kib());
}
