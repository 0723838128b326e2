//! The server's own list of what it sent: `backup_manifest` (PostgreSQL manual, "Backup Manifest Format").
//!
//! It is JSON that the server writes line by line, one file a line, so it is read line by line, however long it is.
//! Invariant: it is believed only when its last line has the SHA-256 of all lines before.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A path has at most 1023 bytes, twice as many in hexadecimal digits.
const MAX_LINE: usize = 16 * 1024;
const CHECKSUM_LINE: &[u8] = b"\"Manifest-Checksum\": \"";

/// A file that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ListedFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// Of a path that is not UTF-8: in hexadecimal digits.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    pub(crate) size: u64,
    #[serde(rename = "Last-Modified")]
    pub(crate) modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    pub(crate) algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    pub(crate) checksum: Option<String>,
}

impl ListedFile {
    /// The path's bytes.
    pub(crate) fn path(&self) -> Result<Vec<u8>> {
        match (&self.path, &self.encoded_path) {
            (Some(path), None) => Ok(path.clone().into_bytes()),
            (None, Some(encoded)) => hex::decode(encoded).map_err(|_| damaged("a path is no hexadecimal number")),
            _ => Err(damaged("a file has not one path")),
        }
    }

    /// The CRC-32C, when that is what it has.
    pub(crate) fn crc(&self) -> Result<Option<u32>> {
        match (self.algorithm.as_deref(), &self.checksum) {
            (Some("CRC32C"), Some(digits)) => {
                let bytes = hex::decode(digits).ok().and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
                bytes.map(|bytes| Some(u32::from_le_bytes(bytes))).ok_or_else(|| damaged("a checksum is none"))
            }
            _ => Ok(None),
        }
    }

    /// As a line of a manifest, without the comma: the same file with this path, length and checksum.
    pub(crate) fn line(&self, path: &[u8], size: u64, crc: Option<u32>) -> Result<String> {
        #[derive(Serialize)]
        struct Text<'a>(&'a str);
        let json = |text: &str| {
            serde_json::to_string(&Text(text))
                .map_err(|source| Error::new(ErrorKind::Internal, "a text is no JSON").caused_by(source))
        };
        let path = match std::str::from_utf8(path) {
            Ok(path) => format!("\"Path\": {}", json(path)?),
            Err(_) => format!("\"Encoded-Path\": \"{}\"", hex::encode(path)),
        };
        let checksum = crc.map_or_else(String::new, |crc| {
            format!(", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\"", hex::encode(crc.to_le_bytes()))
        });
        Ok(format!("{{ {path}, \"Size\": {size}, \"Last-Modified\": {}{checksum} }}", json(&self.modified)?))
    }
}

/// A piece of the log that the backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct WalRange {
    #[serde(rename = "Timeline")]
    pub(crate) timeline: u32,
    #[serde(rename = "Start-LSN")]
    pub(crate) start: Lsn,
    #[serde(rename = "End-LSN")]
    pub(crate) end: Lsn,
}

/// A line of the manifest, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    File(ListedFile),
    Range(WalRange),
    /// Anything else, word for word, with its end.
    Other(Vec<u8>),
    /// The last one.
    Checksum,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ManifestReader {
    line: Vec<u8>,
    digest: Sha256,
    ended: bool,
}

impl ManifestReader {
    /// Takes bytes, and hands each line that is complete to `each`.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when this is no manifest, or not the one that its last line speaks of; those of `each`.
    pub(crate) fn push(&mut self, data: &[u8]) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() > MAX_LINE {
                return Err(damaged("a line is too long"));
            }
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                lines.push(self.take(line)?);
            }
        }
        Ok(lines)
    }

    /// Ends the manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when its last line did not come.
    pub(crate) fn finish(self) -> Result<()> {
        if self.ended && self.line.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Incomplete, "the server's backup manifest is cut short"))
    }

    fn take(&mut self, line: Vec<u8>) -> Result<Line> {
        if self.ended {
            return Err(damaged("something follows its end"));
        }
        if let Some(rest) = line.strip_prefix(CHECKSUM_LINE) {
            let expected = hex::encode(std::mem::take(&mut self.digest).finalize());
            if rest.strip_suffix(b"\"}\n") != Some(expected.as_bytes()) {
                return Err(damaged("it does not have its own checksum"));
            }
            self.ended = true;
            return Ok(Line::Checksum);
        }
        self.digest.update(&line);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b",").unwrap_or(text);
        let read = |text| serde_json::from_slice(text);
        if line.starts_with(b"{ \"Path\"") || line.starts_with(b"{ \"Encoded-Path\"") {
            return read(text).map(Line::File).map_err(|source| damaged("a file's line").caused_by(source));
        }
        if line.starts_with(b"{ \"Timeline\"") {
            let range = serde_json::from_slice(text);
            return range.map(Line::Range).map_err(|source| damaged("a range of the log").caused_by(source));
        }
        Ok(Line::Other(line))
    }
}

