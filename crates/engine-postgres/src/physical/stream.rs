//! `BASE_BACKUP`: the command in the syntax of each version, and its answer as one stream of events.
//!
//! Up to 14 the server sends one COPY for each tablespace and one for its manifest; since 15 a single COPY, whose messages
//! say what they are (PostgreSQL manual, "Streaming Replication Protocol"). Invariant: the end is reported only after the
//! server got ready again, with whatever it had to say against its own data.

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::position::Lsn;
use bytes::{Buf, Bytes};

use crate::sql::literal;
use crate::wire::{Answer, Connection, ServerError};

/// Versions of this kind and newer send everything in one COPY.
const ONE_COPY: u32 = 15;

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The major version of the server.
    pub(crate) major: u32,
    pub(crate) label: &'a str,
    pub(crate) kind: BackupKind,
}

/// Whether everything is sent, or what changed since the manifest that was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackupKind {
    Full,
    Incremental,
}

impl Wanted<'_> {
    /// The command. The log that the backup needs is part of it, and the server does not wait until it is archived. It does
    /// not look at its pages either: we do, see `suspects`.
    pub(crate) fn command(&self) -> String {
        let label = literal(self.label);
        let label = label.trim_start();
        if self.major < ONE_COPY {
            return format!(
                "BASE_BACKUP LABEL {label} PROGRESS FAST WAL NOWAIT TABLESPACE_MAP NOVERIFY_CHECKSUMS MANIFEST 'yes' \
                 MANIFEST_CHECKSUMS 'CRC32C'"
            );
        }
        let incremental = if self.kind == BackupKind::Incremental { ", INCREMENTAL" } else { "" };
        format!(
            "BASE_BACKUP (LABEL {label}, PROGRESS, CHECKPOINT 'fast', WAL, WAIT false, TABLESPACE_MAP, VERIFY_CHECKSUMS false, \
             MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'{incremental})"
        )
    }
}

/// A place that the server keeps files in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SentTablespace {
    /// `None`: the data directory itself.
    pub(crate) oid: Option<u32>,
    /// As the server knows it. Empty for the data directory.
    pub(crate) location: String,
    /// The server's estimate.
    pub(crate) bytes: u64,
}

/// What the stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// An archive begins: that of this tablespace.
    Archive { oid: Option<u32> },
    /// A piece of the archive.
    Data(Bytes),
    /// The server's list of files begins.
    Manifest,
    /// A piece of it.
    ManifestData(Bytes),
    /// The backup is whole.
    End(End),
}

/// How a backup ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The log is needed up to here.
    pub(crate) lsn: Lsn,
    pub(crate) timeline: u32,
    /// What it remarked on the way.
    pub(crate) notices: Vec<ServerError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Versions since 15: within the only COPY, in an archive or in the manifest.
    One {
        manifest: bool,
    },
    /// Versions up to 14: before the COPY of the next tablespace, of which there are so many; or of the manifest.
    Before(usize),
    /// Within it.
    Within(usize),
    After,
}

/// A running base backup.
#[derive(Debug)]
pub(crate) struct BaseBackup {
    connection: Connection,
    /// The log is needed from here on.
    pub(crate) start: Lsn,
    pub(crate) timeline: u32,
    /// In the order in which they come.
    pub(crate) tablespaces: Vec<SentTablespace>,
    state: State,
}

impl BaseBackup {
    /// Starts one. A refusal gives the session back, which can be used on.
    pub(crate) async fn begin(mut connection: Connection, wanted: Wanted<'_>) -> Result<Self, (Error, Connection)> {
        match Self::preamble(&mut connection, wanted).await {
            Ok((start, timeline, tablespaces)) => {
                let state = if wanted.major < ONE_COPY { State::Before(0) } else { State::One { manifest: false } };
                Ok(Self { connection, start, timeline, tablespaces, state })
            }
            Err(error) => Err((error, connection)),
        }
    }

    async fn preamble(connection: &mut Connection, wanted: Wanted<'_>) -> Result<(Lsn, u32, Vec<SentTablespace>)> {
        connection.begin(&wanted.command()).await?;
        let (start, timeline) = position(&rows(connection.answer().await?)?)?;
        let tablespaces = rows(connection.answer().await?)?.iter().map(tablespace).collect::<Result<Vec<_>>>()?;
        if wanted.major >= ONE_COPY {
            copy(&connection.answer().await?)?;
        }
        Ok((start, timeline, tablespaces))
    }

    /// The server's estimate of everything that it will send.
    pub(crate) fn estimate(&self) -> u64 {
        self.tablespaces.iter().map(|tablespace| tablespace.bytes).fold(0, u64::saturating_add)
    }

