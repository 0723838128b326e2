//! Records in a file without a name, read from the first or from the last: what must be remembered of a restore, without
//! memory that grows with it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backup_core::error::{Error, Result};

/// Records are written when this many bytes have gathered.
const BUFFER: usize = 256 * 1024;
/// Each record has its length before and after it.
const FRAME: u64 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    written: u64,
    buffer: Vec<u8>,
}

impl Spool {
    /// In the folder `scratch`.
    pub(crate) fn new(scratch: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(scratch)
            .map_err(|source| Error::io("cannot make a temporary file", scratch, source))?;
        Ok(Self { file, written: 0, buffer: Vec::new() })
    }

    /// Adds a record at the end.
    pub(crate) fn push(&mut self, record: &[u8]) -> Result<()> {
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.buffer.extend_from_slice(&length);
        self.buffer.extend_from_slice(record);
        self.buffer.extend_from_slice(&length);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(&self.buffer, self.written).map_err(failed)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn length_at(&self, position: u64) -> Result<u64> {
        let mut length = [0; FRAME as usize];
        self.file.read_exact_at(&mut length, position).map_err(failed)?;
        Ok(u32::from_le_bytes(length).into())
    }

    fn read(&self, position: u64, length: u64) -> Result<Vec<u8>> {
        let mut record = vec![0; usize::try_from(length).unwrap_or_default()];
        self.file.read_exact_at(&mut record, position).map_err(failed)?;
        Ok(record)
    }

    /// Takes the last record away; `None` when there is no more.
    pub(crate) fn pop(&mut self) -> Result<Option<Vec<u8>>> {
        self.flush()?;
        if self.written == 0 {
            return Ok(None);
        }
        let length = self.length_at(self.written - FRAME)?;
        let record = self.read(self.written - FRAME - length, length)?;
        self.written -= length + 2 * FRAME;
        Ok(Some(record))
    }

    /// The record at `position`, which moves behind it. Begins with 0; `None` after the last.
    pub(crate) fn next(&mut self, position: &mut u64) -> Result<Option<Vec<u8>>> {
        self.flush()?;
        if *position >= self.written {
            return Ok(None);
        }
        let length = self.length_at(*position)?;
        let record = self.read(*position + FRAME, length)?;
        *position += length + 2 * FRAME;
        Ok(Some(record))
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::from_io("cannot use a temporary file", source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_from_both_ends() {
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        let records: Vec<Vec<u8>> = (0..5000u32).map(|n| vec![b'x'; (n % 300) as usize]).collect();
        for record in &records {
            spool.push(record).unwrap();
        }
        let (mut position, mut forward) = (0, Vec::new());
        while let Some(record) = spool.next(&mut position).unwrap() {
            forward.push(record);
        }
        assert_eq!(forward, records);
        let mut backward = Vec::new();
        while let Some(record) = spool.pop().unwrap() {
            backward.push(record);
        }
        backward.reverse();
        assert_eq!(backward, records);
    }
}
