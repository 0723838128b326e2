//! Dumps: one database, and the roles and tablespaces of the cluster, each sealed with the status of its process and
//! with what was seen at the end of its stream.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::evidence::Evidence;
use backup_core::host::{BoxRead, HostCommand, HostProcess};
use backup_core::manifest::Fingerprint;
use backup_core::sink::ChunkHint;
use backup_core::writer::ArtifactWriter;
use backup_core::{ArtifactName, BackupWriter, RunContext};
use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::archive::{ArchiveScan, TRAILER};
use super::catalog::{self, ServerFacts};
use super::details::DatabaseDetails;
use super::fingerprint::{self, Unlogged};
use super::waiting::{Locked, telling_who_blocks};
use crate::config::FingerprintMode;
use crate::psql::Psql;
use crate::server::Server;
use crate::text::shown;
use crate::tools::Tools;

/// The artifact with roles and tablespaces.
pub(crate) const GLOBALS: &str = "globals.sql";
/// What `pg_dumpall` writes when it wrote everything.
pub(crate) const GLOBALS_TRAILER: &str = "-- PostgreSQL database cluster dump complete";
/// The trailer stands within so many bytes of the end: after it come an empty comment and `\unrestrict`.
const GLOBALS_TAIL_BYTES: usize = 1024;
/// The size of the pieces that are read from a process.
const PIECE_BYTES: usize = 1024 * 1024;

/// What the dumps of one run have in common.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) cx: RunContext,
    pub(crate) out: BackupWriter,
    pub(crate) server: Server,
    pub(crate) tools: Tools,
    pub(crate) facts: ServerFacts,
    pub(crate) fingerprint: FingerprintMode,
    pub(crate) lock_timeout: Option<Duration>,
    /// What the maintenance session said of the databases.
    pub(crate) described: BTreeMap<String, DatabaseDetails>,
}

/// A dumped database.
#[derive(Debug)]
pub(crate) struct Dumped {
    pub(crate) details: DatabaseDetails,
    pub(crate) fingerprint: Fingerprint,
}

/// The artifact that holds the dump of `database`.
pub(crate) fn artifact_of(database: &str) -> Result<ArtifactName> {
    ArtifactName::new(format!("databases/{}.dump", ArtifactName::escape(database)))
}

/// Dumps one database and counts its rows under one snapshot. `None`: it was dropped before the dump began.
pub(crate) async fn database(job: &Arc<Job>, name: &str) -> Result<Option<Dumped>> {
    let gone = || {
        let name = shown(name);
        job.cx.warn(format!("the database `{name}` was dropped while the backup ran; it is not in the snapshot"));
        Ok(None)
    };
    let Some(details) = job.described.get(name) else { return gone() };
    let session = match Psql::connect(&job.server, &job.tools, name).await {
        Ok(session) => session,
        Err(error) => {
            let mut other = catalog::connect_maintenance(&job.server, &job.tools, Some(name)).await?;
            if catalog::exists(&mut other, name).await? {
                return Err(error);
            }
            return gone();
        }
    };
    job.cx.step(format!("dumping the database {}", shown(name)));
    let locked = Locked::default();
    let work = save(job, session, details.clone(), &locked);
    let saved = telling_who_blocks(job, name, &locked, work).await;
    saved.map(Some).map_err(|error| error.with("database", shown(name)))
}

async fn save(job: &Job, mut session: Psql, mut details: DatabaseDetails, locked: &Locked) -> Result<Dumped> {
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let snapshot: String = session.value("pg_export_snapshot()").await?;
    catalog::describe_inside(&mut session, &mut details, job.facts.bootstrap_role.as_ref()).await?;
    let tables = if job.fingerprint == FingerprintMode::Exact {
        let unlogged = if job.facts.standby { Unlogged::Skip } else { Unlogged::Count };
        let tables = fingerprint::list(&mut session, unlogged).await?;
        if let Some(timeout) = job.lock_timeout {
            session.execute(&format!("SET LOCAL lock_timeout = {}", timeout.as_millis())).await?;
        }
        fingerprint::lock(&mut session, &tables).await?;
        Some(tables)
    } else {
        None
    };
    let count = async {
        match &tables {
            Some(tables) => fingerprint::count(&job.cx, &mut session, tables).await,
            None => Ok(Fingerprint::default()),
        }
    };
    let dump = run_pg_dump(job, &details, &snapshot, locked);
    let ((), fingerprint) = tokio::try_join!(dump, count)?;
    session.close().await?;
    Ok(Dumped { details, fingerprint })
}

