//! Recovery from saved append-only files that tell the time (`aof-timestamp-enabled yes`): to moments before the backup,
//! as far back as the last increment goes. The server's own tool cuts them.
//!
//! Invariant: the files tell whole seconds, so a moment is that of the last second that had passed: never beyond it.

use std::path::{Path, PathBuf};

use backup_core::engine::Moment;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::host::HostCommand;
use backup_core::manifest::SourceRecord;
use backup_core::{ArtifactName, BackupReader, RunContext};
use jiff::Timestamp;

use super::LEAST_DATABASES;
use super::files::Assembled;
use crate::Redis;
use crate::aof::{MANIFEST_ENDING, artifact, is_manifest, listed};
use crate::details::Details;
use crate::inspect::{now_ms, scan_file};
use crate::restore::folder::{make_folder, write_plain};
use crate::verify::is_damage;

/// What the tool says is a page at most.
const TOLD_BYTES: usize = 256 * 1024;
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

/// A moment that saved append-only files lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AofMoment {
    /// The last second that is kept.
    second: i64,
    manifest: ArtifactName,
}

impl AofMoment {
    /// `None` unless the append-only files of a backup have the moment.
    pub(crate) fn of(record: &SourceRecord, moment: &Moment) -> Option<Self> {
        let Moment::Time(time) = moment else { return None };
        let details = Details::of(record).ok()?;
        let (from, to) = (details.aof_from?, details.aof_to?);
        // The second that `time` lies in is not over.
        let second = time.as_second() - 1;
        let inside = second >= from.as_second() && *time <= to;
        let manifest = record.artifacts.iter().map(|artifact| &artifact.name).find(|name| is_manifest(name))?;
        inside.then(|| Self { second, manifest: manifest.clone() })
    }

    /// The moment that is reached.
    pub(crate) fn describe(&self) -> String {
        let end = Timestamp::from_second(self.second + 1).unwrap_or(Timestamp::MAX);
        format!("up to {end:.0}, of the append-only files, which tell whole seconds")
    }

    /// Writes the files into `folder`, cut at the moment.
    pub(crate) async fn assemble(
        &self,
        cx: &RunContext,
        redis: &Redis,
        from: &BackupReader,
        folder: &Path,
    ) -> Result<Assembled> {
        make_folder(folder)?;
        cx.step("reading the append-only files");
        let text = String::from_utf8_lossy(&from.read(&self.manifest, MAX_MANIFEST_BYTES).await?).into_owned();
        let (mut keys, mut bytes, mut highest) = (0, 0, 0);
        for file in listed(&text) {
            let path = folder.join(&file);
            write_plain(cx, from, &artifact(&file)?, &path).await?;
            bytes += std::fs::metadata(&path).map_or(0, |file| file.len());
            if path.extension().is_some_and(|extension| extension == "rdb") {
                let summary = scan_file(&path, now_ms()).await?;
                keys += summary.keys();
                highest = highest.max(summary.databases.keys().copied().max().unwrap_or(0));
            }
        }
        let file_name = self.manifest.as_str().rsplit('/').next().unwrap_or_default();
        let manifest = folder.join(file_name);
        write_plain(cx, from, &self.manifest, &manifest).await?;
        self.cut(cx, redis, &manifest).await?;
        let name = file_name.strip_suffix(MANIFEST_ENDING).unwrap_or(file_name).to_owned();
        let databases = LEAST_DATABASES.max(highest + 1).max(configured_databases(from).await.unwrap_or(0));
        Ok(Assembled { name, databases, items: keys, bytes, told: self.describe() })
    }

    async fn cut(&self, cx: &RunContext, redis: &Redis, manifest: &Path) -> Result<()> {
        cx.step("cutting the append-only files at the moment");
        let program = check_program(redis);
        let command = HostCommand::new(&program)
            .args(["--truncate-to-timestamp".to_owned(), self.second.to_string()])
            .arg(manifest);
        let started = redis.host.spawn(command).await.map_err(|source| {
            Error::new(ErrorKind::Unsupported, format!("there is no `{}` here", program.display()))
                .hint("install the server's tools (`apt-get install redis-tools`), or name their folder as `bin` in the plan")
                .caused_by(source)
        })?;
        started.output(TOLD_BYTES).await.map(|_| ()).map_err(|error| {
            Error::new(ErrorKind::Damaged, "the server's tool cannot cut the append-only files at the moment")
                .caused_by(error)
        })
    }
}

/// The tool of the server that the plan's `bin` holds, else Redis' own.
fn check_program(redis: &Redis) -> PathBuf {
    let Some(bin) = &redis.settings.bin else { return PathBuf::from("redis-check-aof") };
    let of_valkey = bin.join("valkey-check-aof");
    if of_valkey.exists() { of_valkey } else { bin.join("redis-check-aof") }
}

/// How many databases the saved server had, when its configuration was saved.
async fn configured_databases(from: &BackupReader) -> Option<u32> {
    let text = from.read(&ArtifactName::new("config.txt").ok()?, MAX_MANIFEST_BYTES).await;
    let text = match text {
        Err(error) if is_damage(&error) => return None,
        read => read.ok()?,
    };
    String::from_utf8_lossy(&text).lines().find_map(|line| line.strip_prefix("databases ")?.trim().parse().ok())
}
