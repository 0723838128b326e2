//! The configuration of a restored data directory: that of the server, without what leads to the server's own files, with what a
//! recovery must know, and, in a copy, with what keeps it apart.
//!
//! Invariant: a server that is started on a copy, by whomever and however, writes nowhere else and reaches no other server. The plan,
//! the restore and the drill draw the same configuration by the same steps.

use std::path::{Path, PathBuf};

use backup_core::error::{Error, Result};
use backup_core::{BackupReader, RunContext};

use super::amend::amend;
use super::details::PhysicalDetails;
use super::inventory::Inventory;
use super::layout::Layout;
use super::lines::end_line;
use super::neutral::{AUTO, Drawn, MAIN, NEEDED, PRELOADS, Sources, draw};
use super::owner::{Owner, make_private, write_private};
use super::preload::Libraries;
use crate::config_files::ConfigFile;
use crate::recovery::{Apart, Copy, SOCKETS, Supply, Way, apart, neutral, settings, without_apart, without_settings};

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
    pub(super) inventory: &'a Inventory,
    pub(super) libraries: &'a Libraries,
}

/// The configuration of a copy, before anything is written.
#[derive(Debug)]
pub(super) struct Drawing {
    drawn: Drawn,
    apart: Apart,
    /// What is not in force in the copy.
    pub(super) told: Vec<String>,
}

/// Draws the configuration of a copy.
///
/// # Errors
/// Those of reading the snapshot.
pub(super) async fn drawing(
    cx: &RunContext,
    from: &BackupReader,
    details: &PhysicalDetails,
    inventory: &Inventory,
    libraries: &Libraries,
) -> Result<Drawing> {
    let data_directory = details.data_directory.as_ref().map(PathBuf::from);
    let mut sources = Sources { data: inventory.texts.clone(), data_directory, ..Sources::default() };
    for file in saved(from, details)? {
        let content = cx.unless_cancelled(from.read(&file.artifact, MAX_FILE_BYTES)).await?;
        let path = PathBuf::from(&file.path);
        let is_main = file.artifact.as_str() == format!("{BESIDE_MAIN}{MAIN}");
        let is_inside = sources.data_directory.as_ref().is_some_and(|data| path.parent() == Some(data));
        let is_known = sources.data_directory.is_some() || !sources.data.contains_key(MAIN);
        if is_main && !is_inside && is_known {
            sources.main = Some(path.clone());
        }
        sources.saved.insert(path, String::from_utf8_lossy(&content).into_owned());
    }
    if let Some(auto) = sources.data.get_mut(AUTO) {
        *auto = without_apart(&without_settings(auto));
    }
    let mut drawn = draw(&sources);
    let mut told = std::mem::take(&mut drawn.told);
    let preloads = PRELOADS.map(|name| {
        let value = drawn.preloads.get(name).map_or("", String::as_str);
        (name, libraries.keep(name, value, &mut told))
    });
    let apart = Apart {
        version: details.version_number,
        prepared: details.settings.get("max_prepared_transactions").copied().unwrap_or_default(),
        preloads: preloads.into_iter().collect(),
        overridden: std::mem::take(&mut drawn.overridden),
    };
    Ok(Drawing { drawn, apart, told })
}

/// What is said of settings that are not in force.
pub(super) fn not_in_force(told: &[String]) -> Option<String> {
    let list = told.join("; ");
    (!told.is_empty())
        .then(|| format!("these settings of the server lead out of the copy, and are not in force in it: {list}"))
}

/// Completes the configuration, and asks for a recovery when there is a way. Returns what is not in force in a copy.
pub(super) async fn configure(
    cx: &RunContext,
    from: &BackupReader,
    details: &PhysicalDetails,
    how: &Configuring<'_>,
) -> Result<Vec<String>> {
    let data = &how.layout.data;
    let path = data.join(AUTO);
    let (mut text, mut told) = (String::new(), Vec::new());
    let before = if path.exists() { read(&path)? } else { String::new() };
    match how.copy {
        Copy::Beside => {
            let drawing = drawing(cx, from, details, how.inventory, how.libraries).await?;
            write_drawn(&drawing.drawn, how)?;
            text.push_str(&drawing.drawn.auto);
            end_line(&mut text);
            text.push_str(&apart(&drawing.apart, how.about));
            told = drawing.told;
        }
        Copy::InPlace => {
            if !how.is_elsewhere {
                complete(cx, from, &saved(from, details)?, how).await?;
            }
            text = without_settings(&before);
            if how.way.is_some() {
                text = neutral(&text).unwrap_or(text);
            }
        }
    }
    if let Some(way) = how.way {
        end_line(&mut text);
        text.push_str(&settings((way, how.supply), how.about));
    }
    if text != before {
        write_private(&path, text.as_bytes(), how.owner)?;
    }
    let sockets = data.join(SOCKETS);
    if sockets.exists() {
        // The backup of a copy that ran: its lock would stand in the way of another.
        std::fs::remove_dir_all(&sockets).map_err(|source| Error::io("cannot empty the folder", &sockets, source))?;
        make_private(&sockets, how.owner)?;
    }
    if how.copy == Copy::Beside {
        make_private(&sockets, how.owner)?;
    }
    if how.way.is_some() || how.copy == Copy::Beside {
        // With it a server would follow another one for ever, which a copy cannot reach.
        let standby = data.join("standby.signal");
        if standby.exists() {
            std::fs::remove_file(&standby).map_err(|source| Error::io("cannot remove the file", &standby, source))?;
        }
    }
    if how.way.is_some() {
        write_private(&data.join("recovery.signal"), b"", how.owner)?;
    }
    Ok(told)
}

/// Takes the recovery's settings out again, once it has ended. What keeps a copy apart stays.
pub(super) fn recovered(data: &Path, owner: Option<Owner>) -> Result<()> {
    let path = data.join(AUTO);
    write_private(&path, without_settings(&read(&path)?).as_bytes(), owner)
}

fn write_drawn(drawn: &Drawn, how: &Configuring<'_>) -> Result<()> {
    for (name, text) in &drawn.files {
        write_private(&how.layout.data.join(name), text.as_bytes(), how.owner)?;
    }
    let names: Vec<&str> = drawn.files.keys().copied().collect();
    if names.is_empty() { Ok(()) } else { amend(how.layout, &names, how.owner) }
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
