//! What was received, file by file, until the server's list of it comes: kept in a temporary file, not in memory.
//!
//! Invariant: every file of the list was received with the length and the checksum that it has there, and nothing else
//! was received; memory stays flat as long as both are in the same order, which they are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use backup_core::error::{Error, ErrorKind, Result};

/// So many files may be out of order.
const MAX_AHEAD: usize = 100_000;
const MAX_PATH: usize = 64 * 1024;

/// A file as it was received, and as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// As the server's list has it.
    pub(crate) path: Vec<u8>,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
    /// Where it is stored: without the prefix of incremental files.
    pub(crate) stored_path: Vec<u8>,
    pub(crate) stored_bytes: u64,
    /// `None` when parts of it were kept from the earlier snapshot, and so were not seen.
    pub(crate) stored_crc: Option<u32>,
}

/// Notes what is received.
#[derive(Debug)]
pub(crate) struct Ledger(BufWriter<File>);

impl Ledger {
    /// In a file without a name below `scratch`.
    pub(crate) fn new(scratch: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(scratch);
        let failed = |source| Error::io("cannot make a temporary file", scratch, source);
        Ok(Self(BufWriter::new(file.map_err(failed)?)))
    }

    pub(crate) fn note(&mut self, received: &Received) -> Result<()> {
        let mut record = Vec::with_capacity(64 + received.path.len() + received.stored_path.len());
        for path in [&received.path, &received.stored_path] {
            record.extend((path.len() as u32).to_le_bytes());
            record.extend_from_slice(path);
        }
        record.extend(received.bytes.to_le_bytes());
        record.extend(received.crc.to_le_bytes());
        record.extend(received.stored_bytes.to_le_bytes());
        record.push(u8::from(received.stored_crc.is_some()));
        record.extend(received.stored_crc.unwrap_or_default().to_le_bytes());
        self.0.write_all(&record).map_err(broken)
    }

    /// Now the list comes.
    pub(crate) fn into_check(self) -> Result<LedgerCheck> {
        let mut file = self.0.into_inner().map_err(|error| broken(error.into_error()))?;
        file.rewind().map_err(broken)?;
        Ok(LedgerCheck { file: BufReader::new(file), ahead: HashMap::new() })
    }
}

/// Compares what was received with the list.
#[derive(Debug)]
pub(crate) struct LedgerCheck {
    file: BufReader<File>,
    /// Received, and not yet listed.
    ahead: HashMap<Vec<u8>, Received>,
}

impl LedgerCheck {
    /// The file that the list names next.
    ///
    /// # Errors
    /// [`ErrorKind::Incomplete`] when it was not received; [`ErrorKind::Damaged`] when it was received otherwise.
    pub(crate) fn expect(&mut self, path: &[u8], bytes: u64, crc: Option<u32>) -> Result<Received> {
        let received = self.find(path)?;
        let shown = String::from_utf8_lossy(path).into_owned();
        if received.bytes != bytes {
            let message =
                format!("`{shown}` has {bytes} bytes in the server's manifest, {} were received", received.bytes);
            return Err(Error::new(ErrorKind::Damaged, message).hint("run the backup again"));
        }
        if crc.is_some_and(|crc| crc != received.crc) {
            let message = format!("`{shown}` does not have the checksum of the server's manifest");
            return Err(
                Error::new(ErrorKind::Damaged, message).hint("run the backup again; look at the network and memory")
            );
        }
        Ok(received)
    }

    /// What was received and is not in the list, but for what `allowed` lets pass.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] for the first other file.
    pub(crate) fn finish(mut self, allowed: impl Fn(&[u8]) -> bool) -> Result<()> {
        let mut extra = std::mem::take(&mut self.ahead).into_keys().find(|path| !allowed(path));
        while extra.is_none()
            && let Some(received) = self.read()?
        {
            extra = Some(received.path).filter(|path| !allowed(path));
        }
        let Some(path) = extra else { return Ok(()) };
        let shown = String::from_utf8_lossy(&path).into_owned();
        Err(Error::new(ErrorKind::Damaged, format!("`{shown}` was received and is not in the server's manifest")))
    }

    fn find(&mut self, path: &[u8]) -> Result<Received> {
        if let Some(received) = self.ahead.remove(path) {
            return Ok(received);
        }
        while let Some(received) = self.read()? {
            if received.path == path {
                return Ok(received);
            }
            if self.ahead.len() == MAX_AHEAD {
                break;
            }
            self.ahead.insert(received.path.clone(), received);
        }
        let shown = String::from_utf8_lossy(path).into_owned();
        Err(Error::new(ErrorKind::Incomplete, format!("`{shown}` is in the server's manifest and was not received"))
            .hint("run the backup again"))
    }

    fn read(&mut self) -> Result<Option<Received>> {
        let mut length = [0; 4];
        match self.file.read(&mut length[..1]).map_err(broken)? {
            0 => return Ok(None),
            _ => self.file.read_exact(&mut length[1..]).map_err(broken)?,
        }
        let path = self.bytes(u32::from_le_bytes(length) as usize)?;
        let mut length = [0; 4];
        self.file.read_exact(&mut length).map_err(broken)?;
        let stored_path = self.bytes(u32::from_le_bytes(length) as usize)?;
        let rest = self.bytes(25)?;
        let u64_at = |at: usize| rest[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let u32_at = |at: usize| rest[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
        Ok(Some(Received {
            path,
            bytes: u64_at(0),
            crc: u32_at(8),
            stored_path,
            stored_bytes: u64_at(12),
            stored_crc: (rest[20] != 0).then(|| u32_at(21)),
        }))
    }

    fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count.min(MAX_PATH)];
        self.file.read_exact(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }
}

fn broken(source: std::io::Error) -> Error {
    Error::from_io("cannot use a temporary file", source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(path: &str, crc: u32) -> Received {
        Received {
            path: path.into(),
            bytes: 1 << 40,
            crc,
            stored_path: format!("stored {path}").into(),
            stored_bytes: 5,
            stored_crc: crc.is_multiple_of(2).then_some(crc + 1),
        }
    }

    fn check(paths: &[&str]) -> LedgerCheck {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(folder.path()).unwrap();
        for (crc, path) in paths.iter().enumerate() {
            ledger.note(&received(path, crc as u32)).unwrap();
        }
        ledger.into_check().unwrap()
    }

    #[test]
    fn lists_in_any_order_are_compared() {
        let mut ledger = check(&["a", "b", "c", "pg_wal/x"]);
        for (path, crc) in [("b", 1), ("a", 0), ("c", 2)] {
            assert_eq!(ledger.expect(path.as_bytes(), 1 << 40, Some(crc)).unwrap(), received(path, crc));
        }
        ledger.finish(|path| path.starts_with(b"pg_wal/")).unwrap();
    }

    #[test]
    fn whatever_differs_is_named() {
        let missing = check(&["a"]).expect(b"b", 1 << 40, None).unwrap_err();
        assert!(missing.to_string().contains("`b` is in the server's manifest and was not received"), "{missing}");
        assert_eq!(check(&["a"]).expect(b"a", 1, None).unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(check(&["a"]).expect(b"a", 1 << 40, Some(9)).unwrap_err().kind(), ErrorKind::Damaged);
        for list in [["a", "x"], ["x", "a"]] {
            let mut ledger = check(&list);
            ledger.expect(b"a", 1 << 40, None).unwrap();
            assert!(ledger.finish(|_| false).unwrap_err().to_string().contains("`x` was received"));
        }
    }
}
