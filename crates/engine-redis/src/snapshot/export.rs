//! An RDB made of what SCAN and DUMP hand out, for servers that let nobody replicate or save: key by key.
//!
//! Each key is as it was at one moment, with its expiry (a transaction reads both), but the keys are of different
//! moments: such a snapshot is called fuzzy. A key that is there all the time is in it; SCAN guarantees that.
//! Invariant: a key is in the RDB once and whole, or the export fails and names it; values pass through in pieces.

use std::fmt;
use std::path::PathBuf;

use backup_core::RunContext;
use backup_core::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::PIECE_BYTES;
use super::large::{self, Value};
use super::seen::Seen;
use crate::connection::{Connection, Reply, refusal};
use crate::rdb::write::{Footer, RdbWriter};
use crate::replies::{Head, nonsense};
use crate::server::{Info, Server, allowed};
use crate::versions;

/// How many keys a server looks at for each step of a listing.
const SCAN_STEP: &str = "1000";
/// Keys are asked for in batches: by estimate, so much waits in the server's memory; and so many keys.
const BATCH_BYTES: u64 = 8 * 1024 * 1024;
const BATCH_KEYS: usize = 256;
/// How many keys are in a batch when the server does not tell how large they are.
const BATCH_UNKNOWN: usize = 16;
/// A collection that takes more of the server's memory is read element by element.
const LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// The most databases that are tried when the server does not list them.
const DATABASES_MAX: u32 = 65_536;
/// Pieces that may wait for the store.
const QUEUE: usize = 4;
/// How much of a key's name an error shows.
const SHOWN_BYTES: usize = 64;

/// What the user of the plan needs for it, with a key that stands for all.
const NEEDED: [&[&str]; 6] = [&["SCAN", "0"], &["DUMP", "x"], &["MULTI"], &["EXEC"], &["PTTL", "x"], &["SELECT", "0"]];

/// An RDB on its way. Dropping it ends the work.
pub(crate) struct Export {
    pieces: mpsc::Receiver<Bytes>,
    work: JoinSet<Result<()>>,
}

impl Export {
    /// Connects and looks whether it is allowed; returns when the RDB begins.
    pub(crate) async fn begin(cx: &RunContext, server: &Server) -> Result<Self> {
        let mut connection = server.connect(cx).await?;
        needed(&mut connection).await?;
        let info = Info::ask(&mut connection, None).await.unwrap_or_default();
        let functions = functions(&mut connection).await?;
        let version = functions.as_ref().map(|(footer, _)| footer.version).or_else(|| by_product(&info));
        let version = version.ok_or_else(crate::server::unknown_version)?;
        let databases = databases(&mut connection, &info).await?;
        connection.call(&["SCAN", "0", "COUNT", "1"]).await?;
        let expiry = Expiry::known(&mut connection).await?;
        let sizes = allowed(&mut connection, &["MEMORY", "USAGE", "x"]).await.is_ok();
        if !sizes {
            cx.warn("the server does not tell how large keys are: each is read at once (allow +memory|usage)");
        }
        let mut writer = RdbWriter::begin(version);
        if let Some(product) = info.product() {
            writer.aux(&format!("{}-ver", product.product.to_ascii_lowercase()), &product.version);
        }
        writer.raw(&functions.map(|(_, libraries)| libraries).unwrap_or_default());
        let (out, pieces) = mpsc::channel(QUEUE);
        let seen = Seen::in_folder(cx.scratch());
        let scratch = cx.scratch().to_owned();
        let exporter = Exporter {
            cx: cx.clone(),
            server: server.clone(),
            connection,
            writer,
            out,
            version,
            expiry,
            sizes,
            seen,
            scratch,
        };
        let mut work = JoinSet::new();
        work.spawn(exporter.run(databases));
        Ok(Self { pieces, work })
    }

