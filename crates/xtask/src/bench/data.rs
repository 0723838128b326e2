//! Data for benchmarks: the same bytes on every machine but for the copy of the system's own files.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::process::Result;

const MIB: u64 = 1024 * 1024;
const SMALL_FILES: u64 = 100_000;
const SMALL_PER_FOLDER: u64 = 100;

/// A small generator of numbers that look random (xorshift).
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }
}

fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| format!("{}: {error}", path.display()))
}

/// Waits until the youngest file is older than a plan's `settle`: what is younger is read again, which is not what is
/// measured.
pub(super) fn settle() {
    std::thread::sleep(std::time::Duration::from_secs(65));
}

/// Fills `folder` with about `mib` MiB: a third system files, a third SQL, a sixth noise, and 100,000 small files.
pub(super) fn make(folder: &Path, mib: u64) -> Result {
    io(folder, std::fs::create_dir_all(folder))?;
    copy_system(&folder.join("usr"), mib * MIB * 5 / 16)?;
    sql(&folder.join("dump.sql"), mib * MIB * 5 / 16)?;
    for number in 0..6 {
        noise(&folder.join(format!("noise-{number}")), mib * MIB / 32, number)?;
    }
    small_files(&folder.join("small"))
}

/// Copies files of the system until there are `limit` bytes.
fn copy_system(target: &Path, limit: u64) -> Result {
    let mut left = limit;
    for root in ["/usr/bin", "/usr/share", "/usr/lib"] {
        copy_tree(Path::new(root), &target.join(root.trim_start_matches('/')), &mut left)?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, left: &mut u64) -> Result {
    io(to, std::fs::create_dir_all(to))?;
    let mut entries: Vec<PathBuf> = io(from, std::fs::read_dir(from))?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let target = to.join(path.file_name().unwrap_or_default());
        if metadata.is_dir() {
            copy_tree(&path, &target, left)?;
        } else if metadata.is_file() && metadata.len() <= *left {
            *left -= metadata.len();
            io(&path, std::fs::copy(&path, &target))?;
        }
    }
    Ok(())
}

/// Text like that of a database dump: repetitive, with numbers that differ.
fn sql(path: &Path, bytes: u64) -> Result {
    let mut file = BufWriter::new(io(path, std::fs::File::create(path))?);
    let mut noise = Noise::new(1);
    let mut written = 0;
    let mut id = 0u64;
    while written < bytes {
        id += 1;
        let (a, b) = (noise.next(), noise.next());
        let city = ["Berlin", "Nairobi", "Quito", "Osaka", "Tromsø", "Perth"][(a % 6) as usize];
        let line = format!(
            "INSERT INTO public.orders VALUES ({id}, {}, '2026-{:02}-{:02} {:02}:{:02}:{:02}+00', '{city}', {}.{:02}, '{a:016x}{b:016x}', NULL);\n",
            a % 500_000,
            a % 12 + 1,
            b % 28 + 1,
            a % 24,
            b % 60,
            (a ^ b) % 60,
            b % 100_000,
            a % 100
        );
        io(path, file.write_all(line.as_bytes()))?;
        written += line.len() as u64;
    }
    io(path, file.flush())
}

fn noise(path: &Path, bytes: u64, seed: u64) -> Result {
    let mut file = io(path, std::fs::File::create(path))?;
    let mut noise = Noise::new(seed + 10);
    let mut buffer = vec![0; MIB as usize];
    for _ in 0..bytes / MIB {
        noise.fill(&mut buffer);
        io(path, file.write_all(&buffer))?;
    }
    Ok(())
}

fn small_files(folder: &Path) -> Result {
    let mut noise = Noise::new(99);
    for number in 0..SMALL_FILES {
        let place = folder.join(format!("{:04}", number / SMALL_PER_FOLDER));
        if number % SMALL_PER_FOLDER == 0 {
            io(&place, std::fs::create_dir_all(&place))?;
        }
        let mut text = String::new();
        let length = 200 + noise.next() % 3800;
        while (text.len() as u64) < length {
            text.push_str(&format!("key-{:x} = {}\n", noise.next() % 4096, noise.next() % 100_000));
        }
        let path = place.join(format!("f{number}.conf"));
        io(&path, std::fs::write(&path, text))?;
    }
    Ok(())
}

/// Changes about one byte in a hundred: pieces of the large files, and some of the small ones.
pub(super) fn change(folder: &Path, round: u64) -> Result {
    use std::os::unix::fs::FileExt;
    let mut noise = Noise::new(1000 + round);
    let mut large: Vec<PathBuf> = (0..6).map(|number| folder.join(format!("noise-{number}"))).collect();
    large.push(folder.join("dump.sql"));
    for path in large {
        let file = io(&path, std::fs::OpenOptions::new().write(true).open(&path))?;
        let length = io(&path, file.metadata())?.len();
        let mut piece = vec![b'x'; 64 * 1024];
        for _ in 0..(length / 100 / piece.len() as u64).max(1) {
            noise.fill(&mut piece[..1024]);
            let at = noise.next() % (length - piece.len() as u64);
            io(&path, file.write_all_at(&piece, at))?;
        }
    }
    for _ in 0..SMALL_FILES / 100 {
        let number = noise.next() % SMALL_FILES;
        let path = folder.join(format!("small/{:04}/f{number}.conf", number / SMALL_PER_FOLDER));
        io(&path, std::fs::write(&path, format!("changed = {}\n", noise.next())))?;
    }
    Ok(())
}

/// The bytes of all regular files below `folder`.
pub(super) fn size(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in io(folder, std::fs::read_dir(folder))?.flatten() {
        let metadata = io(&entry.path(), entry.path().symlink_metadata())?;
        total += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}
