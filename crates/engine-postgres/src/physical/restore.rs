//! A base backup back onto a disk: into a folder (`data`, `tablespaces/<oid>`, `config/…`) or to where it was; with what a
//! recovery to a moment needs of the log; started, when that is wished.
//!
//! Invariant: before the first byte is written, the target was found free, every file of the server's manifest in the snapshot,
//! and the log whole up to the moment.

use std::path::{Path, PathBuf};

use backup_core::engine::{Afterwards, Existing, Place, RestorePlan, RestoreReport, RestoreTarget, VerifyReport};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::{BackupReader, RunContext};

use super::backup::TREE;
use super::configure::{Configuring, configure, drawing, not_in_force, recovered};
use super::inventory::Inventory;
use super::layout::{DATA, LINKS, Layout};
use super::owner::{Owner, write_private};
use super::place::{Placing, finish, place, place_config};
use super::spaces::{Spaces, follows_links, refuse_old};
use super::staging::Staging;
use super::{Physical, PhysicalDetails, standing, verify};
use crate::recovery::{
    APART, Blanks, Copy, LOG, SOCKETS, Started, Supply, Way, ahead, hand_over, prepare, stage, start,
};
use crate::tools::{PgVersion, Tools};

/// Leads to the folder of the socket of a copy, which is in its data directory.
const SOCKET: &str = "run";
/// The folder of the configuration files of a copy, as they lay on the server.
const CONFIG: &str = "config";

/// A recovering server keeps about so much of the log that it has replayed (`max_wal_size`, as it is by default).
const KEPT_BYTES: u64 = 1 << 30;

/// Where a cluster goes, and what it is there.
#[derive(Debug)]
struct Destination<'a> {
    layout: Layout,
    owner: Option<Owner>,
    copy: Copy,
    /// The folder of the restore, when it has one.
    folder: Option<&'a Path>,
    /// The configuration on the server's machine, when it stands there still.
    config: Option<PathBuf>,
}

/// A cluster that is written.
#[derive(Debug)]
pub(crate) struct Written {
    staging: Option<Staging>,
    report: RestoreReport,
    layout: Layout,
    /// Of the segments that are handed over.
    blanks: Blanks,
    owner: Option<Owner>,
    copy: Copy,
    config: Option<PathBuf>,
    folder: Option<PathBuf>,
    /// What is not of this cluster, in the data directory's words: other versions share folders of tablespaces.
    others: Vec<String>,
}

