//! A large collection, read element by element, so that neither the server nor we ever hold it in one piece.
//!
//! Invariant: what is returned is the collection of one moment: it is watched (`WATCH`) while it is read, and must have as
//! many elements as the server counts. What changes all the time, or cannot be read so, is left to `DUMP`.

use std::path::Path;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use bytes::{Bytes, BytesMut};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::PIECE_BYTES;
use super::export::Expiry;
use super::seen::Seen;
use crate::connection::{Connection, Reply};
use crate::rdb::write::{Plain, length, string};
use crate::server::Server;

/// About so much is asked for at once.
const CHUNK_BYTES: u64 = 1024 * 1024;
const CHUNK_ELEMENTS: u64 = 10_000;
/// How often a collection that changes is tried again.
const ATTEMPTS: usize = 3;

/// A collection, spooled.
pub(super) struct Value {
    pub(super) kind: Plain,
    pub(super) expires_ms: Option<i64>,
    elements: u64,
    file: File,
}

impl Value {
    /// How many elements there are, as an RDB says it.
    pub(super) fn count(&self) -> Vec<u8> {
        let mut count = Vec::new();
        length(&mut count, self.elements);
        count
    }

    /// The next bytes of the elements.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = self.file.read_buf(&mut piece).await.map_err(cannot_spool)?;
        Ok((read > 0).then(|| piece.freeze()))
    }
}

