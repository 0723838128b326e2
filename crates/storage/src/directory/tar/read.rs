//! Reads the members of an archive, one after another, and trusts none of them.
//!
//! Invariant: an archive that is cut, or that names a place outside its tree, is an error, never a shorter tree.

use std::io::{self, Read};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::EntryOrder;
use backup_core::tree::{EntryKind, FileIdentity, FileTime, TreeEntry, TreePath};
use tar::{EntryType, Header};

use super::pax::{damaged, decode_keyword, number, parse_time, records};
use super::{BLOCK, COMMENT, COMMENT_IDENTITY, MAX_SEGMENTS, SPARSE_MAJOR, SPARSE_NAME, SPARSE_SIZE, XATTR, padding};
use crate::directory::spool::{Buffer, SpoolWriter};

/// An extended header longer than this is none (extended attributes are limited to 64 KiB each by Linux).
const MAX_RECORDS_BYTES: u64 = 64 * 1024 * 1024;
/// More zero bytes than tar's usual 20 blocks after the end are something else.
const MAX_TRAILER_BYTES: u64 = 20 * BLOCK as u64;
const PIECE_BYTES: usize = 64 * 1024;

/// Reads an archive from its plain bytes.
pub(in crate::directory) struct TarReader<R> {
    input: R,
    order: EntryOrder,
    last: Option<TreePath>,
    /// What is left to read of the current member.
    content: Content,
}

/// The content of the current member.
#[derive(Debug, Default)]
struct Content {
    /// Bytes in the archive, the map of a sparse file included.
    stored: u64,
    /// The bytes after it that fill a block.
    padding: usize,
    /// Whether a map precedes the data, and the length with holes.
    sparse: Option<u64>,
}

/// What an extended header says about the member after it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: Option<u64>,
    group: Option<u64>,
    owner_name: Option<Vec<u8>>,
    group_name: Option<Vec<u8>>,
    modified: Option<FileTime>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    identity: FileIdentity,
}

impl<R: Read> TarReader<R> {
    /// A reader of an archive whose entries lie in this order.
    pub(in crate::directory) fn new(input: R, order: EntryOrder) -> Self {
        Self { input, order, last: None, content: Content::default() }
    }

