//! How fast an RDB is read: `rdb-speed scan|export FILE` prints seconds, bytes and keys. For `cargo xtask bench redis`.

use std::io::Write;
use std::time::Instant;

use backup_core::{Error, ErrorKind, Result};
use engine_redis::rdb::{ExportOptions, Functions, Target, export, scan};

/// Counts what it is given.
struct Sunk(u64);

impl Write for Sunk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, path] = &arguments[..] else {
        return Err(Error::new(ErrorKind::Usage, "rdb-speed scan|export FILE"));
    };
    let file = std::fs::File::open(path).map_err(|source| Error::io("cannot read the RDB", path, source))?;
    let length = file.metadata().map_err(|source| Error::io("cannot read the RDB", path, source))?.len();
    let begun = Instant::now();
    let (keys, written) = if what == "scan" {
        (scan(file, 0)?.keys(), 0)
    } else {
        let mut sunk = Sunk(0);
        let options = ExportOptions {
            databases: None,
            pattern: None,
            slots: None,
            functions: Functions::WithTheWhole,
            now_ms: 0,
            target: Target::redis(7, 0),
            chunk: 1000,
            replace: false,
        };
        let summary = export(file, &options, &mut sunk)?;
        (summary.keys.values().sum(), sunk.0)
    };
    let seconds = begun.elapsed().as_secs_f64();
    let line = format!("{seconds:.3} {length} {keys} {written}\n");
    std::io::stdout().write_all(line.as_bytes()).map_err(|source| Error::from_io("cannot print", source))
}
