//! Checking dumps without a server: every byte, the table of contents against the fingerprint, and `pg_restore` decoding
//! every data block.
//!
//! Invariant: damage is a finding; an error means that it could not be looked at.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use backup_core::engine::{Finding, Verifier, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::manifest::ArtifactKind;
use backup_core::{ArtifactName, BackupReader, RunContext};

use super::Logical;
use super::archive::ArchiveScan;
use super::details::{DatabaseDetails, Details, tables_group};
use super::dump::{GLOBALS, ends_globals};
use crate::feed::feed;
use crate::physical::is_memo;
use crate::server::Server;
use crate::sql::readable;
use crate::text::{masked, shown};
use crate::tools::{PgVersion, Tools};

#[async_trait]
impl Verifier for Logical {
    async fn verify(&self, cx: &RunContext, from: &BackupReader) -> Result<VerifyReport> {
        cx.unless_cancelled(async {
            let mut report = VerifyReport::default();
            let Some(details) = found(Details::of(from.record()), from, GLOBALS, &mut report)? else {
                return Ok(report);
            };
            let tools = self.tools.matching(PgVersion(details.cluster.dump_version_number)).await?;
            let streams = from.record().artifacts.iter().filter(|artifact| artifact.kind == ArtifactKind::Stream);
            for artifact in streams.filter(|artifact| !is_memo(&artifact.name)) {
                let name = &artifact.name;
                cx.step(format!("reading {name}"));
                let database = details.databases.iter().find(|database| database.artifact == *name);
                let checked = match database {
                    Some(database) => dump(cx, &self.server, &tools, from, database).await,
                    None if name.as_str() == GLOBALS => globals(from).await,
                    None => plain(from, name).await,
                };
                if let Some(checked) = found(checked, from, name.as_str(), &mut report)? {
                    report.checked.push(format!("{name}: {checked}"));
                }
            }
            for database in &details.databases {
                if from.record().artifact(&database.artifact).is_none() {
                    let missing =
                        Err(Error::new(ErrorKind::Damaged, format!("`{}` has no dump", shown(&database.name))));
                    found::<()>(missing, from, database.artifact.as_str(), &mut report)?;
                }
            }
            Ok(report)
        })
        .await
    }
}

/// Turns damage into a finding; other errors pass.
fn found<T>(result: Result<T>, from: &BackupReader, artifact: &str, report: &mut VerifyReport) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_damage(&error) => {
            report.findings.push(Finding {
                snapshot: from.manifest().id.clone(),
                source: from.source().clone(),
                artifact: ArtifactName::new(artifact)?,
                problem: error.chain(),
            });
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether an error says that the backup is not whole, rather than that it could not be looked at.
pub(crate) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete | ErrorKind::Tool)
}

async fn dump(
    cx: &RunContext,
    server: &Server,
    tools: &Tools,
    from: &BackupReader,
    database: &DatabaseDetails,
) -> Result<String> {
    // It connects to nothing, so it needs no password.
    let command = server.plain_command(tools.program("pg_restore")).args(["--format=custom", "--file=/dev/null"]);
    let artifact = from.stream(&database.artifact).await?;
    let mut scan = ArchiveScan::default();
    feed(cx, server, command, artifact, |data| scan.push(data)).await?;
    scan.finish()?;
    if !scan.is_understood() {
        return Ok("read to its end, every block decoded by pg_restore".to_owned());
    }
    let listed: BTreeSet<String> = scan.tables().iter().map(|(schema, table)| readable(schema, table)).collect();
    let counted = from.record().fingerprint.0.get(&tables_group(&database.name));
    let counted: BTreeSet<String> = counted.into_iter().flat_map(BTreeMap::keys).cloned().collect();
    if let Some(table) = lost(&counted, &listed, &database.encoding) {
        let message = format!("the data of the table {}, whose rows were counted, is not in the dump", shown(&table));
        return Err(Error::new(ErrorKind::Damaged, message));
    }
    Ok(format!("read to its end, every block decoded by pg_restore, {} tables listed", listed.len()))
}

/// A table that was `counted`, and is not `listed`. Names were counted as text; a dump has them in its own encoding. Where that
/// is another than UTF-8, all names of one outline (what is not ASCII is left open) are compared by their number.
fn lost(counted: &BTreeSet<String>, listed: &BTreeSet<String>, encoding: &str) -> Option<String> {
    if matches!(encoding, "UTF8" | "SQL_ASCII") {
        return counted.difference(listed).next().cloned();
    }
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for name in listed {
        *left.entry(masked(name)).or_default() += 1;
    }
    counted
        .iter()
        .find(|name| match left.get_mut(&masked(name)) {
            Some(count @ 1..) => {
                *count -= 1;
                false
            }
            _ => true,
        })
        .cloned()
}

async fn globals(from: &BackupReader) -> Result<String> {
    let mut reader = from.stream(&ArtifactName::new(GLOBALS)?).await?;
    let mut tail = Vec::new();
    while let Some(data) = reader.next().await? {
        tail.extend_from_slice(&data);
        tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
    }
    if ends_globals(&tail) {
        Ok("read to its end, the last line is there".to_owned())
    } else {
        Err(Error::new(ErrorKind::Damaged, "the dump of the roles is cut: its last line is missing"))
    }
}

/// Enough of the end to hold the trailer.
const TAIL_BYTES: usize = 4096;

async fn plain(from: &BackupReader, name: &ArtifactName) -> Result<String> {
    let mut reader = from.stream(name).await?;
    while reader.next().await?.is_some() {}
    Ok("read to its end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::decode;

    #[test]
    fn a_lost_table_is_found_in_every_encoding() {
        let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| readable("public", name)).collect() };
        let latin1 = decode(b"gr\xf6\xdfe");
        let cases = [
            ("UTF8", set(&["größe"]), set(&["größe"]), false),
            ("UTF8", set(&["größe"]), set(&["gröse"]), true),
            ("LATIN1", set(&["größe", "t"]), set(&[&latin1, "t"]), false),
            ("LATIN1", set(&["größe", "gröse"]), set(&[&latin1]), true),
            ("EUC_JP", set(&["表"]), set(&[&decode(b"\xc9\xbd"), "other"]), false),
            ("EUC_JP", set(&["t"]), set(&["other"]), true),
            ("SQL_ASCII", set(&[&decode(b"\xff")]), set(&[&decode(b"\xfe")]), true),
        ];
        for (encoding, counted, listed, is_lost) in cases {
            assert_eq!(lost(&counted, &listed, encoding).is_some(), is_lost, "{encoding}: {counted:?}");
        }
    }
}
