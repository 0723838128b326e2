//! The server's manifest of a data directory in which some files were written anew, so that `pg_verifybackup` can check it.

use std::collections::HashMap;
use std::io::{BufReader, BufWriter, Read, Write};

use backup_core::error::{Error, Result};

use super::backup::MANIFEST;
use super::layout::Layout;
use super::owner::{Owner, own};
use super::receiver::crc32c;
use super::server_manifest::{Line, ManifestReader, ManifestWriter};

/// Puts the present lengths and checksums of these small files of the data directory into its manifest.
///
/// # Errors
/// Those of reading and writing; [`Damaged`](backup_core::ErrorKind::Damaged) when it is no manifest.
pub(super) fn amend(layout: &Layout, files: &[&str], owner: Option<Owner>) -> Result<()> {
    let mut now = HashMap::new();
    for file in files {
        let path = layout.data.join(file);
        let content = std::fs::read(&path).map_err(|source| Error::io("cannot read the file", &path, source))?;
        let mut digest = crc32c();
        digest.update(&content);
        now.insert(file.as_bytes().to_vec(), (content.len() as u64, digest.finalize() as u32));
    }
    let path = layout.data.join(MANIFEST);
    let failed = |source| Error::io("cannot rewrite the manifest", &path, source);
    let written = layout.data.join(format!("{MANIFEST}.new"));
    let mut from = BufReader::new(std::fs::File::open(&path).map_err(failed)?);
    let mut to = BufWriter::new(std::fs::File::create(&written).map_err(failed)?);
    let (mut reader, mut writer) = (ManifestReader::default(), ManifestWriter::default());
    let mut data = Vec::new();
    loop {
        data.clear();
        (&mut from).take(1 << 16).read_to_end(&mut data).map_err(failed)?;
        if data.is_empty() {
            break;
        }
        for line in reader.push(&data)? {
            let bytes = match line {
                Line::File(file) => {
                    let file_path = file.path()?;
                    let (size, crc) = match now.get(&file_path) {
                        Some((size, crc)) => (*size, Some(*crc)),
                        None => (file.size, file.crc()?),
                    };
                    writer.file(file.line(&file_path, size, crc)?)
                }
                Line::Range(range) => writer.range(range),
                Line::Other(line) => writer.other(&line),
                Line::Checksum => std::mem::take(&mut writer).finish(),
            };
            to.write_all(&bytes).map_err(failed)?;
        }
    }
    reader.finish()?;
    to.into_inner().map_err(|error| failed(error.into_error()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&written, mode).map_err(failed)?;
    std::fs::rename(&written, &path).map_err(failed)?;
    own(&path, owner)
}