impl Physical {
    fn destination<'a>(
        &self,
        details: &PhysicalDetails,
        spaces: &Spaces,
        to: &'a RestoreTarget,
    ) -> Result<Destination<'a>> {
        let (layout, copy, folder) = match &to.place {
            Place::Folder(folder) => (Layout::below(folder, spaces), Copy::Beside, Some(folder.as_path())),
            Place::Original => (Layout::original(self.original(details)?, spaces), Copy::InPlace, None),
        };
        let layout = layout.relocate(&to.relocate, spaces)?;
        let named = self.settings.run_as.as_deref();
        let owner = Owner::find(named, &layout.data)?;
        let config = if copy == Copy::InPlace { elsewhere(details, &layout) } else { None };
        Ok(Destination { layout, owner, copy, folder, config })
    }

    /// The data directory of the plan, or that of the snapshot.
    fn original(&self, details: &PhysicalDetails) -> Result<PathBuf> {
        let told = details.data_directory.as_ref().map(PathBuf::from);
        let Some(data) = self.settings.data.clone().or(told) else {
            return Err(Error::new(ErrorKind::Plan, "it is not known where the data directory was")
                .hint("write `data: /path` into the plan, or restore into a folder with `--target`"));
        };
        let host = &self.server.host;
        host.local_path(&data).ok_or_else(|| {
            let message = format!("{} of {} cannot be written from here", data.display(), host.describe());
            Error::new(ErrorKind::Unsupported, message).hint("restore into a folder with `--target`, and move it there")
        })
    }

    /// What [`write`](Self::write) and [`complete`](Self::complete) would do. Everything that can be known to fail, fails here.
    pub(crate) async fn plan_put_back(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        to: &RestoreTarget,
        way: Option<&Way>,
    ) -> Result<RestorePlan> {
        let mut inventory = Inventory::take(cx, from).await?;
        let spaces = self.spaces(cx, from, details, &mut inventory, way).await?;
        let place = self.destination(details, &spaces, to)?;
        standing::check(&place.layout, to.existing, &inventory)?;
        if place.copy == Copy::InPlace {
            self.refuse_running().await?;
        }
        let tree = from.record().artifacts.iter().find(|artifact| artifact.name.as_str() == TREE);
        let log = way.map_or(0, |way| room_for_log(way, supply(to.afterwards)));
        let bytes = tree.map_or(0, |artifact| artifact.bytes).saturating_add(log);
        if to.existing == Existing::Refuse {
            let Layout { data, tablespaces, .. } = &place.layout;
            let spaces = tablespaces.iter().map(|(oid, folder)| (folder.as_path(), inventory.bytes(Some(*oid))));
            let rest = inventory.bytes(None).saturating_add(log);
            standing::check_space(spaces.chain([(data.as_path(), rest)]))?;
        }
        let needs_links = spaces.needs_links(&place.layout);
        if to.afterwards == Afterwards::Start {
            let tools = self.tools.server(PgVersion(details.version_number)).await?;
            if needs_links {
                refuse_old(tools.version)?;
            }
        }
        let mut plan = RestorePlan {
            steps: steps(&place, &spaces, details, to),
            bytes,
            target: to.clone(),
            warnings: damage(details),
            changes: None,
        };
        plan.steps.extend(way.map(Way::describe));
        if to.afterwards == Afterwards::Leave && needs_links && !follows_links(PgVersion(details.version_number)) {
            let major = details.version_number / 10_000;
            let what = format!(
                "the log makes a tablespace: start it with the newest release of PostgreSQL {major}, an older one stops there"
            );
            plan.warnings.push(what);
        }
        if to.afterwards == Afterwards::Start {
            plan.steps.push("start the server, and wait until it has recovered".to_owned());
        }
        plan.warnings.extend(log_folder(&place, details, to.existing));
        if place.copy == Copy::Beside {
            plan.warnings.push(kept_apart());
            let libraries = self.libraries(details).await;
            plan.warnings.extend(not_in_force(&drawing(cx, from, details, &inventory, &libraries).await?.told));
            if details.standby {
                let what = "it was a standby, and will not be one: a copy follows nobody (to make it one, make it live, and put a \
                            `standby.signal` into its data directory before it is first started)";
                plan.warnings.push(what.to_owned());
            }
        } else if details.standby && way.is_none() {
            plan.warnings.push("it was a standby, and will be one when it is started (standby.signal)".to_owned());
        }
        Ok(plan)
    }

    /// Whether the server of the plan answers, whose place would be taken.
    async fn refuse_running(&self) -> Result<()> {
        let Ok(tools) = self.tools.any().await else { return Ok(()) };
        let endpoint = &self.server.endpoint;
        let command = self.server.plain_command(tools.program("pg_isready")).arg("--quiet");
        let command = command.args(["-h", endpoint.host.as_str(), "-p"]).arg(endpoint.port.to_string());
        let mut process = self.server.host.spawn(command.null_stdout()).await?;
        // 0: it takes connections; 1: it is starting or stopping; 2: nobody answers.
        match process.status().await? {
            Some(0 | 1) => Err(Error::new(ErrorKind::Busy, format!("the server on {} runs", self.server.describe()))
                .hint("stop it first; or restore into a folder beside it with `--target`")),
            _ => Ok(()),
        }
    }

    /// Writes everything. It stands where it shall only after [`complete`](Self::complete), unless it is written over what
    /// stands there; dropping what is returned leaves nothing then.
    pub(crate) async fn write(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        to: &RestoreTarget,
        way: Option<&Way>,
    ) -> Result<Written> {
        let mut inventory = Inventory::take(cx, from).await?;
        let spaces = self.spaces(cx, from, details, &mut inventory, way).await?;
        let Destination { layout, owner, copy, folder, config } = self.destination(details, &spaces, to)?;
        let (brought, blanks) = spaces.blanks(&layout);
        standing::check(&layout, to.existing, &inventory)?;
        let beside = folder.map(|folder| folder.join(CONFIG));
        let staging = if to.existing == Existing::Refuse && standing::can_be_staged(&layout) {
            // The data directory comes last: whoever sees it sees it whole.
            let last = layout.folders().rev().map(PathBuf::as_path);
            Some(Staging::new(beside.as_deref().into_iter().chain(last))?)
        } else {
            None
        };
        let now = staging.as_ref().map_or_else(|| layout.clone(), |staging| layout.staged(staging));
        standing::clear(&now, to.existing, &inventory)?;
        let (existing, inventory) = (to.existing, &inventory);
        let placing = Placing { layout: &now, later: &layout, existing, owner, inventory, blanks: &brought };
        let placed = place(cx, from, &placing).await?;
        let mut report = RestoreReport { bytes: placed.bytes, items: placed.files, ..RestoreReport::default() };
        let supply = supply(to.afterwards);
        match (way, from.log(), supply) {
            (Some(way), Some(log), Supply::Staged) => {
                report.bytes += stage(cx, log, way, (&now.data, owner, &blanks)).await?;
            }
            (Some(way), Some(log), Supply::HandedOver) => prepare(cx, log, way, &now.data, owner).await?,
            _ => {}
        }
        if let (Some(folder), Some(beside)) = (folder, &beside) {
            let beside = staging.as_ref().map_or_else(|| beside.clone(), |staging| staging.path(beside));
            report.items += place_config(cx, from, details, folder, &beside).await?;
        }
        let about = format!("{} from the snapshot {}", to.moment, from.manifest().id);
        let is_elsewhere = config.is_some();
        let libraries = &self.libraries(details).await;
        let layout_now = &now;
        let how = Configuring {
            layout: layout_now,
            owner,
            copy,
            is_elsewhere,
            way,
            supply,
            about: &about,
            inventory,
            libraries,
        };
        report.warnings.extend(not_in_force(&configure(cx, from, details, &how).await?));
        standing::ended(&now)?;
        finish(&now).await?;
        report.restored.extend(layout.folders().map(|path| path.display().to_string()));
        report.restored.extend(spaces.steps(&layout));
        report.restored.extend(way.map(Way::describe));
        if placed.kept > 0 {
            report.restored.push(format!("{} files were the same already", placed.kept));
        }
        report.warnings.extend(damage(details));
        if copy == Copy::Beside {
            report.warnings.push(kept_apart());
        }
        let others = standing::others(&now, inventory)?;
        Ok(Written { staging, report, layout, blanks, owner, copy, config, folder: folder.map(Path::to_owned), others })
    }

    /// Gives everything its place; checks, and starts, when that is wished.
    pub(crate) async fn complete(
        &self,
        cx: &RunContext,
        from: &BackupReader,
        details: &PhysicalDetails,
        written: Written,
        way: Option<&Way>,
        afterwards: Afterwards,
    ) -> Result<RestoreReport> {
        let Written { staging, mut report, layout, blanks, owner, copy, config, folder, others } = written;
        staging.map_or(Ok(()), Staging::finish)?;
        let socket = folder.as_deref().filter(|_| copy == Copy::Beside).map(offer_socket).transpose()?;
        self.verify_backup(cx, details, &layout, &others).await?;
        if afterwards == Afterwards::Leave {
            return Ok(report);
        }
        // No base backup has what is in `pg_wal`.
        let log = folder.unwrap_or_else(|| layout.data.join("pg_wal")).join(LOG);
        write_private(&log, b"", owner)?;
        let started = Started { data: &layout.data, config, log: &log };
        let start = self.start(cx, details, &started, socket.as_deref());
        let told = match (way, from.log()) {
            (Some(way), Some(log)) => {
                report.bytes += way.segments.len() as u64 * way.segment_bytes;
                hand_over(cx, log, way, (&layout.data, owner, &blanks), start).await?
            }
            _ => start.await?,
        };
        report.restored.push(told);
        remove_passing(&layout)?;
        recovered(&layout.data, owner)?;
        Ok(report)
    }

    async fn start(
        &self,
        cx: &RunContext,
        details: &PhysicalDetails,
        how: &Started<'_>,
        socket: Option<&Path>,
    ) -> Result<String> {
        let tools = self.tools.server(PgVersion(details.version_number)).await?;
        let owned = crate::server::Server::of_files(&self.server);
        let place = start(cx, &owned, &tools, how).await?;
        let socket = socket.map_or_else(String::new, |socket| format!("; its socket is in {}", socket.display()));
        Ok(format!("the server runs: {place}{socket}"))
    }

    /// Lets `pg_verifybackup` of the same version look at it, when there is one. The checksums were compared already, as the
    /// files were written.
    async fn verify_backup(
        &self,
        cx: &RunContext,
        details: &PhysicalDetails,
        layout: &Layout,
        others: &[String],
    ) -> Result<()> {
        let version = PgVersion(details.version_number);
        let Ok(tools) = self.tools.server(version).await else { return Ok(()) };
        if tools.version.major() != version.major() || !tools.has(&*self.server.host, "pg_verifybackup").await {
            return Ok(());
        }
        cx.step("checking the files with pg_verifybackup");
        self.run_verify_backup(cx, &tools, layout, others).await
    }

    async fn run_verify_backup(
        &self,
        cx: &RunContext,
        tools: &Tools,
        layout: &Layout,
        others: &[String],
    ) -> Result<()> {
        let command = self.server.plain_command(tools.program("pg_verifybackup")).args(["--skip-checksums", "--quiet"]);
        // What was put beside the server's own files.
        let ours = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d"];
        let ignored = ours.into_iter().chain([SOCKETS]).chain(others.iter().map(String::as_str));
        let command = ignored.fold(command, |command, name| command.arg(format!("--ignore={name}")));
        // What stands in the folders of these, if anything, the log will bring.
        let made = layout.made.iter().map(|oid| format!("--ignore={LINKS}/{oid}"));
        let command = command.args(made);
        let mut process = self.server.host.spawn(command.arg(&layout.data).null_stdout()).await?;
        let status = cx.unless_cancelled(process.status()).await?;
        if status == Some(0) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Damaged, "pg_verifybackup does not find the restored files whole")
            .caused_by(process.stderr_tail().trim().to_owned()))
    }

    /// Checks the base backup of a snapshot; `None` when it has none.
    pub(crate) async fn verify(cx: &RunContext, from: &BackupReader) -> Result<Option<VerifyReport>> {
        let Some(details) = PhysicalDetails::of(from.record())? else { return Ok(None) };
        let mut report = VerifyReport::default();
        verify::verify(cx, from, &details, &mut report).await?;
        Ok(Some(report))
    }
}

