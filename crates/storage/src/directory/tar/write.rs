//! Writes entries as tar members.
//!
//! Invariant: what fits a ustar header is there; what does not is in pax records that GNU tar knows, so that it
//! extracts in silence what we wrote.

use std::collections::VecDeque;
use std::io::{self, Write};

use backup_core::tree::{EntryKind, FileIdentity, TreeEntry};
use tar::{EntryType, Header};

use super::pax::{encode_keyword, put_record, render_time};
use super::{BLOCK, COMMENT, COMMENT_IDENTITY, SPARSE_MAJOR, SPARSE_MINOR, SPARSE_NAME, SPARSE_SIZE, XATTR, padding};
use crate::directory::spool::{Segment, Spooled};

/// Lengths of ustar fields; names of users and groups end with a zero byte.
const NAME_BYTES: usize = 100;
const OWNER_BYTES: usize = 31;
/// The largest numbers of the octal fields.
const MAX_OWNER: u32 = 0o7_777_777;
const MAX_DEVICE: u32 = 0o7_777_777;
const MAX_LARGE: u64 = 0o77_777_777_777;

/// Writes one entry; `content` is for regular files, and may be left out when the file is empty.
pub(in crate::directory) fn put_entry(
    out: &mut impl Write,
    entry: &TreeEntry,
    content: Option<&Spooled>,
) -> io::Result<()> {
    let map = content.filter(|content| has_holes(content)).map(|content| SparseMap::of(content, entry.size()));
    let size = map.as_ref().map_or(entry.size(), |map| map.text.len() as u64 + map.data);
    let mut member = Member { header: Header::new_ustar(), records: Vec::new() };
    member.describe(entry, map.is_some())?;
    member.owner_and_time(entry);
    member.size(size);
    member.attributes(entry);
    member.write(out)?;
    let Some(content) = content else { return Ok(()) };
    match map {
        None => content.copy_data(out)?,
        Some(map) => {
            out.write_all(&map.text)?;
            let mut filler = Filler { to: &mut *out, at: 0, fills: map.fills.into() };
            content.copy_data(&mut filler)?;
            filler.fill()?;
        }
    }
    out.write_all(&[0; BLOCK][..padding(size)])
}

/// Writes the end of the archive.
pub(in crate::directory) fn put_end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

fn has_holes(content: &Spooled) -> bool {
    content.segments().iter().any(|segment| matches!(segment, Segment::Hole(_)))
}

/// GNU sparse format 1.0: the number of stretches of data, then the offset and the length of each, one number per
/// line, filled up with zero bytes to a whole block. A file that ends in a hole ends with an empty stretch.
/// (GNU tar manual, "Storing Sparse Files", "PAX Format, Version 1.0".)
///
/// GNU tar reads every stretch from the beginning of a block, and skips nothing between them: stretches that are
/// no whole blocks take zero bytes from the hole after them.
struct SparseMap {
    text: Vec<u8>,
    /// The lengths of all stretches.
    data: u64,
    /// After so many bytes of the content's data come so many zero bytes.
    fills: Vec<(u64, u64)>,
}

impl SparseMap {
    fn of(content: &Spooled, size: u64) -> Self {
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        let mut fills = Vec::new();
        let (mut at, mut data) = (0, 0);
        for segment in content.segments() {
            match (segment, stretches.last_mut()) {
                (Segment::Data(length), Some((start, last))) if *start + *last == at => *last += length,
                (Segment::Data(length), _) => stretches.push((at, *length)),
                (Segment::Hole(length), Some((_, last))) => {
                    let fill = (padding(*last) as u64).min(*length);
                    if fill > 0 {
                        *last += fill;
                        fills.push((data, fill));
                    }
                }
                (Segment::Hole(_), None) => {}
            }
            match segment {
                Segment::Data(length) => (at, data) = (at + length, data + length),
                Segment::Hole(length) => at += length,
            }
        }
        if stretches.last().is_none_or(|(start, length)| start + length < size) {
            stretches.push((size, 0));
        }
        let mut text = format!("{}\n", stretches.len());
        for (at, length) in &stretches {
            text.push_str(&format!("{at}\n{length}\n"));
        }
        let mut text = text.into_bytes();
        text.resize(text.len() + padding(text.len() as u64), 0);
        Self { text, data: stretches.iter().map(|(_, length)| length).sum(), fills }
    }
}

/// Puts zero bytes between the data that it is given.
struct Filler<'a, W> {
    to: &'a mut W,
    at: u64,
    fills: VecDeque<(u64, u64)>,
}