    /// What it reads from, once [`TarReader::next`] returned `None`.
    pub(in crate::directory) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry. What was not read of the content of the one before is skipped.
    pub(in crate::directory) fn next(&mut self) -> Result<Option<TreeEntry>> {
        self.skip()?;
        let mut extended = None;
        loop {
            let Some(header) = self.header()? else {
                if extended.is_some() {
                    return Err(damaged("an extended header describes nothing"));
                }
                return self.end().map(|()| None);
            };
            if header.entry_type() == EntryType::XHeader {
                if extended.is_some() {
                    return Err(damaged("an extended header follows another"));
                }
                extended = Some(self.extended(&header)?);
                continue;
            }
            let entry = self.entry(&header, extended.unwrap_or_default())?;
            if self.order == EntryOrder::ByPath {
                if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
                    return Err(damaged(format_args!("the entry `{}` is out of order", entry.path)));
                }
                self.last = Some(entry.path.clone());
            }
            return Ok(Some(entry));
        }
    }

    /// Reads the content of the current entry.
    pub(in crate::directory) fn content(&mut self, to: &mut SpoolWriter) -> Result<()> {
        let Content { mut stored, sparse, padding } = std::mem::take(&mut self.content);
        let Some(size) = sparse else {
            self.data(to, stored)?;
            return self.discard(padding as u64);
        };
        let mut at = 0;
        let map = self.map(&mut stored)?;
        let whole = stored % BLOCK as u64;
        for (start, length) in map {
            let end = start.checked_add(length).filter(|end| *end <= size && start >= at);
            let Some(end) = end.filter(|_| length <= stored) else {
                return Err(damaged("the map of a sparse file is out of order"));
            };
            if length > 0 && stored % BLOCK as u64 != whole {
                return Err(damaged("a stretch of a sparse file begins within a block"));
            }
            hole(to, start - at)?;
            self.data(to, length)?;
            stored -= length;
            at = end;
        }
        if stored > 0 {
            return Err(damaged("the map of a sparse file leaves data out"));
        }
        hole(to, size - at)?;
        self.discard(padding as u64)
    }

    fn data(&mut self, to: &mut SpoolWriter, mut length: u64) -> Result<()> {
        let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(length).unwrap_or(PIECE_BYTES))];
        while length > 0 {
            let count = length.min(buffer.len() as u64);
            self.read(&mut buffer[..count as usize])?;
            push(to, &buffer[..count as usize])?;
            length -= count;
        }
        Ok(())
    }

    /// The map of a sparse file: pairs of offset and length.
    fn map(&mut self, stored: &mut u64) -> Result<Vec<(u64, u64)>> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut line = || {
            let mut text = Vec::new();
            loop {
                if at == BLOCK {
                    *stored = stored.checked_sub(BLOCK as u64).ok_or_else(|| damaged("a sparse map is cut"))?;
                    read(&mut self.input, &mut block)?;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return number(&text).ok_or_else(|| damaged("a sparse map holds no number")),
                    _ if text.len() > 20 => return Err(damaged("a sparse map holds no number")),
                    byte => text.push(byte),
                }
            }
        };
        let count = line()?;
        if count > MAX_SEGMENTS {
            return Err(damaged("a file has too many holes"));
        }
        (0..count).map(|_| Ok((line()?, line()?))).collect()
    }

    fn skip(&mut self) -> Result<()> {
        let Content { stored, padding, .. } = std::mem::take(&mut self.content);
        self.discard(stored)?;
        self.discard(padding as u64)
    }

    fn discard(&mut self, length: u64) -> Result<()> {
        let copied = io::copy(&mut (&mut self.input).take(length), &mut io::sink()).map_err(read_error)?;
        if copied == length { Ok(()) } else { Err(cut()) }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        read(&mut self.input, buffer)
    }

    /// The next header; `None` for a block of zeros.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        self.read(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let mut summed = header.clone();
        summed.set_cksum();
        if header.cksum().ok() != summed.cksum().ok() {
            return Err(damaged("a header does not have its checksum"));
        }
        if header.as_ustar().is_none() {
            return Err(damaged("a member is not of the POSIX format"));
        }
        Ok(Some(header))
    }

    /// The second block of zeros, and whatever fills the file after it.
    fn end(&mut self) -> Result<()> {
        let mut block = [1; BLOCK];
        self.read(&mut block)?;
        let mut trailer = Vec::new();
        (&mut self.input).take(MAX_TRAILER_BYTES + 1).read_to_end(&mut trailer).map_err(read_error)?;
        let zero = block.iter().chain(&trailer).all(|byte| *byte == 0);
        if zero && trailer.len() as u64 <= MAX_TRAILER_BYTES {
            Ok(())
        } else {
            Err(damaged("something follows its end"))
        }
    }

    fn extended(&mut self, header: &Header) -> Result<Extended> {
        let size = header.entry_size().map_err(malformed)?;
        if size > MAX_RECORDS_BYTES {
            return Err(damaged("an extended header is too long"));
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes).map_err(read_error)?;
        if (bytes.len() as u64) < size {
            return Err(cut());
        }
        self.discard(padding(size) as u64)?;
        Extended::parse(&bytes)
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<TreeEntry> {
        let Some(ustar) = header.as_ustar() else { return Err(damaged("a member is not of the POSIX format")) };
        if ustar.prefix[0] != 0 {
            return Err(damaged("a member's name is in two parts"));
        }
        let stored = match extended.size {
            Some(size) => size,
            None => header.entry_size().map_err(malformed)?,
        };
        let sparse = if extended.sparse {
            Some(extended.sparse_size.ok_or_else(|| damaged("a sparse file has no length"))?)
        } else {
            None
        };
        let name = match (extended.sparse, extended.sparse_name, extended.path) {
            (true, Some(name), _) | (false, _, Some(name)) => name,
            (true, None, _) => return Err(damaged("a sparse file has no name")),
            (false, _, None) => field(&ustar.name).to_vec(),
        };
        let link = extended.link.unwrap_or_else(|| field(&ustar.linkname).to_vec());
        // The system has no such names; the fields of a header end at a zero byte, the records do not.
        if link.contains(&0) || extended.xattrs.iter().any(|(name, _)| name.contains(&0)) {
            return Err(damaged("a link's target or the name of an attribute holds a zero byte"));
        }
        let kind = kind(header, link, sparse.unwrap_or(stored))?;
        if !matches!(kind, EntryKind::File { .. }) && (stored > 0 || sparse.is_some()) {
            return Err(damaged("something that is no file has content"));
        }
        let mode = header.mode().map_err(malformed)?;
        if mode > 0o7777 {
            return Err(damaged("an entry has impossible permission bits"));
        }
        self.content = Content { stored, padding: padding(stored), sparse };
        Ok(TreeEntry {
            path: tree_path(&name, &kind)?,
            kind,
            mode,
            uid: id(extended.owner, header.uid())?,
            gid: id(extended.group, header.gid())?,
            user: name_of(extended.owner_name, &ustar.uname)?,
            group: name_of(extended.group_name, &ustar.gname)?,
            modified: match extended.modified {
                Some(time) => time,
                None => FileTime { seconds: header.mtime().map_err(malformed)?.cast_signed(), nanos: 0 },
            },
            xattrs: extended.xattrs,
            identity: extended.identity,
        })
    }
}

