//! The second look of a drill: the same data as commands, into a second scratch server of the same program; both must have
//! the same digest, of every key and value.
//!
//! Invariant: a digest is compared only between servers of one program, and never asked of a live one: it blocks.

use std::path::Path;

use backup_core::RunContext;
use backup_core::engine::DrillReport;
use backup_core::error::{ErrorKind, Result};
use backup_core::host::Host;

use crate::connection::{Connection, Reply};
use crate::inspect::{now_ms, scan_file};
use crate::rdb::{ExportOptions, Flavour, Functions, RdbSummary, Target};
use crate::restore::load;
use crate::scratch::{Folder, Load, Program, Scratch};

/// Larger RDBs are counted, and not loaded a second time: both servers hold all of it in memory.
const LARGEST_BYTES: u64 = 1024 * 1024 * 1024;
/// More keys than these take a server minutes to digest.
const MOST_KEYS: u64 = 10_000_000;
const CHUNK: usize = 512;

/// Compares what `connection`'s server holds with what commands made of `dump` give. `summary` counted what had expired
/// before the first server loaded it.
pub(super) async fn compare(
    cx: &RunContext,
    host: &dyn Host,
    program: &Program,
    connection: &mut Connection,
    dump: &Path,
    summary: &RdbSummary,
    drill: &mut DrillReport,
) -> Result<()> {
    if summary.bytes > LARGEST_BYTES || summary.keys() > MOST_KEYS {
        drill.checked.push("contents were not compared: more than 1 GiB, or ten million keys".to_owned());
        return Ok(());
    }
    let flavour = if program.product == "Valkey" { Flavour::Valkey } else { Flavour::Redis };
    let target = Target::parse(flavour, &program.version)?;
    let Some(first) = digest(connection).await? else {
        drill.checked.push("contents were not compared: the server knows no DEBUG DIGEST".to_owned());
        return Ok(());
    };
    cx.step("loading it as commands into a second server");
    let (scratch, mut second) = Scratch::start(host, program, Folder::make(cx.scratch())?, Load::Rdb).await?;
    let options = ExportOptions {
        databases: None,
        pattern: None,
        slots: None,
        functions: Functions::WithTheWhole,
        now_ms: now_ms(),
        target,
        chunk: CHUNK,
        replace: false,
    };
    let loaded = match load::load(cx, scratch.server(), dump, &options, &mut second).await {
        Ok(loaded) => loaded,
        Err(error) => match error.kind() {
            // Of modules, for one.
            ErrorKind::Unsupported => {
                drill.checked.push(format!("contents were not compared: {}", error.message()));
                return Ok(());
            }
            ErrorKind::Tool | ErrorKind::NoSpace | ErrorKind::Damaged => {
                drill.findings.push(format!("written as commands, it does not load: {}", error.chain()));
                return Ok(());
            }
            _ => return Err(error),
        },
    };
    let other = digest(&mut second).await?;
    let (again, after) = (digest(connection).await?, scan_file(dump, now_ms()).await?);
    if after.expired() != summary.expired() || again.as_ref() != Some(&first) {
        drill.checked.push("contents were not compared: keys expired while they were read".to_owned());
    } else if other.as_ref() == Some(&first) {
        drill
            .checked
            .push(format!("{} keys, written as commands, give a second server the same contents", loaded.keys()));
    } else {
        drill.findings.push("written as commands, the data gives a second server other contents".to_owned());
    }
    Ok(())
}

/// The digest of all keys and values; `None` when the server does not compute one.
async fn digest(connection: &mut Connection) -> Result<Option<String>> {
    match connection.ask(&["DEBUG", "DIGEST"]).await? {
        Reply::Error(_) => Ok(None),
        reply => Ok(reply.text()),
    }
}