    /// The next bytes; `None` when every database was listed to its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.pieces.recv().await {
            return Ok(Some(piece));
        }
        match self.work.join_next().await {
            None => Ok(None),
            Some(Ok(result)) => result.map(|()| None),
            Some(Err(source)) => Err(Error::new(ErrorKind::Internal, "the export panicked").caused_by(source)),
        }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

/// Looks whether the plan's user may export.
///
/// # Errors
/// The refusal of the first command that it may not run. Which keys it may read shows when they are read.
pub(crate) async fn needed(connection: &mut Connection) -> Result<()> {
    for command in NEEDED {
        match allowed(connection, command).await {
            Err(error) if error.message().contains("'x' key") => {}
            allowed => allowed?,
        }
    }
    Ok(())
}

/// The libraries of functions as an RDB has them, and the version of that form; `None` before 7.0.
async fn functions(connection: &mut Connection) -> Result<Option<(Footer, Vec<u8>)>> {
    let mut libraries = match connection.ask(&["FUNCTION", "DUMP"]).await? {
        Reply::Bulk(libraries) => libraries,
        Reply::Error(text) if text.contains("unknown command") => return Ok(None),
        Reply::Error(text) => return Err(refusal("FUNCTION DUMP", &text)),
        _ => return Err(nonsense("something else than its functions")),
    };
    let footer = libraries.split_off(libraries.len().saturating_sub(Footer::BYTES));
    let footer = Footer::of(footer.try_into().map_err(|_| nonsense("functions that are cut"))?);
    if !footer.fits(digest_of(&libraries)) {
        return Err(Error::new(ErrorKind::Damaged, "the functions that the server dumped have a wrong checksum"));
    }
    Ok(Some((footer, libraries)))
}

fn by_product(info: &Info) -> Option<u32> {
    info.product().map(|product| versions::written_by(&product.product, &product.version))
}

/// The databases to list: those that hold keys, or all when the server does not tell.
async fn databases(connection: &mut Connection, info: &Info) -> Result<Vec<u32>> {
    if info.get("redis_version").is_some() {
        return Ok(info.keyspace().into_keys().collect());
    }
    let mut databases = Vec::new();
    while (databases.len() as u32) < DATABASES_MAX
        && !matches!(connection.ask(&["SELECT", &databases.len().to_string()]).await?, Reply::Error(_))
    {
        databases.push(databases.len() as u32);
    }
    connection.call(&["SELECT", "0"]).await?;
    Ok(databases)
}

/// How the moment is asked for at which a key expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// `PEXPIRETIME`, of 7.0.
    Absolute,
    /// `TIME` and `PTTL`.
    Relative,
}

impl Expiry {
    async fn known(connection: &mut Connection) -> Result<Self> {
        match connection.ask(&["PEXPIRETIME", "x"]).await? {
            Reply::Error(_) => Ok(Self::Relative),
            _ => Ok(Self::Absolute),
        }
    }

    /// The commands that ask, for the key `name`.
    pub(super) fn commands(self, name: &[u8]) -> Vec<Vec<&[u8]>> {
        match self {
            Self::Absolute => vec![vec![b"PEXPIRETIME", name]],
            Self::Relative => vec![vec![b"TIME"], vec![b"PTTL", name]],
        }
    }

    /// What the answers say: milliseconds since 1970; `None` for a key that does not expire.
    pub(super) fn read(self, replies: &[Reply]) -> Result<Option<i64>> {
        let number = |reply: &Reply| reply.text().and_then(|text| text.parse::<i64>().ok());
        match (self, replies) {
            (Self::Absolute, [Reply::Integer(at)]) => Ok(Some(*at).filter(|at| *at >= 0)),
            (Self::Relative, [now, Reply::Integer(left)]) => {
                let (Some(seconds), Some(micros)) =
                    (now.items().first().and_then(number), now.items().get(1).and_then(number))
                else {
                    return Err(nonsense("a time that is none"));
                };
                Ok(Some(*left).filter(|left| *left >= 0).map(|left| seconds * 1000 + micros / 1000 + left))
            }
            _ => Err(nonsense("an expiry that is none")),
        }
    }
}