impl<W: Write> Filler<'_, W> {
    /// Writes the zero bytes that belong here.
    fn fill(&mut self) -> io::Result<()> {
        while let Some((_, zeros)) = self.fills.pop_front_if(|(at, _)| *at == self.at) {
            self.to.write_all(&[0; BLOCK][..zeros as usize])?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Filler<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.fill()?;
        let most = self.fills.front().map_or(data.len() as u64, |(at, _)| at - self.at);
        let count = self.to.write(&data[..data.len().min(most as usize)])?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A member of an archive while its header is made.
struct Member {
    header: Header,
    records: Vec<u8>,
}

impl Member {
    fn record(&mut self, keyword: &str, value: impl AsRef<[u8]>) {
        put_record(&mut self.records, keyword.as_bytes(), value.as_ref());
    }

    /// Name, type and what the type needs.
    fn describe(&mut self, entry: &TreeEntry, sparse: bool) -> io::Result<()> {
        let mut path = entry.path.as_bytes().to_vec();
        let (kind, target): (EntryType, &[u8]) = match &entry.kind {
            EntryKind::Directory => {
                path.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
                (EntryType::Directory, b"")
            }
            EntryKind::File { .. } => (EntryType::Regular, b""),
            EntryKind::Symlink { target } => (EntryType::Symlink, target),
            EntryKind::Hardlink { target } => (EntryType::Link, target.as_bytes()),
            EntryKind::Fifo => (EntryType::Fifo, b""),
            EntryKind::CharDevice { major, minor } => (self.device(entry, EntryType::Char, *major, *minor)?, b""),
            EntryKind::BlockDevice { major, minor } => (self.device(entry, EntryType::Block, *major, *minor)?, b""),
        };
        // A tree whose root is no directory has one entry, which needs some name; a hard link to it likewise.
        let root: &[u8] = b"./";
        let path = if path.is_empty() { root.to_vec() } else { path };
        let target = if target.is_empty() && kind == EntryType::Link { root } else { target };
        self.header.set_entry_type(kind);
        self.header.set_mode(entry.mode);
        if sparse {
            self.record(SPARSE_MAJOR, "1");
            self.record(SPARSE_MINOR, "0");
            self.record(SPARSE_NAME, &path);
            self.record(SPARSE_SIZE, entry.size().to_string());
            // Programs that do not know sparse files show by this name that what they extract is not the file.
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            self.name(&[b"GNUSparseFile.0/", name].concat());
        } else {
            self.name(&path);
            if path.len() > NAME_BYTES {
                // Bytes that are not UTF-8 stay as they are, as GNU tar does it: it has no `hdrcharset`.
                self.record("path", &path);
            }
        }
        if target.len() > NAME_BYTES {
            self.record("linkpath", target);
        }
        let fits = target.len().min(NAME_BYTES);
        if let Some(ustar) = self.header.as_ustar_mut() {
            ustar.linkname[..fits].copy_from_slice(&target[..fits]);
        }
        Ok(())
    }

    fn name(&mut self, path: &[u8]) {
        let fits = path.len().min(NAME_BYTES);
        if let Some(ustar) = self.header.as_ustar_mut() {
            ustar.name[..fits].copy_from_slice(&path[..fits]);
        }
    }

    fn device(&mut self, entry: &TreeEntry, kind: EntryType, major: u32, minor: u32) -> io::Result<EntryType> {
        if major > MAX_DEVICE || minor > MAX_DEVICE {
            let message = format!("the device numbers {major}, {minor} of `{}` do not fit a tar archive", entry.path);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.header.set_device_major(major)?;
        self.header.set_device_minor(minor)?;
        Ok(kind)
    }

    fn owner_and_time(&mut self, entry: &TreeEntry) {
        self.header.set_uid(u64::from(entry.uid));
        self.header.set_gid(u64::from(entry.gid));
        for (keyword, id) in [("uid", entry.uid), ("gid", entry.gid)] {
            if id > MAX_OWNER {
                self.record(keyword, id.to_string());
            }
        }
        for (keyword, name) in [("uname", &entry.user), ("gname", &entry.group)] {
            let Some(name) = name else { continue };
            if name.len() > OWNER_BYTES || !name.is_ascii() {
                self.record(keyword, name);
                continue;
            }
            let Some(ustar) = self.header.as_ustar_mut() else { continue };
            let field = if keyword == "uname" { &mut ustar.uname } else { &mut ustar.gname };
            field[..name.len()].copy_from_slice(name.as_bytes());
        }
        let seconds = u64::try_from(entry.modified.seconds).ok().filter(|seconds| *seconds <= MAX_LARGE);
        self.header.set_mtime(seconds.unwrap_or(0));
        if seconds.is_none() || entry.modified.nanos != 0 {
            self.record("mtime", render_time(entry.modified));
        }
    }

    fn size(&mut self, size: u64) {
        self.header.set_size(size);
        if size > MAX_LARGE {
            self.record("size", size.to_string());
        }
    }

    fn attributes(&mut self, entry: &TreeEntry) {
        for (name, value) in &entry.xattrs {
            let keyword = [XATTR.as_bytes(), &encode_keyword(name)].concat();
            put_record(&mut self.records, &keyword, value);
        }
        let FileIdentity { inode, changed } = entry.identity;
        if entry.identity != FileIdentity::default() {
            let comment = format!("{COMMENT_IDENTITY}{inode} changed={}", render_time(changed));
            self.record(COMMENT, comment);
        }
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.records.is_empty() {
            let mut extended = Header::new_ustar();
            if let Some(ustar) = extended.as_ustar_mut() {
                let name = b"PaxHeaders/entry";
                ustar.name[..name.len()].copy_from_slice(name);
            }
            let size = self.records.len() as u64;
            extended.set_entry_type(EntryType::XHeader);
            extended.set_mode(0o600);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(size);
            extended.set_cksum();
            out.write_all(extended.as_bytes())?;
            out.write_all(&self.records)?;
            out.write_all(&[0; BLOCK][..padding(size)])?;
        }
        self.header.set_cksum();
        out.write_all(self.header.as_bytes())
    }
}