/// Reads the collection `name`, which takes `size` bytes of the server's memory; `None` when that is not possible.
pub(super) async fn read(
    cx: &RunContext,
    server: &Server,
    database: u32,
    name: &[u8],
    size: u64,
    expiry: Expiry,
    scratch: &Path,
) -> Result<Option<Value>> {
    // On a connection of its own: an element that is too long for a reply leaves it unusable.
    let mut connection = server.connect(cx).await?;
    connection.call(&["SELECT", &database.to_string()]).await?;
    for _ in 0..ATTEMPTS {
        let mut reading = Reading { connection: &mut connection, name, size, scratch };
        match reading.once(expiry).await {
            Ok(Read::Whole(value)) => return Ok(Some(value)),
            Ok(Read::Changed) => {}
            Ok(Read::Otherwise) => return Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

enum Read {
    Whole(Value),
    Changed,
    /// Not of a kind that is read so.
    Otherwise,
}

struct Reading<'a> {
    connection: &'a mut Connection,
    name: &'a [u8],
    size: u64,
    scratch: &'a Path,
}

impl Reading<'_> {
    async fn once(&mut self, expiry: Expiry) -> Result<Read> {
        self.ask(b"WATCH", &[]).await?;
        let (kind, count) = match self.ask(b"TYPE", &[]).await?.text().as_deref() {
            Some("list") => (Plain::List, &b"LLEN"[..]),
            Some("set") => (Plain::Set, &b"SCARD"[..]),
            Some("hash") => (Plain::Hash, &b"HLEN"[..]),
            Some("zset") => (Plain::SortedSet, &b"ZCARD"[..]),
            _ => return Ok(Read::Otherwise),
        };
        let mut answers = Vec::new();
        for command in expiry.commands(self.name) {
            answers.push(self.connection.call(&command).await?);
        }
        let expires_ms = expiry.read(&answers)?;
        let Reply::Integer(elements) = self.ask(count, &[]).await? else { return Ok(Read::Otherwise) };
        let elements = elements as u64;
        let chunk = (CHUNK_BYTES / (self.size / elements.max(1)).max(1)).clamp(1, CHUNK_ELEMENTS);
        let mut spool = Spool::new(self.scratch)?;
        let read = match kind {
            Plain::List => self.list(elements, chunk, &mut spool).await?,
            Plain::Set => self.scan(b"SSCAN", kind, chunk, &mut spool).await?,
            Plain::Hash => self.scan(b"HSCAN", kind, chunk, &mut spool).await?,
            Plain::SortedSet => self.scan(b"ZSCAN", kind, chunk, &mut spool).await?,
        };
        let Some(read) = read else {
            self.connection.call(&["UNWATCH"]).await?;
            return Ok(Read::Otherwise);
        };
        self.connection.call(&["MULTI"]).await?;
        let unchanged = self.connection.call(&["EXEC"]).await? != Reply::Nil;
        if !unchanged || read != elements {
            return Ok(Read::Changed);
        }
        Ok(Read::Whole(Value { kind, expires_ms, elements, file: spool.finish().await? }))
    }

    /// A command about the key.
    async fn ask(&mut self, verb: &[u8], more: &[&[u8]]) -> Result<Reply> {
        self.connection.call(&[&[verb, self.name], more].concat()).await
    }

    async fn list(&mut self, elements: u64, chunk: u64, spool: &mut Spool) -> Result<Option<u64>> {
        let (mut read, mut start) = (0, 0);
        while start < elements {
            let (first, last) = (start.to_string(), (start + chunk - 1).to_string());
            let reply = self.ask(b"LRANGE", &[first.as_bytes(), last.as_bytes()]).await?;
            for element in reply.items() {
                spool.string(bytes(element)?).await?;
                read += 1;
            }
            start += chunk;
        }
        Ok(Some(read))
    }

    /// Steps through a collection without order. `None` when its fields expire: then it is not a plain hash.
    async fn scan(&mut self, verb: &[u8], kind: Plain, chunk: u64, spool: &mut Spool) -> Result<Option<u64>> {
        let (mut cursor, mut read) = ("0".to_owned(), 0);
        let chunk = chunk.to_string();
        let mut seen = Seen::in_folder(self.scratch);
        loop {
            let reply = self.ask(verb, &[cursor.as_bytes(), b"COUNT", chunk.as_bytes()]).await?;
            let Reply::Array(parts) = reply else { return Ok(None) };
            let [next, Reply::Array(elements)] = &parts[..] else { return Ok(None) };
            if kind == Plain::Hash && self.fields_expire(elements).await? {
                return Ok(None);
            }
            let width = if kind == Plain::Set { 1 } else { 2 };
            for element in elements.chunks_exact(width) {
                if !seen.insert(bytes(&element[0])?)? {
                    continue;
                }
                read += 1;
                spool.string(bytes(&element[0])?).await?;
                match kind {
                    Plain::SortedSet => spool.raw(&score(&element[1])?.to_le_bytes()).await?,
                    Plain::Hash => spool.string(bytes(&element[1])?).await?,
                    Plain::Set | Plain::List => {}
                }
            }
            cursor = next.text().unwrap_or_default();
            if cursor == "0" {
                return Ok(Some(read));
            }
        }
    }

    /// Whether any of these fields expires. Servers before Redis 7.4 and Valkey 9 know no such fields.
    async fn fields_expire(&mut self, pairs: &[Reply]) -> Result<bool> {
        if pairs.is_empty() {
            return Ok(false);
        }
        let count = (pairs.len() / 2).to_string();
        let mut command = vec![&b"HPEXPIRETIME"[..], self.name, b"FIELDS", count.as_bytes()];
        for pair in pairs.chunks_exact(2) {
            command.push(bytes(&pair[0])?);
        }
        match self.connection.ask(&command).await? {
            Reply::Error(text) if text.contains("unknown command") => Ok(false),
            // Not told: it may.
            Reply::Error(_) => Ok(true),
            reply => Ok(reply.items().iter().any(|expiry| matches!(expiry, Reply::Integer(at) if *at > 0))),
        }
    }
}

fn bytes(reply: &Reply) -> Result<&[u8]> {
    match reply {
        Reply::Bulk(bytes) => Ok(bytes),
        _ => Err(crate::replies::nonsense("an element that is none")),
    }
}

fn score(reply: &Reply) -> Result<f64> {
    let text = reply.text().unwrap_or_default();
    text.parse().map_err(|_| crate::replies::nonsense("a score that is none"))
}

/// Elements on their way into a file without a name.
struct Spool {
    file: File,
    waiting: Vec<u8>,
}

impl Spool {
    fn new(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(cannot_spool)?;
        Ok(Self { file: File::from_std(file), waiting: Vec::new() })
    }

    async fn string(&mut self, bytes: &[u8]) -> Result<()> {
        string(&mut self.waiting, bytes);
        self.flush_when(PIECE_BYTES).await
    }

    async fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.waiting.extend_from_slice(bytes);
        self.flush_when(PIECE_BYTES).await
    }

    async fn flush_when(&mut self, enough: usize) -> Result<()> {
        if self.waiting.len() >= enough {
            self.file.write_all(&self.waiting).await.map_err(cannot_spool)?;
            self.waiting.clear();
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<File> {
        self.flush_when(0).await?;
        self.file.flush().await.map_err(cannot_spool)?;
        self.file.rewind().await.map_err(cannot_spool)?;
        Ok(self.file)
    }
}

fn cannot_spool(source: std::io::Error) -> Error {
    Error::from_io("cannot hold a large key in the scratch folder", source)
}