struct Exporter {
    cx: RunContext,
    server: Server,
    connection: Connection,
    writer: RdbWriter,
    out: mpsc::Sender<Bytes>,
    /// The version of the RDB; what the server hands out must not be newer.
    version: u32,
    expiry: Expiry,
    /// Whether the server tells how large a key is.
    sizes: bool,
    seen: Seen,
    scratch: PathBuf,
}

impl Exporter {
    async fn run(mut self, databases: Vec<u32>) -> Result<()> {
        for database in databases {
            self.connection.call(&["SELECT", &database.to_string()]).await?;
            let mut cursor = "0".to_owned();
            loop {
                let reply = self.connection.call(&["SCAN", &cursor, "COUNT", SCAN_STEP]).await?;
                let Reply::Array(parts) = reply else { return Err(nonsense("no list of keys")) };
                let [next, Reply::Array(found)] = &parts[..] else { return Err(nonsense("no list of keys")) };
                cursor = next.text().ok_or_else(|| nonsense("no cursor"))?;
                self.keys(database, found).await?;
                if cursor == "0" {
                    break;
                }
            }
        }
        let Self { mut writer, out, .. } = self;
        send(&out, writer.take()).await?;
        send(&out, writer.end()).await
    }

    /// The keys of one step that are new.
    async fn keys(&mut self, database: u32, found: &[Reply]) -> Result<()> {
        let mut names = Vec::new();
        for key in found {
            let Reply::Bulk(name) = key else { return Err(nonsense("a key that is none")) };
            let marked = [&database.to_le_bytes()[..], name].concat();
            if self.seen.insert(&marked)? {
                names.push(name.as_slice());
            }
        }
        let sizes = self.sizes_of(&names).await?;
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (name, size) in names.into_iter().zip(sizes) {
            if size.is_some_and(|size| size >= LARGE_BYTES) {
                let size = size.unwrap_or_default();
                if let Some(value) =
                    large::read(&self.cx, &self.server, database, name, size, self.expiry, &self.scratch).await?
                {
                    self.piecewise(database, name, value).await?;
                    continue;
                }
            }
            batch.push(name);
            bytes += size.unwrap_or(0);
            let most = if self.sizes { BATCH_KEYS } else { BATCH_UNKNOWN };
            if bytes >= BATCH_BYTES || batch.len() >= most {
                self.dump(database, &batch).await?;
                (batch, bytes) = (Vec::new(), 0);
            }
        }
        self.dump(database, &batch).await
    }

    /// How many bytes of memory each key takes; `None` for one that is gone, or when the server does not tell.
    async fn sizes_of(&mut self, names: &[&[u8]]) -> Result<Vec<Option<u64>>> {
        if !self.sizes {
            return Ok(vec![None; names.len()]);
        }
        let mut commands = Vec::new();
        for name in names {
            self.connection.writer.encode(&mut commands, &[&b"MEMORY"[..], b"USAGE", name]);
        }
        self.connection.writer.write(&commands).await?;
        let mut sizes = Vec::new();
        for _ in names {
            sizes.push(match self.connection.reader.next().await? {
                Reply::Integer(size) => u64::try_from(size).ok(),
                _ => None,
            });
        }
        Ok(sizes)
    }

    /// Asks for all of them, then reads what comes.
    async fn dump(&mut self, database: u32, names: &[&[u8]]) -> Result<()> {
        let mut commands = Vec::new();
        for name in names {
            let writer = &self.connection.writer;
            writer.encode(&mut commands, &["MULTI"]);
            for command in self.expiry.commands(name) {
                writer.encode(&mut commands, &command);
            }
            writer.encode(&mut commands, &[&b"DUMP"[..], name]);
            writer.encode(&mut commands, &["EXEC"]);
        }
        self.connection.writer.write(&commands).await?;
        for name in names {
            self.receive(database, name).await.map_err(|error| error.with("key", shown(name)))?;
            self.cx.progress(0, 1);
        }
        Ok(())
    }