/// What is said of every copy.
fn kept_apart() -> String {
    format!(
        "the copy is kept apart from the living by the block `{APART}` of its postgresql.auto.conf: it archives nothing, follows and \
         subscribes to nobody, runs no jobs, and has a socket of its own only; to make it live, take the block out while it is stopped"
    )
}

/// Leads from `run` in the folder of a restore to the folder of the socket.
fn offer_socket(folder: &Path) -> Result<PathBuf> {
    let (link, sockets) = (folder.join(SOCKET), Path::new(DATA).join(SOCKETS));
    if link.is_symlink() {
        return Ok(link);
    }
    // An earlier restore made a folder, which is empty unless its server was killed.
    let _other = std::fs::remove_dir(&link);
    match std::os::unix::fs::symlink(&sockets, &link) {
        Ok(()) => Ok(link),
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => Ok(folder.join(sockets)),
        Err(source) => Err(Error::io("cannot lead to the folder of the socket", &link, source)),
    }
}

/// Where the log goes, when that is another disk than before, or might be taken for one.
fn log_folder(place: &Destination<'_>, details: &PhysicalDetails, existing: Existing) -> Option<String> {
    let log = place.layout.data.join("pg_wal");
    match (standing::log_link(&place.layout.data).filter(|_| existing != Existing::Refuse), &details.log_folder) {
        (Some(folder), _) => {
            Some(format!("{} stays a link to {}; what is there of the log is removed", log.display(), folder.display()))
        }
        (None, Some(folder)) => Some(format!(
            "`pg_wal` was a link to {folder} on the server; here it is a folder, on the disk of {}",
            place.layout.data.display()
        )),
        (None, None) => None,
    }
}

