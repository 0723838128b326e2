//! What may be committed: text, and small files. A clone keeps for ever what was committed once.
//!
//! Fixtures and the seeds of fuzz targets are excepted: they are bytes that a test reads.

use std::path::Path;

use crate::process::{Result, Run, root};

/// Larger files do not belong into a history that everybody clones.
const MAX_BYTES: u64 = 1 << 20;
/// A zero byte this near to the beginning makes a file binary: git judges the same way.
const LOOKED_AT: usize = 8000;

/// Checks every file that git knows, as it stands in the working tree.
pub(crate) fn check() -> Result {
    let listed = Run::new("git").args(["ls-files", "-z"]).output()?;
    let faults: Vec<String> = listed
        .split_terminator('\0')
        .filter_map(|name| fault(name, &root().join(name)).transpose())
        .collect::<Result<_>>()?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\ntake them out with `git rm --cached`; bytes that a test reads go below a folder `fixtures`",
        faults.join("\n")
    ))
}

/// Whether these bytes are there for a test.
fn is_excepted(name: &str) -> bool {
    name.starts_with("fuzz/seeds/") || name.split('/').rev().skip(1).any(|folder| folder == "fixtures")
}

fn fault(name: &str, path: &Path) -> Result<Option<String>> {
    let failed = |error: std::io::Error| format!("{name}: {error}");
    // Links are text to git, and a file that is being removed has no bytes.
    let Some(metadata) = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file) else {
        return Ok(None);
    };
    if is_excepted(name) {
        return Ok(None);
    }
    if metadata.len() > MAX_BYTES {
        return Ok(Some(format!("{name}: {} bytes, more than {MAX_BYTES}", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let is_binary = bytes.iter().take(LOOKED_AT).any(|byte| *byte == 0);
    Ok(is_binary.then(|| format!("{name}: a binary file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &str, bytes: &[u8]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        fault(name, &path).unwrap()
    }

    #[test]
    fn binaries_and_large_files_are_refused_unless_a_test_reads_them() {
        let (binary, large, text) = (b"PK\x03\x04\0\0".as_slice(), vec![b'x'; 1 + (1 << 20)], b"text\n".as_slice());
        assert_eq!(judged("a.whl", binary).unwrap(), "a.whl: a binary file");
        assert_eq!(judged("docs/a.txt", &large).unwrap(), "docs/a.txt: 1048577 bytes, more than 1048576");
        for (name, bytes) in [
            ("docs/a.txt", text),
            ("docs/a.txt", &large[1..]),
            ("tests/fixtures/old/pack", binary),
            ("tests/fixtures/old/pack", &large),
            ("fuzz/seeds/index/one", binary),
        ] {
            assert_eq!(judged(name, bytes), None, "{name}");
        }
        // A name is no exception, only a folder is.
        assert!(judged("docs/fixtures", binary).is_some());
    }

    #[test]
    fn a_file_that_is_gone_or_a_link_is_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fault("gone", &folder.path().join("gone")).unwrap(), None);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        assert_eq!(fault("link", &link).unwrap(), None);
    }
}
