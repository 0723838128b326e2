//! The configuration of a restored data directory: that of the server, without what leads to the server's own files, and with
//! what a recovery must know.
//!
//! Invariant: a server that is started on the data directory writes nowhere else.

use std::path::Path;

use backup_core::error::{Error, Result};
use backup_core::{BackupReader, RunContext};

use super::amend::amend;
use super::details::PhysicalDetails;
use super::layout::Layout;
use super::owner::{Owner, make_private, write_private};
use crate::config_files::ConfigFile;
use crate::recovery::{Copy, Supply, Way, neutral, settings, without_settings};

const MAIN: &str = "postgresql.conf";
const AUTO: &str = "postgresql.auto.conf";
/// What a server cannot do without, and what stands in it when none was saved.
const NEEDED: [(&str, &str); 3] = [
    (MAIN, "# stackward: no postgresql.conf was saved with this cluster\n"),
    ("pg_hba.conf", "# stackward: no pg_hba.conf was saved with this cluster\nlocal all all peer\n"),
    ("pg_ident.conf", "# stackward: no pg_ident.conf was saved with this cluster\n"),
];
/// A configuration file that is longer than this is none.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// The folder of the artifacts that lay beside the main file.
const BESIDE_MAIN: &str = "config/";
const ELSEWHERE: &str = "config/root/";

/// What is put into a data directory.
#[derive(Debug)]
pub(super) struct Configuring<'a> {
    pub(super) layout: &'a Layout,
    pub(super) owner: Option<Owner>,
    pub(super) copy: Copy,
    /// The server is started with a configuration that stands elsewhere, as Debian's.
    pub(super) is_elsewhere: bool,
    pub(super) way: Option<&'a Way>,
    pub(super) supply: Supply,
    /// The moment and the snapshot, for whoever reads the file.
    pub(super) about: &'a str,
}

/// Completes the configuration, and asks for a recovery when there is a way.
pub(super) async fn configure(
    cx: &RunContext,
    from: &BackupReader,
    details: &PhysicalDetails,
    how: &Configuring<'_>,
) -> Result<()> {
    let data = &how.layout.data;
    if !how.is_elsewhere {
        complete(cx, from, &saved(from, details)?, how).await?;
    }
    let path = data.join(MAIN);
    // A scratch server has a configuration of its own elsewhere.
    if how.copy == Copy::Beside
        && path.exists()
        && let Some(text) = neutral(&read(&path)?)
    {
        write_private(&path, text.as_bytes(), how.owner)?;
        amend(how.layout, &[MAIN], how.owner)?;
    }
    let path = data.join(AUTO);
    let before = if path.exists() { read(&path)? } else { String::new() };
    let mut text = without_settings(&before);
    if how.way.is_some() {
        text = neutral(&text).unwrap_or(text);
    }
    if how.way.is_some() || how.copy == Copy::Beside {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&settings(how.way.map(|way| (way, how.supply)), how.copy, how.about));
    }
    if text != before {
        write_private(&path, text.as_bytes(), how.owner)?;
    }
    if how.way.is_some() {
        // With it a server would follow another one for ever.
        let standby = data.join("standby.signal");
        if standby.exists() {
            std::fs::remove_file(&standby).map_err(|source| Error::io("cannot remove the file", &standby, source))?;
        }
        write_private(&data.join("recovery.signal"), b"", how.owner)?;
    }
    Ok(())
}

/// Takes the recovery's settings out again, once it has ended.
pub(super) fn recovered(data: &Path, copy: Copy, about: &str, owner: Option<Owner>) -> Result<()> {
    let path = data.join(AUTO);
    let mut text = without_settings(&read(&path)?);
    if copy == Copy::Beside {
        text.push_str(&settings(None, copy, about));
    }
    write_private(&path, text.as_bytes(), owner)
}

/// The files of the server's configuration that were saved, by whichever mode did.
fn saved(from: &BackupReader, details: &PhysicalDetails) -> Result<Vec<ConfigFile>> {
    if !details.config_files.is_empty() || !from.record().details.contains_key("cluster") {
        return Ok(details.config_files.clone());
    }
    crate::logical::config_files(from.record())
}

/// Puts files that lay elsewhere on the server (Debian's `/etc/postgresql`) into the data directory.
async fn complete(cx: &RunContext, from: &BackupReader, saved: &[ConfigFile], how: &Configuring<'_>) -> Result<()> {
    let data = &how.layout.data;
    if NEEDED.iter().all(|(name, _)| data.join(name).exists()) {
        return Ok(());
    }
    for file in saved {
        let name = file.artifact.as_str();
        let Some(beside) = name.strip_prefix(BESIDE_MAIN).filter(|_| !name.starts_with(ELSEWHERE)) else { continue };
        let path = data.join(beside);
        if path.exists() {
            continue;
        }
        let content = cx.unless_cancelled(from.read(&file.artifact, MAX_FILE_BYTES)).await?;
        let text = String::from_utf8_lossy(&content).into_owned();
        if let Some(parent) = path.parent()
            && parent != data.as_path()
        {
            make_private(parent, how.owner)?;
        }
        write_private(&path, neutral(&text).unwrap_or(text).as_bytes(), how.owner)?;
    }
    for (name, otherwise) in NEEDED {
        let path = data.join(name);
        if !path.exists() {
            write_private(&path, otherwise.as_bytes(), how.owner)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let failed = |source| Error::io("cannot read the file", path, source);
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
}