async fn run_pg_dump(job: &Job, details: &DatabaseDetails, snapshot: &str, locked: &Locked) -> Result<()> {
    let mut command = job
        .server
        .command(job.tools.program("pg_dump"))?
        .args(["--format=custom", "--compress=0"])
        .arg(format!("--snapshot={snapshot}"))
        .arg(format!("--encoding={}", details.encoding));
    if let Some(timeout) = job.lock_timeout {
        command = command.arg(format!("--lock-wait-timeout={}", timeout.as_millis()));
    }
    if job.facts.standby {
        command = command.arg("--no-unlogged-table-data");
    }
    let command = command.arg("--dbname").arg(job.server.conninfo(&details.name));
    let mut scan = ArchiveScan::default();
    let watch = |data: &[u8]| {
        // It writes nothing before it has every lock.
        locked.set();
        scan.push(data)
    };
    let (writer, evidence) = stream(job, command, details.artifact.clone(), TRAILER, watch).await?;
    scan.finish()?;
    let evidence = if scan.is_understood() { evidence } else { without_trailer(evidence) };
    writer.seal(evidence).await.map(|_| ())
}

/// Saves roles, role memberships, role settings and tablespaces.
pub(crate) async fn globals(job: &Job, database: &str) -> Result<()> {
    job.cx.step("dumping roles and tablespaces");
    let mut command = job.server.command(job.tools.program("pg_dumpall"))?.arg("--globals-only");
    // In UTF-8, whatever the cluster is in; without a known encoding there is nothing to convert from.
    let encoding = if job.facts.encoding == "SQL_ASCII" { "SQL_ASCII" } else { "UTF8" };
    command = command.env("PGCLIENTENCODING", encoding);
    if !job.facts.reads_passwords {
        command = command.arg("--no-role-passwords");
        job.cx.warn(format!(
            "the roles' passwords are not saved: `{}` may not read them (only a superuser may)",
            job.server.endpoint.user
        ));
    }
    let spelled = OsString::from_vec(job.server.spelled(database));
    let command = command.arg("--dbname").arg(job.server.conninfo(database)).arg("--database").arg(spelled);
    let mut tail = Vec::new();
    let (writer, evidence) = stream(job, command, ArtifactName::new(GLOBALS)?, GLOBALS_TRAILER, |data| {
        tail.extend_from_slice(&data[data.len().saturating_sub(GLOBALS_TAIL_BYTES)..]);
        tail.drain(..tail.len().saturating_sub(GLOBALS_TAIL_BYTES));
        Ok(())
    })
    .await?;
    if !ends_globals(&tail) {
        return Err(Error::new(ErrorKind::Incomplete, "the dump of the roles is cut: its last line is missing"));
    }
    writer.seal(evidence).await.map(|_| ())
}

/// Whether `tail` is the end of a whole globals dump.
pub(crate) fn ends_globals(tail: &[u8]) -> bool {
    let tail = String::from_utf8_lossy(&tail[tail.len().saturating_sub(GLOBALS_TAIL_BYTES)..]);
    tail.lines().any(|line| line == GLOBALS_TRAILER)
}

/// Runs a tool and writes its output into an artifact, which it returns unsealed with the evidence of a clean exit.
async fn stream(
    job: &Job,
    command: HostCommand,
    artifact: ArtifactName,
    trailer: &'static str,
    mut watch: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(ArtifactWriter, Evidence)> {
    let name = command.name();
    let mut process = job.server.host.spawn(command).await?;
    let mut writer = job.out.artifact(artifact, ChunkHint::Stream).await?;
    let stdout = process.take_stdout().ok_or_else(|| Error::new(ErrorKind::Internal, "a tool has no output"))?;
    copy(&mut writer, stdout, &mut watch).await?;
    let exit = end(&job.server, &name, process).await?;
    Ok((writer, Evidence::Exit { exit, trailer: Some(trailer) }))
}

async fn end(server: &Server, name: &str, mut process: HostProcess) -> Result<backup_core::CleanExit> {
    let code = process.status().await?;
    server.confirm(name, code, &process.stderr_tail())
}

async fn copy(
    writer: &mut ArtifactWriter,
    mut from: BoxRead,
    watch: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES {
            let count = from.read_buf(&mut piece).await;
            if count.map_err(|source| Error::from_io("cannot read the output of a tool", source))? == 0 {
                break;
            }
        }
        let ended = piece.len() < PIECE_BYTES;
        watch(&piece)?;
        if !piece.is_empty() {
            writer.write(piece.freeze()).await?;
        }
        if ended {
            return Ok(());
        }
    }
}

fn without_trailer(evidence: Evidence) -> Evidence {
    match evidence {
        Evidence::Exit { exit, .. } => Evidence::Exit { exit, trailer: None },
        other => other,
    }
}