    /// The answers to one key's transaction.
    async fn receive(&mut self, database: u32, name: &[u8]) -> Result<()> {
        let reader = &mut self.connection.reader;
        let questions = self.expiry.commands(name).len();
        let mut refused = None;
        // MULTI, then each command that is queued.
        for _ in 0..questions + 2 {
            if let Reply::Error(text) = reader.next().await? {
                refused.get_or_insert(text);
            }
        }
        match reader.head().await? {
            Head::Array(count) if count == questions as u64 + 1 => {}
            Head::Error(text) => return Err(may_not_read(&refused.unwrap_or(text))),
            _ => return Err(nonsense("no answers to a transaction")),
        }
        let mut answers = Vec::new();
        for _ in 0..questions {
            answers.push(reader.next().await?);
        }
        let expires_ms = self.expiry.read(&answers)?;
        match reader.head().await? {
            Head::Bulk(length) => self.value(database, name, expires_ms, length).await,
            // Deleted, or expired, since it was listed.
            Head::Nil => Ok(()),
            Head::Error(text) => Err(may_not_read(&text)),
            _ => Err(nonsense("something else than a value")),
        }
    }

    /// A value of so many bytes, its footer included, as it comes.
    async fn value(&mut self, database: u32, name: &[u8], expires_ms: Option<i64>, length: u64) -> Result<()> {
        let mut left = length.checked_sub(Footer::BYTES as u64).filter(|left| *left > 0);
        let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
        let mut begun = false;
        while let Some(most) = left.filter(|left| *left > 0) {
            let mut piece = self.connection.reader.some(most).await?;
            left = Some(most - piece.len() as u64);
            digest.update(&piece);
            if !begun {
                self.writer.key(database, expires_ms, piece.split_to(1)[0], name);
                begun = true;
            }
            self.writer.raw(&piece);
            self.hand_over().await?;
        }
        let mut footer = Vec::new();
        while begun && footer.len() < Footer::BYTES {
            footer.extend_from_slice(&self.connection.reader.some((Footer::BYTES - footer.len()) as u64).await?);
        }
        self.connection.reader.end().await?;
        let footer = Footer::of(footer.try_into().map_err(|_| nonsense("a value that is cut"))?);
        if footer.version > self.version {
            let message = format!(
                "the server dumps a value of version {} into an RDB of version {}",
                footer.version, self.version
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if footer.fits(digest) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Damaged, "a value came with a wrong checksum"))
        }
    }

    /// A collection that was read element by element.
    async fn piecewise(&mut self, database: u32, name: &[u8], mut value: Value) -> Result<()> {
        self.writer.key(database, value.expires_ms, value.kind as u8, name);
        self.writer.raw(&value.count());
        while let Some(piece) = value.next().await? {
            self.writer.raw(&piece);
            self.hand_over().await?;
        }
        self.cx.progress(0, 1);
        Ok(())
    }

    async fn hand_over(&mut self) -> Result<()> {
        if self.writer.waiting() < PIECE_BYTES {
            return Ok(());
        }
        send(&self.out, self.writer.take()).await
    }
}

async fn send(out: &mpsc::Sender<Bytes>, piece: Bytes) -> Result<()> {
    out.send(piece).await.map_err(|_| backup_core::context::interrupted())
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
    digest.update(bytes);
    digest
}

fn may_not_read(text: &str) -> Error {
    let error = refusal("DUMP", text);
    if error.kind() == ErrorKind::PermissionDenied {
        return error.hint(
            "allow the plan's user to read every key: ACL SETUSER NAME ~* +dump +pttl +pexpiretime +time +multi +exec",
        );
    }
    error
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(SHOWN_BYTES)]).into_owned()
}