/// Who is started by us gets the log from us.
fn supply(afterwards: Afterwards) -> Supply {
    match afterwards {
        Afterwards::Start => Supply::HandedOver,
        Afterwards::Leave => Supply::Staged,
    }
}

/// What the log needs on the disk of the data directory while it is replayed.
fn room_for_log(way: &Way, supply: Supply) -> u64 {
    let all = way.segments.len() as u64 * way.segment_bytes;
    match supply {
        Supply::Staged => all,
        Supply::HandedOver => all.min(KEPT_BYTES + ahead(way.segment_bytes) as u64 * way.segment_bytes),
    }
}

/// The main configuration file on the server's machine, when it is not in the data directory and stands there still.
fn elsewhere(details: &PhysicalDetails, layout: &Layout) -> Option<PathBuf> {
    let main = details.config_files.iter().find(|file| file.path.ends_with("/postgresql.conf"))?;
    let path = PathBuf::from(&main.path);
    (!path.starts_with(&layout.data) && path.is_file()).then_some(path)
}

/// The recovery has ended, and with it the tablespaces that it dropped. What an archive was needed for is gone already.
fn remove_passing(layout: &Layout) -> Result<()> {
    let folder = layout.all_passing();
    match std::fs::remove_dir_all(&folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("cannot remove the folder", &folder, source))
        }
        _ => Ok(()),
    }
}

fn steps(place: &Destination<'_>, spaces: &Spaces, details: &PhysicalDetails, to: &RestoreTarget) -> Vec<String> {
    let layout = &place.layout;
    let how = match to.existing {
        Existing::Refuse => "write",
        Existing::Replace => "remove what is there, and write",
        Existing::Update => "compare what is there, and write what differs of",
    };
    let mut steps = vec![format!("{how} the data directory {}", layout.data.display())];
    for space in &details.tablespaces {
        let to = layout.tablespaces.get(&space.oid).map_or_else(|| layout.passing(space.oid), Clone::clone);
        steps.push(format!("{how} the tablespace that was in {} to {}", space.location, to.display()));
    }
    steps.extend(spaces.steps(layout));
    if let (Some(folder), false) = (place.folder, details.config_files.is_empty()) {
        steps.push(format!("write {} configuration files below {}", details.config_files.len(), folder.display()));
    }
    steps
}

fn damage(details: &PhysicalDetails) -> Vec<String> {
    if details.damaged_total == 0 {
        return Vec::new();
    }
    let first =
        details.damaged_pages.first().map_or_else(String::new, |page| format!(", one of them in {}", page.path));
    vec![format!("{} pages were damaged on the server already{first}", details.damaged_total)]
}