impl Extended {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut extended = Self::default();
        for (keyword, value) in records(bytes)? {
            let text = || Some(value.to_vec());
            let count = || number(value).map(Some).ok_or_else(|| damaged("an extended header holds no number"));
            match std::str::from_utf8(keyword).unwrap_or_default() {
                "path" => extended.path = text(),
                "linkpath" => extended.link = text(),
                "size" => extended.size = count()?,
                "uid" => extended.owner = count()?,
                "gid" => extended.group = count()?,
                "uname" => extended.owner_name = text(),
                "gname" => extended.group_name = text(),
                "mtime" => {
                    let time = parse_time(value).ok_or_else(|| damaged("an extended header holds no time"))?;
                    extended.modified = Some(time);
                }
                SPARSE_MAJOR if value == b"1" => extended.sparse = true,
                SPARSE_MAJOR => return Err(damaged("a sparse file is of a version that is not known")),
                SPARSE_NAME => extended.sparse_name = text(),
                SPARSE_SIZE => extended.sparse_size = count()?,
                COMMENT => extended.identity = identity(value).unwrap_or_default(),
                _ => {
                    if let Some(name) = keyword.strip_prefix(XATTR.as_bytes()) {
                        extended.xattrs.push((decode_keyword(name), value.to_vec()));
                    }
                }
            }
        }
        Ok(extended)
    }
}

/// From our comment. Anybody else's says nothing.
fn identity(comment: &[u8]) -> Option<FileIdentity> {
    let text = std::str::from_utf8(comment).ok()?.strip_prefix(COMMENT_IDENTITY)?;
    let (inode, changed) = text.split_once(" changed=")?;
    Some(FileIdentity { inode: inode.parse().ok()?, changed: parse_time(changed.as_bytes())? })
}

fn kind(header: &Header, link: Vec<u8>, size: u64) -> Result<EntryKind> {
    let device = || -> Result<(u32, u32)> {
        let numbers = (header.device_major().map_err(malformed)?, header.device_minor().map_err(malformed)?);
        numbers.0.zip(numbers.1).ok_or_else(|| damaged("a device has no numbers"))
    };
    Ok(match header.entry_type() {
        EntryType::Regular => EntryKind::File { size },
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink { target: link },
        EntryType::Link => EntryKind::Hardlink { target: tree_path(&link, &EntryKind::Fifo)? },
        EntryType::Fifo => EntryKind::Fifo,
        EntryType::Char => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
        EntryType::Block => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
        _ => return Err(damaged("a member is of a kind that a tree does not have")),
    })
}

/// Directories end with `/`; the root is `./`.
fn tree_path(name: &[u8], kind: &EntryKind) -> Result<TreePath> {
    if name == b"./" {
        return Ok(TreePath::root());
    }
    let path = if *kind == EntryKind::Directory { name.strip_suffix(b"/").unwrap_or(name) } else { name };
    if path.is_empty() {
        return Err(damaged("a member has no name"));
    }
    TreePath::new(path)
}

fn id(extended: Option<u64>, header: io::Result<u64>) -> Result<u32> {
    let id = extended.map_or(header, Ok).map_err(malformed)?;
    u32::try_from(id).map_err(|_| damaged("an owner is no number of an owner"))
}

fn name_of(extended: Option<Vec<u8>>, header: &[u8]) -> Result<Option<String>> {
    let name = extended.unwrap_or_else(|| field(header).to_vec());
    let name = String::from_utf8(name).map_err(|_| damaged("an owner's name is not UTF-8"))?;
    if name.contains('\0') {
        return Err(damaged("an owner's name holds a zero byte"));
    }
    Ok((!name.is_empty()).then_some(name))
}

fn field(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn push(to: &mut SpoolWriter, data: &[u8]) -> Result<()> {
    match to.push(data) {
        Buffer::HasRoom => Ok(()),
        Buffer::IsFull => to.flush().map_err(spool_error),
    }
}

/// Our archives have no more holes than a spool keeps. Those of an enemy must not make us write them out as zeros:
/// a few bytes of a map would fill the disk.
fn hole(to: &mut SpoolWriter, length: u64) -> Result<()> {
    if to.hole(length) { Ok(()) } else { Err(damaged("a file has too many holes")) }
}

/// The error of a temporary file that cannot be written.
pub(in crate::directory) fn spool_error(source: io::Error) -> Error {
    Error::from_io("cannot write a temporary file", source)
}

fn read(input: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    input.read_exact(buffer).map_err(read_error)
}

fn cut() -> Error {
    damaged("it ends before its end")
}

fn malformed(source: io::Error) -> Error {
    damaged("a header holds no number").caused_by(source)
}

/// Errors of the system are the system's; all others come from the decoders and mean damage.
fn read_error(source: io::Error) -> Error {
    if source.raw_os_error().is_some() {
        return Error::from_io("cannot read", source);
    }
    if source.kind() == io::ErrorKind::UnexpectedEof {
        return cut();
    }
    Error::new(ErrorKind::Damaged, "it does not decompress").caused_by(source)
}