/// Writes a manifest anew: lines of files replaced, the rest word for word, the checksum computed.
#[derive(Debug, Default)]
pub(crate) struct ManifestWriter {
    digest: Sha256,
    /// The last file, which has no comma, is known only when the next line comes.
    held: Option<String>,
    held_range: Option<String>,
}

impl ManifestWriter {
    /// A file. Returns the bytes that can be written.
    pub(crate) fn file(&mut self, line: String) -> Vec<u8> {
        let before = self.held.replace(line).map(|line| format!("{line},\n"));
        self.pass(before.unwrap_or_default().into_bytes())
    }

    /// A range of the log.
    pub(crate) fn range(&mut self, range: WalRange) -> Vec<u8> {
        let line = format!(
            "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
            range.timeline, range.start, range.end
        );
        let before = self.held_range.replace(line).map(|line| format!("{line},\n"));
        self.pass(before.unwrap_or_default().into_bytes())
    }

    /// Any other line.
    pub(crate) fn other(&mut self, line: &[u8]) -> Vec<u8> {
        let held = self.held.take().or_else(|| self.held_range.take());
        let mut bytes = held.map(|line| format!("{line}\n")).unwrap_or_default().into_bytes();
        bytes.extend_from_slice(line);
        self.pass(bytes)
    }

    /// The last line.
    pub(crate) fn finish(self) -> Vec<u8> {
        let digest = hex::encode(self.digest.finalize());
        format!("\"Manifest-Checksum\": \"{digest}\"}}\n").into_bytes()
    }

    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.digest.update(&bytes);
        bytes
    }
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("the server's backup manifest is not understood: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Vec<u8> {
        let mut text = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7400000000000000000,\n\"Files\": [\n\
            { \"Path\": \"backup_label\", \"Size\": 227, \"Last-Modified\": \"2026-11-20 10:00:00 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"0a0b0c0d\" },\n\
            { \"Encoded-Path\": \"626173652fff\", \"Size\": 8192, \"Last-Modified\": \"2026-11-20 10:00:00 GMT\" }\n\
            ],\n\"WAL-Ranges\": [\n\
            { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n\
            ],\n"
            .as_bytes()
            .to_vec();
        let digest = hex::encode(Sha256::digest(&text));
        text.extend(format!("\"Manifest-Checksum\": \"{digest}\"}}\n").into_bytes());
        text
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Line>> {
        let mut reader = ManifestReader::default();
        let mut lines = Vec::new();
        for piece in bytes.chunks(step) {
            lines.extend(reader.push(piece)?);
        }
        reader.finish().map(|()| lines)
    }

    #[test]
    fn files_and_ranges_are_read_however_they_arrive() {
        for step in [1, 7, 100_000] {
            let lines = read(&manifest(), step).unwrap();
            let files: Vec<_> = lines
                .iter()
                .filter_map(|line| match line {
                    Line::File(file) => Some((file.path().unwrap(), file.size, file.crc().unwrap())),
                    _ => None,
                })
                .collect();
            let expected = [(b"backup_label".to_vec(), 227, Some(0x0d0c_0b0a)), (b"base/\xff".to_vec(), 8192, None)];
            assert_eq!(files, expected);
            let range = WalRange { timeline: 1, start: Lsn(0x200_0028), end: Lsn(0x200_0100) };
            assert!(lines.contains(&Line::Range(range)));
        }
    }

    #[test]
    fn written_anew_it_is_the_same() {
        let (mut writer, mut written) = (ManifestWriter::default(), Vec::new());
        let mut writer_end = None;
        for line in read(&manifest(), 100).unwrap() {
            match line {
                Line::File(file) => {
                    let line = file.line(&file.path().unwrap(), file.size, file.crc().unwrap()).unwrap();
                    written.extend(writer.file(line));
                }
                Line::Range(range) => written.extend(writer.range(range)),
                Line::Other(line) => written.extend(writer.other(&line)),
                Line::Checksum => writer_end = Some(()),
            }
        }
        assert!(writer_end.is_some());
        written.extend(writer.finish());
        assert_eq!(String::from_utf8(written).unwrap(), String::from_utf8(manifest()).unwrap());
    }

    #[test]
    fn what_is_cut_or_changed_is_refused() {
        let whole = manifest();
        for cut in [0, 10, 200, whole.len() - 1] {
            assert_eq!(read(&whole[..cut], 64).unwrap_err().kind(), ErrorKind::Incomplete, "{cut}");
        }
        let text = String::from_utf8(whole.clone()).unwrap();
        for (from, to) in [("227", "228"), ("0/2000100", "0/2000101"), ("\"}\n", "\"}\n{}\n")] {
            let changed = text.replacen(from, to, if from == "\"}\n" { usize::MAX } else { 1 });
            assert_eq!(read(changed.as_bytes(), 64).unwrap_err().kind(), ErrorKind::Damaged, "{from}");
        }
    }
}
