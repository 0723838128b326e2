//! The file tree of the demo: about two thousand files and 60 MiB, with what real trees have and demos leave out.

use std::ffi::OsStr;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use backup_core::{Error, Result};

const FOLDERS: u64 = 40;
const DOCUMENTS_EACH: u64 = 48;
const IMAGES: u64 = 40;
const IMAGE_BYTES: usize = 1_100_000;
const SPARSE_BYTES: u64 = 16 << 20;

/// Names that break what is quoted carelessly.
const ODD_NAMES: [&[u8]; 7] = [
    b"with space",
    b"-rf",
    b"new\nline",
    b"caf\xe9 (not UTF-8)",
    "smörgåsbord 🍞".as_bytes(),
    b"quote'\"`$(x)",
    b"back\\slash",
];

/// How much was made.
pub(super) struct Size {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// A small generator of numbers that look random and are the same every time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// Text of about `count` bytes that compresses as text does.
    fn text(&mut self, count: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "backup", "the", "restore", "of", "a", "stack", "and", "snapshot", "is", "proven", "server", "to", "plan",
            "every", "source", "in",
        ];
        let mut text = Vec::with_capacity(count + 16);
        while text.len() < count {
            let word = WORDS[usize::try_from(self.below(16)).unwrap_or_default()];
            text.extend_from_slice(word.as_bytes());
            text.push(if self.below(12) == 0 { b'\n' } else { b' ' });
        }
        text
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::io("cannot make the demo's files", path, source)
}

/// Makes the tree.
pub(super) fn make(root: &Path) -> Result<Size> {
    let mut numbers = Numbers(0x5eed);
    let mut size = Size { files: 0, bytes: 0 };
    let mut write = |path: &Path, content: &[u8]| {
        size.files += 1;
        size.bytes += content.len() as u64;
        fs::write(path, content).map_err(failed(path))
    };
    for folder in 0..FOLDERS {
        let folder = root.join(format!("documents/{folder:02}"));
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        for document in 0..DOCUMENTS_EACH {
            let length = usize::try_from(200 + numbers.below(14_000)).unwrap_or_default();
            write(&folder.join(format!("{document:03}.txt")), &numbers.text(length))?;
        }
    }
    let images = root.join("images");
    fs::create_dir_all(&images).map_err(failed(&images))?;
    for image in 0..IMAGES {
        write(&images.join(format!("{image:02}.jpg")), &numbers.bytes(IMAGE_BYTES))?;
    }
    let odd = root.join("odd");
    fs::create_dir_all(odd.join("empty folder")).map_err(failed(&odd))?;
    for name in ODD_NAMES {
        write(&odd.join(OsStr::from_bytes(name)), &numbers.text(300))?;
    }
    write(&odd.join("empty"), b"")?;
    make_special(&odd)?;
    size.files += 2;
    size.bytes += SPARSE_BYTES;
    Ok(size)
}

/// A sparse file, links, modes and a time before this century.
fn make_special(odd: &Path) -> Result<()> {
    let wrong = failed(odd);
    let mut sparse = fs::File::create(odd.join("sparse")).map_err(&wrong)?;
    sparse.set_len(SPARSE_BYTES).map_err(&wrong)?;
    sparse.seek(SeekFrom::Start(SPARSE_BYTES / 2)).map_err(&wrong)?;
    sparse.write_all(&vec![7; 65_536]).map_err(&wrong)?;
    symlink("../documents/00/000.txt", odd.join("symlink")).map_err(&wrong)?;
    symlink("/nowhere/at all", odd.join("dangling")).map_err(&wrong)?;
    fs::hard_link(odd.join("sparse"), odd.join("hard link")).map_err(&wrong)?;
    let read_only = odd.join("read only");
    fs::write(&read_only, b"do not touch\n").map_err(&wrong)?;
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(86_400, 123_456_789);
    fs::File::open(&read_only).and_then(|file| file.set_modified(old)).map_err(&wrong)?;
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o440)).map_err(&wrong)
}

/// Changes a little: documents grow, an image is edited in its middle, some files come and some go.
pub(super) fn change(root: &Path) -> Result<u64> {
    let mut numbers = Numbers(0xc4a6e);
    for document in 0..10 {
        let path = root.join(format!("documents/{document:02}/000.txt"));
        let mut file = fs::OpenOptions::new().append(true).open(&path).map_err(failed(&path))?;
        file.write_all(&numbers.text(500)).map_err(failed(&path))?;
        let gone = root.join(format!("documents/{document:02}/001.txt"));
        fs::remove_file(&gone).map_err(failed(&gone))?;
        let new = root.join(format!("documents/{document:02}/new.txt"));
        fs::write(&new, numbers.text(2_000)).map_err(failed(&new))?;
    }
    let image = root.join("images/07.jpg");
    let mut file = fs::OpenOptions::new().write(true).open(&image).map_err(failed(&image))?;
    file.seek(SeekFrom::Start(500_000)).map_err(failed(&image))?;
    file.write_all(&numbers.bytes(4_096)).map_err(failed(&image))?;
    Ok(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_what_the_demo_says() {
        let folder = tempfile::tempdir().unwrap();
        let size = make(folder.path()).unwrap();
        assert!((1_900..2_100).contains(&size.files), "{}", size.files);
        assert!((60..80).contains(&(size.bytes >> 20)), "{}", size.bytes);
        assert_eq!(change(folder.path()).unwrap(), 31);
        assert_eq!(fs::read_dir(folder.path().join("odd")).unwrap().count(), 14);
    }
}
