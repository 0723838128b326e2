//! A snapshot and the stream after it as a set of append-only files (Redis 7, Valkey): the snapshot is the base, the
//! stream the increment. A server that starts on them replays them itself.

use std::path::Path;

use backup_core::engine::{Moment, RestoreReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{ArtifactName, BackupReader, RunContext};

use super::{AOF_FOLDER, LEAST_DATABASES, Reached, Recovery, Way};
use crate::Redis;
use crate::backup::DUMP;
use crate::dumps::spool;
use crate::rdb::RdbSummary;
use crate::restore::folder::{AOF_NAME, AofForm, make_folder, write_new, write_plain};
use crate::verify::compare;

const NOTE: &str = "RECOVERY.txt";

/// A set of append-only files that was written, and what it amounts to.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// Its `appendfilename`.
    pub(crate) name: String,
    /// So many databases a server needs to load it.
    pub(crate) databases: u32,
    /// Keys of the base, and commands after it.
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    /// The moment that it leads to.
    pub(crate) told: String,
}

/// Writes the snapshot and the stream as a set into `folder`, its manifest last.
pub(crate) async fn write_files(
    cx: &RunContext,
    from: &BackupReader,
    recovery: &Recovery,
    folder: &Path,
) -> Result<(Reached, Assembled)> {
    make_folder(folder)?;
    let form = AofForm::with_increment(AOF_NAME);
    cx.step("reading the backup");
    let summary = spool(cx, from, &ArtifactName::new(DUMP)?, &folder.join(&form.base)).await?;
    compare(from, &summary)?;
    let path = folder.join(&form.increment);
    let failed = |source| Error::io("cannot write the stream", &path, source);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.write(true).create_new(true).open(&path).map_err(failed)?;
    cx.step("reading the archived stream");
    let reached = recovery.replay(cx, Box::new(std::io::BufWriter::new(file)), &selected(&summary)?).await?;
    write_new(&folder.join(&form.manifest), form.text.as_bytes())?;
    let highest = summary.databases.keys().copied().chain([reached.database]).max().unwrap_or(0);
    let assembled = Assembled {
        name: AOF_NAME.to_owned(),
        databases: LEAST_DATABASES.max(highest.saturating_add(1)),
        items: summary.keys() + reached.commands,
        bytes: summary.bytes + reached.offset - recovery.base,
        told: format!("{} commands replayed, {}", reached.commands, recovery.describe(&reached)),
    };
    Ok((reached, assembled))
}

/// The stream of a master selects a database before anything else; that of a replica goes on in the one that its master
/// had selected, which the snapshot tells.
fn selected(summary: &RdbSummary) -> Result<Vec<u8>> {
    let Some(database) = summary.aux.get("repl-stream-db") else { return Ok(Vec::new()) };
    let database: u32 = database.parse().map_err(|_| {
        Error::new(ErrorKind::Damaged, "the snapshot does not say in which database its stream goes on")
    })?;
    let database = database.to_string();
    Ok(format!("*2\r\n$6\r\nSELECT\r\n${}\r\n{database}\r\n", database.len()).into_bytes())
}

/// The steps of [`write`].
pub(crate) fn steps(from: &BackupReader, folder: &Path) -> Vec<String> {
    let names = from.record().artifacts.iter().map(|artifact| artifact.name.as_str());
    let others = names.filter(|name| is_companion(name)).map(|name| format!("write {}", folder.join(name).display()));
    let set = format!("write {}: a server that starts on it holds the moment", folder.join(AOF_FOLDER).display());
    std::iter::once(set).chain(others).collect()
}

/// The snapshot itself is in the set; the append-only files of its time lead elsewhere.
fn is_companion(name: &str) -> bool {
    name != DUMP && !name.starts_with("aof/")
}

/// Writes the set, what was saved beside the data, and a note on how to start from it.
pub(crate) async fn write(
    cx: &RunContext,
    redis: &Redis,
    from: &BackupReader,
    moment: &Moment,
    folder: &Path,
) -> Result<RestoreReport> {
    let set = folder.join(AOF_FOLDER);
    let assembled = Way::find(cx, from.record(), from.log(), moment).await?.assemble(cx, redis, from, &set).await?;
    let mut report = RestoreReport { items: assembled.items, bytes: assembled.bytes, ..RestoreReport::default() };
    report.restored.push(set.display().to_string());
    let names = from.record().artifacts.iter().map(|record| &record.name);
    for name in names.filter(|name| is_companion(name.as_str())) {
        let path = folder.join(name.as_str());
        write_plain(cx, from, name, &path).await?;
        report.restored.push(path.display().to_string());
    }
    let note = folder.join(NOTE);
    write_new(&note, instructions(&assembled).as_bytes())?;
    report.restored.push(note.display().to_string());
    report.restored.push(assembled.told);
    Ok(report)
}

fn instructions(set: &Assembled) -> String {
    let Assembled { name, databases, told, .. } = set;
    format!(
        "{AOF_FOLDER} holds the data of one moment: {told}.\n\n\
         A server of the version that was saved (7.0 or later) replays it when it starts:\n\n\
         1. Stop the server.\n\
         2. Move its own {AOF_FOLDER} (and dump.rdb) away, and put this one into its `dir`, owned by its user.\n\
         3. Let its configuration say `appendonly yes`, `appenddirname {AOF_FOLDER}`, `appendfilename {name}` and\n   \
            `databases` {databases} or more.\n\
         4. Start it, and wait until INFO says `loading:0`. Its log must tell of no errors.\n"
    )
}