    /// What comes next. Not cancel safe between two archives.
    ///
    /// # Errors
    /// What the server reports; [`ErrorKind::Unreachable`] when it went away.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        loop {
            match self.state {
                State::One { manifest } => match self.connection.copy_data().await? {
                    Some(data) => {
                        if let Some(event) = self.tagged(data, manifest)? {
                            return Ok(event);
                        }
                    }
                    None => self.state = State::After,
                },
                State::Before(number) => {
                    copy(&self.connection.answer().await?)?;
                    self.state = State::Within(number);
                    return Ok(match self.tablespaces.get(number) {
                        Some(tablespace) => Event::Archive { oid: tablespace.oid },
                        None => Event::Manifest,
                    });
                }
                State::Within(number) => {
                    let manifest = number == self.tablespaces.len();
                    match self.connection.copy_data().await? {
                        Some(data) if manifest => return Ok(Event::ManifestData(data)),
                        Some(data) => return Ok(Event::Data(data)),
                        None if manifest => self.state = State::After,
                        None => self.state = State::Before(number + 1),
                    }
                }
                State::After => return self.end().await.map(Event::End),
            }
        }
    }

    /// A message of the only COPY.
    fn tagged(&mut self, mut data: Bytes, manifest: bool) -> Result<Option<Event>> {
        let tag = data.try_get_u8().map_err(|_| misunderstood("an empty message"))?;
        Ok(match tag {
            b'd' if manifest => Some(Event::ManifestData(data)),
            b'd' => Some(Event::Data(data)),
            b'n' => {
                let name = data.split(|byte| *byte == 0).next().unwrap_or_default();
                Some(Event::Archive { oid: archive_oid(name)? })
            }
            b'm' => {
                self.state = State::One { manifest: true };
                Some(Event::Manifest)
            }
            // Progress: we count ourselves what arrives.
            b'p' => None,
            other => return Err(misunderstood(&format!("a message of type `{}`", char::from(other).escape_default()))),
        })
    }

    /// Reads what follows the data, up to the server's being ready.
    async fn end(&mut self) -> Result<End> {
        let mut end = None;
        loop {
            match self.connection.answer().await {
                Ok(Answer::Rows(rows)) if !rows.is_empty() => end = Some(position(&rows)?),
                Ok(Answer::Rows(_)) => {}
                Ok(Answer::Ready) => break,
                Ok(_) => return Err(misunderstood("data after the end")),
                Err(error) => return Err(error),
            }
        }
        let (lsn, timeline) =
            end.ok_or_else(|| Error::new(ErrorKind::Incomplete, "the server did not tell where the backup ended"))?;
        Ok(End { lsn, timeline, notices: self.connection.take_notices() })
    }

    /// Says good-bye.
    pub(crate) async fn close(self) {
        self.connection.close().await;
    }
}

fn misunderstood(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server's base backup is not understood: {what}"))
}

type Row = Vec<Option<Bytes>>;

fn rows(answer: Answer) -> Result<Vec<Row>> {
    match answer {
        Answer::Rows(rows) => Ok(rows),
        _ => Err(misunderstood("rows are missing")),
    }
}

fn copy(answer: &Answer) -> Result<()> {
    match answer {
        Answer::CopyOut => Ok(()),
        _ => Err(misunderstood("data is missing")),
    }
}

fn cell<T: std::str::FromStr>(row: &Row, column: usize) -> Option<T> {
    let text = row.get(column)?.as_ref()?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn position(rows: &[Row]) -> Result<(Lsn, u32)> {
    let row = rows.first().ok_or_else(|| misunderstood("a position is missing"))?;
    cell(row, 0).zip(cell(row, 1)).ok_or_else(|| misunderstood("a position is no position"))
}

fn tablespace(row: &Row) -> Result<SentTablespace> {
    let oid = match row.first() {
        Some(None) => None,
        _ => Some(cell(row, 0).ok_or_else(|| misunderstood("a tablespace has no number"))?),
    };
    let location = row.get(1).cloned().flatten().map(|text| String::from_utf8_lossy(&text).into_owned());
    let bytes = cell::<u64>(row, 2).unwrap_or_default().saturating_mul(1024);
    Ok(SentTablespace { oid, location: location.unwrap_or_default(), bytes })
}

/// `base.tar`, or `16384.tar`.
fn archive_oid(name: &[u8]) -> Result<Option<u32>> {
    let unknown = || misunderstood(&format!("an archive is called `{}`", String::from_utf8_lossy(name).escape_debug()));
    let stem = name.strip_suffix(b".tar").ok_or_else(unknown)?;
    if stem == b"base" {
        return Ok(None);
    }
    let number = std::str::from_utf8(stem).ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_in_the_syntax_of_their_version() {
        let command = |major, kind| Wanted { major, label: "it's", kind }.command();
        assert_eq!(
            command(14, BackupKind::Full),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST WAL NOWAIT TABLESPACE_MAP NOVERIFY_CHECKSUMS MANIFEST 'yes' \
             MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert!(command(15, BackupKind::Full).starts_with("BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast'"));
        assert!(command(17, BackupKind::Incremental).ends_with(", INCREMENTAL)"));
    }

    #[test]
    fn archives_are_named_after_tablespaces() {
        assert_eq!(archive_oid(b"base.tar").unwrap(), None);
        assert_eq!(archive_oid(b"16384.tar").unwrap(), Some(16384));
        for bad in [b"16384".as_slice(), b"x.tar", b"../1.tar", b".tar"] {
            assert!(archive_oid(bad).is_err());
        }
    }
}
